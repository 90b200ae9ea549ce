//! A machine for tests: CPUs that the test chooses, a context and a reclaimer that follow a script, memory that does not exist.

use std::alloc::{alloc, dealloc};
use std::boxed::Box;
use std::cell::Cell;
use std::ptr::NonNull;
use std::string::String;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::vec::Vec;

use kmem_gfp::{
    AllocContext, CompactOutcome, CompactPriority, Gfp, MovableOwner, NodeId, OomOutcome, Order, Pfn, PfnRange,
    ReclaimRequest, Reclaimer, TaskFlags, ZoneKind,
};
use kmem_sync::{Cpu, CpuId, IrqState};

use super::tenants::Tenants;
use crate::{Buddy, BuddyEnv, BuddyOptions, MemoryMap, Region, ZoneLimits};

#[cfg(not(loom))]
std::thread_local! {
    static CURRENT: Cell<Option<u32>> = const { Cell::new(Some(0)) };
}
#[cfg(loom)]
loom::thread_local! {
    static CURRENT: Cell<Option<u32>> = Cell::new(Some(0));
}

/// Makes the running thread CPU `id`, or none.
pub(crate) fn run_on(id: Option<u32>) {
    CURRENT.with(|current| current.set(id));
}

/// Test CPUs: a thread is the CPU that it says it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TestCpu(pub(crate) u32);

// SAFETY: tests give each CPU to one thread at a time.
unsafe impl Cpu for TestCpu {
    fn nr_cpus(&self) -> u32 {
        self.0
    }
    fn try_pin(&self) -> Option<CpuId> {
        CURRENT.with(Cell::get).map(CpuId)
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn relax(&self) {
        #[cfg(loom)]
        loom::thread::yield_now();
        #[cfg(not(loom))]
        std::thread::yield_now();
    }
    fn barrier_all_cpus(&self) {
        #[cfg(loom)]
        loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
        #[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom)))]
        {
            /// `membarrier`: MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, then MEMBARRIER_CMD_PRIVATE_EXPEDITED.
            fn membarrier(command: u32) -> isize {
                let result;
                // SAFETY: the call touches no memory of ours.
                unsafe {
                    core::arch::asm!("syscall", inlateout("rax") 324isize => result, in("rdi") command, in("rsi") 0,
                        in("rdx") 0, out("rcx") _, out("r11") _);
                }
                result
            }
            static REGISTERED: std::sync::Once = std::sync::Once::new();
            REGISTERED.call_once(|| assert_eq!(membarrier(16), 0));
            assert_eq!(membarrier(8), 0);
        }
    }
}

/// What the reclaimer was asked, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Wake(u32, Order),
    Reclaim(Gfp),
    Compact(Order, CompactPriority),
    Oom,
}

type Act<T> = Mutex<Option<Box<dyn FnMut(&Script) -> T + Send>>>;

/// A reclaimer that notes every call and answers from a script.
pub(crate) struct Script {
    pub(crate) calls: Mutex<Vec<Call>>,
    /// What a reclaim does; returns pages freed.
    pub(crate) on_reclaim: Act<usize>,
    pub(crate) on_compact: Act<CompactOutcome>,
    pub(crate) on_oom: Act<OomOutcome>,
    /// What the last compaction was for.
    pub(crate) last: Mutex<Option<(ReclaimRequest, CompactPriority)>>,
    pub(crate) can_compact: std::sync::atomic::AtomicBool,
    pub(crate) reclaimable: AtomicU64,
    /// The task's flags while the last reclaim or compaction ran.
    pub(crate) flags_inside: AtomicU32,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self {
            calls: Mutex::new(Vec::new()),
            on_reclaim: Mutex::new(None),
            on_compact: Mutex::new(None),
            on_oom: Mutex::new(None),
            last: Mutex::new(None),
            can_compact: false.into(),
            reclaimable: AtomicU64::new(0),
            flags_inside: AtomicU32::new(0),
        }
    }

    fn note(&self, call: Call) {
        self.calls.lock().unwrap().push(call);
    }

    pub(crate) fn count(&self, wanted: impl Fn(&Call) -> bool) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| wanted(call)).count()
    }
}

