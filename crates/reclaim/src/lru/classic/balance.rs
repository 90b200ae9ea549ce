//! How much of each list a pass looks at (R-20..R-23, R-45).

use kmem_sync::atomic::Ordering;

use super::Balance;
use crate::lru::PageKind;
use crate::lru::vector::{Counts, Kind};
use crate::{GroupId, Protection, Scan, ScanLimits, Swappiness};

/// Pages per GiB, as a shift.
const GIB_SHIFT: u32 = 30 - kmem_gfp::PAGE_SHIFT;
/// Pages that a pass looks at in a group that has gone, whatever the priority.
pub(crate) const LEFTOVER: u64 = 32;

/// Pages of a kind, inactive and active.
pub(super) fn sizes(counts: &Counts, kind: PageKind) -> (u64, u64) {
    (counts.get(Kind::evictable(kind, false)), counts.get(Kind::evictable(kind, true)))
}

/// whether too few pages of a kind are inactive.
pub(super) fn is_inactive_low(counts: &Counts, kind: PageKind) -> bool {
    let (inactive, active) = sizes(counts, kind);
    let gib = (inactive + active) >> GIB_SHIFT;
    let ratio = if gib > 0 { (10 * gib).isqrt() } else { 1 };
    inactive.saturating_mul(ratio) < active
}

/// What a list's size is taken for, after what protection leaves alone.
pub(crate) fn unprotected(size: u64, group: GroupId, protection: Protection, scan: &Scan<'_>) -> u64 {
    let protected = if scan.below_low { protection.min } else { protection.low.max(protection.min) };
    if group == scan.limits.root || protected == 0 {
        return size;
    }
    let of = u128::from(protection.usage.max(protected)) + 1;
    let spared = (u128::from(size) * u128::from(protected) / of) as u64;
    size.saturating_sub(spared).max(LEFTOVER)
}

/// The swappiness of a run in a group that may have its own.
pub(crate) fn swappiness(limits: &ScanLimits, own: Option<u8>) -> Swappiness {
    match (limits.swappiness, own) {
        (Swappiness::AnonOnly, _) => Swappiness::AnonOnly,
        (_, Some(own)) => Swappiness::Share(own.min(200)),
        (Swappiness::Share(share), None) => Swappiness::Share(share.min(200)),
    }
}

/// What a pass takes of anonymous and of file pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shares {
    /// File pages only.
    File,
    /// Anonymous pages only.
    Anon,
    /// Both, as they lie.
    Equal,
    /// Each kind's part of the sum of both parts.
    Parts([u64; 2]),
}

/// What the choice depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Situation {
    pub(super) can_swap: bool,
    pub(super) swappiness: Swappiness,
    /// Reclaim in a group, for its own limit.
    pub(super) in_group: bool,
    pub(super) priority: u8,
    pub(super) file_is_tiny: bool,
    pub(super) cache_trim: bool,
}

impl Balance {
    /// which kind, first match.
    pub(super) fn shares(&self, now: Situation) -> Shares {
        let share = match now.swappiness {
            Swappiness::Share(share) => u64::from(share),
            Swappiness::AnonOnly => 200,
        };
        if !now.can_swap || now.in_group && share == 0 {
            Shares::File
        } else if now.swappiness == Swappiness::AnonOnly {
            Shares::Anon
        } else if now.priority == 0 && share > 0 {
            Shares::Equal
        } else if now.file_is_tiny {
            Shares::Anon
        } else if now.cache_trim {
            Shares::File
        } else {
            let [anon, file] = &self.costs;
            Shares::Parts(fraction(share, anon.load(Ordering::Relaxed), file.load(Ordering::Relaxed)))
        }
    }

    /// Adds what a pass has cost, and forgets half of everything when the sum outgrows a quarter of the lists.
    pub(super) fn note_cost(&self, counts: &Counts, kind: PageKind, writes: u64, rotated: u64) {
        let [anon, file] = &self.costs;
        let cost = if kind == PageKind::Anon { anon } else { file };
        cost.fetch_add(writes * 32 + rotated, Ordering::Relaxed);
        let size: u64 = [PageKind::Anon, PageKind::File]
            .map(|kind| {
                let (inactive, active) = sizes(counts, kind);
                inactive + active
            })
            .iter()
            .sum();
        let (a, f) = (anon.load(Ordering::Relaxed), file.load(Ordering::Relaxed));
        if a + f > size / 4 {
            anon.store(a / 2, Ordering::Relaxed);
            file.store(f / 2, Ordering::Relaxed);
        }
    }

    /// Whether active pages of a kind may be deactivated: they are too many, or pages have come back since the last run.
    pub(super) fn may_deactivate(&self, counts: &Counts, kind: PageKind) -> bool {
        let at = kind.index();
        let (now, seen) = (self.refaults.get(at), self.seen.get(at));
        let changed = now.map(|n| n.load(Ordering::Relaxed)) != seen.map(|n| n.load(Ordering::Relaxed));
        changed || is_inactive_low(counts, kind)
    }

