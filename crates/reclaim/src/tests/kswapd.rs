//! Background reclaim: when it wakes, what it does, when it sleeps.

use kmem_gfp::{AllocContext, Gfp, Order, ReclaimRequest, Reclaimer, TaskFlags, ZoneKind};
use proptest::prelude::*;

use super::toy::{Did, List, N0, N1, NORMAL, Pages, Toy, machine, request};
use crate::{GroupId, KswapdStep, Reclaim, ReclaimEvent, StallKind};

/// One node, one zone with marks 100, 125, 150, so many free and file pages; a thread that sleeps.
fn small(free: u64, file: u64, kind: Pages) -> Reclaim<Toy> {
    let reclaim = machine(1);
    reclaim.env().zone(N0, NORMAL, free);
    reclaim.env().list(N0, GroupId::ROOT, List::new(file, kind));
    assert_eq!(poll(&reclaim), KswapdStep::Idle);
    reclaim
}

fn poll(reclaim: &Reclaim<Toy>) -> KswapdStep {
    let now = reclaim.env().now_ms();
    reclaim.kswapd_poll(N0, now)
}

/// Polls until the thread has nothing to do; how many polls it took.
fn settle(reclaim: &Reclaim<Toy>) -> u32 {
    for polls in 0..2000 {
        match poll(reclaim) {
            KswapdStep::Idle => return polls,
            KswapdStep::Nap(ms) => reclaim.env().state().now_ms += ms,
            KswapdStep::Worked => {}
        }
    }
    panic!("the thread is busy for ever");
}

fn wake(reclaim: &Reclaim<Toy>, gfp: Gfp, order: u32) {
    reclaim.wake_background(N0, &request(gfp, order));
}

