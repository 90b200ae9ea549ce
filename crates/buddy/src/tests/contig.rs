//! Contiguous ranges: emptied, taken and given back; every failure leaves everybody's frames alone.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::vec::Vec;

use kmem_gfp::{AllocError, ContigRange, Gfp, MigrateMode, MigrateType, NodeId, Pfn, PfnRange, TaskFlags, ZoneKind};
use proptest::prelude::*;

use super::rig::{Env, Rig, cached, checked, o, range};
use crate::{BuddyOptions, Event, IsolateMode, MemoryMap, Region};

const FRAMES: u64 = 16 * 512;
const KERNEL: Gfp = Gfp::KERNEL.union(Gfp::NOWARN);

fn take(rig: &Rig, wanted: PfnRange) -> Result<(), AllocError> {
    rig.alloc_contig_range(wanted, KERNEL, IsolateMode::Other)
}

fn give(rig: &Rig, range: PfnRange) {
    // SAFETY: frames of tests have no memory.
    unsafe { rig.free_contig_range(range) }.unwrap();
}

fn no_isolation_is_left(rig: &Rig) {
    for block in 0..FRAMES / 512 {
        assert_ne!(rig.pageblock_type(Pfn(block * 512)), Some(MigrateType::Isolate), "pageblock {block}");
    }
    assert_eq!(rig.zones().map(|zone| zone.free_of(MigrateType::Isolate)).sum::<u64>(), 0);
}

#[test]
fn a_free_range_is_taken_exactly_and_given_back_in_any_parts() {
    for options in [cached(), checked()] {
        let regions = [Region::new(range(0, FRAMES))];
        let rig = Rig::build(Env::new(1), options, &MemoryMap { regions: &regions, ..MemoryMap::default() });
        // B-109: neither aligned nor a power of two.
        take(&rig, range(1001, 3007)).unwrap();
        no_isolation_is_left(&rig);
        assert_eq!(rig.all_free(), FRAMES - 2006);
        for busy in [1001, 2000, 3006] {
            assert!(rig.alloc_pages_at(Gfp::KERNEL, Pfn(busy), o(0)).is_err());
        }
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(1000), o(0)).unwrap();
        rig.put(Pfn(1000), 0);
        // Pages of its own each.
        rig.put(Pfn(1001), 0);
        give(&rig, range(1002, 2500));
        give(&rig, range(2500, 3007));
        assert_eq!(rig.all_free(), FRAMES);
        assert_eq!(rig.event(Event::BadFree), 0);
    }
}

#[test]
fn movable_tenants_are_moved_out_with_everything_they_have() {
    for options in [cached(), checked()] {
        let regions = [Region::new(range(0, FRAMES))];
        let rig = Rig::build(Env::new(1), options, &MemoryMap { regions: &regions, ..MemoryMap::default() });
        for (name, (pfn, order)) in
            [(1024, 0), (1025, 0), (1100, 1), (1152, 5), (1536, 9), (2047 - 63, 0)].into_iter().enumerate()
        {
            if name != 5 {
                rig.settle_at(pfn, order, name as u64);
            }
        }
        // One that lies across the range's edge moves as a whole.
        rig.settle_at(2048, 6, 99);
        let before = rig.all_free();
        take(&rig, range(1024, 2050)).unwrap();
        let now = rig.tenants().check();
        assert_eq!(now.len(), 6);
        for (name, (pfn, order)) in &now {
            assert!(*pfn + (1 << order) <= 1024 || *pfn >= 2050, "{name} is still inside");
        }
        assert_eq!(rig.event(Event::MigrateSuccess), 1 + 1 + 2 + 32 + 512 + 64);
        give(&rig, range(1024, 2050));
        assert_eq!(rig.all_free(), before);
        no_isolation_is_left(&rig);
        now.keys().for_each(|&name| rig.evict(name));
        assert_eq!(rig.all_free(), FRAMES);
        assert_eq!(rig.event(Event::BadFree), 0);
    }
}

