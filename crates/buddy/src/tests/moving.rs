//! Threads that come and go while others isolate, empty and compact what they live in.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::vec::Vec;

use kmem_gfp::{Gfp, NodeId};

use super::rig::{Env, Rig, cached, checked, range, run_on};
use crate::{BuddyOptions, Event, IsolateMode, Kcompactd, MemoryMap, Region};

const FRAMES: u64 = 32 * 512;

/// Moves in and out until told to stop; returns who stayed.
fn live(rig: &Rig, cpu: u32, stop: &AtomicBool) -> Vec<u64> {
    run_on(Some(cpu));
    let mut random = u64::from(cpu) + 1;
    let mut mine = Vec::new();
    let mut next = u64::from(cpu) << 32;
    while !stop.load(Ordering::Relaxed) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let roll = random >> 40;
        if mine.len() < 1500 && roll % 5 < 3 {
            if rig.settle_in((roll / 5 % 4) as u32, next).is_some() {
                mine.push(next);
                next += 1;
            }
        } else if !mine.is_empty() {
            let nth = roll as usize % mine.len();
            // Those who are being moved stay.
            if let Some((pfn, order)) = rig.tenants().leave(mine[nth]) {
                rig.put(pfn, order);
                mine.swap_remove(nth);
            }
        }
    }
    mine
}

fn crowd(options: BuddyOptions) {
    let regions = [Region::new(range(0, FRAMES))];
    let rig = Rig::build(Env::new(3), options, &MemoryMap { regions: &regions, ..MemoryMap::default() });
    let stop = AtomicBool::new(false);
    let taken = AtomicU64::new(0);
    let stayed: Vec<u64> = std::thread::scope(|scope| {
        let (rig, stop) = (&rig, &stop);
        let tenants: Vec<_> = (0..2).map(|cpu| scope.spawn(move || live(rig, cpu, stop))).collect();
        let compactor = scope.spawn(move || {
            run_on(Some(2));
            let daemon = Kcompactd::new(NodeId(0));
            rig.set_compaction_proactiveness(90).unwrap();
            for round in 0..60u64 {
                daemon.poll(rig, round * 500);
                if round % 10 == 9 {
                    rig.compact_node(NodeId(0));
                }
            }
        });
        run_on(None);
        for round in 0..120u64 {
            let start = round * 1237 % (FRAMES - 1024);
            let wanted = range(start, start + 1 + round * 97 % 1000);
            if rig.alloc_contig_range(wanted, Gfp::KERNEL | Gfp::NOWARN, IsolateMode::Other).is_ok() {
                taken.fetch_add(1, Ordering::Relaxed);
                assert!(wanted.iter().all(|pfn| !rig.tenants().owns(pfn)));
                // SAFETY: frames of tests have no memory.
                unsafe { rig.free_contig_range(wanted) }.unwrap();
            }
        }
        compactor.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        tenants.into_iter().flat_map(|tenant| tenant.join().unwrap()).collect()
    });
    run_on(Some(0));
    let places = rig.tenants().check();
    assert_eq!(places.len(), stayed.len());
    let used: u64 = places.values().map(|(_, order)| 1 << order).sum();
    assert_eq!(rig.all_free(), FRAMES - used);
    stayed.into_iter().for_each(|name| rig.evict(name));
    assert_eq!(rig.all_free(), FRAMES);
    assert_eq!(rig.event(Event::BadFree), 0);
    assert!(rig.event(Event::MigrateSuccess) > 0 && taken.load(Ordering::Relaxed) > 0);
}

#[test]
fn nobody_is_lost_while_memory_is_moved_under_threads() {
    crowd(cached());
    crowd(checked());
}
