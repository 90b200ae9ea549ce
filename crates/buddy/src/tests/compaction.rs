//! Compaction: when it runs, what it moves, what it leaves alone, and to whom the block goes.

use std::boxed::Box;
use std::sync::atomic::Ordering;
use std::vec::Vec;

use kmem_gfp::{
    CompactOutcome, CompactPriority, Gfp, MigrateMode, MigrateType, NodeId, Pfn, PlainContext, ReclaimRequest,
    TaskFlags, Watermark, ZoneKind,
};

use super::rig::{Env, Rig, cached, checked, o, range};
use crate::compact::Progress;
use crate::compact::index::compact_gap;
use crate::{Buddy, BuddyOptions, Event, FreeShape, MemoryMap, Region, Zone, extfrag_percent, fragmentation_index};

pub(super) const BLOCKS: u64 = 32;
const FRAMES: u64 = BLOCKS * 512;
pub(super) const QUIET: Gfp = Gfp::KERNEL.union(Gfp::NOWARN);
pub(super) const MOVABLE: Gfp = Gfp::HIGHUSER_MOVABLE.union(Gfp::NOWARN);

pub(super) fn normal(rig: &Rig) -> &Zone {
    rig.zone(NodeId(0), ZoneKind::Normal).unwrap()
}

pub(super) fn rig_of(blocks: u64, options: BuddyOptions) -> Rig {
    let regions = [Region::new(range(0, blocks * 512))];
    let rig = Rig::build(Env::new(1), options, &MemoryMap { regions: &regions, ..MemoryMap::default() });
    rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, false);
    rig
}

/// A tenant in every `step`-th frame of each pageblock.
pub(super) fn scatter(rig: &Rig, blocks: core::ops::Range<u64>, step: usize) -> u64 {
    let mut name = 1000 * blocks.start;
    for pfn in (blocks.start * 512..blocks.end * 512).step_by(step) {
        rig.settle_at(pfn, 0, name);
        name += 1;
    }
    name
}

fn request(gfp: Gfp, order: u32) -> ReclaimRequest {
    let movable = gfp.contains(Gfp::MOVABLE);
    ReclaimRequest {
        gfp,
        order: o(order),
        ceiling: if movable { ZoneKind::Movable } else { ZoneKind::Normal },
        node: NodeId(0),
        this_node_only: false,
        migratetype: if movable { MigrateType::Movable } else { MigrateType::Unmovable },
    }
}

pub(super) fn compact(rig: &Rig, gfp: Gfp, order: u32, priority: CompactPriority) -> CompactOutcome {
    let outcome = rig.compact_zones(&PlainContext, &request(gfp, order), priority);
    rig.tenants().check();
    outcome
}

fn handle(rig: &Rig) -> &'static Buddy<Env> {
    // SAFETY: each test keeps its rig until its last call.
    unsafe { &*core::ptr::from_ref::<Buddy<Env>>(rig) }
}

/// The reclaimer compacts as an embedder's does.
fn forward(rig: &Rig) {
    let buddy = handle(rig);
    rig.env().script.can_compact.store(true, Ordering::Relaxed);
    *rig.env().script.on_compact.lock().unwrap() = Some(Box::new(move |script| {
        let (request, priority) = script.last.lock().unwrap().unwrap();
        buddy.compact_zones(&buddy.env().context, &request, priority)
    }));
}

