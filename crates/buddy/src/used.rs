//! What is in use in a range of frames: block by block, from the lines alone.
//!
//! ```text
//! free   1 1 0 0 0 0 1 0      tails  . . 0 1 0 0 . 0      used: a pair at 2, single frames at 4, 5 and 7
//! ```
//!
//! A frame in a per-CPU set looks like one that a caller has; who wants to tell them apart drains the sets first. All
//! of it is a moment's picture.

use kmem_gfp::{Order, Pfn, PfnRange};
use kmem_sync::atomic::Ordering;

use crate::block::Block;
use crate::line::{FRAMES, WORDS};
use crate::record::Record;
use crate::state::State;

/// A block in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    /// Its first frame.
    pub(crate) pfn: Pfn,
    /// Its order; `None` for what is left of a block that was freed in part.
    pub(crate) order: Option<Order>,
}

impl<'a> Block<'a> {
    /// The frames that exist, are managed and are not free, as bits.
    pub(crate) fn used_words(&self) -> [u64; WORDS] {
        let mut words = self.free_line().snapshot().map(|word| !word);
        if self.record().has(Record::GAPS)
            && let Some(gap) = self.gap()
        {
            for (word, hidden) in words.iter_mut().zip(gap.line.snapshot()) {
                *word &= !hidden;
            }
        }
        words
    }

    /// The first frame of `offset..end` that is reserved or does not exist.
    pub(crate) fn first_gap(&self, offset: u32, end: u32) -> Option<u32> {
        if !self.record().has(Record::GAPS) {
            return None;
        }
        self.gap()?.line.find(offset, end.saturating_sub(offset), true)
    }

    /// The block that the used frame at `offset` belongs to, and the first offset behind it.
    fn used_at(&self, offset: u32) -> (Used, u32) {
        let pfn = |at: u32| Pfn(self.first_frame().0 + u64::from(at));
        if !self.record().has(Record::TAILS) && !self.tail_line().is_set(offset) {
            return (Used { pfn: pfn(offset), order: Some(Order::ZERO) }, offset + 1);
        }
        let (block, head) = match self.tail_line().is_set(offset) {
            false => (*self, offset),
            true => match (0..offset).rev().find(|&at| !self.tail_line().is_set(at)) {
                Some(head) => (*self, head),
                // The second half of a pair, or what is left of one.
                None => match self.neighbour().filter(|_| !self.index.is_multiple_of(2)) {
                    Some(lower) => (lower, 0),
                    None => return (Used { pfn: pfn(offset), order: None }, offset + 1),
                },
            },
        };
        let len = block.allocated_len(head);
        let first = Pfn(block.first_frame().0 + u64::from(head));
        let order = if len.is_power_of_two() { Order::new(len.ilog2()) } else { None };
        let order = order.filter(|&order| first.is_aligned(order));
        let end = (first.0 + u64::from(len)).saturating_sub(self.first_frame().0).min(u64::from(FRAMES)) as u32;
        (Used { pfn: first, order }, end.max(offset + 1))
    }

    /// Calls `visit` with every block that has used frames in `offset..end`, upwards, as long as it returns `true`; whether
    /// it always did.
    pub(crate) fn each_used(&self, offset: u32, end: u32, mut visit: impl FnMut(Used) -> bool) -> bool {
        let words = self.used_words();
        let mut at = offset;
        while at < end.min(FRAMES) {
            let word = words.get(at as usize / 64).copied().unwrap_or(0) >> (at % 64);
            if word == 0 {
                at = (at & !63) + 64;
                continue;
            }
            at += word.trailing_zeros();
            if at >= end {
                break;
            }
            let (used, next) = self.used_at(at);
            if !visit(used) {
                return false;
            }
            at = next;
        }
        true
    }
}

/// The pageblocks that a range touches, each with the part of it that the range covers; stops with `None` at the first
/// one that is no memory.
pub(crate) fn pageblocks(state: &State, range: PfnRange) -> impl Iterator<Item = Result<(Block<'_>, u32, u32), Pfn>> {
    let mut at = range.start.0;
    core::iter::from_fn(move || {
        if at >= range.end.0 {
            return None;
        }
        let pfn = Pfn(at);
        let offset = (at % u64::from(FRAMES)) as u32;
        let len = u64::from(FRAMES - offset).min(range.end.0 - at) as u32;
        at += u64::from(len);
        let block = state.block_of(pfn).filter(|block| block.record().has(Record::PRESENT));
        Some(block.map(|block| (block, offset, offset + len)).ok_or(pfn))
    })
}

/// Calls `visit` with every block that has used frames in `range`, upwards, as long as it returns `true`.
pub(crate) fn each_used(state: &State, range: PfnRange, mut visit: impl FnMut(Used) -> bool) {
    let mut last = None;
    for part in pageblocks(state, range) {
        let Ok((block, offset, end)) = part else { continue };
        let proceed = block.each_used(offset, end, |used| {
            // The second half of a pair has been seen.
            let seen = last == Some(used.pfn);
            last = Some(used.pfn);
            seen || visit(used)
        });
        if !proceed {
            return;
        }
    }
}

/// The first frame of `range` that is not free; `None` if all are.
pub(crate) fn first_busy(state: &State, range: PfnRange) -> Option<Pfn> {
    for part in pageblocks(state, range) {
        let (block, offset, end) = match part {
            Ok(part) => part,
            Err(pfn) => return Some(pfn),
        };
        if let Some(at) = block.free_line().find(offset, end - offset, false) {
            return Some(Pfn(block.first_frame().0 + u64::from(at)));
        }
    }
    None
}

/// Takes the free frames of `offset..end` of a pageblock that `wanted` (a bit per frame) names; returns those it got. The
/// caller accounts and refiles.
pub(crate) fn take_bits(block: &Block<'_>, offset: u32, end: u32, wanted: &[u64; WORDS]) -> [u64; WORDS] {
    let mut got = [0; WORDS];
    let mut at = offset & !63;
    for (word, mask) in block.free_line().pieces(offset, end - offset) {
        let index = at as usize / 64;
        let mask = mask & wanted.get(index).copied().unwrap_or(0);
        at += 64;
        if mask == 0 {
            continue;
        }
        // SeqCst as every claim: see `Block::refile`.
        let old = word.fetch_and(!mask, Ordering::SeqCst);
        if let Some(slot) = got.get_mut(index) {
            *slot = old & mask;
        }
    }
    got
}
