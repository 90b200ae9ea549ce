//! Direct reclaim: the throttle at the entry, the priority loop, its reruns, its sleeps, its result.

use std::vec::Vec;

use kmem_gfp::{
    AllocContext, CompactPriority, Gfp, NoFsScope, NodeId, OomOutcome, Order, ReclaimRequest, Reclaimer, TaskFlags,
    Watermark, ZoneKind,
};

use super::toy::{Did, List, N0, N1, NORMAL, Pages, Toy, machine, request};
use crate::{
    GroupId, GroupReclaim, GroupReclaimer, PressureLevel, Protection, Reclaim, ReclaimEvent, StallKind, Zones,
};

/// One node with plenty of free pages (so that nobody is throttled) and so many file pages.
fn small(file: u64, kind: Pages) -> Reclaim<Toy> {
    let reclaim = machine(1);
    reclaim.env().zone(N0, NORMAL, 1000);
    reclaim.env().list(N0, GroupId::ROOT, List::new(file, kind));
    reclaim
}

/// As above with 50 free pages, which is half of the reserve, and a thread that sleeps.
fn starved(file: u64) -> Reclaim<Toy> {
    let reclaim = small(file, Pages::Free);
    reclaim.env().set_free(N0, 50);
    reclaim.kswapd_poll(N0, 1);
    reclaim
}

fn reclaim_for(reclaim: &Reclaim<Toy>, gfp: Gfp, order: u32) -> usize {
    reclaim.reclaim(reclaim.env(), &request(gfp, order))
}

fn parks(reclaim: &Reclaim<Toy>) -> Vec<Option<u64>> {
    let log = reclaim.env().take_log();
    log.into_iter().filter_map(|did| if let Did::Park(ms) = did { Some(ms) } else { None }).collect()
}

#[test]
fn nobody_is_throttled_while_half_of_the_reserve_is_free() {
    //
    let reclaim = starved(1000);
    reclaim.env().set_free(N0, 51);
    assert!(reclaim_for(&reclaim, Gfp::KERNEL, 0) >= 32);
    assert_eq!(parks(&reclaim), []);
    assert_eq!(reclaim.stats().get(ReclaimEvent::ScanDirectThrottle), 0);
}

#[test]
fn a_request_waits_until_the_thread_has_filled_half_of_the_reserve() {
    //
    let reclaim = starved(1000);
    reclaim.env().on_park(|toy, wait| {
        assert_eq!(wait.timeout_ms, None);
        assert!(wait.killable);
        toy.set_free(N0, 60);
    });
    assert!(reclaim_for(&reclaim, Gfp::KERNEL, 0) >= 32);
    assert!(reclaim.kswapd_is_running(N0), "it has been woken");
    assert_eq!(reclaim.stats().get(ReclaimEvent::ScanDirectThrottle), 1);
    let log = reclaim.env().take_log();
    assert_eq!(log.first(), Some(&Did::StallEnter(StallKind::Throttled)));
}

#[test]
fn the_thread_wakes_whoever_it_has_helped() {
    //
    let reclaim = starved(1000);
    let state = reclaim.node(N0).unwrap();
    let before = state.throttled.sequence();
    reclaim.wake_background(N0, &request(Gfp::KERNEL, 0));
    while reclaim.kswapd_poll(N0, 1) == crate::KswapdStep::Worked {}
    assert_ne!(state.throttled.sequence(), before);
}

#[test]
fn a_request_that_must_not_enter_a_filesystem_waits_a_second() {
    //
    let reclaim = starved(1000);
    assert!(reclaim_for(&reclaim, Gfp::NOFS, 0) >= 32, "it goes on afterwards");
    assert_eq!(parks(&reclaim), [Some(1000)]);
    // A scope counts as much as a flag.
    let reclaim = starved(1000);
    let toy = reclaim.env();
    NoFsScope::run(toy, || reclaim_for(&reclaim, Gfp::KERNEL, 0));
    assert_eq!(parks(&reclaim), [Some(1000)]);
}

#[test]
fn a_wait_that_is_cut_short_goes_on_for_the_rest() {
    //
    let reclaim = starved(1000);
    let mut first = true;
    reclaim.env().on_park(move |toy, _| {
        if core::mem::take(&mut first) {
            toy.state().now_ms += 300;
            // Somebody wakes the queue without anything to show for it, and sooner than the time.
            use crate::ReclaimEnv;
            toy.nodes().first().unwrap().throttled.wake(toy);
            toy.state().now_ms -= 1000;
        }
    });
    reclaim.env().state().now_ms = 5000;
    reclaim_for(&reclaim, Gfp::NOFS, 0);
    assert_eq!(parks(&reclaim).get(..2), Some([Some(1000), Some(700)].as_slice()));
}