#[test]
fn a_wake_reaches_a_sleeping_thread_of_a_node_short_of_pages_only() {
    //
    let reclaim = small(1000, 100, Pages::Free);
    wake(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(poll(&reclaim), KswapdStep::Idle, "the node is balanced");
    reclaim.env().set_free(N0, 150);
    wake(&reclaim, Gfp::KERNEL, 0);
    assert!(reclaim.kswapd_is_running(N0));
    assert_eq!(poll(&reclaim), KswapdStep::Worked);
}

#[test]
fn a_boost_wakes_a_balanced_node() {
    //
    let reclaim = small(1000, 1000, Pages::Free);
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().boost = 50;
    wake(&reclaim, Gfp::KERNEL, 0);
    assert!(reclaim.kswapd_is_running(N0));
}

#[test]
fn requests_that_come_together_are_served_as_their_maximum() {
    //
    let reclaim = small(150, 0, Pages::Free);
    reclaim.env().zone(N0, ZoneKind::Dma, 150);
    let dma = ReclaimRequest { ceiling: ZoneKind::Dma, ..request(Gfp::KERNEL, 4) };
    reclaim.wake_background(N0, &dma);
    wake(&reclaim, Gfp::KERNEL, 1);
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().free = 100_000;
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().largest = Order::MAX;
    settle(&reclaim);
    let log = reclaim.env().take_log();
    assert!(log.contains(&Did::WakeCompaction(N0, Order::new(4).unwrap(), NORMAL)), "{log:?}");
}

#[test]
fn a_node_that_needs_no_reclaim_gets_compaction_for_requests_that_cannot_wait() {
    //
    let reclaim = small(1000, 0, Pages::Free);
    wake(&reclaim, Gfp::KERNEL, 3);
    assert_eq!(reclaim.env().take_log(), []);
    wake(&reclaim, Gfp::NOWAIT, 3);
    assert_eq!(reclaim.env().take_log(), [Did::WakeCompaction(N0, Order::new(3).unwrap(), NORMAL)]);
    assert_eq!(poll(&reclaim), KswapdStep::Idle);
}

#[test]
fn a_hopeless_node_is_not_woken() {
    //
    let reclaim = small(50, 100, Pages::Stay);
    wake(&reclaim, Gfp::KERNEL, 0);
    settle(&reclaim);
    assert!(reclaim.is_hopeless(N0));
    assert_eq!(reclaim.stats().get(ReclaimEvent::PageOutRun), 16);
    reclaim.env().take_log();
    wake(&reclaim, Gfp::NOWAIT, 0);
    assert_eq!(poll(&reclaim), KswapdStep::Idle);
    assert_eq!(reclaim.env().take_log(), [Did::WakeCompaction(N0, Order::ZERO, NORMAL)]);
}

#[test]
fn requests_keep_no_thread_awake_on_a_hopeless_node() {
    //
    let reclaim = small(50, 100, Pages::Stay);
    reclaim.env().on_shrink(|_, _| {});
    wake(&reclaim, Gfp::KERNEL, 0);
    for polls in 0..1000 {
        // Somebody asks before each step.
        wake(&reclaim, Gfp::KERNEL, 0);
        match poll(&reclaim) {
            KswapdStep::Idle => {
                assert!(polls > 16);
                return;
            }
            KswapdStep::Nap(ms) => reclaim.env().state().now_ms += ms,
            KswapdStep::Worked => {}
        }
    }
    panic!("the thread is busy for ever");
}

#[test]
fn one_zone_at_the_high_mark_balances_a_node() {
    //
    let reclaim = machine(2);
    assert!(reclaim.is_balanced(N0, Order::ZERO, NORMAL), "no zone, nothing to balance");
    reclaim.env().zone(N0, NORMAL, 150);
    assert!(!reclaim.is_balanced(N0, Order::ZERO, NORMAL), "the mark itself is not enough");
    reclaim.env().zone(N0, ZoneKind::Dma, 151);
    assert!(reclaim.is_balanced(N0, Order::ZERO, NORMAL));
    assert!(!reclaim.is_balanced(N0, Order::new(1).unwrap(), NORMAL));
    reclaim.env().zone(N0, ZoneKind::Movable, 5000);
    assert!(!reclaim.is_balanced(N0, Order::new(1).unwrap(), NORMAL), "a zone above the ceiling does not count");
    assert!(reclaim.is_balanced(N0, Order::new(1).unwrap(), ZoneKind::Movable));
}

#[test]
fn memory_tiering_balances_at_the_promo_mark() {
    //
    let reclaim = small(170, 0, Pages::Free);
    assert!(reclaim.is_balanced(N0, Order::ZERO, NORMAL));
    reclaim.env().state().tiering = true;
    assert!(!reclaim.is_balanced(N0, Order::ZERO, NORMAL));
    reclaim.env().set_free(N0, 176);
    assert!(reclaim.is_balanced(N0, Order::ZERO, NORMAL));
}

#[test]
fn the_thread_naps_before_it_sleeps() {
    //
    let reclaim = small(150, 1000, Pages::Free);
    wake(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(poll(&reclaim), KswapdStep::Worked, "a pass");
    assert_eq!(poll(&reclaim), KswapdStep::Worked, "balanced: the run ends");
    reclaim.env().take_log();
    assert_eq!(poll(&reclaim), KswapdStep::Nap(100));
    assert_eq!(reclaim.env().take_log(), [Did::ResetHints(N0), Did::WakeCompaction(N0, Order::ZERO, NORMAL)]);
    assert!(!reclaim.kswapd_is_running(N0));
    reclaim.env().state().now_ms += 60;
    assert_eq!(poll(&reclaim), KswapdStep::Nap(40), "a poll too early changes nothing");
    reclaim.env().state().now_ms += 40;
    assert_eq!(poll(&reclaim), KswapdStep::Idle);
    assert_eq!(poll(&reclaim), KswapdStep::Idle);
    assert_eq!(reclaim.stats().get(ReclaimEvent::LowWmarkHitQuickly), 0);
    assert_eq!(reclaim.stats().get(ReclaimEvent::HighWmarkHitQuickly), 0);
}

#[test]
fn a_nap_cut_short_is_counted_and_what_it_was_for_counts_on() {
    //
    let reclaim = small(150, 10_000, Pages::Free);
    wake(&reclaim, Gfp::KERNEL, 2);
    while poll(&reclaim) == KswapdStep::Worked {}
    reclaim.env().set_free(N0, 100);
    wake(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(poll(&reclaim), KswapdStep::Worked);
    assert_eq!(reclaim.stats().get(ReclaimEvent::LowWmarkHitQuickly), 1);
    settle(&reclaim);
    assert_eq!(reclaim.stats().get(ReclaimEvent::HighWmarkHitQuickly), 0);
}

#[test]
fn a_balance_that_does_not_last_the_nap_starts_another_run() {
    //
    let reclaim = small(150, 10_000, Pages::Free);
    wake(&reclaim, Gfp::KERNEL, 0);
    while poll(&reclaim) == KswapdStep::Worked {}
    reclaim.env().set_free(N0, 100);
    reclaim.env().state().now_ms += 100;
    assert_eq!(poll(&reclaim), KswapdStep::Worked);
    assert_eq!(reclaim.stats().get(ReclaimEvent::HighWmarkHitQuickly), 1);
    settle(&reclaim);
    assert!(reclaim.is_balanced(N0, Order::ZERO, NORMAL));
}

#[test]
fn a_request_during_a_run_is_served_before_the_nap() {
    //
    let reclaim = small(150, 1000, Pages::Free);
    wake(&reclaim, Gfp::KERNEL, 0);
    poll(&reclaim);
    wake(&reclaim, Gfp::KERNEL, 1);
    assert_eq!(poll(&reclaim), KswapdStep::Worked, "the first run ends");
    assert_eq!(poll(&reclaim), KswapdStep::Worked, "no nap");
    settle(&reclaim);
    let log = reclaim.env().take_log();
    assert!(log.contains(&Did::WakeCompaction(N0, Order::new(1).unwrap(), NORMAL)), "{log:?}");
    assert_eq!(reclaim.stats().get(ReclaimEvent::PageOutRun), 2);
}

#[test]
fn a_pass_ages_and_aims_at_the_sum_of_the_high_marks() {
    //
    let reclaim = small(120, 10_000, Pages::Free);
    reclaim.env().zone(N0, ZoneKind::Dma, 0);
    reclaim.env().state().zones.get_mut(&(N0, ZoneKind::Dma)).unwrap().marks = [4, 5, 6, 7];
    reclaim.env().zone(N0, ZoneKind::Movable, 0);
    wake(&reclaim, Gfp::KERNEL, 0);
    poll(&reclaim);
    let log = reclaim.env().take_log();
    let root = GroupId::ROOT;
    assert_eq!(
        log,
        [
            Did::StallEnter(StallKind::Background),
            Did::Age(N0, root, 12),
            // 150 for the normal zone, a cluster for the tiny one, nothing for the one above the ceiling.
            Did::Shrink { node: N0, group: root, priority: 12, target: 182 },
            Did::StallLeave(StallKind::Background),
        ]
    );
}

#[test]
fn the_priority_falls_with_scans_that_were_too_small_or_freed_nothing() {
    //
    let reclaim = small(0, 1_000_000, Pages::Stay);
    wake(&reclaim, Gfp::KERNEL, 0);
    while poll(&reclaim) == KswapdStep::Worked && reclaim.stats().get(ReclaimEvent::PageOutRun) == 1 {}
    let priorities: std::vec::Vec<u8> = reclaim.env().shrinks().iter().map(|(_, _, priority)| *priority).collect();
    assert_eq!(priorities.get(..12), Some([12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1].as_slice()), "12 down to 1");

    // Whoever looks at enough pages and frees some stays where it is.
    let reclaim = small(0, 1_000_000, Pages::Free);
    wake(&reclaim, Gfp::KERNEL, 0);
    for _ in 0..8 {
        reclaim.env().set_free(N0, 0);
        poll(&reclaim);
    }
    let priorities: std::vec::Vec<u8> = reclaim.env().shrinks().iter().map(|(_, _, priority)| *priority).collect();
    assert_eq!(priorities, [12; 8]);
}

#[test]
fn a_run_for_a_high_order_goes_on_for_single_pages_once_compaction_has_its_gap() {
    //
    let reclaim = small(151, 10_000, Pages::Free);
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().largest = Order::ZERO;
    wake(&reclaim, Gfp::KERNEL, 3);
    settle(&reclaim);
    // The first pass freed more than 16 pages, so that order 0 was enough to end it.
    assert_eq!(reclaim.env().shrinks().len(), 1);
    assert!(!reclaim.is_hopeless(N0));
}

#[test]
fn pages_in_the_sets_of_idle_cpus_are_not_counted_as_missing() {
    //
    let reclaim = small(50, 100, Pages::Stay);
    reclaim.env().state().in_sets = 200;
    wake(&reclaim, Gfp::KERNEL, 0);
    settle(&reclaim);
    assert!(reclaim.is_balanced(N0, Order::ZERO, NORMAL) && !reclaim.is_hopeless(N0));
    let state = reclaim.node(N0).unwrap();
    assert_eq!(state.failures.load(kmem_sync::atomic::Ordering::Relaxed), 0);
    assert_eq!(reclaim.env().take_log().iter().filter(|did| **did == Did::Drain).count(), 1);
}

#[test]
fn progress_ends_hopelessness_only_if_it_was_enough() {
    //
    let reclaim = small(50, 100, Pages::Stay);
    wake(&reclaim, Gfp::KERNEL, 0);
    settle(&reclaim);
    assert!(reclaim.is_hopeless(N0));
    reclaim.env().list(N0, GroupId::ROOT, List::new(32, Pages::Free));
    assert!(reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0)) > 0);
    assert!(reclaim.is_hopeless(N0), "32 pages are not enough");
    reclaim.env().list(N0, GroupId::ROOT, List::new(1000, Pages::Free));
    reclaim.env().set_free(N0, 130);
    assert!(reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0)) > 0);
    assert!(!reclaim.is_hopeless(N0));
}

