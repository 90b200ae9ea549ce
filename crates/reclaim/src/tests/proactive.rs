//! Reclaim within a group, and ahead of time.

use kmem_gfp::{Gfp, TaskFlags};

use super::toy::{Did, List, N0, NORMAL, Pages, Toy, machine};
use crate::{
    GroupId, GroupReclaim, GroupReclaimer, ParseProactiveError, ProactiveError, ProactiveRequest, Protection, Reclaim,
    ReclaimEvent, Swappiness,
};

const G1: GroupId = GroupId(1);

/// Root with 1000 pages; group 1 with 1000 pages and a child, group 2, with 1000.
fn tree() -> Reclaim<Toy> {
    let reclaim = machine(1);
    reclaim.env().zone(N0, NORMAL, 1000);
    reclaim.env().group(1, 0, Protection { min: 0, low: 5000, usage: 2000 });
    reclaim.env().group(2, 1, Protection::default());
    for group in [GroupId::ROOT, G1, GroupId(2)] {
        reclaim.env().list(N0, group, List::new(1000, Pages::Free));
    }
    reclaim
}

fn pages(nr: u64) -> ProactiveRequest {
    ProactiveRequest { pages: nr, swappiness: None }
}

#[test]
fn a_group_is_reclaimed_with_its_subtree_and_without_its_own_protection() {
    //
    let reclaim = tree();
    let freed = reclaim.reclaim_group(reclaim.env(), G1, 500, Gfp::KERNEL, GroupReclaim::default());
    assert!(freed >= 500);
    let shrinks = reclaim.env().shrinks();
    assert!(shrinks.iter().all(|(_, group, _)| *group != GroupId::ROOT));
    assert!(shrinks.iter().any(|(_, group, _)| *group == G1), "its own low does not hold against itself");
    assert!(shrinks.iter().any(|(_, group, _)| *group == GroupId(2)));
}

#[test]
fn a_small_charge_reclaims_a_cluster() {
    let reclaim = tree();
    assert!(reclaim.reclaim_group(reclaim.env(), G1, 1, Gfp::KERNEL, GroupReclaim::default()) >= 32);
    let log = reclaim.env().take_log();
    assert!(log.contains(&Did::Shrink { node: N0, group: G1, priority: 12, target: 32 }));
    assert_eq!(reclaim.stats().get(ReclaimEvent::ScanDirectThrottle), 0);
}

#[test]
fn a_group_without_swap_keeps_its_anonymous_pages() {
    let reclaim = tree();
    let how = GroupReclaim { may_swap: false, ..GroupReclaim::default() };
    reclaim.reclaim_group(reclaim.env(), G1, 1, Gfp::KERNEL, how);
    assert_eq!(reclaim.env().state().last_limits.first(), Some(&(12, true, true, false)));
}

#[test]
fn proactive_reclaim_frees_what_it_was_asked_for_in_quarters() {
    //
    let reclaim = tree();
    let freed = reclaim.reclaim_proactively(reclaim.env(), G1, pages(800)).unwrap();
    assert!((800..=832).contains(&freed), "{freed}");
    let log = reclaim.env().take_log();
    let first = log.iter().find_map(|did| if let Did::Shrink { target, .. } = did { Some(*target) } else { None });
    assert_eq!(first, Some(200));
    let last = log.iter().rev().find_map(|did| if let Did::Shrink { target, .. } = did { Some(*target) } else { None });
    assert_eq!(last, Some(32));
    assert_eq!(reclaim.stats().get(ReclaimEvent::StealProactive), freed);
    assert_eq!(reclaim.stats().get(ReclaimEvent::StealDirect), 0);
    assert!(!log.iter().any(|did| matches!(did, Did::Pressure(..))), "nobody is short of memory");
}

#[test]
fn the_seventeenth_empty_round_ends_it() {
    //
    let reclaim = tree();
    for group in [GroupId::ROOT, G1, GroupId(2)] {
        reclaim.env().list(N0, group, List::new(100, Pages::Stay));
    }
    let result = reclaim.reclaim_proactively(reclaim.env(), G1, pages(100));
    assert_eq!(result, Err(ProactiveError::Again { freed: 0, wanted: 100 }));
    // Two loops a round: the second walks every group to the end.
    let rounds = reclaim.env().shrinks().iter().filter(|(_, group, _)| *group == G1).count() / 26;
    assert_eq!(rounds, 17);
}

