//! [`SchedulerGrace`]: grace periods from the scheduler's quiescent states. Step 3 of a port.
//!
//! A reader is whoever is pinned. So a CPU is *quiescent* when it switches threads, when it has nothing to do, and when the
//! timer finds it running code that is not pinned. It then notes the epoch that it sees. The epoch goes from `e` to `e + 1`
//! once every CPU has noted `e`; what was retired in epoch `e` is out of everybody's reach in `e + 2`.

use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::{Grace, GracePeriod};

use crate::{percpu, sched};

static EPOCH: AtomicU64 = AtomicU64::new(1);

/// Grace periods of this machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SchedulerGrace;

/// Says that no reader runs on this CPU. Interrupts are off, and the interrupted code, if any, was not pinned.
pub(crate) fn quiescent() {
    let now = EPOCH.load(Ordering::Acquire);
    let seen = &percpu::this().seen_epoch;
    if seen.load(Ordering::Relaxed) != now {
        // Release pairs with the acquire in `has_passed`: reads of the sections that are over come before.
        seen.store(now, Ordering::Release);
    }
}

// SAFETY: a section that runs at a snapshot in epoch `e` runs on a pinned CPU. The step to `e + 2` needs that CPU to have
// noted `e + 1`, which did not exist at the snapshot, and it notes nothing while it is pinned. What the caller of
// `snapshot` unlinked before is visible by then: its own CPU has noted `e + 1` later, and x86 makes stores visible in order.
unsafe impl GracePeriod for SchedulerGrace {
    fn snapshot(&self) -> Grace {
        Grace(EPOCH.load(Ordering::Acquire))
    }

    fn has_passed(&self, grace: Grace) -> bool {
        loop {
            let now = EPOCH.load(Ordering::Acquire);
            if now >= grace.0.saturating_add(2) {
                return true;
            }
            let online = || percpu::all().iter().filter(|cpu| cpu.online.load(Ordering::Acquire));
            if online().any(|cpu| cpu.seen_epoch.load(Ordering::Acquire) != now) {
                return false;
            }
            // If somebody else made the step, so much the better.
            let _ = EPOCH.compare_exchange(now, now + 1, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    fn synchronize(&self) {
        let now = self.snapshot();
        while !self.has_passed(now) {
            sched::yield_now();
        }
    }
}
