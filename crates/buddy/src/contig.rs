//! Contiguous ranges: a given one, emptied by moving what lies in it, or one of a given size.
//!
//! ```text
//! alloc_contig_range ─▶ flags ─▶ isolate ─▶ evacuate (5 rounds) ─▶ take ─▶ prepare      the isolation always ends
//! alloc_contig_pages ─▶ zones ─▶ candidates that are free, then those without huge blocks, then all ─▶ alloc_contig_range
//! ```
//!
//! Frames are bits, so a range is taken exactly: there is no larger block around it to split, and nothing to give back.

use kmem_gfp::verdict::{Interface, judge};
use kmem_gfp::{
    AllocContext, AllocError, FreeError, Gfp, MigrateMode, MigrateType, NodeId, Order, Pfn, PfnRange, TaskFlags,
    ZoneKind,
};
use kmem_sync::atomic::Ordering;

use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::isolate::{IsolateMode, Isolation};
use crate::migrate::{Batch, Destination, Isolated};
use crate::state::State;
use crate::used::{each_used, first_busy, pageblocks, take_bits};
use crate::zone::Zone;

/// How often what lies in a range is collected and moved.
const ROUNDS: u32 = 5;

impl<E: BuddyEnv> Buddy<E> {
    /// Allocates the frames of exactly `range`, moving away what its owners move ([`BuddyEnv::movable_owner`]). They are single
    /// pages then, to be freed one by one or in any parts through [`free_contig_range`](Self::free_contig_range); with
    /// [`Gfp::COMP`] they are one block, and the range must be a power of two long and aligned to it (blocks larger than
    /// [`Order::MAX`] are freed through `free_contig_range`).
    ///
    /// `gfp` says how hard to look for new places. Reclaim bits, IO, FS, COMP, RETRY_MAYFAIL, NOWARN and ZERO count; zone and
    /// mobility bits are ignored. Only where sleeping is allowed.
    ///
    /// # Errors
    /// [`AllocError::Busy`] names a frame that could not be freed, or why [`isolate_range`](Self::isolate_range) failed;
    /// [`AllocError::NoMemory`] if there is no other place for what lies in the range; [`AllocError::Interrupted`] by a fatal signal;
    /// [`AllocError::BadFlags`], [`AllocError::BadAlign`]. Nobody's frames have changed, though some may have moved.
    #[doc(alias = "alloc_contig_frozen_range")]
    pub fn alloc_contig_range(&self, range: PfnRange, gfp: Gfp, mode: IsolateMode) -> Result<(), AllocError> {
        let gfp = self.contig_flags(gfp, range.len())?;
        if gfp.contains(Gfp::COMP) && !range.start.0.is_multiple_of(range.len().max(1)) {
            return Err(AllocError::BadAlign(range.start.0 as usize));
        }
        if range.is_empty() {
            return Ok(());
        }
        let isolation = self.isolate_range(range, mode)?;
        isolation.evacuate(gfp)?;
        isolation.take(gfp)
    }

    /// Takes back frames of [`alloc_contig_range`](Self::alloc_contig_range), all or any part of them.
    ///
    /// # Errors
    /// Those of [`free_range`](Self::free_range).
    ///
    /// # Safety
    /// As for [`free_range`](Self::free_range).
    #[doc(alias = "free_contig_frozen_range")]
    pub unsafe fn free_contig_range(&self, range: PfnRange) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.free_range(range) }
    }

    /// Allocates `nr_pages` contiguous frames anywhere in the zones that `gfp` allows, nearest to `node` first; they begin at a
    /// multiple of `nr_pages`. Any number of pages, beyond the largest block as well. Otherwise as
    /// [`alloc_contig_range`](Self::alloc_contig_range).
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] if no range can be had; [`AllocError::BadFlags`], [`AllocError::NoSuchNode`],
    /// [`AllocError::Interrupted`].
    pub fn alloc_contig_pages(&self, nr_pages: u64, gfp: Gfp, node: Option<NodeId>) -> Result<PfnRange, AllocError> {
        let state = self.state().filter(|_| self.is_ready()).ok_or(AllocError::NotReady)?;
        if nr_pages == 0 {
            return Ok(PfnRange::default());
        }
        let flags = self.contig_flags(gfp, nr_pages)?;
        let request = self.request(state, gfp, Order::ZERO, node)?;
        for zone in self.allowed_zones(state, &request) {
            let mut drained = false;
            for pass in Pass::ALL {
                let mut failed = Ok(());
                let found = candidates(zone, nr_pages).find(|&range| {
                    if !pass.suits(state, zone, range) {
                        return false;
                    }
                    if pass != Pass::Free {
                        // What lies in per-CPU sets is nobody's; after this it looks so.
                        if !core::mem::replace(&mut drained, true) {
                            self.drain_zone_pages(zone.node, zone.kind);
                        }
                        if self.first_unmovable(state, range).is_some() {
                            return false;
                        }
                    }
                    match self.alloc_contig_range(range, flags, IsolateMode::Other) {
                        Err(error @ AllocError::Interrupted) => {
                            failed = Err(error);
                            true
                        }
                        result => result.is_ok(),
                    }
                });
                failed?;
                if let Some(range) = found {
                    return Ok(range);
                }
            }
        }
        Err(AllocError::NoMemory { order: order_of(nr_pages), gfp })
    }

    /// The flags that count for a range.
    fn contig_flags(&self, gfp: Gfp, nr_pages: u64) -> Result<Gfp, AllocError> {
        let verdict = judge(gfp, Interface::ContigRange { nr_pages }, self.task_flags());
        verdict.map(|verdict| verdict.gfp).map_err(|_| AllocError::BadFlags(gfp))
    }
}

