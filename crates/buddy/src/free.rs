//! Freeing beyond the inline path: checks, the per-CPU set at its limit, and the way back into the bitmaps.
//!
//! ```text
//! free_general ─▶ check ─▶ set ─▶ push ─▶ at its limit? ─▶ drain the coldest ─▶ give_back ─▶ lines
//!                     └─ other orders, isolated, no set ─────────────────────────▶ put_checked
//! ```

use kmem_gfp::{AllocContext, FreeError, MigrateType, Order, Pfn, PfnRange};
use kmem_sync::atomic::Ordering;

use crate::arena::{Arena, Span};
use crate::bits::{WORD_ORDER, cover};
use crate::block::Block;
use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::line::{FRAMES, FRAMES_SHIFT};
use crate::pcp::{ZoneSet, bump, is_middle, order_of, stack_index, stacks_from};
use crate::record::Record;
use crate::state::State;
use crate::stats::Event;
use crate::zone::{Zone, flag};

/// Where the pageblocks of one span lie.
struct Place<'s> {
    arena: &'s Arena,
    span: Span,
}

impl<'s> Place<'s> {
    /// The span of the pageblock with this number.
    #[cold]
    fn of(state: &'s State, number: u64) -> Option<Self> {
        let pfn = Pfn(number << FRAMES_SHIFT);
        state.arenas().find_map(|arena| Some(Self { arena, span: *arena.span_of(pfn)? }))
    }

    /// The pageblock with this number, if it is in the span.
    #[inline(always)]
    fn block(&self, number: u64) -> Option<Block<'s>> {
        let ahead = number.wrapping_sub(self.span.first) as usize;
        if ahead < self.span.len { self.arena.block(self.span.index + ahead) } else { None }
    }
}

/// A frame's place in its pageblock.
const fn offset_of(pfn: Pfn) -> u32 {
    (pfn.0 % FRAMES as u64) as u32
}

impl<E: BuddyEnv> Buddy<E> {
    /// A free for which the inline path had no room.
    #[cold]
    #[inline(never)]
    pub(crate) fn free_missed(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        self.free_general(pfn, order)
    }

    /// Every free that the inline path does not take.
    #[inline(never)]
    pub(crate) fn free_general(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let state = self.state().ok_or(FreeError::Foreign(pfn))?;
        let (block, zone) = self.locate(state, pfn, order)?;
        if self.options().check_free {
            self.disown(&block, pfn, order)?;
        }
        if self.options().init_on_free
            && let Some(range) = PfnRange::block(pfn, order)
        {
            // SAFETY: the caller has given the block up.
            unsafe { self.env().zero_frames(range) };
        }
        if stack_index(order, MigrateType::Movable).is_some() && !zone.has_flag(flag::SETS_OFF) {
            let done = self.section(|sets| {
                // Looked at inside the section: whoever isolates the pageblock drains the sets afterwards.
                let stack = stack_index(order, block.record().migratetype())?;
                let set = sets.zone_set(zone)?;
                if set.room(stack) == 0 || (is_middle(stack) && zone.pressed.load(Ordering::Relaxed)) {
                    return None;
                }
                let done = self.free_cached(state, zone, set, stack, pfn);
                // SAFETY: inside the section.
                unsafe { sets.remember(block.arena, pfn) };
                done.then_some(())
            });
            if let Some(Some(())) = done {
                return Ok(());
            }
        }
        self.free_direct(state, zone, &block, pfn, order)
    }

