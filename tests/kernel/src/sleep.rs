//! Threads that wait for something or for a moment: [`KernelPark`] for reclaim, [`until`] for whoever naps.
//!
//! ```text
//! sleeper   place in the table (thread, queue, until) ─▶ park ─▶ gives the place back
//! waker     finds its queue in the table  ─┐
//! tick      finds moments that have come  ─┴▶ unpark
//! ```

use kmem::reclaim::{Park, Wait, WaitQueue};
use kmem_gfp::AllocContext;
use kmem_sync::IrqLock;
use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::cpu::KernelCpu;
use crate::sched;
use crate::thread::Thread;

/// The most that sleep here at once; others yield.
const MOST: usize = 64;
const NEVER: u64 = u64::MAX;

/// A thread that sleeps.
///
/// # Invariants
/// The thread lives for as long as it stands in the table: it takes itself out.
struct Sleeper {
    thread: *mut Thread,
    /// The address of its queue; zero: none.
    queue: usize,
    until_ms: u64,
}

// SAFETY: a pointer to something that is `Sync` and lives (invariant).
unsafe impl Send for Sleeper {}

static SLEEPERS: IrqLock<[Option<Sleeper>; MOST]> = IrqLock::new([const { None }; MOST]);
/// The earliest moment that somebody waits for.
static EARLIEST: AtomicU64 = AtomicU64::new(NEVER);

/// Sleeps while `still` holds, which is asked once under the table's lock; may return early.
fn sleep(queue: usize, until_ms: u64, still: impl FnOnce() -> bool) {
    let thread = sched::current();
    let place = SLEEPERS.with(&KernelCpu, |all| {
        if !still() {
            return None;
        }
        let (at, place) = all.iter_mut().enumerate().find(|(_, place)| place.is_none())?;
        *place = Some(Sleeper { thread, queue, until_ms });
        EARLIEST.fetch_min(until_ms, Ordering::Relaxed);
        Some(at)
    });
    match place {
        Some(at) => {
            sched::park();
            SLEEPERS.with(&KernelCpu, |all| all[at] = None);
        }
        None => sched::yield_now(),
    }
}

/// Sleeps until a moment of [`sched::now_ms`] or until the thread is unparked.
pub(crate) fn until(moment_ms: Option<u64>) {
    sleep(0, moment_ms.unwrap_or(NEVER), || true);
}

/// Wakes those whose moment has come. In the timer's interrupt, on one CPU.
pub(crate) fn tick() {
    let now = sched::now_ms();
    if now < EARLIEST.load(Ordering::Relaxed) {
        return;
    }
    SLEEPERS.with(&KernelCpu, |all| {
        let mut earliest = NEVER;
        for sleeper in all.iter_mut().flatten() {
            if sleeper.until_ms <= now {
                sleeper.until_ms = NEVER;
                // SAFETY: it lives (invariant).
                unsafe { sched::unpark(sleeper.thread) };
            }
            earliest = earliest.min(sleeper.until_ms);
        }
        EARLIEST.store(earliest, Ordering::Relaxed);
    });
}

/// How tasks of this machine sleep. Any context but NMI may wake them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelPark;

impl Park for KernelPark {
    fn park(&self, _context: &dyn AllocContext, queue: &WaitQueue, seen: u32, wait: Wait) {
        let until_ms = wait.timeout_ms.map_or(NEVER, |ms| sched::now_ms().saturating_add(ms.max(1)));
        // Whoever changes the sequence takes the lock afterwards to wake.
        sleep(core::ptr::from_ref(queue).addr(), until_ms, || queue.sequence() == seen);
    }

    fn unpark_all(&self, queue: &WaitQueue) {
        let queue = core::ptr::from_ref(queue).addr();
        SLEEPERS.with(&KernelCpu, |all| {
            for sleeper in all.iter().flatten().filter(|sleeper| sleeper.queue == queue) {
                // SAFETY: it lives (invariant).
                unsafe { sched::unpark(sleeper.thread) };
            }
        });
    }
}
