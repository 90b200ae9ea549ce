//! The scheduler: one queue of threads that want to run, and what CPUs do in between.
//!
//! A thread gives its CPU up when it yields, parks or ends, and when the timer finds it not pinned. Every switch is a
//! quiescent state (`grace`). The queue is locked over the switch and unlocked by whoever runs next, so nobody takes
//! a thread whose stack is still in use.

use core::ptr;

use kmem_gfp::TaskFlags;
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use kmem_sync::{CpuId, IrqGuard, Pinned};

use crate::cpu::KernelCpu;
use crate::thread::Thread;
use crate::{apic, asm, grace, percpu};

unsafe extern "C" {
    fn switch_stacks(save: *mut usize, to: usize);
}

/// Threads that want to run, oldest first.
///
/// # Invariants
/// The links belong to whoever made `locked` true, with interrupts off.
struct RunQueue {
    locked: AtomicBool,
    first: AtomicPtr<Thread>,
    last: AtomicPtr<Thread>,
}

static QUEUE: RunQueue = RunQueue {
    locked: AtomicBool::new(false),
    first: AtomicPtr::new(ptr::null_mut()),
    last: AtomicPtr::new(ptr::null_mut()),
};

impl RunQueue {
    fn lock(&self) {
        while self.locked.swap(true, Ordering::Acquire) {
            while self.locked.load(Ordering::Relaxed) {
                core::hint::spin_loop();
            }
        }
    }

    fn unlock(&self) {
        self.locked.store(false, Ordering::Release);
    }

    /// Adds a thread at the end. Locked.
    fn push(&self, thread: *mut Thread) {
        // SAFETY: a thread that lives; its link is ours.
        unsafe { (*thread).next.store(ptr::null_mut(), Ordering::Relaxed) };
        let last = self.last.swap(thread, Ordering::Relaxed);
        if last.is_null() {
            self.first.store(thread, Ordering::Relaxed);
        } else {
            // SAFETY: queued threads live.
            unsafe { (*last).next.store(thread, Ordering::Relaxed) };
        }
    }

    /// Takes the oldest thread that may run on `cpu`. Locked.
    fn pop(&self, cpu: CpuId) -> Option<*mut Thread> {
        let mut before: *mut Thread = ptr::null_mut();
        let mut thread = self.first.load(Ordering::Relaxed);
        while !thread.is_null() {
            // SAFETY: queued threads live, their links are ours.
            unsafe {
                let next = (*thread).next.load(Ordering::Relaxed);
                if (*thread).may_run_on(cpu) {
                    match before.as_ref() {
                        Some(before) => before.next.store(next, Ordering::Relaxed),
                        None => self.first.store(next, Ordering::Relaxed),
                    }
                    if next.is_null() {
                        self.last.store(before, Ordering::Relaxed);
                    }
                    return Some(thread);
                }
                before = thread;
                thread = next;
            }
        }
        None
    }

    /// Whether a thread waits that may run on `cpu`. Locked.
    fn has(&self, cpu: CpuId) -> bool {
        let mut thread = self.first.load(Ordering::Relaxed);
        while !thread.is_null() {
            // SAFETY: queued threads live.
            unsafe {
                if (*thread).may_run_on(cpu) {
                    return true;
                }
                thread = (*thread).next.load(Ordering::Relaxed);
            }
        }
        false
    }
}

/// Why a thread gives up its CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Yield,
    Park,
    End,
}

/// The running thread; null before there are any.
pub(crate) fn current() -> *mut Thread {
    let _pin = Pinned::new(&KernelCpu);
    percpu::this().current.load(Ordering::Relaxed)
}

