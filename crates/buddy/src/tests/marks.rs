//! Watermarks, reserves and boost on whole zones.

use std::sync::atomic::Ordering;

use kmem_gfp::alloc_flags::AllocFlags;
use kmem_gfp::{Gfp, MigrateType, NodeId, Order, Pfn, TaskFlags, Watermark, ZoneKind};
use proptest::prelude::*;

use super::rig::{Env, Rig, cached, o, range};
use crate::{BuddyOptions, MemoryMap, Region, TuneError, Zone, ZoneLimits};

const ANY: Gfp = Gfp::MEMALLOC.union(Gfp::NOWARN);

fn normal(rig: &Rig) -> &Zone {
    rig.zone(NodeId(0), ZoneKind::Normal).unwrap()
}

/// 64 MiB without per-CPU sets.
fn bare() -> Rig {
    let rig = Rig::small(32 * 512);
    rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, false);
    rig
}

/// Takes pages until this many are free.
fn leave(rig: &Rig, pages: u64) {
    while normal(rig).free_pages() >= pages + 512 {
        rig.get(ANY, 9).unwrap();
    }
    while normal(rig).free_pages() > pages {
        rig.get(ANY, 0).unwrap();
    }
}

#[test]
fn marks_follow_memory_and_tunables() {
    let rig = bare();
    let zone = normal(&rig);
    // B-44, B-47
    assert_eq!(rig.min_free_kbytes(), 1024);
    assert_eq!(zone.watermark(Watermark::Min), 256);
    assert_eq!(zone.watermark(Watermark::Low), 256 + 64);
    assert_eq!(zone.watermark(Watermark::High), 256 + 128);
    assert_eq!(zone.watermark(Watermark::Promo), 256 + 192);
    // B-50
    rig.set_watermark_scale_factor(1000).unwrap();
    assert_eq!(zone.watermark(Watermark::Low), 256 + 1638);
    rig.set_min_free_kbytes(4096).unwrap();
    assert_eq!(zone.watermark(Watermark::Min), 1024);
    for factor in [0, 3001] {
        assert!(matches!(rig.set_watermark_scale_factor(factor), Err(TuneError::OutOfRange { .. })));
    }
    // B-74
    assert!(rig.set_percpu_pagelist_high_fraction(7).is_err());
    assert!(rig.set_percpu_pagelist_high_fraction(8).is_ok());
    assert!(rig.set_percpu_pagelist_high_fraction(0).is_ok());
    // B-56
    assert_eq!(rig.total_reserve_pages(), zone.watermark(Watermark::High));
}

#[test]
fn huge_pages_raise_the_min_marks() {
    let regions = [Region::new(range(0, 512 * 512))];
    let map = MemoryMap { regions: &regions, ..MemoryMap::default() };
    let plain = Rig::build(Env::new(1), cached(), &map);
    let raised = Rig::build(Env::new(1), BuddyOptions { huge_pages: true, ..cached() }, &map);
    // B-45: 11 pageblocks, at most a twentieth of low memory.
    assert_eq!(plain.min_free_kbytes(), 4096);
    assert_eq!(raised.min_free_kbytes(), 11 * 2048);
    let small = [Region::new(range(0, 32 * 512))];
    let map = MemoryMap { regions: &small, ..MemoryMap::default() };
    let small = Rig::build(Env::new(1), BuddyOptions { huge_pages: true, ..cached() }, &map);
    assert_eq!(small.min_free_kbytes(), 32 * 512 / 20 * 4);
}

#[test]
fn low_zones_are_kept_from_requests_that_could_go_higher() {
    let rig = Rig::pc((1 << 20) + (1 << 18));
    let reserve = |kind, ceiling| rig.zone(NodeId(0), kind).unwrap().lowmem_reserve(ceiling);
    let managed = |kind| rig.zone(NodeId(0), kind).unwrap().managed_pages();
    // B-55
    assert_eq!(reserve(ZoneKind::Dma, ZoneKind::Dma), 0);
    assert_eq!(reserve(ZoneKind::Dma, ZoneKind::Dma32), managed(ZoneKind::Dma32) / 256);
    let above = managed(ZoneKind::Dma32) + managed(ZoneKind::Normal);
    assert_eq!(reserve(ZoneKind::Dma, ZoneKind::Normal), above / 256);
    assert_eq!(reserve(ZoneKind::Dma, ZoneKind::Movable), above / 256);
    assert_eq!(reserve(ZoneKind::Dma32, ZoneKind::Normal), managed(ZoneKind::Normal) / 256);
    assert_eq!(reserve(ZoneKind::Normal, ZoneKind::Normal), 0);
    rig.set_lowmem_reserve_ratio(ZoneKind::Dma, 0).unwrap();
    assert_eq!(reserve(ZoneKind::Dma, ZoneKind::Normal), 0);
    // G-55, B-51: a Normal request leaves DMA its reserve, a DMA request does not.
    rig.set_lowmem_reserve_ratio(ZoneKind::Dma, 256).unwrap();
    let dma = rig.zone(NodeId(0), ZoneKind::Dma).unwrap();
    let mark = dma.watermark(Watermark::Min);
    assert!(
        !dma.watermark_ok(Order::ZERO, Watermark::Min, ZoneKind::Normal, AllocFlags::empty())
            || dma.free_pages() > mark + above / 256
    );
    assert!(dma.watermark_ok(Order::ZERO, Watermark::Min, ZoneKind::Dma, AllocFlags::empty()));
}

