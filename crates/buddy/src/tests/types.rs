//! Migratetypes: claiming, stealing, contiguous areas, the highatomic reserve.

use std::sync::atomic::Ordering;

use kmem_gfp::{AllocError, Gfp, MigrateType, NodeId, Pfn, ZoneKind};

use super::rig::{Env, Rig, cached, checked, o, range};
use crate::{BuddyOptions, Event, MemoryMap, Region, Zone};

const ANY: Gfp = Gfp::KSWAPD_RECLAIM.union(Gfp::MEMALLOC).union(Gfp::NOWARN);
const ANY_MOVABLE: Gfp = ANY.union(Gfp::MOVABLE);
const ANY_RECLAIMABLE: Gfp = ANY.union(Gfp::RECLAIMABLE);

/// A machine of 16 pageblocks without per-CPU sets, so that every request reaches the bitmaps.
fn bare() -> Rig {
    let rig = Rig::small(16 * 512);
    rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, false);
    rig
}

fn normal(rig: &Rig) -> &Zone {
    rig.zone(NodeId(0), ZoneKind::Normal).unwrap()
}

/// Takes all pageblocks, so that only what the test frees is free.
fn hollow(rig: &Rig) {
    for block in 0..16 {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(9)).unwrap();
    }
    assert_eq!(rig.free_page_count(), 0);
}

fn free(rig: &Rig, block: u64, offset: u64, order: u32, migratetype: MigrateType) {
    rig.set_pageblock_type(Pfn(block * 512), migratetype).unwrap();
    let start = block * 512 + offset;
    // SAFETY: frames of tests have no memory.
    unsafe { rig.free_range(range(start, start + (1 << order))) }.unwrap();
}

#[test]
fn everything_is_movable_at_first_and_claims_retag_whole_blocks() {
    let rig = bare();
    // B-08
    assert_eq!(normal(&rig).pageblocks()[MigrateType::Movable.index()], 16);
    let pfn = rig.get(ANY, 0).unwrap();
    // B-27, B-24: the largest block, of order 10, and both of its pageblocks; B-13
    assert_eq!(rig.pageblock_type(pfn), Some(MigrateType::Unmovable));
    assert_eq!(normal(&rig).pageblocks()[MigrateType::Unmovable.index()], 2);
    assert_eq!(rig.event(Event::PageblockClaimed), 1);
    // B-12: what is free moved along.
    let blocks = normal(&rig).free_blocks();
    let pages = |row: &[u64; 11]| row.iter().enumerate().map(|(k, nr)| nr << k).sum::<u64>();
    assert_eq!(pages(&blocks[MigrateType::Unmovable.index()]), 1023);
    assert_eq!(pages(&blocks[MigrateType::Movable.index()]), 14 * 512);
    // B-22 (1): the next one comes from its own type, out of the smallest block.
    let next = rig.get(ANY, 0).unwrap();
    assert_eq!(next.0, pfn.0 ^ 1);
}

#[test]
fn whole_neighbours_of_different_types_merge_into_the_freed_ones_type() {
    let rig = bare();
    hollow(&rig);
    free(&rig, 4, 0, 9, MigrateType::Movable);
    free(&rig, 5, 0, 9, MigrateType::Unmovable);
    // B-17, B-19
    assert_eq!(rig.pageblock_type(Pfn(4 * 512)), Some(MigrateType::Unmovable));
    assert_eq!(normal(&rig).free_blocks()[MigrateType::Unmovable.index()][10], 1);
    // ... but not across a type that is not mergeable.
    free(&rig, 8, 0, 9, MigrateType::Cma);
    free(&rig, 9, 0, 9, MigrateType::Movable);
    assert_eq!(rig.pageblock_type(Pfn(8 * 512)), Some(MigrateType::Cma));
    assert_eq!(normal(&rig).free_blocks()[MigrateType::Movable.index()][9], 1);
}

