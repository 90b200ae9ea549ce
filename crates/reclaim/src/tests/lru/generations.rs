//! The generations: placement, aging, tiers, refaults, views.

use std::string::ToString;
use std::vec::Vec;

use kmem_gfp::{NodeId, PlainContext};

use super::machine::{LIMITS, Machine, Slot, bring, bring_all, lists, pass, run};
use crate::lru::{GenerationsPolicy, Lists, NewPage, OwnerId, PageKind};
use crate::{GroupId, PageLists, Scan, ScanLimits, Swappiness};

type Gens = Lists<&'static Machine, GenerationsPolicy>;

fn machine() -> (&'static Machine, Gens) {
    let machine = Machine::new(4096, 1, 1);
    (machine, lists(machine, 1))
}

/// Pages of each generation, oldest first: anonymous and file.
fn ages(lists: &Gens) -> Vec<(u64, u64)> {
    let info = lists.generations(NodeId(0), GroupId::ROOT).unwrap();
    info.generations().iter().map(|one| (one.anon.unwrap_or(0), one.file.unwrap_or(0))).collect()
}

fn age(lists: &Gens) {
    lists.age_now(NodeId(0), GroupId::ROOT);
}

#[test]
fn a_page_is_placed_by_what_is_known_of_it() {
    //
    let (machine, lists) = machine();
    bring_all(&lists, 0..1, PageKind::File);
    assert_eq!(ages(&lists), [(0, 1), (0, 0), (0, 0), (0, 0)], "unknown file pages: the oldest");
    bring_all(&lists, 1..3, PageKind::Anon);
    assert_eq!(ages(&lists), [(0, 1), (0, 0), (2, 0), (0, 0)], "new anonymous pages: the second youngest");
    let pfn =
        kmem_gfp::PageAllocator::alloc_pages(machine, kmem_gfp::Gfp::KERNEL, kmem_gfp::Order::ZERO, None).unwrap();
    machine.state().slots.insert(9, Slot::Here(pfn));
    lists.add(pfn, NewPage { faulted: true, ..NewPage::new(OwnerId(5), 9, PageKind::File) }).unwrap();
    lists.drain_all();
    assert_eq!(ages(&lists).iter().skip(2).map(|one| one.1).sum::<u64>(), 1, "faulted in: active");
    let used = bring(&lists, 10, PageKind::File, GroupId::ROOT);
    lists.mark_accessed(used);
    lists.drain_all();
    assert_eq!(ages(&lists)[1], (0, 1), "referenced before it got there: one younger");
}

#[test]
fn there_are_two_to_four_generations() {
    //
    let (_, lists) = machine();
    bring_all(&lists, 0..100, PageKind::File);
    bring_all(&lists, 100..200, PageKind::Anon);
    for _ in 0..10 {
        age(&lists);
        assert_eq!(ages(&lists).len(), 4);
        assert_eq!(ages(&lists).iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)), (100, 100));
    }
    run(&lists, ScanLimits { target: 1000, ..LIMITS });
    for _ in 0..3 {
        pass(&lists, LIMITS, 0);
    }
    assert!((2..=4).contains(&ages(&lists).len()));
}

#[test]
fn aging_finds_what_page_tables_show_as_used() {
    //
    let (machine, lists) = machine();
    bring_all(&lists, 0..100, PageKind::File);
    for key in [3, 50, 99] {
        machine.look(key, |look| look.accessed = 1);
    }
    age(&lists);
    assert_eq!(ages(&lists), [(0, 97), (0, 0), (0, 3), (0, 0)]);
    let scan = run(&lists, ScanLimits { target: 97, ..LIMITS });
    assert_eq!(scan.reclaimed, 97);
    assert!(machine.is_here(3) && machine.is_here(50) && machine.is_here(99));
}

#[test]
fn background_aging_opens_a_generation_only_when_it_is_due() {
    //
    let (_, lists) = machine();
    bring_all(&lists, 0..100, PageKind::Anon);
    let newest = |lists: &Gens| lists.generations(NodeId(0), GroupId::ROOT).unwrap().generations().last().unwrap().seq;
    let mut scan = Scan::new(LIMITS, &PlainContext);
    lists.age(NodeId(0), GroupId::ROOT, &mut scan);
    assert_eq!(newest(&lists), 3, "four generations are enough");
    // Empty generations end; with two left, a new one is due.
    run(&lists, ScanLimits { target: 40, swappiness: Swappiness::AnonOnly, ..LIMITS });
    assert!(newest(&lists) > 3);
}

