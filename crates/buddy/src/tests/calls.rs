//! Exact counts, given addresses, parts, bulk, any context, hygiene, hot-add.

use std::sync::atomic::Ordering;
use std::vec;
use std::vec::Vec;

use kmem_gfp::{
    AllocError, BulkPages, ExactPages, FreeError, Gfp, NodeId, Order, PageAllocator, Pages, Pfn, PfnRange, TaskFlags,
    ZoneKind,
};

use super::rig::{Env, Rig, cached, checked, o, range};
use crate::{BuddyOptions, MapError, MemoryMap, Region, ZoneLimits};

const ANY: Gfp = Gfp::MEMALLOC.union(Gfp::NOWARN);

#[test]
fn exact_counts_give_the_excess_back_at_once() {
    for rig in [Rig::small(64 * 512), Rig::checked(64 * 512)] {
        let before = rig.all_free();
        for nr in [1usize, 2, 3, 5, 17, 511, 513, 1000, 1024] {
            // B-107, G-62
            let pages = rig.alloc_pages_exact(Gfp::KERNEL | Gfp::COMP | Gfp::HIGHMEM, nr, None).unwrap();
            assert_eq!(pages.len(), nr as u64);
            assert_eq!(rig.all_free(), before - nr as u64, "{nr}");
            // SAFETY: frames of tests have no memory.
            unsafe { rig.free_pages_exact(pages) }.unwrap();
            assert_eq!(rig.all_free(), before, "{nr}");
        }
        assert_eq!(
            rig.alloc_pages_exact(Gfp::KERNEL, 1025, None),
            Err(AllocError::TooLarge { size_bytes: 1025 * 4096 })
        );
        assert!(rig.alloc_pages_exact(Gfp::KERNEL, usize::MAX, None).is_err());
        assert!(rig.alloc_pages_exact(Gfp::KERNEL, 0, None).unwrap().is_empty());
        // The pages are single ones.
        let pages = rig.alloc_pages_exact(Gfp::KERNEL, 7, None).unwrap();
        for pfn in pages.iter() {
            rig.put(pfn, 0);
        }
        assert_eq!(rig.all_free(), before);
    }
}

#[test]
fn a_split_block_is_freed_page_by_page() {
    let rig = Rig::checked(64 * 512);
    for order in [1, 6, 9, 10] {
        let block = rig.get(Gfp::KERNEL, order).unwrap();
        // B-41
        rig.split_page(block, o(order)).unwrap();
        assert!(matches!(rig.try_put(block, order), Err(FreeError::WrongOrder { .. })));
        for pfn in PfnRange::block(block, o(order)).unwrap().iter() {
            rig.put(pfn, 0);
        }
        assert_eq!(rig.all_free(), 64 * 512);
        assert_eq!(rig.split_page(block, o(order)), Err(FreeError::AlreadyFree(block)));
    }
}

#[test]
fn any_part_of_a_block_can_be_freed_in_any_order() {
    let rig = Rig::checked(64 * 512);
    let block = rig.get(Gfp::KERNEL, 10).unwrap();
    let free = |from: u64, to: u64| {
        // SAFETY: frames of tests have no memory.
        unsafe { ExactPages::free_range(&*rig, range(block.0 + from, block.0 + to)) }
    };
    free(100, 700).unwrap();
    assert_eq!(free(90, 110), Err(FreeError::AlreadyFree(Pfn(block.0 + 100))));
    assert!(matches!(rig.try_put(block, 10), Err(FreeError::WrongOrder { .. })));
    free(1000, 1024).unwrap();
    free(0, 1).unwrap();
    // What is left of the block's front begins a frame later.
    assert!(matches!(rig.try_put(Pfn(block.0 + 2), 0), Err(FreeError::WrongOrder { .. })));
    free(1, 100).unwrap();
    free(700, 1000).unwrap();
    assert_eq!(rig.all_free(), 64 * 512);
    // Several blocks at once.
    let pages: Vec<PfnRange> =
        (0..4).map(|_| PfnRange::block(rig.get(Gfp::KERNEL, 5).unwrap(), o(5)).unwrap()).collect();
    let (first, last) = (pages.iter().map(|r| r.start).min().unwrap(), pages.iter().map(|r| r.end).max().unwrap());
    assert_eq!(last.0 - first.0, 128);
    // SAFETY: frames of tests have no memory.
    unsafe { rig.free_range(PfnRange::new(first, last)) }.unwrap();
    assert_eq!(rig.all_free(), 64 * 512);
    // SAFETY: as above.
    assert_eq!(unsafe { rig.free_range(range(1 << 40, (1 << 40) + 1)) }, Err(FreeError::Foreign(Pfn(1 << 40))));
}

