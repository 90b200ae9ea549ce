//! Taking blocks out of a zone's bitmaps, in the order of the rules.
//!
//! ```text
//! 0  CMA pageblocks, if allowed and more than half of what is free lies there
//! 1  pageblocks of the request's type, those with the smallest sufficient free block first
//! 2  CMA pageblocks, if allowed
//! 3  claim a pageblock of another type, the one with the largest free block, and go back to 1
//! 4  steal a block from another type's pageblock, out of the smallest that fits; unless NOFRAGMENT
//! ```
//! No lock: a search follows hints and claims at the line. While a batch is collected the step that worked is remembered.

use kmem_gfp::alloc_flags::AllocFlags;
use kmem_gfp::{MigrateType, Pfn, Watermark};
use kmem_sync::atomic::{Ordering, fence_after_rmw};

use crate::block::Block;
use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::hints::Hints;
use crate::line::FRAMES;
use crate::state::State;
use crate::stats::Event;
use crate::watermark;
use crate::zone::{Zone, flag, pairs, singles};

/// Blocks wanted from a zone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) migratetype: MigrateType,
    pub(crate) order: u32,
    /// How many blocks at most.
    pub(crate) nr: u32,
    pub(crate) flags: AllocFlags,
    /// Which CPU asks, and of how many: each opens fresh pageblocks elsewhere.
    pub(crate) part: (usize, usize),
}