impl Reclaimer for Script {
    fn wake_background(&self, node: NodeId, request: &ReclaimRequest) {
        self.note(Call::Wake(node.0, request.order));
    }
    fn reclaim(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> usize {
        self.note(Call::Reclaim(request.gfp));
        self.flags_inside.store(context.task_flags().bits(), Ordering::Relaxed);
        let act = self.on_reclaim.lock().unwrap().take();
        let Some(mut act) = act else { return 0 };
        let freed = act(self);
        self.on_reclaim.lock().unwrap().get_or_insert(act);
        freed
    }
    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        self.note(Call::Compact(request.order, priority));
        *self.last.lock().unwrap() = Some((*request, priority));
        self.flags_inside.store(context.task_flags().bits(), Ordering::Relaxed);
        let act = self.on_compact.lock().unwrap().take();
        let Some(mut act) = act else { return CompactOutcome::Complete };
        let outcome = act(self);
        self.on_compact.lock().unwrap().get_or_insert(act);
        outcome
    }
    fn can_compact(&self) -> bool {
        self.can_compact.load(Ordering::Relaxed)
    }
    fn reclaimable_pages(&self, _node: NodeId, _zone: ZoneKind) -> u64 {
        self.reclaimable.load(Ordering::Relaxed)
    }
    fn out_of_memory(&self, _context: &dyn AllocContext, _request: &ReclaimRequest) -> OomOutcome {
        self.note(Call::Oom);
        let act = self.on_oom.lock().unwrap().take();
        let Some(mut act) = act else { return OomOutcome::NoVictim };
        let outcome = act(self);
        self.on_oom.lock().unwrap().get_or_insert(act);
        outcome
    }
}

/// A context whose state the test sets.
#[derive(Default)]
pub(crate) struct Context {
    pub(crate) flags: AtomicU32,
    pub(crate) node: AtomicU32,
    pub(crate) now: AtomicU64,
    pub(crate) yields: AtomicU64,
    pub(crate) reports: Mutex<Vec<String>>,
}

impl AllocContext for Context {
    fn task_flags(&self) -> TaskFlags {
        TaskFlags::from_bits_retain(self.flags.load(Ordering::Relaxed))
    }
    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags {
        let before = self.task_flags();
        self.flags.store(((before | set) - clear).bits(), Ordering::Relaxed);
        before
    }
    fn local_node(&self) -> NodeId {
        NodeId(self.node.load(Ordering::Relaxed))
    }
    fn yield_now(&self) {
        self.yields.fetch_add(1, Ordering::Relaxed);
    }
    fn now_ms(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
    fn report(&self, line: core::fmt::Arguments<'_>) {
        self.reports.lock().unwrap().push(std::format!("{line}"));
    }
}

/// The environment of a test.
pub(crate) struct Env {
    pub(crate) cpu: TestCpu,
    pub(crate) context: Context,
    pub(crate) script: Script,
    pub(crate) zeroed: Mutex<Vec<PfnRange>>,
    pub(crate) nodes_of_cpus: Vec<u32>,
    pub(crate) distances: Vec<Vec<u32>>,
    /// Nodes whose background reclaim runs, a bit each.
    pub(crate) busy_nodes: AtomicU32,
    pub(crate) denied_nodes: AtomicU32,
    pub(crate) dirty_nodes: AtomicU32,
    pub(crate) cpuless_nodes: u32,
    pub(crate) node_reclaim_frees: std::sync::atomic::AtomicBool,
    pub(crate) node_reclaims: AtomicU32,
    pub(crate) movable: AtomicU64,
    pub(crate) may_charge: std::sync::atomic::AtomicBool,
    /// Requests until one fails; 0: none does.
    pub(crate) fail_in: AtomicU32,
    pub(crate) cache_pages: AtomicU64,
    pub(crate) tenants: Tenants,
    /// Who is asked about every frame, if not the tenants.
    pub(crate) owner: std::sync::OnceLock<Box<dyn MovableOwner + Send>>,
}

impl Env {
    pub(crate) fn new(cpus: u32) -> Self {
        Self {
            cpu: TestCpu(cpus),
            context: Context::default(),
            script: Script::new(),
            zeroed: Mutex::new(Vec::new()),
            nodes_of_cpus: Vec::new(),
            distances: Vec::new(),
            busy_nodes: AtomicU32::new(0),
            denied_nodes: AtomicU32::new(0),
            dirty_nodes: AtomicU32::new(0),
            cpuless_nodes: 0,
            node_reclaim_frees: false.into(),
            node_reclaims: AtomicU32::new(0),
            movable: AtomicU64::new(u64::MAX),
            may_charge: true.into(),
            fail_in: AtomicU32::new(0),
            cache_pages: AtomicU64::new(0),
            tenants: Tenants::default(),
            owner: std::sync::OnceLock::new(),
        }
    }
}

fn has(mask: &AtomicU32, node: NodeId) -> bool {
    mask.load(Ordering::Relaxed) >> node.0 & 1 != 0
}

impl BuddyEnv for Env {
    type Cpu = TestCpu;
    type Context = Context;
    type Reclaimer = Script;

