//! The state of the allocator in the kernel's own text formats.
//!
//! Each view implements [`Display`](core::fmt::Display) and reads the structures as they are at that moment; nothing is locked, so a
//! view of a busy machine is a blurred picture, as the kernel's own is. What this crate does not know (page cache,
//! anonymous memory, swap) is zero unless the caller supplies it through [`Extra`].

mod buddyinfo;
pub(crate) mod mem_info;
mod names;
mod pagetypeinfo;
mod vmstat;
mod zoneinfo;

use kmem_gfp::{MigrateType, NodeId, Order, ZoneKind};

use crate::buddy::Buddy;
use crate::compact::{extfrag_percent, fragmentation_index};
use crate::env::BuddyEnv;
use crate::line::for_each_block;
use crate::record::Record;
use crate::zone::Zone;

pub use buddyinfo::BuddyInfo;
pub use mem_info::MemInfoDump;
pub use pagetypeinfo::PageTypeInfo;
pub use vmstat::VmStat;
pub use zoneinfo::ZoneInfo;
#[cfg(all(test, not(loom)))]
pub(crate) use zoneinfo::stat_threshold;

/// Counters that other layers know: the slab's, reclaim's, the page cache's.
pub trait Extra {
    /// The value of a node counter of `/proc/zoneinfo` and `/proc/vmstat` by its name, such as `nr_slab_reclaimable`.
    fn node_counter(&self, node: NodeId, name: &str) -> u64 {
        let _ = (node, name);
        0
    }

    /// The value of a zone counter by its name, such as `nr_mlock`.
    fn zone_counter(&self, node: NodeId, zone: ZoneKind, name: &str) -> u64 {
        let _ = (node, zone, name);
        0
    }

    /// The value of an event or machine-wide counter of `/proc/vmstat` by its name, such as `slabs_scanned`; `None` leaves it
    /// to this crate.
    fn event(&self, name: &str) -> Option<u64> {
        let _ = name;
        None
    }
}

/// No other layers.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoExtra;

impl Extra for NoExtra {}

/// Free blocks by type and order.
pub(crate) type BlockCounts = [[u64; Order::COUNT]; MigrateType::COUNT];

impl Zone {
    /// Counts the free blocks of a zone, as the bitmaps hold them: by the type of their pageblock and by order. Two
    /// neighbouring free pageblocks of one type are a block of order 10.
    pub fn free_blocks(&self) -> [[u64; Order::COUNT]; MigrateType::COUNT] {
        let mut counts: BlockCounts = [[0; Order::COUNT]; MigrateType::COUNT];
        let mut whole: Option<(u64, MigrateType)> = None;
        for block in self.blocks() {
            let record = block.record();
            if !record.has(Record::PRESENT) || record.zone() != self.number {
                continue;
            }
            let migratetype = record.migratetype();
            let Some(row) = counts.get_mut(migratetype.index()) else { continue };
            let number = block.first_frame().0 / 512;
            for_each_block(&block.free_line().snapshot(), |order, _| {
                if order == 9 && whole == Some((number ^ 1, migratetype)) && number % 2 == 1 {
                    let [.., single, pair] = row;
                    *single -= 1;
                    *pair += 1;
                    whole = None;
                } else {
                    if let Some(count) = row.get_mut(order as usize) {
                        *count += 1;
                    }
                    if order == 9 {
                        whole = Some((number, migratetype));
                    }
                }
            });
        }
        counts
    }

    /// How many pageblocks of each type a zone has.
    pub fn pageblocks(&self) -> [u64; MigrateType::COUNT] {
        let mut counts = [0; MigrateType::COUNT];
        for block in self.blocks() {
            let record = block.record();
            if record.has(Record::PRESENT)
                && record.zone() == self.number
                && let Some(count) = counts.get_mut(record.migratetype().index())
            {
                *count += 1;
            }
        }
        counts
    }

    /// Pages in free blocks of at least a pageblock that are not isolated (`NR_FREE_PAGES_BLOCKS`).
    #[doc(alias = "NR_FREE_PAGES_BLOCKS")]
    pub fn free_pages_in_whole_blocks(&self) -> u64 {
        let counts = self.free_blocks();
        let usable = counts.iter().take(MigrateType::Isolate.index());
        usable.map(|row| row.iter().skip(9).zip([512, 1024]).map(|(&nr, pages)| nr * pages).sum::<u64>()).sum()
    }

    /// The fragmentation index for an order in thousandths: -1000 if a block exists, else near 0 for a shortage of memory and
    /// near 1000 for fragmentation.
    #[doc(alias = "extfrag_index")]
    pub fn fragmentation_index(&self, order: Order) -> i64 {
        i64::from(fragmentation_index(order, self.shape(order)))
    }

    /// How much of what is free is of no use for blocks of an order, in percent.
    pub fn extfrag_percent(&self, order: Order) -> u32 {
        extfrag_percent(order, self.shape(order))
    }

    /// The share of free pages that lie in blocks too small for an order, in thousandths.
    pub fn unusable_index(&self, order: Order) -> u64 {
        let counts = self.free_blocks();
        let sum = |from: usize| -> u64 {
            counts.iter().flat_map(|row| row.iter().enumerate().skip(from)).map(|(k, &nr)| nr << k).sum()
        };
        let free = sum(0);
        ((free - sum(order.index())) * 1000).checked_div(free).unwrap_or(1000)
    }
}

impl<E: BuddyEnv> Buddy<E> {
    /// `/proc/buddyinfo`: free blocks by order, a line for each zone with memory.
    pub fn buddyinfo(&self) -> BuddyInfo<'_> {
        BuddyInfo { state: self.state() }
    }

    /// `/proc/pagetypeinfo`: the same by migratetype, and pageblocks by type.
    pub fn pagetypeinfo(&self) -> PageTypeInfo<'_> {
        PageTypeInfo { state: self.state() }
    }

    /// `/proc/zoneinfo`; counters of other layers come from `extra`.
    pub fn zoneinfo<'a>(&'a self, extra: &'a dyn Extra) -> ZoneInfo<'a> {
        ZoneInfo { state: self.state(), extra }
    }

    /// `/proc/vmstat`; counters of other layers come from `extra`.
    pub fn vmstat<'a>(&'a self, extra: &'a dyn Extra) -> VmStat<'a> {
        VmStat { state: self.state(), extra }
    }

    /// The memory report that accompanies a failed allocation.
    pub fn mem_info(&self) -> MemInfoDump<'_> {
        MemInfoDump { state: self.state() }
    }
}
