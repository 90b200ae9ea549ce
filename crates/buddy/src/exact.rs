//! Any number of pages, a given address, and freeing by parts.

use kmem_gfp::{AllocError, FreeError, Gfp, MigrateType, NodeId, Order, PAGE_SIZE, Pfn, PfnRange};
use kmem_sync::atomic::Ordering;

use crate::block::Block;
use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::line::{FRAMES, FRAMES_SHIFT};
use crate::record::Record;
use crate::state::State;
use crate::zone::Zone;

/// The part of a range that lies in one pageblock.
#[derive(Clone, Copy)]
struct Part<'s> {
    block: Block<'s>,
    zone: &'s Zone,
    offset: u32,
    len: u32,
}

impl<E: BuddyEnv> Buddy<E> {
    /// Allocates exactly `nr_pages` contiguous frames (`alloc_pages_exact`): a block that is large enough, whose excess
    /// goes back at once. The frames are single pages then: they can be freed one by one, or in any parts through
    /// [`free_pages_exact`](Self::free_pages_exact).
    ///
    /// [`Gfp::COMP`] and [`Gfp::HIGHMEM`] are dropped. Contexts as for [`alloc_pages`](Self::alloc_pages).
    ///
    /// # Errors
    /// As for [`alloc_pages`](Self::alloc_pages); [`AllocError::TooLarge`] above the largest block.
    #[doc(alias = "alloc_pages_exact_nid")]
    pub fn alloc_pages_exact(&self, gfp: Gfp, nr_pages: usize, node: Option<NodeId>) -> Result<PfnRange, AllocError> {
        if nr_pages == 0 {
            return Ok(PfnRange::default());
        }
        let size_bytes = nr_pages.saturating_mul(PAGE_SIZE);
        let order = Order::for_size(size_bytes).ok_or(AllocError::TooLarge { size_bytes })?;
        let pfn = self.alloc_pages(gfp.difference(Gfp::COMP | Gfp::HIGHMEM), order, node)?;
        let end = Pfn(pfn.0 + nr_pages as u64);
        let split = self.split_page(pfn, order);
        debug_assert!(split.is_ok(), "{split:?}");
        let excess = PfnRange::new(end, Pfn(pfn.0 + order.nr_pages() as u64));
        if !excess.is_empty() {
            let freed = self.free_parts(excess);
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
        Ok(PfnRange::new(pfn, end))
    }

    /// Takes back frames of [`alloc_pages_exact`](Self::alloc_pages_exact), or any others: see
    /// [`free_range`](Self::free_range).
    ///
    /// # Errors
    /// Those of [`free_range`](Self::free_range).
    ///
    /// # Safety
    /// As for [`free_range`](Self::free_range).
    pub unsafe fn free_pages_exact(&self, range: PfnRange) -> Result<(), FreeError> {
        self.free_parts(range)
    }

    /// Makes single pages of an allocated block, each to be freed by itself.
    ///
    /// # Errors
    /// A [`FreeError`] if there is no such block; nothing has changed.
    pub fn split_page(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let state = self.state().ok_or(FreeError::Foreign(pfn))?;
        let (block, _) = self.locate(state, pfn, order)?;
        block.check_allocated((pfn.0 % u64::from(FRAMES)) as u32, order)?;
        let range = PfnRange::block(pfn, order).ok_or(FreeError::Foreign(pfn))?;
        for part in parts(state, range) {
            let part = part?;
            part.block.tail_line().assign(part.offset, part.len, false);
            if let Some(owned) = part.block.arena.owned.get(part.block.index) {
                owned.assign(part.offset, part.len, true);
            }
        }
        Ok(())
    }

    /// Takes back any frames that the caller owns: parts of blocks, several blocks, in any order. Goes straight to the
    /// bitmaps. Any context; O(pages / 64).
    ///
    /// What remains of a block is freed by this call as well, later.
    ///
    /// # Errors
    /// A [`FreeError`] naming the first frame that is free, reserved or foreign; nothing has changed.
    ///
    /// # Safety
    /// The caller owns every frame of `range` and nothing uses them any more.
    pub unsafe fn free_range(&self, range: PfnRange) -> Result<(), FreeError> {
        self.free_parts(range)
    }

    fn free_parts(&self, range: PfnRange) -> Result<(), FreeError> {
        let Some(state) = self.state() else { return Err(FreeError::Foreign(range.start)) };
        for part in parts(state, range) {
            part?.check(self.options().check_free)?;
        }
        if E::CHARGES {
            for pfn in range.iter() {
                self.env().uncharge(pfn, Order::ZERO);
            }
        }
        if self.options().init_on_free && !range.is_empty() {
            // SAFETY: the caller has given the frames up.
            unsafe { self.env().zero_frames(range) };
        }
        // A frame behind the range that continued a block begins what is left of it.
        if let Some(block) = state.block_of(range.end) {
            let offset = (range.end.0 % u64::from(FRAMES)) as u32;
            if !range.is_empty() && block.tail_line().is_set(offset) {
                block.tail_line().assign(offset, 1, false);
                if let Some(owned) = block.arena.owned.get(block.index) {
                    owned.assign(offset, 1, true);
                }
            }
        }
        for part in parts(state, range) {
            let part = part?;
            if let Some(owned) = part.block.arena.owned.get(part.block.index) {
                owned.assign(part.offset, part.len, false);
            }
            part.block.tail_line().assign(part.offset, part.len, false);
            let mut freed = 0;
            for (mask, at) in words(&part) {
                match part.block.put_bits(at, mask) {
                    Ok(()) => freed += i64::from(mask.count_ones()),
                    Err(occupied) => {
                        let first = part.block.first_frame().0;
                        return Err(FreeError::AlreadyFree(Pfn(first + u64::from(occupied.offset))));
                    }
                }
            }
            self.account(state, part.zone, freed);
            self.count_freed(part.zone, freed as u64);
        }
        Ok(())
    }

    /// Allocates the block of `order` at exactly `pfn`, whatever type of pageblock it lies in, if all of it is free.
    /// Pages in per-CPU sets are not: see [`drain_all_pages`](Self::drain_all_pages). No watermark is looked at. Any
    /// context.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] if some frame is not free; [`AllocError::BadAlign`] if no such block exists;
    /// [`AllocError::BadFlags`], [`AllocError::OverLimit`]. Nothing has changed.
    pub fn alloc_pages_at(&self, gfp: Gfp, pfn: Pfn, order: Order) -> Result<(), AllocError> {
        let state = self.state().ok_or(AllocError::NotReady)?;
        let missing = AllocError::BadAlign(pfn.0 as usize);
        let (block, zone) = self.locate(state, pfn, order).map_err(|_| missing)?;
        let request = self.request(state, gfp, order, Some(zone.node))?;
        let other = if order == Order::MAX { Some(block.neighbour().ok_or(missing)?) } else { None };
        let taken = match &other {
            Some(other) => block.take_pair(other),
            None => block.take_at((pfn.0 % u64::from(FRAMES)) as u32, order.get().min(FRAMES_SHIFT)),
        };
        if !taken {
            return Err(AllocError::NoMemory { order, gfp });
        }
        for half in [Some(block), other].into_iter().flatten() {
            half.refile();
            if half.record().is_special() {
                half.recount();
            }
        }
        self.account(state, zone, -(order.nr_pages() as i64));
        zone.allocated_pages.fetch_add(order.nr_pages() as u64, Ordering::Relaxed);
        zone.allocated_calls.fetch_add(1, Ordering::Relaxed);
        self.prepare(state, &request, pfn).map(|_| ())
    }

    /// The type of the pageblock that a frame lies in; `None` for foreign frames.
    #[doc(alias = "get_pageblock_migratetype")]
    pub fn pageblock_type(&self, pfn: Pfn) -> Option<MigrateType> {
        let block = self.state()?.block_of(pfn)?;
        block.record().has(Record::PRESENT).then(|| block.record().migratetype())
    }

    /// Gives the pageblock of a frame another type; its free pages move along at once, and are counted accordingly. For
    /// contiguous areas, which own their pageblocks ([`MigrateType::Cma`]); `Isolate` is a state of its own, see
    /// [`set_pageblock_isolated`](Self::set_pageblock_isolated). Returns the type before, `None` for foreign frames.
    #[doc(alias = "set_pageblock_migratetype")]
    pub fn set_pageblock_type(&self, pfn: Pfn, migratetype: MigrateType) -> Option<MigrateType> {
        let state = self.state()?;
        let block = state.block_of(pfn).filter(|block| block.record().has(Record::PRESENT))?;
        if migratetype == MigrateType::Isolate {
            return None;
        }
        let zone = block.zone()?;
        let before = block.set_type(migratetype);
        let pages = u64::from(FRAMES);
        if before == MigrateType::Cma && migratetype != MigrateType::Cma {
            zone.cma_pages.fetch_sub(pages, Ordering::Relaxed);
        } else if before != MigrateType::Cma && migratetype == MigrateType::Cma {
            zone.cma_pages.fetch_add(pages, Ordering::Relaxed);
        }
        state.compute_comfort(zone);
        self.settle(state, zone);
        Some(before)
    }

    /// Takes the pageblock of a frame out of circulation, or puts it back: its free pages are counted as free no more and
    /// serve nobody, and pages freed into it bypass the per-CPU sets. Whether anything changed. Pages that lie in
    /// per-CPU sets at the time are there until they are drained; [`isolate_range`](Self::isolate_range) does that.
    pub fn set_pageblock_isolated(&self, pfn: Pfn, isolated: bool) -> bool {
        let Some(state) = self.state() else { return false };
        let Some(block) = state.block_of(pfn).filter(|block| block.record().has(Record::PRESENT)) else { return false };
        let Some(zone) = block.zone() else { return false };
        if !(if isolated { block.isolate() } else { block.unisolate() }) {
            return false;
        }
        if isolated {
            zone.isolated_blocks.fetch_add(1, Ordering::Relaxed);
        } else {
            zone.isolated_blocks.fetch_sub(1, Ordering::Relaxed);
        }
        state.compute_comfort(zone);
        self.settle(state, zone);
        true
    }
}

impl Part<'_> {
    /// Whether every frame may be freed.
    fn check(&self, exactly: bool) -> Result<(), FreeError> {
        let pfn = |offset: u32| Pfn(self.block.first_frame().0 + u64::from(offset));
        if let Some(gap) = self.block.gap()
            && let Some(offset) = gap.line.find(self.offset, self.len, true)
        {
            return Err(FreeError::Reserved(pfn(offset)));
        }
        if let Some(offset) = self.block.free_line().find(self.offset, self.len, true) {
            return Err(FreeError::AlreadyFree(pfn(offset)));
        }
        // A frame that neither continues a block nor is a caller's lies in some per-CPU set.
        if exactly && let Some(owned) = self.block.arena.owned.get(self.block.index) {
            let cached = (self.offset..self.offset + self.len)
                .find(|&offset| !self.block.tail_line().is_set(offset) && !owned.is_set(offset));
            if let Some(offset) = cached {
                return Err(FreeError::AlreadyFree(pfn(offset)));
            }
        }
        Ok(())
    }
}

/// The parts of a range, pageblock by pageblock.
fn parts(state: &State, range: PfnRange) -> impl Iterator<Item = Result<Part<'_>, FreeError>> {
    let mut at = range.start.0;
    core::iter::from_fn(move || {
        if at >= range.end.0 {
            return None;
        }
        let pfn = Pfn(at);
        let offset = (at % u64::from(FRAMES)) as u32;
        let len = u64::from(FRAMES - offset).min(range.end.0 - at) as u32;
        at += u64::from(len);
        let found = state.block_of(pfn).filter(|block| block.record().has(Record::PRESENT));
        let part = found.and_then(|block| Some(Part { block, zone: block.zone()?, offset, len }));
        Some(part.ok_or(FreeError::Foreign(pfn)))
    })
}

/// A part's words: which bits, and the first frame of the word.
fn words<'s>(part: &Part<'s>) -> impl Iterator<Item = (u64, u32)> + use<'s> {
    let mut at = part.offset & !63;
    part.block.free_line().pieces(part.offset, part.len).map(move |(_, mask)| {
        let word = at;
        at += 64;
        (mask, word)
    })
}
