//! Whole traces on kmem's hosted machine.

use kmem_lab::bundled;
use kmem_lab::hosted::HostedTarget;
use kmem_lab::program::Level;
use kmem_lab::replay::{Order, Outcome, Plan, replay};
use kmem_lab::target::MachineShape;
use kmem_lab::trace::Input;
use std::path::Path;

fn run(input: &Input, level: Level, order: Order, cpus: u32) -> Outcome {
    let trace = input.open().unwrap();
    let boot = || HostedTarget::boot(MachineShape { cpus, ram_bytes: 512 << 20 }).unwrap();
    let (machine, second) = (boot(), boot());
    let plan = Plan { trace, level, order, book: bundled::cache_book() };
    let outcome = replay(plan, &machine, Some(&second), |_| {}, |_| {}).unwrap();
    let c = &outcome.census;
    assert_eq!(c.settled(), c.events);
    assert_eq!(c.unknown_event, 0, "{:?}", c.unknown_names);
    assert!(outcome.integrity.is_clean(), "{:?}", outcome.integrity);
    assert_eq!(outcome.failed, 0);
    outcome
}

/// Kmem holds no more slab pages than Linux did, for the same requests.
fn assert_no_more_than_linux(o: &Outcome) {
    let (peak, end) = (o.peak.slab_pages, o.end.slab_pages);
    assert!(peak <= o.linux.slab_pages_peak, "peak {peak}, Linux {}", o.linux.slab_pages_peak);
    assert!(end <= o.linux.slab_pages_end, "end {end}, Linux {}", o.linux.slab_pages_end);
}

#[test]
fn the_start_of_a_kernel_takes_no_more_slab_pages_than_linux() {
    let o = run(&bundled::BOOT, Level::All, Order::Trace, 4);
    assert_eq!(o.census.events, 929_371);
    assert_eq!((o.linux.recorded_peak, o.linux.recorded_end), (10_278, 10_278));
    assert_no_more_than_linux(&o);
    // All requests, too.
    assert!(o.end.all_slab_pages <= o.linux.all_slab_pages_end);
    // `stats.py` counts 153 925 objects, Linux's own among them.
    assert!((153_000..=153_925).contains(&o.end.live_objects), "{:?}", o.end);
    assert!(o.samples.len() > 500);
}

#[test]
fn every_level_and_order_is_sound() {
    for (level, order) in [
        (Level::Objects, Order::Trace),
        (Level::Pages, Order::Trace),
        (Level::All, Order::Parallel),
        (Level::All, Order::Trace),
    ] {
        for cpus in [1, 3] {
            let o = run(&bundled::SAMPLE, level, order, cpus);
            assert_eq!(o.census.events, 20_000);
        }
    }
}

#[test]
fn a_replay_in_trace_order_repeats_itself() {
    let figures = || {
        let o = run(&bundled::SAMPLE, Level::All, Order::Trace, 2);
        (o.peak, o.end, o.free_after.iter().map(|z| z.blocks.clone()).collect::<Vec<_>>())
    };
    assert_eq!(figures(), figures());
}

#[test]
fn a_machine_that_is_too_small_fails_requests_and_breaks_nothing() {
    for order in [Order::Trace, Order::Parallel] {
        let machine = HostedTarget::boot(MachineShape { cpus: 2, ram_bytes: 4 << 20 }).unwrap();
        let trace = bundled::SAMPLE.open().unwrap();
        let plan = Plan { trace, level: Level::All, order, book: bundled::cache_book() };
        let o = replay(plan, &machine, None, |_| {}, |_| {}).unwrap();
        assert!(o.failed > 0 && o.integrity.is_clean(), "{} failed, {:?}", o.failed, o.integrity);
    }
}

/// The larger traces are not part of the repository; they are looked for beside it.
fn shared(name: &str) -> Option<Input> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/traces").join(name).join("trace.txt.zst");
    if path.is_file() {
        return Some(Input::File(path));
    }
    println!("skipped: no {}", path.display());
    None
}

#[test]
#[ignore = "needs the larger traces, which are not in the repository; part of the longer run"]
fn a_build_takes_no_more_slab_pages_than_linux() {
    let Some(input) = shared("build") else { return };
    for order in [Order::Trace, Order::Parallel] {
        let o = run(&input, Level::All, order, 2);
        assert_eq!((o.census.events, o.linux.recorded_end), (498_228, 633));
        assert_no_more_than_linux(&o);
    }
}

#[test]
#[ignore = "needs the larger traces, which are not in the repository; part of the longer run"]
fn a_machine_under_pressure_takes_no_more_slab_pages_than_linux() {
    let Some(input) = shared("pressure") else { return };
    for order in [Order::Trace, Order::Parallel] {
        let o = run(&input, Level::All, order, 2);
        assert_eq!((o.census.events, o.linux.recorded_end), (1_765_437, 749));
        assert_no_more_than_linux(&o);
    }
}

#[test]
fn areas_of_vmalloc_are_taken_and_given_back_as_in_linux() {
    let o = run(&bundled::BOOT, Level::All, Order::Trace, 1);
    let a = o.areas.unwrap();
    assert_eq!((a.areas_peak, a.areas_end), (a.linux.areas_peak, a.linux.areas_end));
    assert_eq!((a.pages_peak, a.pages_end), (a.linux.pages_peak, a.linux.pages_end));
    // One CPU here and there: the same threshold.
    assert_eq!((a.end.lazy_limit, a.linux.lazy_limit), (8192, 8192));
    assert!(a.lazy_pages_peak <= a.linux.lazy_pages_peak && a.end.purges > 0, "{a:?}");
    assert_eq!(o.census.unsupported, 0);
}