#[test]
fn small_movable_requests_steal_and_leave_types_alone() {
    let rig = bare();
    hollow(&rig);
    free(&rig, 3, 8, 3, MigrateType::Unmovable);
    // B-26: the claim phase ends at a candidate below half a pageblock's order; B-30
    let pfn = rig.get(ANY_MOVABLE, 0).unwrap();
    assert_eq!(pfn, Pfn(3 * 512 + 8));
    assert_eq!(rig.pageblock_type(pfn), Some(MigrateType::Unmovable));
    assert_eq!(normal(&rig).boost_pages(), 0);
    assert_eq!(rig.event(Event::PageblockStolen), 1);
    // The rest stays with the fallback type.
    assert_eq!(normal(&rig).free_blocks()[MigrateType::Unmovable.index()][..3], [1, 1, 1]);
}

#[test]
fn a_block_is_claimed_if_half_of_it_is_free_or_alike() {
    for (free_order, movable, claimed) in
        [(7, u64::MAX, false), (8, u64::MAX, true), (5, u64::MAX, false), (5, 0, true), (5, 240, true), (5, 300, false)]
    {
        let rig = bare();
        rig.env().movable.store(movable, Ordering::Relaxed);
        hollow(&rig);
        free(&rig, 2, 0, free_order, MigrateType::Movable);
        let pfn = rig.get(ANY, 4).unwrap();
        // B-28, B-29: free pages, and those that do not move, for an unmovable request.
        let expected = if claimed { MigrateType::Unmovable } else { MigrateType::Movable };
        assert_eq!(rig.pageblock_type(pfn), Some(expected), "{free_order} {movable}");
        // B-58: the attempt boosts, claimed or not.
        assert_eq!(normal(&rig).boost_pages(), 512, "{free_order} {movable}");
        assert!(rig.event(Event::WatermarkBoost) > 0);
    }
    // A movable request counts the pages that move.
    for (movable, claimed) in [(100, false), (230, true)] {
        let rig = bare();
        rig.env().movable.store(movable, Ordering::Relaxed);
        hollow(&rig);
        free(&rig, 2, 0, 5, MigrateType::Unmovable);
        let pfn = rig.get(ANY_MOVABLE, 4).unwrap();
        let expected = if claimed { MigrateType::Movable } else { MigrateType::Unmovable };
        assert_eq!(rig.pageblock_type(pfn), Some(expected));
    }
}

#[test]
fn claims_look_from_the_largest_and_steals_from_the_smallest() {
    // B-24
    for (movable, expected) in [(0, 6), (u64::MAX, 2)] {
        let rig = bare();
        rig.env().movable.store(movable, Ordering::Relaxed);
        hollow(&rig);
        free(&rig, 2, 0, 5, MigrateType::Movable);
        free(&rig, 6, 0, 7, MigrateType::Movable);
        assert_eq!(rig.get(ANY, 4).unwrap().0 / 512, expected);
    }
    // B-25: of the same order, the first type of the table.
    let rig = bare();
    hollow(&rig);
    free(&rig, 2, 0, 5, MigrateType::Movable);
    free(&rig, 6, 0, 5, MigrateType::Reclaimable);
    assert_eq!(rig.get(ANY, 4).unwrap().0 / 512, 6);
    let rig = bare();
    hollow(&rig);
    free(&rig, 2, 0, 5, MigrateType::Movable);
    free(&rig, 6, 0, 5, MigrateType::Unmovable);
    assert_eq!(rig.get(ANY_RECLAIMABLE, 4).unwrap().0 / 512, 6);
}

#[test]
fn contiguous_areas_serve_movable_requests_only() {
    let rig = bare();
    hollow(&rig);
    free(&rig, 2, 0, 9, MigrateType::Cma);
    // B-10
    assert_eq!(normal(&rig).free_of(MigrateType::Cma), 512);
    assert_eq!(normal(&rig).free_pages(), 512);
    // B-31: never claimed, stolen or retagged.
    assert_eq!(rig.get(ANY, 0), None);
    assert_eq!(rig.get(ANY_RECLAIMABLE, 9), None);
    let pfn = rig.get(ANY_MOVABLE, 3).unwrap();
    assert_eq!(pfn.0 / 512, 2);
    assert_eq!(rig.pageblock_type(pfn), Some(MigrateType::Cma));
    assert_eq!(normal(&rig).free_of(MigrateType::Cma), 504);
    rig.put(pfn, 3);
    // B-22 (0): with more than half of what is free there, first of all.
    free(&rig, 6, 0, 8, MigrateType::Movable);
    assert_eq!(rig.get(ANY_MOVABLE, 4).unwrap().0 / 512, 2);
    // ... and otherwise last.
    free(&rig, 8, 0, 9, MigrateType::Movable);
    assert_ne!(rig.get(ANY_MOVABLE, 4).unwrap().0 / 512, 2);
}