/// Switches to the next thread. Interrupts are off, and the running thread is not pinned.
fn switch(why: Why) {
    let this = percpu::this();
    let from = this.current.load(Ordering::Relaxed);
    if from.is_null() {
        return;
    }
    grace::quiescent();
    QUEUE.lock();
    let idle = this.idle.load(Ordering::Relaxed);
    // SAFETY: the running thread lives.
    let thread = unsafe { &*from };
    match why {
        Why::Yield if from != idle => QUEUE.push(from),
        Why::Yield => {}
        Why::Park => {
            if thread.token.swap(false, Ordering::Acquire) {
                QUEUE.unlock();
                return;
            }
            thread.parked.store(true, Ordering::Relaxed);
        }
        Why::End => thread.dying.store(true, Ordering::Relaxed),
    }
    let to = QUEUE.pop(this.id()).unwrap_or(idle);
    if to == from {
        QUEUE.unlock();
        return;
    }
    thread.flags.store(percpu::flags().bits(), Ordering::Relaxed);
    // SAFETY: taken from the queue (or this CPU's idle thread): it lives, and nobody else runs it.
    let next = unsafe { &*to };
    percpu::set_flags(TaskFlags::from_bits_retain(next.flags.load(Ordering::Relaxed)));
    this.previous.store(from, Ordering::Relaxed);
    this.current.store(to, Ordering::Relaxed);
    // SAFETY: `to` was saved by a switch or made by `spawn`; the queue is locked, so nobody else takes `from` before its
    // stack pointer is saved.
    unsafe { thread.saved.with_mut(|save| switch_stacks(save, next.saved.with(|saved| *saved))) };
    arrive();
}

/// What a thread does first when it gets a CPU: lets go of the queue and of the one that ran before.
pub(crate) fn arrive() {
    let previous = percpu::this().previous.swap(ptr::null_mut(), Ordering::Relaxed);
    QUEUE.unlock();
    // SAFETY: it lives until `gone` is set.
    let Some(previous) = (unsafe { previous.as_ref() }) else { return };
    if previous.dying.load(Ordering::Relaxed) {
        let waiter = previous.waiter.load(Ordering::Acquire);
        // From here on whoever joins may free it. A waiter that came too late for the line above does not park for long:
        // see `park_or_yield`.
        previous.gone.store(true, Ordering::Release);
        if !waiter.is_null() {
            // SAFETY: a thread that waits in `join`, which does not end before it has seen `gone`; it yields while it waits.
            unsafe { unpark(waiter) };
        }
    }
}

/// Lets others run.
pub(crate) fn yield_now() {
    let _off = IrqGuard::new(&KernelCpu);
    debug_assert_eq!(percpu::pins(), 0, "a pinned thread cannot yield");
    switch(Why::Yield);
}

/// Lets others run, and the processor rest for a moment.
pub(crate) fn park_or_yield() {
    yield_now();
    core::hint::spin_loop();
}

/// Waits until somebody unparks this thread; at once if somebody has.
pub(crate) fn park() {
    let _off = IrqGuard::new(&KernelCpu);
    switch(Why::Park);
}

/// Ends the running thread. Interrupts are off.
pub(crate) fn end() -> ! {
    switch(Why::End);
    // PANIC: nobody runs a thread that has ended.
    panic!("a thread has come back")
}

/// Ends the running thread as failed.
pub(crate) extern "C" fn die() -> ! {
    asm::disable_interrupts();
    // SAFETY: the running thread lives.
    if let Some(thread) = unsafe { percpu::this().current.load(Ordering::Relaxed).as_ref() } {
        thread.failed.store(true, Ordering::Relaxed);
    }
    end()
}

/// Whether the running code is a thread that can be ended where it is: not idle, not the suite, not pinned, no interrupt,
/// no lock that keeps interrupts off.
pub(crate) fn may_die() -> bool {
    if !asm::interrupts_on() || percpu::pins() != 0 || !percpu::flags().in_task() {
        return false;
    }
    let _pin = Pinned::new(&KernelCpu);
    let this = percpu::this();
    let thread = this.current.load(Ordering::Relaxed);
    // SAFETY: the running thread lives.
    let essential = unsafe { thread.as_ref() }.is_none_or(|thread| thread.name == crate::suite::NAME);
    !essential && thread != this.idle.load(Ordering::Relaxed)
}

