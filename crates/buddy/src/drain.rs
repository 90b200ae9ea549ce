//! Emptying per-CPU sets from any CPU, switching them off, and the tunables.

use kmem_gfp::alloc_flags::MobilityGrouping;
use kmem_gfp::{Gfp, NodeId, Pfn, PfnRange, ZoneKind};
use kmem_sync::CpuId;
use kmem_sync::atomic::Ordering;

use crate::buddy::Buddy;
use crate::cpu::CpuBlock;
use crate::env::BuddyEnv;
use crate::pcp::STACKS;
use crate::state::State;
use crate::stats::Event;
use crate::watermark::TuneError;
use crate::zone::{Zone, flag};

impl<E: BuddyEnv> Buddy<E> {
    /// Moves every page of every CPU's sets back into the bitmaps (`drain_all_pages`). Only where sleeping is allowed: it
    /// shuts each CPU out of its section for a moment. If such a drain is already running nothing is done, and
    /// `false` returned.
    pub fn drain_all_pages(&self) -> bool {
        let Some(state) = self.state() else { return false };
        if state.draining.swap(true, Ordering::AcqRel) {
            return false;
        }
        state.count(Event::DrainAllPages);
        self.drain_where(state, |_| true);
        state.draining.swap(false, Ordering::AcqRel);
        true
    }

    /// As [`drain_all_pages`](Self::drain_all_pages) for one zone; waits for a drain that is already running.
    pub fn drain_zone_pages(&self, node: NodeId, kind: ZoneKind) {
        use kmem_sync::Cpu;
        let Some(state) = self.state() else { return };
        while state.draining.swap(true, Ordering::AcqRel) {
            self.env().cpu().relax();
        }
        self.drain_where(state, |zone| zone.node == node && zone.kind == kind);
        state.draining.swap(false, Ordering::AcqRel);
    }

    /// Moves the pages of this CPU's sets back. Any context.
    pub fn drain_local_pages(&self) {
        if let Some(state) = self.state() {
            self.section(|sets| self.drain_sets(state, sets, &|_| true));
        }
    }

    fn drain_where(&self, state: &State, wanted: impl Fn(&Zone) -> bool) {
        for block in state.cpus() {
            self.revoked(state, block, |block| self.drain_sets(state, block, &wanted));
        }
    }

    fn drain_sets(&self, state: &State, sets: &CpuBlock, wanted: &dyn Fn(&Zone) -> bool) {
        for zone in state.zones.iter().filter(|zone| wanted(zone)) {
            if let Some(set) = sets.zone_set(zone) {
                self.drain_pages(state, zone, set, 0, u64::MAX >> 16);
                for stack in 0..STACKS {
                    self.adjust_limit(zone, set, stack, 0);
                }
            }
        }
    }

    /// Switches the per-CPU sets of a zone off and empties them (`zone_pcp_disable`), or on again. While they are off every
    /// free reaches the bitmaps at once. Only where sleeping is allowed.
    #[doc(alias("zone_pcp_disable", "zone_pcp_enable"))]
    pub fn set_page_sets_enabled(&self, node: NodeId, kind: ZoneKind, enabled: bool) {
        let Some(state) = self.state() else { return };
        let Some(zone) = state.zone(node, kind) else { return };
        zone.set_flag(flag::SETS_OFF, !enabled);
        if !enabled {
            self.settle(state, zone);
            for set in state.sets_of(zone) {
                set.set_open(false);
            }
            self.drain_zone_pages(node, kind);
        }
        self.settle(state, zone);
    }

    /// Recomputes marks, reserves, set sizes and routes, after the size of memory or a tunable changed.
    pub(crate) fn reconfigure(&self, state: &State, with_min_free: bool) {
        let local_cpus = |node: NodeId| {
            (0..state.nr_cpus() as u32).filter(|&cpu| self.env().node_of_cpu(CpuId(cpu)) == node).count() as u32
        };
        state.config.with(self.env().cpu(), |()| {
            state.recompute(with_min_free, self.options().huge_pages, &local_cpus);
        });
        for block in state.cpus() {
            self.build_routes(state, block);
        }
        for zone in state.zones.iter() {
            self.settle(state, zone);
        }
        state.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// Which stack of this CPU serves each combination of the low five flag bits.
    fn build_routes(&self, state: &State, block: &CpuBlock) {
        let grouping =
            if state.grouping.load(Ordering::Relaxed) { MobilityGrouping::Enabled } else { MobilityGrouping::Disabled };
        let node = if block.node.0 < state.nr_nodes { block.node } else { NodeId(0) };
        for bits in 0..32u32 {
            let selection = state.zone_table.select(Gfp::from_bits_retain(bits), grouping).ok();
            let zone = selection.and_then(|selection| {
                state.zonelist(node).find(|zone| zone.kind <= selection.ceiling && zone.managed_pages() > 0)
            });
            let migratetype = selection.map(|selection| selection.migrate_type);
            block.set_route(bits as usize, zone.zip(migratetype));
        }
    }

    fn tune(&self, change: impl FnOnce(&State), with_min_free: bool) -> Result<(), TuneError> {
        let state = self.state().ok_or(TuneError::NotInitialised)?;
        change(state);
        self.reconfigure(state, with_min_free);
        Ok(())
    }

    /// Sets `min_free_kbytes` by hand; recomputing keeps it unless the automatic value is larger.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn set_min_free_kbytes(&self, kbytes: u64) -> Result<(), TuneError> {
        in_range(kbytes, 0, i64::MAX as u64 / 1024)?;
        self.tune(
            |state| {
                state.tunables.user_min_free_kbytes.store(kbytes as i64, Ordering::Relaxed);
                state.tunables.min_free_kbytes.store(kbytes, Ordering::Relaxed);
            },
            false,
        )
    }

