//! Refault feedback: which kind, and which tiers of a kind, come back less often once they are evicted (R-30).
//!
//! ```text
//! rate = (refaulted + average) / (evicted + protected + average)      averages halve with each generation that ends
//! ```

use kmem_sync::atomic::Ordering;

use super::{Shared, TIERS};
use crate::lru::PageKind;

/// Evictions and refaults below this number say nothing.
const NOISE: u64 = 64;

/// What has been learnt of ended generations, by kind and tier.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Feedback {
    refaulted: [[u64; TIERS]; 2],
    total: [[u64; TIERS]; 2],
    /// Pages of the oldest generation that were spared for their tier.
    protected: [[u64; TIERS]; 2],
}

/// A rate with its weight.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    pub(crate) refaulted: u64,
    pub(crate) total: u64,
    pub(crate) gain: u64,
}

impl Rate {
    /// Whether pages with the rate `self` may be taken rather than those with `other`: they come back no more often, by the
    /// weights, or too seldom to tell.
    pub(crate) fn is_no_worse_than(self, other: Self) -> bool {
        let mine = u128::from(self.refaulted) * u128::from(other.total + NOISE) * u128::from(other.gain);
        let theirs = u128::from(other.refaulted + 1) * u128::from(self.total) * u128::from(self.gain);
        self.refaulted < NOISE || mine <= theirs
    }
}

impl Feedback {
    /// A page of the oldest generation is spared for its tier.
    pub(crate) fn protect(&mut self, kind: PageKind, tier: usize) {
        if let Some(n) = self.protected.get_mut(kind.index()).and_then(|tiers| tiers.get_mut(tier)) {
            *n += 1;
        }
    }

    /// The rate of the tiers `from..to` of a kind.
    pub(crate) fn rate(&self, shared: &Shared, kind: PageKind, from: usize, to: usize, gain: u64) -> Rate {
        let mut rate = Rate { gain, ..Rate::default() };
        let at = kind.index();
        let tiers = self.refaulted.get(at).into_iter().flatten().zip(self.total.get(at).into_iter().flatten());
        let spared = self.protected.get(at).into_iter().flatten();
        let (back, gone) =
            (shared.refaulted.get(at).into_iter().flatten(), shared.evicted.get(at).into_iter().flatten());
        for (((average, protected), back), gone) in tiers.zip(spared).zip(back).zip(gone).take(to).skip(from) {
            rate.refaulted += average.0 + back.load(Ordering::Relaxed);
            rate.total += average.1 + protected + gone.load(Ordering::Relaxed);
        }
        rate
    }

    /// The oldest generation of a kind has ended: what was counted in its time becomes half of the averages.
    pub(crate) fn close(&mut self, shared: &Shared, kind: PageKind) {
        let at = kind.index();
        for tier in 0..TIERS {
            let Some((refaulted, total)) = self
                .refaulted
                .get_mut(at)
                .and_then(|tiers| tiers.get_mut(tier))
                .zip(self.total.get_mut(at).and_then(|tiers| tiers.get_mut(tier)))
            else {
                continue;
            };
            let take = |counts: &[[kmem_sync::atomic::AtomicU64; TIERS]; 2]| {
                counts.get(at).and_then(|tiers| tiers.get(tier)).map_or(0, |count| count.swap(0, Ordering::Relaxed))
            };
            *refaulted = (*refaulted + take(&shared.refaulted)) / 2;
            let protected = self.protected.get_mut(at).and_then(|tiers| tiers.get_mut(tier)).map_or(0, core::mem::take);
            *total = (*total + take(&shared.evicted) + protected) / 2;
        }
    }

    /// The highest tier of the oldest generation that is not spared: the tiers above come back more often than the first, by
    /// a gain of 3 to 2.
    pub(crate) fn last_tier(&self, shared: &Shared, kind: PageKind) -> usize {
        let first = self.rate(shared, kind, 0, 1, 2);
        let spared = (1..TIERS).find(|&tier| !self.rate(shared, kind, tier, tier + 1, 3).is_no_worse_than(first));
        spared.map_or(TIERS - 1, |tier| tier - 1)
    }

    /// The kind to take from at a swappiness of 1..=199 (R-30).
    pub(crate) fn kind(&self, shared: &Shared, swappiness: u64) -> PageKind {
        let anon = self.rate(shared, PageKind::Anon, 0, TIERS, swappiness);
        let file = self.rate(shared, PageKind::File, 0, TIERS, 200 - swappiness);
        if file.is_no_worse_than(anon) { PageKind::File } else { PageKind::Anon }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(shared: &Shared, kind: PageKind, tier: usize, evicted: u64, refaulted: u64) {
        shared.evicted[kind.index()][tier].fetch_add(evicted, Ordering::Relaxed);
        shared.refaulted[kind.index()][tier].fetch_add(refaulted, Ordering::Relaxed);
    }

    #[test]
    fn the_kind_that_comes_back_less_often_is_taken() {
        // R-30
        let (shared, feedback) = (Shared::default(), Feedback::default());
        assert_eq!(feedback.kind(&shared, 100), PageKind::File, "nothing known");
        counted(&shared, PageKind::File, 0, 1000, 500);
        counted(&shared, PageKind::Anon, 0, 1000, 100);
        assert_eq!(feedback.kind(&shared, 100), PageKind::Anon);
        assert_eq!(feedback.kind(&shared, 10), PageKind::File, "the gains are swappiness to 200 - swappiness");
        counted(&shared, PageKind::Anon, 2, 0, 900);
        assert_eq!(feedback.kind(&shared, 100), PageKind::File);
    }

    #[test]
    fn a_tier_that_comes_back_more_often_is_spared() {
        // R-30: gain 2:3 of the first tier
        let (shared, feedback) = (Shared::default(), Feedback::default());
        assert_eq!(feedback.last_tier(&shared, PageKind::File), TIERS - 1);
        counted(&shared, PageKind::File, 0, 1000, 100);
        counted(&shared, PageKind::File, 1, 1000, 140);
        assert_eq!(feedback.last_tier(&shared, PageKind::File), TIERS - 1, "not by half as much again");
        counted(&shared, PageKind::File, 2, 1000, 300);
        assert_eq!(feedback.last_tier(&shared, PageKind::File), 1);
        counted(&shared, PageKind::File, 1, 0, 100);
        assert_eq!(feedback.last_tier(&shared, PageKind::File), 0);
    }

    #[test]
    fn a_closed_generation_counts_half() {
        let (shared, mut feedback) = (Shared::default(), Feedback::default());
        counted(&shared, PageKind::Anon, 0, 60, 80);
        for _ in 0..40 {
            feedback.protect(PageKind::Anon, 0);
        }
        feedback.close(&shared, PageKind::Anon);
        let rate = feedback.rate(&shared, PageKind::Anon, 0, TIERS, 1);
        assert_eq!((rate.refaulted, rate.total), (40, 50));
        feedback.close(&shared, PageKind::Anon);
        let rate = feedback.rate(&shared, PageKind::Anon, 0, TIERS, 1);
        assert_eq!((rate.refaulted, rate.total), (20, 25));
    }
}
