//! The reaper: takes the memory of a victim that does not get to exiting (O-13).
//!
//! ```text
//! killed ──2 s──▶ attempt ──fails──▶ 100 ms ──▶ attempt ... 10th ──▶ skip mark, whatever came of it
//!                    └──done──▶ skip mark
//! ```
//!
//! A thread of the platform polls it; all state lies in the victims' marks.

use core::ops::ControlFlow;

use kmem_gfp::AllocContext;
use kmem_sync::atomic::Ordering;

use crate::oom::{Candidate, Constraint, Oom, OomEnv, OomScope};

/// Milliseconds from the kill to the first attempt.
pub const REAP_DELAY_MS: u64 = 2000;
/// Milliseconds between two attempts.
pub const REAP_INTERVAL_MS: u64 = 100;
/// Attempts before the reaper gives up.
pub const REAP_ATTEMPTS: u8 = 10;

impl<E: OomEnv> Oom<E> {
    /// Does what is due and returns when to call again, in milliseconds of the context's clock; `None` when there are no
    /// victims to wait for, until the next kill. One thread at a time; may sleep; O(candidates) if there are victims.
    pub fn reap(&self) -> Option<u64> {
        if self.victims.count() == 0 {
            return None;
        }
        let now = self.env.context().now_ms();
        let mut next: Option<u64> = None;
        self.env.for_each(OomScope::Machine(Constraint::None), &mut |candidate| {
            if let Some(at) = self.reap_one(candidate, now) {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
            ControlFlow::Continue(())
        });
        next
    }

    /// Looks after one candidate; returns when to look again.
    fn reap_one(&self, candidate: &Candidate<'_>, now: u64) -> Option<u64> {
        let mark = candidate.mark;
        if !mark.is_pending() {
            return None;
        }
        let due = mark.reap_at_ms.load(Ordering::Relaxed);
        if now < due {
            return Some(due);
        }
        let attempts = mark.attempts.load(Ordering::Relaxed).saturating_add(1);
        mark.attempts.store(attempts, Ordering::Relaxed);
        let reaped = self.env.reap(candidate);
        if reaped || attempts >= REAP_ATTEMPTS {
            let what = if reaped { "reaped" } else { "unable to reap" };
            self.env
                .context()
                .report(format_args!("oom_reaper: {what} process {} ({})", candidate.id.0, candidate.name));
            mark.skip();
            return None;
        }
        let again = now.saturating_add(REAP_INTERVAL_MS);
        mark.reap_at_ms.store(again, Ordering::Relaxed);
        Some(again)
    }
}
