//! Kernel threads: a stack from vmalloc, with its guard page, and a closure to run on it.

use alloc::boxed::Box;
use core::fmt;
use core::ptr::NonNull;

use kmem_gfp::{Gfp, TaskFlags};
use kmem_sync::UnsafeCell;
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use kmem_sync::{CpuId, IrqGuard};
use kmem_vmalloc::VmRequest;

use crate::cpu::KernelCpu;
use crate::vm::vmalloc;
use crate::{asm, sched};

/// Bytes of a thread's stack.
pub(crate) const STACK_BYTES: usize = 64 << 10;

/// Runs on any CPU.
const ANY_CPU: u32 = u32::MAX;

unsafe extern "C" {
    fn thread_entry();
}

/// What a thread is to do.
type Entry = Box<dyn FnOnce() + Send>;

/// A thread.
///
/// # Invariants
/// `saved` and `next` belong to whoever holds the run queue's lock, but for the CPU that the thread runs on, which has its
/// stack pointer.
pub(crate) struct Thread {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Its stack pointer while it does not run.
    pub(crate) saved: UnsafeCell<usize>,
    /// The next one in the run queue.
    pub(crate) next: AtomicPtr<Thread>,
    /// Whether it waits to be unparked.
    pub(crate) parked: AtomicBool,
    /// Whether somebody unparked it before it parked.
    pub(crate) token: AtomicBool,
    /// Whether it has ended, and left its stack for good.
    pub(crate) gone: AtomicBool,
    /// Whether it is about to end.
    pub(crate) dying: AtomicBool,
    /// Whether it ended by a panic or a fault.
    pub(crate) failed: AtomicBool,
    /// Who waits for its end.
    pub(crate) waiter: AtomicPtr<Thread>,
    /// Its [`TaskFlags`] while it does not run.
    pub(crate) flags: AtomicU32,
    cpu: AtomicU32,
    /// The lowest address of its stack; zero: a stack that was there before threads.
    stack: AtomicUsize,
    entry: UnsafeCell<Option<Entry>>,
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Thread").field("name", &self.name).finish_non_exhaustive()
    }
}

// SAFETY: fields are atomics or handed over under the run queue's lock (invariant); the closure is `Send`.
unsafe impl Sync for Thread {}
// SAFETY: as above.
unsafe impl Send for Thread {}

impl Thread {
    fn new(name: &'static str, cpu: Option<CpuId>, entry: Option<Entry>) -> Self {
        Self {
            name,
            saved: UnsafeCell::new(0),
            next: AtomicPtr::new(core::ptr::null_mut()),
            parked: AtomicBool::new(false),
            token: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            dying: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            waiter: AtomicPtr::new(core::ptr::null_mut()),
            flags: AtomicU32::new(TaskFlags::KTHREAD.bits()),
            cpu: AtomicU32::new(cpu.map_or(ANY_CPU, |cpu| cpu.0)),
            stack: AtomicUsize::new(0),
            entry: UnsafeCell::new(entry),
        }
    }

    /// The thread that a CPU has been all along: what it runs when there is nothing else.
    pub(crate) fn idle(cpu: CpuId) -> *mut Self {
        Box::into_raw(Box::new(Self::new("idle", Some(cpu), None)))
    }

    /// Whether it may run on a CPU.
    pub(crate) fn may_run_on(&self, cpu: CpuId) -> bool {
        let own = self.cpu.load(Ordering::Relaxed);
        own == ANY_CPU || own == cpu.0
    }

    /// Whether an address lies in the page below its stack.
    pub(crate) fn has_guard_at(&self, address: usize) -> bool {
        let stack = self.stack.load(Ordering::Relaxed);
        stack != 0 && (stack - 4096..stack).contains(&address)
    }

    /// The upper end of its stack.
    pub(crate) fn stack_top(&self) -> usize {
        self.stack.load(Ordering::Relaxed) + STACK_BYTES
    }
}

/// A running thread, for whoever wants to know how it ends.
#[derive(Debug)]
#[must_use = "a thread that nobody joins keeps its stack"]
pub(crate) struct JoinHandle(NonNull<Thread>);

// SAFETY: a pointer to something that is `Sync` and lives until it is joined.
unsafe impl Send for JoinHandle {}

/// Runs `f` as a thread, on `cpu` only if one is named.
///
/// # Panics
/// Without memory for it.
#[track_caller]
pub(crate) fn spawn(name: &'static str, cpu: Option<CpuId>, f: impl FnOnce() + Send + 'static) -> JoinHandle {
    let thread = Box::into_raw(Box::new(Thread::new(name, cpu, Some(Box::new(f)))));
    let stack = vmalloc().alloc(&VmRequest::new(STACK_BYTES, Gfp::KERNEL)).expect("memory for a stack");
    // What `switch_stacks` pops: six registers and where to go on.
    let top = (stack.addr().get() + STACK_BYTES) & !15;
    let frame = top - 7 * 8;
    // SAFETY: the stack is ours and mapped; nobody knows the thread yet.
    unsafe {
        let words = core::ptr::with_exposed_provenance_mut::<usize>(frame);
        for i in 0..6 {
            words.add(i).write(0);
        }
        words.add(6).write(thread_entry as *const () as usize);
        (*thread).saved.with_mut(|saved| *saved = frame);
        (*thread).stack.store(stack.addr().get(), Ordering::Relaxed);
        sched::enqueue(thread);
    }
    JoinHandle(unsafe_non_null(thread))
}

fn unsafe_non_null(thread: *mut Thread) -> NonNull<Thread> {
    // SAFETY: from a box.
    unsafe { NonNull::new_unchecked(thread) }
}

impl JoinHandle {
    /// Whether the thread has ended.
    pub(crate) fn is_finished(&self) -> bool {
        // SAFETY: lives until it is joined.
        unsafe { self.0.as_ref() }.gone.load(Ordering::Acquire)
    }

    /// Waits for the end of the thread and takes its memory back. `false` if it panicked or faulted.
    pub(crate) fn join(self) -> bool {
        // SAFETY: lives until the box is taken back below.
        let thread = unsafe { self.0.as_ref() };
        thread.waiter.store(sched::current(), Ordering::Release);
        while !self.is_finished() {
            sched::park_or_yield();
        }
        let ok = !thread.failed.load(Ordering::Relaxed);
        let stack = core::ptr::with_exposed_provenance_mut::<u8>(thread.stack.load(Ordering::Relaxed));
        // SAFETY: the thread has left its stack for good, and nobody else knows it.
        unsafe {
            let freed = vmalloc().vfree(stack);
            debug_assert!(freed.is_ok(), "{freed:?}");
            drop(Box::from_raw(self.0.as_ptr()));
        }
        ok
    }

    /// Lets go of a thread that never ends.
    pub(crate) fn into_raw(self) -> *mut Thread {
        self.0.as_ptr()
    }
}

/// Where every thread begins, on its own stack, with interrupts off and the run queue locked.
pub(crate) extern "C" fn thread_main() -> ! {
    sched::arrive();
    // SAFETY: a thread may be interrupted and preempted.
    unsafe { asm::enable_interrupts() };
    // SAFETY: the running thread lives, and its entry is its own.
    let entry = unsafe { (*sched::current()).entry.with_mut(|entry| (*entry).take()) };
    if let Some(entry) = entry {
        entry();
    }
    let _off = IrqGuard::new(&KernelCpu);
    sched::end()
}