#[test]
fn the_indices_tell_shortage_from_fragmentation() {
    // C-13
    let shape = FreeShape { pages: 64, blocks: 64, suitable: 0 };
    assert_eq!(fragmentation_index(o(4), shape), 922);
    assert_eq!(fragmentation_index(o(4), FreeShape::default()), 0);
    assert_eq!(fragmentation_index(o(4), FreeShape { pages: 16, blocks: 1, suitable: 1 }), -1000);
    assert_eq!(fragmentation_index(o(9), FreeShape { pages: 256, blocks: 1, suitable: 0 }), -500);
    // C-14
    assert_eq!(extfrag_percent(o(9), FreeShape { pages: 1024, blocks: 100, suitable: 1 }), 50);
    assert_eq!(extfrag_percent(o(9), FreeShape::default()), 0);
    // C-10: capped.
    assert_eq!([0, 1, 3, 4, 9].map(|order| compact_gap(o(order))), [2, 4, 16, 32, 32]);
    let rig = rig_of(BLOCKS, cached());
    scatter(&rig, 0..16, 2);
    // Half of 16 pageblocks is free in single frames, 16 are free as a whole.
    for (order, suitable) in [(9, 50), (10, 50), (6, 66), (0, 100)] {
        let useful = if order == 6 { 16 * 512 } else { suitable * 81 };
        let _ = useful;
        let percent = normal(&rig).extfrag_percent(o(order));
        assert_eq!(percent, if order == 0 { 0 } else { 33 }, "{order}");
    }
    assert_eq!(normal(&rig).fragmentation_index(o(9)), -1000);
}

#[test]
fn a_failed_compaction_is_not_repeated_at_once() {
    let progress = Progress::new();
    assert!(!progress.is_deferred(o(4)));
    // C-15
    progress.failed(o(4));
    assert!(!progress.is_deferred(o(3)), "smaller blocks may work");
    assert!(progress.is_deferred(o(4)) && !progress.is_deferred(o(4)), "the second is let through");
    for _ in 0..10 {
        progress.failed(o(5));
    }
    let refused = (0..).take_while(|_| progress.is_deferred(o(9))).count();
    assert_eq!(refused, 63);
    // C-16: the wait was the longest: everything is forgotten once.
    assert!(progress.is_restarting(o(9)) && !progress.is_restarting(o(3)));
    progress.succeeded(o(6), false);
    assert!(!progress.is_deferred(o(6)) && !progress.is_restarting(o(6)));
    assert!(!progress.is_deferred(o(7)), "the count is still full");
    progress.failed(o(7));
    assert!(progress.is_deferred(o(7)));
    progress.succeeded(o(7), true);
    assert!(!progress.is_deferred(o(8)) && !progress.is_deferred(o(8)), "a block was had");
}

#[test]
fn scattered_tenants_make_room_for_a_block_of_any_order() {
    for options in [cached(), checked()] {
        for order in 3..=10 {
            let rig = rig_of(BLOCKS, options);
            rig.set_min_free_kbytes(0).unwrap();
            // Four free frames between two tenants.
            let names = scatter(&rig, 0..BLOCKS, 5);
            assert_eq!(rig.get(MOVABLE | Gfp::MEMALLOC, order), None);
            let free = rig.all_free();
            assert_eq!(compact(&rig, MOVABLE, order, CompactPriority::SyncLight), CompactOutcome::Success);
            assert_eq!((rig.all_free(), rig.tenants().check().len() as u64), (free, names));
            let block = rig.get(MOVABLE | Gfp::MEMALLOC, order).unwrap();
            rig.put(block, order);
            // C-23: one pageblock was looked at. C-01: from the start of the zone to its end; and no more is moved than lies in one window.
            let moved = rig.event(Event::MigrateSuccess);
            assert!(block.0 < 2048 && moved <= (1 << order) / 5 + 1, "{block:?}, {moved} moved");
            (0..names).for_each(|name| rig.evict(name));
            assert_eq!(rig.all_free(), FRAMES);
            assert_eq!(rig.event(Event::BadFree), 0);
        }
    }
}

