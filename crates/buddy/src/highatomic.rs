//! The reserve for high-order atomic requests: whole pageblocks that nothing else may use.

use kmem_gfp::{MigrateType, Order, Pfn};
use kmem_sync::atomic::Ordering;

use crate::alloc::Request;
use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::hints::Hints;
use crate::line::FRAMES;
use crate::state::State;
use crate::zone::Zone;

/// A pageblock in pages.
const PAGEBLOCK: u64 = FRAMES as u64;

/// How many pages of a zone may be in the reserve: a hundredth, rounded up to pageblocks; none in zones where a hundredth
/// is less than one.
pub const fn highatomic_limit(managed_pages: u64) -> u64 {
    if managed_pages / 100 < PAGEBLOCK { 0 } else { (managed_pages / 100).next_multiple_of(PAGEBLOCK) }
}

impl<E: BuddyEnv> Buddy<E> {
    /// Adds the pageblocks of a block just allocated to the reserve, unless that is full.
    pub(crate) fn reserve_highatomic(&self, state: &State, zone: &Zone, pfn: Pfn, order: Order) {
        let limit = highatomic_limit(zone.managed_pages());
        let blocks = (order.nr_pages() as u64).div_ceil(PAGEBLOCK);
        for i in 0..blocks {
            let Some(block) = state.block_of(Pfn(pfn.0 + i * PAGEBLOCK)) else { return };
            let from = block.record().migratetype();
            if !from.is_mergeable() {
                return;
            }
            let room = |pages: u64| (pages < limit).then_some(pages + PAGEBLOCK);
            if update(&zone.reserved_highatomic, room).is_none() {
                return;
            }
            if !block.change_type(from, MigrateType::HighAtomic) {
                zone.reserved_highatomic.fetch_sub(PAGEBLOCK, Ordering::Relaxed);
                return;
            }
        }
        state.compute_comfort(zone);
        self.settle(state, zone);
    }

    /// Gives one pageblock of the reserve with a free page in it back to the caller's type. Gentle mode leaves each
    /// zone at least one. Whether free pages moved.
    pub(crate) fn unreserve_highatomic(&self, state: &State, request: &Request, force: bool) -> bool {
        let least = if force { 0 } else { PAGEBLOCK };
        for zone in self.allowed_zones(state, request) {
            if zone.reserved_highatomic_pages() <= least {
                continue;
            }
            for filed in 0..10 {
                let list = Hints::list(MigrateType::HighAtomic.index(), filed);
                let mut moved = false;
                zone.each_filed(
                    list,
                    (0, 1),
                    |word| word,
                    |block| {
                        block.drop_hint(list);
                        let free = block.free_line().count();
                        if free > 0 && block.change_type(MigrateType::HighAtomic, request.migratetype) {
                            let _ = update(&zone.reserved_highatomic, |pages| Some(pages.saturating_sub(PAGEBLOCK)));
                            moved = true;
                        }
                        !moved
                    },
                );
                if moved {
                    state.compute_comfort(zone);
                    self.settle(state, zone);
                    return true;
                }
            }
        }
        false
    }
}

fn update(count: &kmem_sync::atomic::AtomicU64, change: impl Fn(u64) -> Option<u64>) -> Option<u64> {
    let mut old = count.load(Ordering::Relaxed);
    loop {
        let new = change(old)?;
        match count.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Some(new),
            Err(now) => old = now,
        }
    }
}
