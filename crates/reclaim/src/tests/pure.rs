//! The arithmetic: shrinker work, pressure levels, isolation, protection, and the words.

use kmem_gfp::Gfp;
use kmem_sync::SingleCpu;
use proptest::prelude::*;

use crate::shrink_node::{Turn, turn};
use crate::shrinker::formula::{DEFAULT_BATCH, DEFAULT_SEEKS, delta, left_over, next_batch, total};
use crate::throttle::too_many_isolated;
use crate::vmpressure::{PRESSURE_WINDOW, pressure_level};
use crate::{ListCounts, PressureLevel, Protection, ReclaimEvent, VmPressure};

#[test]
fn the_share_of_a_pass_follows_priority_and_seeks() {
    // ((freeable >> priority) x 4) / seeks; half for objects that cost nothing.
    assert_eq!(delta(10_000, 12, 2), 4);
    assert_eq!(delta(10_000, 6, 2), 312);
    assert_eq!(delta(10_000, 0, 2), 20_000);
    assert_eq!(delta(10_000, 0, 8), 5000);
    assert_eq!(delta(10_001, 12, 0), 5000);
    assert_eq!(delta(u64::MAX, 0, 1), u64::MAX, "no overflow");
    assert_eq!(DEFAULT_SEEKS, 2);
    //
    assert_eq!(DEFAULT_BATCH, 128);
}

#[test]
fn deferred_work_is_done_by_shares_and_capped() {
    //
    assert_eq!(total(1000, 0, 6, 2), 30);
    assert_eq!(total(1000, 6400, 6, 2), 130);
    assert_eq!(total(1000, u64::MAX, 0, 2), 2000, "at most twice what there is");
    //
    assert_eq!(left_over(1000, 6400, 6, 2, 130), 2000);
    assert_eq!(left_over(10_000, 0, 6, 2, 500), 0, "more done than planned");
}

#[test]
fn the_worked_example_of_the_reference() {
    //
    let mut left = total(10_000, 0, 6, 2);
    assert_eq!(left, 312);
    let mut batches = std::vec::Vec::new();
    while let Some(nr) = next_batch(left, 10_000, 128) {
        batches.push(nr);
        left -= nr;
    }
    assert_eq!(batches, [128, 128]);
    assert_eq!(left_over(10_000, 0, 6, 2, 256), 56);
    // Little is scanned whole if it is all there is.
    assert_eq!(next_batch(60, 30, 128), Some(60));
    assert_eq!(next_batch(20, 30, 128), None);
}

#[test]
fn pressure_has_three_levels() {
    //
    assert_eq!(PRESSURE_WINDOW, 512);
    assert_eq!(pressure_level(512, 512), PressureLevel::Low);
    assert_eq!(pressure_level(100, 41), PressureLevel::Low);
    assert_eq!(pressure_level(100, 40), PressureLevel::Medium);
    assert_eq!(pressure_level(100, 6), PressureLevel::Medium);
    assert_eq!(pressure_level(100, 5), PressureLevel::Critical);
    assert_eq!(pressure_level(10, 20), PressureLevel::Low, "shrinkers freed more than was scanned");
}

#[test]
fn pressure_is_computed_once_a_window() {
    //
    let gauge = VmPressure::new();
    // SAFETY: one context.
    let cpu = unsafe { SingleCpu::new() };
    assert_eq!(gauge.note(&cpu, Gfp::KERNEL, 511, 0), None);
    assert_eq!(gauge.note(&cpu, Gfp::KERNEL, 0, 1000), None, "a pass without a scan says nothing");
    assert_eq!(gauge.note(&cpu, Gfp::DIRECT_RECLAIM, 10_000, 0), None, "nor does one that may do nothing");
    assert_eq!(gauge.note(&cpu, Gfp::KERNEL, 1, 0), Some(PressureLevel::Critical));
    assert_eq!(gauge.note(&cpu, Gfp::KERNEL, 511, 511), None, "a new window");
    assert_eq!(gauge.note_priority(&cpu, Gfp::KERNEL, 4), None);
    assert_eq!(gauge.note_priority(&cpu, Gfp::KERNEL, 3), Some(PressureLevel::Low), "511 of 1023 unreclaimed");
    assert_eq!(gauge.note_priority(&cpu, Gfp::KERNEL, 0), Some(PressureLevel::Critical));
}

#[test]
fn whoever_can_do_everything_waits_for_others_sooner() {
    //
    let counts =
        |isolated, inactive| ListCounts { isolated_file: isolated, inactive_file: inactive, ..ListCounts::default() };
    assert!(!too_many_isolated(counts(800, 800), false));
    assert!(too_many_isolated(counts(801, 800), false));
    assert!(!too_many_isolated(counts(100, 800), true));
    assert!(too_many_isolated(counts(101, 800), true));
    assert!(!too_many_isolated(counts(0, 0), true), "nobody holds anything");
}

#[test]
fn protection_decides_whose_turn_it_is() {
    //
    let group = |min, low, usage| Protection { min, low, usage };
    assert_eq!(turn(group(0, 0, 0), false), Turn::Shrink);
    assert_eq!(turn(group(100, 200, 100), false), Turn::Never);
    assert_eq!(turn(group(100, 200, 100), true), Turn::Never, "min holds always");
    assert_eq!(turn(group(100, 200, 150), false), Turn::NotYet);
    assert_eq!(turn(group(100, 200, 150), true), Turn::Shrink);
    assert_eq!(turn(group(100, 200, 201), false), Turn::Shrink);
}

#[test]
fn the_counters_have_the_kernels_names() {
    let names: std::vec::Vec<&str> = ReclaimEvent::ALL.iter().map(|event| event.name()).collect();
    for name in ["pgsteal_kswapd", "pgscan_direct", "slabs_scanned", "pageoutrun", "kswapd_low_wmark_hit_quickly"] {
        assert!(names.contains(&name), "{name}");
    }
}

proptest! {
    /// One call's work is bounded by what there is, and so is what it leaves (I-11).
    #[test]
    fn work_and_left_overs_are_bounded(
        freeable in 1u64..1 << 40,
        deferred in any::<u64>(),
        priority in 0u8..13,
        seeks in 0u32..100,
        batch in 1u64..100_000,
        reported in 1u64..100_000,
    ) {
        let planned = total(freeable, deferred, priority, seeks);
        prop_assert!(planned <= 2 * freeable);
        let (mut left, mut scanned, mut calls) = (planned, 0u64, 0);
        while let Some(nr) = next_batch(left, freeable, batch) {
            prop_assert!(nr <= batch && nr <= left && nr > 0);
            let counted = nr.min(reported);
            scanned += counted;
            left -= counted;
            calls += 1;
            if calls > 200 {
                break;
            }
        }
        prop_assert!(scanned <= planned);
        prop_assert!(left_over(freeable, deferred, priority, seeks, scanned) <= 2 * freeable);
    }

    #[test]
    fn levels_rise_with_what_could_not_be_freed(scanned in 1u64..1 << 40, a in any::<u64>(), b in any::<u64>()) {
        let (a, b) = (a % (scanned + 1), b % (scanned + 1));
        if a <= b {
            prop_assert!(pressure_level(scanned, a) >= pressure_level(scanned, b));
        }
    }
}