#[test]
fn what_cannot_be_moved_makes_the_range_busy() {
    let rig = Rig::small(FRAMES);
    rig.alloc_pages_at(Gfp::KERNEL, Pfn(2222), o(0)).unwrap();
    rig.settle_at(2100, 0, 1);
    // B-109
    assert_eq!(take(&rig, range(2048, 2560)), Err(AllocError::Busy(Pfn(2222))));
    assert_eq!(rig.tenants().attempts.load(Ordering::Relaxed), 0, "nobody is moved in vain");
    // C-31: pinned for the moment: asked, and left alone.
    rig.put(Pfn(2222), 0);
    rig.tenants().pin(Pfn(2100), true);
    assert_eq!(take(&rig, range(2048, 2560)), Err(AllocError::Busy(Pfn(2100))));
    rig.tenants().pin(Pfn(2100), false);
    assert_eq!(rig.tenants().check()[&1], (2100, 0));
    take(&rig, range(2048, 2560)).unwrap();
    assert_eq!(take(&rig, range(2048, 2560)), Err(AllocError::Busy(Pfn(2048))));
    no_isolation_is_left(&rig);
}

#[test]
fn attempts_are_patient_only_after_three_and_end_after_ten() {
    let rig = Rig::small(FRAMES);
    rig.settle_at(512, 0, 1);
    let tenants = rig.tenants();
    // C-27: three passes that wait for nothing, then some that do.
    tenants.needs_sync.store(true, Ordering::Relaxed);
    take(&rig, range(512, 513)).unwrap();
    use MigrateMode::{Async, Sync};
    assert_eq!(*tenants.modes.lock().unwrap(), [Async, Async, Async, Sync]);
    give(&rig, range(512, 513));
    tenants.needs_sync.store(false, Ordering::Relaxed);
    // C-27: at most ten; B-109: five times. C-28, C-32, C-33: put back once for each time it was isolated.
    let (at, _) = tenants.check()[&1];
    tenants.again.store(u64::MAX, Ordering::Relaxed);
    tenants.attempts.store(0, Ordering::Relaxed);
    assert_eq!(take(&rig, range(at, at + 1)), Err(AllocError::Busy(Pfn(at))));
    assert_eq!(tenants.attempts.load(Ordering::Relaxed), 50);
    assert_eq!(tenants.put_backs.load(Ordering::Relaxed), 5);
    tenants.check();
    assert_eq!(rig.event(Event::MigrateFail), 5);
    // Transient trouble is got over.
    tenants.again.store(7, Ordering::Relaxed);
    take(&rig, range(at, at + 1)).unwrap();
    tenants.check();
}

#[test]
fn a_failure_of_any_migration_loses_nothing() {
    // C-28, C-32: the N-th move fails for good, for every N.
    for nth in 1..=40 {
        let rig = Rig::small(FRAMES);
        for name in 0..40 {
            rig.settle_at(1024 + name * 7, 0, name);
        }
        let free = rig.all_free();
        rig.tenants().fail_at.store(nth, Ordering::Relaxed);
        // The next round moves it.
        take(&rig, range(1024, 1536)).unwrap();
        assert_eq!(rig.tenants().check().len(), 40);
        assert_eq!(rig.tenants().put_backs.load(Ordering::Relaxed), 1);
        assert_eq!(rig.all_free(), free - 512 + 40 - 40);
        give(&rig, range(1024, 1536));
        assert_eq!(rig.all_free(), free);
    }
}

#[test]
fn no_memory_for_new_places_ends_the_whole_list() {
    // The N-th page allocation fails, for every N: C-27
    for nth in 1..=20 {
        let rig = Rig::small(FRAMES);
        (0..20).for_each(|name| rig.settle_at(1024 + name, 0, name));
        let free = rig.all_free();
        rig.env().fail_in.store(nth, Ordering::Relaxed);
        assert!(matches!(take(&rig, range(1024, 1536)), Err(AllocError::NoMemory { .. })));
        assert_eq!(rig.tenants().check().len(), 20);
        assert_eq!(rig.tenants().migrations.load(Ordering::Relaxed), u64::from(nth) - 1);
        assert_eq!(rig.all_free(), free);
        no_isolation_is_left(&rig);
        rig.env().fail_in.store(0, Ordering::Relaxed);
        take(&rig, range(1024, 1536)).unwrap();
    }
    let rig = Rig::small(FRAMES);
    (0..20).for_each(|name| rig.settle_at(1024 + name, 0, name));
    rig.tenants().no_memory.store(true, Ordering::Relaxed);
    assert!(matches!(take(&rig, range(1024, 1536)), Err(AllocError::NoMemory { .. })));
    assert_eq!(rig.tenants().attempts.load(Ordering::Relaxed), 1);
    rig.tenants().check();
}

