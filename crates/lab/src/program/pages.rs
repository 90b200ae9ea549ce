//! Page frames of a trace: which live block each belongs to.
//!
//! Pages come and go in other units: a block of order 2 may be freed as four single pages, in any order, or together with a
//! neighbouring block. A free is therefore cut into pieces, each a naturally aligned part of one block.

use super::op::Ref;
use super::tables::{FrameMap, Slots};

/// One live block.
#[derive(Clone, Copy, Debug)]
struct Block {
    used: Ref,
    pfn: u64,
    live: u32,
}

/// One part of one block that is freed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Piece {
    pub(crate) block: Ref,
    pub(crate) offset: u32,
    pub(crate) order: u8,
    /// Nothing of the block is left.
    pub(crate) last: bool,
}

/// All live blocks.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// Slot plus one, by frame.
    of: FrameMap,
    blocks: Vec<Block>,
    slots: Slots,
    live: u64,
}

impl Pages {
    /// A block of `1 << order` pages from `pfn` on, all of which must be free here.
    pub(crate) fn alloc(&mut self, pfn: u64, order: u8) -> Ref {
        let used = self.slots.take(false);
        let block = Block { used, pfn, live: 1 << order };
        let at = used.slot as usize;
        match self.blocks.get_mut(at) {
            Some(place) => *place = block,
            None => self.blocks.push(block),
        }
        self.of.set_range(pfn, 1 << order, used.slot + 1);
        self.live += 1 << order;
        used
    }

    /// Takes back an allocation that has not been replayed.
    pub(crate) fn withdraw(&mut self, used: Ref, order: u8) {
        if let Some(block) = self.blocks.get_mut(used.slot as usize) {
            block.live = 0;
            let pfn = block.pfn;
            self.of.set_range(pfn, 1 << order, 0);
            self.live = self.live.saturating_sub(1 << order);
            self.slots.withdraw(used);
        }
    }

    /// True if the trace holds this frame.
    pub(crate) fn is_live(&self, pfn: u64) -> bool {
        self.of.get(pfn) != 0
    }

    /// Frees `count` pages from `pfn` on: tells `emit` the pieces, and returns how many of the pages were not live.
    pub(crate) fn free(&mut self, pfn: u64, count: u64, mut emit: impl FnMut(Piece)) -> u64 {
        let (mut at, end, mut strange) = (pfn, pfn.saturating_add(count), 0);
        while at < end {
            let slot = self.of.get(at);
            let Some(block) = (slot as usize).checked_sub(1).and_then(|s| self.blocks.get_mut(s)) else {
                strange += 1;
                at += 1;
                continue;
            };
            let offset = at - block.pfn;
            // As long a part as is aligned within the block, inside the freed range, and live.
            let mut order = 0u8;
            while order < 10 {
                let next = order + 1;
                let (size, half) = (1u64 << next, 1u64 << order);
                let fits = offset.is_multiple_of(size)
                    && at + size <= end
                    && (at + half..at + size).all(|p| self.of.get(p) == slot);
                if !fits {
                    break;
                }
                order = next;
            }
            let size = 1u32 << order;
            block.live = block.live.saturating_sub(size);
            let (used, last) = (block.used, block.live == 0);
            self.of.set_range(at, u64::from(size), 0);
            self.live = self.live.saturating_sub(u64::from(size));
            emit(Piece { block: used, offset: offset as u32, order, last });
            if last {
                self.slots.retire(used);
            }
            at += u64::from(size);
        }
        strange
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(p: &mut Pages, pfn: u64, count: u64) -> (Vec<(u32, u8, bool)>, u64) {
        let mut out = Vec::new();
        let strange = p.free(pfn, count, |x| out.push((x.offset, x.order, x.last)));
        (out, strange)
    }

    #[test]
    fn a_block_comes_back_in_other_units() {
        let mut p = Pages::default();
        let first = p.alloc(8, 2);
        p.alloc(12, 0);
        assert_eq!(free(&mut p, 9, 1), (vec![(1, 0, false)], 0));
        assert_eq!(free(&mut p, 8, 8), (vec![(0, 0, false), (2, 1, true), (0, 0, true)], 4));
        assert!(!p.is_live(10) && p.live == 0);
        let again = p.alloc(64, 3);
        assert_eq!((again.slot, again.turn), (first.slot, 2));
        assert_eq!(free(&mut p, 64, 8), (vec![(0, 3, true)], 0));
    }

    #[test]
    fn a_withdrawn_block_leaves_nothing() {
        let mut p = Pages::default();
        let used = p.alloc(4, 1);
        p.withdraw(used, 1);
        assert!(!p.is_live(4) && !p.is_live(5));
        assert_eq!(p.alloc(4, 0).turn, used.turn);
    }
}
