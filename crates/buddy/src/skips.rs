//! A bit per pageblock: a scanner of compaction found nothing here lately.
//!
//! ```text
//! 0 0 1 1 0 1 ...    64 pageblocks a word; one such map for each scanner, both forgotten at once
//! ```
//!
//! They are apart because a pageblock that cannot be emptied is a good place to move things to.

use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::table::{Carver, Table};

/// The skip hints of one arena.
#[derive(Debug)]
pub(crate) struct Skips {
    words: Table<AtomicU64>,
}

impl Skips {
    /// No pageblock is to be skipped.
    pub(crate) fn carve(carver: &mut Carver, nr_blocks: usize) -> Self {
        Self { words: carver.table(nr_blocks.div_ceil(64), |_| AtomicU64::new(0)) }
    }

    /// Whether a pageblock is to be skipped.
    pub(crate) fn is_set(&self, index: usize) -> bool {
        self.words.get(index / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (index % 64) & 1 != 0)
    }

    /// A pageblock yielded nothing.
    pub(crate) fn set(&self, index: usize) {
        if let Some(word) = self.words.get(index / 64) {
            word.fetch_or(1 << (index % 64), Ordering::Relaxed);
        }
    }

    /// A pageblock may be looked at again.
    pub(crate) fn clear(&self, index: usize) {
        if self.is_set(index)
            && let Some(word) = self.words.get(index / 64)
        {
            word.fetch_and(!(1 << (index % 64)), Ordering::Relaxed);
        }
    }
}