#[test]
fn blocks_of_tenants_move_as_they_are() {
    let rig = rig_of(BLOCKS, checked());
    for (name, block) in (0..BLOCKS).enumerate() {
        rig.settle_at(block * 512 + 64, 3, name as u64);
        rig.settle_at(block * 512 + 128, 5, 100 + name as u64);
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 400), o(0)).unwrap();
    }
    // C-07: of orders below the wanted one only.
    assert_eq!(compact(&rig, MOVABLE, 8, CompactPriority::SyncLight), CompactOutcome::Success);
    let moved = rig.event(Event::MigrateSuccess);
    assert_eq!(moved, 40);
    let rig = rig_of(4, cached());
    (0..4).for_each(|block| rig.settle_at(block * 512, 8, block));
    (0..4).for_each(|block| rig.settle_at(block * 512 + 256, 0, 10 + block));
    rig.set_min_free_kbytes(0).unwrap();
    assert_eq!(compact(&rig, MOVABLE, 8, CompactPriority::SyncLight), CompactOutcome::Success);
    assert_eq!(rig.event(Event::MigrateSuccess), 1);
}

#[test]
fn what_is_pinned_or_unmovable_stays_and_only_that() {
    let rig = rig_of(4, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..4, 8);
    // An unmovable page in each pageblock but the third, a pinned one in that.
    for block in [0, 1, 3] {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 3), o(0)).unwrap();
    }
    rig.tenants().pin(Pfn(1024 + 8), true);
    // C-07
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncFull), CompactOutcome::Complete);
    rig.tenants().pin(Pfn(1024 + 8), false);
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncFull), CompactOutcome::Success);
    let rig = rig_of(8, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..8, 8);
    for block in [0, 1, 3, 4, 5, 6, 7] {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 3), o(0)).unwrap();
    }
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncFull), CompactOutcome::Success);
    assert_eq!(rig.get(MOVABLE | Gfp::MEMALLOC, 9), Some(Pfn(1024)));
}

#[test]
fn a_zone_is_judged_before_anything_moves() {
    let rig = rig_of(BLOCKS, cached());
    let order9 = request(MOVABLE, 9);
    let go = |priority| rig.compact_zones(&PlainContext, &order9, priority);
    // C-09: served already.
    assert_eq!(go(CompactPriority::SyncLight), CompactOutcome::Success);
    assert_eq!(rig.event(Event::CompactMigrateScanned), 0);
    // C-24, G-64: without IO nothing is compacted; nor for order 0.
    assert_eq!(compact(&rig, MOVABLE.difference(Gfp::IO), 9, CompactPriority::SyncFull), CompactOutcome::Skipped);
    assert_eq!(compact(&rig, MOVABLE, 0, CompactPriority::SyncFull), CompactOutcome::Skipped);
    // C-10, C-11: too little is free to work with.
    scatter(&rig, 0..BLOCKS, 8);
    let zone = normal(&rig);
    let mut taken = Vec::new();
    while zone.free_pages() > zone.watermark(Watermark::Low) + 20 {
        taken.push(rig.get(Gfp::KERNEL | Gfp::MEMALLOC, 0).unwrap());
    }
    assert!(!rig.compaction_suitable(zone, o(9), Watermark::Min, ZoneKind::Normal));
    assert_eq!(go(CompactPriority::SyncLight), CompactOutcome::Skipped);
    assert_eq!(rig.event(Event::CompactMigrateScanned), 0);
    // C-12: as if more were free.
    assert!(zone.has_room_to_compact(o(9), Watermark::Min, ZoneKind::Normal, 100));
    assert!(zone.has_room_to_compact(o(2), Watermark::Min, ZoneKind::Normal, 0), "not costly");
    for pfn in taken.drain(..).take(200) {
        rig.put(pfn, 0);
    }
    assert!(rig.compaction_suitable(zone, o(9), Watermark::Min, ZoneKind::Normal));
    // C-11: a shortage rather than fragmentation, by the threshold.
    let index = zone.fragmentation_index(o(9));
    assert!((0..1000).contains(&index), "{index}");
    rig.set_extfrag_threshold(index as u32).unwrap();
    assert!(!rig.compaction_suitable(zone, o(9), Watermark::Min, ZoneKind::Normal));
    assert!(rig.compaction_suitable(zone, o(3), Watermark::Min, ZoneKind::Normal));
    rig.set_extfrag_threshold(index as u32 - 1).unwrap();
    assert!(rig.compaction_suitable(zone, o(9), Watermark::Min, ZoneKind::Normal));
}

