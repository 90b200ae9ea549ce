//! The settings of a group: max, high, min, low, swappiness, and what follows when they are changed or passed.
//!
//! ```text
//! max   set ─▶ usage above? reclaim, up to 16 fruitless rounds ─▶ kill in the group ─▶ fits, or nothing killable
//! high  passed ─▶ backlog of the task ─▶ on its way out (at once above 64 pages): reclaim, then sleep
//! ```

use kmem_gfp::{AllocContext, Gfp, OomOutcome, TaskFlags};
use kmem_sync::atomic::{AtomicU64, Ordering, fence_after_rmw};

use crate::GroupId;
use crate::memcg::pressure::{DYING, MAX_RETRIES};
use crate::memcg::slot::Slot;
use crate::memcg::stock::BATCH;
use crate::memcg::table::State;
use crate::memcg::throttle::{overage, ticks_of};
use crate::memcg::{Event, GroupError, Memcg, MemcgEnv, PAGES_MAX};

/// Whether a new limit is enforced before the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Reclaim, and for `memory.max` kill, until the usage fits.
    MayBlock,
    /// Set the limit only (`O_NONBLOCK`); charges will do the rest.
    No,
}

/// What came of a new limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitChange {
    /// The limit now in force, in pages.
    pub limit: u64,
    /// The group's usage when the call returned, in pages.
    pub usage: u64,
}

impl LimitChange {
    /// Whether the usage was within the limit. For `memory.max` no charge that is not forced can exceed it after that.
    pub fn fits(&self) -> bool {
        self.usage <= self.limit
    }
}

/// Pages that a retry over the high limit reclaims.
const RETRY_PAGES: u64 = 32;

impl<E: MemcgEnv> Memcg<E> {
    /// The place of a group that can be configured.
    fn configurable(&self, group: GroupId) -> Result<(&State, &Slot), GroupError> {
        let state = self.state().ok_or(GroupError::NotReady)?;
        if group == GroupId::ROOT {
            return Err(GroupError::IsRoot);
        }
        Ok((state, state.online(group).ok_or(GroupError::NoSuchGroup(group))?))
    }

    /// Sets `memory.max`, in pages (A-13). With [`Wait::MayBlock`] sleeps, interrupts on.
    ///
    /// # Errors
    /// [`GroupError::IsRoot`], [`GroupError::NoSuchGroup`], [`GroupError::NotReady`].
    pub fn set_max(&self, group: GroupId, pages: u64, wait: Wait) -> Result<LimitChange, GroupError> {
        let (state, slot) = self.configurable(group)?;
        slot.max.swap(pages, Ordering::AcqRel);
        // Pairs with the fence in `Slot::add`: a charge that has not seen the new limit is seen here.
        fence_after_rmw();
        let usage = || slot.usage.load(Ordering::Acquire);
        let change = || LimitChange { limit: pages, usage: usage() };
        if wait == Wait::No {
            return Ok(change());
        }
        let (mut drained, mut retries) = (false, MAX_RETRIES);
        while slot.max.load(Ordering::Relaxed) == pages {
            let over = usage().saturating_sub(pages);
            if over == 0 || self.env.context().task_flags().contains(TaskFlags::FATAL_SIGNAL) {
                break;
            }
            if !core::mem::replace(&mut drained, true) {
                state.drain(self.env.cpu());
            } else if retries > 0 {
                if self.env.reclaim(group, over, Gfp::KERNEL) == 0 {
                    retries -= 1;
                }
            } else {
                // What a victim gives up may go to stocks.
                if self.group_oom(group, Gfp::KERNEL, 1) == OomOutcome::NoVictim {
                    break;
                }
                drained = false;
            }
        }
        Ok(change())
    }

    /// Sets `memory.high`, in pages (A-14). With [`Wait::MayBlock`] reclaims down to it, up to 16 fruitless rounds, and may
    /// sleep.
    ///
    /// # Errors
    /// As [`set_max`](Self::set_max).
    pub fn set_high(&self, group: GroupId, pages: u64, wait: Wait) -> Result<LimitChange, GroupError> {
        let (state, slot) = self.configurable(group)?;
        slot.high.store(pages, Ordering::Relaxed);
        let change = || LimitChange { limit: pages, usage: slot.usage.load(Ordering::Acquire) };
        if wait == Wait::No {
            return Ok(change());
        }
        let (mut drained, mut retries) = (false, MAX_RETRIES);
        while slot.high.load(Ordering::Relaxed) == pages {
            let over = change().usage.saturating_sub(pages);
            if over == 0 || self.env.context().task_flags().contains(TaskFlags::FATAL_SIGNAL) {
                break;
            }
            if !core::mem::replace(&mut drained, true) {
                state.drain(self.env.cpu());
            } else if self.env.reclaim(group, over, Gfp::KERNEL) == 0 {
                if retries == 0 {
                    break;
                }
                retries -= 1;
            }
        }
        Ok(change())
    }

    /// Sets `memory.min`, in pages: never reclaimed below it (A-16). Any context.
    ///
    /// # Errors
    /// As [`set_max`](Self::set_max).
    pub fn set_min(&self, group: GroupId, pages: u64) -> Result<(), GroupError> {
        self.set_protection(group, pages, |slot| &slot.min)
    }

    /// Sets `memory.low`, in pages: not reclaimed below it while others have something (A-16). Any context.
    ///
    /// # Errors
    /// As [`set_max`](Self::set_max).
    pub fn set_low(&self, group: GroupId, pages: u64) -> Result<(), GroupError> {
        self.set_protection(group, pages, |slot| &slot.low)
    }

