//! [`Platform`]: everything that the allocators need from the machine below them, in one trait.
//!
//! ```text
//! Platform ─┬─ cpu()         which CPU, pin, interrupts off             kmem_sync::Cpu
//!           ├─ context()     the running task: may it sleep, scopes     kmem_gfp::AllocContext
//!           ├─ grace()       when every reader has finished             kmem_sync::GracePeriod
//!           ├─ reclaimer()   what to do about a shortage                kmem_gfp::Reclaimer
//!           ├─ frames()      frame ◀─▶ address, three words a frame     kmem_gfp::FrameTable
//!           ├─ space()       page tables of the vmalloc window, or none kmem_vmalloc::AddressSpace
//!           └─ questions with defaults: the window, nodes, zeroing, entropy, fault injection, tunables
//! ```
//!
//! `docs/porting.md` goes through it item by item.

use core::num::NonZeroU32;
use core::ops::Range;

use kmem_buddy::{BuddyEnv, BuddyOptions};
use kmem_cma::{DmaBus, PhysicalBus};
use kmem_gfp::{
    AllocContext, AllocError, FrameTable, Gfp, MovableOwner, NodeId, Order, PAGE_SIZE, Pfn, PfnRange, ReclaimRequest,
    Reclaimer,
};
use kmem_kmalloc::KmallocConfig;
use kmem_slab::{SlabConfig, SlabEnv};
use kmem_sync::{Cpu, CpuId, GracePeriod};
use kmem_vmalloc::{AddressSpace, CpuSet, ExhaustionNotifier, NoNotifier, Work};

use crate::zsmalloc_names::ZsPools;

