//! Everything around the engine fails at some point: it ends, says so, and leaves nothing behind.

use kmem_gfp::{AllocContext, Gfp, Reclaimer, TaskFlags};
use proptest::prelude::*;

use super::toy::{Did, List, N0, N1, NORMAL, Pages, Toy, machine, request};
use crate::{
    GroupId, GroupReclaim, GroupReclaimer, KswapdStep, ProactiveRequest, Protection, Reclaim, ShrinkControl,
    ShrinkCount, ShrinkScan, Shrinker, ShrinkerSlot,
};

/// Works for so many calls, and refuses from then on.
struct Failing {
    works_for: std::sync::atomic::AtomicI64,
}

impl Shrinker for Failing {
    fn count_objects(&self, _control: &ShrinkControl<'_>) -> ShrinkCount {
        ShrinkCount::Objects(100_000)
    }
    fn scan_objects(&self, _control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
        let left = self.works_for.fetch_sub(1, core::sync::atomic::Ordering::Relaxed);
        if left > 0 { ShrinkScan::Scanned { freed: nr, scanned: nr } } else { ShrinkScan::Stop }
    }
}

fn two_nodes() -> Reclaim<Toy> {
    let reclaim = machine(2);
    for node in [N0, N1] {
        reclaim.env().zone(node, NORMAL, 50);
        reclaim.env().list(node, GroupId::ROOT, List::new(300, Pages::Free));
        reclaim.env().list(node, GroupId(1), List::new(300, Pages::Free));
    }
    reclaim.env().group(1, 0, Protection { min: 0, low: 100, usage: 300 });
    reclaim
}

/// Nothing is left open: no scope, no stall, no busy flag.
fn is_clean(reclaim: &Reclaim<Toy>) {
    assert_eq!(reclaim.env().task_flags() & TaskFlags::SCOPES, TaskFlags::empty());
    let log = reclaim.env().take_log();
    let entered = log.iter().filter(|did| matches!(did, Did::StallEnter(_))).count();
    let left = log.iter().filter(|did| matches!(did, Did::StallLeave(_))).count();
    assert_eq!(entered, left);
    for node in [N0, N1] {
        let state = reclaim.node(node).unwrap();
        assert!(!state.polling.load(kmem_sync::atomic::Ordering::Relaxed));
        assert!(!state.node_reclaim.load(kmem_sync::atomic::Ordering::Relaxed));
        assert!(!state.throttled.has_sleepers());
    }
}

#[test]
fn pages_that_stop_being_reclaimable_at_any_pass_end_every_run() {
    for fails_at in 0..60 {
        let reclaim = two_nodes();
        let mut passes = 0;
        reclaim.env().on_shrink(move |toy, _| {
            passes += 1;
            if passes == fails_at {
                for list in toy.state().lists.values_mut() {
                    list.kind = Pages::Stay;
                }
            }
        });
        let failing = Failing { works_for: (fails_at / 4).into() };
        let slot = ShrinkerSlot::new("failing", &failing);
        reclaim
            .with_shrinker(&slot, || {
                let before: u64 = reclaim.env().state().lists.values().map(|list| list.pages).sum();
                let free = reclaim.env().free(N0) + reclaim.env().free(N1);
                let total = before + free;
                let _ = reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0));
                let how = GroupReclaim::default();
                let _ = reclaim.reclaim_group(reclaim.env(), GroupId(1), 64, Gfp::KERNEL, how);
                let _ = reclaim.reclaim_proactively(
                    reclaim.env(),
                    GroupId(1),
                    ProactiveRequest { pages: 100, swappiness: None },
                );
                for node in [N0, N1] {
                    reclaim.wake_background(node, &request(Gfp::KERNEL, 0));
                    for _ in 0..2000 {
                        match reclaim.kswapd_poll(node, reclaim.env().now_ms()) {
                            KswapdStep::Idle => break,
                            KswapdStep::Nap(ms) => reclaim.env().state().now_ms += ms,
                            KswapdStep::Worked => {}
                        }
                    }
                    assert_eq!(reclaim.kswapd_poll(node, reclaim.env().now_ms()), KswapdStep::Idle);
                }
                let lists: u64 = reclaim.env().state().lists.values().map(|list| list.pages).sum();
                let free = reclaim.env().free(N0) + reclaim.env().free(N1);
                assert_eq!(lists + free, total, "no page is lost");
            })
            .unwrap();
        is_clean(&reclaim);
    }
}

#[test]
fn a_signal_at_any_pass_leaves_nothing_behind() {
    for at in 0..20 {
        let reclaim = two_nodes();
        for list in reclaim.env().state().lists.values_mut() {
            list.kind = Pages::Stay;
        }
        let mut passes = 0;
        reclaim.env().on_shrink(move |toy, _| {
            passes += 1;
            if passes == at {
                toy.state().task |= TaskFlags::FATAL_SIGNAL;
            }
        });
        assert_eq!(reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0)), 0);
        let wanted = ProactiveRequest { pages: 100, swappiness: None };
        assert!(reclaim.reclaim_proactively(reclaim.env(), GroupId(1), wanted).is_err());
        is_clean(&reclaim);
    }
}

#[test]
fn a_group_that_vanishes_in_mid_walk_ends_the_walk() {
    let reclaim = two_nodes();
    reclaim.env().group(2, 1, Protection::default());
    reclaim.env().list(N0, GroupId(2), List::new(10, Pages::Stay));
    reclaim.env().on_shrink(|toy, _| toy.state().groups.retain(|group| group.id != GroupId(1)));
    for _ in 0..4 {
        reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0));
    }
    is_clean(&reclaim);
}

#[test]
fn a_machine_without_anything_reclaims_nothing() {
    let reclaim = machine(0);
    assert_eq!(reclaim.reclaim(reclaim.env(), &request(Gfp::KERNEL, 0)), 0);
    reclaim.wake_background(N0, &request(Gfp::KERNEL, 0));
    assert_eq!(reclaim.kswapd_poll(N0, 0), KswapdStep::Idle);
    assert!(!reclaim.reclaim_node(reclaim.env(), N0, &request(Gfp::KERNEL, 0)));
    assert_eq!(reclaim.drop_slab(reclaim.env()), 0);
    reclaim.kswapd_run(N0, || panic!("there is no such thread"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Any mixture of lists on any nodes: a run ends, and frees what it says (I-13).
    #[test]
    fn runs_end_and_count_exactly(
        kinds in prop::collection::vec((0u64..500, 0u8..5), 4),
        gfp in prop::sample::select(std::vec![Gfp::KERNEL, Gfp::NOFS, Gfp::NOIO]),
        order in 0u32..6,
        compacts in any::<bool>(),
    ) {
        let reclaim = two_nodes();
        reclaim.env().state().can_compact = compacts;
        let places = [(N0, 0), (N0, 1), (N1, 0), (N1, 1)];
        for ((node, group), (pages, kind)) in places.into_iter().zip(kinds) {
            let kind = [Pages::Free, Pages::Stay, Pages::Writeback, Pages::Dirty, Pages::Active][kind as usize];
            reclaim.env().list(node, GroupId(group), List::new(pages, kind));
        }
        let free = || reclaim.env().free(N0) + reclaim.env().free(N1);
        let before = free();
        let freed = reclaim.reclaim(reclaim.env(), &request(gfp, order)) as u64;
        let ready = freed == 1 && free() == before;
        prop_assert!(ready || freed == free() - before);
        is_clean(&reclaim);
    }
}