    /// The pageblock and zone of a block of `order`.
    pub(crate) fn locate<'s>(
        &self,
        state: &'s State,
        pfn: Pfn,
        order: Order,
    ) -> Result<(Block<'s>, &'s Zone), FreeError> {
        let block =
            state.block_of(pfn).filter(|block| block.record().has(Record::PRESENT)).ok_or(FreeError::Foreign(pfn))?;
        if !pfn.is_aligned(order) {
            return Err(FreeError::Misaligned { pfn, order });
        }
        if order == Order::MAX && block.neighbour().is_none() {
            return Err(FreeError::Foreign(pfn));
        }
        let zone = block.zone().ok_or(FreeError::Foreign(pfn))?;
        Ok((block, zone))
    }

    /// With `check_free`: the block must be a caller's, of this order, and is so no more.
    fn disown(&self, block: &Block<'_>, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let offset = offset_of(pfn);
        block.check_allocated(offset, order)?;
        let Some(owned) = block.arena.owned.get(block.index) else { return Ok(()) };
        let bit = 1 << (offset % 64);
        if owned.word(offset).fetch_and(!bit, Ordering::AcqRel) & bit == 0 {
            return Err(FreeError::AlreadyFree(pfn));
        }
        Ok(())
    }

    /// Puts a block into this CPU's set, making room first where that is due. `false` if there is no room to be had.
    fn free_cached(&self, state: &State, zone: &Zone, set: &ZoneSet, stack: usize, pfn: Pfn) -> bool {
        let order = order_of(stack);
        if zone.has_flag(flag::BELOW_HIGH) {
            self.recheck_high(zone);
        }
        let (pages, count) = self.pages_to_drain(zone, set, order);
        let pages = u64::from(pages);
        let len = set.len(stack);
        // What stays behind is moved down, so a large stack gives back a part in proportion.
        let part = if len >= set.room(stack) {
            (len / 4).max((len / 2).min(32)).max(1)
        } else if pages > 0 {
            len / 8
        } else {
            0
        };
        let pages = pages.max((part as u64) << order);
        let drained = if pages > 0 { self.drain_pages(state, zone, set, stack, pages) } else { 0 };
        // SAFETY: inside the section of the set's CPU.
        let pushed = unsafe { set.push_any(stack, pfn) };
        self.adjust_limit(zone, set, stack, count.saturating_sub(drained as u32));
        pushed
    }

    /// Clears the below-high mark when the high watermark is met again.
    fn recheck_high(&self, zone: &Zone) {
        let high = zone.watermark(kmem_gfp::Watermark::High);
        if zone.free_pages() > high {
            zone.set_flag(flag::BELOW_HIGH, false);
            self.env().high_mark_restored(zone.node);
        }
    }

    /// Gives `pages` pages of a set back to the bitmaps: the coldest of `first`, then those of the next stacks in turn.
    /// Returns how many left the set.
    pub(crate) fn drain_pages(&self, state: &State, zone: &Zone, set: &ZoneSet, first: usize, pages: u64) -> u64 {
        let mut left = pages;
        let mut total = 0;
        for stack in stacks_from(first) {
            let order = order_of(stack);
            let nr = left.div_ceil(1 << order) as usize;
            if nr == 0 {
                break;
            }
            // SAFETY: the caller is inside the section of the set's CPU, or has revoked it.
            let drained = unsafe {
                set.drain(stack, nr, |entries| {
                    let freed = self.give_back(state, entries, order);
                    self.account(state, zone, freed);
                })
            };
            total += (drained as u64) << order;
            left = left.saturating_sub((drained as u64) << order);
        }
        total
    }

    /// Puts blocks that leave a set back into their lines. Returns how many pages became free.
    fn give_back(&self, state: &State, entries: &mut [u64], order: u32) -> i64 {
        if order > 0 {
            let mut freed = 0;
            for &mut pfn in entries {
                let pfn = Pfn(pfn);
                let (Some(block), Some(order)) = (state.block_of(pfn), Order::new(order)) else { continue };
                match put_checked(&block, pfn, order) {
                    Ok(()) => freed += order.nr_pages() as i64,
                    Err(error) => self.report_bad_free(state, error),
                }
            }
            return freed;
        }
        let mut freed = 0;
        let mut place: Option<Place<'_>> = None;
        let mut rest = &*entries;
        while let [pfn, behind @ ..] = rest {
            rest = behind;
            let word = pfn / 64;
            let mut mask = 1u64 << (pfn % 64);
            let mut nr = 1;
            // Neighbours that were freed one after the other go back together.
            while let [next, behind @ ..] = rest {
                let bit = 1 << (next % 64);
                if next / 64 != word || mask & bit != 0 {
                    break;
                }
                mask |= bit;
                nr += 1;
                rest = behind;
            }
            freed += self.put_run(state, &mut place, word, mask, nr);
        }
        freed
    }

    /// Puts `nr` single frames of one word back. Returns how many.
    #[inline(always)]
    fn put_run<'s>(&self, state: &'s State, place: &mut Option<Place<'s>>, word: u64, mask: u64, nr: i64) -> i64 {
        let number = word >> (FRAMES_SHIFT - WORD_ORDER);
        let block = match place.as_ref().and_then(|place| place.block(number)) {
            Some(block) => block,
            None => {
                *place = Place::of(state, number);
                let Some(block) = place.as_ref().and_then(|place| place.block(number)) else { return 0 };
                block
            }
        };
        let offset = (word * 64 % u64::from(FRAMES)) as u32;
        let record = block.record();
        if record.0 & (Record::TAILS | Record::GAPS) == 0 && block.put_bits(offset, mask).is_ok() {
            return nr;
        }
        self.put_each(state, block, offset, mask)
    }

    /// The careful form: frame by frame, each checked.
    #[cold]
    #[inline(never)]
    fn put_each(&self, state: &State, block: Block<'_>, offset: u32, mask: u64) -> i64 {
        // Most often the pageblock merely has tails or gaps somewhere else.
        let tails = block.tail_line().word(offset).load(Ordering::Acquire);
        let next = if offset + 64 < FRAMES { u64::from(block.tail_line().is_set(offset + 64)) << 63 } else { 0 };
        let gaps = if block.record().has(Record::GAPS) {
            block.gap().map_or(0, |gap| gap.line.word(offset).load(Ordering::Acquire))
        } else {
            0
        };
        if (tails | (tails >> 1 | next) | gaps) & mask == 0 && block.put_bits(offset, mask).is_ok() {
            return i64::from(mask.count_ones());
        }
        let mut freed = 0;
        let mut left = mask;
        while left != 0 {
            let at = offset + left.trailing_zeros();
            left &= left - 1;
            let pfn = Pfn(block.first_frame().0 + u64::from(at));
            match put_checked(&block, pfn, Order::ZERO) {
                Ok(()) => freed += 1,
                Err(error) => self.report_bad_free(state, error),
            }
        }
        freed
    }

    fn report_bad_free(&self, state: &State, error: FreeError) {
        state.count(Event::BadFree);
        self.env().context().report(format_args!("BUG: bad page state on free: {error}; the page is not reused"));
    }

    /// Puts a block straight into its lines.
    fn free_direct(
        &self,
        state: &State,
        zone: &Zone,
        block: &Block<'_>,
        pfn: Pfn,
        order: Order,
    ) -> Result<(), FreeError> {
        put_checked(block, pfn, order)?;
        self.account(state, zone, order.nr_pages() as i64);
        if zone.has_flag(flag::BELOW_HIGH) {
            self.recheck_high(zone);
        }
        self.count_freed(zone, order.nr_pages() as u64);
        Ok(())
    }

    /// Counts pages that were freed past the sets.
    pub(crate) fn count_freed(&self, zone: &Zone, pages: u64) {
        let counted = self.section(|sets| {
            let set = sets.zone_set(zone)?;
            set.freed_pages.add(pages as i64);
            Some(())
        });
        if counted.flatten().is_none() {
            bump(None, &zone.freed_pages, pages);
        }
    }
}