#[test]
fn kernel_threads_and_the_dying_do_not_wait() {
    //
    for flags in [TaskFlags::KTHREAD, TaskFlags::FATAL_SIGNAL] {
        let reclaim = starved(1000);
        reclaim.env().task(flags);
        assert!(reclaim_for(&reclaim, Gfp::KERNEL, 0) >= 32);
        assert_eq!(parks(&reclaim), []);
    }
}

#[test]
fn who_is_killed_while_waiting_reports_progress_and_frees_nothing() {
    //
    let reclaim = starved(1000);
    reclaim.env().on_park(|toy, _| toy.task(TaskFlags::FATAL_SIGNAL));
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 0), 1);
    assert_eq!(reclaim.env().shrinks(), []);
}

#[test]
fn zones_without_reclaimable_pages_and_hopeless_nodes_do_not_throttle() {
    //
    let reclaim = starved(0);
    reclaim_for(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(reclaim.stats().get(ReclaimEvent::ScanDirectThrottle), 0, "nothing to wait for");
    let reclaim = starved(1000);
    let failures = &reclaim.node(N0).unwrap().failures;
    failures.store(16, kmem_sync::atomic::Ordering::Relaxed);
    reclaim_for(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(reclaim.stats().get(ReclaimEvent::ScanDirectThrottle), 0);
}

#[test]
fn nobody_waits_for_a_thread_that_is_not_there() {
    let reclaim = small(1000, Pages::Free);
    reclaim.env().set_free(N0, 0);
    assert!(reclaim_for(&reclaim, Gfp::KERNEL, 0) >= 32);
    assert_eq!(parks(&reclaim), []);
}

#[test]
fn the_loop_ends_with_a_cluster() {
    //
    let reclaim = small(1_000_000, Pages::Free);
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 0), 1_000_000 >> 12);
    let shrinks = reclaim.env().take_log();
    assert!(shrinks.contains(&Did::Shrink { node: N0, group: GroupId::ROOT, priority: 12, target: 32 }));
    assert_eq!(reclaim.stats().get(ReclaimEvent::StealDirect), 1_000_000 >> 12);
}

#[test]
fn the_loop_goes_down_to_priority_0_and_visits_each_node_once() {
    //
    let reclaim = machine(2);
    for node in [N0, N1] {
        reclaim.env().zone(node, NORMAL, 1000);
        reclaim.env().zone(node, ZoneKind::Dma, 1000);
        reclaim.env().list(node, GroupId::ROOT, List::new(100, Pages::Stay));
    }
    let from_one = ReclaimRequest { node: N1, ..request(Gfp::KERNEL, 0) };
    assert_eq!(reclaim.reclaim(reclaim.env(), &from_one), 0);
    let expected: Vec<(NodeId, GroupId, u8)> =
        (0..=12).rev().flat_map(|priority| [N1, N0].map(|node| (node, GroupId::ROOT, priority))).collect();
    // nothing was freed, so once more with full walks.
    let twice: Vec<_> = expected.iter().chain(&expected).copied().collect();
    assert_eq!(reclaim.env().shrinks(), twice);
}

#[test]
fn forbidden_and_foreign_nodes_are_left_alone() {
    //
    let reclaim = machine(2);
    for node in [N0, N1] {
        reclaim.env().zone(node, NORMAL, 1000);
        reclaim.env().list(node, GroupId::ROOT, List::new(10, Pages::Free));
    }
    reclaim.reclaim(reclaim.env(), &ReclaimRequest { this_node_only: true, ..request(Gfp::KERNEL, 0) });
    assert!(reclaim.env().shrinks().iter().all(|(node, ..)| *node == N0));
    reclaim.env().state().forbidden.push(N0);
    reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0));
    assert!(reclaim.env().shrinks().iter().all(|(node, ..)| *node == N1));
}

#[test]
fn a_costly_request_that_compaction_can_serve_reclaims_nothing() {
    //
    let reclaim = small(1000, Pages::Free);
    reclaim.env().state().can_compact = true;
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().largest = Order::new(3).unwrap();
    // C-10, C-11: 1000 free pages, far above the high mark and the gap.
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 4), 1);
    assert_eq!(reclaim.env().shrinks(), []);
    // Orders that are not costly are reclaimed for.
    assert!(reclaim_for(&reclaim, Gfp::KERNEL, 3) >= 32);
    // So is everything where nobody compacts.
    reclaim.env().state().can_compact = false;
    assert!(reclaim_for(&reclaim, Gfp::KERNEL, 4) >= 32);
}