    fn set_protection(&self, group: GroupId, pages: u64, setting: fn(&Slot) -> &AtomicU64) -> Result<(), GroupError> {
        let (state, slot) = self.configurable(group)?;
        setting(slot).store(pages, Ordering::Relaxed);
        state.tell(group, slot.usage.load(Ordering::Relaxed));
        Ok(())
    }

    /// Sets the group's swappiness, 0 to 200; `None` for the machine's. Any context.
    ///
    /// # Errors
    /// As [`set_max`](Self::set_max); [`GroupError::BadSwappiness`].
    pub fn set_swappiness(&self, group: GroupId, value: Option<u8>) -> Result<(), GroupError> {
        let (_, slot) = self.configurable(group)?;
        if let Some(bad) = value.filter(|&value| value > 200) {
            return Err(GroupError::BadSwappiness(bad));
        }
        slot.swappiness.store(value.map_or(u32::MAX, u32::from), Ordering::Relaxed);
        Ok(())
    }

    /// Sets `memory.oom.group`: a victim in the group means that all of it is killed (O-12). Any context.
    ///
    /// # Errors
    /// As [`set_max`](Self::set_max).
    pub fn set_oom_group(&self, group: GroupId, whole: bool) -> Result<(), GroupError> {
        self.configurable(group)?.1.oom_group.store(whole, Ordering::Relaxed);
        Ok(())
    }

    /// The topmost group from `victim` up to `domain` that is killed as a whole, if any. Any context; O(depth).
    pub fn oom_group(&self, victim: GroupId, domain: GroupId) -> Option<GroupId> {
        let state = self.state()?;
        let mut found = None;
        for (at, slot) in state.up_from(victim) {
            if at != GroupId::ROOT && slot.oom_group.load(Ordering::Relaxed) {
                found = Some(at);
            }
            if at == domain {
                break;
            }
        }
        found
    }

    /// After a successful charge of `batch` pages: the lowest level above its high limit takes note.
    pub(crate) fn look_at_high(&self, state: &State, charged: GroupId, gfp: Gfp, batch: u64) {
        let above = |slot: &Slot| slot.usage.load(Ordering::Relaxed) > slot.high.load(Ordering::Relaxed);
        let Some((over, _)) = state.levels_from(charged).find(|&(_, slot)| above(slot)) else { return };
        let task = self.env.context().task_flags();
        if !task.in_task() {
            self.env.defer_high(over);
            return;
        }
        let backlog = self.env.add_backlog(batch);
        if backlog > BATCH && gfp.allows_blocking() && task.may_sleep() && !task.contains(TaskFlags::MEMALLOC) {
            self.handle_over_high(charged, gfp);
        }
    }

    /// What a task owes that has charged `group` above a high limit: reclaims its backlog from every level that is above,
    /// then sleeps (A-14, A-15). The platform calls it before the task returns to user space. May sleep.
    pub fn handle_over_high(&self, group: GroupId, gfp: Gfp) {
        let Some(state) = self.state() else { return };
        let backlog = self.env.take_backlog();
        if backlog == 0 {
            return;
        }
        let (mut pages, mut retries) = (backlog, MAX_RETRIES);
        loop {
            if self.env.context().task_flags().intersects(DYING) {
                return;
            }
            let reclaimed = self.reclaim_high(group, pages, gfp);
            let worst = state
                .levels_from(group)
                .map(|(_, slot)| overage(slot.usage.load(Ordering::Relaxed), slot.high.load(Ordering::Relaxed)));
            let ms = ticks_of(worst.max().unwrap_or(0), backlog, 1000);
            if ms == 0 {
                return;
            }
            if reclaimed > 0 || retries > 0 {
                retries -= u32::from(reclaimed == 0);
                pages = RETRY_PAGES;
                continue;
            }
            self.env.sleep_ms(ms);
            return;
        }
    }

    /// Reclaims about `pages` pages in every level from `group` up that is above its high limit, each with an event. Returns
    /// how many were freed. May sleep.
    pub fn reclaim_high(&self, group: GroupId, pages: u64, gfp: Gfp) -> u64 {
        let Some(state) = self.state() else { return 0 };
        let mut reclaimed: u64 = 0;
        for (at, slot) in state.levels_from(group) {
            if slot.usage.load(Ordering::Relaxed) <= slot.high.load(Ordering::Relaxed) {
                continue;
            }
            self.record_event(at, Event::High);
            reclaimed = reclaimed.saturating_add(self.env.reclaim(at, pages, gfp));
        }
        reclaimed
    }

    /// `memory.max`, in pages; [`PAGES_MAX`] for none. Any context.
    pub fn max(&self, group: GroupId) -> u64 {
        self.setting(group, |slot| &slot.max).unwrap_or(PAGES_MAX)
    }

    /// `memory.high`, in pages; [`PAGES_MAX`] for none. Any context.
    pub fn high(&self, group: GroupId) -> u64 {
        self.setting(group, |slot| &slot.high).unwrap_or(PAGES_MAX)
    }

    /// `memory.min`, in pages. Any context.
    pub fn min(&self, group: GroupId) -> u64 {
        self.setting(group, |slot| &slot.min).unwrap_or(0)
    }

    /// `memory.low`, in pages. Any context.
    pub fn low(&self, group: GroupId) -> u64 {
        self.setting(group, |slot| &slot.low).unwrap_or(0)
    }

    fn setting(&self, group: GroupId, field: fn(&Slot) -> &AtomicU64) -> Option<u64> {
        Some(field(self.state()?.online(group)?).load(Ordering::Relaxed))
    }
}