#[test]
fn the_platform_may_declare_a_node_worth_another_try() {
    //
    let reclaim = small(50, 100, Pages::Stay);
    wake(&reclaim, Gfp::KERNEL, 0);
    settle(&reclaim);
    reclaim.clear_hopeless(N0);
    reclaim.env().list(N0, GroupId::ROOT, List::new(1000, Pages::Free));
    wake(&reclaim, Gfp::KERNEL, 0);
    settle(&reclaim);
    assert!(reclaim.is_balanced(N0, Order::ZERO, NORMAL));
}

#[test]
fn the_thread_works_with_all_reserves_and_may_do_everything() {
    //
    let reclaim = small(120, 1000, Pages::Free);
    reclaim.env().on_shrink(|toy, scan| {
        assert!(scan.context.task_flags().contains(TaskFlags::MEMALLOC));
        assert!(toy.task_flags().contains(TaskFlags::MEMALLOC));
        assert!(scan.limits.background && scan.limits.may_write && scan.limits.may_unmap && scan.limits.may_swap);
    });
    wake(&reclaim, Gfp::KERNEL, 0);
    settle(&reclaim);
    assert_eq!(reclaim.env().task_flags(), TaskFlags::empty());
}

#[test]
fn a_boost_is_worked_off_gently() {
    //
    let reclaim = small(1000, 100_000, Pages::Free);
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().boost = 200;
    wake(&reclaim, Gfp::KERNEL, 0);
    settle(&reclaim);
    let limits = reclaim.env().state().last_limits.clone();
    assert!(!limits.is_empty());
    assert!(limits.iter().all(|&(priority, write, _, swap)| priority >= 10 && !write && !swap), "{limits:?}");
    assert!(reclaim.stats().get(ReclaimEvent::StealKswapd) >= 200);
    let log = reclaim.env().take_log();
    assert!(log.contains(&Did::LowerBoost(N0, NORMAL, 200)));
    assert!(log.contains(&Did::WakeCompaction(N0, Order::PAGEBLOCK, NORMAL)));
}