#[test]
fn isolated_pages_are_neither_free_nor_handed_out() {
    let rig = bare();
    hollow(&rig);
    free(&rig, 2, 0, 9, MigrateType::Movable);
    assert!(rig.set_pageblock_isolated(Pfn(1024), true));
    // B-07, B-10, B-11
    assert_eq!(rig.pageblock_type(Pfn(1024)), Some(MigrateType::Isolate));
    assert_eq!(normal(&rig).free_pages(), 0);
    assert_eq!(normal(&rig).free_pages_in_whole_blocks(), 0);
    assert_eq!(rig.get(ANY_MOVABLE, 0), None);
    assert!(!rig.set_pageblock_isolated(Pfn(1024), true));
    assert!(rig.set_pageblock_isolated(Pfn(1024), false));
    // The type below survived.
    assert_eq!(rig.pageblock_type(Pfn(1024)), Some(MigrateType::Movable));
    assert_eq!(normal(&rig).free_pages_in_whole_blocks(), 512);
    assert!(rig.get(ANY_MOVABLE, 0).is_some());
}

#[test]
fn pages_freed_into_an_isolated_block_bypass_the_sets() {
    let rig = Rig::small(16 * 512);
    let pfn = rig.get(ANY_MOVABLE, 0).unwrap();
    rig.drain_all_pages();
    assert!(rig.set_pageblock_isolated(pfn, true));
    let isolated = normal(&rig).free_of(MigrateType::Isolate);
    rig.put(pfn, 0);
    // B-70
    assert_eq!(normal(&rig).free_of(MigrateType::Isolate), isolated + 1);
}

#[test]
fn a_contiguous_areas_page_serves_a_movable_request_from_the_set() {
    let rig = Rig::small(16 * 512);
    let pfn = rig.get(ANY_MOVABLE, 0).unwrap();
    rig.set_pageblock_type(pfn, MigrateType::Cma).unwrap();
    rig.put(pfn, 0);
    // B-70: the set does not remember.
    assert_eq!(rig.get(Gfp::KERNEL | Gfp::MOVABLE, 0), Some(pfn));
    rig.put(pfn, 0);
    let before = normal(&rig).free_of(MigrateType::Cma);
    rig.drain_all_pages();
    assert!(normal(&rig).free_of(MigrateType::Cma) > before);
}

#[test]
fn avoiding_fragmentation_claims_whole_blocks_only() {
    let regions = [Region::new(range(0, 16 * 512))];
    let map = MemoryMap { regions: &regions, ..MemoryMap::default() };
    let rig = Rig::build(Env::new(1), BuddyOptions { defrag_mode: true, ..cached() }, &map);
    rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, false);
    hollow(&rig);
    free(&rig, 2, 0, 8, MigrateType::Movable);
    rig.set_min_free_kbytes(0).unwrap();
    // B-24, B-89: neither claimed below a pageblock nor stolen, and without a right to wake anybody it fails.
    assert_eq!(rig.get(Gfp::NOWARN, 0), None);
    // A request that may wake background reclaim mixes in the end.
    assert!(rig.get(Gfp::NOWAIT, 0).is_some());
}

/// A machine large enough for a highatomic reserve (two pageblocks at most), with its free pages between min and low.
fn short_of_memory() -> Rig {
    let rig = Rig::small(128 * 512);
    rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, false);
    let low = normal(&rig).watermark(kmem_gfp::Watermark::Low);
    while normal(&rig).free_pages() > low + 1100 {
        rig.get(ANY, 9).unwrap();
    }
    while normal(&rig).free_pages() > low - 20 {
        rig.get(ANY, 1).unwrap();
    }
    rig
}