#[test]
fn reserves_follow_memory_that_is_added_to_the_managed() {
    let regions = [Region::new(range(0, 64 * 512))];
    let reserved = [range(16 * 512, 48 * 512)];
    let limits = ZoneLimits { dma_end: Some(Pfn(4096)), ..ZoneLimits::NONE };
    let map = MemoryMap { regions: &regions, reserved: &reserved, limits, ..MemoryMap::default() };
    let rig = Rig::build(Env::new(1), cached(), &map);
    let dma = rig.zone(NodeId(0), ZoneKind::Dma).unwrap();
    let before = dma.lowmem_reserve(ZoneKind::Normal);
    // B-43: not handed out; B-57, B-50
    let managed = rig.managed_pages();
    assert_eq!(managed, 32 * 512);
    // SAFETY: frames of tests have no memory.
    assert_eq!(unsafe { rig.free_reserved(range(0, 64 * 512)) }, 32 * 512);
    assert_eq!(rig.managed_pages(), 64 * 512);
    assert_eq!(rig.all_free(), 64 * 512);
    assert!(dma.lowmem_reserve(ZoneKind::Normal) > before);
    // SAFETY: as above; nothing is reserved any more.
    assert_eq!(unsafe { rig.free_reserved(range(0, 64 * 512)) }, 0);
}

#[test]
fn depth_of_each_request() {
    // B-51, B-53 and the table of G-73..G-79: min is 256.
    let depth = |gfp: Gfp, task: TaskFlags| {
        let rig = bare();
        leave(&rig, 400);
        rig.env().context.flags.store(task.bits(), Ordering::Relaxed);
        while rig.get(gfp | Gfp::NOWARN, 0).is_some() {}
        normal(&rig).free_pages()
    };
    let none = TaskFlags::empty();
    assert_eq!(depth(Gfp::KERNEL | Gfp::NORETRY, none), 256);
    assert_eq!(depth(Gfp::NOWAIT, none), 256);
    assert_eq!(depth(Gfp::KERNEL | Gfp::HIGH | Gfp::NORETRY, none), 128);
    assert_eq!(depth(Gfp::ATOMIC, none), 96);
    assert_eq!(depth(Gfp::ATOMIC | Gfp::NOMEMALLOC, none), 128);
    assert_eq!(depth(Gfp::KERNEL | Gfp::NORETRY, TaskFlags::OOM_VICTIM), 128);
    assert_eq!(depth(Gfp::KERNEL | Gfp::NORETRY, TaskFlags::MEMALLOC), 0);
    assert_eq!(depth(Gfp::NOWAIT | Gfp::MEMALLOC, none), 0);
    assert_eq!(depth(Gfp::KERNEL | Gfp::NORETRY, TaskFlags::REALTIME), 128);
}

#[test]
fn pages_in_a_cpus_set_do_not_let_requests_below_the_mark() {
    let rig = Rig::small(32 * 512);
    let taken: std::vec::Vec<Pfn> = core::iter::from_fn(|| rig.get(ANY, 0)).collect();
    for pfn in taken.into_iter().take(8) {
        rig.put(pfn, 0);
    }
    // I-05: there are pages at hand, but the zone is below its min mark.
    assert!(rig.zone_stats(normal(&rig)).cached_pages > 0);
    assert_eq!(rig.get(Gfp::NOWAIT, 0), None);
    assert!(rig.get(ANY, 0).is_some());
}

