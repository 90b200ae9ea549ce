//! Verdicts: which combinations of flags, interface and context make sense.
//!
//! ```text
//!  (gfp, interface, task) ──judge──▶ Ok(Verdict { gfp, advice })   go on with `gfp`; `advice` is worth a warning
//!                                └─▶ Err(GfpError)                 a bug in the caller: no memory is looked for
//! ```
//!
//! | combination | verdict |
//! | --- | --- |
//! | two of DMA, DMA32, HIGHMEM | [`GfpError::ZoneConflict`] |
//! | MOVABLE and RECLAIMABLE | [`GfpError::MobilityConflict`] |
//! | DIRECT_RECLAIM where sleeping is forbidden | [`GfpError::SleepInAtomic`] |
//! | NOFAIL without DIRECT_RECLAIM | goes on, may fail: [`Advice::NOFAIL_CANNOT_WAIT`] |
//! | NOFAIL in a task that is reclaiming | goes on: [`Advice::NOFAIL_IN_RECLAIM`] |
//! | NOFAIL and THISNODE | goes on, may loop for ever: [`Advice::NOFAIL_ON_ONE_NODE`] |
//! | MEMALLOC and NOMEMALLOC | legal, NOMEMALLOC wins: [`Advice::MEMALLOC_OVERRIDDEN`] |
//! | several of NORETRY, RETRY_MAYFAIL, NOFAIL | goes on: [`Advice::RETRY_CONFLICT`] |
//! | HIGHMEM, the result is an address | dropped silently |
//! | COMP or HIGHMEM, exact page count | dropped: [`Advice::DROPPED`] |
//! | COMP, contiguous range that is no power of two | [`GfpError::CompoundRange`] |
//! | anything that a contiguous range or a nolock call does not know | [`GfpError::Refused`] |
//!
//! All of it is pure and constant-time; debug builds of an allocator run it at every entry, release builds where it is
//! free. How a legal request retries stands in [`Retry`], who may not use the any-context form in [`nolock`].

pub mod nolock;
mod retry;

pub use retry::{OomEligibility, Retry};

use crate::{context::TaskFlags, error::AllocError, flags::Gfp};

/// A use of flags that cannot be honoured: a bug in the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GfpError {
    /// More than one of DMA, DMA32 and HIGHMEM: there is no zone for that.
    #[error("{gfp} names more than one zone")]
    ZoneConflict {
        /// The flags.
        gfp: Gfp,
    },
    /// Both MOVABLE and RECLAIMABLE: there is no pageblock for that.
    #[error("{gfp} is both movable and reclaimable")]
    MobilityConflict {
        /// The flags.
        gfp: Gfp,
    },
    /// The flags let the allocator sleep, the context does not.
    #[error("{gfp} may sleep, but the context must not: {task:?}")]
    SleepInAtomic {
        /// The flags.
        gfp: Gfp,
        /// The context.
        task: TaskFlags,
    },
    /// The interface does not take some of the flags.
    #[error("{interface:?} does not take {refused} (asked with {gfp})")]
    Refused {
        /// The flags.
        gfp: Gfp,
        /// Those of them that are refused.
        refused: Gfp,
        /// The interface.
        interface: Interface,
    },
    /// A compound page of a size that no compound page has.
    #[error("{nr_pages} pages cannot be one compound page (asked with {gfp})")]
    CompoundRange {
        /// The flags.
        gfp: Gfp,
        /// The pages asked for.
        nr_pages: u64,
    },
}

impl GfpError {
    /// The flags that were asked with.
    #[must_use]
    pub const fn gfp(&self) -> Gfp {
        match *self {
            Self::ZoneConflict { gfp }
            | Self::MobilityConflict { gfp }
            | Self::SleepInAtomic { gfp, .. }
            | Self::Refused { gfp, .. }
            | Self::CompoundRange { gfp, .. } => gfp,
        }
    }
}

impl From<GfpError> for AllocError {
    fn from(error: GfpError) -> Self {
        Self::BadFlags(error.gfp())
    }
}

