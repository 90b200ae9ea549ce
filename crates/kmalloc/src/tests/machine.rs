//! A machine for tests and models: memory from the host, a first-fit page source that can be told to fail, a clock of grace periods
//! that the test moves on, and CPUs that are chosen by the test's threads.

// Models use a part of it.
#![cfg_attr(loom, allow(dead_code))]

use core::ptr::NonNull;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::boxed::Box;
#[cfg(loom)]
use std::cell::Cell;
use std::string::{String, ToString};
use std::vec::Vec;

use kmem_gfp::{
    AllocContext, AllocError, FlatFrameTable, FrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE,
    PageAllocator, Pfn, TaskFlags,
};
use kmem_slab::{SlabConfig, SlabEnv, Slabs};
use kmem_sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use kmem_sync::{Cpu, CpuId, Grace, GracePeriod, IrqState, SpinLock};

use crate::{Kmalloc, KmallocConfig};

/// Two CPUs; a test has one thread, on CPU 0; the threads of a model say which one they are.
#[derive(Debug)]
pub(super) struct TestCpu;

#[cfg(not(loom))]
fn current_cpu() -> u32 {
    0
}

#[cfg(loom)]
fn current_cpu() -> u32 {
    MODEL_CPU.with(Cell::get)
}

#[cfg(loom)]
loom::thread_local! {
    static MODEL_CPU: Cell<u32> = Cell::new(0);
}

/// Runs the rest of this model thread as the given CPU.
#[cfg(loom)]
pub(super) fn become_model_cpu(id: u32) {
    MODEL_CPU.with(|cpu| cpu.set(id));
}

// SAFETY: each thread has a CPU of its own (1, 3), handlers do not exist (2, 4), the fence is a full one, and tests that
// revoke do so with the other threads in loom or joined (5).
unsafe impl Cpu for TestCpu {
    const REENTRANT: bool = false;
    fn nr_cpus(&self) -> u32 {
        2
    }
    fn try_pin(&self) -> Option<CpuId> {
        Some(CpuId(current_cpu()))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {
        kmem_sync::atomic::fence(Ordering::SeqCst);
    }
}

/// First fit over a bitmap, behind a lock.
#[derive(Debug)]
pub(super) struct TestPages {
    used: SpinLock<Vec<bool>>,
    nodes: u32,
    base: NonNull<u8>,
    calls: AtomicUsize,
    /// The number of the call that is to fail; `usize::MAX` for none.
    fail_at: AtomicUsize,
    exhausted: AtomicBool,
    refuse_frees: AtomicBool,
}

// SAFETY: `base` is only computed with.
unsafe impl Sync for TestPages {}
// SAFETY: as above.
unsafe impl Send for TestPages {}

/// The first frame of every test machine.
pub(super) const FIRST: Pfn = Pfn(0x1000);

impl TestPages {
    fn find(used: &[bool], order: Order, from: usize, to: usize) -> Option<usize> {
        (from..to)
            .step_by(order.nr_pages())
            .find(|&at| used.get(at..at + order.nr_pages()).is_some_and(|block| !block.contains(&true)))
    }