#[test]
fn higher_orders_need_a_block_as_well_as_pages() {
    let rig = bare();
    let mut pages: std::vec::Vec<Pfn> = core::iter::from_fn(|| rig.get(ANY, 0)).collect();
    pages.sort();
    for pfn in pages.iter().filter(|pfn| pfn.0 % 2 == 0) {
        rig.put(*pfn, 0);
    }
    let zone = normal(&rig);
    let ok = |order, flags| zone.watermark_ok(o(order), Watermark::Min, ZoneKind::Normal, flags);
    // B-52: half of memory is free, and no two neighbours.
    assert!(zone.free_pages() > 8000);
    assert!(ok(0, AllocFlags::empty()));
    assert!(!ok(1, AllocFlags::empty()));
    assert_eq!(rig.get(ANY, 1), None);
    // C-13's index: fragmentation, not shortage (D-15).
    assert!(zone.fragmentation_index(o(4)) > 900);
    assert_eq!(zone.fragmentation_index(o(0)), -1000);
    assert_eq!(zone.unusable_index(o(1)), 1000);
    // A block in a contiguous area counts only for those who may use it.
    rig.put(pages[1], 0);
    assert!(ok(1, AllocFlags::empty()));
    rig.set_pageblock_type(pages[1], MigrateType::Cma).unwrap();
    assert!(!ok(1, AllocFlags::empty()));
    assert!(ok(1, AllocFlags::CMA));
    rig.set_pageblock_type(pages[1], MigrateType::HighAtomic).unwrap();
    assert!(!ok(1, AllocFlags::NON_BLOCK));
    assert!(ok(1, AllocFlags::HIGHATOMIC) && ok(1, AllocFlags::OOM));
}

#[test]
fn a_boost_raises_every_mark_and_is_worked_off() {
    let rig = bare();
    rig.set_min_free_kbytes(8192).unwrap();
    let zone = normal(&rig);
    let before: std::vec::Vec<u64> = Watermark::ALL.map(|mark| zone.watermark(mark)).into();
    for block in 0..32 {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(9)).unwrap();
    }
    // SAFETY: frames of tests have no memory.
    unsafe { rig.free_range(range(0, 64)) }.unwrap();
    assert!(rig.get(ANY | Gfp::KSWAPD_RECLAIM, 4).is_some());
    // B-49, B-58: background reclaim is woken by it.
    assert_eq!(zone.boost_pages(), 512);
    for (mark, before) in Watermark::ALL.into_iter().zip(before) {
        assert_eq!(zone.watermark(mark), before + 512);
    }
    assert!(rig.env().script.count(|_| true) >= 1);
    // B-59: order 0 with HIGH ignores it at the min mark; nobody else does.
    // SAFETY: frames of tests have no memory.
    unsafe { rig.free_range(range(512, 512 + 1900)) }.unwrap();
    assert!(zone.free_pages() < 2048 + 512);
    assert_eq!(rig.get(Gfp::KERNEL | Gfp::NORETRY | Gfp::NOWARN, 0), None);
    assert!(rig.get(Gfp::ATOMIC | Gfp::NOWARN, 0).is_some());
    zone.lower_boost(500);
    assert_eq!(zone.boost_pages(), 12);
    zone.lower_boost(500);
    assert_eq!(zone.boost_pages(), 0);
    // B-50: recomputing clears it; a factor of 0 forbids it.
    rig.set_watermark_boost_factor(0).unwrap();
    // SAFETY: frames of tests have no memory.
    unsafe { rig.free_range(range(8192, 8192 + 16)) }.unwrap();
    rig.set_pageblock_type(Pfn(8192), MigrateType::Reclaimable).unwrap();
    while rig.get(ANY, 4).is_some() {}
    assert_eq!(zone.boost_pages(), 0);
}

#[test]
fn counts_apart_are_usable_by_their_own_only() {
    let rig = bare();
    let zone = normal(&rig);
    for block in 0..28 {
        rig.set_pageblock_type(Pfn(block * 512), MigrateType::Cma).unwrap();
    }
    let free = zone.free_pages();
    let flags = |flags| zone.levels(Watermark::Min, ZoneKind::Normal).usable(Order::ZERO, flags);
    // B-51
    assert_eq!(flags(AllocFlags::CMA), free);
    assert_eq!(flags(AllocFlags::empty()), free - 28 * 512);
    for block in 0..28 {
        rig.set_pageblock_type(Pfn(block * 512), MigrateType::HighAtomic).unwrap();
    }
    assert_eq!(flags(AllocFlags::empty()), free - 28 * 512);
    // TRAP of G-80: NOWAIT sees them.
    assert_eq!(flags(AllocFlags::NON_BLOCK), free);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whoever_may_dig_deeper_succeeds_where_others_do(left in 0u64..600, boost in any::<bool>()) {
        let outcome = |gfp: Gfp| {
            let rig = bare();
            if boost {
                normal(&rig).boost.store(100, Ordering::Relaxed);
            }
            leave(&rig, left);
            rig.get(gfp | Gfp::NOWARN, 0).is_some()
        };
        // I-06
        let kernel = outcome(Gfp::KERNEL | Gfp::NORETRY);
        let high = outcome(Gfp::KERNEL | Gfp::HIGH | Gfp::NORETRY);
        let atomic = outcome(Gfp::ATOMIC);
        let memalloc = outcome(ANY);
        prop_assert!(kernel <= high && high <= atomic && atomic <= memalloc);
        // I-05
        prop_assert_eq!(kernel, left > 256 + if boost { 100 } else { 0 });
    }
}