/// What a machine supplies.
///
/// The six parts are required; each has a "there is none" implementation for machines without it
/// ([`SingleCpu`](kmem_sync::SingleCpu), [`PlainContext`](kmem_gfp::PlainContext),
/// [`NoReaders`](kmem_sync::NoReaders), [`NoReclaim`](kmem_gfp::NoReclaim), [`NoAddressSpace`](crate::NoAddressSpace)) and
/// [`FlatFrameTable`](kmem_gfp::FlatFrameTable) for memory that is mapped in one piece. The rest are questions whose
/// default answer is right for a machine with one node and nothing special.
///
/// Each method returns the same part, or for constants the same answer, every time. Methods may be called in every
/// context that an allocator is called in, and must not allocate from this machine.
pub trait Platform: Sync + 'static {
    /// The CPUs. Copied into each allocator, so that a fast path finds it without a detour.
    type Cpu: Cpu + Copy + Sync;
    /// The running task and context.
    type Context: AllocContext;
    /// Grace periods.
    type Grace: GracePeriod;
    /// Reclaim.
    type Reclaimer: Reclaimer;
    /// The frame table. Copied as the CPUs are; a large one is a reference to itself.
    type Frames: FrameTable + Copy + Sync;
    /// The page tables of the vmalloc window; [`NoAddressSpace`](crate::NoAddressSpace) without virtual memory.
    type Space: AddressSpace;

    /// Which CPU runs this code and how to stay on it. On every fast path: should inline to a register read.
    fn cpu(&self) -> &Self::Cpu;

    /// What the running task may do. On fast paths of the page allocator.
    fn context(&self) -> &Self::Context;

    /// When every reader that runs now has finished: for typesafe caches, `kfree_rcu`, cache destruction.
    fn grace(&self) -> &Self::Grace;

    /// What to do about a shortage of pages.
    fn reclaimer(&self) -> &Self::Reclaimer;

    /// Where each frame is mapped, and its owner's words. On the fast path of `kfree`.
    fn frames(&self) -> &Self::Frames;

    /// Where virtually contiguous memory is mapped. Used on paths of vmalloc and vfree that change mappings.
    fn space(&self) -> &Self::Space;

    /// The addresses that vmalloc hands out: page-aligned, at most 2^36 pages, mapped, unmapped and used by nobody but
    /// [`space`](Self::space). Read once, when the machine is set up. `None`, the default, is a machine whose `vmalloc`
    /// fails with [`VmallocError::NotReady`](kmem_vmalloc::VmallocError::NotReady) and whose `kvmalloc` is `kmalloc`.
    #[doc(alias("VMALLOC_START", "VMALLOC_END"))]
    fn vmalloc_window(&self) -> Option<Range<usize>> {
        None
    }

    /// Asks for work of vmalloc to be done by somebody who may sleep: [`Work::Free`] by
    /// [`run_deferred`](kmem_vmalloc::Vmalloc::run_deferred), [`Work::Purge`] by
    /// [`purge`](kmem_vmalloc::Vmalloc::purge), both of [`Kmem::vmalloc_layer`](crate::Kmem::vmalloc_layer). `false`, the
    /// default, if nobody will: vmalloc then does it itself the next time it runs where it may. Any context but NMI; must
    /// not call back.
    fn schedule_vmalloc(&self, work: Work) -> bool {
        let _ = work;
        false
    }

    /// The CPUs whose translations of the vmalloc window are to be flushed.
    fn flush_cpus(&self) -> CpuSet<'_> {
        CpuSet::All
    }

    /// Whom vmalloc asks for areas to be freed when no addresses are left.
    fn vmalloc_notifier(&self) -> &dyn ExhaustionNotifier {
        &NoNotifier
    }

    /// The alignment of virtually contiguous memory that user space maps as well (`SHMLBA`), in bytes; a power of two.
    #[doc(alias = "SHMLBA")]
    fn shared_alignment(&self) -> usize {
        PAGE_SIZE
    }

    /// Whether `vrealloc` clears bytes at once that an area gives up (`init_on_free`).
    fn clears_memory(&self) -> bool {
        false
    }

    /// Fills frames with zeroes. The default writes through [`frames`](Self::frames); a platform with a faster way, or
    /// with frames that are not mapped all the time, has its own.
    ///
    /// # Safety
    /// The caller owns the frames.
    unsafe fn zero_frames(&self, range: PfnRange) {
        for pfn in range.iter() {
            if let Some(page) = self.frames().address_of(pfn) {
                // SAFETY: mapped, page-sized and writable (promise 2 of `FrameTable`), and the caller owns it.
                unsafe { page.write_bytes(0, PAGE_SIZE) };
            }
        }
    }

    /// A number that an attacker cannot guess, for the secrets of freelists and partitions. The default is a constant,
    /// which keeps runs repeatable and hardens nothing.
    fn entropy(&self) -> u64 {
        0x9e37_79b9_7f4a_7c15
    }

    /// Choices of the page allocator. Read once, when the machine is set up.
    fn buddy_options(&self) -> BuddyOptions {
        BuddyOptions::new()
    }

    /// Tunables of the object caches. Read once, when the machine is set up.
    fn slab_config(&self) -> SlabConfig {
        SlabConfig::DEFAULT
    }

    /// Which kmalloc caches there are. Read once, when the machine is set up.
    fn kmalloc_config(&self) -> KmallocConfig {
        KmallocConfig::default()
    }

    /// The node that a CPU belongs to.
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

    /// How many allocated frames of a pageblock could be moved; `None` if that is unknown.
    fn movable_pages(&self, pageblock: PfnRange) -> Option<u64> {
        let _ = pageblock;
        None
    }

    /// Who moves the allocated block that begins with this frame; `None` if nobody does, or nobody knows: see
    /// [`BuddyEnv::movable_owner`]. Not asked about frames of this machine's compressed objects, which move by themselves.
    fn movable_owner(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        let _ = pfn;
        None
    }

    /// What lies between memory and devices. The default changes nothing: devices use physical addresses and look into
    /// caches.
    fn dma_bus(&self) -> &dyn DmaBus {
        &PhysicalBus
    }

    /// Whether pages and objects may be charged to memory cgroups, so that every free of a page asks
    /// [`uncharge`](Self::uncharge). kmalloc then has caches of its own for [`Gfp::ACCOUNT`].
    const CHARGES: bool = false;

    /// Charges the current memory cgroup for a block that has just been allocated with [`Gfp::ACCOUNT`]; `false` if it is over
    /// its limit.
    fn charge(&self, gfp: Gfp, pfn: Pfn, order: Order) -> bool {
        let _ = (gfp, pfn, order);
        true
    }

    /// The frames of a block, or single ones of it, are about to be freed: gives back what they were charged. On the fast path
    /// of every free, if [`CHARGES`](Self::CHARGES).
    #[inline(always)]
    fn uncharge(&self, pfn: Pfn, order: Order) {
        let _ = (pfn, order);
    }

    /// Charges the current memory cgroup for an object that has just been allocated with [`Gfp::ACCOUNT`] or from an accounted
    /// cache, and says who it was; see [`SlabEnv::charge_object`]. Asked only if [`CHARGES`](Self::CHARGES).
    ///
    /// # Errors
    /// [`AllocError::OverLimit`].
    #[inline(always)]
    fn charge_object(&self, gfp: Gfp, size_bytes: usize, reclaimable: bool) -> Result<Option<NonZeroU32>, AllocError> {
        let _ = (gfp, size_bytes, reclaimable);
        Ok(None)
    }

    /// Gives back what [`charge_object`](Self::charge_object) charged. Any context.
    #[inline(always)]
    fn uncharge_object(&self, payer: NonZeroU32, size_bytes: usize, reclaimable: bool) {
        let _ = (payer, size_bytes, reclaimable);
    }

    /// Frees have brought a zone of a node back above its high mark.
    fn high_mark_restored(&self, node: NodeId) {
        let _ = node;
    }

    /// A counter of reclaim for the views, by node and by its name in `/proc/vmstat`; `None` if there is none of that name.
    fn reclaim_counter(&self, node: NodeId, name: &str) -> Option<u64> {
        let _ = (node, name);
        None
    }

    /// An event that reclaim counts, by its name in `/proc/vmstat`; `None` if there is none of that name.
    fn reclaim_event(&self, name: &str) -> Option<u64> {
        let _ = name;
        None
    }

    /// Whether every page request asks [`inject_failure`](Self::inject_failure); see
    /// [`BuddyEnv::INJECTS_ANYWHERE`](kmem_buddy::BuddyEnv::INJECTS_ANYWHERE).
    const INJECTS_ANYWHERE: bool = true;

    /// Fault injection: whether this page request is to fail. Never asked for [`Gfp::NOFAIL`].
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

