//! A page's way onto the lists and off them again, under both policies.

use std::vec::Vec;

use kmem_gfp::{Gfp, NodeId, OwnerTag, Pfn, ZoneKind};

use super::machine::{LIMITS, Machine, bring, bring_all, lists, run};
use crate::lru::Policy;
use crate::lru::{
    AddError, ClassicPolicy, GenerationsPolicy, Lists, NewPage, OwnerId, PageKind, Refused, Removed, SetupError,
    WriteBack,
};
use crate::{GroupId, PageLists, ScanLimits};

/// Runs a test under both policies.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod classic {
            $(#[test] fn $name() { super::$name::<super::ClassicPolicy>(); })*
        }
        mod generations {
            $(#[test] fn $name() { super::$name::<super::GenerationsPolicy>(); })*
        }
    };
}

both! {
    pages_wait_in_a_batch_until_it_is_full,
    what_is_added_is_counted_and_what_is_removed_is_free,
    a_page_that_cannot_be_added_stays_the_callers,
    reclaim_frees_the_pages_that_nobody_uses,
    dirty_file_pages_are_left_to_the_flusher,
    dirty_anonymous_pages_are_written_to_swap,
    a_page_whose_write_has_ended_goes_first,
    without_io_nothing_is_swapped,
    pages_that_must_stay_are_not_looked_at,
    locked_mappings_make_a_page_unevictable,
    pages_of_zones_that_do_not_help_stay,
    an_isolated_page_is_freed_by_whoever_holds_it,
    a_removed_page_that_is_isolated_cannot_be_removed_again,
    mapped_pages_are_unmapped_first,
    a_page_without_owner_stays,
}

fn small<P: Policy>() -> (&'static Machine, Lists<&'static Machine, P>) {
    let machine = Machine::new(4096, 1, 1);
    (machine, lists(machine, 2))
}

fn pages_wait_in_a_batch_until_it_is_full<P: Policy>() {
    let (_, lists) = small::<P>();
    for key in 0..30 {
        bring(&lists, key, PageKind::File, GroupId::ROOT);
    }
    assert_eq!(lists.counts(NodeId(0), None).inactive_file, 0);
    bring(&lists, 30, PageKind::File, GroupId::ROOT);
    assert_eq!(lists.counts(NodeId(0), None).inactive_file, 31);
    bring(&lists, 31, PageKind::File, GroupId::ROOT);
    lists.drain_local();
    assert_eq!(lists.group_counts(NodeId(0), GroupId::ROOT).inactive_file, 32);
}

fn what_is_added_is_counted_and_what_is_removed_is_free<P: Policy>() {
    let (machine, lists) = small::<P>();
    let pfns = bring_all(&lists, 0..100, PageKind::Anon);
    let counts = lists.counts(NodeId(0), Some(ZoneKind::Normal));
    assert_eq!(counts.inactive_anon + counts.active_anon, 100);
    assert_eq!(lists.counts(NodeId(0), Some(ZoneKind::Dma)), Default::default());
    // One more, still in its batch.
    let last = bring(&lists, 100, PageKind::File, GroupId::ROOT);
    for (key, &pfn) in pfns.iter().chain([&last]).enumerate() {
        assert_eq!(machine.forget(key as u64), Some(pfn));
        assert!(lists.contains(pfn));
        // SAFETY: the index has forgotten it.
        unsafe { lists.release(pfn) }.unwrap();
        assert!(!lists.contains(pfn) && lists.remove(pfn).is_err());
    }
    lists.drain_all();
    assert_eq!(lists.counts(NodeId(0), None), Default::default());
    assert_eq!((machine.nr_free(), machine.nr_owned()), (4096, 0));
    assert_eq!(machine.state().uncharged.get(&0), Some(&101));
}

fn a_page_that_cannot_be_added_stays_the_callers<P: Policy>() {
    let (machine, lists) = small::<P>();
    let page = NewPage::new(OwnerId(5), 1, PageKind::File);
    assert_eq!(lists.add(Pfn(4096), page), Err(AddError::NoWords(Pfn(4096))));
    assert_eq!(
        lists.add(Pfn(7), NewPage { owner: OwnerId(1 << 11), ..page }),
        Err(AddError::BadOwner { owner: 1 << 11, key: 1 })
    );
    assert_eq!(lists.add(Pfn(7), NewPage { key: 1 << 48, ..page }), Err(AddError::BadOwner { owner: 5, key: 1 << 48 }));
    assert_eq!(lists.add(Pfn(7), NewPage { group: GroupId(2), ..page }), Err(AddError::NoLists { group: 2, node: 0 }));
    lists.add(Pfn(7), page).unwrap();
    assert_eq!(lists.add(Pfn(7), page), Err(AddError::Owned { pfn: Pfn(7), tag: OwnerTag::Lru }));
    assert_eq!(lists.remove(Pfn(8)).unwrap_err().0, Pfn(8));
    assert_eq!(lists.remove(Pfn(7)), Ok(Removed::Yours));
    assert_eq!(machine.nr_owned(), 0);
    assert_eq!(Lists::<_, P>::layout(&machine, 0), Err(SetupError::Groups { given: 0, limit: 1 << 20 }));
}