#[test]
fn only_urgent_high_orders_reserve_blocks_and_only_so_many() {
    let rig = short_of_memory();
    assert_eq!(normal(&rig).reserved_highatomic_pages(), 0);
    // B-34: order 0 does not, nor does a request that may sleep.
    rig.get(Gfp::ATOMIC, 0).unwrap();
    assert_eq!(normal(&rig).reserved_highatomic_pages(), 0);
    let pfn = rig.get(Gfp::ATOMIC, 1).unwrap();
    assert_eq!(normal(&rig).reserved_highatomic_pages(), 512);
    assert_eq!(rig.pageblock_type(pfn), Some(MigrateType::HighAtomic));
    let free = normal(&rig).free_of(MigrateType::HighAtomic);
    // B-32: the next one is taken from the reserve first.
    let next = rig.get(Gfp::ATOMIC, 1).unwrap();
    assert_eq!(next.0 / 512, pfn.0 / 512);
    assert_eq!(normal(&rig).free_of(MigrateType::HighAtomic), free - 2);
    // B-35
    for _ in 0..64 {
        let _ = rig.get(Gfp::ATOMIC, 3);
    }
    assert!(normal(&rig).reserved_highatomic_pages() <= 1024);
    // Freed pages go back to it.
    let free = normal(&rig).free_of(MigrateType::HighAtomic);
    rig.put(next, 1);
    assert_eq!(normal(&rig).free_of(MigrateType::HighAtomic), free + 2);
}

#[test]
fn the_reserve_goes_back_to_the_caller_under_force() {
    let rig = short_of_memory();
    let pfn = rig.get(Gfp::ATOMIC, 1).unwrap();
    assert_eq!(rig.pageblock_type(pfn), Some(MigrateType::HighAtomic));
    // Nothing else is left.
    while normal(&rig).free_pages() > normal(&rig).free_of(MigrateType::HighAtomic) {
        if rig.get(ANY, 0).is_none() {
            break;
        }
    }
    // B-37: a default request gets that far only after reclaim has failed; gentle mode keeps one pageblock.
    let got = rig.alloc_pages(Gfp::KERNEL | Gfp::RECLAIMABLE | Gfp::NOWARN, o(0), None);
    assert!(matches!(got, Err(AllocError::NoMemory { .. })) || got.is_ok());
    assert_eq!(normal(&rig).reserved_highatomic_pages(), 0);
    assert_eq!(rig.pageblock_type(pfn), Some(MigrateType::Reclaimable));
}

#[test]
fn a_caller_that_cannot_wait_takes_from_the_reserve_last() {
    let rig = bare();
    hollow(&rig);
    free(&rig, 2, 0, 4, MigrateType::HighAtomic);
    rig.set_min_free_kbytes(0).unwrap();
    // B-32: not for a request that may sleep; for NOWAIT it counts and serves, order 0.
    assert_eq!(rig.get(Gfp::KERNEL | Gfp::NORETRY | Gfp::NOWARN, 0), None);
    assert_eq!(rig.get(Gfp::NOWAIT, 0).map(|pfn| pfn.0 / 512), Some(2));
    // B-52: but for higher orders the list test does not let NON_BLOCK see it.
    assert_eq!(rig.get(Gfp::NOWAIT, 1), None);
    // B-36: the sets do not serve requests of the reserve.
    assert!(rig.get(Gfp::ATOMIC | Gfp::NOWARN, 1).is_some());
}

#[test]
fn tiny_machines_do_not_group_by_mobility() {
    let regions = [Region::new(range(0, 5 * 512))];
    let map = MemoryMap { regions: &regions, ..MemoryMap::default() };
    let rig = Rig::build(Env::new(1), checked(), &map);
    // B-14: five pageblocks are fewer than there are types; everything is unmovable.
    let movable = rig.get(Gfp::KERNEL | Gfp::MOVABLE, 0).unwrap();
    let unmovable = rig.get(Gfp::KERNEL, 0).unwrap();
    assert_eq!(movable.0 / 512, unmovable.0 / 512);
    let large = Rig::checked(64 * 512);
    let movable = large.get(Gfp::KERNEL | Gfp::MOVABLE, 0).unwrap();
    let unmovable = large.get(Gfp::KERNEL, 0).unwrap();
    assert_ne!(movable.0 / 512, unmovable.0 / 512);
}
