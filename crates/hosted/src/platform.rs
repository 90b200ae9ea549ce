//! A machine as [`kmem::Platform`].

use core::ops::Range;

use kmem::Platform;
use kmem_buddy::BuddyOptions;
use kmem_gfp::{FlatFrameTable, Gfp, MovableOwner, NodeId, Order, Pfn, PfnRange, ReclaimRequest};
use kmem_kmalloc::KmallocConfig;
use kmem_slab::SlabConfig;
use kmem_sync::{Cpu, CpuId};

use crate::host::{Host, HostContext, HostReclaimer};
use crate::{EpochGrace, HostCpu, HostSpace};

impl Platform for Host<HostCpu> {
    type Cpu = HostCpu;
    type Context = HostContext<HostCpu>;
    type Grace = EpochGrace<HostCpu>;
    type Reclaimer = HostReclaimer;
    type Frames = FlatFrameTable;
    type Space = HostSpace;

    #[inline(always)]
    fn cpu(&self) -> &HostCpu {
        &self.cpu
    }
    #[inline(always)]
    fn context(&self) -> &HostContext<HostCpu> {
        &self.context
    }
    #[inline(always)]
    fn grace(&self) -> &EpochGrace<HostCpu> {
        &self.grace
    }
    #[inline(always)]
    fn reclaimer(&self) -> &HostReclaimer {
        &self.reclaimer
    }
    #[inline(always)]
    fn frames(&self) -> &FlatFrameTable {
        &self.table
    }
    #[inline(always)]
    fn space(&self) -> &HostSpace {
        &self.space
    }
    fn vmalloc_window(&self) -> Option<Range<usize>> {
        self.space.window()
    }
    unsafe fn zero_frames(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.ram.zero(range) }
    }
    fn entropy(&self) -> u64 {
        self.tunables.entropy.unwrap_or(0x9e37_79b9_7f4a_7c15)
    }
    fn buddy_options(&self) -> BuddyOptions {
        self.tunables.pages
    }
    fn slab_config(&self) -> SlabConfig {
        self.tunables.slabs
    }
    fn kmalloc_config(&self) -> KmallocConfig {
        self.tunables.kmalloc.clone().unwrap_or_default()
    }
    fn node_of_cpu(&self, cpu: CpuId) -> NodeId {
        self.context.node_of(cpu)
    }
    fn node_has_cpus(&self, node: NodeId) -> bool {
        (0..self.cpu.nr_cpus()).any(|cpu| self.context.node_of(CpuId(cpu)) == node)
    }
    const CHARGES: bool = true;

    fn charge(&self, gfp: Gfp, pfn: Pfn, order: Order) -> bool {
        self.reclaimer.mm().get().is_none_or(|mm| mm.charge_pages(gfp, pfn, order))
    }
    #[inline(always)]
    fn uncharge(&self, pfn: Pfn, order: Order) {
        self.reclaimer.mm().uncharge(pfn, order);
    }
    fn background_running(&self, node: NodeId) -> bool {
        self.reclaimer.mm().get().is_some_and(|mm| mm.background_running(node))
    }
    fn reclaim_node(&self, node: NodeId, request: &ReclaimRequest) -> bool {
        self.reclaimer.mm().get().is_some_and(|mm| mm.reclaim_node(node, request))
    }
    fn high_mark_restored(&self, node: NodeId) {
        if let Some(mm) = self.reclaimer.mm().get() {
            mm.high_mark_restored(node);
        }
    }
    fn reclaim_counter(&self, node: NodeId, name: &str) -> Option<u64> {
        self.reclaimer.mm().get()?.node_counter(node, name)
    }
    fn reclaim_event(&self, name: &str) -> Option<u64> {
        self.reclaimer.mm().get()?.event(name)
    }
    fn movable_owner(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        self.owner_of(pfn)
    }
    // `Machine::fail_page_request` says so when requests are to fail.
    const INJECTS_ANYWHERE: bool = false;

    #[inline(always)]
    fn inject_failure(&self, _gfp: Gfp, _order: Order) -> bool {
        self.fails_now()
    }
}