/// Queues a thread that nobody runs, and wakes a CPU for it. Any context but NMI.
///
/// # Safety
/// It lives, is in no queue and runs nowhere.
pub(crate) unsafe fn enqueue(thread: *mut Thread) {
    let _off = IrqGuard::new(&KernelCpu);
    QUEUE.lock();
    QUEUE.push(thread);
    QUEUE.unlock();
    wake_one_for(thread);
}

/// Wakes a CPU that waits for an interrupt and may run the thread.
fn wake_one_for(thread: *mut Thread) {
    let this = percpu::this();
    // SAFETY: threads that are queued live until they are joined, which is not before they ran.
    let fits = |cpu: CpuId| unsafe { (*thread).may_run_on(cpu) };
    for cpu in percpu::all() {
        if !ptr::eq(cpu, this) && cpu.idling.load(Ordering::SeqCst) && fits(cpu.id()) {
            apic::send(cpu.apic_id.load(Ordering::Relaxed) as u8, apic::vector::WAKE);
            return;
        }
    }
}

/// Lets a parked thread run again, or not park the next time. Any context but NMI.
///
/// # Safety
/// The thread lives.
pub(crate) unsafe fn unpark(thread: *mut Thread) {
    let _off = IrqGuard::new(&KernelCpu);
    QUEUE.lock();
    // SAFETY: the caller's promise.
    let parked = unsafe {
        let parked = (*thread).parked.swap(false, Ordering::Relaxed);
        if parked {
            QUEUE.push(thread);
        } else {
            (*thread).token.store(true, Ordering::Release);
        }
        parked
    };
    QUEUE.unlock();
    if parked {
        wake_one_for(thread);
    }
}

/// Makes the running code this CPU's idle thread.
pub(crate) fn become_idle() {
    let this = percpu::this();
    let idle = Thread::idle(this.id());
    this.idle.store(idle, Ordering::Relaxed);
    this.current.store(idle, Ordering::Relaxed);
    percpu::set_flags(TaskFlags::KTHREAD);
}

/// What a CPU does for ever when it has been set up. Interrupts are off.
pub(crate) fn idle() -> ! {
    let this = percpu::this();
    loop {
        switch(Why::Yield);
        grace::quiescent();
        this.idling.store(true, Ordering::SeqCst);
        QUEUE.lock();
        let work = QUEUE.has(this.id());
        QUEUE.unlock();
        if !work {
            // SAFETY: an idle CPU may be interrupted.
            unsafe { asm::wait_for_interrupt() };
        }
        this.idling.store(false, Ordering::SeqCst);
    }
}

/// Whether the timer should make the interrupted thread give way. In its interrupt.
pub(crate) fn should_preempt() -> bool {
    let this = percpu::this();
    let current = this.current.load(Ordering::Relaxed);
    if current.is_null() || current == this.idle.load(Ordering::Relaxed) || percpu::pins() != 0 {
        return false;
    }
    // A look without the lock: at worst a tick too late.
    !QUEUE.first.load(Ordering::Relaxed).is_null()
}

/// Where a preempted thread finds itself, with interrupts off and everything saved.
pub(crate) extern "C" fn preempted() {
    switch(Why::Yield);
}

static TICK_US: AtomicU64 = AtomicU64::new(1000);

/// Says how long a tick of the timer is.
pub(crate) fn set_tick(us: u64) {
    TICK_US.store(us, Ordering::Relaxed);
}

/// Milliseconds since the timer was started.
pub(crate) fn now_ms() -> u64 {
    percpu::of(CpuId(0)).ticks.load(Ordering::Relaxed) * TICK_US.load(Ordering::Relaxed) / 1000
}