#[test]
fn a_given_block_is_taken_if_it_is_free() {
    let rig = Rig::checked(64 * 512);
    for (pfn, order) in [(0x400, 10), (0x205, 0), (0x208, 3), (0x800, 9), (0xa40, 6)] {
        assert_eq!(ExactPages::alloc_pages_at(&*rig, Gfp::KERNEL, Pfn(pfn), o(order)), Ok(()));
        assert!(matches!(rig.alloc_pages_at(Gfp::KERNEL, Pfn(pfn), o(order)), Err(AllocError::NoMemory { .. })));
    }
    assert_eq!(rig.alloc_pages_at(Gfp::KERNEL, Pfn(0x201), o(1)), Err(AllocError::BadAlign(0x201)));
    assert_eq!(rig.alloc_pages_at(Gfp::KERNEL, Pfn(1 << 40), o(0)), Err(AllocError::BadAlign(1 << 40)));
    let bad = Gfp::KERNEL | Gfp::DMA | Gfp::DMA32;
    assert_eq!(rig.alloc_pages_at(bad, Pfn(0x1000), o(0)), Err(AllocError::BadFlags(bad)));
    rig.env().may_charge.store(false, Ordering::Relaxed);
    assert!(matches!(rig.alloc_pages_at(Gfp::KERNEL_ACCOUNT, Pfn(0x1000), o(4)), Err(AllocError::OverLimit { .. })));
    // A pair of which one half is not free.
    assert!(rig.alloc_pages_at(Gfp::KERNEL, Pfn(0x800), o(10)).is_err());
    for (pfn, order) in [(0x400, 10), (0x205, 0), (0x208, 3), (0x800, 9), (0xa40, 6)] {
        rig.put(Pfn(pfn), order);
    }
    assert_eq!(rig.all_free(), 64 * 512);
}

#[test]
fn bulk_fills_the_empty_slots_in_order() {
    for rig in [Rig::small(64 * 512), Rig::checked(64 * 512)] {
        let before = rig.all_free();
        let own = rig.get(Gfp::KERNEL, 0).unwrap();
        let mut pages = vec![None; 500];
        pages[3] = Some(own);
        // B-105
        assert_eq!(rig.alloc_pages_bulk(Gfp::KERNEL, None, &mut pages), 500);
        assert_eq!(pages[3], Some(own));
        let mut sorted: Vec<Pfn> = pages.iter().flatten().copied().collect();
        sorted.sort();
        sorted.dedup();
        assert_eq!(sorted.len(), 500);
        assert_eq!(BulkPages::alloc_pages_bulk(&*rig, Gfp::KERNEL, None, &mut pages), 500);
        // B-106: ascending is fastest, any order is right.
        pages.reverse();
        // SAFETY: frames of tests have no memory.
        unsafe { rig.free_pages_bulk(&mut pages) }.unwrap();
        assert!(pages.iter().all(Option::is_none));
        assert_eq!(rig.all_free(), before);
    }
}

#[test]
fn bulk_falls_back_to_a_single_page() {
    let rig = Rig::small(64 * 512);
    let mut pages = vec![None; 8];
    // B-105: charged requests.
    assert_eq!(rig.alloc_pages_bulk(Gfp::KERNEL_ACCOUNT, None, &mut pages), 1);
    // The set is busy: we are inside its section.
    let mut pages = vec![None; 8];
    assert_eq!(rig.section(|_| rig.alloc_pages_bulk(Gfp::KERNEL, None, &mut pages)), Some(1));
    // No zone stays above its mark by so many.
    let mut many = vec![None; 64 * 512];
    assert_eq!(rig.alloc_pages_bulk(Gfp::KERNEL, None, &mut many), 1);
    // One page is wanted.
    assert_eq!(rig.alloc_pages_bulk(Gfp::KERNEL, None, &mut [None]), 1);
    // Nothing is wanted.
    assert_eq!(rig.alloc_pages_bulk(Gfp::KERNEL, None, &mut []), 0);
}

#[test]
fn a_bad_page_stops_a_bulk_free() {
    let rig = Rig::checked(64 * 512);
    let mut pages = vec![None; 4];
    rig.alloc_pages_bulk(Gfp::KERNEL, None, &mut pages);
    let (second, third) = (pages[1].unwrap(), pages[2]);
    rig.put(second, 0);
    // SAFETY: frames of tests have no memory.
    assert_eq!(unsafe { rig.free_pages_bulk(&mut pages) }, Err(FreeError::AlreadyFree(second)));
    assert_eq!((pages[0], pages[1], pages[2]), (None, Some(second), third));
}

