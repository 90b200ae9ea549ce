//! Why an area was not made, resized or freed.

use kmem_gfp::{AllocError, Gfp, TaskFlags};

use crate::{MapError, VmFlags};

/// Why there is no area. Nothing has changed, but for page tables and bookkeeping that later calls will use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VmallocError {
    /// Zero bytes, zero frames.
    #[error("an area of no bytes")]
    ZeroSize,
    /// More than the machine's memory, or than the window could ever hold (also: the size overflowed).
    #[error("{size_bytes} bytes are more than an area can have")]
    TooLarge {
        /// The size asked for; `usize::MAX` when the arithmetic saturated.
        size_bytes: usize,
    },
    /// Not a power of two, or above the window.
    #[error("alignment {0} is not supported")]
    BadAlign(usize),
    /// Flags that the call does not take.
    #[error("{0:?} cannot be asked for here")]
    BadFlags(VmFlags),
    /// A range that is not inside the window.
    #[error("{start:#x}..{end:#x} is not inside the window")]
    BadRange {
        /// Its first address.
        start: usize,
        /// The address behind it.
        end: usize,
    },
    /// The context must not do this: an interrupt, or flags that sleep where sleeping is forbidden.
    #[error("{gfp} cannot be served in this context: {task:?}")]
    BadContext {
        /// The flags.
        gfp: Gfp,
        /// The context.
        task: TaskFlags,
    },
    /// No free range of addresses is long enough.
    #[error("no {nr_pages} pages of address space are left")]
    NoSpace {
        /// Pages asked for, guard page included.
        nr_pages: u64,
    },
    /// No frames, or no memory for bookkeeping.
    #[error("no memory for an area of {nr_pages} pages: {source}")]
    NoMemory {
        /// Pages of the area.
        nr_pages: u64,
        /// What the page source said.
        source: AllocError,
    },
    /// The page tables could not be filled.
    #[error("cannot map an area of {nr_pages} pages: {source}")]
    NotMapped {
        /// Pages of the area.
        nr_pages: u64,
        /// What the address space said.
        source: MapError,
    },
    /// The task is being killed; it gets no more memory.
    #[error("interrupted by a fatal signal after {nr_pages} pages")]
    Interrupted {
        /// Pages gathered so far; they have been given back.
        nr_pages: u64,
    },
    /// The address to be resized is not the start of an area that can be.
    #[error(transparent)]
    BadAddress(#[from] VfreeError),
    /// The window has not been set up, or the machine has none.
    #[error("vmalloc has no window of addresses")]
    NotReady,
}

/// Why an address was not freed, unmapped or found. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VfreeError {
    /// Not in the window at all.
    #[error("{0:#x} is not a vmalloc address")]
    Foreign(usize),
    /// Not page-aligned.
    #[error("{0:#x} is not aligned to a page")]
    Misaligned(usize),
    /// No area is there: it never was, or has been freed.
    #[error("no area at {0:#x}")]
    NoArea(usize),
    /// The area there has been freed already, or is being freed.
    #[error("the area at {0:#x} is free already")]
    AlreadyFree(usize),
    /// The area there is of another kind, with a call of its own to end it.
    #[error("the area at {address:#x} is not one for this call: {flags:?}")]
    WrongKind {
        /// The address.
        address: usize,
        /// The area's flags.
        flags: VmFlags,
    },
    /// The count of pages is not the one that was mapped.
    #[error("{given} pages at {address:#x} are not what was mapped there")]
    WrongCount {
        /// The address.
        address: usize,
        /// The count given.
        given: u64,
    },
    /// Not in this context.
    #[error("not in this context: {0:?}")]
    BadContext(TaskFlags),
    /// The window has not been set up, or the machine has none.
    #[error("vmalloc has no window of addresses")]
    NotReady,
}