fn reclaim_frees_the_pages_that_nobody_uses<P: Policy>() {
    // the outcome is the number of freed pages; R-10: 32 are enough
    let (machine, lists) = small::<P>();
    bring_all(&lists, 0..1000, PageKind::File);
    let scan = run(&lists, LIMITS);
    assert!((32..64).contains(&scan.reclaimed), "{scan:?}");
    assert_eq!(machine.nr_free() as u64, 4096 - 1000 + scan.reclaimed);
    let gone: Vec<_> = (0..1000).filter(|&key| !machine.is_here(key)).collect();
    assert_eq!(gone, (0..scan.reclaimed).collect::<Vec<_>>(), "the oldest go first");
    assert_eq!(machine.state().uncharged[&0], scan.reclaimed);
    let all = run(&lists, ScanLimits { target: 10_000, ..LIMITS });
    assert_eq!((all.reclaimed + scan.reclaimed, machine.nr_owned()), (1000, 0));
    assert_eq!(lists.counts(NodeId(0), None), Default::default());
}

fn dirty_file_pages_are_left_to_the_flusher<P: Policy>() {
    //
    let (machine, lists) = small::<P>();
    let pfns = bring_all(&lists, 0..64, PageKind::File);
    (0..64).for_each(|key| machine.look(key, |look| look.dirty = true));
    let scan = run(&lists, LIMITS);
    assert_eq!((scan.reclaimed, machine.state().writes.len()), (0, 0));
    assert!(scan.dirty >= 64);
    // The flusher writes them, and they go at once.
    for (key, &pfn) in pfns.iter().enumerate() {
        lists.writeback_started(pfn);
        machine.look(key as u64, |look| look.dirty = false);
        lists.writeback_ended(pfn);
    }
    assert!(run(&lists, LIMITS).reclaimed >= 32);
}

fn dirty_anonymous_pages_are_written_to_swap<P: Policy>() {
    //
    let (machine, lists) = small::<P>();
    bring_all(&lists, 0..64, PageKind::Anon);
    (0..64).for_each(|key| machine.look(key, |look| look.dirty = true));
    lists.age(NodeId(0), GroupId::ROOT, &mut crate::Scan::new(LIMITS, &kmem_gfp::PlainContext));
    let boost = run(&lists, ScanLimits { may_write: false, ..LIMITS });
    assert!(boost.reclaimed == 0 && boost.dirty > 0 && machine.state().writes.is_empty(), "R-08");
    let scan = run(&lists, LIMITS);
    assert!(scan.reclaimed >= 32, "{scan:?}");
    assert_eq!(machine.state().writes.len() as u64, scan.reclaimed);
}

fn a_page_whose_write_has_ended_goes_first<P: Policy>() {
    let (machine, lists) = small::<P>();
    let pfns = bring_all(&lists, 0..64, PageKind::Anon);
    machine.look(63, |look| look.dirty = true);
    machine.state().answers.push(Ok(WriteBack::Started));
    // Everything goes, but for the page that is being written.
    run(&lists, ScanLimits { target: 63, ..LIMITS });
    let left: Vec<_> = (0..64).filter(|&key| machine.is_here(key)).collect();
    assert_eq!(left, [63]);
    let waiting = run(&lists, LIMITS);
    assert_eq!(waiting.reclaimed, 0);
    bring_all(&lists, 100..164, PageKind::Anon);
    lists.writeback_ended(pfns[63]);
    assert!(run(&lists, ScanLimits { target: 1, ..LIMITS }).reclaimed >= 1);
    assert!(!machine.is_here(63));
}

fn without_io_nothing_is_swapped<P: Policy>() {
    // R-16; G05, H07: no scope, no filesystem
    let (machine, lists) = small::<P>();
    bring_all(&lists, 0..64, PageKind::Anon);
    (0..64).for_each(|key| machine.look(key, |look| look.dirty = true));
    let scan = run(&lists, ScanLimits { gfp: Gfp::NOIO, ..LIMITS });
    assert_eq!((scan.reclaimed, machine.state().writes.len()), (0, 0));
    let scan = run(&lists, ScanLimits { gfp: Gfp::NOFS, ..LIMITS });
    assert!(scan.reclaimed > 0, "swap needs no filesystem");
    assert!(machine.state().writes.iter().all(|(_, gfp)| !gfp.contains(Gfp::FS)));
}