/// The platform as the page allocator sees it.
#[derive(Debug)]
pub struct PageSide<P: Platform> {
    platform: &'static P,
    cpu: P::Cpu,
    zs_pools: &'static ZsPools<P>,
}

impl<P: Platform> PageSide<P> {
    pub(crate) fn new(platform: &'static P, zs_pools: &'static ZsPools<P>) -> Self {
        Self { platform, cpu: *platform.cpu(), zs_pools }
    }
}

impl<P: Platform> Clone for PageSide<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P: Platform> Copy for PageSide<P> {}

impl<P: Platform> BuddyEnv for PageSide<P> {
    type Cpu = P::Cpu;
    type Context = P::Context;
    type Reclaimer = P::Reclaimer;

    #[inline(always)]
    fn cpu(&self) -> &P::Cpu {
        &self.cpu
    }
    #[inline(always)]
    fn context(&self) -> &P::Context {
        self.platform.context()
    }
    #[inline(always)]
    fn reclaimer(&self) -> &P::Reclaimer {
        self.platform.reclaimer()
    }
    unsafe fn zero_frames(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.platform.zero_frames(range) }
    }
    fn node_of_cpu(&self, cpu: CpuId) -> NodeId {
        self.platform.node_of_cpu(cpu)
    }
    fn distance(&self, from: NodeId, to: NodeId) -> u32 {
        self.platform.distance(from, to)
    }
    fn node_has_cpus(&self, node: NodeId) -> bool {
        self.platform.node_has_cpus(node)
    }
    fn background_running(&self, node: NodeId) -> bool {
        self.platform.background_running(node)
    }
    fn node_allowed(&self, node: NodeId, gfp: Gfp) -> bool {
        self.platform.node_allowed(node, gfp)
    }
    fn over_dirty_limit(&self, node: NodeId) -> bool {
        self.platform.over_dirty_limit(node)
    }
    fn reclaim_node(&self, node: NodeId, request: &ReclaimRequest) -> bool {
        self.platform.reclaim_node(node, request)
    }
    fn movable_pages(&self, pageblock: PfnRange) -> Option<u64> {
        self.platform.movable_pages(pageblock)
    }
    fn movable_owner(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        if self.zs_pools.may_own(pfn) {
            return Some(self.zs_pools as &dyn MovableOwner);
        }
        self.platform.movable_owner(pfn)
    }
    const CHARGES: bool = P::CHARGES;

    fn charge(&self, gfp: Gfp, pfn: Pfn, order: Order) -> bool {
        self.platform.charge(gfp, pfn, order)
    }
    #[inline(always)]
    fn uncharge(&self, pfn: Pfn, order: Order) {
        self.platform.uncharge(pfn, order);
    }
    fn high_mark_restored(&self, node: NodeId) {
        self.platform.high_mark_restored(node);
    }
    const INJECTS_ANYWHERE: bool = P::INJECTS_ANYWHERE;

    #[inline(always)]
    fn inject_failure(&self, gfp: Gfp, order: Order) -> bool {
        self.platform.inject_failure(gfp, order)
    }
    fn cache_slice_pages(&self, cpu: CpuId) -> u64 {
        self.platform.cache_slice_pages(cpu)
    }
}