    fn cpu(&self) -> &TestCpu {
        &self.cpu
    }
    fn context(&self) -> &Context {
        &self.context
    }
    fn reclaimer(&self) -> &Script {
        &self.script
    }
    unsafe fn zero_frames(&self, range: PfnRange) {
        self.zeroed.lock().unwrap().push(range);
    }
    fn node_of_cpu(&self, cpu: CpuId) -> NodeId {
        NodeId(self.nodes_of_cpus.get(cpu.index()).copied().unwrap_or(0))
    }
    fn distance(&self, from: NodeId, to: NodeId) -> u32 {
        let row = self.distances.get(from.index());
        row.and_then(|row| row.get(to.index())).copied().unwrap_or(if from == to { 10 } else { 20 })
    }
    fn node_has_cpus(&self, node: NodeId) -> bool {
        self.cpuless_nodes >> node.0 & 1 == 0
    }
    fn background_running(&self, node: NodeId) -> bool {
        has(&self.busy_nodes, node)
    }
    fn node_allowed(&self, node: NodeId, _gfp: Gfp) -> bool {
        !has(&self.denied_nodes, node)
    }
    fn over_dirty_limit(&self, node: NodeId) -> bool {
        has(&self.dirty_nodes, node)
    }
    fn reclaim_node(&self, _node: NodeId, _request: &ReclaimRequest) -> bool {
        self.node_reclaims.fetch_add(1, Ordering::Relaxed);
        self.node_reclaim_frees.load(Ordering::Relaxed)
    }
    fn movable_pages(&self, _pageblock: PfnRange) -> Option<u64> {
        Some(self.movable.load(Ordering::Relaxed)).filter(|&pages| pages != u64::MAX)
    }
    fn movable_owner(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        if let Some(owner) = self.owner.get() {
            return Some(&**owner);
        }
        if self.tenants.owns(pfn) { Some(&self.tenants) } else { None }
    }
    fn charge(&self, _gfp: Gfp, _pfn: Pfn, _order: Order) -> bool {
        self.may_charge.load(Ordering::Relaxed)
    }
    fn inject_failure(&self, _gfp: Gfp, _order: Order) -> bool {
        match self.fail_in.load(Ordering::Relaxed) {
            0 => false,
            left => {
                self.fail_in.store(left - 1, Ordering::Relaxed);
                left == 1
            }
        }
    }
    fn cache_slice_pages(&self, _cpu: CpuId) -> u64 {
        self.cache_pages.load(Ordering::Relaxed)
    }
}

/// An allocator with its bookkeeping memory, which goes with it.
pub(crate) struct Rig {
    buddy: Box<Buddy<Env>>,
    memory: Vec<(NonNull<u8>, core::alloc::Layout)>,
}

// SAFETY: the memory is reached only through the allocator.
unsafe impl Sync for Rig {}
// SAFETY: as above.
unsafe impl Send for Rig {}

impl core::ops::Deref for Rig {
    type Target = Buddy<Env>;
    fn deref(&self) -> &Buddy<Env> {
        &self.buddy
    }
}

impl Rig {
    pub(crate) fn build(env: Env, options: BuddyOptions, map: &MemoryMap<'_>) -> Self {
        run_on(Some(0));
        let buddy = Box::new(Buddy::with_options(env, options));
        let layout = buddy.metadata_layout(map).unwrap();
        // SAFETY: not empty.
        let memory = NonNull::new(unsafe { alloc(layout) }).unwrap();
        // SAFETY: of this layout, and freed only after the allocator.
        unsafe { buddy.init(map, memory) }.unwrap();
        Self { buddy, memory: Vec::from([(memory, layout)]) }
    }

