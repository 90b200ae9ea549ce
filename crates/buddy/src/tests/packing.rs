//! Compaction when moves fail, and at random: nothing is lost, and what can be packed is.

use std::sync::atomic::Ordering;
use std::vec::Vec;

use kmem_gfp::{CompactOutcome, CompactPriority, Gfp, Order, Pfn};
use proptest::prelude::*;

use super::compaction::{MOVABLE, QUIET, compact, normal, rig_of, scatter};
use super::rig::{cached, checked};
use crate::{BuddyOptions, Event};

#[test]
fn nothing_is_lost_whichever_migration_fails() {
    for nth in 1..=70 {
        let rig = rig_of(8, checked());
        rig.set_min_free_kbytes(0).unwrap();
        let names = scatter(&rig, 0..8, 8);
        let free = rig.all_free();
        rig.tenants().fail_at.store(nth, Ordering::Relaxed);
        let outcome = compact(&rig, MOVABLE, 9, CompactPriority::SyncFull);
        assert_eq!(outcome, CompactOutcome::Success);
        assert_eq!((rig.all_free(), rig.tenants().check().len() as u64), (free, names));
        let failed = u64::from(nth <= rig.tenants().attempts.load(Ordering::Relaxed));
        assert_eq!(rig.event(Event::MigrateFail) > 0, failed > 0);
    }
    let rig = rig_of(8, checked());
    rig.set_min_free_kbytes(0).unwrap();
    scatter(&rig, 0..8, 8);
    let free = rig.all_free();
    rig.tenants().no_memory.store(true, Ordering::Relaxed);
    assert_eq!(compact(&rig, MOVABLE, 9, CompactPriority::SyncFull), CompactOutcome::Complete);
    assert_eq!(rig.tenants().attempts.load(Ordering::Relaxed), 1);
    assert_eq!(rig.all_free(), free);
}

/// Random tenants, pages that cannot move, and compactions of all kinds.
fn run(options: BuddyOptions, steps: &[(u8, u64, u32)]) {
    let rig = rig_of(16, options);
    rig.set_min_free_kbytes(0).unwrap();
    let frames = 16 * 512;
    let mut sizes = std::collections::BTreeMap::new();
    let mut stuck: Vec<Pfn> = Vec::new();
    let mut next = 0;
    for &(what, number, order) in steps {
        match what {
            0..3 => {
                for _ in 0..100 {
                    let order = order % 5;
                    if rig.settle_in(order, next).is_some() {
                        sizes.insert(next, 1u64 << order);
                        next += 1;
                    }
                }
            }
            3..6 => {
                for i in 0..80 {
                    let nth = (number as usize).wrapping_mul(31).wrapping_add(i * 7919);
                    if let Some(&name) = sizes.keys().nth(nth % sizes.len().max(1)) {
                        sizes.remove(&name);
                        rig.evict(name);
                    }
                }
            }
            6 => {
                if rig.alloc_pages_at(Gfp::KERNEL, Pfn(number % frames), Order::ZERO).is_ok() {
                    stuck.push(Pfn(number % frames));
                }
            }
            7 => {
                let priority = [CompactPriority::Async, CompactPriority::SyncLight, CompactPriority::SyncFull]
                    [number as usize % 3];
                let gfp = if number % 2 == 0 { MOVABLE } else { QUIET };
                let order = 1 + order % 10;
                let outcome = compact(&rig, gfp, order, priority);
                if outcome == CompactOutcome::Success && gfp == MOVABLE {
                    let block = rig.get(MOVABLE | Gfp::MEMALLOC, order).expect("a block should be free");
                    rig.put(block, order);
                }
            }
            8 => rig.compact_memory(1).unwrap(),
            9 => rig.tenants().again.store(number % 50, Ordering::Relaxed),
            _ => {
                rig.tenants().attempts.store(0, Ordering::Relaxed);
                rig.tenants().fail_at.store(number % 50, Ordering::Relaxed);
            }
        }
        let used = sizes.values().sum::<u64>() + stuck.len() as u64;
        assert_eq!(rig.all_free(), frames - used, "{what}");
        for &pfn in &stuck {
            assert!(!rig.tenants().owns(pfn));
        }
    }
    assert_eq!(rig.tenants().check().len(), sizes.len());
    rig.tenants().again.store(0, Ordering::Relaxed);
    // With tenants of one page whose moves do not fail, all is packed but what lies beside pages that cannot move.
    rig.tenants().fail_at.store(0, Ordering::Relaxed);
    if sizes.values().all(|&size| size == 1) {
        rig.compact_memory(1).unwrap();
        let stuck_in: std::collections::BTreeSet<u64> = stuck.iter().map(|pfn| pfn.0 / 512).collect();
        let used = sizes.len() as u64;
        let needed = used.div_ceil(512) + stuck_in.len() as u64;
        let whole = normal(&rig).free_pages_in_whole_blocks() / 512;
        assert!(whole + needed + 2 >= 16, "{whole} pageblocks are free, {used} pages are used, {stuck_in:?}");
    }
    stuck.into_iter().for_each(|pfn| rig.put(pfn, 0));
    sizes.into_keys().for_each(|name| rig.evict(name));
    assert_eq!(rig.all_free(), frames);
    assert_eq!(rig.event(Event::BadFree), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn compaction_loses_nothing_and_packs_what_moves(
        steps in proptest::collection::vec((0u8..11, any::<u64>(), any::<u32>()), 1..60),
        single in any::<bool>(),
    ) {
        let steps: Vec<_> = steps.into_iter().map(|(a, b, c)| (a, b, if single { c / 5 * 5 } else { c })).collect();
        run(cached(), &steps);
        run(checked(), &steps);
    }
}