/// Where a type looks when its own pageblocks have nothing.
pub(crate) const fn fallbacks(migratetype: MigrateType) -> [MigrateType; 2] {
    match migratetype {
        MigrateType::Movable => [MigrateType::Reclaimable, MigrateType::Unmovable],
        MigrateType::Reclaimable => [MigrateType::Unmovable, MigrateType::Movable],
        _ => [MigrateType::Reclaimable, MigrateType::Movable],
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Own,
    Cma,
    Steal,
}

impl<E: BuddyEnv> Buddy<E> {
    /// Takes up to `want.nr` blocks, handing each to `taken`, and accounts them. Returns how many.
    ///
    /// A pageblock whose largest block changes while we search moves from one list to another, perhaps behind us. So a
    /// search that found nothing although there are pages enough is made again, twice.
    pub(crate) fn take(&self, state: &State, zone: &Zone, want: &Want, mut taken: impl FnMut(Pfn)) -> u32 {
        for _ in 0..3 {
            let got = self.search(state, zone, want, &mut taken);
            if got > 0 {
                self.account(state, zone, -(i64::from(got) << want.order));
                return got;
            }
            if zone.free.load(Ordering::Relaxed) < 1 << want.order {
                break;
            }
        }
        0
    }

    fn search(&self, state: &State, zone: &Zone, want: &Want, taken: &mut impl FnMut(Pfn)) -> u32 {
        let mut got = 0;
        if want.flags.contains(AllocFlags::HIGHATOMIC) {
            got += take_of(zone, MigrateType::HighAtomic, want, want.nr, taken);
        }
        let mut mode = Mode::Own;
        while got < want.nr {
            let left = want.nr - got;
            if mode == Mode::Own {
                let mut nr = 0;
                if want.flags.contains(AllocFlags::CMA) && zone.free_of(MigrateType::Cma) > zone.free_pages() / 2 {
                    nr = take_of(zone, MigrateType::Cma, want, 1, taken);
                }
                if nr == 0 {
                    nr = take_of(zone, want.migratetype, want, left, taken);
                }
                if nr > 0 {
                    got += nr;
                    continue;
                }
            }
            if mode <= Mode::Cma && want.flags.contains(AllocFlags::CMA) {
                let nr = take_of(zone, MigrateType::Cma, want, left, taken);
                if nr > 0 {
                    mode = Mode::Cma;
                    got += nr;
                    continue;
                }
            }
            if mode <= Mode::Cma && self.claim(state, zone, want) {
                mode = Mode::Own;
                continue;
            }
            if !want.flags.contains(AllocFlags::NOFRAGMENT) && steal(state, zone, want, taken) {
                mode = Mode::Steal;
                got += 1;
                continue;
            }
            break;
        }
        if got == 0 && want.flags.intersects(AllocFlags::OOM.union(AllocFlags::NON_BLOCK)) {
            got += take_of(zone, MigrateType::HighAtomic, want, 1, taken);
        }
        got
    }

    /// Takes a whole pageblock over for the request's type; `true` if one was, so that it is worth looking again.
    fn claim(&self, state: &State, zone: &Zone, want: &Want) -> bool {
        let grouping = state.grouping.load(Ordering::Relaxed);
        let least = if want.flags.contains(AllocFlags::NOFRAGMENT) && want.order < 9 { 9 } else { want.order };
        for order in (least..=10).rev() {
            let Some((block, from)) = fallbacks(want.migratetype)
                .into_iter()
                .find_map(|from| candidate(zone, from, order, want.part).map(|block| (block, from)))
            else {
                continue;
            };
            if order >= 9 {
                if order == 10
                    && let Some(other) = block.neighbour()
                {
                    other.change_type(from, want.migratetype);
                }
                // Lost to somebody else: look again.
                if block.change_type(from, want.migratetype) {
                    state.count(Event::PageblockClaimed);
                }
                return true;
            }
            let willing = order >= 4 || want.migratetype != MigrateType::Movable || !grouping;
            if !willing {
                return false;
            }
            self.boost(state, zone, want.flags);
            if self.is_worth_claiming(&block, from, want.migratetype, grouping)
                && block.change_type(from, want.migratetype)
            {
                state.count(Event::PageblockClaimed);
                return true;
            }
        }
        false
    }

    /// Whether half of a pageblock is free or of the request's kind.
    fn is_worth_claiming(&self, block: &Block<'_>, from: MigrateType, to: MigrateType, grouping: bool) -> bool {
        let free = u64::from(block.free_line().count());
        let used = u64::from(FRAMES).saturating_sub(free);
        let movable = self
            .env()
            .movable_pages(block.range())
            .unwrap_or(if from == MigrateType::Movable { used } else { 0 })
            .min(used);
        let alike = match (to, from) {
            (MigrateType::Movable, _) => movable,
            (_, MigrateType::Movable) => used - movable,
            _ => 0,
        };
        free + alike >= u64::from(FRAMES / 2) || !grouping
    }

    /// Raises the watermarks for a while: types are about to mix, so background reclaim should free more.
    fn boost(&self, state: &State, zone: &Zone, flags: AllocFlags) {
        let factor = state.tunables.watermark_boost_factor.load(Ordering::Relaxed);
        let high = zone.mark(Watermark::High);
        if factor == 0 || zone.managed_pages() < 4 * u64::from(FRAMES) || high == 0 {
            return;
        }
        zone.boost.store(watermark::boosted(zone.boost_pages(), high, factor), Ordering::Relaxed);
        state.count(Event::WatermarkBoost);
        state.compute_comfort(zone);
        self.settle(state, zone);
        if flags.contains(AllocFlags::KSWAPD) {
            zone.set_flag(flag::BOOSTED, true);
        }
    }

    /// Changes the count of free pages, and opens or closes the per-CPU sets where that crosses the comfort level.
    #[inline]
    pub(crate) fn account(&self, state: &State, zone: &Zone, pages: i64) {
        let free = zone.free.fetch_add(pages, Ordering::SeqCst) + pages;
        fence_after_rmw();
        if self.should_press(zone, free) != zone.pressed.load(Ordering::SeqCst) {
            self.settle(state, zone);
        }
    }

    #[inline]
    fn should_press(&self, zone: &Zone, free: i64) -> bool {
        let comfort = zone.comfort.load(Ordering::Relaxed);
        // A little more to open again than to close.
        let slack = if zone.pressed.load(Ordering::SeqCst) { comfort / 16 } else { 0 };
        free <= comfort + slack
    }

    /// Opens the sets of a zone to the fast paths if nothing else speaks against it, or closes them. Under the gate.
    fn set_open(&self, state: &State, zone: &Zone, open: bool) {
        let open = open
            && self.options().allows_fast_path()
            && !zone.has_flag(flag::SETS_OFF)
            && !state.injecting.load(Ordering::Relaxed);
        for set in state.sets_of(zone) {
            set.set_open(open);
        }
    }

    /// Says that a fault injector is armed from now on, or no more, that the fast paths do not ask
    /// ([`BuddyEnv::INJECTS_ANYWHERE`]): while it is, the per-CPU sets are closed to them. Requests on other CPUs that
    /// have begun may still get by. Not inside interrupts.
    pub fn set_injecting(&self, injecting: bool) {
        let Some(state) = self.state() else { return };
        state.injecting.store(injecting, Ordering::Relaxed);
        for zone in state.zones.iter() {
            zone.gate.with(self.env().cpu(), |drains| {
                self.set_open(state, zone, !zone.pressed.load(Ordering::SeqCst) && *drains == 0);
            });
            self.settle(state, zone);
        }
    }

    /// Opens or closes the sets of a zone to the fast paths, as its free pages demand.
    #[cold]
    #[inline(never)]
    pub(crate) fn settle(&self, state: &State, zone: &Zone) {
        loop {
            let pressed = |zone: &Zone| self.should_press(zone, zone.free.load(Ordering::SeqCst));
            let done = zone.gate.try_with(|drains| {
                let close = pressed(zone);
                zone.pressed.swap(close, Ordering::SeqCst);
                self.set_open(state, zone, !close && *drains == 0);
            });
            fence_after_rmw();
            // Whoever holds the gate looks once more when it is done.
            if done.is_none() || pressed(zone) == zone.pressed.load(Ordering::SeqCst) {
                return;
            }
        }
    }
}

/// Takes up to `nr` blocks from pageblocks of one type.
fn take_of(zone: &Zone, migratetype: MigrateType, want: &Want, nr: u32, taken: &mut impl FnMut(Pfn)) -> u32 {
    if want.order > 9 {
        return take_pairs(zone, migratetype, want, nr, taken);
    }
    let mut got = 0;
    for filed in want.order..9 {
        got += take_filed(zone, migratetype, want, filed, (0, 1), nr - got, |word| word, taken);
        if got >= nr {
            return got;
        }
    }
    // Whole pageblocks: those whose neighbour is in use first. Each CPU opens them in its own part.
    got += take_filed(zone, migratetype, want, 9, want.part, nr - got, singles, taken);
    if got < nr {
        got += take_filed(zone, migratetype, want, 9, want.part, nr - got, |word| word, taken);
    }
    got
}

/// Takes up to `nr` blocks from the pageblocks of one list.
#[allow(clippy::too_many_arguments, reason = "what to take, where to look, whom to give it to")]
#[inline(always)]
fn take_filed(
    zone: &Zone,
    migratetype: MigrateType,
    want: &Want,
    filed: u32,
    part: (usize, usize),
    nr: u32,
    filter: impl Fn(u64) -> u64 + Copy,
    taken: &mut impl FnMut(Pfn),
) -> u32 {
    let list = Hints::list(migratetype.index(), filed);
    let mut got = 0;
    zone.each_filed(list, part, filter, |block| {
        let here = block.take(migratetype, want.order, nr - got, &mut *taken);
        if here > 0 {
            block.refile();
            if !migratetype.is_mergeable() {
                block.recount();
            }
        } else {
            block.drop_hint(list);
        }
        got += here;
        got < nr
    });
    got
}

/// Takes up to `nr` blocks of order 10.
fn take_pairs(zone: &Zone, migratetype: MigrateType, want: &Want, nr: u32, taken: &mut impl FnMut(Pfn)) -> u32 {
    let list = Hints::list(migratetype.index(), 9);
    let mut got = 0;
    zone.each_filed(list, want.part, pairs, |block| {
        if let Some(other) = block.neighbour()
            && other.record().migratetype() == migratetype
            && block.take_pair(&other)
        {
            // As after every claim: they may have been isolated, or turned into another type, meanwhile.
            if !block.still_serves(migratetype) || !other.still_serves(migratetype) {
                for half in [block, &other] {
                    half.tail_line().assign(0, 512, false);
                    half.untake(0, 9);
                }
                return true;
            }
            taken(block.first_frame());
            got += 1;
            for half in [block, &other] {
                half.refile();
                if !migratetype.is_mergeable() {
                    half.recount();
                }
            }
        }
        got < nr
    });
    got
}

/// A pageblock of type `from` whose largest free block has exactly this order (10: a pair).
fn candidate(zone: &Zone, from: MigrateType, order: u32, part: (usize, usize)) -> Option<Block<'_>> {
    let list = Hints::list(from.index(), order.min(9));
    let filter: fn(u64) -> u64 = if order == 10 { pairs } else { |word| word };
    let part = if order >= 9 { part } else { (0, 1) };
    let mut found = None;
    zone.each_filed(list, part, filter, |block| {
        block.drop_hint(list);
        let holds =
            |block: &Block<'_>| block.record().migratetype() == from && block.record().filed() == order.min(9) + 1;
        if holds(block) && (order < 10 || block.neighbour().is_some_and(|other| holds(&other))) {
            found = Some(*block);
        }
        found.is_none()
    });
    found
}

/// Takes one block out of the smallest fitting free block of a fallback type.
fn steal(state: &State, zone: &Zone, want: &Want, taken: &mut impl FnMut(Pfn)) -> bool {
    let mut done = false;
    for filed in want.order..10 {
        for from in fallbacks(want.migratetype) {
            let list = Hints::list(from.index(), filed);
            zone.each_filed(
                list,
                (0, 1),
                |word| word,
                |block| {
                    if block.take(want.migratetype, want.order, 1, &mut *taken) > 0 {
                        block.refile();
                        done = true;
                    } else {
                        block.drop_hint(list);
                    }
                    !done
                },
            );
            if done {
                state.count(Event::PageblockStolen);
                return true;
            }
        }
    }
    false
}