/// The platform and its page allocator as the object caches see them.
#[derive(Debug)]
pub struct ObjectSide<P: Platform> {
    platform: &'static P,
    pages: &'static crate::PageSource<P>,
    cpu: P::Cpu,
    frames: P::Frames,
}

impl<P: Platform> ObjectSide<P> {
    pub(crate) fn new(platform: &'static P, pages: &'static crate::PageSource<P>) -> Self {
        Self { platform, pages, cpu: *platform.cpu(), frames: *platform.frames() }
    }
}

impl<P: Platform> Clone for ObjectSide<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P: Platform> Copy for ObjectSide<P> {}

impl<P: Platform> SlabEnv for ObjectSide<P> {
    type Cpu = P::Cpu;
    type Pages = crate::PageSource<P>;
    type Frames = P::Frames;
    type Context = P::Context;
    type Grace = P::Grace;

    const ACCOUNTS: bool = P::CHARGES;

    #[inline]
    fn charge_object(&self, gfp: Gfp, size_bytes: usize, reclaimable: bool) -> Result<Option<NonZeroU32>, AllocError> {
        self.platform.charge_object(gfp, size_bytes, reclaimable)
    }
    #[inline]
    fn uncharge_object(&self, payer: NonZeroU32, size_bytes: usize, reclaimable: bool) {
        self.platform.uncharge_object(payer, size_bytes, reclaimable);
    }
    #[inline(always)]
    fn cpu(&self) -> &P::Cpu {
        &self.cpu
    }
    #[inline(always)]
    fn pages(&self) -> &Self::Pages {
        self.pages
    }
    #[inline(always)]
    fn frames(&self) -> &P::Frames {
        &self.frames
    }
    #[inline(always)]
    fn context(&self) -> &P::Context {
        self.platform.context()
    }
    #[inline(always)]
    fn grace(&self) -> &P::Grace {
        self.platform.grace()
    }
    fn entropy(&self) -> u64 {
        self.platform.entropy()
    }
}
