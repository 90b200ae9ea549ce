//! A machine for tests: frames cut from one allocation, poisoned when free, with failures on demand.

use core::cell::Cell;
use core::ptr::NonNull;
use std::alloc::Layout;
use std::boxed::Box;
use std::collections::BTreeSet;
use std::string::{String, ToString};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;

use kmem_gfp::{
    AllocContext, AllocError, FrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SHIFT, PAGE_SIZE,
    PageAllocator, Pfn, TaskFlags,
};
use kmem_sync::{Cpu, CpuId, IrqState};

use crate::ZsEnv;

/// The byte that free frames are filled with.
pub(crate) const FREE_BYTE: u8 = 0xdb;

#[derive(Debug)]
pub(crate) struct Machine {
    base: usize,
    layout: Layout,
    first: u64,
    words: Vec<FrameWords>,
    state: Mutex<State>,
    poison: bool,
    /// Allocations until one fails; below zero: none does.
    fail_in: std::sync::atomic::AtomicI64,
    pub(crate) nr_allocs: AtomicU64,
}

#[derive(Debug)]
struct State {
    free: Vec<u32>,
    taken: BTreeSet<u32>,
    reports: Vec<String>,
    flags: Option<Vec<Gfp>>,
}

impl Machine {
    pub(crate) fn new(nr_frames: usize) -> Box<Self> {
        Self::with_poison(nr_frames, true)
    }

    pub(crate) fn with_poison(nr_frames: usize, poison: bool) -> Box<Self> {
        let layout = Layout::from_size_align(nr_frames * PAGE_SIZE, PAGE_SIZE).unwrap();
        // SAFETY: the size is not zero.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        assert!(!base.is_null());
        Box::new(Self {
            base: base.expose_provenance(),
            layout,
            first: 0x1234,
            words: (0..nr_frames).map(|_| FrameWords::new()).collect(),
            state: Mutex::new(State {
                free: (0..nr_frames as u32).rev().collect(),
                taken: BTreeSet::new(),
                reports: Vec::new(),
                flags: None,
            }),
            poison,
            fail_in: (-1).into(),
            nr_allocs: AtomicU64::new(0),
        })
    }

    /// Makes the `n`-th allocation from here on fail, counted from zero, and all behind it.
    pub(crate) fn fail_after(&self, n: i64) {
        self.fail_in.store(n, Ordering::Relaxed);
    }

    pub(crate) fn never_fail(&self) {
        self.fail_in.store(-1, Ordering::Relaxed);
    }

    pub(crate) fn nr_taken(&self) -> usize {
        self.state.lock().unwrap().taken.len()
    }

    pub(crate) fn taken(&self) -> Vec<Pfn> {
        self.state.lock().unwrap().taken.iter().map(|&i| Pfn(self.first + u64::from(i))).collect()
    }

    pub(crate) fn reports(&self) -> Vec<String> {
        self.state.lock().unwrap().reports.clone()
    }

    pub(crate) fn record_flags(&self) {
        self.state.lock().unwrap().flags = Some(Vec::new());
    }

    pub(crate) fn flags(&self) -> Vec<Gfp> {
        self.state.lock().unwrap().flags.clone().unwrap()
    }

    fn fill(&self, index: u32) {
        if self.poison {
            let frame = core::ptr::with_exposed_provenance_mut::<u8>(self.base + index as usize * PAGE_SIZE);
            // SAFETY: a frame of ours that nobody owns.
            unsafe { frame.write_bytes(FREE_BYTE, PAGE_SIZE) };
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SAFETY: allocated in `with_poison` with this layout.
        unsafe { std::alloc::dealloc(core::ptr::with_exposed_provenance_mut(self.base), self.layout) }
    }
}

#[cfg(not(loom))]
std::thread_local! {
    static CPU: Cell<Option<u32>> = const { Cell::new(Some(0)) };
}
#[cfg(loom)]
loom::thread_local! {
    static CPU: Cell<Option<u32>> = Cell::new(None);
}

/// How many CPUs there are.
pub(crate) const CPUS: u32 = if cfg!(loom) { 2 } else { 4 };

/// Makes this thread run on the given CPU, or on none. Threads begin on the first one; in models, on none.
pub(crate) fn run_on(cpu: Option<u32>) {
    CPU.with(|id| id.set(cpu));
}

#[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom), not(miri)))]
fn membarrier(command: usize) -> isize {
    let result: isize;
    // SAFETY: the system call takes numbers and touches no memory of ours.
    unsafe {
        core::arch::asm!("syscall", inlateout("rax") 324_isize => result, in("rdi") command, in("rsi") 0, in("rdx") 0,
            out("rcx") _, out("r11") _);
    }
    result
}

// SAFETY: tests run at most one thread on each CPU number of a machine at a time (1, 3), and nothing interrupts it (2, 4);
// the barrier is the system's, or loom's fence (5).
unsafe impl Cpu for Machine {
    const REENTRANT: bool = false;

