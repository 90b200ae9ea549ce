//! Statistics: what is counted, and how the counts of CPUs and of the shared part add up.
//!
//! Nothing on the fast path counts allocations: a stack knows how many blocks came in from the bitmaps, how many callers
//! pushed and how many lie there, and the rest has been handed out.

use kmem_gfp::{NodeId, ZoneKind};
use kmem_sync::atomic::Ordering;

use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::state::State;
use crate::zone::Zone;

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Something that happened, of the kind that `/proc/vmstat` counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Event { $($(#[$doc])* $name),+ }

        impl Event {
            /// How many events are counted.
            pub const COUNT: usize = [$(Self::$name),+].len();
        }
    };
}

events! {
    /// A direct reclaim began for a request with ceiling DMA.
    AllocStallDma,
    /// ... DMA32.
    AllocStallDma32,
    /// ... Normal.
    AllocStallNormal,
    /// ... high memory.
    AllocStallHighMem,
    /// ... Movable.
    AllocStallMovable,
    /// A node was reclaimed from before another one was used, and that freed something.
    ZoneReclaimSuccess,
    /// ... and that freed nothing.
    ZoneReclaimFailed,
    /// A direct compaction began.
    CompactStall,
    /// It did not lead to a block.
    CompactFail,
    /// It did.
    CompactSuccess,
    /// The last resort was asked.
    OutOfMemory,
    /// A pageblock was taken over from another migratetype.
    PageblockClaimed,
    /// A block was taken out of another migratetype's pageblock.
    PageblockStolen,
    /// A watermark was boosted.
    WatermarkBoost,
    /// The per-CPU sets were drained because memory was short.
    DrainAllPages,
    /// A page leaving a per-CPU set turned out not to be an allocated block of its order, and was dropped.
    BadFree,
    /// A page was moved (`pgmigrate_success`).
    MigrateSuccess,
    /// A page could not be moved (`pgmigrate_fail`).
    MigrateFail,
    /// Compaction looked at a page that might be moved.
    CompactMigrateScanned,
    /// Compaction looked at a page that might be a new place.
    CompactFreeScanned,
    /// Compaction took a page out of circulation, to move it or to move something there.
    CompactIsolated,
    /// The compaction daemon of a node began to work.
    CompactDaemonWake,
    /// Of [`CompactMigrateScanned`](Self::CompactMigrateScanned), the daemons' part.
    CompactDaemonMigrateScanned,
    /// Of [`CompactFreeScanned`](Self::CompactFreeScanned), the daemons' part.
    CompactDaemonFreeScanned,
}

impl Event {
    /// The stall event of a ceiling.
    pub(crate) const fn alloc_stall(ceiling: ZoneKind) -> Self {
        match ceiling {
            ZoneKind::Dma => Self::AllocStallDma,
            ZoneKind::Dma32 => Self::AllocStallDma32,
            ZoneKind::Normal => Self::AllocStallNormal,
            ZoneKind::HighMem => Self::AllocStallHighMem,
            ZoneKind::Movable => Self::AllocStallMovable,
        }
    }
}

/// The counters of one zone, all CPUs added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneStats {
    /// Pages handed out (`pgalloc_*`).
    pub allocated_pages: u64,
    /// Calls that handed out something.
    pub allocated_calls: u64,
    /// Pages taken back that lay in this zone (`pgfree` is the sum over zones).
    pub freed_pages: u64,
    /// Served here as preferred.
    pub numa_hit: u64,
    /// Served here though another node was preferred.
    pub numa_miss: u64,
    /// Preferred here but served elsewhere.
    pub numa_foreign: u64,
    /// Served to a CPU of this node.
    pub numa_local: u64,
    /// Served to a CPU of another node.
    pub numa_other: u64,
    /// Free pages in per-CPU sets.
    pub cached_pages: u64,
}

