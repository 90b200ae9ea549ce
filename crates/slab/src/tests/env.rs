//! A machine for tests: a page source over host memory that checks every free, CPUs chosen by the thread, a grace period
//! that the test moves, a context that collects reports.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::string::{String, ToString};
use std::sync::Mutex;
use std::vec::Vec;
use std::{format, vec};

use core::cell::Cell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use kmem_gfp::{
    AllocContext, AllocError, FlatFrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE, PageAllocator, Pfn,
    TaskFlags,
};
use kmem_sync::{Cpu, CpuId, Grace, GracePeriod, IrqState, TicketLock, atomic as shim};

use crate::SlabEnv;

#[cfg(not(loom))]
std::thread_local! {
    static CPU: Cell<Option<u32>> = const { Cell::new(Some(0)) };
}
#[cfg(loom)]
loom::thread_local! {
    static CPU: Cell<Option<u32>> = Cell::new(Some(0));
}

/// Makes this thread run on the given CPU, or on none.
pub(crate) fn run_on(cpu: Option<u32>) {
    CPU.with(|id| id.set(cpu));
}

/// CPUs that tests choose by [`run_on`].
#[derive(Debug)]
pub(crate) struct TestCpu {
    nr: u32,
}

#[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom)))]
fn membarrier(command: usize) -> isize {
    let result: isize;
    // SAFETY: the system call takes numbers and touches no memory of ours.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") 324_isize => result, in("rdi") command, in("rsi") 0, in("rdx") 0,
            out("rcx") _, out("r11") _);
    }
    result
}

