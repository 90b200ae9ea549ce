//! Page isolation: pageblocks out of circulation, so that a range of frames can be emptied and taken.
//!
//! ```text
//! isolate_range(range) ─▶ first block, last block, those between ─▶ drain the zone's sets ─▶ anything unmovable?
//!                              └── already isolated, CMA, reserved ──▶ undo ◀───────────────────────┘ yes
//! Isolation ─▶ evacuate ─▶ is_free / take      dropped: every block is what it was, its free frames in circulation
//! ```
//!
//! The bit in the record overrides the type that stays stored below it. A search does not find an isolated pageblock, and
//! one that had found it before sees the bit behind its claim and gives back; a free finds the pageblock's entry in
//! `lists` closed and goes to the line. So nothing on the fast paths asks about isolation. Behind the drain, which every
//! CPU's section has gone through, a frame of an isolated pageblock is either free in its line or somebody's.

use kmem_gfp::{AllocContext, AllocError, MigrateType, Pfn, PfnRange};
use kmem_sync::atomic::{Ordering, fence_after_rmw};

use crate::arena::Arena;
use crate::block::Block;
use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::line::FRAMES;
use crate::record::Record;
use crate::state::State;
use crate::used::{each_used, first_busy, pageblocks};
use crate::zone::Zone;

/// Why a range is isolated: who may do what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IsolateMode {
    /// Memory is to be taken away.
    Offline,
    /// For a contiguous area: only this may isolate pageblocks of type [`Cma`](MigrateType::Cma).
    Cma,
    /// For anything else.
    Other,
}

/// A range whose pageblocks are isolated; dropping it puts them back into circulation.
///
/// # Invariants
/// Every pageblock of `blocks` was isolated by this value, all of them in `zone`.
#[must_use = "dropping an `Isolation` ends it"]
pub struct Isolation<'b, E: BuddyEnv> {
    pub(crate) buddy: &'b Buddy<E>,
    pub(crate) range: PfnRange,
    blocks: PfnRange,
    pub(crate) state: &'b State,
    pub(crate) zone: &'b Zone,
}

impl<E: BuddyEnv> core::fmt::Debug for Isolation<'_, E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Isolation").field("range", &self.range).field("blocks", &self.blocks).finish_non_exhaustive()
    }
}

impl Block<'_> {
    /// Takes the pageblock out of circulation; `false` if it is so already. Of several callers one succeeds.
    pub(crate) fn isolate(&self) -> bool {
        loop {
            let record = self.record();
            if record.has(Record::ISOLATE) || !record.has(Record::PRESENT) {
                return false;
            }
            let new = record.with(Record::ISOLATE, true);
            if self.record.compare_exchange(record.0, new.0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                continue;
            }
            fence_after_rmw();
            if let Some(list) = Arena::list_of(record) {
                self.arena.hints.clear(list, self.index);
            }
            self.follow_type();
            return true;
        }
    }

    /// Puts the pageblock back into circulation, free frames and all; `false` if it was not isolated.
    pub(crate) fn unisolate(&self) -> bool {
        if !self.set_isolated(false) {
            return false;
        }
        if self.record().filed() == 10 {
            self.merge_pair();
        }
        true
    }
}

