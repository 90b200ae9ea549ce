//! What the machine looks like, over time.

use crate::program::Mark;
use serde::Serialize;
use std::sync::Mutex;
use std::sync::PoisonError;

/// One look.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// Where in the trace.
    pub mark: Mark,
    /// Bytes asked for, of all live objects.
    pub live_bytes: u64,
    /// Live objects.
    pub live_objects: u64,
    /// Pages of slabs.
    pub slab_pages: u64,
    /// Allocated pages, slabs included.
    pub total_pages: u64,
    /// Pages of addresses freed and not yet flushed.
    pub lazy_pages: u64,
    /// Free blocks by order, all zones together.
    pub free_blocks: Vec<u64>,
}

/// The looks of one replay, evenly spaced and never more than a thousand or two, however long the trace is.
#[derive(Debug, Default)]
pub struct Samples {
    kept: Mutex<Vec<Sample>>,
}

const MOST: usize = 2 * crate::program::MARKS as usize;

impl Samples {
    /// Keeps a look. When there are too many, every second goes; those at the beginning of a phase stay.
    pub fn push(&self, sample: Sample) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push(sample);
        if kept.len() >= MOST {
            let mut nth = 0;
            kept.retain(|s| {
                nth += 1;
                nth % 2 == 1 || s.mark.phase.is_some()
            });
        }
    }

    /// All that were kept.
    #[must_use]
    pub fn into_vec(self) -> Vec<Sample> {
        self.kept.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The share of free memory that a request of `order` cannot use, because it lies in smaller blocks: 0 to 1.
#[must_use]
pub fn unusable_index(free_blocks: &[u64], order: usize) -> f64 {
    let pages = |(order, blocks): (usize, &u64)| blocks << order;
    let free: u64 = free_blocks.iter().enumerate().map(pages).sum();
    let usable: u64 = free_blocks.iter().enumerate().skip(order).map(pages).sum();
    if free == 0 { 0.0 } else { (free - usable) as f64 / free as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_memory_in_single_pages_is_half_unusable() {
        assert!((unusable_index(&[8, 0, 0, 1], 3) - 0.5).abs() < 1e-9);
        assert!(unusable_index(&[8, 0, 0, 1], 0) < 1e-9);
        assert!(unusable_index(&[], 3) < 1e-9);
    }

    #[test]
    fn a_long_replay_keeps_a_bounded_number_of_looks() {
        let all = Samples::default();
        for event in 0..100_000 {
            let phase = (event == 777).then(|| "here".to_owned());
            all.push(Sample { mark: Mark { event, phase, ..Mark::default() }, ..Sample::default() });
        }
        let kept = all.into_vec();
        assert!(kept.len() <= MOST && kept.iter().any(|s| s.mark.phase.is_some()));
        assert!(kept.windows(2).all(|w| w[0].mark.event < w[1].mark.event));
    }
}