#[test]
fn any_context_requests_take_one_look_at_the_min_mark() {
    let rig = Rig::small(64 * 512);
    rig.env().context.flags.store(TaskFlags::IN_NMI.bits(), Ordering::Relaxed);
    let pfn = PageAllocator::alloc_pages_nolock(&*rig, Gfp::ACCOUNT, o(0), None).unwrap();
    // G-103: zeroed.
    assert_eq!(*rig.env().zeroed.lock().unwrap(), [range(pfn.0, pfn.0 + 1)]);
    // SAFETY: frames of tests have no memory.
    unsafe { rig.free_pages_nolock(pfn, o(0)) }.unwrap();
    // G-105: only the orders of the sets.
    assert!(rig.alloc_pages_nolock(Gfp::empty(), o(4), None).is_err());
    assert!(rig.alloc_pages_nolock(Gfp::empty(), o(9), None).is_ok());
    assert_eq!(rig.alloc_pages_nolock(Gfp::KERNEL, o(0), None), Err(AllocError::BadFlags(Gfp::KERNEL)));
    // G-106
    rig.env().may_charge.store(false, Ordering::Relaxed);
    assert!(matches!(rig.alloc_pages_nolock(Gfp::ACCOUNT, o(0), None), Err(AllocError::NoMemory { .. })));
    rig.env().may_charge.store(true, Ordering::Relaxed);
    // G-104: the min mark, and nobody is woken or asked.
    rig.env().context.flags.store(0, Ordering::Relaxed);
    while rig.get(ANY, 0).is_some() {}
    let calls = rig.env().script.count(|_| true);
    assert!(rig.alloc_pages_nolock(Gfp::empty(), o(0), None).is_err());
    assert_eq!(rig.env().script.count(|_| true), calls);
}

#[test]
fn a_real_time_kernel_refuses_any_context_requests_in_interrupts() {
    let regions = [Region::new(range(0, 64 * 512))];
    let map = MemoryMap { regions: &regions, ..MemoryMap::default() };
    let rig = Rig::build(Env::new(1), BuddyOptions { realtime_kernel: true, ..cached() }, &map);
    // G-105
    for (flag, allowed) in [(TaskFlags::IN_NMI, false), (TaskFlags::IN_IRQ, false), (TaskFlags::ATOMIC, true)] {
        rig.env().context.flags.store(flag.bits(), Ordering::Relaxed);
        assert_eq!(rig.alloc_pages_nolock(Gfp::empty(), o(0), None).is_ok(), allowed, "{flag:?}");
    }
}

#[test]
fn zeroing_happens_once_where_the_policy_says() {
    let regions = [Region::new(range(0, 16 * 512))];
    let map = MemoryMap { regions: &regions, ..MemoryMap::default() };
    let zeroed = |options: BuddyOptions, gfp: Gfp, order: u32| {
        let rig = Rig::build(Env::new(1), options, &map);
        rig.env().zeroed.lock().unwrap().clear();
        let pfn = rig.get(gfp, order).unwrap();
        let at_alloc = rig.env().zeroed.lock().unwrap().contains(&PfnRange::block(pfn, o(order)).unwrap());
        rig.env().zeroed.lock().unwrap().clear();
        rig.put(pfn, order);
        (at_alloc, rig.env().zeroed.lock().unwrap().contains(&PfnRange::block(pfn, o(order)).unwrap()))
    };
    for order in [0, 2, 5, 9, 10] {
        // B-112, B-101
        assert_eq!(zeroed(cached(), Gfp::KERNEL, order), (false, false));
        assert_eq!(zeroed(cached(), Gfp::KERNEL | Gfp::ZERO, order), (true, false));
        let on_alloc = BuddyOptions { init_on_alloc: true, ..cached() };
        assert_eq!(zeroed(on_alloc, Gfp::KERNEL, order), (true, false));
        let on_free = BuddyOptions { init_on_free: true, ..on_alloc };
        assert_eq!(zeroed(on_free, Gfp::KERNEL | Gfp::ZERO, order), (false, true), "no second time");
    }
    // With init_on_free all of memory is zero from the start.
    let rig = Rig::build(Env::new(1), BuddyOptions { init_on_free: true, ..cached() }, &map);
    let pages: u64 = rig.env().zeroed.lock().unwrap().iter().map(PfnRange::len).sum();
    assert_eq!(pages, 16 * 512);
}

