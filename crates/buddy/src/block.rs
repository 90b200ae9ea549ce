//! One pageblock: taking and giving its frames, its type, and the hint it is filed under.
//!
//! ```text
//! take: line ─▶ type still right? ─▶ tails ─▶ the caller refiles       put: line ─▶ larger than filed? ─▶ refile
//! ```
//!
//! Whoever changed the line looks at the record behind that, and whoever changed the record looks at the line again.

use kmem_gfp::{FreeError, MigrateType, Order, Pfn, PfnRange};
use kmem_sync::atomic::{AtomicU32, Ordering, fence_after_rmw};

use crate::arena::{Arena, Gap};
use crate::bits::{WORD_ORDER, cover, outgrows};
use crate::line::{FRAMES, FRAMES_SHIFT, Line, Occupied, largest_in};
use crate::record::Record;
use crate::zone::Zone;

/// One pageblock of an arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    pub(crate) arena: &'a Arena,
    pub(crate) index: usize,
    pub(crate) free: &'a Line,
    pub(crate) tails: &'a Line,
    pub(crate) record: &'a AtomicU32,
}

impl<'a> Block<'a> {
    /// What the pageblock is at the moment.
    #[inline(always)]
    pub(crate) fn record(&self) -> Record {
        Record(self.record.load(Ordering::SeqCst))
    }

