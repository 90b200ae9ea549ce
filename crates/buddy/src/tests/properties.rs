//! Random sequences against a plain model, and failures injected at every point.

use std::collections::BTreeMap;
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp, Pfn};
use proptest::prelude::*;

use super::rig::{Env, Rig, cached, checked, o, range, run_on};
use crate::{MemoryMap, Region};

#[derive(Clone, Debug)]
enum Op {
    Alloc { order: u32, kind: usize },
    Free { nth: usize },
    FreeParts { nth: usize, cut: u64 },
    At { pfn: u64, order: u32 },
    Bulk { nr: usize },
    Exact { nr: usize },
    Drain,
    Cpu { id: Option<u32> },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0u32..=10, 0usize..3).prop_map(|(order, kind)| Op::Alloc { order, kind }),
        6 => any::<usize>().prop_map(|nth| Op::Free { nth }),
        1 => (any::<usize>(), 1u64..1024).prop_map(|(nth, cut)| Op::FreeParts { nth, cut }),
        1 => (0u64..24 * 512, 0u32..=10).prop_map(|(pfn, order)| Op::At { pfn: pfn & !((1 << order) - 1), order }),
        1 => (1usize..100).prop_map(|nr| Op::Bulk { nr }),
        1 => (1usize..1024).prop_map(|nr| Op::Exact { nr }),
        1 => Just(Op::Drain),
        1 => prop_oneof![Just(None), Just(Some(0)), Just(Some(1))].prop_map(|id| Op::Cpu { id }),
    ]
}

const KINDS: [Gfp; 3] = [Gfp::empty(), Gfp::MOVABLE, Gfp::RECLAIMABLE];

/// Blocks in use by first frame: their length, and whether they can be freed as one.
type Live = BTreeMap<u64, (u64, Option<u32>)>;

fn note(live: &mut Live, start: u64, len: u64, order: Option<u32>) {
    let before = live.range(..=start).next_back().map_or(0, |(at, block)| at + block.0);
    assert!(before <= start, "{start:#x} overlaps");
    if let Some((&next, _)) = live.range(start..).next() {
        assert!(start + len <= next, "{start:#x}+{len} overlaps {next:#x}");
    }
    live.insert(start, (len, order));
}