#[test]
fn memory_added_later_joins_its_zone() {
    let regions = [Region::new(range(0, 32 * 512))];
    let hotplug = [(NodeId(1), ZoneKind::Normal)];
    let map = MemoryMap { regions: &regions, nr_nodes: 2, hotplug: &hotplug, ..MemoryMap::default() };
    let mut rig = Rig::build(Env::new(1), cached(), &map);
    let marks = rig.min_free_kbytes();
    let more = [Region::new(range(100 * 512, 164 * 512))];
    rig.add(&MemoryMap { regions: &more, ..MemoryMap::default() }).unwrap();
    // B-114
    assert_eq!(rig.managed_pages(), 96 * 512);
    assert!(rig.min_free_kbytes() > marks);
    let other = [Region::new(range(200 * 512 + 7, 232 * 512)).on_node(NodeId(1))];
    let reserved = [range(210 * 512, 210 * 512 + 10)];
    rig.add(&MemoryMap { regions: &other, reserved: &reserved, ..MemoryMap::default() }).unwrap();
    let total = 128 * 512 - 17;
    assert_eq!(rig.all_free(), total);
    let pages: Vec<Pfn> = core::iter::from_fn(|| rig.get(ANY, 0)).collect();
    assert_eq!(pages.len() as u64, total);
    let node1 = rig.zone(NodeId(1), ZoneKind::Normal).unwrap();
    for pfn in pages {
        assert_eq!(rig.node_of(pfn), NodeId(u32::from(pfn.0 >= 200 * 512)));
        rig.put(pfn, 0);
    }
    assert!(rig.zone_stats(node1).cached_pages > 0, "the new zone has sets");
    assert_eq!(rig.all_free(), total);
    // B-43
    assert_eq!(rig.try_put(Pfn(200 * 512), 4), Err(FreeError::Reserved(Pfn(200 * 512))));
    // What cannot be added changes nothing.
    let again = [Region::new(range(110 * 512, 111 * 512))];
    assert!(matches!(rig.add(&MemoryMap { regions: &again, ..MemoryMap::default() }), Err(MapError::Overlap(_))));
    let unknown = [Region::new(range(300 * 512, 301 * 512)).in_zone(ZoneKind::Movable)];
    assert!(matches!(
        rig.add(&MemoryMap { regions: &unknown, ..MemoryMap::default() }),
        Err(MapError::NoSuchZone { .. })
    ));
    assert_eq!(rig.all_free(), total);
}

#[test]
fn maps_with_holes_hand_out_exactly_what_is_there() {
    let regions = [
        Region::new(range(0x2_0000, 0x2_4321)),
        Region::new(range(1, 0x9f)),
        Region::new(range(0x100, 0x1007)),
        Region::new(range(1 << 30, (1 << 30) + 700)).in_zone(ZoneKind::Movable),
    ];
    let reserved = [range(0, 5), range(0x200, 0x300), range(0x280, 0x290), range(0x5000, 0x6000)];
    let map = MemoryMap { regions: &regions, reserved: &reserved, limits: ZoneLimits::X86_64, ..MemoryMap::default() };
    let rig = Rig::build(Env::new(1), checked(), &map);
    let exists = |pfn: u64| regions.iter().any(|region| region.range.contains(Pfn(pfn)));
    let expected: u64 = regions.iter().map(|region| region.range.len()).sum::<u64>() - 4 - 0x100;
    assert_eq!(rig.all_free(), expected);
    let gfp = Gfp::HIGHUSER_MOVABLE | Gfp::MEMALLOC | Gfp::NOWARN;
    let mut pages: Vec<Pfn> = core::iter::from_fn(|| rig.get(gfp, 0)).collect();
    assert_eq!(pages.len() as u64, expected);
    for &pfn in &pages {
        assert!(exists(pfn.0) && !reserved.iter().any(|range| range.contains(pfn)), "{pfn}");
    }
    // B-43, B-16: gaps are told from blocks, and never merged over.
    assert_eq!(rig.try_put(Pfn(0x280), 0), Err(FreeError::Reserved(Pfn(0x280))));
    assert_eq!(rig.try_put(Pfn(0xa0), 0), Err(FreeError::Reserved(Pfn(0xa0))));
    assert_eq!(rig.try_put(Pfn(0x8000), 0), Err(FreeError::Foreign(Pfn(0x8000))));
    pages.reverse();
    for pfn in pages {
        rig.put(pfn, 0);
    }
    assert_eq!(rig.all_free(), expected);
    let present: u64 = rig.zones().map(|zone| zone.present_pages()).sum();
    assert_eq!(present, regions.iter().map(|region| region.range.len()).sum());
    // A limit inside a pageblock is rounded down: the pageblock of frame 0x1000 is DMA32's.
    assert_eq!(rig.zone(NodeId(0), ZoneKind::Movable).unwrap().managed_pages(), 700);
}

