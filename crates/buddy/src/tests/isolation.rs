//! Isolation: what it takes out of circulation, what it refuses, and that it leaves nothing behind.

use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp, MigrateType, NodeId, Pfn, PfnRange, ZoneKind};

use super::rig::{Env, Rig, cached, o, range, run_on};
use crate::{IsolateMode, MemoryMap, Region, Zone};

const ANY: Gfp = Gfp::KSWAPD_RECLAIM.union(Gfp::MEMALLOC).union(Gfp::NOWARN);
const FRAMES: u64 = 16 * 512;

fn normal(rig: &Rig) -> &Zone {
    rig.zone(NodeId(0), ZoneKind::Normal).unwrap()
}

fn isolated_types(rig: &Rig) -> usize {
    (0..16).filter(|block| rig.pageblock_type(Pfn(block * 512)) == Some(MigrateType::Isolate)).count()
}

#[test]
fn a_range_is_rounded_out_to_pageblocks_whose_free_pages_leave_the_count() {
    let rig = Rig::small(FRAMES);
    let isolation = rig.isolate_range(range(1000, 2000), IsolateMode::Other).unwrap();
    // C-34: pageblocks 1..=3.
    assert_eq!(isolation.pageblocks(), range(512, 2048));
    assert_eq!(isolation.range(), range(1000, 2000));
    assert_eq!(isolated_types(&rig), 3);
    assert_eq!(normal(&rig).free_pages(), FRAMES - 3 * 512);
    assert_eq!(normal(&rig).free_of(MigrateType::Isolate), 3 * 512);
    // C-39
    assert!(isolation.is_free());
    drop(isolation);
    assert_eq!(isolated_types(&rig), 0);
    assert_eq!(normal(&rig).free_pages(), FRAMES);
    // C-38: whole again, pairs included.
    assert_eq!(normal(&rig).free_blocks()[MigrateType::Movable.index()][10], 8);
}

#[test]
fn nothing_is_served_from_an_isolated_pageblock_and_frees_stay_there() {
    for sets_on in [true, false] {
        let rig = Rig::small(FRAMES);
        rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, sets_on);
        let inside: Vec<Pfn> = (0..8).map(|i| Pfn(512 + i * 16)).collect();
        for (i, &pfn) in inside.iter().enumerate() {
            rig.settle_at(pfn.0, 0, i as u64);
        }
        let isolation = rig.isolate_range(range(512, 1024), IsolateMode::Other).unwrap();
        assert!(!isolation.is_free());
        // C-38
        for name in 0..8 {
            rig.evict(name);
        }
        assert!(isolation.is_free(), "freed pages went elsewhere");
        assert_eq!(normal(&rig).free_of(MigrateType::Isolate), 512);
        let mut taken = Vec::new();
        for order in [10, 9, 3, 0] {
            while let Some(pfn) = rig.get(ANY, order) {
                assert!(pfn.0 + (1 << order) <= 512 || pfn.0 >= 1024, "{pfn:?} is isolated");
                taken.push((pfn, order));
            }
        }
        assert_eq!(rig.all_free(), 0);
        // Only the call that names its frames gets one.
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(600), o(0)).unwrap();
        drop(isolation);
        assert_eq!(rig.all_free(), 511);
        assert_eq!(rig.pageblock_type(Pfn(512)), Some(MigrateType::Movable));
        rig.put(Pfn(600), 0);
        taken.into_iter().for_each(|(pfn, order)| rig.put(pfn, order));
        assert_eq!(rig.all_free(), FRAMES);
    }
}

#[test]
fn pages_in_the_sets_of_all_cpus_come_back_before_a_range_is_judged() {
    let rig = Rig::with_cpus(FRAMES, 2);
    for cpu in 0..2 {
        run_on(Some(cpu));
        let pages: Vec<Pfn> = (0..50).map(|_| rig.get(ANY | Gfp::MOVABLE, 0).unwrap()).collect();
        pages.into_iter().for_each(|pfn| rig.put(pfn, 0));
    }
    run_on(Some(0));
    assert!(rig.zone_stats(normal(&rig)).cached_pages > 0);
    let isolation = rig.isolate_range(range(0, FRAMES), IsolateMode::Other).unwrap();
    assert!(isolation.is_free());
    assert_eq!(rig.zone_stats(normal(&rig)).cached_pages, 0);
    drop(isolation);
    assert_eq!(rig.all_free(), FRAMES);
}