#[test]
fn compaction_is_ready_above_the_high_mark_and_a_gap_if_memory_is_scattered() {
    //
    let reclaim = small(1000, Pages::Free);
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().largest = Order::ZERO;
    let ready = |free, fragmentation, order| {
        reclaim.env().set_free(N0, free);
        reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().fragmentation = fragmentation;
        reclaim.is_compaction_ready(N0, NORMAL, Order::new(order).unwrap(), NORMAL)
    };
    // high 150 + gap 32 + (low - min) 25
    assert!(!ready(207, None, 4));
    assert!(ready(208, None, 4));
    assert!(!ready(208, Some(500), 4), "short rather than scattered");
    assert!(ready(208, Some(501), 4));
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().largest = Order::MAX;
    assert!(ready(100 + 16, Some(0), 4), "the zone passes the min check anyhow");
}

#[test]
fn reruns_walk_everything_then_force_then_go_below_low() {
    //
    let reclaim = small(100, Pages::Active);
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 0), 32);
    let priorities: Vec<u8> = reclaim.env().shrinks().iter().map(|(_, _, priority)| *priority).collect();
    assert_eq!(priorities.len(), 27, "two loops, and one pass by force");

    let reclaim = small(0, Pages::Stay);
    reclaim.env().group(1, 0, Protection { min: 0, low: 500, usage: 400 });
    reclaim.env().list(N0, GroupId(1), List::new(400, Pages::Free));
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 0), 32);
    let shrinks = reclaim.env().shrinks();
    assert_eq!(shrinks.len(), 28, "two loops over the root alone, then both");
    assert_eq!(shrinks.last(), Some(&(N0, GroupId(1), 12)));
}

#[test]
fn a_group_below_its_min_is_never_touched() {
    //
    let reclaim = small(0, Pages::Stay);
    reclaim.env().group(1, 0, Protection { min: 400, low: 500, usage: 400 });
    reclaim.env().list(N0, GroupId(1), List::new(400, Pages::Free));
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 0), 0);
    assert!(reclaim.env().shrinks().iter().all(|(_, group, _)| *group == GroupId::ROOT));
}

#[test]
fn the_reruns_end() {
    // with everything against it, four loops of thirteen passes.
    let reclaim = small(0, Pages::Stay);
    reclaim.env().on_shrink(|_, _| {});
    reclaim.env().group(1, 0, Protection { min: 0, low: 500, usage: 400 });
    reclaim.env().list(N0, GroupId::ROOT, List::new(0, Pages::Active));
    reclaim.env().list(N0, GroupId(1), List::new(100, Pages::Stay));
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 0), 0);
    let root = reclaim.env().shrinks().iter().filter(|(_, group, _)| *group == GroupId::ROOT).count();
    assert!(root <= 4 * 13, "{root}");
}

#[test]
fn walks_go_on_where_the_last_one_stopped() {
    //
    let reclaim = small(0, Pages::Stay);
    for id in 1..=3 {
        reclaim.env().group(id, 0, Protection::default());
        reclaim.env().list(N0, GroupId(id), List::new(1000, Pages::Free));
    }
    for _ in 0..4 {
        assert!(reclaim_for(&reclaim, Gfp::KERNEL, 0) >= 32);
    }
    let visited: Vec<u32> = reclaim.env().shrinks().iter().map(|(_, group, _)| group.0).filter(|id| *id != 0).collect();
    assert_eq!(visited, [1, 2, 3, 1], "everybody in turn");
}

#[test]
fn no_progress_makes_a_run_sleep_at_priority_1_only() {
    //
    let reclaim = small(100, Pages::Stay);
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 0), 0);
    assert_eq!(parks(&reclaim), [Some(4), Some(4)], "a tick in each of two loops");
    assert_eq!(reclaim.stats().get(ReclaimEvent::ThrottleNoProgress), 2);
    // Kernel threads are not throttled.
    reclaim.env().task(TaskFlags::KTHREAD);
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 0), 0);
    assert_eq!(parks(&reclaim), []);
}