    pub(super) fn in_use(&self) -> usize {
        self.used.with(&TestCpu, |used| used.iter().filter(|used| **used).count())
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    /// Lets the `n`-th call from here on fail, and no other.
    pub(super) fn fail_nth(&self, n: Option<usize>) {
        self.calls.store(0, Ordering::Relaxed);
        self.fail_at.store(n.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// Lets every call fail, or none.
    pub(super) fn exhaust(&self, exhausted: bool) {
        self.exhausted.store(exhausted, Ordering::Relaxed);
    }

    /// Lets every free be refused, or none.
    pub(super) fn refuse_frees(&self, refuse: bool) {
        self.refuse_frees.store(refuse, Ordering::Relaxed);
    }
}

// SAFETY: a block is handed out only while all its frames are marked unused.
unsafe impl PageAllocator for TestPages {
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        let fails = call == self.fail_at.load(Ordering::Relaxed) || self.exhausted.load(Ordering::Relaxed);
        if fails && !gfp.contains(Gfp::NOFAIL) {
            return Err(AllocError::NoMemory { order, gfp });
        }
        let at = self.used.with(&TestCpu, |used| {
            let share = used.len() / self.nodes as usize;
            let wanted = node.map_or(0, NodeId::index).min(self.nodes as usize - 1);
            let mut found = Self::find(used, order, wanted * share, (wanted + 1) * share);
            if found.is_none() && !gfp.contains(Gfp::THISNODE) {
                found = Self::find(used, order, 0, used.len());
            }
            let at = found?;
            used[at..at + order.nr_pages()].fill(true);
            Some(at)
        });
        let at = at.ok_or(AllocError::NoMemory { order, gfp })?;
        if gfp.contains(Gfp::ZERO) {
            // SAFETY: inside the machine's memory, and the block is ours.
            unsafe { self.base.add(at * PAGE_SIZE).write_bytes(0, order.size_bytes()) };
        }
        Ok(Pfn(FIRST.0 + at as u64))
    }

    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        if self.refuse_frees.load(Ordering::Relaxed) {
            return Err(FreeError::Reserved(pfn));
        }
        self.used.with(&TestCpu, |used| {
            let at = (pfn.0 - FIRST.0) as usize;
            let block = &mut used[at..at + order.nr_pages()];
            if block.contains(&false) {
                return Err(FreeError::AlreadyFree(pfn));
            }
            block.fill(false);
            Ok(())
        })
    }

    fn alloc_pages_nolock(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.alloc_pages(gfp, order, node)
    }

    fn node_of(&self, pfn: Pfn) -> NodeId {
        self.used
            .with(&TestCpu, |used| NodeId(((pfn.0 - FIRST.0) / (used.len() as u64 / u64::from(self.nodes))) as u32))
    }

    fn nr_nodes(&self) -> u32 {
        self.nodes
    }
}

/// May sleep, and keeps what is reported.
#[derive(Debug)]
pub(super) struct TestContext {
    reports: SpinLock<Vec<String>>,
}

impl AllocContext for TestContext {
    fn task_flags(&self) -> TaskFlags {
        TaskFlags::empty()
    }
    fn update_task_flags(&self, _set: TaskFlags, _clear: TaskFlags) -> TaskFlags {
        TaskFlags::empty()
    }
    fn report(&self, line: core::fmt::Arguments<'_>) {
        self.reports.with(&TestCpu, |reports| reports.push(line.to_string()));
    }
}

/// Grace periods that pass when the test says so; waiting for one lets it pass.
#[derive(Debug)]
pub(super) struct TestGrace(AtomicU64);

// SAFETY: test readers end before the test moves the clock on.
unsafe impl GracePeriod for TestGrace {
    fn snapshot(&self) -> Grace {
        Grace(self.0.load(Ordering::SeqCst) + 1)
    }
    fn has_passed(&self, grace: Grace) -> bool {
        self.0.load(Ordering::SeqCst) >= grace.0
    }
    fn synchronize(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Everything that a family of caches is built over.
#[derive(Debug)]
pub(super) struct TestEnv {
    pub(super) cpu: TestCpu,
    pub(super) pages: TestPages,
    frames: FlatFrameTable,
    context: TestContext,
    pub(super) grace: TestGrace,
    memory: NonNull<u8>,
    layout: Layout,
    words: Box<[FrameWords]>,
}

// SAFETY: the memory is handed out by `pages`, page by page, to one owner at a time.
unsafe impl Sync for TestEnv {}
// SAFETY: as above.
unsafe impl Send for TestEnv {}

impl TestEnv {
    pub(super) fn new(nr_pages: usize, nodes: u32) -> Self {
        let layout =
            Layout::from_size_align(nr_pages * PAGE_SIZE, (nr_pages * PAGE_SIZE).next_power_of_two().min(4 << 20))
                .unwrap();
        // SAFETY: not of size zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        let base = memory.as_ptr().expose_provenance();
        let words: Box<[FrameWords]> = (0..nr_pages).map(|_| FrameWords::new()).collect();
        let first = NonNull::from(&words[0]);
        // SAFETY: the words are as many, live as long, and are used through the table alone; the memory is contiguous.
        let frames = unsafe { FlatFrameTable::new(first, base, FIRST, nr_pages as u64) };
        let mut used = Vec::new();
        used.resize(nr_pages, false);
        Self {
            cpu: TestCpu,
            pages: TestPages {
                used: SpinLock::new(used),
                nodes,
                base: memory,
                calls: AtomicUsize::new(0),
                fail_at: AtomicUsize::new(usize::MAX),
                exhausted: AtomicBool::new(false),
                refuse_frees: AtomicBool::new(false),
            },
            frames,
            context: TestContext { reports: SpinLock::new(Vec::new()) },
            grace: TestGrace(AtomicU64::new(0)),
            memory,
            layout,
            words,
        }
    }

    pub(super) fn take_reports(&self) -> Vec<String> {
        self.context.reports.with(&TestCpu, core::mem::take)
    }

    /// The owner words of all frames that have one, by frame.
    pub(super) fn owners(&self) -> Vec<(Pfn, u64)> {
        let owner = |(at, words): (usize, &FrameWords)| (Pfn(FIRST.0 + at as u64), words.owner.load(Ordering::Relaxed));
        self.words.iter().enumerate().map(owner).filter(|(_, owner)| *owner != 0).collect()
    }

    pub(super) fn words_of(&self, pfn: Pfn) -> &FrameWords {
        self.frames.words(pfn).unwrap()
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
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

/// A family over `env`, ready for use.
pub(super) fn slabs(env: &TestEnv) -> Slabs<&TestEnv> {
    let slabs = Slabs::with_config(env, SlabConfig::DEFAULT);
    slabs.init().unwrap();
    slabs
}

/// Runs `f` on a kmalloc over 16 MiB on one node.
pub(super) fn with_kmalloc(f: impl FnOnce(&Kmalloc<'_, &TestEnv>, &TestEnv)) {
    with_config(KmallocConfig::default(), f);
}

/// Runs `f` on a kmalloc with `config` over 16 MiB on two nodes.
pub(super) fn with_config(config: KmallocConfig, f: impl FnOnce(&Kmalloc<'_, &TestEnv>, &TestEnv)) {
    let env = TestEnv::new(4096, 2);
    let slabs = slabs(&env);
    let kmalloc = Kmalloc::new(&slabs, config).unwrap();
    f(&kmalloc, &env);
}

/// `ksize` of a test's own block.
#[cfg(not(loom))]
pub(super) fn usable(kmalloc: &Kmalloc<'_, &TestEnv>, block: *const u8) -> Result<usize, crate::KfreeError> {
    // SAFETY: tests ask about blocks of their own, or about addresses that are no blocks.
    unsafe { kmalloc.ksize(block) }
}
