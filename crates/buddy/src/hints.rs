//! Where to look for a free block: for each migratetype and order a two-level bitmap over pageblocks.
//!
//! ```text
//! (Movable, 3)   leaves     0100 0000 | 0000 0000 | 1000 0001     a bit per pageblock
//!                summaries  1           0           1             a bit per word of leaves
//! ```
//!
//! A set leaf says "the largest free block of this pageblock probably has this order". Hints are never trusted: whoever
//! follows one looks at the pageblock's line. They are set after the frames were freed and checked again after
//! having been cleared, so no free block stays without its hint (see `Block::refile`).

use kmem_sync::atomic::{AtomicU64, Ordering, fence_after_rmw};

use crate::table::{Carver, Table};

/// Migratetypes that can be allocated from: all but `Isolate`.
pub(crate) const TYPES: usize = 5;
/// Orders with a bitmap of their own: 0..=9. A block of order 10 is two neighbours under 9.
pub(crate) const ORDERS: usize = 10;

/// The bitmaps of one arena.
#[derive(Debug)]
pub(crate) struct Hints {
    leaves: Table<AtomicU64>,
    summaries: Table<AtomicU64>,
    nr_words: usize,
    nr_summaries: usize,
}

impl Hints {
    /// Empty bitmaps over `nr_blocks` pageblocks.
    pub(crate) fn carve(carver: &mut Carver, nr_blocks: usize) -> Self {
        let nr_words = nr_blocks.div_ceil(64);
        let nr_summaries = nr_words.div_ceil(64);
        let tables = TYPES * ORDERS;
        Self {
            leaves: carver.table(nr_words.saturating_mul(tables), |_| AtomicU64::new(0)),
            summaries: carver.table(nr_summaries.saturating_mul(tables), |_| AtomicU64::new(0)),
            nr_words,
            nr_summaries,
        }
    }

    #[inline(always)]
    fn leaf(&self, list: usize, word: usize) -> Option<&AtomicU64> {
        self.leaves.get(list * self.nr_words + word)
    }

    #[inline(always)]
    fn summary(&self, list: usize, word: usize) -> Option<&AtomicU64> {
        self.summaries.get(list * self.nr_summaries + word / 64)
    }

    /// The number of the bitmap of a type and an order.
    #[inline(always)]
    pub(crate) const fn list(migratetype: usize, order: u32) -> usize {
        migratetype * ORDERS + order as usize
    }

    /// Whether no hint is set in a bitmap.
    #[inline(always)]
    pub(crate) fn is_empty(&self, list: usize) -> bool {
        let first = list * self.nr_summaries;
        let summaries = self.summaries.get(first..first + self.nr_summaries).unwrap_or(&[]);
        summaries.iter().all(|summary| summary.load(Ordering::SeqCst) == 0)
    }

    /// Sets a hint.
    pub(crate) fn set(&self, list: usize, block: usize) {
        let word = block / 64;
        let (Some(leaf), Some(summary)) = (self.leaf(list, word), self.summary(list, word)) else { return };
        let bit = 1 << (block % 64);
        if leaf.load(Ordering::SeqCst) & bit == 0 {
            leaf.fetch_or(bit, Ordering::SeqCst);
            fence_after_rmw();
        }
        // After the leaf: whoever clears the summary looks at the leaves once more.
        if summary.load(Ordering::SeqCst) >> (word % 64) & 1 == 0 {
            summary.fetch_or(1 << (word % 64), Ordering::SeqCst);
        }
    }

    /// Sets all hints of `from..to`. Only while nobody else uses the bitmaps.
    pub(crate) fn fill(&self, list: usize, from: usize, to: usize) {
        let mut block = from;
        while block < to {
            let end = (block / 64 * 64 + 64).min(to);
            let bits = crate::bits::low((end - block) as u32) << (block % 64);
            if let (Some(leaf), Some(summary)) = (self.leaf(list, block / 64), self.summary(list, block / 64)) {
                leaf.fetch_or(bits, Ordering::Relaxed);
                summary.fetch_or(1 << (block / 64 % 64), Ordering::Relaxed);
            }
            block = end;
        }
    }

    /// Clears a hint.
    pub(crate) fn clear(&self, list: usize, block: usize) {
        let word = block / 64;
        let (Some(leaf), Some(summary)) = (self.leaf(list, word), self.summary(list, word)) else { return };
        let bit = 1 << (block % 64);
        if leaf.load(Ordering::SeqCst) & bit == 0 || leaf.fetch_and(!bit, Ordering::SeqCst) & !bit != 0 {
            return;
        }
        summary.fetch_and(!(1 << (word % 64)), Ordering::SeqCst);
        fence_after_rmw();
        if leaf.load(Ordering::SeqCst) != 0 {
            summary.fetch_or(1 << (word % 64), Ordering::SeqCst);
        }
    }

    /// The first pageblock of `from..to` with a hint that `filter` leaves of its word of leaves.
    #[inline(always)]
    pub(crate) fn find(&self, list: usize, from: usize, to: usize, filter: impl Fn(u64) -> u64) -> Option<usize> {
        let mut word = from / 64;
        while word * 64 < to {
            let above = self.summary(list, word)?.load(Ordering::SeqCst) >> (word % 64);
            if above == 0 {
                word = (word / 64 + 1) * 64;
                continue;
            }
            word += above.trailing_zeros() as usize;
            if word * 64 >= to {
                return None;
            }
            let mut bits = filter(self.leaf(list, word)?.load(Ordering::SeqCst));
            if word * 64 < from {
                bits &= u64::MAX << (from % 64);
            }
            if bits != 0 {
                let block = word * 64 + bits.trailing_zeros() as usize;
                return (block < to).then_some(block);
            }
            word += 1;
        }
        None
    }
}