#[test]
fn a_run_that_does_well_wakes_those_that_did_not() {
    //
    let reclaim = small(1000, Pages::Free);
    let queue = &reclaim.node(N0).unwrap().naps[crate::throttle::Throttle::NoProgress as usize];
    let seen = queue.sequence();
    reclaim_for(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(queue.sequence(), seen, "nobody sleeps");
    std::thread::scope(|threads| {
        let (started, ready) = std::sync::mpsc::channel();
        struct Sleeper(std::sync::mpsc::Sender<()>);
        impl crate::Park for Sleeper {
            fn park(&self, _: &dyn AllocContext, queue: &crate::WaitQueue, seen: u32, _: crate::Wait) {
                self.0.send(()).unwrap();
                while queue.sequence() == seen {
                    std::thread::yield_now();
                }
            }
        }
        let sleeper = Sleeper(started);
        threads.spawn(move || queue.wait(&sleeper, &kmem_gfp::PlainContext, seen, crate::Wait::for_ms(4)));
        ready.recv().unwrap();
        reclaim_for(&reclaim, Gfp::KERNEL, 0);
    });
    assert_ne!(queue.sequence(), seen);
}

#[test]
fn pages_on_their_way_out_make_a_run_sleep() {
    //
    let reclaim = small(100, Pages::Writeback);
    reclaim_for(&reclaim, Gfp::KERNEL, 0);
    assert!(parks(&reclaim).contains(&Some(100)));
    let reclaim = small(100, Pages::Dirty);
    reclaim_for(&reclaim, Gfp::KERNEL, 0);
    let parks = parks(&reclaim);
    assert!(parks.contains(&Some(4)) && !parks.contains(&Some(100)));
    assert!(reclaim.stats().get(ReclaimEvent::ThrottleCongested) > 0);
}

#[test]
fn a_node_whose_pages_others_hold_is_waited_for_once_and_then_left() {
    //
    let reclaim = small(800, Pages::Free);
    reclaim.env().state().lists.get_mut(&(N0, GroupId::ROOT)).unwrap().isolated = 101;
    assert_eq!(reclaim_for(&reclaim, Gfp::KERNEL, 0), 0);
    assert!(parks(&reclaim).iter().filter(|ms| **ms == Some(20)).count() >= 13);
    reclaim.env().on_park(|toy, _| toy.state().lists.get_mut(&(N0, GroupId::ROOT)).unwrap().isolated = 0);
    assert!(reclaim_for(&reclaim, Gfp::KERNEL, 0) >= 32);
    // Without I/O and filesystem the bound is eight times as high.
    let reclaim = small(800, Pages::Free);
    reclaim.env().state().lists.get_mut(&(N0, GroupId::ROOT)).unwrap().isolated = 700;
    assert!(reclaim_for(&reclaim, Gfp::NOIO, 0) >= 32);
    // Runs for a group do not wait.
    let reclaim = small(800, Pages::Free);
    reclaim.env().state().lists.get_mut(&(N0, GroupId::ROOT)).unwrap().isolated = 700;
    let freed = reclaim.reclaim_group(reclaim.env(), GroupId::ROOT, 1, Gfp::KERNEL, GroupReclaim::default());
    assert!(freed >= 32);
    assert_eq!(parks(&reclaim), []);
}

#[test]
fn a_run_is_marked_as_reclaiming_and_a_stall() {
    //
    let reclaim = small(1000, Pages::Free);
    reclaim.env().on_shrink(|toy, scan| {
        assert!(toy.task_flags().contains(TaskFlags::MEMALLOC));
        assert!(!scan.limits.background);
    });
    reclaim_for(&reclaim, Gfp::KERNEL, 0);
    assert_eq!(reclaim.env().task_flags(), TaskFlags::empty());
    let log = reclaim.env().take_log();
    assert_eq!(log.first(), Some(&Did::StallEnter(StallKind::DirectReclaim)));
    assert_eq!(log.last(), Some(&Did::StallLeave(StallKind::DirectReclaim)));
}

#[test]
fn reclaim_does_not_recurse() {
    let reclaim = small(1000, Pages::Free);
    reclaim.env().task(TaskFlags::MEMALLOC);
    let freed = reclaim.reclaim_group(reclaim.env(), GroupId::ROOT, 32, Gfp::KERNEL, GroupReclaim::default());
    assert_eq!(freed, 0);
    reclaim.set_node_reclaim_mode(1).unwrap();
    assert!(!reclaim.reclaim_node(reclaim.env(), N0, &request(Gfp::KERNEL, 0)));
    assert_eq!(reclaim.env().take_log(), []);
}

#[test]
fn the_flags_that_lists_and_shrinkers_see_are_those_of_the_scopes() {
    let reclaim = small(1000, Pages::Free);
    reclaim.env().on_shrink(|_, scan| {
        assert!(!scan.limits.gfp.contains(Gfp::FS));
        assert!(scan.limits.gfp.contains(Gfp::IO));
    });
    let toy = reclaim.env();
    NoFsScope::run(toy, || reclaim_for(&reclaim, Gfp::KERNEL, 0));
    assert!(!reclaim.env().shrinks().is_empty());
}

#[test]
fn compaction_and_kills_are_forwarded() {
    //
    let reclaim = small(0, Pages::Free);
    let one = request(Gfp::KERNEL, 2);
    reclaim.compact(reclaim.env(), &one, CompactPriority::SyncLight);
    reclaim.env().state().oom = Some(OomOutcome::Progress);
    assert_eq!(reclaim.out_of_memory(reclaim.env(), &one), OomOutcome::Progress);
    let expected = [
        Did::StallEnter(StallKind::Compaction),
        Did::Compact(CompactPriority::SyncLight),
        Did::StallLeave(StallKind::Compaction),
        Did::Oom,
    ];
    assert_eq!(reclaim.env().take_log(), expected);
    assert!(reclaim.can_reclaim() && !reclaim.can_compact());
}

#[test]
fn reclaimable_pages_are_those_on_the_lists_of_the_zone() {
    let reclaim = small(70, Pages::Free);
    reclaim.env().state().lists.get_mut(&(N0, GroupId::ROOT)).unwrap().anon = 30;
    assert_eq!(reclaim.reclaimable_pages(N0, NORMAL), 100);
    reclaim.env().state().can_swap = false;
    assert_eq!(reclaim.reclaimable_pages(N0, NORMAL), 70);
    assert_eq!(reclaim.reclaimable_pages(N0, ZoneKind::Dma), 0);
}

#[test]
fn hard_work_is_felt_as_pressure() {
    //
    let reclaim = small(100_000, Pages::Stay);
    reclaim_for(&reclaim, Gfp::KERNEL, 0);
    assert!(reclaim.env().take_log().contains(&Did::Pressure(GroupId::ROOT, PressureLevel::Critical)));
    let reclaim = small(100_000_000, Pages::Free);
    reclaim_for(&reclaim, Gfp::KERNEL, 0);
    assert!(reclaim.env().take_log().contains(&Did::Pressure(GroupId::ROOT, PressureLevel::Low)));
}

#[test]
fn node_reclaim_is_off_cheap_and_alone() {
    // B-67
    let reclaim = small(1000, Pages::Free);
    let one = request(Gfp::KERNEL, 0);
    let run = |one: &ReclaimRequest| reclaim.reclaim_node(reclaim.env(), N0, one);
    assert!(!run(&one), "off");
    assert!(reclaim.set_node_reclaim_mode(8).is_err());
    reclaim.set_node_reclaim_mode(1).unwrap();
    assert!(!run(&request(Gfp::NOWAIT, 0)), "it would sleep");
    assert!(run(&one));
    assert_eq!(reclaim.env().shrinks(), [(N0, GroupId::ROOT, 4)], "it begins at priority 4");
    assert_eq!(reclaim.env().state().last_limits.last(), Some(&(4, false, false, true)), "no writing, no unmapping");
    reclaim.set_node_reclaim_mode(7).unwrap();
    assert!(run(&one));
    assert_eq!(reclaim.env().state().last_limits.last(), Some(&(4, true, true, true)));
    // 100 pages are a hundredth of the node: too little page cache, and no slab either.
    reclaim.env().list(N0, GroupId::ROOT, List::new(100, Pages::Free));
    assert!(!run(&one));
    reclaim.env().state().slab_pages = 501;
    assert!(run(&one));
    // One at a time.
    let busy = &reclaim.node(N0).unwrap().node_reclaim;
    busy.store(true, kmem_sync::atomic::Ordering::Relaxed);
    assert!(!run(&one));
    assert_eq!(reclaim.stats().get(ReclaimEvent::NodeReclaimSuccess), 3);
}

#[test]
fn marks_include_the_boost() {
    let reclaim = small(0, Pages::Free);
    reclaim.env().state().zones.get_mut(&(N0, NORMAL)).unwrap().boost = 40;
    // B-49: as the platform reports them.
    assert_eq!(reclaim.env().mark(N0, NORMAL, Watermark::Min), 140);
}