#[test]
fn a_hasty_costly_request_needs_pages_outside_the_contiguous_areas() {
    let rig = rig_of(BLOCKS, cached());
    scatter(&rig, 0..BLOCKS, 8);
    for block in 0..BLOCKS {
        rig.set_pageblock_type(Pfn(block * 512), MigrateType::Cma).unwrap();
    }
    // C-11
    assert_eq!(compact(&rig, QUIET, 5, CompactPriority::Async), CompactOutcome::Skipped);
    assert_eq!(compact(&rig, MOVABLE, 5, CompactPriority::Async), CompactOutcome::Success);
}

#[test]
fn whose_pageblocks_are_compacted_depends_on_the_request_and_its_haste() {
    let fresh = || {
        let rig = rig_of(BLOCKS, cached());
        rig.set_min_free_kbytes(0).unwrap();
        scatter(&rig, 0..BLOCKS, 8);
        rig
    };
    let types = |rig: &Rig, blocks: core::ops::Range<u64>, migratetype| {
        blocks.for_each(|block| {
            rig.set_pageblock_type(Pfn(block * 512), migratetype).unwrap();
        });
    };
    // C-06: in haste only the request's own type ...
    let rig = fresh();
    types(&rig, 0..4, MigrateType::Reclaimable);
    types(&rig, 4..6, MigrateType::Unmovable);
    assert_eq!(compact(&rig, QUIET, 5, CompactPriority::Async), CompactOutcome::Success);
    assert_eq!(rig.get(QUIET | Gfp::MEMALLOC, 5).unwrap().0 / 512, 4);
    // ... or movable ones for movable requests, and for whole pageblocks.
    for (gfp, order) in [(MOVABLE, 5), (QUIET, 9)] {
        let rig = fresh();
        types(&rig, 0..4, MigrateType::Unmovable);
        assert_eq!(compact(&rig, gfp, order, CompactPriority::Async), CompactOutcome::Success);
        assert_eq!(rig.get(gfp | Gfp::MEMALLOC, order).unwrap().0 / 512, 4);
    }
    // Patiently any, but pageblocks of contiguous areas only for those who may use them.
    let rig = fresh();
    types(&rig, 0..2, MigrateType::Cma);
    types(&rig, 2..4, MigrateType::Reclaimable);
    assert_eq!(compact(&rig, QUIET, 5, CompactPriority::SyncLight), CompactOutcome::Success);
    assert_eq!(normal(&rig).free_blocks()[MigrateType::Reclaimable.index()][5], 1);
    let rig = fresh();
    types(&rig, 0..2, MigrateType::Cma);
    assert_eq!(compact(&rig, MOVABLE, 5, CompactPriority::SyncLight), CompactOutcome::Success);
    assert_eq!(normal(&rig).free_blocks()[MigrateType::Cma.index()][5], 1);
    // C-05: new places are movable pageblocks or those of areas, unless everything is at stake.
    let rig = fresh();
    types(&rig, 1..BLOCKS, MigrateType::Unmovable);
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncLight), CompactOutcome::Complete);
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncFull), CompactOutcome::Success);
}

#[test]
fn large_free_blocks_are_not_broken_for_new_places() {
    let rig = rig_of(BLOCKS, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..BLOCKS, 8);
    // The last pageblock gets a free block of order 6.
    for (name, (pfn, _)) in rig.tenants().check() {
        if pfn >= FRAMES - 64 {
            rig.evict(name);
        }
    }
    assert_eq!(compact(&rig, MOVABLE, 7, CompactPriority::SyncLight), CompactOutcome::Success);
    assert!((FRAMES - 64..FRAMES).all(|pfn| !rig.tenants().owns(Pfn(pfn))), "the smallest runs come first");
    // C-05: a pageblock with a block as large as wanted is passed by.
    let rig = rig_of(BLOCKS, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..BLOCKS - 1, 8);
    rig.settle_at(FRAMES - 1, 0, 1 << 40);
    rig.compact_node(NodeId(0));
    assert!(rig.tenants().check().values().filter(|(pfn, _)| *pfn >= FRAMES - 512).count() > 1);
}

