//! [`ReclaimSide`]: the machine as each part of reclaim sees it, and what the engine asks of it.

use core::ptr::NonNull;

use kmem_gfp::{AllocContext, CompactOutcome, CompactPriority, NodeId, ReclaimRequest};
use kmem_reclaim::lru::Generations;
use kmem_reclaim::memcg::Memcg;
use kmem_reclaim::oom::Oom;
use kmem_reclaim::psi::Stall;
use kmem_reclaim::{GroupId, Node, PressureLevel, ReclaimEnv, StallKind};
use kmem_sync::{CpuId, Pinned};

use super::mm::Mm;
use super::platform::ReclaimPlatform;
use crate::Kmem;

/// The platform, its allocators and the other parts, as a part of reclaim sees them.
///
/// # Invariants
/// `mm` points to where [`Mm::set_up`] puts the parts. It has written all of them before anything but the constructors of the
/// parts runs, which ask for CPUs, nodes and frames only; from then on they are shared for good.
pub struct ReclaimSide<P: ReclaimPlatform> {
    pub(super) kmem: &'static Kmem<P>,
    mm: NonNull<Mm<P>>,
}

// SAFETY: shared references to the allocators and the parts, which every CPU uses.
unsafe impl<P: ReclaimPlatform> Sync for ReclaimSide<P> {}
// SAFETY: as above; nothing is tied to a thread.
unsafe impl<P: ReclaimPlatform> Send for ReclaimSide<P> {}

impl<P: ReclaimPlatform> Clone for ReclaimSide<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P: ReclaimPlatform> Copy for ReclaimSide<P> {}

impl<P: ReclaimPlatform> core::fmt::Debug for ReclaimSide<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ReclaimSide").finish_non_exhaustive()
    }
}

impl<P: ReclaimPlatform> ReclaimSide<P> {
    pub(super) const fn new(kmem: &'static Kmem<P>, mm: NonNull<Mm<P>>) -> Self {
        Self { kmem, mm }
    }

    /// The parts.
    #[inline(always)]
    pub(super) fn mm(&self) -> &'static Mm<P> {
        // SAFETY: written before anybody asks (type invariant).
        unsafe { self.mm.as_ref() }
    }

    /// The platform.
    #[inline(always)]
    pub(super) fn platform(&self) -> &'static P {
        &self.kmem.platform
    }

    /// The running CPU; one that does not exist for a thread without.
    fn cpu_id(&self) -> CpuId {
        Pinned::new(self.platform().cpu()).map_or(CpuId(u32::MAX), |pinned| pinned.id())
    }
}

impl<P: ReclaimPlatform> ReclaimEnv for ReclaimSide<P> {
    type Cpu = P::Cpu;
    type Context = P::Context;
    type Zones = Self;
    type Lists = Generations<Self>;
    type Groups = Memcg<Self>;
    type Park = P::Park;
    type Oom = Oom<Self>;

    fn cpu(&self) -> &P::Cpu {
        self.platform().cpu()
    }
    fn context(&self) -> &P::Context {
        self.platform().context()
    }
    fn zones(&self) -> &Self {
        self
    }
    fn lists(&self) -> &Generations<Self> {
        &self.mm().lists
    }
    fn groups(&self) -> &Memcg<Self> {
        &self.mm().groups
    }
    fn park(&self) -> &P::Park {
        self.platform().park()
    }
    fn oom(&self) -> &Oom<Self> {
        &self.mm().killer
    }
    fn nodes(&self) -> &[Node] {
        self.mm().nodes
    }
    fn can_swap(&self, group: GroupId) -> bool {
        let _ = group;
        self.platform().swap_free_pages() > 0
    }
    fn can_compact(&self) -> bool {
        self.mm().config.compaction
    }
    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        self.kmem.pages.compact_zones(context, request, priority)
    }
    fn accounts_kernel_memory(&self) -> bool {
        self.mm().config.groups > 1
    }
    fn reclaimable_slab_pages(&self, node: NodeId) -> u64 {
        if node == NodeId(0) { self.kmem.slabs.stats().reclaimable_pages } else { 0 }
    }
    fn stall_enter(&self, context: &dyn AllocContext, kind: StallKind) -> usize {
        let _ = (context, kind);
        self.mm().pressure.enter(self.cpu_id(), self.platform().now_us()).to_raw()
    }
    fn stall_leave(&self, context: &dyn AllocContext, kind: StallKind, token: usize) {
        let _ = (context, kind);
        self.mm().pressure.leave(Stall::from_raw(token), self.cpu_id(), self.platform().now_us());
    }
    fn pressure(&self, group: GroupId, level: PressureLevel) {
        self.platform().pressure(group, level);
    }
}
