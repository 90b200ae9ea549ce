//! How large the per-CPU sets grow: refill amounts, drain amounts, limits.
//!
//! `high` moves between `high_min` and `high_max`: up by a batch at each refill, down under pressure and on the tick. What
//! the kernel adapts at every allocation and free is adapted here when a stack runs empty or reaches its limit, so that
//! the fast paths carry none of it. The pure rules come first.

use kmem_sync::Cpu;
use kmem_sync::atomic::{AtomicU32, Ordering};

use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::pcp::{STACKS, ZoneSet, order_of};
use crate::zone::{Zone, flag};

/// `free_count` and drains are capped at this many batches (`CONFIG_PCP_BATCH_SCALE_MAX` = 5).
pub(crate) const BATCH_SCALE: u32 = 5;

/// How many blocks of `order` a refill moves in, and by how many pages `high` grows for it (the scaled batch), given the
/// growth factor so far; and the next factor.
pub(crate) fn refill(order: u32, batch: u32, high: u32, count: u32, factor: u32, scale_max: u32) -> (u32, u32) {
    if high < batch {
        return (1, factor);
    }
    if order > 0 {
        return ((batch >> order).max(2), factor);
    }
    let most = high.saturating_sub(count).saturating_sub(batch).max(batch);
    let nr = (batch << factor.min(scale_max)).min(most);
    let grown = batch << (factor + 1).min(scale_max);
    (nr.max(1), if grown <= most { (factor + 1).min(scale_max) } else { factor })
}

/// How many pages a set gives back when it has reached its limit.
pub(crate) fn drain_amount(free_count: u32, batch: u32, high: u32) -> u32 {
    between(free_count, batch, high.saturating_sub(batch))
}

/// What the tick leaves of `high`.
pub(crate) fn decayed(high: u32, count: u32, batch: u32, high_min: u32) -> u32 {
    count.saturating_sub(batch << BATCH_SCALE).max(high - high / 8).max(high_min)
}

/// `pages` between two limits, the lower of which wins.
pub(crate) fn between(pages: u32, min: u32, max: u32) -> u32 {
    pages.min(max).max(min)
}

fn get(value: &AtomicU32) -> u32 {
    value.load(Ordering::Relaxed)
}

fn set_to(value: &AtomicU32, to: u32) {
    value.store(to, Ordering::Relaxed);
}

impl<E: BuddyEnv> Buddy<E> {
    /// How many blocks to move into an empty stack, and the pages in the set before that. Raises `high`.
    pub(crate) fn refill_amount(&self, zone: &Zone, set: &ZoneSet, stack: usize) -> (u32, u32) {
        let batch = get(&set.batch);
        let high = get(&set.high);
        let count = set.pages() as u32;
        let factor = get(&set.alloc_factor);
        let order = order_of(stack);
        let scale_max = self.options().pcp_batch_scale_max.min(6);
        let (nr, next) = refill(order, batch, high, count, factor, scale_max);
        set_to(&set.alloc_factor, next);
        let (min, max) = (get(&set.high_min), get(&set.high_max));
        if min != max && !zone.has_flag(flag::BELOW_HIGH) {
            let step = if order == 0 { nr.max(batch) } else { batch };
            set_to(&set.high, between(high + step, min, max));
        } else if high < min {
            set_to(&set.high, min);
        }
        let nr = match order {
            // The bitmaps give a word at a time: where a whole one fits, none of it is left over.
            0 if nr > 32 => nr.next_multiple_of(64),
            // Half of the room, so that as many frees as requests follow before the bitmaps are needed again; within the limit.
            4.. => nr.max((set.room(stack) as u32 / 2).min(get(&set.high).saturating_sub(count) >> order)),
            _ => nr,
        };
        (nr, count)
    }

    /// Callers have been taking: frees were not what filled the set.
    pub(crate) fn after_refill(&self, zone: &Zone, set: &ZoneSet, stack: usize, before: u32) {
        set_to(&set.free_count, 0);
        self.adjust_limit(zone, set, stack, before + ((set.len(stack) as u32) << order_of(stack)));
    }