#[test]
fn scanners_go_on_where_they_were_and_skip_what_yielded_nothing() {
    let rig = rig_of(BLOCKS, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..BLOCKS, 8);
    for block in 0..4 {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 3), o(0)).unwrap();
    }
    let zone = normal(&rig);
    let arena = rig.state().unwrap().arenas().next().unwrap();
    let skipped = || (0..BLOCKS as usize).filter(|&i| arena.skips.is_set(i)).collect::<Vec<_>>();
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncLight), CompactOutcome::Success);
    // C-02: the first four yielded nothing; the fifth did.
    assert_eq!(skipped()[..4], [0, 1, 2, 3]);
    assert_eq!(zone.progress.positions(MigrateMode::SyncLight).0, 5);
    assert_eq!(zone.progress.positions(MigrateMode::Async).0, 5);
    let first = rig.get(MOVABLE | Gfp::MEMALLOC, 9).unwrap();
    assert_eq!(first, Pfn(4 * 512));
    let scanned = rig.event(Event::CompactMigrateScanned);
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::Async), CompactOutcome::Success);
    assert_eq!(rig.get(MOVABLE | Gfp::MEMALLOC, 9), Some(Pfn(5 * 512)));
    assert!(rig.event(Event::CompactMigrateScanned) - scanned <= 128, "one pageblock was looked at");
    // C-02: apart for those in haste.
    assert_eq!(zone.progress.positions(MigrateMode::Async).0, 6);
    assert_eq!(zone.progress.positions(MigrateMode::SyncLight).0, 5);
    // C-01: until they meet; then from the ends again.
    let mut had = 2;
    while compact(&rig, MOVABLE, 9, CompactPriority::SyncLight) == CompactOutcome::Success {
        rig.get(MOVABLE | Gfp::MEMALLOC, 9).unwrap();
        had += 1;
    }
    assert!(had >= 20, "{had}");
    assert_eq!(zone.progress.positions(MigrateMode::SyncLight), (0, u64::MAX));
    // C-04: with everything at stake, hints are ignored.
    assert!(!skipped().is_empty());
    zone.forget_stale_skips();
    assert!(skipped().is_empty(), "they have served a whole scan");
}

#[test]
fn failures_defer_and_the_most_thorough_ones_do_not_care() {
    let rig = rig_of(8, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..8, 8);
    (0..8).for_each(|block| rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 3), o(0)).unwrap());
    let go = |priority| compact(&rig, MOVABLE, 9, priority);
    use CompactPriority::{Async, SyncFull, SyncLight};
    // C-15: haste defers nothing.
    assert_eq!(go(Async), CompactOutcome::Complete);
    assert_eq!(go(SyncLight), CompactOutcome::Complete);
    // C-17, C-04
    assert_eq!([go(SyncLight), go(SyncFull)], [CompactOutcome::Deferred, CompactOutcome::Complete]);
    assert_eq!([go(Async), go(Async), go(Async), go(Async)][..3], [CompactOutcome::Deferred; 3]);
    assert_eq!(compact(&rig, MOVABLE, 5, Async), CompactOutcome::Success, "smaller orders are not deferred");
}

#[test]
fn the_best_outcome_over_the_zones_is_reported() {
    use crate::compact::scan::Outcome::{Complete, Contended, Deferred, PartialSkipped, Skipped, Success};
    // C-18
    let order = [Skipped, Deferred, Complete, PartialSkipped, Contended, Success];
    assert!(order.is_sorted());
    let rig = Rig::pc((1 << 20) + 64 * 512);
    rig.set_min_free_kbytes(0).unwrap();
    // Normal is full, DMA32 has whole blocks: C-17, the walk ends there.
    let mut taken = Vec::new();
    while let Some(pfn) = rig.get(Gfp::KERNEL | Gfp::THISNODE | Gfp::MEMALLOC, 10).filter(|pfn| pfn.0 >= 1 << 20) {
        taken.push(pfn);
    }
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncLight), CompactOutcome::Success);
    assert_eq!(rig.event(Event::CompactMigrateScanned), 0);
}