#[test]
fn a_fatal_signal_ends_the_moving() {
    let rig = Rig::small(FRAMES);
    rig.settle_at(1024, 0, 1);
    rig.env().context.flags.store(TaskFlags::FATAL_SIGNAL.bits(), Ordering::Relaxed);
    // B-109
    assert_eq!(take(&rig, range(1024, 1536)), Err(AllocError::Interrupted));
    assert_eq!(rig.alloc_contig_pages(512, KERNEL, None), Err(AllocError::Interrupted));
    rig.tenants().check();
    no_isolation_is_left(&rig);
}

#[test]
fn flags_of_a_range_are_few() {
    let rig = Rig::small(FRAMES);
    // B-108
    for gfp in [Gfp::NOFAIL, Gfp::NORETRY, Gfp::ACCOUNT] {
        let error = rig.alloc_contig_range(range(0, 512), KERNEL | gfp, IsolateMode::Other).unwrap_err();
        assert!(matches!(error, AllocError::BadFlags(_)));
    }
    for gfp in [Gfp::MOVABLE, Gfp::THISNODE, Gfp::HARDWALL, Gfp::WRITE, Gfp::RETRY_MAYFAIL, Gfp::DMA32] {
        rig.alloc_contig_range(range(0, 5), KERNEL | gfp, IsolateMode::Other).unwrap();
        give(&rig, range(0, 5));
    }
    rig.alloc_contig_range(range(8, 12), KERNEL | Gfp::ZERO, IsolateMode::Other).unwrap();
    assert_eq!(*rig.env().zeroed.lock().unwrap(), [range(8, 12)]);
    assert_eq!(take(&rig, range(5, 5)), Ok(()));
}

#[test]
fn a_compound_range_is_one_block_of_any_power_of_two() {
    let rig = Rig::checked(FRAMES);
    let compound = |wanted| rig.alloc_contig_range(wanted, KERNEL | Gfp::COMP, IsolateMode::Other);
    // B-109: a power of two, aligned.
    assert!(matches!(compound(range(0, 3)), Err(AllocError::BadFlags(_))));
    assert_eq!(compound(range(2, 6)), Err(AllocError::BadAlign(2)));
    compound(range(512, 1024)).unwrap();
    assert!(rig.try_put(Pfn(512), 8).is_err());
    rig.put(Pfn(512), 9);
    // Orders above the largest are allowed here.
    compound(range(4096, 8192)).unwrap();
    for order in [9, 10] {
        assert!(rig.try_put(Pfn(4096), order).is_err());
    }
    give(&rig, range(4096, 8192));
    assert_eq!(rig.all_free(), FRAMES);
}

