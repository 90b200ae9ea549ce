//! Why an area was not made, memory not handed out or not taken back.

use kmem_gfp::{AllocError, FreeError, Pfn, PfnRange};

/// Why an area was not declared. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeclareError {
    /// An area of no pages.
    #[error("an area needs at least one page")]
    Empty,
    /// More ranges than an area can have.
    #[error("{nr} ranges are more than the {} of an area", crate::MAX_RANGES)]
    TooManyRanges {
        /// How many were given.
        nr: usize,
    },
    /// A name of more than [`NAME_MAX`](crate::NAME_MAX) bytes.
    #[error("a name of {len} bytes is longer than {}", crate::NAME_MAX)]
    NameTooLong {
        /// Its bytes.
        len: usize,
    },
    /// Bits of more pages than the arithmetic can take.
    #[error("2^{order_per_bit} pages a bit are more than an area can have")]
    BadGranularity {
        /// The order asked for.
        order_per_bit: u32,
    },
    /// An alignment that is no power of two, or too large to compute with.
    #[error("alignment to {align_pages} pages is not supported")]
    BadAlign {
        /// The alignment asked for, in pages.
        align_pages: u64,
    },
    /// A given range that does not begin and end at multiples of a pageblock, of a bit and of the alignment.
    #[error("{range} is not aligned to {align_pages} pages")]
    Misaligned {
        /// The range.
        range: PfnRange,
        /// What it must be aligned to, in pages.
        align_pages: u64,
    },
    /// A given range that reaches beyond the limit.
    #[error("{range} reaches beyond {limit}")]
    BeyondLimit {
        /// The range.
        range: PfnRange,
        /// The first frame that must not be used.
        limit: Pfn,
    },
    /// A given range that cannot be had: this frame is in use, is not memory, or lies in another zone than the first.
    #[error("{0} cannot be given to an area")]
    #[doc(alias = "EBUSY")]
    Taken(Pfn),
    /// Memory given as reserved that is not.
    #[error("{0} was not reserved")]
    NotReserved(PfnRange),
    /// No room for so many pages.
    #[error("no room for an area of {nr_pages} pages")]
    NoMemory {
        /// How many were wanted.
        nr_pages: u64,
    },
    /// The bookkeeping memory could not be had, or the page allocator refused otherwise.
    #[error(transparent)]
    Source(#[from] AllocError),
}

/// Why pages of an area were not handed out. Nothing has changed, though movable pages may have moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CmaError {
    /// The area has not been activated, or its activation failed.
    #[error("the area is not active")]
    Inactive,
    /// A request for no pages, or for an alignment beyond any address.
    #[error("{nr_pages} pages aligned to 2^{align_order} cannot be asked for")]
    BadRequest {
        /// Pages asked for.
        nr_pages: u64,
        /// log2 of the alignment asked for, in pages.
        align_order: u32,
    },
    /// The context may not sleep.
    #[error("memory of an area is handed out only where sleeping is allowed")]
    MustNotSleep,
    /// No place for so many pages: `busy` names the last frame that could not be freed, if any candidate was tried.
    #[error("no room for {nr_pages} pages")]
    NoRoom {
        /// Pages asked for.
        nr_pages: u64,
        /// What was in the way of the last candidate.
        busy: Option<Pfn>,
    },
    /// The page allocator had no other place for what lies in the area, or was interrupted.
    #[error(transparent)]
    Source(AllocError),
}

/// Why pages were not taken back. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The frames are not all in one range of this area. A caller with several sources of memory tries the next.
    #[error("{0} does not lie in one range of the area")]
    Foreign(PfnRange),
    /// The range does not begin and end with a bit.
    #[error("{range} is not made of whole bits of {pages_per_bit} pages")]
    PartialBit {
        /// The range.
        range: PfnRange,
        /// Pages of a bit.
        pages_per_bit: u64,
    },
    /// The frame belongs to no allocation.
    #[error("{0} was not allocated from the area")]
    NotAllocated(Pfn),
    /// The page allocator says that a frame is not in use.
    #[error(transparent)]
    Free(#[from] FreeError),
}
