//! Arithmetic: runs in words, lines, watermarks, sizes of per-CPU sets.

use std::vec::Vec;

use kmem_gfp::{MigrateType, Order};
use proptest::prelude::*;

use crate::bits::{choose, cover, heads, merged, outgrows};
use crate::highatomic_limit;
use crate::line::{Line, WORDS, for_each_block, largest_in};
use crate::pcp::{is_kernel_cached, is_middle, order_of, stack_index, stacks_from};
use crate::take::fallbacks;
use crate::tuning::{decayed, drain_amount, refill};
use crate::views::stat_threshold;
use crate::watermark::{automatic_min_free_kbytes, boosted, lowmem_reserve, pcp_batch, pcp_high, zone_marks};

#[test]
fn constants_are_those_of_x86_64() {
    // B-01..B-03
    assert_eq!(Order::COUNT, 11);
    assert_eq!(Order::MAX.size_bytes(), 4 << 20);
    assert!(!Order::COSTLY.is_costly() && Order::new(4).is_some_and(Order::is_costly));
    assert_eq!(Order::PAGEBLOCK.nr_pages(), 512);
    // B-06
    assert_eq!(MigrateType::PCP.len(), 3);
    assert!(MigrateType::PCP.iter().all(|migratetype| migratetype.is_mergeable()));
    assert_eq!(MigrateType::HighAtomic as u8, 3);
}

#[test]
fn fallbacks_follow_the_table() {
    use MigrateType::{Movable, Reclaimable, Unmovable};
    // B-09
    assert_eq!(fallbacks(Unmovable), [Reclaimable, Movable]);
    assert_eq!(fallbacks(Movable), [Reclaimable, Unmovable]);
    assert_eq!(fallbacks(Reclaimable), [Unmovable, Movable]);
}

#[test]
fn min_free_kbytes_grows_with_the_root_of_memory() {
    // B-44
    assert_eq!(automatic_min_free_kbytes(16 << 10), 512);
    assert_eq!(automatic_min_free_kbytes(1 << 20), 4096);
    assert_eq!(automatic_min_free_kbytes(16 << 20), 16384);
    assert_eq!(automatic_min_free_kbytes(0), 128);
    assert_eq!(automatic_min_free_kbytes(u64::MAX), 262_144);
}

#[test]
fn marks_of_a_gibibyte() {
    // B-48, B-47
    assert_eq!(zone_marks(262_144, 1024, true, 10), [1024, 1286, 1548, 1810]);
    assert_eq!(zone_marks(262_144, 1024, true, 3000), [1024, 1024 + 78_643, 1024 + 2 * 78_643, 1024 + 3 * 78_643]);
    // B-46: movable and high memory keep a small min mark but their full share as distance.
    assert_eq!(zone_marks(262_144, 1024, false, 10)[..2], [128, 128 + 262]);
    assert_eq!(zone_marks(0, 0, false, 10), [32; 4]);
    assert_eq!(zone_marks(65_536, 4000, false, 10)[..2], [64, 64 + 1000]);
}

#[test]
fn batches_are_one_less_than_a_power_of_two() {
    // B-72
    assert_eq!(pcp_batch(262_144), 63);
    assert_eq!(pcp_batch(1 << 30), 63);
    assert_eq!(pcp_batch(112_692), 31);
    assert_eq!(pcp_batch(3840), 1);
    assert_eq!(pcp_batch(8192), 1);
    assert_eq!(pcp_batch(4096 * 2), 1);
    assert_eq!(pcp_batch(4096 * 4), 3);
}

#[test]
fn set_limits_follow_marks_and_memory() {
    // B-73: the figures of a real machine with one CPU.
    assert_eq!(pcp_high(112_692, 813, 1, 31, 0), (813, 14_086));
    assert_eq!(pcp_high(3840, 27, 1, 1, 0), (27, 480));
    assert_eq!(pcp_high(100, 3, 4, 63, 0), (252, 252));
    assert_eq!(pcp_high(262_144, 1286, 4, 63, 0), (321, 8192));
    // B-74: both are the same, so nothing adapts.
    assert_eq!(pcp_high(262_144, 1286, 4, 63, 8), (8192, 8192));
}

