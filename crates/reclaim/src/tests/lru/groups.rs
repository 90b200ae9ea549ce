//! Memory cgroups: protection, and groups that go.

use std::boxed::Box;

use kmem_gfp::{NodeId, PlainContext};

use super::machine::{AT_UNCHARGE, LIMITS, Machine, bring, lists};
use crate::lru::{ClassicPolicy, GenerationsPolicy, Lists, PageKind, Policy};
use crate::{GroupId, ListCounts, PageLists, Protection, Scan, ScanLimits};

const GROUP: GroupId = GroupId(2);

fn filled<P: Policy>(pages: u64) -> (&'static Machine, Lists<&'static Machine, P>) {
    let machine = Machine::new(4096, 1, 1);
    let lists = lists(machine, 4);
    for key in 0..pages {
        bring(&lists, key, PageKind::File, GROUP);
    }
    lists.drain_all();
    (machine, lists)
}

fn evictable(counts: ListCounts) -> u64 {
    counts.inactive_file + counts.active_file + counts.inactive_anon + counts.active_anon
}

fn protection_is_left_alone<P: Policy>() {
    //
    let scanned = |root, low, min, below_low| {
        let (_, lists) = filled::<P>(1000);
        let mut scan = Scan::new(ScanLimits { root, target: 10_000, ..LIMITS }, &PlainContext);
        (scan.priority, scan.below_low) = (0, below_low);
        lists.shrink(NodeId(0), GROUP, Protection { min, low, usage: 1000 }, &mut scan);
        scan.scanned
    };
    // 1000 - 1000 x 600 / 1001 = 401
    assert_eq!(scanned(GroupId::ROOT, 600, 100, false), 401);
    // 1000 - 1000 x 100 / 1001 = 901
    assert_eq!(scanned(GroupId::ROOT, 600, 100, true), 901);
    assert_eq!(scanned(GROUP, 600, 100, false), 1000, "the target itself has none");
    assert_eq!(scanned(GroupId::ROOT, 5000, 0, false), 32, "at least 32");
}

fn a_group_that_goes_leaves_its_pages_to_its_parent<P: Policy>() {
    let (machine, lists) = filled::<P>(200);
    let held = machine.pfn(7);
    assert!(lists.isolate(held));
    // Still in a batch.
    bring(&lists, 500, PageKind::File, GROUP);
    lists.set_unevictable(machine.pfn(9), true);
    lists.reparent(GROUP, GroupId(1));
    let (left, now) = (lists.group_counts(NodeId(0), GROUP), lists.group_counts(NodeId(0), GroupId(1)));
    assert_eq!((evictable(left), left.isolated_file, left.unevictable), (0, 1, 0));
    assert_eq!((evictable(now), now.unevictable), (199, 1));
    assert_eq!(lists.open_group(GROUP).unwrap_err().pages, 1);
    // A page that comes late goes to the parent as well.
    bring(&lists, 501, PageKind::File, GROUP);
    lists.drain_all();
    lists.put_back(held);
    assert_eq!(evictable(lists.group_counts(NodeId(0), GroupId(1))), 201);
    assert_eq!(lists.group_counts(NodeId(0), GROUP), ListCounts::default());
    // Whatever goes is given back in the parent's name.
    let pfn = machine.forget(7).unwrap();
    // SAFETY: the index has forgotten it.
    unsafe { lists.release(pfn) }.unwrap();
    assert_eq!(machine.state().uncharged.get(&1), Some(&1));
    lists.open_group(GROUP).unwrap();
    bring(&lists, 600, PageKind::File, GROUP);
    lists.drain_all();
    assert_eq!(evictable(lists.group_counts(NodeId(0), GROUP)), 1);
}

fn a_number_stays_while_a_batch_is_on_its_way<P: Policy>() {
    let (machine, lists) = filled::<P>(0);
    bring(&lists, 1, PageKind::File, GROUP);
    // Somebody has taken the batch and has not come to the lists yet when the group goes.
    let batch = lists.cpus.try_with(machine, |cpu, _| cpu.take()).unwrap();
    lists.reparent(GROUP, GroupId(1));
    lists.open_group(GROUP).unwrap_err();
    lists.settle_taken(batch);
    assert_eq!(evictable(lists.group_counts(NodeId(0), GroupId(1))), 1);
    assert_eq!(lists.group_counts(NodeId(0), GROUP), ListCounts::default());
    lists.open_group(GROUP).unwrap();
}

fn a_number_stays_until_its_pages_are_uncharged<P: Policy>() {
    let (machine, lists) = filled::<P>(100);
    let lists: &'static _ = Box::leak(Box::new(lists));
    let look = move |group| {
        assert_eq!(group, GROUP);
        assert!(lists.open_group(GROUP).is_err(), "the number is given out before the pages are uncharged");
    };
    AT_UNCHARGE.set(Some(Box::new(look)));
    // A listed page, one in a batch, and one that is removed while somebody holds it.
    bring(lists, 200, PageKind::File, GROUP);
    for key in [0, 200, 1] {
        if key == 1 {
            assert!(lists.isolate(machine.pfn(1)));
        }
        let pfn = machine.forget(key).unwrap();
        // SAFETY: the index has forgotten it.
        unsafe { lists.release(pfn) }.unwrap();
        lists.put_back(pfn);
    }
    assert_eq!(machine.state().uncharged.get(&GROUP.0), Some(&3));
    // Reclaim.
    let mut scan = Scan::new(ScanLimits { target: 10_000, ..LIMITS }, &PlainContext);
    scan.priority = 0;
    lists.shrink(NodeId(0), GROUP, Protection::default(), &mut scan);
    AT_UNCHARGE.set(None);
    assert!(scan.reclaimed > 0);
    assert_eq!(machine.state().uncharged.get(&GROUP.0), Some(&(3 + scan.reclaimed)));
    assert_eq!(lists.group_counts(NodeId(0), GROUP).isolated_file, 0);
    lists.open_group(GROUP).unwrap();
}

#[test]
fn a_number_stays_while_a_batch_is_on_its_way_to_the_classic_lists() {
    a_number_stays_while_a_batch_is_on_its_way::<ClassicPolicy>();
}

#[test]
fn a_number_stays_while_a_batch_is_on_its_way_to_generations() {
    a_number_stays_while_a_batch_is_on_its_way::<GenerationsPolicy>();
}

#[test]
fn a_number_stays_until_pages_of_classic_lists_are_uncharged() {
    a_number_stays_until_its_pages_are_uncharged::<ClassicPolicy>();
}

#[test]
fn a_number_stays_until_pages_of_generations_are_uncharged() {
    a_number_stays_until_its_pages_are_uncharged::<GenerationsPolicy>();
}

#[test]
fn the_classic_lists_leave_protection_alone() {
    protection_is_left_alone::<ClassicPolicy>();
}

#[test]
fn generations_leave_protection_alone() {
    protection_is_left_alone::<GenerationsPolicy>();
}

#[test]
fn a_group_that_goes_leaves_its_classic_lists_to_its_parent() {
    a_group_that_goes_leaves_its_pages_to_its_parent::<ClassicPolicy>();
}

#[test]
fn a_group_that_goes_leaves_its_generations_to_its_parent() {
    a_group_that_goes_leaves_its_pages_to_its_parent::<GenerationsPolicy>();
}