#[test]
fn any_number_of_contiguous_pages_is_found_where_least_has_to_move() {
    let rig = Rig::small(FRAMES);
    // B-110: beyond the largest block.
    let large = rig.alloc_contig_pages(3000, KERNEL, None).unwrap();
    assert_eq!((large.start.0 % 3000, large.len()), (0, 3000));
    give(&rig, large);
    // A tenant in every pageblock, a huge one in the first.
    rig.settle_at(0, 9, 100);
    (1..16).for_each(|name| rig.settle_at(name * 512 + 5, 0, name));
    let found = rig.alloc_contig_pages(512, KERNEL, None).unwrap();
    assert_eq!(found, range(512, 1024), "the huge one is left alone at first");
    assert_eq!(rig.tenants().check()[&100], (0, 9));
    give(&rig, found);
    // Unmovable pages everywhere but there.
    let found: Vec<u64> = (1..16).filter(|block| rig.pageblock_type(Pfn(block * 512)).is_some()).collect();
    assert_eq!(found.len(), 15);
    for block in 1..8 {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 300), o(0)).unwrap();
    }
    for block in 8..16 {
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 300), o(0)).unwrap();
    }
    assert!(matches!(rig.alloc_contig_pages(512, KERNEL, None), Err(AllocError::NoMemory { .. })));
    rig.put(Pfn(9 * 512 + 300), 0);
    assert_eq!(rig.alloc_contig_pages(512, KERNEL, None), Ok(range(9 * 512, 10 * 512)));
    assert_eq!(rig.alloc_contig_pages(0, KERNEL, None), Ok(PfnRange::default()));
    assert!(rig.alloc_contig_pages(u64::MAX, KERNEL, None).is_err());
    assert_eq!(rig.alloc_contig_pages(1, KERNEL, Some(NodeId(7))), Err(AllocError::NoSuchNode(NodeId(7))));
    rig.tenants().check();
    no_isolation_is_left(&rig);
}

#[test]
fn a_range_of_a_contiguous_area_is_taken_through_the_seam() {
    let rig = Rig::small(FRAMES);
    for block in 4..8 {
        rig.set_pageblock_type(Pfn(block * 512), MigrateType::Cma).unwrap();
    }
    // Lent to movable requests only, until it is wanted back.
    let mut name = 0;
    while rig.settle_in(0, name).is_some() {
        name += 1;
    }
    let inside = |rig: &Rig| rig.tenants().check().values().filter(|(pfn, _)| (2048..4096).contains(pfn)).count();
    assert_eq!(inside(&rig), 2048);
    (0..3000).for_each(|name| rig.evict(name));
    rig.all_free();
    let seam: &dyn ContigRange = &*rig;
    assert!(matches!(take(&rig, range(2048, 4096)), Err(AllocError::Busy(Pfn(2048)))));
    seam.take_range(range(2048, 4096), KERNEL).unwrap();
    assert_eq!(inside(&rig), 0);
    assert_eq!(rig.tenants().check().len(), name as usize - 3000);
    // SAFETY: frames of tests have no memory.
    unsafe { seam.return_range(range(2048, 4096)) }.unwrap();
    let zone = rig.zone(NodeId(0), ZoneKind::Normal).unwrap();
    assert_eq!(zone.free_of(MigrateType::Cma), 2048);
}

#[test]
fn a_filesystem_is_not_entered_where_that_is_forbidden() {
    let rig = Rig::small(FRAMES);
    rig.settle_at(1024, 0, 1);
    rig.tenants().needs_fs.store(true, Ordering::Relaxed);
    let nofs = KERNEL.difference(Gfp::FS);
    assert!(rig.alloc_contig_range(range(1024, 1025), nofs, IsolateMode::Other).is_err());
    take(&rig, range(1024, 1025)).unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    MoveIn { order: u32 },
    MoveOut { nth: usize },
    Unmovable { pfn: u64 },
    FreeUnmovable { nth: usize },
    Take { start: u64, len: u64 },
    Give { nth: usize },
    Fail { nth: u64 },
    Again { nr: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0u32..6).prop_map(|order| Op::MoveIn { order }),
        3 => any::<usize>().prop_map(|nth| Op::MoveOut { nth }),
        2 => (0..FRAMES).prop_map(|pfn| Op::Unmovable { pfn }),
        2 => any::<usize>().prop_map(|nth| Op::FreeUnmovable { nth }),
        4 => (0..FRAMES, 1u64..2000).prop_map(|(start, len)| Op::Take { start, len }),
        3 => any::<usize>().prop_map(|nth| Op::Give { nth }),
        1 => (1u64..30).prop_map(|nth| Op::Fail { nth }),
        1 => (1u64..30).prop_map(|nr| Op::Again { nr }),
    ]
}

