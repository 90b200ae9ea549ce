//! The engine: its environment, its shrinkers, its tunables, and what a page allocator calls.

use kmem_gfp::{
    AllocContext, CompactOutcome, CompactPriority, NodeId, OomOutcome, ReclaimRequest, Reclaimer, ZoneKind,
};
use kmem_sync::atomic::{AtomicU32, Ordering};
use kmem_sync::const_fn;

use crate::env::{OomKiller, ReclaimEnv, StallKind, Zones};
use crate::events::{ReclaimEvent, ReclaimStats};
use crate::node::Node;
use crate::shrinker::Shrinkers;
use crate::vmpressure::VmPressure;
use crate::{GroupId, Swappiness};

/// Why a tunable was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value} is not between 0 and {most}")]
pub struct TunableError {
    /// The value given.
    pub value: u32,
    /// The largest one allowed.
    pub most: u32,
}

/// Reclaim for one machine: implements [`Reclaimer`], so a page allocator takes it, or a reference to it, as its own.
///
/// Const-constructible, so that a `static` can hold it. Nothing in it is on an allocation's fast path: it is entered when a
/// zone is below its mark, and by its own threads.
#[derive(Debug)]
pub struct Reclaim<E> {
    env: E,
    pub(crate) shrinkers: Shrinkers,
    pressure: VmPressure,
    swappiness: AtomicU32,
    pub(crate) node_reclaim_mode: AtomicU32,
    pub(crate) min_unmapped_ratio: AtomicU32,
    pub(crate) min_slab_ratio: AtomicU32,
}

impl<E> Reclaim<E> {
    const_fn! {
        /// Reclaim over an environment, with the default tunables.
        pub fn new(env: E) -> Self {
            Self {
                env,
                shrinkers: Shrinkers::new(),
                pressure: VmPressure::new(),
                swappiness: AtomicU32::new(60),
                node_reclaim_mode: AtomicU32::new(0),
                min_unmapped_ratio: AtomicU32::new(1),
                min_slab_ratio: AtomicU32::new(5),
            }
        }
    }

    /// The environment.
    pub fn env(&self) -> &E {
        &self.env
    }

    /// The machine's swappiness.
    pub fn swappiness(&self) -> Swappiness {
        Swappiness::Share(self.swappiness.load(Ordering::Relaxed).min(200) as u8)
    }

    /// Sets the machine's swappiness, 0..=200 (`vm.swappiness`).
    ///
    /// # Errors
    /// [`TunableError`]; nothing is changed.
    pub fn set_swappiness(&self, value: u32) -> Result<(), TunableError> {
        set(&self.swappiness, value, 200)
    }

    /// Sets the node reclaim mode (`vm.zone_reclaim_mode`), a sum of 1: on, 2: may write, 4: may unmap.
    ///
    /// # Errors
    /// [`TunableError`]; nothing is changed.
    #[doc(alias = "zone_reclaim_mode")]
    pub fn set_node_reclaim_mode(&self, value: u32) -> Result<(), TunableError> {
        set(&self.node_reclaim_mode, value, 7)
    }

    /// Sets the share of a node in percent that must be unmapped page cache before node reclaim runs.
    ///
    /// # Errors
    /// [`TunableError`]; nothing is changed.
    pub fn set_min_unmapped_ratio(&self, percent: u32) -> Result<(), TunableError> {
        set(&self.min_unmapped_ratio, percent, 100)
    }

    /// Sets the share of a node in percent that must be reclaimable slab before node reclaim runs.
    ///
    /// # Errors
    /// [`TunableError`]; nothing is changed.
    pub fn set_min_slab_ratio(&self, percent: u32) -> Result<(), TunableError> {
        set(&self.min_slab_ratio, percent, 100)
    }
}

fn set(word: &AtomicU32, value: u32, most: u32) -> Result<(), TunableError> {
    if value > most {
        return Err(TunableError { value, most });
    }
    word.store(value, Ordering::Relaxed);
    Ok(())
}

impl<E: ReclaimEnv> Reclaim<E> {
    /// The state of a node.
    pub(crate) fn node(&self, node: NodeId) -> Option<&Node> {
        self.env.nodes().get(node.index())
    }

    /// The pressure gauge of a group.
    pub(crate) fn gauge(&self, group: GroupId) -> Option<&VmPressure> {
        if group == GroupId::ROOT { Some(&self.pressure) } else { self.env.pressure_of(group) }
    }

    /// The counters of one node. Any context.
    pub fn node_stats(&self, node: NodeId) -> ReclaimStats {
        let mut sums = [0; ReclaimEvent::ALL.len()];
        if let Some(state) = self.node(node) {
            for (sum, event) in sums.iter_mut().zip(ReclaimEvent::ALL) {
                *sum = state.events.get(event);
            }
        }
        ReclaimStats(sums)
    }

    /// The counters of all nodes together. Any context.
    pub fn stats(&self) -> ReclaimStats {
        let mut sums = [0u64; ReclaimEvent::ALL.len()];
        for state in self.env.nodes() {
            for (sum, event) in sums.iter_mut().zip(ReclaimEvent::ALL) {
                *sum = sum.wrapping_add(state.events.get(event));
            }
        }
        ReclaimStats(sums)
    }

    /// Runs `body` as a stall of this kind.
    pub(crate) fn stalled<R>(&self, context: &dyn AllocContext, kind: StallKind, body: impl FnOnce() -> R) -> R {
        let token = self.env.stall_enter(context, kind);
        let result = body();
        self.env.stall_leave(context, kind, token);
        result
    }
}

impl<E: ReclaimEnv> Reclaimer for Reclaim<E> {
    fn wake_background(&self, node: NodeId, request: &ReclaimRequest) {
        self.wake_kswapd(node, request);
    }

    fn reclaim(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> usize {
        usize::try_from(self.reclaim_for(context, request)).unwrap_or(usize::MAX)
    }

    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        self.stalled(context, StallKind::Compaction, || self.env.compact(context, request, priority))
    }

    fn can_compact(&self) -> bool {
        self.env.can_compact()
    }

    fn reclaimable_pages(&self, node: NodeId, zone: ZoneKind) -> u64 {
        if self.env.zones().managed(node, zone) == 0 { 0 } else { self.reclaimable_in(node, zone) }
    }

    fn out_of_memory(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> OomOutcome {
        self.env.oom().out_of_memory(context, request)
    }
}