#[test]
fn refills_double_while_they_fit() {
    // B-76
    assert_eq!(refill(0, 63, 62, 0, 0, 5), (1, 0));
    assert_eq!(refill(0, 63, 10_000, 0, 0, 5), (63, 1));
    assert_eq!(refill(0, 63, 10_000, 0, 1, 5), (126, 2));
    assert_eq!(refill(0, 63, 10_000, 0, 5, 5), (2016, 5));
    assert_eq!(refill(0, 63, 252, 0, 1, 5), (126, 1), "252 would exceed 252 - 0 - 63");
    assert_eq!(refill(2, 63, 10_000, 0, 3, 5), (15, 3));
    assert_eq!(refill(9, 63, 10_000, 0, 3, 5), (2, 3));
}

#[test]
fn drains_and_decay_are_bounded() {
    // B-79
    assert_eq!(drain_amount(0, 63, 1000), 63);
    assert_eq!(drain_amount(500, 63, 1000), 500);
    assert_eq!(drain_amount(5000, 63, 1000), 937);
    assert_eq!(drain_amount(5000, 63, 63), 63);
    // B-83
    assert_eq!(decayed(8000, 100, 63, 300), 7000);
    assert_eq!(decayed(320, 100, 63, 300), 300);
    assert_eq!(decayed(8000, 7900, 63, 300), 7000);
    assert_eq!(decayed(2000, 9000, 63, 300), 9000 - (63 << 5));
}

#[test]
fn reserves_divide_what_lies_above() {
    // B-55
    assert_eq!(lowmem_reserve(112_692, 256), 440);
    assert_eq!(lowmem_reserve(112_692, 0), 0);
    // B-35
    assert_eq!(highatomic_limit(51_199), 0);
    assert_eq!(highatomic_limit(51_200), 512);
    assert_eq!(highatomic_limit(262_144), 3072);
    // B-58
    assert_eq!(boosted(0, 1548, 15_000), 512);
    assert_eq!(boosted(2048, 1548, 15_000), 2322);
    assert_eq!(boosted(0, 100, 15_000), 512);
}

#[test]
fn a_freed_frame_outgrows_an_order_exactly_when_its_run_is_as_large() {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for turn in 0..2_000 {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = match turn % 4 {
            0 => word,
            1 => word | word >> 1 | word << 1,
            2 => word | word << 7 | word >> 13 | word << 29,
            _ => u64::MAX,
        };
        for bit in (0..64).filter(|bit| word >> bit & 1 != 0) {
            for order in 0..=8 {
                let larger = merged(word, bit, 0) >= order || (order > 6 && word == u64::MAX);
                assert_eq!(outgrows(word, 1 << bit, order), larger, "{word:x} {bit} {order}");
            }
        }
        // Of many frames none is overlooked.
        for order in 0..=6 {
            assert!(outgrows(word, word, order) || heads(word, order) == 0);
        }
    }
}

#[test]
fn stacks_are_kept_for_all_orders_but_the_largest() {
    // B-69: the kernel's 3 types x 4 orders, and 3 types for each larger order (the kernel has 2 stacks for huge pages).
    let mut seen: Vec<usize> = Vec::new();
    for order in Order::all() {
        for migratetype in MigrateType::PCP {
            let stack = stack_index(order, migratetype);
            assert_eq!(stack.is_some(), order.get() <= 9, "{order}");
            assert_eq!(stack.is_some_and(|stack| !is_middle(stack)), is_kernel_cached(order), "{order}");
            assert!(stack.is_none_or(|stack| order_of(stack) == order.get()), "{order}");
            seen.extend(stack);
        }
    }
    let all: Vec<usize> = stacks_from(stack_index(Order::PAGEBLOCK, MigrateType::Movable).unwrap()).collect();
    assert_eq!(all.len(), seen.len());
    assert_eq!(all.iter().map(|&stack| order_of(stack)).take(5).collect::<Vec<_>>(), [9, 9, 0, 0, 0]);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
    // B-70
    for order in [Order::ZERO, Order::PAGEBLOCK] {
        for migratetype in [MigrateType::HighAtomic, MigrateType::Cma] {
            assert_eq!(stack_index(order, migratetype), stack_index(order, MigrateType::Movable));
        }
        assert_eq!(stack_index(order, MigrateType::Isolate), None);
    }
}

#[test]
fn thresholds_are_those_of_real_machines() {
    // D-14
    assert_eq!(stat_threshold(3840, 1), 2);
    assert_eq!(stat_threshold(112_692, 1), 6);
    assert_eq!(stat_threshold(1 << 40, 1 << 20), 125);
}