    /// Lets the fast path push to a stack as long as the set, which holds `count` pages, stays below its limit.
    pub(crate) fn adjust_limit(&self, zone: &Zone, set: &ZoneSet, stack: usize, count: u32) {
        if zone.pressed.load(Ordering::Relaxed) || !self.options().allows_fast_path() || zone.has_flag(flag::SETS_OFF) {
            set.close_frees();
            return;
        }
        let more = get(&set.high).saturating_sub(count).max(get(&set.batch)) >> order_of(stack);
        set.set_limit(stack, set.len(stack) + (more as usize).max(1));
    }

    /// A caller frees `1 << order` pages to a set that has come to its limit. Returns how many pages to give back, and the pages in the set with these.
    pub(crate) fn pages_to_drain(&self, zone: &Zone, set: &ZoneSet, order: u32) -> (u32, u32) {
        let batch = get(&set.batch);
        let (min, max) = (get(&set.high_min), get(&set.high_max));
        let mut high = get(&set.high);
        let count = set.pages() as u32 + (1 << order);
        let cap = batch << BATCH_SCALE;
        set_to(&set.alloc_factor, get(&set.alloc_factor) >> 1);
        let free_count = (get(&set.free_count) + batch.max(1 << order)).min(cap.max(batch));
        set_to(&set.free_count, free_count);

        let high_order = (1..=3).contains(&order);
        let again = get(&set.freed_high_order) != 0;
        set_to(&set.freed_high_order, u32::from(high_order));
        if high == 0 {
            return (count, count);
        }
        if high_order && again && free_count >= batch + min / 2 && (!self.has_big_cache(set) || count >= batch) {
            // One CPU allocates what this one frees: keep less.
            set_to(&set.high, high.saturating_sub(cap).max(min));
            return (cap.min(count), count);
        }
        let below_high = zone.has_flag(flag::BELOW_HIGH);
        let reclaiming = self.env().background_running(zone.node);
        let limit = if min == max {
            high
        } else if reclaiming || below_high {
            high = high.saturating_sub(free_count.max(batch)).max(min);
            set_to(&set.high, high);
            if reclaiming { high.min(batch << 2) } else { count.max(min) }
        } else {
            if count >= high && high < free_count + batch {
                high = between(free_count + batch, min, max);
                set_to(&set.high, high);
            }
            high
        };
        (if count >= limit { drain_amount(free_count, batch, high) } else { 0 }, count)
    }

    fn has_big_cache(&self, set: &ZoneSet) -> bool {
        let slice = match self.env().cpu().try_pin() {
            Some(cpu) => {
                let pages = self.env().cache_slice_pages(cpu);
                // SAFETY: pinned just above.
                unsafe { self.env().cpu().unpin(cpu) };
                pages
            }
            None => 0,
        };
        slice > 3 * u64::from(get(&set.batch))
    }

    /// The statistics tick of one CPU: sets that have grown shrink again, sets of other nodes expire.
    pub fn decay_page_sets(&self) {
        let Some(state) = self.state() else { return };
        self.section(|sets| {
            for zone in state.zones.iter() {
                let Some(set) = sets.zone_set(zone) else { continue };
                let count = set.pages() as u32;
                let (batch, min) = (get(&set.batch), get(&set.high_min));
                let high = get(&set.high);
                if high > min {
                    set_to(&set.high, decayed(high, count, batch, min));
                    if count > get(&set.high) {
                        self.drain_pages(
                            state,
                            zone,
                            set,
                            0,
                            u64::from((count - get(&set.high)).min(batch << BATCH_SCALE)),
                        );
                    }
                }
                let left = set.pages() as u32;
                for stack in 0..STACKS {
                    self.adjust_limit(zone, set, stack, left);
                }
                if zone.node != sets.node && count > 0 && set.expires() {
                    self.drain_pages(state, zone, set, 0, u64::from(count));
                }
            }
        });
    }
}
