//! The running context as an allocator sees it.

use crate::NodeId;

bitflags::bitflags! {
    /// State of the running task and of the context it runs in.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct TaskFlags: u32 {
        /// Scope: allocations start no I/O (`PF_MEMALLOC_NOIO`).
        const NOIO = 1 << 0;
        /// Scope: allocations do not enter a filesystem (`PF_MEMALLOC_NOFS`).
        const NOFS = 1 << 1;
        /// Scope: allocations may use all reserves and never reclaim (`PF_MEMALLOC`).
        const MEMALLOC = 1 << 2;
        /// Scope: allocations will be pinned for long and stay out of movable memory (`PF_MEMALLOC_PIN`).
        const PIN = 1 << 3;
        /// The OOM killer chose this task.
        const OOM_VICTIM = 1 << 4;
        /// The task has a real-time or deadline policy.
        const REALTIME = 1 << 5;
        /// The task is exiting.
        const EXITING = 1 << 6;
        /// The task is a kernel thread.
        const KTHREAD = 1 << 7;
        /// A fatal signal is pending.
        const FATAL_SIGNAL = 1 << 8;
        /// Preemption is off: sleeping is forbidden.
        const ATOMIC = 1 << 16;
        /// Serving a soft interrupt.
        const IN_SOFTIRQ = 1 << 17;
        /// In a hardware interrupt handler.
        const IN_IRQ = 1 << 18;
        /// In a non-maskable interrupt handler.
        const IN_NMI = 1 << 19;
    }
}

impl TaskFlags {
    /// The scope flags, which [`AllocContext::update_task_flags`] may change.
    pub const SCOPES: Self = Self::NOIO.union(Self::NOFS).union(Self::MEMALLOC).union(Self::PIN);
    /// Not running on behalf of the task.
    pub const IN_INTERRUPT: Self = Self::IN_SOFTIRQ.union(Self::IN_IRQ).union(Self::IN_NMI);

    /// Whether the code runs on behalf of the task: not in any interrupt. The scopes and the task's state count fully.
    #[inline(always)]
    pub const fn in_task(self) -> bool {
        !self.intersects(Self::IN_INTERRUPT)
    }

    /// Whether the context may sleep.
    #[inline(always)]
    pub const fn may_sleep(self) -> bool {
        !self.intersects(Self::ATOMIC.union(Self::IN_INTERRUPT))
    }
}

/// The current task and context: what it may do, its scopes, where it runs. Supplied by the platform.
pub trait AllocContext {
    /// The state of the running context. Called on fast paths: a load or two.
    fn task_flags(&self) -> TaskFlags;

    /// Sets and clears [scope flags](TaskFlags::SCOPES) of the running task and returns the flags as they were.
    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags;

    /// The node nearest to the running CPU that has memory.
    #[inline(always)]
    fn local_node(&self) -> NodeId {
        NodeId(0)
    }

    /// Lets something else run: a retry loop has nothing to do at the moment. Only called where sleeping is allowed.
    #[inline]
    fn yield_now(&self) {
        core::hint::spin_loop();
    }

    /// A coarse monotonic clock in milliseconds for rate limits and stall reports; zero where there is none.
    #[inline]
    fn now_ms(&self) -> u64 {
        0
    }

    /// Takes a line of a diagnostic report (an allocation failure, a corrupted object). Any context; must not allocate.
    #[inline]
    fn report(&self, line: core::fmt::Arguments<'_>) {
        let _ = line;
    }
}

/// A context that may always sleep and has no scopes: single-threaded programs, examples.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainContext;

impl AllocContext for PlainContext {
    #[inline(always)]
    fn task_flags(&self) -> TaskFlags {
        TaskFlags::empty()
    }
    #[inline(always)]
    fn update_task_flags(&self, _set: TaskFlags, _clear: TaskFlags) -> TaskFlags {
        TaskFlags::empty()
    }
}

impl<C: AllocContext> AllocContext for &C {
    #[inline(always)]
    fn task_flags(&self) -> TaskFlags {
        (**self).task_flags()
    }
    #[inline(always)]
    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags {
        (**self).update_task_flags(set, clear)
    }
    #[inline(always)]
    fn local_node(&self) -> NodeId {
        (**self).local_node()
    }
    fn yield_now(&self) {
        (**self).yield_now();
    }
    fn now_ms(&self) -> u64 {
        (**self).now_ms()
    }
    fn report(&self, line: core::fmt::Arguments<'_>) {
        (**self).report(line);
    }
}