/// All maximal aligned free runs of a word, found the slow way.
fn runs(word: u64) -> Vec<(u32, u32)> {
    let whole = |at: u32, order: u32| (at..at + (1 << order)).all(|bit| word >> bit & 1 != 0);
    let mut found = Vec::new();
    let mut at = 0;
    while at < 64 {
        if !whole(at, 0) {
            at += 1;
            continue;
        }
        let mut order = 0;
        while order < 6 && at % (2 << order) == 0 && whole(at, order + 1) {
            order += 1;
        }
        found.push((order, at));
        at += 1 << order;
    }
    found
}

fn words() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (any::<u64>(), any::<u64>()).prop_map(|(a, b)| a & b),
        Just(u64::MAX),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| a | b | c)
    ]
}

proptest! {
    #[test]
    fn heads_are_the_aligned_runs(word in words(), order in 0u32..=6) {
        for at in (0..64).step_by(1 << order) {
            let whole = (at..at + (1 << order)).all(|bit| word >> bit & 1 != 0);
            prop_assert_eq!(heads(word, order) >> at & 1 != 0, whole);
        }
        prop_assert_eq!(cover(heads(word, order), order) & !word, 0);
    }

    #[test]
    fn the_largest_run_is_found(words in prop::array::uniform8(words())) {
        let mut largest = None;
        for_each_block(&words, |order, _| largest = largest.max(Some(order)));
        prop_assert_eq!(largest_in(&words), largest);
        let total: u32 = words.iter().map(|word| word.count_ones()).sum();
        let mut sum = 0;
        for_each_block(&words, |order, at| { assert_eq!(at % (1 << order), 0); sum += 1 << order; });
        prop_assert_eq!(sum, total);
    }

    #[test]
    fn the_smallest_sufficient_run_is_broken_first(word in words(), order in 0u32..=6) {
        let chosen = choose(word, order, 1);
        let best = runs(word).into_iter().filter(|run| run.0 >= order).min();
        prop_assert_eq!(chosen.count_ones(), u32::from(best.is_some()));
        if let Some((size, at)) = best {
            // B-22 (1), B-23: the lower part of a smallest run.
            let from = runs(word).into_iter().find(|&(k, start)| chosen >> start & 1 != 0 && k == size);
            prop_assert!(from.is_some(), "{at}");
        }
    }

    #[test]
    fn as_many_as_wanted_are_chosen(word in words(), order in 0u32..=6, want in 0u32..=64) {
        let chosen = choose(word, order, want);
        prop_assert_eq!(chosen & !heads(word, order), 0);
        prop_assert_eq!(chosen.count_ones(), want.min(heads(word, order).count_ones()));
    }

    #[test]
    fn a_freed_run_merges_as_far_as_its_buddies_are_free(word in words(), order in 0u32..=6, at in 0u32..64) {
        // B-05, B-16
        let at = at & !((1 << order) - 1);
        let word = word | cover(1 << at, order);
        let (mut size, mut start) = (order, at);
        while size < 6 {
            let buddy = start ^ (1 << size);
            if (buddy..buddy + (1 << size)).any(|bit| word >> bit & 1 == 0) {
                break;
            }
            start &= !(1 << size);
            size += 1;
        }
        prop_assert_eq!(merged(word, at, order), size);
    }

    #[test]
    fn a_line_gives_and_takes_like_a_set(ops in prop::collection::vec((0u32..=9, 0u32..512, any::<bool>()), 1..60)) {
        let line = Line::new([u64::MAX; WORDS]);
        let mut free = [true; 512];
        for (order, at, take) in ops {
            let at = at & !((1 << order) - 1);
            let range = at as usize..(at + (1 << order)) as usize;
            if take {
                let whole = free[range.clone()].iter().all(|&bit| bit);
                prop_assert_eq!(line.take_at(at, order), whole);
                if whole {
                    free[range].fill(false);
                }
            } else {
                let none = free[range.clone()].iter().all(|&bit| !bit);
                prop_assert_eq!(line.put(at, order).is_ok(), none);
                if none {
                    free[range].fill(true);
                }
            }
            let model: u32 = free.iter().map(|&bit| u32::from(bit)).sum();
            prop_assert_eq!(line.count(), model);
        }
    }
}