#[test]
fn haste_gives_way_and_a_fatal_signal_ends_everything() {
    let rig = rig_of(BLOCKS, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..BLOCKS, 8);
    // C-03: somebody is in the way.
    rig.tenants().needs_sync.store(true, Ordering::Relaxed);
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::Async), CompactOutcome::Contended);
    rig.tenants().modes.lock().unwrap().clear();
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncLight), CompactOutcome::Success);
    let modes: Vec<MigrateMode> = rig.tenants().modes.lock().unwrap().clone();
    assert!(modes.contains(&MigrateMode::SyncLight) && !modes.contains(&MigrateMode::Sync));
    // C-03: only by hand for as long as it takes.
    rig.tenants().modes.lock().unwrap().clear();
    rig.compact_memory(1).unwrap();
    assert!(rig.tenants().modes.lock().unwrap().contains(&MigrateMode::Sync));
    // C-01
    let rig = rig_of(BLOCKS, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..BLOCKS, 8);
    rig.env().context.flags.store(TaskFlags::FATAL_SIGNAL.bits(), Ordering::Relaxed);
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncFull), CompactOutcome::Contended);
    assert_eq!(rig.event(Event::MigrateSuccess), 0);
}

#[test]
fn without_fs_owners_that_need_it_are_left_alone() {
    let rig = rig_of(BLOCKS, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..BLOCKS, 8);
    rig.tenants().needs_fs.store(true, Ordering::Relaxed);
    // C-07, C-24
    let nofs = MOVABLE.difference(Gfp::FS);
    assert_eq!(compact(&rig, nofs, 9, CompactPriority::SyncFull), CompactOutcome::Complete);
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncFull), CompactOutcome::Success);
    let rig = rig_of(BLOCKS, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..BLOCKS, 8);
    assert_eq!(compact(&rig, nofs, 9, CompactPriority::SyncFull), CompactOutcome::Success);
}

#[test]
fn the_block_goes_to_the_request_it_was_made_for() {
    for options in [cached(), checked(), BuddyOptions { init_on_free: true, ..checked() }] {
        let rig = rig_of(BLOCKS, options);
        scatter(&rig, 0..BLOCKS, 8);
        forward(&rig);
        let free = rig.all_free();
        // C-25, B-94
        let pfn = rig.alloc_pages(MOVABLE, o(9), None).unwrap();
        assert_eq!(rig.all_free(), free - 512);
        // C-26
        let events = [Event::CompactStall, Event::CompactSuccess, Event::CompactFail].map(|event| rig.event(event));
        assert_eq!(events, [1, 1, 0]);
        assert!(rig.event(Event::CompactIsolated) >= 512 && rig.event(Event::CompactFreeScanned) > 0);
        let vmstat = std::format!("{}", rig.vmstat(&crate::views::NoExtra));
        assert!(vmstat.contains("compact_success 1\n") && vmstat.contains("pgmigrate_success 64\n"));
        // It is a block like any other.
        assert!(rig.try_put(pfn, 8).is_err());
        rig.put(pfn, 9);
        assert_eq!(rig.all_free(), free);
        // C-25: a small unmovable one in a movable pageblock is not handed over, but claimed as the rules say.
        let rig = rig_of(BLOCKS, options);
        scatter(&rig, 0..BLOCKS, 8);
        forward(&rig);
        let pfn = rig.alloc_pages(QUIET, o(5), None).unwrap();
        rig.put(pfn, 5);
        rig.tenants().check();
        assert_eq!(rig.all_free(), free);
    }
}