    /// One node of `frames` frames from frame 0 on, all Normal, one CPU, per-CPU sets in use.
    pub(crate) fn small(frames: u64) -> Self {
        Self::with_cpus(frames, 1)
    }

    pub(crate) fn with_cpus(frames: u64, cpus: u32) -> Self {
        let regions = [Region::new(range(0, frames))];
        Self::build(Env::new(cpus), cached(), &MemoryMap { regions: &regions, ..MemoryMap::default() })
    }

    /// As [`small`](Self::small), with every free checked at the call.
    pub(crate) fn checked(frames: u64) -> Self {
        let regions = [Region::new(range(0, frames))];
        Self::build(Env::new(1), checked(), &MemoryMap { regions: &regions, ..MemoryMap::default() })
    }

    /// Zones of a PC: DMA, DMA32 and Normal, with memory up to `frames`.
    pub(crate) fn pc(frames: u64) -> Self {
        let regions = [Region::new(range(0, frames))];
        let map = MemoryMap { regions: &regions, limits: ZoneLimits::X86_64, ..MemoryMap::default() };
        Self::build(Env::new(1), cached(), &map)
    }

    pub(crate) fn add(&mut self, map: &MemoryMap<'_>) -> Result<(), crate::MapError> {
        let layout = self.buddy.region_layout(map)?;
        // SAFETY: not empty.
        let memory = NonNull::new(unsafe { alloc(layout) }).unwrap();
        self.memory.push((memory, layout));
        // SAFETY: of this layout, and freed only after the allocator.
        unsafe { self.buddy.add_region(map, memory) }
    }

    pub(crate) fn get(&self, gfp: Gfp, order: u32) -> Option<Pfn> {
        self.alloc_pages(gfp, o(order), None).ok()
    }

    pub(crate) fn put(&self, pfn: Pfn, order: u32) {
        self.try_put(pfn, order).unwrap();
    }

    pub(crate) fn try_put(&self, pfn: Pfn, order: u32) -> Result<(), kmem_gfp::FreeError> {
        // SAFETY: frames of tests have no memory.
        unsafe { self.free_pages(pfn, o(order)) }
    }

    /// Free pages of all zones once every set is drained.
    pub(crate) fn all_free(&self) -> u64 {
        self.drain_all_pages();
        self.zones().map(|zone| zone.free_pages()).sum()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for &(memory, layout) in &self.memory {
            // SAFETY: from `build` or `add`; the allocator is not used any more.
            unsafe { dealloc(memory.as_ptr(), layout) };
        }
    }
}

pub(crate) fn o(order: u32) -> Order {
    Order::new(order).unwrap()
}

pub(crate) fn range(start: u64, end: u64) -> PfnRange {
    PfnRange::new(Pfn(start), Pfn(end))
}

/// Options with the per-CPU sets in use, whatever the build.
pub(crate) fn cached() -> BuddyOptions {
    BuddyOptions { check_free: false, ..BuddyOptions::new() }
}

pub(crate) fn checked() -> BuddyOptions {
    BuddyOptions { check_free: true, ..BuddyOptions::new() }
}