impl State {
    /// The counters of a zone; a moment's value.
    pub(crate) fn zone_stats(&self, zone: &Zone) -> ZoneStats {
        let mut pages = zone.allocated_pages.load(Ordering::Relaxed) as i64;
        let mut calls = zone.allocated_calls.load(Ordering::Relaxed) as i64;
        let mut freed = zone.freed_pages.load(Ordering::Relaxed) as i64;
        let mut miss = zone.numa_miss.load(Ordering::Relaxed) as i64;
        let mut foreign = zone.numa_foreign.load(Ordering::Relaxed) as i64;
        let mut other = zone.numa_other.load(Ordering::Relaxed) as i64;
        let mut cached = 0;
        for set in self.sets_of(zone) {
            pages += set.allocated_pages.get() + set.popped_pages();
            calls += set.allocated_calls.get() + set.popped_calls();
            freed += set.freed_pages.get() + set.pushed_pages();
            miss += set.numa_miss.get();
            foreign += set.numa_foreign.get();
            other += set.numa_other.get();
            cached += set.pages();
        }
        let count = |n: i64| n.max(0) as u64;
        ZoneStats {
            allocated_pages: count(pages),
            allocated_calls: count(calls),
            freed_pages: count(freed),
            numa_hit: count(calls - miss),
            numa_miss: count(miss),
            numa_foreign: count(foreign),
            numa_local: count(calls - other),
            numa_other: count(other),
            cached_pages: cached,
        }
    }
}

impl<E: BuddyEnv> Buddy<E> {
    /// Every zone, populated or not, by node and then by kind.
    pub fn zones(&self) -> impl Iterator<Item = &Zone> {
        self.state().into_iter().flat_map(|state| state.zones.iter())
    }

    /// One zone; `None` if this machine has no such zone.
    pub fn zone(&self, node: NodeId, kind: ZoneKind) -> Option<&Zone> {
        self.state()?.zone(node, kind)
    }

    /// The counters of a zone of this allocator; a moment's value.
    pub fn zone_stats(&self, zone: &Zone) -> ZoneStats {
        self.state().map_or_else(ZoneStats::default, |state| state.zone_stats(zone))
    }

    /// How often something happened.
    pub fn event(&self, event: Event) -> u64 {
        let counter = self.state().and_then(|state| state.events.get(event as usize));
        counter.map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Bytes of bookkeeping memory in use.
    pub fn metadata_bytes(&self) -> u64 {
        self.state().map_or(0, |state| state.metadata_bytes.load(Ordering::Relaxed))
    }

    /// Pages that exist and are not reserved, in all zones.
    pub fn managed_pages(&self) -> u64 {
        self.zones().map(Zone::managed_pages).sum()
    }

    /// Free pages in all zones, without those in per-CPU sets.
    #[doc(alias = "nr_free_pages")]
    pub fn free_page_count(&self) -> u64 {
        self.zones().map(Zone::free_pages).sum()
    }

    /// Pages that no user of the machine can have: reserves and high marks (`totalreserve_pages`).
    #[doc(alias = "totalreserve_pages")]
    pub fn total_reserve_pages(&self) -> u64 {
        self.state().map_or(0, State::total_reserve)
    }
}

impl ZoneStats {
    /// hit, miss, foreign, interleave (which no policy here counts), local, other.
    pub(crate) fn numa(&self) -> [u64; 6] {
        [self.numa_hit, self.numa_miss, self.numa_foreign, 0, self.numa_local, self.numa_other]
    }

    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            allocated_pages: self.allocated_pages + other.allocated_pages,
            allocated_calls: self.allocated_calls + other.allocated_calls,
            freed_pages: self.freed_pages + other.freed_pages,
            numa_hit: self.numa_hit + other.numa_hit,
            numa_miss: self.numa_miss + other.numa_miss,
            numa_foreign: self.numa_foreign + other.numa_foreign,
            numa_local: self.numa_local + other.numa_local,
            numa_other: self.numa_other + other.numa_other,
            cached_pages: self.cached_pages + other.cached_pages,
        }
    }
}
