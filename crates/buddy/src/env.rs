//! What the page allocator takes from its surroundings.

use kmem_gfp::{
    AllocContext, Gfp, MovableOwner, NoReclaim, NodeId, Order, Pfn, PfnRange, PlainContext, ReclaimRequest, Reclaimer,
};
use kmem_sync::{Cpu, CpuId};

/// The platform of a [`Buddy`](crate::Buddy): the sum of the seams it needs, and a few questions with useful defaults.
///
/// Every method may be called in any context that the allocator is called in, unless it says otherwise, and must not
/// allocate from the same allocator.
pub trait BuddyEnv {
    /// The CPUs.
    type Cpu: Cpu;
    /// The running task and context.
    type Context: AllocContext;
    /// What to do about a shortage.
    type Reclaimer: Reclaimer;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// The running task and context.
    fn context(&self) -> &Self::Context;
    /// What to do about a shortage.
    fn reclaimer(&self) -> &Self::Reclaimer;

    /// Fills the memory of `range` with zeros. The allocator itself never touches the memory that it hands out.
    ///
    /// # Safety
    /// The caller owns the frames. An implementation for memory that is not mapped may do nothing: then
    /// [`Gfp::ZERO`] promises nothing.
    unsafe fn zero_frames(&self, range: PfnRange);

    /// The node that a CPU belongs to. Constant.
    fn node_of_cpu(&self, cpu: CpuId) -> NodeId {
        let _ = cpu;
        NodeId(0)
    }

    /// The distance between two nodes; 10 to itself. Asked when zonelists are built.
    fn distance(&self, from: NodeId, to: NodeId) -> u32 {
        if from == to { 10 } else { 20 }
    }

    /// Whether a node has CPUs. Asked when zonelists are built.
    fn node_has_cpus(&self, node: NodeId) -> bool {
        let _ = node;
        true
    }

    /// Whether background reclaim is working on a node at the moment; such nodes are passed over at first.
    fn background_running(&self, node: NodeId) -> bool {
        let _ = node;
        false
    }

    /// Whether the cpuset of the running task lets `gfp` use a node.
    fn node_allowed(&self, node: NodeId, gfp: Gfp) -> bool {
        let _ = (node, gfp);
        true
    }

    /// Whether a node holds more dirty pages than it should; asked for [`Gfp::WRITE`].
    fn over_dirty_limit(&self, node: NodeId) -> bool {
        let _ = node;
        false
    }

    /// Node reclaim: frees what is cheap to free on a node before another one is used. `true` if anything was freed.
    /// Called only where the request may sleep.
    fn reclaim_node(&self, node: NodeId, request: &ReclaimRequest) -> bool {
        let _ = (node, request);
        false
    }

    /// How many allocated frames of a pageblock could be moved; `None` if the platform does not know, which counts as "all
    /// of a movable pageblock, none of any other".
    fn movable_pages(&self, pageblock: PfnRange) -> Option<u64> {
        let _ = pageblock;
        None
    }

    /// Who moves the allocated block that begins with this frame; `None` if nobody does, or nobody knows. A moment's answer:
    /// whoever is named decides when asked to [isolate](MovableOwner::isolate) the frame. Called where sleeping is allowed, also for
    /// frames that are on their way to a caller or back.
    fn movable_owner(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        let _ = pfn;
        None
    }

    /// Whether blocks may be charged to memory cgroups, so that every free asks [`uncharge`](Self::uncharge). A constant:
    /// where it is `false`, frees do not know of charges.
    const CHARGES: bool = false;

    /// Charges the current memory cgroup for a block that has just been allocated with [`Gfp::ACCOUNT`]; `false` if it is over
    /// its limit. May reclaim and sleep as far as `gfp` allows.
    fn charge(&self, gfp: Gfp, pfn: Pfn, order: Order) -> bool {
        let _ = (gfp, pfn, order);
        true
    }

    /// The frames of a block are about to be freed: gives back what they were charged. Single frames of a block may come one
    /// by one, blocks that nobody paid for come too. Any context. Called only with [`CHARGES`](Self::CHARGES), on the fast
    /// path of every free.
    #[inline(always)]
    fn uncharge(&self, pfn: Pfn, order: Order) {
        let _ = (pfn, order);
    }

