//! Watermarks, lowmem reserves and the sizes of per-CPU sets: arithmetic first, then its use on the zones.
//!
//! ```text
//! free pages of a zone
//!  high  ─── background reclaim stops           min + 2d
//!  low   ─── background reclaim wakes           min + d      d = max(share / 4, managed x scale / 10000)
//!  min   ─── reserves begin                     share of min_free_kbytes
//! ```
//! Every reader adds the zone's boost to each mark. Recomputed under the configuration lock.

use kmem_gfp::{NodeId, PAGE_SIZE, Watermark, ZoneKind};
use kmem_sync::atomic::Ordering;

use crate::state::State;
use crate::zone::Zone;

/// `min_free_kbytes` as computed from the low memory of the machine, in KiB: `isqrt(lowmem x 16)` between 128 and 262144.
pub const fn automatic_min_free_kbytes(lowmem_kbytes: u64) -> u64 {
    let root = lowmem_kbytes.saturating_mul(16).isqrt();
    if root < 128 {
        128
    } else if root > 262_144 {
        262_144
    } else {
        root
    }
}

/// The marks of a zone without boost, in pages: min, low, high, promo.
///
/// `share_pages` is the zone's part of `min_free_kbytes`; `is_lowmem` says whether the zone counts as low memory (high
/// and movable memory keep only a small min mark, but their full share as distance).
pub const fn zone_marks(managed_pages: u64, share_pages: u64, is_lowmem: bool, scale_factor: u32) -> [u64; 4] {
    let min = if is_lowmem {
        share_pages
    } else {
        let pages = managed_pages / 1024;
        if pages < 32 {
            32
        } else if pages > 128 {
            128
        } else {
            pages
        }
    };
    let scaled = (managed_pages as u128 * scale_factor as u128 / 10_000) as u64;
    let distance = if share_pages / 4 > scaled { share_pages / 4 } else { scaled };
    [min, min + distance, min + 2 * distance, min + 3 * distance]
}

/// How many order-0 pages move between a per-CPU set and the bitmaps at once.
#[doc(alias = "zone_batchsize")]
pub const fn pcp_batch(managed_pages: u64) -> u32 {
    let limit = (256 * 1024 / PAGE_SIZE) as u64;
    let pages = if managed_pages / 4096 < limit { managed_pages / 4096 } else { limit };
    if pages <= 1 {
        return 1;
    }
    let target = pages + pages / 2;
    (1 << target.ilog2()) - 1
}

/// The lower and the upper limit of a set's `high`, in pages, for a zone with `local_cpus` CPUs on its node (or all, if
/// there are none). With a `high_fraction` both are the same, and nothing adapts.
#[doc(alias = "zone_highsize")]
pub const fn pcp_high(
    managed_pages: u64,
    low_mark: u64,
    local_cpus: u32,
    batch: u32,
    high_fraction: u32,
) -> (u32, u32) {
    let cpus = if local_cpus == 0 { 1 } else { local_cpus as u64 };
    let (min, max) = if high_fraction == 0 {
        (low_mark / cpus, managed_pages / 8 / cpus)
    } else {
        (managed_pages / high_fraction as u64 / cpus, managed_pages / high_fraction as u64 / cpus)
    };
    let floor = batch as u64 * 4;
    let min = if min < floor { floor } else { min };
    let max = if max < floor { floor } else { max };
    (
        if min > u32::MAX as u64 { u32::MAX } else { min as u32 },
        if max > u32::MAX as u64 { u32::MAX } else { max as u32 },
    )
}

/// What a zone keeps back from a request that could use zones with `higher_managed` pages above it.
pub const fn lowmem_reserve(higher_managed: u64, ratio: u32) -> u64 {
    if ratio < 1 { 0 } else { higher_managed / ratio as u64 }
}

/// How far a boost goes: one pageblock more, at most `high x factor / 10000` (and at least one pageblock).
pub const fn boosted(boost: u64, high_mark: u64, factor: u32) -> u64 {
    let most = (high_mark as u128 * factor as u128 / 10_000) as u64;
    let most = if most < 512 { 512 } else { most };
    if boost + 512 < most { boost + 512 } else { most }
}

/// Why a tunable was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TuneError {
    /// The value is not one that the tunable can have.
    #[error("{value} is not between {least} and {most}")]
    OutOfRange {
        /// The value given.
        value: u64,
        /// The smallest one allowed.
        least: u64,
        /// The largest one allowed.
        most: u64,
    },
    /// The allocator has not been initialised yet.
    #[error("the allocator has not been initialised")]
    NotInitialised,
}

/// Whether a zone of this kind counts as low memory.
pub(crate) const fn is_lowmem(kind: ZoneKind) -> bool {
    matches!(kind, ZoneKind::Dma | ZoneKind::Dma32 | ZoneKind::Normal)
}

impl State {
    fn managed_where(&self, counts: impl Fn(&Zone) -> bool) -> u64 {
        self.zones.iter().filter(|zone| counts(zone)).map(Zone::managed_pages).sum()
    }