#[test]
fn blocks_that_nobody_waits_for_become_free() {
    let rig = rig_of(BLOCKS, cached());
    scatter(&rig, 0..BLOCKS, 8);
    let free = rig.all_free();
    let captures = &rig.state().unwrap().captures;
    let waiting = captures.publish(&request(MOVABLE, 8)).unwrap();
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncLight), CompactOutcome::Success);
    assert_eq!(captures.collect(waiting), None);
    assert_eq!(rig.all_free(), free);
    // All who wait have a slot, or do without.
    let all: Vec<_> = (0..9).map(|_| captures.publish(&request(MOVABLE, 8))).collect();
    assert_eq!(all.iter().flatten().count(), 8);
    assert!(captures.offer(&request(MOVABLE, 8), Pfn(256)));
    let had: Vec<Pfn> = all.into_iter().flatten().filter_map(|waiting| captures.collect(waiting)).collect();
    assert_eq!(had, [Pfn(256)]);
}

#[test]
fn an_unsuccessful_compaction_is_counted_as_such() {
    let rig = rig_of(8, cached());
    scatter(&rig, 0..8, 8);
    (0..8).for_each(|block| rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 3), o(0)).unwrap());
    forward(&rig);
    assert!(rig.alloc_pages(MOVABLE | Gfp::NORETRY, o(9), None).is_err());
    // C-26: deferred ones are no stall.
    let stalls = rig.event(Event::CompactStall);
    assert!(stalls > 0);
    assert_eq!(rig.event(Event::CompactFail), stalls);
    normal(&rig).progress.failed(o(9));
    normal(&rig).progress.failed(o(9));
    normal(&rig).progress.failed(o(9));
    assert!(rig.alloc_pages(MOVABLE | Gfp::NORETRY, o(9), None).is_err());
    assert_eq!(rig.event(Event::CompactStall), stalls);
    rig.tenants().check();
}

#[test]
fn new_places_are_taken_only_above_the_min_mark() {
    let rig = rig_of(BLOCKS, cached());
    scatter(&rig, 0..BLOCKS, 8);
    let zone = normal(&rig);
    let mut taken = Vec::new();
    while zone.free_pages() > zone.watermark(Watermark::Min) + 512 {
        taken.push(rig.get(Gfp::KERNEL | Gfp::MEMALLOC, 0).unwrap());
    }
    // C-40
    rig.compact_node(NodeId(0));
    assert_eq!(rig.event(Event::CompactIsolated), 0);
    taken.drain(..200).for_each(|pfn| rig.put(pfn, 0));
    rig.compact_node(NodeId(0));
    rig.tenants().check();
    // C-40: half a pageblock of movable contents makes a movable pageblock.
    let rig = rig_of(8, cached());
    rig.set_min_free_kbytes(0).unwrap();
    (0..8).for_each(|block| rig.settle_at(block * 512 + 256, 0, block));
    rig.settle_at(0, 8, 100);
    rig.set_pageblock_type(Pfn(7 * 512), MigrateType::Unmovable).unwrap();
    (1..7).for_each(|block| rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(8)).unwrap());
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncFull), CompactOutcome::Success);
    assert_eq!(rig.tenants().check()[&100], (7 * 512, 8));
    assert_eq!(rig.pageblock_type(Pfn(7 * 512)), Some(MigrateType::Movable));
}

#[test]
fn an_isolated_pageblock_is_neither_source_nor_target() {
    let rig = rig_of(4, cached());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..4, 8);
    let held = rig.isolate_range(range(3 * 512, 4 * 512), crate::IsolateMode::Other).unwrap();
    let zeroth = rig.isolate_range(range(0, 512), crate::IsolateMode::Other).unwrap();
    rig.compact_memory(1).unwrap();
    let places = rig.tenants().check();
    assert_eq!(places.values().filter(|(pfn, _)| *pfn < 512).count(), 64);
    assert_eq!(places.values().filter(|(pfn, _)| *pfn >= 3 * 512).count(), 64);
    drop((held, zeroth));
}