    /// Frees have brought a zone of the node back above its high mark: background reclaim that had given the node up may try
    /// again. Any context.
    fn high_mark_restored(&self, node: NodeId) {
        let _ = node;
    }

    /// Whether every request asks [`inject_failure`](Self::inject_failure). With `false` those that the per-CPU sets serve at once
    /// do not, and an injector that is armed says so by [`Buddy::set_injecting`](crate::Buddy::set_injecting), which
    /// sends all requests on the way that asks.
    const INJECTS_ANYWHERE: bool = true;

    /// Fault injection: whether this request is to fail. Never asked for [`Gfp::NOFAIL`].
    #[inline(always)]
    fn inject_failure(&self, gfp: Gfp, order: Order) -> bool {
        let _ = (gfp, order);
        false
    }

    /// How many pages fit this CPU's share of the last cache; 0 if unknown.
    fn cache_slice_pages(&self, cpu: CpuId) -> u64 {
        let _ = cpu;
        0
    }
}

impl<T: BuddyEnv> BuddyEnv for &T {
    type Cpu = T::Cpu;
    type Context = T::Context;
    type Reclaimer = T::Reclaimer;

    #[inline(always)]
    fn cpu(&self) -> &Self::Cpu {
        (**self).cpu()
    }
    #[inline(always)]
    fn context(&self) -> &Self::Context {
        (**self).context()
    }
    #[inline(always)]
    fn reclaimer(&self) -> &Self::Reclaimer {
        (**self).reclaimer()
    }
    unsafe fn zero_frames(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).zero_frames(range) }
    }
    fn node_of_cpu(&self, cpu: CpuId) -> NodeId {
        (**self).node_of_cpu(cpu)
    }
    fn distance(&self, from: NodeId, to: NodeId) -> u32 {
        (**self).distance(from, to)
    }
    fn node_has_cpus(&self, node: NodeId) -> bool {
        (**self).node_has_cpus(node)
    }
    fn background_running(&self, node: NodeId) -> bool {
        (**self).background_running(node)
    }
    fn node_allowed(&self, node: NodeId, gfp: Gfp) -> bool {
        (**self).node_allowed(node, gfp)
    }
    fn over_dirty_limit(&self, node: NodeId) -> bool {
        (**self).over_dirty_limit(node)
    }
    fn reclaim_node(&self, node: NodeId, request: &ReclaimRequest) -> bool {
        (**self).reclaim_node(node, request)
    }
    fn movable_pages(&self, pageblock: PfnRange) -> Option<u64> {
        (**self).movable_pages(pageblock)
    }
    fn movable_owner(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        (**self).movable_owner(pfn)
    }
    const CHARGES: bool = T::CHARGES;

    fn charge(&self, gfp: Gfp, pfn: Pfn, order: Order) -> bool {
        (**self).charge(gfp, pfn, order)
    }
    #[inline(always)]
    fn uncharge(&self, pfn: Pfn, order: Order) {
        (**self).uncharge(pfn, order);
    }
    fn high_mark_restored(&self, node: NodeId) {
        (**self).high_mark_restored(node);
    }
    const INJECTS_ANYWHERE: bool = T::INJECTS_ANYWHERE;

    #[inline(always)]
    fn inject_failure(&self, gfp: Gfp, order: Order) -> bool {
        (**self).inject_failure(gfp, order)
    }
    fn cache_slice_pages(&self, cpu: CpuId) -> u64 {
        (**self).cache_slice_pages(cpu)
    }
}

/// The least an allocator can be given: CPUs, no reclaim, memory that is nowhere mapped.
///
/// For guest-physical ranges, device memory and tests. [`Gfp::ZERO`] promises nothing here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unmapped<C>(pub C);

impl<C: Cpu> BuddyEnv for Unmapped<C> {
    type Cpu = C;
    type Context = PlainContext;
    type Reclaimer = NoReclaim;

    #[inline(always)]
    fn cpu(&self) -> &C {
        &self.0
    }
    #[inline(always)]
    fn context(&self) -> &PlainContext {
        &PlainContext
    }
    #[inline(always)]
    fn reclaimer(&self) -> &NoReclaim {
        &NoReclaim
    }
    unsafe fn zero_frames(&self, _range: PfnRange) {}
}
