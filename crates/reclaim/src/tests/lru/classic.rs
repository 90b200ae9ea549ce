//! The classic lists: activation, deactivation, shadows.

use kmem_gfp::NodeId;

use super::machine::{LIMITS, Machine, Slot, bring, bring_all, lists, pass, run};
use crate::lru::{ClassicPolicy, Lists, PageKind};
use crate::{GroupId, ListCounts, PageLists, ScanLimits, Swappiness};

type Classic = Lists<&'static Machine, ClassicPolicy>;

fn machine() -> (&'static Machine, Classic) {
    let machine = Machine::new(4096, 1, 1);
    (machine, lists(machine, 1))
}

fn counts(lists: &Classic) -> ListCounts {
    lists.counts(NodeId(0), None)
}

#[test]
fn accesses_lead_from_inactive_to_active() {
    //
    let (_, lists) = machine();
    let pfns = bring_all(&lists, 0..2, PageKind::File);
    assert_eq!(counts(&lists).inactive_file, 2);
    lists.mark_accessed(pfns[0]);
    lists.drain_all();
    assert_eq!(counts(&lists).active_file, 0, "referenced, still inactive");
    lists.mark_accessed(pfns[0]);
    lists.drain_all();
    assert_eq!((counts(&lists).active_file, counts(&lists).inactive_file), (1, 1));
    lists.activate(pfns[1]);
    assert_eq!(counts(&lists).active_file, 2);
    lists.deactivate(pfns[0]);
    assert_eq!((counts(&lists).active_file, counts(&lists).inactive_file), (1, 1));
}

#[test]
fn a_mapped_page_needs_two_accesses_and_an_executable_one() {
    //
    let (machine, lists) = machine();
    bring_all(&lists, 0..4, PageKind::File);
    machine.look(0, |look| look.accessed = 1);
    machine.look(1, |look| look.accessed = 2);
    machine.look(2, |look| (look.accessed, look.executable) = (1, true));
    let scan = pass(&lists, LIMITS, 0);
    assert_eq!((scan.reclaimed, machine.is_here(3)), (1, false));
    assert_eq!((counts(&lists).inactive_file, counts(&lists).active_file), (1, 2));
    // Flagged by the first look; accessed again.
    machine.look(0, |look| look.accessed = 1);
    pass(&lists, LIMITS, 0);
    assert!(machine.is_here(0) && counts(&lists).active_file > 0);
}

#[test]
fn a_flagged_file_page_is_reclaimed_only_if_it_is_clean() {
    //
    let (machine, lists) = machine();
    let pfns = bring_all(&lists, 0..2, PageKind::File);
    pfns.iter().for_each(|&pfn| lists.mark_accessed(pfn));
    machine.look(0, |look| look.dirty = true);
    let scan = pass(&lists, LIMITS, 0);
    assert_eq!((scan.reclaimed, scan.dirty, machine.is_here(0), machine.is_here(1)), (1, 0, true, false));
}

#[test]
fn active_pages_are_deactivated_when_too_few_are_inactive() {
    //
    let (_, lists) = machine();
    let pfns = bring_all(&lists, 0..100, PageKind::File);
    pfns.iter().take(80).for_each(|&pfn| lists.activate(pfn));
    let scan = pass(&lists, ScanLimits { target: 1, ..LIMITS }, 0);
    assert!(counts(&lists).active_file < 80 && !scan.spared_active);
}

#[test]
fn active_pages_are_spared_while_enough_are_inactive_unless_forced() {
    let (machine, lists) = machine();
    let pfns = bring_all(&lists, 0..100, PageKind::File);
    pfns.iter().take(20).for_each(|&pfn| lists.activate(pfn));
    machine.state().pinned = (0..100).collect();
    let mut scan = pass(&lists, ScanLimits { target: 1, ..LIMITS }, 0);
    assert!(scan.spared_active && counts(&lists).active_file == 20);
    scan.force_deactivate = true;
    lists.shrink(NodeId(0), GroupId::ROOT, Default::default(), &mut scan);
    assert_eq!(counts(&lists).active_file, 0, "R-12");
}

#[test]
fn a_page_that_comes_back_in_time_starts_active() {
    //
    let (machine, lists) = machine();
    let pfns = bring_all(&lists, 0..200, PageKind::File);
    pfns.iter().skip(150).for_each(|&pfn| lists.activate(pfn));
    run(&lists, LIMITS);
    let gone = (0..150).rev().find(|&key| !machine.is_here(key)).unwrap();
    assert!(matches!(machine.slot(gone), Slot::Gone(_)));
    let active = counts(&lists).active_file;
    bring(&lists, gone, PageKind::File, GroupId::ROOT);
    lists.drain_all();
    assert_eq!(counts(&lists).active_file, active + 1, "fewer evictions since than active pages");
    // Much later another does not.
    bring_all(&lists, 1000..3000, PageKind::File);
    run(&lists, ScanLimits { target: 1500, ..LIMITS });
    let active = counts(&lists).active_file;
    let late = (0..150).find(|&key| matches!(machine.slot(key), Slot::Gone(_))).unwrap();
    bring(&lists, late, PageKind::File, GroupId::ROOT);
    lists.drain_all();
    assert_eq!(counts(&lists).active_file, active);
}

#[test]
fn swappiness_and_the_state_of_swap_choose_the_kind() {
    //
    let reclaimed = |change: &dyn Fn(&Machine), limits: ScanLimits| {
        let (machine, lists) = machine();
        bring_all(&lists, 0..500, PageKind::Anon);
        bring_all(&lists, 500..1000, PageKind::File);
        change(machine);
        run(&lists, limits);
        let gone = |keys: core::ops::Range<u64>| keys.filter(|&key| !machine.is_here(key)).count();
        (gone(0..500), gone(500..1000))
    };
    let (anon, file) = reclaimed(&|machine| machine.state().swap_free = 0, LIMITS);
    assert!(anon == 0 && file >= 32);
    let (anon, file) = reclaimed(&|_| (), ScanLimits { may_swap: false, ..LIMITS });
    assert!(anon == 0 && file >= 32);
    let (anon, file) = reclaimed(&|_| (), ScanLimits { swappiness: Swappiness::AnonOnly, ..LIMITS });
    assert!(anon >= 32 && file == 0);
    let (anon, file) = reclaimed(&|machine| machine.state().swappiness = Some(0), LIMITS);
    assert!(anon == 0 && file >= 32);
    let (anon, file) = reclaimed(&|machine| machine.state().shortfall = 10_000, LIMITS);
    assert!(anon >= 32 && file == 0, "file is tiny");
}

#[test]
fn lists_of_a_group_that_has_gone_are_scanned_to_the_end() {
    //
    let (machine, lists) = machine();
    bring_all(&lists, 0..20, PageKind::File);
    machine.state().swap_free = 0;
    assert_eq!(pass(&lists, LIMITS, 12).scanned, 0);
    machine.state().offline.push(0);
    assert_eq!(pass(&lists, LIMITS, 12).reclaimed, 20);
}
