//! What an allocator may call when it is short of memory.
//!
//! The page allocator's slow path decides *when* each step is due; an implementation of [`Reclaimer`] decides *how* it is
//! done. Allocators without reclaim take [`NoReclaim`].

use crate::{AllocContext, Gfp, MigrateType, NodeId, Order, ZoneKind};

/// The request in whose name memory is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReclaimRequest {
    /// Its flags after the scopes of the task have been applied.
    pub gfp: Gfp,
    /// Its order.
    pub order: Order,
    /// The highest zone that may serve it.
    pub ceiling: ZoneKind,
    /// The node it prefers.
    pub node: NodeId,
    /// Whether only [`node`](Self::node) may serve it ([`Gfp::THISNODE`]).
    pub this_node_only: bool,
    /// Its migratetype.
    pub migratetype: MigrateType,
}

/// How thoroughly to compact, from the lightest to the most thorough (C-04).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CompactPriority {
    /// Gives up on contention; no waiting.
    Async,
    /// May wait for locks, not for writeback.
    SyncLight,
    /// Ignores hints and deferral, scans the whole zone.
    SyncFull,
}

/// What a round of direct compaction came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactOutcome {
    /// Not tried: no zone is suitable. Freeing pages first could help.
    Skipped,
    /// Not tried: it failed too often lately.
    Deferred,
    /// Ran to the end without making a large enough block.
    Complete,
    /// Stopped because of contention.
    Contended,
    /// A large enough block should be free now.
    Success,
}

/// What the OOM step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OomOutcome {
    /// Something was killed, is dying, or freed memory: try again.
    Progress,
    /// Nothing can be done for this request.
    NoVictim,
}

/// Finds memory for an allocator that has run short.
///
/// All methods but [`wake_background`](Self::wake_background) and [`reclaimable_pages`](Self::reclaimable_pages) are
/// called only where the request may sleep. Implementations may allocate; the allocator has marked the task so that such
/// allocations use reserves and never recurse.
pub trait Reclaimer {
    /// Wakes background reclaim for `node` (`wake_all_kswapds`). Any context; cheap; never sleeps.
    fn wake_background(&self, node: NodeId, request: &ReclaimRequest);

    /// Whether anybody reclaims here at all. Without, a request that may not start filesystem work, and so cannot have
    /// anything killed either, fails instead of waiting for others' progress.
    fn can_reclaim(&self) -> bool {
        true
    }

    /// Reclaims pages now and returns how many were freed, in pages. Zero means no progress.
    fn reclaim(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> usize;

    /// Makes larger blocks out of scattered free pages.
    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        let _ = (context, request, priority);
        CompactOutcome::Skipped
    }

    /// Whether compaction exists here at all; decides between the retry rules with and without it.
    fn can_compact(&self) -> bool {
        false
    }

    /// Pages of a zone that reclaim could free, for judging whether retrying is of use. Any context.
    fn reclaimable_pages(&self, node: NodeId, zone: ZoneKind) -> u64 {
        let _ = (node, zone);
        0
    }

    /// The last resort: kills something, or says that nothing can be done.
    fn out_of_memory(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> OomOutcome {
        let _ = (context, request);
        OomOutcome::NoVictim
    }
}

/// For machines without reclaim: an allocation that finds nothing free fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReclaim;

impl Reclaimer for NoReclaim {
    #[inline(always)]
    fn can_reclaim(&self) -> bool {
        false
    }
    #[inline(always)]
    fn wake_background(&self, _node: NodeId, _request: &ReclaimRequest) {}
    #[inline(always)]
    fn reclaim(&self, _context: &dyn AllocContext, _request: &ReclaimRequest) -> usize {
        0
    }
}

impl<R: Reclaimer> Reclaimer for &R {
    fn can_reclaim(&self) -> bool {
        (**self).can_reclaim()
    }
    fn wake_background(&self, node: NodeId, request: &ReclaimRequest) {
        (**self).wake_background(node, request);
    }
    fn reclaim(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> usize {
        (**self).reclaim(context, request)
    }
    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        (**self).compact(context, request, priority)
    }
    fn can_compact(&self) -> bool {
        (**self).can_compact()
    }
    fn reclaimable_pages(&self, node: NodeId, zone: ZoneKind) -> u64 {
        (**self).reclaimable_pages(node, zone)
    }
    fn out_of_memory(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> OomOutcome {
        (**self).out_of_memory(context, request)
    }
}