/// The smallest order that holds so many pages, or the largest there is.
fn order_of(nr_pages: u64) -> Order {
    Order::new(nr_pages.checked_next_power_of_two().map_or(u32::MAX, u64::ilog2)).unwrap_or(Order::MAX)
}

/// Which candidates of a zone are tried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Those that are free already.
    Free,
    /// Those that hold no block as large as a pageblock.
    Small,
    /// All.
    Any,
}

impl Pass {
    const ALL: [Self; 3] = [Self::Free, Self::Small, Self::Any];

    fn suits(self, state: &State, zone: &Zone, range: PfnRange) -> bool {
        let memory = pageblocks(state, range).all(|part| {
            part.is_ok_and(|(block, offset, end)| {
                let record = block.record();
                record.zone() == zone.number
                    && record.migratetype() != MigrateType::Isolate
                    && record.stored_type() != MigrateType::Cma
                    && block.first_gap(offset, end).is_none()
            })
        });
        memory
            && match self {
                Self::Free => first_busy(state, range).is_none(),
                Self::Small => {
                    let mut small = true;
                    each_used(state, range, |used| {
                        small = used.order.is_none_or(|order| order < Order::PAGEBLOCK);
                        small
                    });
                    small
                }
                Self::Any => true,
            }
    }
}

/// The ranges of `nr_pages` frames inside a zone's span that begin at a multiple of it.
fn candidates(zone: &Zone, nr_pages: u64) -> impl Iterator<Item = PfnRange> {
    let end = zone.span_end.load(Ordering::Relaxed);
    let first = zone.span_start.load(Ordering::Relaxed).checked_next_multiple_of(nr_pages).unwrap_or(u64::MAX);
    core::iter::successors(Some(first), move |at| at.checked_add(nr_pages))
        .map_while(move |at| at.checked_add(nr_pages).filter(|&to| to <= end).map(|to| PfnRange::new(Pfn(at), Pfn(to))))
}

/// New places from the allocator itself.
struct Elsewhere<'b, E: BuddyEnv> {
    buddy: &'b Buddy<E>,
    gfp: Gfp,
    node: NodeId,
    /// A target that was not needed for the block before.
    spare: Option<(Pfn, Order)>,
}

impl<E: BuddyEnv> Elsewhere<'_, E> {
    fn free(&self, pfn: Pfn, order: Order) {
        let freed = self.buddy.free_general(pfn, order);
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

impl<E: BuddyEnv> Destination for Elsewhere<'_, E> {
    fn target(&mut self, order: Order) -> Option<Pfn> {
        match self.spare.take() {
            Some((pfn, spare)) if spare == order => return Some(pfn),
            Some((pfn, spare)) => self.free(pfn, spare),
            None => {}
        }
        self.buddy.alloc_pages(self.gfp, order, Some(self.node)).ok()
    }

    fn unused(&mut self, target: Pfn, order: Order) {
        match self.spare {
            None => self.spare = Some((target, order)),
            Some(_) => self.free(target, order),
        }
    }

    fn vacated(&mut self, source: Pfn, order: Order) {
        self.free(source, order);
    }
}

impl<E: BuddyEnv> Drop for Elsewhere<'_, E> {
    fn drop(&mut self) {
        if let Some((pfn, order)) = self.spare.take() {
            self.free(pfn, order);
        }
    }
}

