//! Owners that refuse: whatever is refused stays, and nothing is lost.

use kmem_gfp::NodeId;

use super::machine::{LIMITS, Machine, bring_all, lists, run};
use crate::lru::{ClassicPolicy, GenerationsPolicy, Lists, PageKind, Policy, Refused};
use crate::{PageLists, ScanLimits};

fn whole(lists: &Lists<&'static Machine, impl Policy>) -> u64 {
    let counts = lists.counts(NodeId(0), None);
    assert_eq!((counts.isolated_anon, counts.isolated_file), (0, 0));
    counts.inactive_anon + counts.active_anon + counts.inactive_file + counts.active_file + counts.unevictable
}

/// Refuses the n-th call to the owner and all behind it, for every n.
fn nothing_is_lost_wherever_owners_begin_to_refuse<P: Policy>() {
    for n in 0..60 {
        let machine = Machine::new(256, 1, 1);
        let lists: Lists<_, P> = lists(machine, 1);
        bring_all(&lists, 0..20, PageKind::Anon);
        bring_all(&lists, 20..40, PageKind::File);
        for key in 0..40 {
            machine.look(key, |look| (look.mapped, look.dirty) = (key % 3 == 0, key % 2 == 0 && key < 20));
        }
        machine.state().refuse_in = n;
        let before = run(&lists, ScanLimits { target: 40, ..LIMITS }).reclaimed;
        assert_eq!(whole(&lists) + before, 40, "refused from call {n} on");
        assert_eq!(machine.nr_free() as u64, 256 - 40 + before);
        machine.state().refuse_in = -1;
        let mut after = before;
        for _ in 0..4 {
            after += run(&lists, ScanLimits { target: 40, ..LIMITS }).reclaimed;
        }
        assert_eq!((after, machine.nr_free(), machine.nr_owned()), (40, 256, 0), "refused from call {n} on");
    }
}

fn a_write_that_fails_keeps_the_page_in_use<P: Policy>() {
    let machine = Machine::new(256, 1, 1);
    let lists: Lists<_, P> = lists(machine, 1);
    bring_all(&lists, 0..20, PageKind::Anon);
    (0..20).for_each(|key| machine.look(key, |look| look.dirty = true));
    machine.state().answers = (0..200).map(|_| Err(Refused::Unwritable)).collect();
    let scan = run(&lists, ScanLimits { target: 20, ..LIMITS });
    assert_eq!((scan.reclaimed, whole(&lists)), (0, 20));
    machine.state().answers.clear();
    let mut freed = 0;
    for _ in 0..4 {
        freed += run(&lists, ScanLimits { target: 20, ..LIMITS }).reclaimed;
    }
    assert_eq!(freed, 20);
}

#[test]
fn classic_lists_lose_nothing() {
    nothing_is_lost_wherever_owners_begin_to_refuse::<ClassicPolicy>();
    a_write_that_fails_keeps_the_page_in_use::<ClassicPolicy>();
}

#[test]
fn generations_lose_nothing() {
    nothing_is_lost_wherever_owners_begin_to_refuse::<GenerationsPolicy>();
    a_write_that_fails_keeps_the_page_in_use::<GenerationsPolicy>();
}
