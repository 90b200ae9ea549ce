//! A charge that met a limit: reclaim in the group, drain, retry, kill, refuse or force (A-05..A-10).
//!
//! ```text
//! over the limit ─▶ MEMALLOC task ───────────────────────────────▶ force
//!                ─▶ in a group OOM, cannot block ────────────────▶ refuse
//!                ─▶ reclaim n pages in the group over its limit
//!                      room now ─────────────────────────────────▶ retry
//!                      stocks not drained yet ─▶ drain ──────────▶ retry
//!                      NORETRY ──────────────────────────────────▶ refuse
//!                      freed something and n <= 8 ───────────────▶ retry
//!                      fewer than 16 fruitless retries ──────────▶ retry
//!                      RETRY_MAYFAIL, killed already and dying ──▶ refuse
//!                ─▶ OOM in the group: progress ─▶ 16 retries anew ▶ retry
//! refuse ─▶ NOFAIL or HIGH: force
//! ```

use kmem_gfp::{AllocContext, Gfp, OomOutcome, Order, PAGE_SIZE, TaskFlags};
use kmem_sync::atomic::Ordering;

use crate::GroupId;
use crate::memcg::table::State;
use crate::memcg::{Event, Memcg, MemcgEnv};

/// Rounds of reclaim without success before the next means (A-06).
pub(crate) const MAX_RETRIES: u32 = 16;

/// A request of at most this many pages is retried as long as reclaim frees anything.
const SMALL_PAGES: u64 = 1 << Order::COSTLY.get();

/// What a charge has tried.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tries {
    retries: u32,
    drained: bool,
    max_raised: bool,
    passed_oom: bool,
}

/// What it does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Retry,
    Refuse,
    Force,
}

/// A task that will not run much longer.
pub(crate) const DYING: TaskFlags = TaskFlags::OOM_VICTIM.union(TaskFlags::EXITING).union(TaskFlags::FATAL_SIGNAL);

impl<E: MemcgEnv> Memcg<E> {
    /// Decides after a charge of `pages` pages has met the limit of `over`.
    #[cold]
    pub(crate) fn under_pressure(&self, state: &State, over: GroupId, gfp: Gfp, pages: u64, tries: &mut Tries) -> Next {
        if !core::mem::replace(&mut tries.max_raised, true) {
            if gfp.allows_spinning() {
                self.record_event(over, Event::Max);
            } else {
                // Nobody may be woken from here.
                self.count_event(over, Event::Max);
            }
        }
        let task = self.env.context().task_flags();
        if task.contains(TaskFlags::MEMALLOC) {
            return Next::Force;
        }
        let refuse = if gfp.intersects(Gfp::NOFAIL.union(Gfp::HIGH)) { Next::Force } else { Next::Refuse };
        if self.env.in_group_oom() || !gfp.allows_blocking() || !task.may_sleep() {
            return refuse;
        }
        let reclaimed = self.env.reclaim(over, pages, gfp);
        if self.margin(state, over) >= pages {
            return Next::Retry;
        }
        if !core::mem::replace(&mut tries.drained, true) {
            state.drain(self.env.cpu());
            return Next::Retry;
        }
        if gfp.contains(Gfp::NORETRY) {
            return refuse;
        }
        if reclaimed > 0 && pages <= SMALL_PAGES {
            return Next::Retry;
        }
        if tries.retries < MAX_RETRIES {
            tries.retries += 1;
            return Next::Retry;
        }
        if gfp.contains(Gfp::RETRY_MAYFAIL) || (tries.passed_oom && task.intersects(DYING)) {
            return refuse;
        }
        if self.group_oom(over, gfp, pages) == OomOutcome::Progress {
            tries.passed_oom = true;
            tries.retries = 0;
            return Next::Retry;
        }
        refuse
    }

    /// Pages that may still be charged to a group before its own limit.
    pub(crate) fn margin(&self, state: &State, group: GroupId) -> u64 {
        state
            .slot(group)
            .map_or(0, |slot| slot.max.load(Ordering::Relaxed).saturating_sub(slot.usage.load(Ordering::Relaxed)))
    }

    /// Has something in the group killed, for requests of at most order 3 (O-15).
    pub(crate) fn group_oom(&self, group: GroupId, gfp: Gfp, pages: u64) -> OomOutcome {
        let size = usize::try_from(pages).ok().and_then(|pages| pages.checked_mul(PAGE_SIZE));
        let order = match size.and_then(Order::for_size) {
            Some(order) if !order.is_costly() => order,
            _ => return OomOutcome::NoVictim,
        };
        self.record_event(group, Event::Oom);
        self.env.out_of_memory(group, gfp, order)
    }
}