impl<E: BuddyEnv> Isolation<'_, E> {
    /// Moves everything out of the range that its owners move, to places that `gfp` finds. What stays is left as it was:
    /// [`is_free`](Self::is_free) says whether all went. Only where sleeping is allowed.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] if there is no place for a block; [`AllocError::Interrupted`] by a fatal signal.
    pub fn evacuate(&self, gfp: Gfp) -> Result<(), AllocError> {
        let hints = Gfp::RECLAIM | Gfp::IO | Gfp::FS | Gfp::NOWARN;
        let reach = if self.zone.kind >= ZoneKind::HighMem { Gfp::HIGHMEM } else { Gfp::empty() };
        let target = gfp.intersection(hints) | Gfp::MOVABLE | Gfp::RETRY_MAYFAIL | reach;
        let mut elsewhere = Elsewhere { buddy: self.buddy, gfp: target, node: self.zone.node, spare: None };
        for round in 0..ROUNDS {
            let mut at = self.range.start;
            let mut used = false;
            while at < self.range.end {
                if self.buddy.task_flags().contains(TaskFlags::FATAL_SIGNAL) {
                    return Err(AllocError::Interrupted);
                }
                let mut batch = Batch::new();
                let mut next = self.range.end;
                each_used(self.state, PfnRange::new(at, self.range.end), |block| {
                    used = true;
                    if batch.is_full() {
                        next = Pfn(block.pfn.0.max(at.0));
                        return false;
                    }
                    if let Some(isolated) = Isolated::new(self.buddy, self.state, block, gfp.contains(Gfp::FS)) {
                        batch.push(isolated);
                    }
                    true
                });
                at = next;
                if batch.is_empty() {
                    continue;
                }
                if batch.migrate(self.state, MigrateMode::Sync, &mut elsewhere).is_err() {
                    return Err(AllocError::NoMemory { order: Order::ZERO, gfp });
                }
            }
            if !used {
                break;
            }
            if round > 0 {
                self.buddy.env().context().yield_now();
            }
        }
        Ok(())
    }

    /// Takes the frames of the range, all of which must be free.
    ///
    /// # Errors
    /// [`AllocError::Busy`] names one that is not; nothing has changed.
    pub fn take(self, gfp: Gfp) -> Result<(), AllocError> {
        for (block, offset, end) in pageblocks(self.state, self.range).flatten() {
            let got = take_bits(&block, offset, end, &[u64::MAX; 8]);
            let nr: u32 = got.iter().map(|word| word.count_ones()).sum();
            self.buddy.account(self.state, self.zone, -i64::from(nr));
            if nr < end - offset {
                self.untake(&block, &got, nr);
                let first = block.first_frame();
                self.untake_below(Pfn(first.0 + u64::from(offset)));
                let busy = self.first_busy().unwrap_or(Pfn(first.0 + u64::from(offset)));
                return Err(AllocError::Busy(busy));
            }
            block.refile();
            block.recount();
        }
        let compound = gfp.contains(Gfp::COMP);
        for (block, offset, end) in pageblocks(self.state, self.range).flatten() {
            let head = u32::from(compound && block.first_frame().0 + u64::from(offset) == self.range.start.0);
            if compound {
                block.mark_frames_as_tails(offset + head, end);
            }
            if let Some(owned) = block.arena.owned.get(block.index) {
                owned.assign(offset, if compound { head } else { end - offset }, true);
            }
        }
        self.zone.allocated_pages.fetch_add(self.range.len(), Ordering::Relaxed);
        self.zone.allocated_calls.fetch_add(1, Ordering::Relaxed);
        let options = self.buddy.options();
        if (gfp.contains(Gfp::ZERO) || options.init_on_alloc) && !options.init_on_free {
            // SAFETY: just taken, and not handed out yet.
            unsafe { self.buddy.env().zero_frames(self.range) };
        }
        Ok(())
    }

    fn untake(&self, block: &crate::block::Block<'_>, got: &[u64; 8], nr: u32) {
        for (i, &mask) in got.iter().enumerate().filter(|&(_, &mask)| mask != 0) {
            // Nobody can have set bits that were ours.
            let put = block.put_bits(i as u32 * 64, mask);
            debug_assert!(put.is_ok(), "{put:?}");
        }
        self.buddy.account(self.state, self.zone, i64::from(nr));
    }

    /// Gives back all of the range below `end`.
    fn untake_below(&self, end: Pfn) {
        for (block, offset, end) in pageblocks(self.state, PfnRange::new(self.range.start, end)).flatten() {
            let mut got = [0u64; 8];
            let pieces = block.free_line().pieces(offset, end - offset);
            for (word, (_, mask)) in (offset as usize / 64..).zip(pieces) {
                if let Some(slot) = got.get_mut(word) {
                    *slot = mask;
                }
            }
            self.untake(&block, &got, end - offset);
        }
    }
}