fn run(options: BuddyOptions, ops: &[Op]) {
    let regions = [Region::new(range(0, FRAMES))];
    let rig = Rig::build(Env::new(1), options, &MemoryMap { regions: &regions, ..MemoryMap::default() });
    let mut next = 0;
    let mut unmovable: Vec<u64> = Vec::new();
    let mut taken: Vec<PfnRange> = Vec::new();
    let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
    for op in ops {
        match *op {
            Op::MoveIn { order } => {
                // A good part of memory at once.
                for _ in 0..40 {
                    if rig.settle_in(order, next).is_some() {
                        sizes.insert(next, 1 << order);
                        next += 1;
                    }
                }
            }
            Op::MoveOut { nth } => {
                for _ in 0..30 {
                    if let Some(&name) = sizes.keys().nth(nth % sizes.len().max(1)) {
                        rig.evict(name);
                        sizes.remove(&name);
                    }
                }
            }
            Op::Unmovable { pfn } => {
                rig.drain_all_pages();
                if rig.alloc_pages_at(Gfp::KERNEL, Pfn(pfn), o(0)).is_ok() {
                    unmovable.push(pfn);
                }
            }
            Op::FreeUnmovable { nth } if !unmovable.is_empty() => {
                let pfn = unmovable.swap_remove(nth % unmovable.len());
                rig.put(Pfn(pfn), 0);
            }
            Op::Take { start, len } => {
                let wanted = range(start, (start + len).min(FRAMES));
                let stuck = unmovable.iter().any(|&pfn| wanted.contains(Pfn(pfn)))
                    || taken.iter().any(|other| !other.intersection(&wanted).is_empty());
                match take(&rig, wanted) {
                    Ok(()) => {
                        assert!(!stuck, "{wanted} holds what cannot move");
                        taken.push(wanted);
                    }
                    Err(AllocError::Busy(pfn)) => {
                        assert!(stuck, "{pfn} could have been moved");
                        assert!(wanted.contains(pfn));
                    }
                    // Full elsewhere.
                    Err(error) => assert!(matches!(error, AllocError::NoMemory { .. }), "{error}"),
                }
                for inside in rig.tenants().check().values() {
                    let theirs = range(inside.0, inside.0 + (1 << inside.1));
                    assert!(taken.iter().all(|ours| ours.intersection(&theirs).is_empty()));
                }
            }
            Op::Give { nth } if !taken.is_empty() => give(&rig, taken.swap_remove(nth % taken.len())),
            Op::Fail { nth } => {
                rig.tenants().attempts.store(0, Ordering::Relaxed);
                rig.tenants().fail_at.store(nth, Ordering::Relaxed);
            }
            Op::Again { nr } => rig.tenants().again.store(nr, Ordering::Relaxed),
            Op::FreeUnmovable { .. } | Op::Give { .. } => {}
        }
        let used = sizes.values().sum::<u64>() + unmovable.len() as u64 + taken.iter().map(PfnRange::len).sum::<u64>();
        assert_eq!(rig.all_free(), FRAMES - used, "{op:?}");
    }
    no_isolation_is_left(&rig);
    assert_eq!(rig.tenants().check().len(), sizes.len());
    taken.into_iter().for_each(|range| give(&rig, range));
    unmovable.into_iter().for_each(|pfn| rig.put(Pfn(pfn), 0));
    sizes.into_keys().for_each(|name| rig.evict(name));
    assert_eq!(rig.all_free(), FRAMES);
    let zone = rig.zones().next().unwrap();
    let blocks = zone.free_blocks();
    assert_eq!(blocks.iter().map(|row| row[10]).sum::<u64>(), FRAMES / 1024, "everything has merged");
    assert_eq!(rig.event(Event::BadFree), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_range_is_busy_only_for_what_cannot_move(ops in proptest::collection::vec(op(), 1..60)) {
        run(cached(), &ops);
    }

    #[test]
    fn a_range_is_busy_only_for_what_cannot_move_with_checks(ops in proptest::collection::vec(op(), 1..40)) {
        run(checked(), &ops);
    }
}