bitflags::bitflags! {
    /// What is odd about a request that goes on all the same.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct Advice: u16 {
        /// NOFAIL without DIRECT_RECLAIM: cannot wait, so it can fail. Worth one warning.
        const NOFAIL_CANNOT_WAIT = 1 << 0;
        /// NOFAIL by a task that is reclaiming: waits for memory that it should free itself. Worth one warning.
        const NOFAIL_IN_RECLAIM = 1 << 1;
        /// NOFAIL and THISNODE: legal, but nothing is ever killed for it, so it may loop for ever.
        const NOFAIL_ON_ONE_NODE = 1 << 2;
        /// MEMALLOC and NOMEMALLOC: legal, the latter wins.
        const MEMALLOC_OVERRIDDEN = 1 << 3;
        /// More than one of NORETRY, RETRY_MAYFAIL and NOFAIL. [`Retry`] says which wins.
        const RETRY_CONFLICT = 1 << 4;
        /// NORETRY or RETRY_MAYFAIL without DIRECT_RECLAIM: means nothing.
        const RETRY_WITHOUT_RECLAIM = 1 << 5;
        /// The interface dropped flags that it cannot honour; worth one warning.
        const DROPPED = 1 << 6;
        /// Dropped silently: the interface returns an address, so HIGHMEM means nothing.
        const DROPPED_HIGHMEM = 1 << 7;
    }
}

impl Advice {
    /// The advice that a kernel reports at run time; the rest is for whoever reviews the caller.
    pub const WARNINGS: Self = Self::NOFAIL_CANNOT_WAIT.union(Self::NOFAIL_IN_RECLAIM).union(Self::DROPPED);
}

/// Which interface a request comes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interface {
    /// Blocks of pages by frame number (`alloc_pages`).
    Pages,
    /// Pages by address (`__get_free_pages`).
    Address,
    /// An exact number of pages by address (`alloc_pages_exact`).
    Exact,
    /// A given or searched range of frames (`alloc_contig_range`, `alloc_contig_pages`).
    ContigRange {
        /// How many pages.
        nr_pages: u64,
    },
    /// Objects (`kmalloc`, `kmem_cache_alloc`).
    Slab,
    /// Blocks of pages from any context (`alloc_pages_nolock`).
    NoLock,
}

/// A request that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The flags to go on with: those that the interface drops are gone, those that it implies are there.
    pub gfp: Gfp,
    /// What is odd about them.
    pub advice: Advice,
}

/// The flags that a contiguous-range request honours.
pub const CONTIG_HONOURED: Gfp = Gfp::RECLAIM
    .union(Gfp::IO)
    .union(Gfp::FS)
    .union(Gfp::COMP)
    .union(Gfp::RETRY_MAYFAIL)
    .union(Gfp::NOWARN)
    .union(Gfp::ZERO)
    .union(Gfp::ZEROTAGS)
    .union(Gfp::SKIP_ZERO)
    .union(Gfp::SKIP_KASAN);

/// The flags that a contiguous-range request accepts and ignores: the range itself says where the memory lies.
pub const CONTIG_IGNORED: Gfp = Gfp::ZONE_AND_MOBILITY.union(Gfp::WRITE).union(Gfp::HARDWALL).union(Gfp::THISNODE);

