//! Shrinkers: caches of all kinds give objects back when asked.
//!
//! ```text
//! shrink_slab(node, group, priority)
//!   └─ each registered ShrinkerSlot ─▶ count_objects ─▶ how many to scan (`formula`) ─▶ scan_objects, batch by batch
//!                                                        ▲ deferred work of earlier passes        │ what was not done
//!                                                        └────────────────────────────────────────┘
//! ```
//!
//! - [`Shrinker`]: the two callbacks, [`ShrinkControl`] what they are told, [`ShrinkCount`] and [`ShrinkScan`] what they say;
//! - [`ShrinkerSlot`]: a shrinker with its weight, batch, awareness and deferred work: memory of whoever registers it;
//! - [`Shrinkers`]: those that are registered;
//! - [`formula`]: the arithmetic.

#[forbid(unsafe_code)]
pub mod formula;
mod registry;
#[forbid(unsafe_code)]
mod slab;
mod slot;

use kmem_gfp::{AllocContext, Gfp, NodeId};

use crate::GroupId;

pub use registry::{RegisterError, Shrinkers};
pub use slot::ShrinkerSlot;

/// In whose name objects are to be given back.
#[derive(Clone, Copy)]
pub struct ShrinkControl<'a> {
    /// The flags of the request: without [`Gfp::FS`] no filesystem may be entered, without [`Gfp::IO`] no I/O started.
    pub gfp: Gfp,
    /// The node whose objects are wanted; node 0 for a shrinker that does not tell nodes apart.
    pub node: NodeId,
    /// The group whose objects are wanted; the root for a shrinker that does not tell groups apart.
    pub group: GroupId,
    /// The running context. It is marked as reclaiming, so allocations use reserves and do not recurse.
    pub context: &'a dyn AllocContext,
}

impl core::fmt::Debug for ShrinkControl<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ShrinkControl")
            .field("gfp", &self.gfp)
            .field("node", &self.node)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

/// What [`Shrinker::count_objects`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShrinkCount {
    /// Unknown, or busy: leave it alone for now.
    Skip,
    /// There is nothing, and there will be nothing until [`ShrinkerSlot::note_objects`] is called.
    #[doc(alias = "SHRINK_EMPTY")]
    Empty,
    /// About so many objects could be freed.
    Objects(u64),
}

/// What [`Shrinker::scan_objects`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShrinkScan {
    /// No progress is possible now: do not ask again in this pass.
    #[doc(alias = "SHRINK_STOP")]
    Stop,
    /// So many objects were freed, and so many looked at, which may be fewer than asked for.
    Scanned {
        /// Objects freed, in pages or objects as the shrinker counts.
        freed: u64,
        /// Objects looked at.
        scanned: u64,
    },
}

/// A cache that can give objects back.
///
/// Both callbacks run where sleeping is allowed, several at once, between registration and the end of unregistration and
/// at no other time. They must not unregister the shrinker that they belong to, and must not wait for an allocation that may
/// reclaim.
#[doc(alias = "struct shrinker")]
pub trait Shrinker: Sync {
    /// How many objects could be freed: a quick estimate.
    fn count_objects(&self, control: &ShrinkControl<'_>) -> ShrinkCount;

    /// Tries to free `nr` objects.
    fn scan_objects(&self, control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan;
}

impl<S: Shrinker + ?Sized> Shrinker for &S {
    fn count_objects(&self, control: &ShrinkControl<'_>) -> ShrinkCount {
        (**self).count_objects(control)
    }
    fn scan_objects(&self, control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
        (**self).scan_objects(control, nr)
    }
}