#[test]
fn bad_maps_are_refused() {
    let build = |map: &MemoryMap<'_>| crate::Buddy::new(Env::new(1)).metadata_layout(map).map(|_| ());
    assert_eq!(build(&MemoryMap::default()), Err(MapError::Empty));
    let twice = [Region::new(range(0, 100)), Region::new(range(50, 60))];
    assert_eq!(build(&MemoryMap { regions: &twice, ..MemoryMap::default() }), Err(MapError::Overlap(range(50, 60))));
    let far = [Region::new(range(0, 100)).on_node(NodeId(3))];
    let map = MemoryMap { regions: &far, nr_nodes: 2, ..MemoryMap::default() };
    assert_eq!(build(&map), Err(MapError::NoSuchNode { node: NodeId(3), nr_nodes: 2 }));
    let huge = [Region::new(range(0, u64::MAX))];
    assert_eq!(build(&MemoryMap { regions: &huge, ..MemoryMap::default() }), Err(MapError::TooLarge));
}

#[test]
fn half_a_byte_of_books_per_frame_is_enough() {
    for (mib, cpus) in [(256, 1), (512, 2), (1024, 4), (4096, 8), (65_536, 64)] {
        let frames = mib * 256;
        let regions = [
            Region::new(range(0, frames.min(0xc_0000))),
            Region::new(range(1 << 20, (1 << 20) + frames.saturating_sub(0xc_0000))),
        ];
        let map = MemoryMap { regions: &regions, limits: ZoneLimits::X86_64, ..MemoryMap::default() };
        for options in [cached(), checked()] {
            let buddy = crate::Buddy::with_options(Env::new(cpus), options);
            let size = buddy.metadata_layout(&map).unwrap().size() as u64;
            let most = if options.check_free { frames * 5 / 8 } else { frames / 2 };
            assert!(size <= most, "{mib} MiB, {cpus} CPUs: {size} bytes for {frames} frames");
        }
    }
}

#[test]
fn owned_pages_free_themselves() {
    let rig = Rig::checked(64 * 512);
    let pages = Pages::new(&*rig, Gfp::KERNEL, o(3), None).unwrap();
    assert_eq!(pages.range().len(), 8);
    assert_eq!(rig.all_free(), 64 * 512 - 8);
    drop(pages);
    assert_eq!(rig.all_free(), 64 * 512);
}

#[test]
fn contradicting_flags_and_the_boot_mask() {
    let rig = Rig::small(64 * 512);
    // G-92, G-93
    for gfp in [Gfp::KERNEL | Gfp::DMA | Gfp::DMA32, Gfp::KERNEL | Gfp::MOVABLE | Gfp::RECLAIMABLE] {
        for order in [0, 2, 5] {
            assert_eq!(rig.alloc_pages(gfp, o(order), None), Err(AllocError::BadFlags(gfp)));
        }
    }
    // G-59 (2), G-42: during boot nobody may sleep.
    rig.set_allowed_mask(Gfp::BOOT_MASK);
    while rig.get(ANY, 0).is_some() {}
    rig.env().script.calls.lock().unwrap().clear();
    assert!(rig.get(Gfp::KERNEL | Gfp::NOWARN, 0).is_none());
    assert_eq!(rig.env().script.count(|_| true), 0);
    assert_eq!(Order::MAX.get(), 10);
}

#[test]
fn the_pin_scope_keeps_pages_out_of_movable_memory() {
    let regions = [Region::new(range(0, 64 * 512))];
    let limits = ZoneLimits { movable_start: Some(Pfn(32 * 512)), ..ZoneLimits::NONE };
    let map = MemoryMap { regions: &regions, limits, ..MemoryMap::default() };
    let rig = Rig::build(Env::new(1), cached(), &map);
    let movable = |pfn: Pfn| pfn.0 >= 32 * 512;
    assert!(movable(rig.get(Gfp::HIGHUSER_MOVABLE, 0).unwrap()));
    assert!(!movable(rig.get(Gfp::HIGHUSER, 0).unwrap()));
    rig.env().context.flags.store(TaskFlags::PIN.bits(), Ordering::Relaxed);
    assert!(!movable(rig.get(Gfp::HIGHUSER_MOVABLE, 0).unwrap()));
    assert!(!movable(rig.get(Gfp::HIGHUSER_MOVABLE, 3).unwrap()));
}
