//! Models of what may happen at once to a page of the lists; see `docs/loom/reclaim.md` for the mutations that make each fail.

use kmem_gfp::{NodeId, PageAllocator};
use loom::thread;

use super::machine::{LIMITS, Machine, Slot, be_lane, bring, lists, run};
use crate::lru::{ClassicPolicy, GenerationsPolicy, Lists, PageKind, Removed};
use crate::{GroupId, PageLists, ScanLimits};

type Gens = Lists<&'static Machine, GenerationsPolicy>;

/// Four frames, two CPUs.
fn model(f: impl Fn(&'static Machine) + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = Some(2);
    builder.check(move || f(Machine::new(4, 1, 2)));
}

fn shared<P: crate::lru::Policy>(machine: &'static Machine) -> &'static Lists<&'static Machine, P> {
    std::boxed::Box::leak(std::boxed::Box::new(lists(machine, 2)))
}

/// Whoever takes the page out of the index removes it and frees its frame, or leaves that to the lists.
fn drop_page<P: crate::lru::Policy>(lists: &Lists<&'static Machine, P>, key: u64) -> bool {
    let Some(pfn) = lists.env().forget(key) else { return false };
    // SAFETY: the index has forgotten it.
    unsafe { lists.release(pfn) }.unwrap();
    true
}

fn nothing_left<P: crate::lru::Policy>(machine: &Machine, lists: &Lists<&'static Machine, P>) {
    lists.drain_all();
    assert_eq!(lists.counts(NodeId(0), None), Default::default());
    assert_eq!((machine.nr_free(), machine.nr_owned()), (4, 0), "every frame is free, once");
}

#[test]
fn an_isolated_page_is_freed_once_by_whoever_lets_go_last() {
    model(|machine| {
        let lists: &'static Gens = shared(machine);
        let pfn = bring(lists, 1, PageKind::File, GroupId::ROOT);
        lists.drain_local();
        let other = thread::spawn(move || {
            be_lane(1);
            if lists.isolate(pfn) {
                lists.put_back(pfn);
            }
        });
        assert!(drop_page(lists, 1));
        other.join().unwrap();
        nothing_left(machine, lists);
        assert_eq!(machine.state().uncharged[&0], 1);
    });
}

#[test]
fn a_reference_that_meets_isolation_is_not_lost() {
    model(|machine| {
        let lists: &'static Lists<_, ClassicPolicy> = shared(machine);
        let pfn = bring(lists, 1, PageKind::File, GroupId::ROOT);
        lists.drain_local();
        let other = thread::spawn(move || {
            be_lane(1);
            if lists.isolate(pfn) {
                lists.put_back(pfn);
            }
        });
        // Referenced, then active: whichever lists it meets on the way.
        lists.mark_accessed(pfn);
        lists.mark_accessed(pfn);
        other.join().unwrap();
        lists.drain_all();
        let counts = lists.counts(NodeId(0), None);
        assert_eq!((counts.active_file, counts.inactive_file, counts.isolated_file), (1, 0, 0));
    });
}

#[test]
fn reclaim_and_a_removal_do_not_both_free_a_page() {
    model(|machine| {
        let lists: &'static Gens = shared(machine);
        bring(lists, 1, PageKind::File, GroupId::ROOT);
        lists.drain_local();
        let other = thread::spawn(move || {
            be_lane(1);
            run(lists, ScanLimits { target: 1, ..LIMITS }).reclaimed
        });
        let removed = drop_page(lists, 1);
        let reclaimed = other.join().unwrap();
        assert!(removed || reclaimed == 1);
        assert_eq!(matches!(machine.slot(1), Slot::Gone(_)), !removed, "reclaim left a shadow");
        nothing_left(machine, lists);
        assert_eq!(machine.state().uncharged[&0], 1);
    });
}

#[test]
fn a_drained_batch_lists_no_page_that_was_removed() {
    model(|machine| {
        let lists: &'static Gens = shared(machine);
        bring(lists, 1, PageKind::File, GroupId::ROOT);
        let other = thread::spawn(move || {
            be_lane(1);
            lists.drain_all();
        });
        // Removed, and the frame used again at once by somebody who is no page of the lists.
        let pfn = machine.forget(1).unwrap();
        if lists.remove(pfn) == Ok(Removed::Yours) {
            let words = kmem_gfp::FrameTable::words(machine, pfn).unwrap();
            words.owner.store(7, kmem_sync::atomic::Ordering::Relaxed);
            words.links.store(0xbad, kmem_sync::atomic::Ordering::Relaxed);
            other.join().unwrap();
            assert_eq!(words.owner.load(kmem_sync::atomic::Ordering::Relaxed), 7);
            assert_eq!(words.links.load(kmem_sync::atomic::Ordering::Relaxed), 0xbad, "not the lists' to write");
            words.owner.store(0, kmem_sync::atomic::Ordering::Relaxed);
            // SAFETY: ours.
            unsafe { machine.free_pages(pfn, kmem_gfp::Order::ZERO) }.unwrap();
        } else {
            unreachable!("nobody isolates pages");
        }
        nothing_left(machine, lists);
    });
}

#[test]
fn a_refault_that_meets_an_eviction_finds_the_page_or_its_shadow() {
    model(|machine| {
        let lists: &'static Gens = shared(machine);
        bring(lists, 1, PageKind::File, GroupId::ROOT);
        lists.drain_local();
        let other = thread::spawn(move || {
            be_lane(1);
            run(lists, ScanLimits { target: 1, ..LIMITS }).reclaimed
        });
        let slot = machine.slot(1);
        match slot {
            Slot::Here(pfn) => lists.mark_accessed(pfn),
            Slot::Gone(_) => {
                bring(lists, 1, PageKind::File, GroupId::ROOT);
            }
            Slot::Absent => unreachable!("the page or its shadow"),
        }
        other.join().unwrap();
        lists.drain_all();
        let counts = lists.counts(NodeId(0), None);
        let here = u64::from(machine.is_here(1));
        assert_eq!(counts.inactive_file + counts.active_file, here);
        assert_eq!(machine.nr_free() as u64, 4 - here);
        drop_page(lists, 1);
        nothing_left(machine, lists);
    });
}

#[test]
fn pages_of_a_group_that_goes_are_its_parents() {
    model(|machine| {
        let lists: &'static Gens = shared(machine);
        let pfn = bring(lists, 1, PageKind::File, GroupId(1));
        bring(lists, 2, PageKind::File, GroupId(1));
        let other = thread::spawn(move || {
            be_lane(1);
            if lists.isolate(pfn) {
                lists.put_back(pfn);
            }
        });
        lists.reparent(GroupId(1), GroupId::ROOT);
        other.join().unwrap();
        lists.drain_all();
        assert_eq!(lists.group_counts(NodeId(0), GroupId(1)), Default::default());
        assert_eq!(lists.group_counts(NodeId(0), GroupId::ROOT).inactive_file, 2);
        assert!(drop_page(lists, 1) && drop_page(lists, 2));
        nothing_left(machine, lists);
    });
}