fn pages_that_must_stay_are_not_looked_at<P: Policy>() {
    let (machine, lists) = small::<P>();
    let pfns = bring_all(&lists, 0..64, PageKind::File);
    pfns.iter().take(40).for_each(|&pfn| lists.set_unevictable(pfn, true));
    assert_eq!(lists.counts(NodeId(0), None).unevictable, 40);
    run(&lists, ScanLimits { target: 1000, ..LIMITS });
    assert_eq!((0..64).filter(|&key| machine.is_here(key)).count(), 40);
    pfns.iter().take(40).for_each(|&pfn| lists.set_unevictable(pfn, false));
    assert_eq!(lists.counts(NodeId(0), None).unevictable, 0);
    run(&lists, ScanLimits { target: 1000, ..LIMITS });
    assert_eq!(machine.nr_free(), 4096);
}

fn locked_mappings_make_a_page_unevictable<P: Policy>() {
    //
    let (machine, lists) = small::<P>();
    bring_all(&lists, 0..64, PageKind::File);
    machine.look(3, |look| look.locked = true);
    run(&lists, ScanLimits { target: 1000, ..LIMITS });
    assert!(machine.is_here(3) && machine.nr_free() == 4095);
    assert_eq!(lists.counts(NodeId(0), None).unevictable, 1);
}

fn pages_of_zones_that_do_not_help_stay<P: Policy>() {
    let machine = Machine::new(super::machine::NODE_FRAMES, 1, 1);
    let lists: Lists<_, P> = lists(machine, 1);
    // Frames are handed out upwards: the second half lies in the movable zone.
    bring_all(&lists, 0..(1 << 13) + 500, PageKind::File);
    assert_eq!(lists.counts(NodeId(0), Some(ZoneKind::Movable)).inactive_file, 500);
    let scan = run(&lists, ScanLimits { ceiling: ZoneKind::Normal, target: 1 << 20, ..LIMITS });
    assert_eq!(scan.reclaimed, 1 << 13);
    assert_eq!(lists.counts(NodeId(0), Some(ZoneKind::Normal)).inactive_file, 0);
    let scan = run(&lists, ScanLimits { target: 1 << 20, ..LIMITS });
    assert_eq!(scan.reclaimed, 500);
}

fn an_isolated_page_is_freed_by_whoever_holds_it<P: Policy>() {
    let (machine, lists) = small::<P>();
    let pfn = bring(&lists, 1, PageKind::Anon, GroupId::ROOT);
    assert!(lists.isolate(pfn) && !lists.isolate(pfn));
    assert_eq!(lists.counts(NodeId(0), None).isolated_anon, 1);
    machine.forget(1);
    assert_eq!(lists.remove(pfn), Ok(Removed::Later));
    assert_eq!(machine.nr_free(), 4095);
    lists.put_back(pfn);
    assert_eq!((machine.nr_free(), machine.nr_owned()), (4096, 0));
    assert_eq!(lists.counts(NodeId(0), None), Default::default());
    assert_eq!(machine.state().uncharged[&0], 1);
}

fn a_removed_page_that_is_isolated_cannot_be_removed_again<P: Policy>() {
    let (_, lists) = small::<P>();
    let pfn = bring(&lists, 1, PageKind::Anon, GroupId::ROOT);
    assert!(lists.isolate(pfn));
    assert_eq!(lists.remove(pfn), Ok(Removed::Later));
    assert_eq!(lists.remove(pfn).unwrap_err().0, pfn);
}

fn mapped_pages_are_unmapped_first<P: Policy>() {
    let (machine, lists) = small::<P>();
    bring_all(&lists, 0..64, PageKind::File);
    (0..64).for_each(|key| machine.look(key, |look| look.mapped = true));
    assert_eq!(run(&lists, ScanLimits { may_unmap: false, ..LIMITS }).reclaimed, 0);
    let scan = run(&lists, LIMITS);
    assert_eq!(machine.state().unmapped.len() as u64, scan.reclaimed);
    assert!(scan.reclaimed >= 32);
}

fn a_page_without_owner_stays<P: Policy>() {
    let (machine, lists) = small::<P>();
    lists.add(Pfn(9), NewPage::new(OwnerId(6), 0, PageKind::File)).unwrap();
    lists.drain_all();
    assert_eq!(run(&lists, LIMITS).reclaimed, 0);
    assert!(lists.contains(Pfn(9)) && machine.nr_owned() == 1);
    let _ = Refused::Busy;
}