#[test]
fn a_boost_that_frees_nothing_is_given_up_at_once() {
    //
    let reclaim = small(1000, 1000, Pages::Stay);
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().boost = 200;
    wake(&reclaim, Gfp::KERNEL, 0);
    settle(&reclaim);
    let log = reclaim.env().take_log();
    assert_eq!(log.iter().filter(|did| matches!(did, Did::Shrink { .. })).count(), 1);
    assert!(log.contains(&Did::LowerBoost(N0, NORMAL, 200)), "it is taken back all the same");
    // Fifteen fruitless runs more would be one too few to make it hopeless.
    reclaim.env().set_free(N0, 50);
    wake(&reclaim, Gfp::KERNEL, 0);
    settle(&reclaim);
    assert_eq!(reclaim.stats().get(ReclaimEvent::PageOutRun), 17);
}

#[test]
fn a_boost_waits_when_the_pages_themselves_are_missing() {
    //
    let reclaim = small(100, 100_000, Pages::Free);
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().boost = 40;
    wake(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(poll(&reclaim), KswapdStep::Worked);
    assert_eq!(reclaim.env().state().last_limits.first(), Some(&(12, true, true, true)), "an ordinary run");
    settle(&reclaim);
    assert!(reclaim.env().take_log().contains(&Did::LowerBoost(N0, NORMAL, 40)));
}

#[test]
fn pages_under_writeback_put_the_thread_off_for_a_while() {
    //
    let reclaim = small(100, 1000, Pages::Writeback);
    wake(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(poll(&reclaim), KswapdStep::Nap(100));
    assert!(reclaim.kswapd_is_running(N0));
}

#[test]
fn every_node_has_a_thread_of_its_own() {
    //
    let reclaim = machine(2);
    for node in [N0, N1] {
        reclaim.env().zone(node, NORMAL, 100);
        reclaim.env().list(node, GroupId::ROOT, List::new(1000, Pages::Free));
    }
    reclaim.kswapd_poll(N1, 1);
    reclaim.wake_background(N1, &request(Gfp::KERNEL, 0));
    assert!(reclaim.kswapd_is_running(N1));
    assert!(!reclaim.kswapd_is_running(N0));
    while reclaim.kswapd_poll(N1, 1) == KswapdStep::Worked {}
    assert_eq!(reclaim.env().free(N0), 100);
    assert!(reclaim.env().free(N1) > 150);
    assert_eq!(reclaim.node_stats(N0).get(ReclaimEvent::StealKswapd), 0);
}

#[test]
fn a_node_that_does_not_exist_or_is_forbidden_is_left_alone() {
    let reclaim = small(100, 1000, Pages::Free);
    reclaim.wake_background(N1, &request(Gfp::KERNEL, 0));
    assert_eq!(reclaim.kswapd_poll(N1, 5), KswapdStep::Idle);
    reclaim.env().state().forbidden.push(N0);
    wake(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(poll(&reclaim), KswapdStep::Idle);
}

#[test]
fn the_loop_of_a_thread_sleeps_and_stops() {
    //
    let reclaim = small(120, 1000, Pages::Free);
    wake(&reclaim, Gfp::KERNEL, 0);
    let stop = core::cell::Cell::new(0);
    reclaim.kswapd_run(N0, || {
        stop.set(stop.get() + u32::from(reclaim.env().state().parks > 1));
        stop.get() > 2
    });
    assert!(reclaim.is_balanced(N0, Order::ZERO, NORMAL));
    assert!(reclaim.env().take_log().contains(&Did::Park(Some(100))));
    assert!(!reclaim.kswapd_is_running(N0), "gone");
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Take(u64),
    Give(u64),
    Wake(u32),
    Poll,
    Later(u64),
    Pages(u64, bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u64..300).prop_map(Op::Take),
        (0u64..300).prop_map(Op::Give),
        (0u32..5).prop_map(Op::Wake),
        Just(Op::Poll),
        Just(Op::Poll),
        (0u64..150).prop_map(Op::Later),
        ((0u64..2000), any::<bool>()).prop_map(|(pages, stay)| Op::Pages(pages, stay)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens, a thread left alone comes to rest, and rests only if the node is balanced for what was asked last,
    /// hopeless, or has not been asked since.
    #[test]
    fn the_thread_comes_to_rest_and_never_sleeps_over_a_request(ops in prop::collection::vec(op(), 1..80)) {
        let reclaim = small(500, 500, Pages::Free);
        for op in ops {
            match op {
                Op::Take(n) => {
                    let free = reclaim.env().free(N0).saturating_sub(n);
                    reclaim.env().set_free(N0, free);
                }
                Op::Give(n) => {
                    let free = reclaim.env().free(N0) + n;
                    reclaim.env().set_free(N0, free);
                }
                Op::Wake(order) => {
                    wake(&reclaim, Gfp::KERNEL, order);
                    let content = reclaim.is_balanced(N0, Order::new(order).unwrap(), NORMAL);
                    prop_assert!(content || reclaim.is_hopeless(N0) || reclaim.kswapd_is_running(N0));
                }
                Op::Poll => {
                    poll(&reclaim);
                }
                Op::Later(ms) => reclaim.env().state().now_ms += ms,
                Op::Pages(pages, stay) => {
                    let kind = if stay { Pages::Stay } else { Pages::Free };
                    reclaim.env().list(N0, GroupId::ROOT, List::new(pages, kind));
                }
            }
        }
        wake(&reclaim, Gfp::KERNEL, 0);
        let polls = settle(&reclaim);
        prop_assert!(polls < 1000, "{polls} polls");
        prop_assert!(reclaim.is_balanced(N0, Order::ZERO, NORMAL) || reclaim.is_hopeless(N0));
    }
}