    /// Its line of free frames.
    #[inline(always)]
    pub(crate) fn free_line(&self) -> &'a Line {
        self.free
    }

    /// Its line of continuing frames.
    #[inline(always)]
    pub(crate) fn tail_line(&self) -> &'a Line {
        self.tails
    }

    /// Its first frame.
    #[inline]
    pub(crate) fn first_frame(&self) -> Pfn {
        self.arena.first_frame(self.index)
    }

    /// Its zone.
    #[inline]
    pub(crate) fn zone(&self) -> Option<&'a Zone> {
        self.arena.zone(self.record().zone())
    }

    /// The other pageblock of the pair that can form a block of order 10.
    pub(crate) fn neighbour(&self) -> Option<Block<'a>> {
        let other = self.arena.block(self.index ^ 1)?;
        // Next to one another in the tables means next to one another in memory only within a span.
        let span = self.arena.span_of(self.first_frame())?;
        let within = other.index.checked_sub(span.index).is_some_and(|at| at < span.len);
        (within && other.record().has(Record::PRESENT) && other.record().zone() == self.record().zone())
            .then_some(other)
    }

    /// Changes the record and moves the pageblock's hint with it. Lock-free.
    ///
    /// Whoever sets bits in the line and then sees an old record was seen by the second evaluation of `change`; whoever
    /// moved the hint between our two steps is seen by the second load. Both need sequential consistency.
    fn update(&self, mut change: impl FnMut(Record) -> Record) {
        let hints = &self.arena.hints;
        // The list that the round before filed under: whether there was a round before, and whether it had a list.
        let mut stale: Option<Option<usize>> = None;
        loop {
            let old = self.record();
            let new = change(old);
            if new == old && stale.is_none() {
                return;
            }
            if new != old && self.record.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
                continue;
            }
            fence_after_rmw();
            let list = Arena::list_of(new);
            if let Some(list) = list {
                hints.set(list, self.index);
            }
            for gone in [Arena::list_of(old), stale.flatten()].into_iter().flatten() {
                if Some(gone) != list {
                    hints.clear(gone, self.index);
                }
            }
            // Behind the hints' clearing.
            fence_after_rmw();
            if self.record() == new && change(new) == new {
                return;
            }
            // Whatever is true by then: the hint just set is to go unless it is the right one again.
            stale = Some(list);
        }
    }

    /// Files the pageblock under its present largest free order.
    pub(crate) fn refile(&self) {
        let mut cleared = false;
        let mut seen = None;
        self.update(|record| {
            // Worked out again only where the line has changed since the last time.
            let words = self.free.snapshot();
            let filed = match seen {
                Some((before, filed)) if before == words => filed,
                _ => largest_in(&words).map_or(0, |order| order + 1),
            };
            seen = Some((words, filed));
            let mut new = record.with_filed(filed);
            if filed == FRAMES_SHIFT + 1 {
                cleared |= new.has(Record::TAILS);
                new = new.with(Record::TAILS, false);
            } else if cleared {
                // A block was taken while the flag was being dropped.
                new = new.with(Record::TAILS, true);
            }
            new
        });
    }

    /// Drops a hint that was found not to hold, unless it does after all. Whoever moved the pageblock may not have set its
    /// new hint yet, so that is done here as well: nobody depends on another's progress.
    pub(crate) fn drop_hint(&self, list: usize) {
        let filed = Arena::list_of(self.record());
        if filed != Some(list) {
            if let Some(filed) = filed {
                self.arena.hints.set(filed, self.index);
            }
            self.arena.hints.clear(list, self.index);
            fence_after_rmw();
            if Arena::list_of(self.record()) == Some(list) {
                self.arena.hints.set(list, self.index);
            }
        }
        self.refile();
    }

    /// Gives the pageblock another type; its free frames move with it at once. Returns the type it had.
    pub(crate) fn set_type(&self, migratetype: MigrateType) -> MigrateType {
        let mut before = migratetype;
        let mut first = true;
        self.update(|record| {
            if first {
                before = record.stored_type();
            }
            first = false;
            record.with_type(migratetype)
        });
        self.follow_type();
        before
    }

    /// Changes the type only if it is `from`; whether it was.
    pub(crate) fn change_type(&self, from: MigrateType, to: MigrateType) -> bool {
        let record = self.record();
        if record.migratetype() != from {
            return false;
        }
        let new = record.with_type(to);
        if self.record.compare_exchange(record.0, new.0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return false;
        }
        fence_after_rmw();
        // The new hint before the old one goes: a search finds one of them.
        if let Some(list) = Arena::list_of(self.record()) {
            self.arena.hints.set(list, self.index);
        }
        if let Some(old) = Arena::list_of(record) {
            self.drop_hint(old);
        }
        self.refile();
        self.follow_type();
        true
    }

    /// Takes the pageblock out of circulation or puts it back; the type below stays. Whether anything changed.
    pub(crate) fn set_isolated(&self, isolated: bool) -> bool {
        let mut changed = false;
        self.update(|record| {
            let new = record.with(Record::ISOLATE, isolated);
            changed |= new != record;
            new
        });
        self.refile();
        self.follow_type();
        changed
    }

    /// Brings what depends on the type in line with it.
    pub(crate) fn follow_type(&self) {
        if let (Some(zone), Some(list)) = (self.zone(), self.arena.lists.get(self.index)) {
            list.store(zone.list_of(self.record().migratetype()), Ordering::Relaxed);
        }
        self.recount();
    }

    /// Corrects the zone's counts of free highatomic, CMA and isolated pages by what this pageblock holds of them. Counts
    /// follow the line: however many callers race, the last one leaves them right.
    pub(crate) fn recount(&self) {
        let (Some(counted), Some(zone)) = (self.arena.counted.get(self.index), self.zone()) else { return };
        loop {
            fence_after_rmw();
            let old = counted.load(Ordering::SeqCst);
            let record = self.record();
            let new = if record.is_special() { (record.migratetype() as u32) << 16 | self.free.count() } else { 0 };
            if old == new {
                return;
            }
            if counted.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                zone.count_special(old >> 16, -i64::from(old & 0xffff));
                zone.count_special(new >> 16, i64::from(new & 0xffff));
            }
        }
    }

    /// Takes up to `want` blocks of `order` (at most 9) for a request of type `migratetype`, handing each to `taken`.
    /// Returns how many. The caller accounts and refiles.
    pub(crate) fn take(&self, migratetype: MigrateType, order: u32, want: u32, mut taken: impl FnMut(Pfn)) -> u32 {
        let first = self.first_frame();
        if order > WORD_ORDER {
            let mut nr = 0;
            while nr < want {
                let Some(offset) = self.free.take_words(order) else { break };
                if !self.still_serves(migratetype) {
                    self.untake(offset, order);
                    break;
                }
                self.mark_tails(offset, order);
                taken(Pfn(first.0 + u64::from(offset)));
                nr += 1;
            }
            return nr;
        }
        let mut refused = 0;
        let nr = self.free.take_runs(order, want, |at, heads| {
            if refused > 0 || !self.still_serves(migratetype) {
                refused += heads.count_ones();
                // Nobody can have set bits that were ours.
                let _ = self.free.put_bits(at, cover(heads, order));
                return;
            }
            if order > 0 {
                self.tails.word(at).fetch_or(cover(heads, order) & !heads, Ordering::AcqRel);
            }
            // From the top, so that a stack hands them out upwards.
            let mut left = heads;
            while left != 0 {
                let bit = 63 - left.leading_zeros();
                left &= !(1 << bit);
                taken(Pfn(first.0 + u64::from(at + bit)));
            }
        });
        if order > 0 && nr > refused {
            self.note_tails();
        }
        if refused > 0 {
            self.settle_untaken();
        }
        nr - refused
    }

    /// Whether frames of this pageblock may serve a type now that they have been taken. Mergeable types may mix.
    pub(crate) fn still_serves(&self, migratetype: MigrateType) -> bool {
        fence_after_rmw();
        let now = self.record().migratetype();
        now == migratetype || (now.is_mergeable() && migratetype.is_mergeable())
    }

    pub(crate) fn untake(&self, offset: u32, order: u32) {
        // Nobody can have set bits that were ours.
        let _ = self.free.put(offset, order);
        self.settle_untaken();
    }

    /// Frames were gone for a moment and are back: whoever counted or filed meanwhile did not see them.
    fn settle_untaken(&self) {
        fence_after_rmw();
        self.refile();
        if self.record().is_special() {
            self.recount();
        }
    }

    /// Takes the block of `order` (at most 9) at `offset`, whatever the type; `false` if it is not all free.
    pub(crate) fn take_at(&self, offset: u32, order: u32) -> bool {
        if !self.free.take_at(offset, order) {
            return false;
        }
        self.mark_tails(offset, order);
        true
    }

    /// Takes this pageblock and its neighbour as one block of order 10; `self` is the lower one.
    pub(crate) fn take_pair(&self, other: &Block<'_>) -> bool {
        if !self.free.take_at(0, FRAMES_SHIFT) {
            return false;
        }
        if !other.free.take_at(0, FRAMES_SHIFT) {
            self.untake(0, FRAMES_SHIFT);
            return false;
        }
        self.mark_tails(0, FRAMES_SHIFT);
        other.mark_tails(0, FRAMES_SHIFT);
        other.tails.assign(0, 1, true);
        true
    }

    /// Marks all frames of a taken block but the first as continuing it.
    fn mark_tails(&self, offset: u32, order: u32) {
        if order > 0 {
            self.tails.assign(offset + 1, (1 << order) - 1, true);
            self.note_tails();
        }
    }

    /// Marks frames that the caller owns as continuing the block before them.
    pub(crate) fn mark_frames_as_tails(&self, offset: u32, end: u32) {
        if end > offset {
            self.tails.assign(offset, end - offset, true);
            self.note_tails();
        }
    }

    fn note_tails(&self) {
        if !self.record().has(Record::TAILS) {
            self.record.fetch_or(Record::TAILS, Ordering::SeqCst);
        }
    }

    /// Gives back the block of `order` (at most 9) at `offset`, whose tail bits have been dealt with. Refiles and recounts
    /// where that is due; the caller accounts.
    ///
    /// # Errors
    /// Some frame is free already; nothing has changed.
    #[inline]
    pub(crate) fn put(&self, offset: u32, order: u32) -> Result<(), Occupied> {
        let merged = self.free.put(offset, order)?;
        fence_after_rmw();
        let record = self.record();
        if merged + 1 > record.filed() {
            self.raise(merged);
        }
        if record.is_special() {
            self.recount();
        }
        Ok(())
    }

    /// Gives back single frames of one word. As [`put`](Self::put).
    #[inline(always)]
    pub(crate) fn put_bits(&self, offset: u32, mask: u64) -> Result<(), Occupied> {
        let word = self.free.put_bits(offset, mask)?;
        fence_after_rmw();
        let record = self.record();
        if outgrows(word, mask, record.filed()) || record.is_special() {
            self.follow_put(offset, word, mask);
        }
        Ok(())
    }

    /// The word of `offset`, as it was a moment ago, may hold more than the pageblock was filed under, or is counted apart.
    #[cold]
    #[inline(never)]
    fn follow_put(self, offset: u32, word: u64, mask: u64) {
        let record = self.record();
        let filed = record.filed();
        if outgrows(word, mask, filed) {
            let merged = if word == u64::MAX { self.free.merged_words(offset, WORD_ORDER) } else { filed };
            if merged + 1 > filed {
                self.raise(merged);
            }
        }
        if record.is_special() {
            self.recount();
        }
    }

    #[cold]
    #[inline(never)]
    fn raise(&self, merged: u32) {
        self.refile();
        if merged == FRAMES_SHIFT {
            self.merge_pair();
        }
    }

    /// A whole pageblock became free: if its neighbour is free as well but of another mergeable type, that takes over
    /// this one's, so that the pair is one block of order 10 (B-17).
    pub(crate) fn merge_pair(&self) {
        let Some(other) = self.neighbour() else { return };
        let (ours, theirs) = (self.record(), other.record());
        if theirs.filed() == FRAMES_SHIFT + 1
            && ours.migratetype() != theirs.migratetype()
            && ours.migratetype().is_mergeable()
            && theirs.migratetype().is_mergeable()
        {
            other.change_type(theirs.migratetype(), ours.migratetype());
        }
    }

    /// Whether a frame is reserved or missing.
    pub(crate) fn is_gap(&self, offset: u32) -> bool {
        self.record().has(Record::GAPS) && self.gap().is_some_and(|gap| gap.line.is_set(offset))
    }

    /// The gaps of this pageblock.
    pub(crate) fn gap(&self) -> Option<&'a Gap> {
        let gaps = &self.arena.gaps;
        gaps.binary_search_by_key(&self.index, |gap| gap.index).ok().and_then(|i| gaps.get(i))
    }

    /// How many frames the allocated block has that starts at `offset`, from its tails: up to two pageblocks.
    pub(crate) fn allocated_len(&self, offset: u32) -> u32 {
        let len = self.tails.find(offset + 1, FRAMES - offset - 1, false).unwrap_or(FRAMES) - offset;
        if len < FRAMES || !self.index.is_multiple_of(2) {
            return len;
        }
        match self.neighbour() {
            Some(other) if other.tails.is_set(0) => match other.tails.find(0, FRAMES, false) {
                Some(end) => len + end,
                // A contiguous range that is one block may go on behind the pair.
                None => len + FRAMES + u32::from(self.continues_at(2)),
            },
            _ => len,
        }
    }

    /// Whether the pageblock `ahead` further up, in the same span, continues a block that began before it.
    fn continues_at(&self, ahead: usize) -> bool {
        let span = self.arena.span_of(self.first_frame());
        let within = span.is_some_and(|span| self.index + ahead < span.index + span.len);
        within && self.arena.block(self.index + ahead).is_some_and(|block| block.tails.is_set(0))
    }

    /// The order of the allocated block that starts at `offset`; rounded down if parts of it have been freed.
    pub(crate) fn allocated_order(&self, offset: u32) -> Order {
        Order::new(self.allocated_len(offset).ilog2()).unwrap_or(Order::MAX)
    }

    /// Whether the block of `order` (at most 10) at `offset` is allocated, with exactly this order.
    pub(crate) fn check_allocated(&self, offset: u32, order: Order) -> Result<(), FreeError> {
        let pfn = |offset: u32| Pfn(self.first_frame().0 + u64::from(offset));
        let given = order;
        if !self.record().has(Record::PRESENT) {
            return Err(FreeError::Foreign(pfn(offset)));
        }
        if self.is_gap(offset) {
            return Err(FreeError::Reserved(pfn(offset)));
        }
        if self.free.is_set(offset) {
            return Err(FreeError::AlreadyFree(pfn(offset)));
        }
        if self.tails.is_set(offset) {
            let (head, allocated) = self.head_of(offset);
            return Err(FreeError::WrongOrder { pfn: head, allocated, given });
        }
        if self.allocated_len(offset) as usize != order.nr_pages() {
            return Err(FreeError::WrongOrder { pfn: pfn(offset), allocated: self.allocated_order(offset), given });
        }
        Ok(())
    }

    /// First frame and order of the allocated block that the continuing frame at `offset` belongs to.
    fn head_of(&self, offset: u32) -> (Pfn, Order) {
        let head = (0..offset).rev().find(|&at| !self.tails.is_set(at));
        match (head, self.neighbour()) {
            (Some(head), _) => (Pfn(self.first_frame().0 + u64::from(head)), self.allocated_order(head)),
            // The second half of a pair.
            (None, Some(lower)) => (lower.first_frame(), Order::MAX),
            (None, None) => (Pfn(self.first_frame().0 + u64::from(offset)), Order::ZERO),
        }
    }

    /// All frames of the pageblock.
    pub(crate) fn range(&self) -> PfnRange {
        let first = self.first_frame();
        PfnRange::new(first, Pfn(first.0 + u64::from(FRAMES)))
    }
}