    /// A run begins: what has come back until now is known.
    pub(super) fn see_refaults(&self) {
        for (now, seen) in self.refaults.iter().zip(&self.seen) {
            seen.store(now.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// the parts of anonymous and file pages.
fn fraction(swappiness: u64, anon_cost: u64, file_cost: u64) -> [u64; 2] {
    // Each kind's own cost counts twice: once for itself, once in the sum.
    let sum = anon_cost + file_cost;
    let (a, f) = (sum + anon_cost, sum + file_cost);
    let total = a + f;
    [swappiness * (total + 1) / (a + 1), (200 - swappiness) * (total + 1) / (f + 1)]
}

/// pages of one list that a pass looks at.
pub(super) fn amount(size: u64, kind: PageKind, shares: Shares, priority: u8, online: bool) -> u64 {
    let mut scan = size.checked_shr(priority.into()).unwrap_or(0);
    if scan == 0 && !online {
        scan = size.min(LEFTOVER);
    }
    match shares {
        Shares::Equal => scan,
        Shares::File if kind == PageKind::File => scan,
        Shares::Anon if kind == PageKind::Anon => scan,
        Shares::File | Shares::Anon => 0,
        Shares::Parts([anon, file]) => {
            let part = if kind == PageKind::Anon { anon } else { file };
            let product = u128::from(scan) * u128::from(part);
            let of = u128::from((anon + file).max(1));
            (if online { product / of } else { product.div_ceil(of) }) as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(inactive: i64, active: i64) -> Counts {
        let counts = Counts::default();
        counts.add(Kind::InactiveAnon, inactive);
        counts.add(Kind::ActiveAnon, active);
        counts
    }

    #[test]
    fn the_inactive_ratio_grows_with_the_square_root_of_the_size() {
        //
        let low = |inactive, active| is_inactive_low(&counts(inactive, active), PageKind::Anon);
        assert!(low(9, 10) && !low(10, 10));
        let gib = 1 << 18;
        // 1 GiB: ratio 3; 10 GiB: 10; 100 GiB: 31
        assert!(low(gib / 4 - 1, gib * 3 / 4 + 1) && !low(gib / 4 + 1, gib * 3 / 4 - 1));
        assert!(!low(gib, 9 * gib) && low(gib - 100_000, 9 * gib + 100_000));
        assert!(!low(4 * gib, 96 * gib) && low(3 * gib, 97 * gib));
    }

    #[test]
    fn costs_turn_the_balance() {
        //
        assert_eq!(fraction(100, 0, 0), [100, 100]);
        assert_eq!(fraction(60, 0, 0), [60, 140]);
        let [anon, file] = fraction(100, 1000, 0);
        assert!(anon < file, "what costs more is taken less");
        // A = 2 x 1000 + 0, F = 0 + 1000, total 3000
        assert_eq!([anon, file], [100 * 3001 / 2001, 100 * 3001 / 1001]);
        assert_eq!(fraction(0, 5, 7)[0], 0);
        assert_eq!(fraction(200, 5, 7)[1], 0);
    }

    #[test]
    fn costs_are_halved_when_they_outgrow_a_quarter_of_the_lists() {
        // io x 32 + rotations
        let (balance, counts) = (Balance::default(), counts(1000, 1000));
        balance.note_cost(&counts, PageKind::Anon, 1, 3);
        assert_eq!(balance.costs[0].load(Ordering::Relaxed), 35);
        balance.note_cost(&counts, PageKind::File, 0, 400);
        assert_eq!(balance.costs[1].load(Ordering::Relaxed), 400);
        balance.note_cost(&counts, PageKind::Anon, 2, 2);
        assert_eq!((balance.costs[0].load(Ordering::Relaxed), balance.costs[1].load(Ordering::Relaxed)), (50, 200));
    }

    #[test]
    fn the_first_reason_that_applies_chooses_the_kind() {
        //
        let balance = Balance::default();
        let now = Situation {
            can_swap: true,
            swappiness: Swappiness::Share(60),
            in_group: false,
            priority: 12,
            file_is_tiny: false,
            cache_trim: false,
        };
        assert_eq!(balance.shares(now), Shares::Parts([60, 140]));
        assert_eq!(balance.shares(Situation { cache_trim: true, ..now }), Shares::File);
        let tiny = Situation { file_is_tiny: true, cache_trim: true, ..now };
        assert_eq!(balance.shares(tiny), Shares::Anon);
        assert_eq!(balance.shares(Situation { priority: 0, ..tiny }), Shares::Equal);
        let max = Situation { swappiness: Swappiness::AnonOnly, priority: 0, ..tiny };
        assert_eq!(balance.shares(max), Shares::Anon);
        let zero = Situation { swappiness: Swappiness::Share(0), ..now };
        assert_eq!(balance.shares(Situation { in_group: true, ..zero }), Shares::File);
        assert_eq!(balance.shares(zero), Shares::Parts([0, 200]));
        assert_eq!(balance.shares(Situation { can_swap: false, ..max }), Shares::File);
    }

    #[test]
    fn a_pass_looks_at_its_share_of_each_list() {
        //
        let parts = Shares::Parts([1, 2]);
        assert_eq!(amount(4096, PageKind::Anon, Shares::Equal, 12, true), 1);
        assert_eq!(amount(4095, PageKind::Anon, Shares::Equal, 12, true), 0);
        assert_eq!(amount(4095, PageKind::Anon, Shares::Equal, 12, false), 32);
        assert_eq!(amount(5, PageKind::Anon, Shares::Equal, 12, false), 5);
        assert_eq!(amount(100, PageKind::Anon, parts, 0, true), 33);
        assert_eq!(amount(100, PageKind::Anon, parts, 0, false), 34);
        assert_eq!(amount(100, PageKind::File, parts, 1, true), 33);
        assert_eq!(amount(100, PageKind::File, Shares::Anon, 0, true), 0);
    }
}