#[test]
fn empty_rounds_count_in_total_not_in_a_row() {
    //
    let reclaim = tree();
    for group in [G1, GroupId(2)] {
        reclaim.env().list(N0, group, List::new(0, Pages::Free));
    }
    // Each third loop finds a few pages.
    let mut passes = 0u32;
    reclaim.env().on_shrink(move |toy, scan| {
        passes += 1;
        if passes.is_multiple_of(100) && scan.limits.root == G1 {
            toy.list(N0, G1, List::new(40, Pages::Free));
        }
    });
    let result = reclaim.reclaim_proactively(reclaim.env(), G1, pages(10_000));
    let Err(ProactiveError::Again { freed, .. }) = result else { panic!("{result:?}") };
    assert!(freed > 0);
}

#[test]
fn a_signal_interrupts_proactive_reclaim() {
    //
    let reclaim = tree();
    reclaim.env().task(TaskFlags::FATAL_SIGNAL);
    let result = reclaim.reclaim_proactively(reclaim.env(), G1, pages(100));
    assert_eq!(result, Err(ProactiveError::Interrupted { freed: 0, wanted: 100 }));
    assert_eq!(reclaim.env().take_log(), []);
}

#[test]
fn a_node_is_reclaimed_by_one_at_a_time() {
    //
    let reclaim = tree();
    assert!(reclaim.reclaim_node_proactively(reclaim.env(), N0, pages(100)).unwrap() >= 100);
    assert!(reclaim.env().shrinks().iter().any(|(_, group, _)| *group == GroupId::ROOT));
    let busy = &reclaim.node(N0).unwrap().node_reclaim;
    busy.store(true, kmem_sync::atomic::Ordering::Relaxed);
    let result = reclaim.reclaim_node_proactively(reclaim.env(), N0, pages(100));
    assert_eq!(result, Err(ProactiveError::Busy { node: N0, freed: 0 }));
}

#[test]
fn a_swappiness_asked_for_by_name_goes_before_all_others() {
    //
    let reclaim = tree();
    reclaim.set_swappiness(10).unwrap();
    assert!(reclaim.set_swappiness(201).is_err());
    reclaim.env().on_shrink(|_, scan| {
        assert_eq!(scan.limits.swappiness, Swappiness::Share(10));
        assert_eq!(scan.swappiness_for(Some(5)), Swappiness::AnonOnly);
    });
    let request = ProactiveRequest { pages: 32, swappiness: Some(Swappiness::AnonOnly) };
    reclaim.reclaim_proactively(reclaim.env(), G1, request).unwrap();
    reclaim.env().on_shrink(|_, scan| {
        assert_eq!(scan.swappiness_for(Some(5)), Swappiness::Share(5));
        assert_eq!(scan.swappiness_for(None), Swappiness::Share(10));
    });
    reclaim.reclaim_proactively(reclaim.env(), G1, pages(32)).unwrap();
}

#[test]
fn requests_are_read_as_the_kernel_writes_them() {
    //
    let parse = |text: &str| text.parse::<ProactiveRequest>();
    assert_eq!(parse("8192\n"), Ok(pages(2)));
    assert_eq!(parse("1G"), Ok(pages(1 << 18)));
    assert_eq!(parse("10k swappiness=200").unwrap().swappiness, Some(Swappiness::Share(200)));
    assert_eq!(parse("1M swappiness=max").unwrap().swappiness, Some(Swappiness::AnonOnly));
    assert_eq!(parse("1M swappiness=201"), Err(ParseProactiveError::Swappiness));
    assert_eq!(parse("1M swappiness=-1"), Err(ParseProactiveError::Swappiness));
    assert_eq!(parse("1M nodes=0"), Err(ParseProactiveError::UnknownOption));
    for wrong in ["", "K", "x", "-1", "1KK", "99999999T"] {
        assert_eq!(parse(wrong), Err(ParseProactiveError::Amount), "{wrong}");
    }
}

#[test]
fn a_group_has_a_gauge_of_its_own() {
    //
    let reclaim = tree();
    for group in [G1, GroupId(2)] {
        reclaim.env().list(N0, group, List::new(10_000, Pages::Stay));
    }
    reclaim.reclaim_group(reclaim.env(), G1, 32, Gfp::KERNEL, GroupReclaim::default());
    let log = reclaim.env().take_log();
    assert!(log.iter().any(|did| matches!(did, Did::Pressure(G1, _))));
    assert!(!log.iter().any(|did| matches!(did, Did::Pressure(GroupId::ROOT, _))));
}