/// Judges a request: its flags, the interface that it comes through and the state of its task. Any context.
///
/// # Errors
///
/// [`GfpError`] when the request is a bug in the caller.
///
/// # Examples
///
/// ```
/// use kmem_gfp::{Gfp, TaskFlags, verdict::{Advice, GfpError, Interface, judge}};
///
/// let irq = TaskFlags::IN_IRQ;
/// assert!(matches!(judge(Gfp::KERNEL, Interface::Pages, irq), Err(GfpError::SleepInAtomic { .. })));
/// let verdict = judge(Gfp::ATOMIC | Gfp::NOFAIL, Interface::Pages, irq)?;
/// assert_eq!(verdict.advice, Advice::NOFAIL_CANNOT_WAIT);
/// # Ok::<(), GfpError>(())
/// ```
pub const fn judge(gfp: Gfp, interface: Interface, task: TaskFlags) -> Result<Verdict, GfpError> {
    let mut advice = Advice::empty();
    let asked = gfp;
    let gfp = match interface {
        Interface::Pages => gfp,
        Interface::Address => {
            if gfp.contains(Gfp::HIGHMEM) {
                advice = advice.union(Advice::DROPPED_HIGHMEM);
            }
            gfp.addressable()
        }
        Interface::Exact => {
            let dropped = Gfp::COMP.union(Gfp::HIGHMEM);
            if gfp.intersects(dropped) {
                advice = advice.union(Advice::DROPPED);
            }
            gfp.difference(dropped)
        }
        Interface::Slab => {
            if !gfp.slab_bugs().is_empty() {
                advice = advice.union(Advice::DROPPED);
            }
            gfp.difference(Gfp::SLAB_BUG_MASK)
        }
        Interface::ContigRange { nr_pages } => match contig_range(gfp, nr_pages) {
            Ok(gfp) => gfp,
            Err(error) => return Err(error),
        },
        Interface::NoLock => match nolock::request(gfp) {
            Ok(gfp) => return Ok(Verdict { gfp, advice }),
            Err(error) => return Err(error),
        },
    };
    if gfp.intersection(ONE_ZONE).bits().count_ones() > 1 {
        return Err(GfpError::ZoneConflict { gfp: asked });
    }
    if gfp.contains(Gfp::MOVABLE.union(Gfp::RECLAIMABLE)) {
        return Err(GfpError::MobilityConflict { gfp: asked });
    }
    if let Err(error) = check_sleep(gfp, task) {
        return Err(error);
    }
    Ok(Verdict { gfp, advice: advice.union(oddities(gfp, task)) })
}

/// The zone flags of which a request carries at most one.
const ONE_ZONE: Gfp = Gfp::DMA.union(Gfp::DMA32).union(Gfp::HIGHMEM);

/// The sleep check that every entry runs, whether or not memory is at hand, so that misuse shows at the first call and
/// not under the first shortage: DIRECT_RECLAIM needs a context that may sleep, unless the task is itself reclaiming
/// (and therefore will not reclaim again). Any context.
///
/// # Errors
///
/// [`GfpError::SleepInAtomic`].
#[doc(alias("might_alloc", "might_sleep_if"))]
#[inline]
pub const fn check_sleep(gfp: Gfp, task: TaskFlags) -> Result<(), GfpError> {
    if gfp.allows_blocking() && !task.may_sleep() && !task.contains(TaskFlags::MEMALLOC) {
        return Err(GfpError::SleepInAtomic { gfp, task });
    }
    Ok(())
}

/// Whether a request may reclaim by itself: it may block and its task is not reclaiming already.
#[must_use]
#[inline]
pub const fn may_reclaim(gfp: Gfp, task: TaskFlags) -> bool {
    gfp.allows_blocking() && !task.contains(TaskFlags::MEMALLOC)
}

const fn contig_range(gfp: Gfp, nr_pages: u64) -> Result<Gfp, GfpError> {
    let known = CONTIG_HONOURED.union(CONTIG_IGNORED);
    let refused = gfp.difference(known);
    if !refused.is_empty() {
        return Err(GfpError::Refused { gfp, refused, interface: Interface::ContigRange { nr_pages } });
    }
    if gfp.contains(Gfp::COMP) && !nr_pages.is_power_of_two() {
        return Err(GfpError::CompoundRange { gfp, nr_pages });
    }
    Ok(gfp.intersection(CONTIG_HONOURED))
}

const fn oddities(gfp: Gfp, task: TaskFlags) -> Advice {
    let mut advice = Advice::empty();
    let retry = gfp.intersection(Gfp::RETRY_MODIFIERS);
    if gfp.contains(Gfp::NOFAIL) {
        if !gfp.allows_blocking() {
            advice = advice.union(Advice::NOFAIL_CANNOT_WAIT);
        }
        if task.contains(TaskFlags::MEMALLOC) {
            advice = advice.union(Advice::NOFAIL_IN_RECLAIM);
        }
        if gfp.contains(Gfp::THISNODE) {
            advice = advice.union(Advice::NOFAIL_ON_ONE_NODE);
        }
    } else if !retry.is_empty() && !gfp.allows_blocking() {
        advice = advice.union(Advice::RETRY_WITHOUT_RECLAIM);
    }
    if retry.bits().count_ones() > 1 {
        advice = advice.union(Advice::RETRY_CONFLICT);
    }
    if gfp.contains(Gfp::MEMALLOC.union(Gfp::NOMEMALLOC)) {
        advice = advice.union(Advice::MEMALLOC_OVERRIDDEN);
    }
    advice
}