    /// Recomputes `min_free_kbytes` from the size of memory.
    fn compute_min_free(&self, huge_pages: bool) {
        let lowmem: u64 = self
            .zones
            .iter()
            .filter(|zone| is_lowmem(zone.kind))
            .map(|zone| zone.managed_pages().saturating_sub(zone.mark(Watermark::High)))
            .sum();
        let page_kbytes = PAGE_SIZE as u64 / 1024;
        let mut kbytes = automatic_min_free_kbytes(lowmem * page_kbytes);
        if huge_pages {
            // Two pageblocks to compact with, and three times the number of mergeable types squared (11 in all).
            let populated =
                self.zones.iter().filter(|zone| zone.managed_pages() > 0 && is_lowmem(zone.kind)).count() as u64;
            let wanted = (populated * 11 * 512).min(lowmem / 20) * page_kbytes;
            kbytes = kbytes.max(wanted);
        }
        let user = self.tunables.user_min_free_kbytes.load(Ordering::Relaxed);
        if user < 0 || kbytes as i64 > user {
            self.tunables.min_free_kbytes.store(kbytes, Ordering::Relaxed);
        }
    }

    fn compute_reserves(&self) {
        for node in 0..self.nr_nodes {
            let zones = self.zones_of(NodeId(node));
            for (i, zone) in zones.iter().enumerate() {
                let ratio = self
                    .tunables
                    .lowmem_reserve_ratio
                    .get(zone.kind.index())
                    .map_or(0, |ratio| ratio.load(Ordering::Relaxed));
                let mut higher = 0;
                for ceiling in ZoneKind::ALL {
                    let above = zones.iter().skip(i + 1).find(|other| other.kind == ceiling);
                    higher += above.map_or(0, Zone::managed_pages);
                    let pages = if ceiling > zone.kind { lowmem_reserve(higher, ratio) } else { 0 };
                    // A clear zone has nothing to keep.
                    let pages = if zone.managed_pages() == 0 { 0 } else { pages };
                    if let Some(reserve) = zone.lowmem_reserve.get(ceiling.index()) {
                        reserve.store(pages, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    fn compute_marks(&self) {
        let pages_min = self.tunables.min_free_kbytes.load(Ordering::Relaxed) * 1024 / PAGE_SIZE as u64;
        let lowmem = self.managed_where(|zone| is_lowmem(zone.kind)).max(1);
        let scale = self.tunables.watermark_scale_factor.load(Ordering::Relaxed);
        for zone in self.zones.iter() {
            let managed = zone.managed_pages();
            let share = (u128::from(pages_min) * u128::from(managed) / u128::from(lowmem)) as u64;
            let marks = zone_marks(managed, share, is_lowmem(zone.kind), scale);
            for (slot, mark) in zone.marks.iter().zip(marks) {
                slot.store(mark, Ordering::Relaxed);
            }
            zone.boost.store(0, Ordering::Relaxed);
        }
    }

    /// The level above which no request needs a look at the marks.
    pub(crate) fn compute_comfort(&self, zone: &Zone) {
        let reserve = ZoneKind::ALL.into_iter().map(|kind| zone.lowmem_reserve(kind)).max().unwrap_or(0);
        let isolated = zone.isolated_blocks.load(Ordering::Relaxed) * 512;
        let apart = zone.reserved_highatomic_pages() + zone.cma_pages.load(Ordering::Relaxed) + isolated;
        let low = zone.mark(Watermark::Low) + reserve + apart + 512;
        let comfort = low.max(zone.mark(Watermark::High)) + zone.boost_pages();
        zone.comfort.store(comfort as i64, Ordering::Relaxed);
    }

    fn compute_set_sizes(&self, local_cpus: &dyn Fn(NodeId) -> u32) {
        let fraction = self.tunables.percpu_pagelist_high_fraction.load(Ordering::Relaxed);
        for zone in self.zones.iter() {
            let batch = pcp_batch(zone.managed_pages());
            let cpus = match local_cpus(zone.node) {
                0 => self.nr_cpus() as u32,
                cpus => cpus,
            };
            let (min, max) = pcp_high(zone.managed_pages(), zone.mark(Watermark::Low), cpus, batch, fraction);
            for set in self.sets_of(zone) {
                set.batch.store(batch, Ordering::Relaxed);
                set.high_min.store(min, Ordering::Relaxed);
                set.high_max.store(max, Ordering::Relaxed);
                let high = crate::tuning::between(set.high.load(Ordering::Relaxed), min, max);
                set.high.store(high, Ordering::Relaxed);
            }
        }
    }

    /// Recomputes everything that follows from the size of memory and the tunables.
    pub(crate) fn recompute(&self, with_min_free: bool, huge_pages: bool, local_cpus: &dyn Fn(NodeId) -> u32) {
        if with_min_free {
            self.compute_min_free(huge_pages);
        }
        self.compute_reserves();
        self.compute_marks();
        self.compute_set_sizes(local_cpus);
        for zone in self.zones.iter() {
            self.compute_comfort(zone);
        }
        let above: u64 =
            self.zones.iter().map(|zone| zone.managed_pages().saturating_sub(zone.mark(Watermark::High))).sum();
        self.grouping.store(above >= 512 * kmem_gfp::MigrateType::COUNT as u64, Ordering::Relaxed);
    }

    /// Pages that user space can never have (`totalreserve_pages`).
    pub(crate) fn total_reserve(&self) -> u64 {
        self.zones
            .iter()
            .map(|zone| {
                let reserve = ZoneKind::ALL.into_iter().map(|kind| zone.lowmem_reserve(kind)).max().unwrap_or(0);
                (reserve + zone.mark(Watermark::High)).min(zone.managed_pages())
            })
            .sum()
    }
}