/// What failed must have left everything as it was.
fn refused(rig: &Rig, wanted: PfnRange, mode: IsolateMode, at: u64) {
    let (types, free) = (isolated_types(rig), rig.all_free());
    let error = rig.isolate_range(wanted, mode).unwrap_err();
    assert_eq!(error, AllocError::Busy(Pfn(at)));
    assert_eq!((isolated_types(rig), rig.all_free()), (types, free));
}

#[test]
fn a_range_that_cannot_be_isolated_is_left_as_it_was() {
    let rig = Rig::small(FRAMES);
    // C-35: isolated already, at the first, the last and a middle pageblock; and C-34, all is undone.
    let held = rig.isolate_range(range(2048, 2049), IsolateMode::Other).unwrap();
    refused(&rig, range(2048, 4096), IsolateMode::Other, 2048);
    refused(&rig, range(1024, 2560), IsolateMode::Other, 2048);
    refused(&rig, range(0, 4096), IsolateMode::Other, 2048);
    drop(held);
    // C-35, C-37: an unmovable page, and one that is free is not.
    rig.alloc_pages_at(Gfp::KERNEL, Pfn(3000), o(0)).unwrap();
    refused(&rig, range(512, 4096), IsolateMode::Other, 3000);
    refused(&rig, range(512, 4096), IsolateMode::Offline, 3000);
    // Only the range itself is looked at, not the rest of its pageblocks.
    drop(rig.isolate_range(range(2560, 3000), IsolateMode::Other).unwrap());
    // C-37: one with an owner that moves it is.
    rig.settle_at(4000, 0, 1);
    drop(rig.isolate_range(range(3584, 4096), IsolateMode::Other).unwrap());
    // ... but not if it is larger than its owner moves.
    rig.settle_at(5120, 10, 2);
    refused(&rig, range(5632, 6144), IsolateMode::Other, 5632);
    refused(&rig, range(FRAMES - 512, FRAMES + 1), IsolateMode::Other, FRAMES);
    refused(&rig, range(7, 7), IsolateMode::Other, 7);
}

#[test]
fn reserved_frames_holes_and_other_zones_are_not_isolated() {
    let regions = [Region::new(range(0, 8192)), Region::new(range(9216, 16384))];
    let reserved = [range(600, 610)];
    let map = MemoryMap { regions: &regions, reserved: &reserved, ..MemoryMap::default() };
    let rig = Rig::build(Env::new(1), cached(), &map);
    // C-37: reserved
    refused(&rig, range(512, 1024), IsolateMode::Other, 600);
    drop(rig.isolate_range(range(512, 600), IsolateMode::Other).unwrap());
    refused(&rig, range(8000, 9300), IsolateMode::Other, 8192);
    let pc = Rig::pc(1 << 20 | 4096);
    let error = pc.isolate_range(range(4096 - 512, 4096 + 512), IsolateMode::Other).unwrap_err();
    assert_eq!(error, AllocError::Busy(Pfn(4096)), "DMA ends here");
    assert!(crate::Buddy::<Env>::new(Env::new(1)).isolate_range(range(0, 1), IsolateMode::Other).is_err());
}

#[test]
fn pageblocks_of_a_contiguous_area_are_isolated_for_one_only() {
    let rig = Rig::small(FRAMES);
    rig.set_pageblock_type(Pfn(1024), MigrateType::Cma).unwrap();
    // C-36
    refused(&rig, range(1024, 1536), IsolateMode::Other, 1024);
    refused(&rig, range(1024, 1536), IsolateMode::Offline, 1024);
    let isolation = rig.isolate_range(range(1024, 1536), IsolateMode::Cma).unwrap();
    assert_eq!(normal(&rig).free_of(MigrateType::Cma), 0);
    drop(isolation);
    // C-38: the type survives.
    assert_eq!(rig.pageblock_type(Pfn(1024)), Some(MigrateType::Cma));
    assert_eq!(normal(&rig).free_of(MigrateType::Cma), 512);
}

#[test]
fn isolated_memory_is_not_counted_on_when_deciding_whether_sets_may_be_open() {
    let rig = Rig::small(FRAMES);
    rig.set_min_free_kbytes(128).unwrap();
    assert!(!normal(&rig).pressed.load(std::sync::atomic::Ordering::SeqCst));
    let isolation = rig.isolate_range(range(512, FRAMES), IsolateMode::Other).unwrap();
    assert!(normal(&rig).pressed.load(std::sync::atomic::Ordering::SeqCst), "the marks are looked at");
    drop(isolation);
    assert!(!normal(&rig).pressed.load(std::sync::atomic::Ordering::SeqCst));
}