fn run(checked_frees: bool, ops: &[Op]) {
    const FRAMES: u64 = 24 * 512;
    let regions = [Region::new(range(0, FRAMES))];
    let options = if checked_frees { checked() } else { cached() };
    let rig = Rig::build(Env::new(2), options, &MemoryMap { regions: &regions, ..MemoryMap::default() });
    let mut live = Live::new();
    for op in ops {
        match *op {
            Op::Alloc { order, kind } => {
                let gfp = KINDS[kind] | Gfp::MEMALLOC | Gfp::NOWARN;
                if let Ok(pfn) = rig.alloc_pages(gfp, o(order), None) {
                    assert!(pfn.is_aligned(o(order)));
                    note(&mut live, pfn.0, 1 << order, Some(order));
                }
            }
            Op::Free { nth } => {
                if let Some((&start, &(len, order))) = live.iter().nth(nth % live.len().max(1)) {
                    live.remove(&start);
                    match order {
                        Some(order) => rig.put(Pfn(start), order),
                        // SAFETY: frames of tests have no memory.
                        None => unsafe { rig.free_range(range(start, start + len)) }.unwrap(),
                    }
                }
            }
            Op::FreeParts { nth, cut } => {
                if let Some((&start, &(len, _))) = live.iter().nth(nth % live.len().max(1)) {
                    let cut = cut.min(len);
                    // SAFETY: frames of tests have no memory.
                    unsafe { rig.free_range(range(start, start + cut)) }.unwrap();
                    live.remove(&start);
                    if cut < len {
                        live.insert(start + cut, (len - cut, None));
                    }
                }
            }
            Op::At { pfn, order } => {
                if rig.alloc_pages_at(Gfp::KERNEL, Pfn(pfn), o(order)).is_ok() {
                    note(&mut live, pfn, 1 << order, Some(order));
                }
            }
            Op::Bulk { nr } => {
                let mut pages = std::vec![None; nr];
                rig.alloc_pages_bulk(Gfp::MEMALLOC | Gfp::NOWARN, None, &mut pages);
                for pfn in pages.into_iter().flatten() {
                    note(&mut live, pfn.0, 1, Some(0));
                }
            }
            Op::Exact { nr } => {
                if let Ok(pages) = rig.alloc_pages_exact(Gfp::MEMALLOC | Gfp::NOWARN, nr, None) {
                    note(&mut live, pages.start.0, pages.len(), None);
                }
            }
            Op::Drain => {
                rig.drain_all_pages();
            }
            Op::Cpu { id } => run_on(id),
        }
        // I-01: what is free, cached and in use is everything.
        let used: u64 = live.values().map(|block| block.0).sum();
        let zone = rig.zones().next().unwrap();
        assert_eq!(rig.free_page_count() + rig.zone_stats(zone).cached_pages + used, FRAMES, "{op:?}");
    }
    // I-02: nothing that is in use is free.
    let zone = rig.zones().next().unwrap();
    let mut listed = 0;
    for row in zone.free_blocks() {
        listed += row.iter().enumerate().map(|(k, nr)| nr << k).sum::<u64>();
    }
    assert_eq!(listed, rig.free_page_count());
    // The counters agree with what happened (D-13).
    let stats = rig.zone_stats(zone);
    let used: u64 = live.values().map(|block| block.0).sum();
    assert_eq!(stats.allocated_pages - stats.freed_pages, used);
    for (start, (len, order)) in live {
        match order {
            Some(order) => rig.put(Pfn(start), order),
            // SAFETY: frames of tests have no memory.
            None => unsafe { rig.free_range(range(start, start + len)) }.unwrap(),
        }
    }
    // I-03: everything has merged again, and every hint is there: the largest blocks can be had.
    run_on(Some(0));
    assert_eq!(rig.all_free(), FRAMES);
    for _ in 0..12 {
        rig.get(Gfp::MEMALLOC | Gfp::NOWARN, 10).unwrap();
    }
    assert_eq!(rig.free_page_count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_are_conserved(ops in prop::collection::vec(op(), 1..200)) {
        run(false, &ops);
    }

    #[test]
    fn frames_are_conserved_with_every_free_checked(ops in prop::collection::vec(op(), 1..120)) {
        run(true, &ops);
    }
}

#[test]
fn an_injected_failure_at_any_point_loses_nothing() {
    let rig = Rig::small(64 * 512);
    let before = rig.all_free();
    let orders = [0, 0, 3, 9, 4, 10, 1, 0, 2, 8];
    for n in 1..=orders.len() as u32 + 1 {
        rig.env().fail_in.store(n, std::sync::atomic::Ordering::Relaxed);
        let mut live: Vec<(Pfn, u32)> = Vec::new();
        let mut failed = 0;
        for order in orders {
            match rig.alloc_pages(Gfp::KERNEL, o(order), None) {
                Ok(pfn) => live.push((pfn, order)),
                Err(error) => {
                    // D-23: without a report; NOFAIL is exempt.
                    assert_eq!(error, AllocError::Injected);
                    failed += 1;
                }
            }
        }
        assert_eq!(failed, u32::from(n <= orders.len() as u32));
        for (pfn, order) in live {
            rig.put(pfn, order);
        }
        assert_eq!(rig.all_free(), before, "failure at {n}");
    }
    assert!(rig.env().context.reports.lock().unwrap().is_empty());
    rig.env().fail_in.store(1, std::sync::atomic::Ordering::Relaxed);
    assert!(rig.get(Gfp::KERNEL | Gfp::NOFAIL, 0).is_some());
}

#[test]
fn threads_share_a_zone_without_losing_a_frame() {
    const FRAMES: u64 = 64 * 512;
    let rig = Rig::with_cpus(FRAMES, 3);
    std::thread::scope(|scope| {
        for cpu in 0..4u32 {
            let rig = &rig;
            scope.spawn(move || {
                // The last one has no CPU and drains now and then.
                run_on((cpu < 3).then_some(cpu));
                let mut seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(u64::from(cpu) + 1);
                let mut random = move || {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    seed
                };
                let mut live: Vec<(Pfn, u32)> = Vec::new();
                for round in 0..6000 {
                    if random() % 2 == 0 || live.is_empty() {
                        let order = [0, 0, 0, 1, 2, 3, 5, 7, 9, 10][random() as usize % 10];
                        let gfp = KINDS[random() as usize % 3] | Gfp::MEMALLOC | Gfp::NOWARN;
                        if let Ok(pfn) = rig.alloc_pages(gfp, o(order), None) {
                            live.push((pfn, order));
                        }
                    } else {
                        let nth = random() as usize % live.len();
                        let (pfn, order) = live.swap_remove(nth);
                        rig.put(pfn, order);
                    }
                    if cpu == 3 && round % 2000 == 1999 {
                        rig.drain_all_pages();
                    }
                }
                for (pfn, order) in live {
                    rig.put(pfn, order);
                }
            });
        }
    });
    run_on(Some(0));
    assert_eq!(rig.event(crate::Event::BadFree), 0);
    assert_eq!(rig.all_free(), FRAMES);
    for _ in 0..32 {
        rig.get(Gfp::MEMALLOC | Gfp::NOWARN, 10).unwrap();
    }
}