#[test]
fn pages_used_often_by_descriptor_are_spared_when_such_pages_come_back() {
    //
    let (machine, lists) = machine();
    let use_often = |pfns: &[kmem_gfp::Pfn]| {
        for _ in 0..3 {
            pfns.iter().for_each(|&pfn| lists.mark_accessed(pfn));
        }
    };
    use_often(&bring_all(&lists, 0..100, PageKind::File));
    bring_all(&lists, 1000..1300, PageKind::File);
    assert_eq!(run(&lists, ScanLimits { target: 400, ..LIMITS }).reclaimed, 400, "nothing is known of tiers yet");
    // Those that were used often come back, the others do not.
    for key in bring_all(&lists, 0..100, PageKind::File).iter().zip(0..100).map(|(_, key)| key) {
        let pfn = machine.forget(key).unwrap();
        // SAFETY: the index has forgotten it.
        unsafe { lists.release(pfn) }.unwrap();
    }
    use_often(&bring_all(&lists, 2000..2100, PageKind::File));
    bring_all(&lists, 3000..3100, PageKind::File);
    let scan = run(&lists, ScanLimits { target: 50, ..LIMITS });
    assert!(scan.reclaimed >= 50);
    assert!((2000..2100).all(|key| machine.is_here(key)), "although they are the older ones");
}

#[test]
fn a_recent_refault_remembers_how_the_page_was_used() {
    //
    let (machine, lists) = machine();
    let pfns = bring_all(&lists, 0..100, PageKind::File);
    for _ in 0..6 {
        lists.mark_accessed(pfns[0]);
    }
    run(&lists, ScanLimits { target: 50, ..LIMITS });
    let Slot::Gone(shadow) = machine.slot(0) else { panic!("evicted") };
    assert!(shadow.workingset() && shadow.refs() == 4, "used more often than can be counted");
    bring(&lists, 0, PageKind::File, GroupId::ROOT);
    lists.drain_all();
    assert_eq!(ages(&lists)[1], (0, 1), "workingset: one younger than the oldest");
    // Four generations later the token says nothing.
    let Slot::Gone(_) = machine.slot(1) else { panic!("evicted") };
    (0..4).for_each(|_| age(&lists));
    let before = ages(&lists)[0].1;
    bring(&lists, 1, PageKind::File, GroupId::ROOT);
    lists.drain_all();
    assert_eq!(ages(&lists)[0].1, before + 1);
}

#[test]
fn a_machine_whose_every_page_is_young_thrashes() {
    //
    let (machine, lists) = machine();
    bring_all(&lists, 0..100, PageKind::File);
    machine.state().now_ms = 500;
    assert!(!lists.is_thrashing(NodeId(0), [GroupId::ROOT]), "no minimum is set");
    lists.set_min_ttl_ms(1000);
    assert!(lists.is_thrashing(NodeId(0), [GroupId::ROOT]));
    machine.state().now_ms = 1000;
    assert!(!lists.is_thrashing(NodeId(0), [GroupId::ROOT]));
}

#[test]
fn generations_are_shown_as_debugfs_does() {
    //
    let (machine, lists) = machine();
    bring_all(&lists, 0..3, PageKind::File);
    bring_all(&lists, 3..5, PageKind::Anon);
    machine.state().now_ms = 1234;
    let text = lists.generations(NodeId(0), GroupId::ROOT).unwrap().to_string();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows,
        [["0", "1234", "0", "3"], ["1", "1234", "0", "0"], ["2", "1234", "2", "0"], ["3", "1234", "0", "0"]]
    );
}

#[test]
fn without_swap_only_file_pages_go() {
    //
    let (machine, lists) = machine();
    bring_all(&lists, 0..300, PageKind::Anon);
    bring_all(&lists, 300..600, PageKind::File);
    machine.state().swap_free = 0;
    run(&lists, ScanLimits { target: 250, ..LIMITS });
    assert!((0..300).all(|key| machine.is_here(key)));
    machine.state().swap_free = 1000;
    run(&lists, ScanLimits { target: 100, swappiness: Swappiness::AnonOnly, ..LIMITS });
    assert!((0..300).filter(|&key| !machine.is_here(key)).count() >= 100);
}