// SAFETY: tests run at most one thread on each CPU number at a time (1, 3) and handlers run nested on the same thread;
// there are no interrupts (4); the barrier is the system's, or loom's fence (5).
unsafe impl Cpu for TestCpu {
    fn nr_cpus(&self) -> u32 {
        self.nr
    }
    fn try_pin(&self) -> Option<CpuId> {
        CPU.with(|id| id.get().map(CpuId))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    #[cfg(not(loom))]
    fn relax(&self) {
        std::thread::yield_now();
    }
    fn barrier_all_cpus(&self) {
        #[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom)))]
        {
            // Register, then the expedited private barrier; the slow global one where that is missing.
            membarrier(16);
            if membarrier(8) != 0 {
                membarrier(1);
            }
        }
        kmem_sync::atomic::fence(kmem_sync::atomic::Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Frames {
    taken: Vec<bool>,
    blocks: HashMap<u64, u32>,
}

/// A page source that fails when told to and knows every block it gave.
#[derive(Debug)]
pub(crate) struct TestPages {
    /// A lock that models can see: what one owner of a frame did happens before the next one's use.
    frames: TicketLock<Frames>,
    first: u64,
    per_node: usize,
    nr_nodes: u32,
    /// Countdown to a failing call; negative is never.
    fail_in: AtomicI64,
    fail_from: AtomicI64,
    /// Requests so far.
    pub(crate) calls: AtomicU64,
    /// Fails every call while set.
    pub(crate) exhausted: AtomicBool,
    /// The failing call is the last that gets anywhere: all behind it fail as well.
    pub(crate) for_good: AtomicBool,
    /// Refuses blocks above order 0.
    pub(crate) fragmented: AtomicBool,
    /// Every request seen: flags, order.
    pub(crate) requests: Mutex<Vec<(Gfp, u32)>>,
}

impl TestPages {
    pub(crate) fn in_use(&self) -> usize {
        self.frames.with(|frames| frames.taken.iter().filter(|taken| **taken).count())
    }
    /// Fails the call after `calls` more; negative is none.
    pub(crate) fn fail_in(&self, calls: i64) {
        self.fail_in.store(calls, Ordering::Relaxed);
    }
    /// What is left of the countdown; negative once it has fired.
    pub(crate) fn fail_in_left(&self) -> i64 {
        self.fail_in.load(Ordering::Relaxed)
    }
    /// Fails every call after `calls` more; negative is none.
    pub(crate) fn fail_from(&self, calls: i64) {
        self.fail_from.store(calls, Ordering::Relaxed);
    }
    fn take(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.requests.lock().unwrap().push((gfp, order.get()));
        let fails = self.fail_in.load(Ordering::Relaxed);
        if fails >= 0 {
            self.fail_in.store(fails - 1, Ordering::Relaxed);
            if fails == 0 {
                if self.for_good.load(Ordering::Relaxed) {
                    self.exhausted.store(true, Ordering::Relaxed);
                }
                return Err(AllocError::NoMemory { order, gfp });
            }
        }
        match self.fail_from.load(Ordering::Relaxed) {
            0 => return Err(AllocError::NoMemory { order, gfp }),
            left if left > 0 => self.fail_from.store(left - 1, Ordering::Relaxed),
            _ => {}
        }
        if self.exhausted.load(Ordering::Relaxed) || (self.fragmented.load(Ordering::Relaxed) && order.get() > 0) {
            return Err(AllocError::NoMemory { order, gfp });
        }
        let found = self.frames.with(|frames| {
            let wanted = node.map_or(0, |node| node.index());
            let nodes = if gfp.contains(Gfp::THISNODE) { 1 } else { self.nr_nodes as usize };
            for distance in 0..nodes {
                let start = (wanted + distance) % self.nr_nodes as usize * self.per_node;
                for at in (start..start + self.per_node).step_by(order.nr_pages()) {
                    let run = at..at + order.nr_pages();
                    if run.end <= start + self.per_node && !frames.taken[run.clone()].contains(&true) {
                        frames.taken[run].fill(true);
                        frames.blocks.insert(at as u64, order.get());
                        return Some(Pfn(self.first + at as u64));
                    }
                }
            }
            None
        });
        found.ok_or(AllocError::NoMemory { order, gfp })
    }
}

// SAFETY: a block is taken until it is given back; its memory is never touched.
unsafe impl PageAllocator for TestPages {
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.take(gfp, order, node)
    }
    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let at = pfn.0.checked_sub(self.first).ok_or(FreeError::Foreign(pfn))?;
        self.frames.with(|frames| {
            assert_eq!(frames.blocks.remove(&at), Some(order.get()), "{pfn} {order} given back twice or never taken");
            frames.taken[at as usize..at as usize + order.nr_pages()].fill(false);
        });
        Ok(())
    }
    fn alloc_pages_nolock(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.take(gfp, order, node)
    }
    fn node_of(&self, pfn: Pfn) -> NodeId {
        NodeId(((pfn.0 - self.first) as usize / self.per_node) as u32)
    }
    fn nr_nodes(&self) -> u32 {
        self.nr_nodes
    }
}

/// A grace period that passes when the test says so.
#[derive(Debug, Default)]
pub(crate) struct TestGrace {
    now: shim::AtomicU64,
    passed: shim::AtomicU64,
    pub(crate) synchronized: AtomicU64,
}

impl TestGrace {
    /// Every reader that runs now finishes.
    pub(crate) fn pass(&self) {
        self.passed.swap(self.now.load(shim::Ordering::Acquire), shim::Ordering::AcqRel);
    }
}

// SAFETY: tests keep no references into objects over a grace period that they let pass.
unsafe impl GracePeriod for TestGrace {
    fn snapshot(&self) -> Grace {
        Grace(self.now.fetch_add(1, shim::Ordering::AcqRel) + 1)
    }
    fn has_passed(&self, grace: Grace) -> bool {
        self.passed.load(shim::Ordering::Acquire) >= grace.0
    }
    fn synchronize(&self) {
        self.synchronized.fetch_add(1, Ordering::Relaxed);
        self.pass();
    }
}

/// A context that collects reports.
#[derive(Debug, Default)]
pub(crate) struct TestContext {
    pub(crate) lines: Mutex<Vec<String>>,
    pub(crate) now: AtomicU64,
    /// Sleeping is forbidden.
    pub(crate) atomic: AtomicBool,
    cpus_per_node: u32,
}

impl AllocContext for TestContext {
    fn task_flags(&self) -> TaskFlags {
        if self.atomic.load(Ordering::Relaxed) { TaskFlags::ATOMIC } else { TaskFlags::empty() }
    }
    fn update_task_flags(&self, _set: TaskFlags, _clear: TaskFlags) -> TaskFlags {
        TaskFlags::empty()
    }
    fn local_node(&self) -> NodeId {
        let cpu = CPU.with(|id| id.get()).unwrap_or(0);
        NodeId(cpu / self.cpus_per_node.max(1))
    }
    fn now_ms(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }
    fn report(&self, line: core::fmt::Arguments<'_>) {
        self.lines.lock().unwrap().push(line.to_string());
    }
}

/// The machine.
#[derive(Debug)]
pub(crate) struct TestEnv {
    cpu: TestCpu,
    pages: TestPages,
    frames: FlatFrameTable,
    context: TestContext,
    grace: TestGrace,
    memory: (NonNull<u8>, Layout),
    words: Vec<FrameWords>,
}

// SAFETY: the memory is reached only through the page source's blocks.
unsafe impl Sync for TestEnv {}
// SAFETY: as above.
unsafe impl Send for TestEnv {}

impl TestEnv {
    /// `nr_cpus` CPUs on one node with `nr_frames` frames.
    pub(crate) fn new(nr_cpus: u32, nr_frames: usize) -> Self {
        Self::with_nodes(nr_cpus, nr_frames, 1)
    }

    /// The same on `nr_nodes` nodes of equal size.
    pub(crate) fn with_nodes(nr_cpus: u32, nr_frames: usize, nr_nodes: u32) -> Self {
        run_on(Some(0));
        let layout = Layout::from_size_align(nr_frames * PAGE_SIZE, 64 * PAGE_SIZE).unwrap();
        // SAFETY: not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        let words: Vec<FrameWords> = (0..nr_frames).map(|_| FrameWords::new()).collect();
        let first = 0x1000;
        let base = memory.as_ptr().expose_provenance();
        let table = NonNull::from(&words[..]).cast();
        // SAFETY: the words and the memory live as long as the environment; frame `i` is mapped at page `i`.
        let frames = unsafe { FlatFrameTable::new(table, base, Pfn(first), nr_frames as u64) };
        Self {
            cpu: TestCpu { nr: nr_cpus },
            pages: TestPages {
                frames: TicketLock::new(Frames { taken: vec![false; nr_frames], blocks: HashMap::new() }),
                first,
                per_node: nr_frames / nr_nodes as usize,
                nr_nodes,
                fail_in: AtomicI64::new(-1),
                fail_from: AtomicI64::new(-1),
                calls: AtomicU64::new(0),
                exhausted: AtomicBool::new(false),
                for_good: AtomicBool::new(false),
                fragmented: AtomicBool::new(false),
                requests: Mutex::new(Vec::new()),
            },
            frames,
            context: TestContext { cpus_per_node: nr_cpus.div_ceil(nr_nodes), ..TestContext::default() },
            grace: TestGrace::default(),
            memory: (memory, layout),
            words,
        }
    }

    /// The reports so far, taken away.
    pub(crate) fn reports(&self) -> Vec<String> {
        core::mem::take(&mut self.context.lines.lock().unwrap())
    }

    /// The first report line that contains `text`.
    pub(crate) fn reported(&self, text: &str) -> Option<String> {
        self.context.lines.lock().unwrap().iter().find(|line| line.contains(text)).cloned()
    }

    /// Requests since the last call.
    pub(crate) fn requests(&self) -> Vec<(Gfp, u32)> {
        core::mem::take(&mut self.pages.requests.lock().unwrap())
    }

    /// An address in the first byte of the `at`-th frame.
    pub(crate) fn frame(&self, at: usize) -> NonNull<u8> {
        assert!(at < self.words.len(), "{}", format!("frame {at} does not exist"));
        // SAFETY: inside the memory.
        unsafe { self.memory.0.add(at * PAGE_SIZE) }
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.memory.0.as_ptr(), self.memory.1) };
    }
}

impl SlabEnv for TestEnv {
    type Cpu = TestCpu;
    type Pages = TestPages;
    type Frames = FlatFrameTable;
    type Context = TestContext;
    type Grace = TestGrace;

    fn cpu(&self) -> &TestCpu {
        &self.cpu
    }
    fn pages(&self) -> &TestPages {
        &self.pages
    }
    fn frames(&self) -> &FlatFrameTable {
        &self.frames
    }
    fn context(&self) -> &TestContext {
        &self.context
    }
    fn grace(&self) -> &TestGrace {
        &self.grace
    }
}