    /// The present `min_free_kbytes`.
    pub fn min_free_kbytes(&self) -> u64 {
        self.state().map_or(0, |state| state.tunables.min_free_kbytes.load(Ordering::Relaxed))
    }

    /// Sets `watermark_scale_factor`: the distance of the marks in ten-thousandths of a zone, 1..=3000.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn set_watermark_scale_factor(&self, factor: u32) -> Result<(), TuneError> {
        in_range(u64::from(factor), 1, 3000)?;
        self.tune(|state| state.tunables.watermark_scale_factor.store(factor, Ordering::Relaxed), false)
    }

    /// Sets `watermark_boost_factor`: how far a boost may go, in ten-thousandths of the high mark; 0: never.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn set_watermark_boost_factor(&self, factor: u32) -> Result<(), TuneError> {
        let state = self.state().ok_or(TuneError::NotInitialised)?;
        state.tunables.watermark_boost_factor.store(factor, Ordering::Relaxed);
        Ok(())
    }

    /// Sets `lowmem_reserve_ratio` of one kind of zone; below 1: nothing is kept back.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn set_lowmem_reserve_ratio(&self, kind: ZoneKind, ratio: u32) -> Result<(), TuneError> {
        self.tune(
            |state| {
                if let Some(slot) = state.tunables.lowmem_reserve_ratio.get(kind.index()) {
                    slot.store(ratio, Ordering::Relaxed);
                }
            },
            false,
        )
    }

    /// Sets `percpu_pagelist_high_fraction`: 0 is automatic, else each CPU's set of a zone holds at most this fraction of
    /// the zone (at least 8) divided by the CPUs.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn set_percpu_pagelist_high_fraction(&self, fraction: u32) -> Result<(), TuneError> {
        if fraction != 0 {
            in_range(u64::from(fraction), 8, u64::from(u32::MAX))?;
        }
        self.tune(|state| state.tunables.percpu_pagelist_high_fraction.store(fraction, Ordering::Relaxed), false)
    }

    /// Lets only these flags pass from now on (`gfp_allowed_mask`): [`Gfp::BOOT_MASK`] until tasks can sleep,
    /// [`Gfp::all`] afterwards.
    #[doc(alias = "gfp_allowed_mask")]
    pub fn set_allowed_mask(&self, mask: Gfp) {
        if let Some(state) = self.state() {
            state.allowed_mask.store(mask.bits(), Ordering::Relaxed);
        }
    }

    /// Hands frames that were reserved to the allocator, or (`false`) takes none: the boot loader's memory, an
    /// initial file system (`adjust_managed_page_count`, `free_reserved_area`). Marks and reserves follow. Returns how
    /// many frames were not managed before and are free now.
    ///
    /// # Safety
    /// Nobody uses the frames of `range` that are reserved.
    #[doc(alias("adjust_managed_page_count", "free_reserved_area", "free_reserved_page"))]
    pub unsafe fn free_reserved(&self, range: PfnRange) -> u64 {
        let Some(state) = self.state() else { return 0 };
        let mut freed = 0;
        let mut at = range.start.0;
        while at < range.end.0 {
            let end = ((at / 512 + 1) * 512).min(range.end.0);
            if let Some(block) = state.block_of(Pfn(at))
                && let (Some(gap), Some(zone)) = (block.gap(), block.zone())
            {
                let mut here = 0;
                for pfn in at..end {
                    let offset = (pfn % 512) as u32;
                    let bit = 1u64 << (offset % 64);
                    let exists = gap.absent.get(offset as usize / 64).is_some_and(|word| word & bit == 0);
                    if exists
                        && gap.line.word(offset).fetch_and(!bit, Ordering::AcqRel) & bit != 0
                        && block.put(offset, 0).is_ok()
                    {
                        here += 1;
                    }
                }
                zone.managed.fetch_add(here, Ordering::Relaxed);
                self.account(state, zone, here as i64);
                freed += here;
            }
            at = end;
        }
        if freed > 0 {
            self.reconfigure(state, true);
        }
        freed
    }
}

fn in_range(value: u64, least: u64, most: u64) -> Result<(), TuneError> {
    if value < least || value > most { Err(TuneError::OutOfRange { value, least, most }) } else { Ok(()) }
}
