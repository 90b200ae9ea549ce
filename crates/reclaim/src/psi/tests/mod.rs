//! Tests of pressure stall accounting against a clock that the test turns.
#![cfg(not(loom))]

use std::string::ToString;
use std::vec::Vec;

use core::ptr::NonNull;

use kmem_sync::{Cpu, CpuId, IrqState};
use proptest::prelude::*;

use crate::psi::{PERIOD_US, ParseTriggerError, Pressure, Psi, Stall, Trigger, enter_all, leave_all};

#[derive(Debug)]
struct Cpus(u32);

// SAFETY: nobody pins; tests are single threads without interrupts.
unsafe impl Cpu for Cpus {
    fn nr_cpus(&self) -> u32 {
        self.0
    }
    fn try_pin(&self) -> Option<CpuId> {
        None
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {}
}

fn psi(cpus: u32) -> Psi<Cpus> {
    let layout = Psi::<Cpus>::layout(cpus).unwrap();
    // SAFETY: the layout has a size.
    let memory = NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
    // SAFETY: just allocated with that layout, and leaked.
    unsafe { Psi::new(Cpus(cpus), memory, 0) }
}

const CPU: CpuId = CpuId(0);
const SECOND: u64 = 1_000_000;

#[test]
fn a_stall_counts_as_some_and_as_full_only_if_nobody_works() {
    //
    let psi = psi(1);
    psi.start_work(CPU, 0);
    psi.start_work(CPU, 0);
    let stall = psi.enter(CPU, 100);
    psi.end_work(CPU, 300);
    psi.leave(stall, CPU, 350);
    let pressure = psi.update(1000);
    assert_eq!((pressure.some_total_us, pressure.full_total_us), (250, 50));
    assert_eq!(psi.update(5000).some_total_us, 250, "no stall, no loss");
}

#[test]
fn a_platform_that_counts_no_work_gets_full_equal_to_some() {
    //
    let psi = psi(2);
    let stall = Stall::from_raw(psi.enter(CpuId(1), 10).to_raw());
    psi.leave(stall, CPU, 60);
    let pressure = psi.update(100);
    assert_eq!((pressure.some_total_us, pressure.full_total_us), (50, 50), "an idle CPU does not count");
}

#[test]
fn a_busy_cpu_without_stalls_dilutes_the_loss() {
    //
    let psi = psi(2);
    psi.start_work(CpuId(1), 0);
    let stall = psi.enter(CPU, 0);
    let pressure = psi.update(1000);
    assert_eq!(pressure.some_total_us, 500);
    psi.leave(stall, CPU, 1000);
}

#[test]
fn averages_rise_to_the_share_and_fall_again() {
    //
    let psi = psi(1);
    let stall = psi.enter(CPU, 0);
    let first = psi.update(PERIOD_US).some.hundredths();
    // 1 - exp(-2/10) and so on, in per cent.
    assert!(first[0].abs_diff(1813) <= 10 && first[1].abs_diff(328) <= 10 && first[2].abs_diff(66) <= 10, "{first:?}");
    let mut now = PERIOD_US;
    for _ in 0..60 {
        now += PERIOD_US;
        psi.update(now);
    }
    let full = psi.update(now);
    assert_eq!(full.some.hundredths()[0], 10_000, "100 %");
    assert_eq!(full.full, full.some);
    psi.leave(stall, CPU, now);
    let later = psi.update(now + 10 * SECOND).some.hundredths();
    assert!(later[0].abs_diff(3679) <= 30, "after one window a bit more than a third is left: {later:?}");
    let much_later = psi.update(now + 4000 * SECOND).some.hundredths();
    assert_eq!(much_later, [0; 3]);
}

#[test]
fn the_view_has_the_kernels_form() {
    //
    let psi = psi(1);
    assert_eq!(
        psi.update(0).to_string(),
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    );
    psi.start_work(CPU, 0);
    psi.start_work(CPU, 0);
    let stall = psi.enter(CPU, 0);
    assert_eq!(
        psi.update(PERIOD_US).to_string(),
        "some avg10=18.11 avg60=3.27 avg300=0.68 total=2000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    );
    psi.leave(stall, CPU, PERIOD_US);
}

#[test]
fn groups_are_bracketed_on_the_way_up() {
    //
    let [machine, group] = [psi(1), psi(1)];
    let mut stalls = [None; 4];
    enter_all([&group, &machine].into_iter(), CPU, 0, &mut stalls);
    leave_all([&group, &machine].into_iter(), CPU, 70, &mut stalls);
    assert_eq!(stalls, [None; 4]);
    assert_eq!([&group, &machine].map(|psi| psi.update(100).some_total_us), [70, 70]);
}

#[test]
fn a_trigger_fires_once_in_a_window() {
    //
    let mut trigger: Trigger = "some 150000 1000000".parse().unwrap();
    let at = |lost| Pressure { some_total_us: lost, ..Pressure::default() };
    trigger.arm(&at(0), 0);
    assert!(!trigger.poll(&at(149_999), 500_000));
    assert!(trigger.poll(&at(150_000), 600_000));
    assert!(!trigger.poll(&at(900_000), 900_000), "not twice");
    assert!(trigger.poll(&at(900_000), 1_600_000));
    let mut slow: Trigger = "full 100000 1000000".parse().unwrap();
    slow.arm(&at(0), 0);
    assert!(!slow.poll(&at(900_000), 900_000), "some is not full");
}

#[test]
fn a_trigger_remembers_the_window_before() {
    let mut trigger: Trigger = "some 100000 1000000".parse().unwrap();
    let at = |lost| Pressure { some_total_us: lost, ..Pressure::default() };
    trigger.arm(&at(0), 0);
    assert!(!trigger.poll(&at(80_000), 1_000_001), "a window with 80 ms");
    assert!(trigger.poll(&at(110_000), 1_100_001), "30 more, and nine tenths of the 80");
}

#[test]
fn lines_that_are_no_triggers_are_refused() {
    let parse = |line: &str| line.parse::<Trigger>().unwrap_err();
    assert_eq!(parse("all 1 1000000"), ParseTriggerError::BadForm);
    assert_eq!(parse("some 1"), ParseTriggerError::BadForm);
    assert_eq!(parse("some 1 1000000 x"), ParseTriggerError::BadForm);
    assert_eq!(parse("some 1 100"), ParseTriggerError::BadWindow(100));
    assert_eq!(parse("some 0 1000000"), ParseTriggerError::BadThreshold(0));
    assert_eq!(parse("full 1000001 1000000"), ParseTriggerError::BadThreshold(1_000_001));
}

proptest! {
    #[test]
    fn one_cpus_times_are_those_of_a_plain_model(steps in proptest::collection::vec((0u64..1000, 0u8..4), 1..80)) {
        //
        let psi = psi(1);
        let (mut now, mut working) = (0, 0u32);
        let (mut some, mut full) = (0u64, 0u64);
        let mut stalls: Vec<(Stall, bool)> = Vec::new();
        for (elapsed, step) in steps {
            if !stalls.is_empty() {
                some += elapsed;
                full += if working == 0 { elapsed } else { 0 };
            }
            now += elapsed;
            match step {
                0 => {
                    psi.start_work(CPU, now);
                    working += 1;
                }
                1 if working > 0 => {
                    psi.end_work(CPU, now);
                    working -= 1;
                }
                2 => {
                    let worked = working > 0;
                    working -= u32::from(worked);
                    stalls.push((psi.enter(CPU, now), worked));
                }
                3 => {
                    if let Some((stall, worked)) = stalls.pop() {
                        psi.leave(stall, CPU, now);
                        working += u32::from(worked);
                    }
                }
                _ => {}
            }
        }
        // One CPU: weighing changes nothing.
        let pressure = psi.update(now);
        prop_assert_eq!((pressure.some_total_us, pressure.full_total_us), (some, full));
    }
}