impl<E: BuddyEnv> Buddy<E> {
    /// Takes every pageblock that `range` touches out of circulation: their free frames serve nobody and are not counted as
    /// free, and frames freed into them stay there. Their types stay stored and come back when the result is dropped.
    ///
    /// Only where sleeping is allowed: it drains the zone's per-CPU sets. O(pageblocks), some 1200 instructions each, there and back.
    ///
    /// # Errors
    /// [`AllocError::Busy`] names a frame that is not memory, reserved, in another zone than the first, in a pageblock that is
    /// isolated already or of type CMA (unless `mode` says so), or in use by somebody who cannot move it. Nothing has changed.
    #[doc(alias = "start_isolate_page_range")]
    pub fn isolate_range(&self, range: PfnRange, mode: IsolateMode) -> Result<Isolation<'_, E>, AllocError> {
        let isolation = self.isolate_blocks(range, mode)?;
        self.drain_zone_pages(isolation.zone.node, isolation.zone.kind);
        isolation.check_movable()?;
        Ok(isolation)
    }

    /// As [`isolate_range`](Self::isolate_range), without looking at what the range holds.
    pub(crate) fn isolate_blocks(&self, range: PfnRange, mode: IsolateMode) -> Result<Isolation<'_, E>, AllocError> {
        let state = self.state().ok_or(AllocError::NotReady)?;
        let size = u64::from(FRAMES);
        if range.is_empty() {
            return Err(AllocError::Busy(range.start));
        }
        let (first, last) = (range.start.0 / size, (range.end.0 - 1) / size);
        let zone = state.block_of(range.start).and_then(|block| block.zone());
        let zone = zone.ok_or(AllocError::Busy(range.start))?;
        // The edges first: that is where strangers are most likely.
        let nth = |i: u64| match i {
            0 => first,
            1 => last,
            _ => first + i - 1,
        };
        let nr = last - first + 1;
        for i in 0..nr {
            if let Err(pfn) = isolate_one(state, zone, nth(i), range, mode) {
                (0..i).for_each(|j| restore_one(state, nth(j)));
                return Err(AllocError::Busy(pfn));
            }
        }
        zone.isolated_blocks.fetch_add(nr, Ordering::Relaxed);
        state.compute_comfort(zone);
        self.settle(state, zone);
        // INVARIANT: all have just been isolated, and `isolate_one` compared the zones.
        let blocks = PfnRange::new(Pfn(first * size), Pfn((last + 1) * size));
        Ok(Isolation { buddy: self, range, blocks, state, zone })
    }

    /// A block of `range` in use whose owner cannot or does not move it, as far as can be told without asking to.
    pub(crate) fn first_unmovable(&self, state: &State, range: PfnRange) -> Option<Pfn> {
        let mut found = None;
        each_used(state, range, |used| {
            let movable = used
                .order
                .is_some_and(|order| self.env().movable_owner(used.pfn).is_some_and(|owner| owner.moves(order)));
            if !movable {
                found = Some(Pfn(used.pfn.0.max(range.start.0)));
            }
            movable
        });
        found
    }
}

/// Isolates one pageblock of a range.
fn isolate_one(state: &State, zone: &Zone, number: u64, range: PfnRange, mode: IsolateMode) -> Result<(), Pfn> {
    let first = number * u64::from(FRAMES);
    let start = Pfn(first.max(range.start.0));
    let end = range.end.0.min(first + u64::from(FRAMES));
    let block = state.block_of(start).filter(|block| block.record().has(Record::PRESENT)).ok_or(start)?;
    if let Some(at) = block.first_gap((start.0 - first) as u32, (end - first) as u32) {
        return Err(Pfn(first + u64::from(at)));
    }
    let record = block.record();
    let foreign =
        record.zone() != zone.number || (record.stored_type() == MigrateType::Cma && mode != IsolateMode::Cma);
    if foreign || !block.isolate() { Err(start) } else { Ok(()) }
}

fn restore_one(state: &State, number: u64) {
    if let Some(block) = state.block_of(Pfn(number * u64::from(FRAMES))) {
        block.unisolate();
    }
}

impl<E: BuddyEnv> Isolation<'_, E> {
    /// The range asked for.
    pub fn range(&self) -> PfnRange {
        self.range
    }

    /// The pageblocks that are isolated: the range, rounded out.
    pub fn pageblocks(&self) -> PfnRange {
        self.blocks
    }

    /// Whether every frame of the range is free. While it is isolated nothing free leaves it, but through
    /// [`take`](Self::take).
    #[doc(alias = "test_pages_isolated")]
    pub fn is_free(&self) -> bool {
        self.first_busy().is_none()
    }

    pub(crate) fn first_busy(&self) -> Option<Pfn> {
        first_busy(self.state, self.range)
    }

    /// Whether whatever lies in the range has an owner who moves it. Somebody who took a frame just before the isolation, and
    /// is about to give it back, is waited for.
    fn check_movable(&self) -> Result<(), AllocError> {
        let Some(_) = self.buddy.first_unmovable(self.state, self.range) else { return Ok(()) };
        self.buddy.env().context().yield_now();
        match self.buddy.first_unmovable(self.state, self.range) {
            Some(pfn) => Err(AllocError::Busy(pfn)),
            None => Ok(()),
        }
    }
}

impl<E: BuddyEnv> Drop for Isolation<'_, E> {
    fn drop(&mut self) {
        let mut nr = 0;
        for (block, ..) in pageblocks(self.state, self.blocks).flatten() {
            block.unisolate();
            nr += 1;
        }
        self.zone.isolated_blocks.fetch_sub(nr, Ordering::Relaxed);
        self.state.compute_comfort(self.zone);
        self.buddy.settle(self.state, self.zone);
    }
}