/// Checks that a block is allocated with exactly this order and makes it free.
pub(crate) fn put_checked(block: &Block<'_>, pfn: Pfn, order: Order) -> Result<(), FreeError> {
    let offset = offset_of(pfn);
    block.check_allocated(offset, order)?;
    if order == Order::MAX {
        let other = block.neighbour().ok_or(FreeError::Foreign(pfn))?;
        other.tail_line().assign(0, FRAMES, false);
        put_half(&other, 0, FRAMES_SHIFT)?;
        block.tail_line().assign(0, FRAMES, false);
        return put_half(block, 0, FRAMES_SHIFT);
    }
    if order > Order::ZERO {
        clear_tails(block, offset, order.get());
    }
    put_half(block, offset, order.get())
}

fn put_half(block: &Block<'_>, offset: u32, order: u32) -> Result<(), FreeError> {
    block
        .put(offset, order)
        .map_err(|occupied| FreeError::AlreadyFree(Pfn(block.first_frame().0 + u64::from(occupied.offset))))
}

/// Forgets that a block's frames belong together.
pub(crate) fn clear_tails(block: &Block<'_>, offset: u32, order: u32) {
    if order < 6 {
        let mask = cover(1 << (offset % 64), order) & !(1 << (offset % 64));
        block.tail_line().word(offset).fetch_and(!mask, Ordering::AcqRel);
    } else {
        block.tail_line().assign(offset + 1, (1 << order.min(FRAMES_SHIFT)) - 1, false);
    }
}