    fn nr_cpus(&self) -> u32 {
        CPUS
    }
    fn try_pin(&self) -> Option<CpuId> {
        CPU.with(|id| id.get().map(CpuId))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    #[inline(always)]
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    #[inline(always)]
    unsafe fn irq_restore(&self, _state: IrqState) {}
    #[cfg(not(loom))]
    fn relax(&self) {
        std::thread::yield_now();
    }
    fn barrier_all_cpus(&self) {
        #[cfg(all(target_os = "linux", target_arch = "x86_64", not(loom), not(miri)))]
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

// SAFETY: a frame is in `free` or in `taken`.
unsafe impl PageAllocator for Machine {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<NodeId>) -> Result<Pfn, AllocError> {
        assert_eq!(order, Order::ZERO, "zsmalloc asks for single frames only");
        self.nr_allocs.fetch_add(1, Ordering::Relaxed);
        let left = self.fail_in.load(Ordering::Relaxed);
        if left == 0 {
            return Err(AllocError::NoMemory { order, gfp });
        }
        if left > 0 {
            self.fail_in.store(left - 1, Ordering::Relaxed);
        }
        let mut state = self.state.lock().unwrap();
        let index = state.free.pop().ok_or(AllocError::NoMemory { order, gfp })?;
        state.taken.insert(index);
        if let Some(flags) = &mut state.flags {
            flags.push(gfp);
        }
        Ok(Pfn(self.first + u64::from(index)))
    }

    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        assert_eq!(order, Order::ZERO);
        let index = (pfn.0 - self.first) as u32;
        let mut state = self.state.lock().unwrap();
        assert!(state.taken.remove(&index), "{pfn} is freed twice");
        self.fill(index);
        state.free.push(index);
        Ok(())
    }
}

// SAFETY: an array each for words and memory.
unsafe impl FrameTable for Machine {
    fn words(&self, pfn: Pfn) -> Option<&FrameWords> {
        self.words.get(usize::try_from(pfn.0.checked_sub(self.first)?).ok()?)
    }
    fn address_of(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let index = usize::try_from(pfn.0.checked_sub(self.first)?).ok()?;
        (index < self.words.len())
            .then(|| NonNull::new(core::ptr::with_exposed_provenance_mut(self.base + index * PAGE_SIZE)))?
    }
    fn frame_of(&self, address: usize) -> Option<Pfn> {
        let index = address.checked_sub(self.base)? >> PAGE_SHIFT;
        (index < self.words.len()).then(|| Pfn(self.first + index as u64))
    }
}

impl AllocContext for Machine {
    fn task_flags(&self) -> TaskFlags {
        TaskFlags::empty()
    }
    fn update_task_flags(&self, _set: TaskFlags, _clear: TaskFlags) -> TaskFlags {
        TaskFlags::empty()
    }
    fn report(&self, line: core::fmt::Arguments<'_>) {
        self.state.lock().unwrap().reports.push(line.to_string());
    }
}

impl ZsEnv for Machine {
    type Cpu = Self;
    type Pages = Self;
    type Frames = Self;
    type Context = Self;

    fn cpu(&self) -> &Self {
        self
    }
    fn pages(&self) -> &Self {
        self
    }
    fn frames(&self) -> &Self {
        self
    }
    fn context(&self) -> &Self {
        self
    }
}
