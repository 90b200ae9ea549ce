//! Waiting and waking: a word that counts wake-ups, and the platform's way to sleep on it.
//!
//! ```text
//!  sleeper                                   waker
//!  seen = queue.sequence()
//!  condition?  no                            makes the condition true
//!  queue.wait(park, .., seen, ..)            queue.wake(park)
//!    sleepers += 1                             sequence += 1
//!    sequence still `seen`? ─▶ park            sleepers > 0? ─▶ unpark
//! ```
//!
//! A wake-up between the look at the condition and the sleep changes the sequence, so that the sleep ends at once: none is
//! lost. A waker with nobody to wake writes one word.

use kmem_gfp::{AllocContext, TaskFlags};
use kmem_sync::atomic::{AtomicU32, Ordering, fence_after_rmw};
use kmem_sync::const_fn;

/// How long a sleep may last, and what ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// At most so many milliseconds; `None` until woken.
    pub timeout_ms: Option<u64>,
    /// Whether a fatal signal ends it.
    pub killable: bool,
}

impl Wait {
    /// Until woken or killed.
    pub const KILLABLE: Self = Self { timeout_ms: None, killable: true };

    /// At most `ms` milliseconds; signals do not end it.
    pub const fn for_ms(ms: u64) -> Self {
        Self { timeout_ms: Some(ms), killable: false }
    }
}

/// Tasks that wait for the same thing.
#[derive(Debug, Default)]
pub struct WaitQueue {
    /// How often it has been woken, wrapping.
    sequence: AtomicU32,
    /// How many are inside [`wait`](Self::wait).
    sleepers: AtomicU32,
}

impl WaitQueue {
    const_fn! {
        /// Nobody waits.
        pub fn new() -> Self {
            Self { sequence: AtomicU32::new(0), sleepers: AtomicU32::new(0) }
        }
    }

    /// How often the queue has been woken. Read it before looking at the condition. Any context.
    #[inline]
    pub fn sequence(&self) -> u32 {
        self.sequence.load(Ordering::Acquire)
    }

    /// The word that [`sequence`](Self::sequence) reads: for platforms that sleep on the address of a word.
    pub fn word(&self) -> &AtomicU32 {
        &self.sequence
    }

    /// Whether anybody sleeps here. Any context.
    #[inline]
    pub fn has_sleepers(&self) -> bool {
        self.sleepers.load(Ordering::Relaxed) != 0
    }

    /// Sleeps unless the queue has been woken since `seen` was read. May return early; look at the condition again. Only
    /// where sleeping is allowed.
    pub fn wait<P: Park + ?Sized>(&self, park: &P, context: &dyn AllocContext, seen: u32, wait: Wait) {
        self.sleepers.fetch_add(1, Ordering::AcqRel);
        // With the fence in `wake`: either this load sees the new sequence, or the waker sees the sleeper.
        fence_after_rmw();
        if self.sequence.load(Ordering::Acquire) == seen {
            park.park(context, self, seen, wait);
        }
        self.sleepers.fetch_sub(1, Ordering::Release);
    }

    /// Wakes whoever sleeps here, and keeps those from sleeping who have not looked since. Any context; never sleeps.
    pub fn wake<P: Park + ?Sized>(&self, park: &P) {
        self.sequence.fetch_add(1, Ordering::AcqRel);
        fence_after_rmw();
        if self.has_sleepers() {
            park.unpark_all(self);
        }
    }
}

/// How a task of this platform sleeps. Both methods have defaults that poll, which serve until there is a scheduler.
pub trait Park: Sync {
    /// Sleeps while `queue.sequence() == seen`, until the time is up, or until a fatal signal if the wait is killable; may
    /// return early. Whether the sequence is still `seen` must be decided so that an [`unpark_all`](Self::unpark_all) that
    /// follows a change is not missed (a futex, or a lock that both take).
    fn park(&self, context: &dyn AllocContext, queue: &WaitQueue, seen: u32, wait: Wait) {
        poll_until(context, wait, || queue.sequence() != seen);
    }

    /// Ends every [`park`](Self::park) on `queue`. Any context; never sleeps.
    fn unpark_all(&self, queue: &WaitQueue) {
        let _ = queue;
    }
}

impl<P: Park> Park for &P {
    fn park(&self, context: &dyn AllocContext, queue: &WaitQueue, seen: u32, wait: Wait) {
        (**self).park(context, queue, seen, wait);
    }
    fn unpark_all(&self, queue: &WaitQueue) {
        (**self).unpark_all(queue);
    }
}

/// Waits by yielding and looking again. Where there is no clock (it stands at zero), a yield counts as a millisecond.
#[derive(Clone, Copy, Debug, Default)]
pub struct Polled;

impl Park for Polled {}

fn poll_until(context: &dyn AllocContext, wait: Wait, done: impl Fn() -> bool) {
    let started = context.now_ms();
    let mut yields = 0u64;
    while !done() {
        if wait.killable && context.task_flags().contains(TaskFlags::FATAL_SIGNAL) {
            return;
        }
        if let Some(timeout) = wait.timeout_ms {
            let now = context.now_ms();
            let elapsed = if now == 0 { yields } else { now.saturating_sub(started) };
            if elapsed >= timeout {
                return;
            }
        }
        context.yield_now();
        yields = yields.saturating_add(1);
    }
}
