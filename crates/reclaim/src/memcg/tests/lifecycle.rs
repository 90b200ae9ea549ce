//! Groups that come and go: numbers, charges that outlive them, tables that fill up.

use kmem_gfp::Gfp;

use super::rig::{Call, TestEnv, run_on, table};
use crate::memcg::{GroupError, Memcg, MemcgConfig, Wait};
use crate::{GroupId, Groups};

const ROOT: GroupId = GroupId::ROOT;

#[test]
fn a_table_says_how_much_memory_it_needs() {
    let size = |groups, cpus| Memcg::<TestEnv>::layout(&MemcgConfig::new(groups), cpus).map(|layout| layout.size());
    assert_eq!(size(0, 1), None);
    assert_eq!(size(u32::MAX, 1), None);
    let (small, more_groups, more_cpus) = (size(10, 2).unwrap(), size(20, 2).unwrap(), size(10, 4).unwrap());
    assert_eq!(more_groups - small, 10 * 320, "bytes for a group");
    assert_eq!(more_cpus - small, 2 * 192, "bytes for a CPU");
}

#[test]
fn a_table_is_given_its_memory_once() {
    let memcg = table(1, 4);
    let layout = Memcg::<TestEnv>::layout(&MemcgConfig::new(4), 1).unwrap();
    // SAFETY: the layout has a size.
    let memory = core::ptr::NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
    // SAFETY: just allocated with that layout; the table does not keep it.
    let again = unsafe { memcg.init(memory, MemcgConfig::new(4)) };
    assert_eq!(again, Err(GroupError::AlreadyReady));
    // SAFETY: allocated above.
    unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
    assert_eq!(Memcg::new(TestEnv::new(1)).create(ROOT), Err(GroupError::NotReady));
}

#[test]
fn a_full_table_refuses_and_recovers() {
    let memcg = table(1, 4);
    let groups: std::vec::Vec<_> = (0..3).map(|_| memcg.create(ROOT).unwrap()).collect();
    assert_eq!(memcg.create(ROOT), Err(GroupError::TableFull(4)));
    memcg.remove(groups[1]).unwrap();
    assert_eq!(memcg.create(ROOT), Ok(groups[1]), "the number is free at once: nothing referred to it");
}

#[test]
fn what_cannot_be_removed_stays() {
    let memcg = table(1, 4);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    assert_eq!(memcg.remove(ROOT), Err(GroupError::IsRoot));
    assert_eq!(memcg.remove(a), Err(GroupError::HasChildren(a)));
    memcg.remove(b).unwrap();
    assert_eq!(memcg.remove(b), Err(GroupError::NoSuchGroup(b)));
    assert_eq!(memcg.create(b), Err(GroupError::NoSuchGroup(b)));
    memcg.remove(a).unwrap();
    assert_eq!(memcg.create(GroupId(77)), Err(GroupError::NoSuchGroup(GroupId(77))));
    assert!((1..4).all(|id| memcg.is_free(GroupId(id))), "failed calls kept nothing");
}

#[test]
fn pages_outlive_their_group_and_are_uncharged_at_its_parent() {
    //
    let memcg = table(1, 8);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    let payer = memcg.charge(b, Gfp::KERNEL, 3).unwrap().unwrap();
    memcg.remove(b).unwrap();
    assert!(memcg.env().take_calls().contains(&Call::Reparent(b, a)));
    assert_eq!((memcg.usage(b), memcg.usage(a)), (0, 3), "the stock was drained, the pages are the parent's");
    assert!(!memcg.is_free(b), "a payer names it");
    assert_eq!(memcg.resolve(b), a);
    assert_eq!(memcg.charge(b, Gfp::KERNEL, 1).unwrap().unwrap().group(), a, "a late charge goes to the parent");
    memcg.uncharge(payer, 2);
    assert!(!memcg.is_free(b));
    memcg.uncharge(payer, 1);
    memcg.drain_stocks();
    assert_eq!(memcg.usage(a), 1);
    assert!(memcg.is_free(b), "the last page has gone");
}

#[test]
fn a_chain_of_gone_groups_ends_with_its_last_page() {
    //
    let memcg = table(1, 8);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    let c = memcg.create(b).unwrap();
    let payer = memcg.charge(c, Gfp::KERNEL, 1).unwrap().unwrap();
    for group in [c, b, a] {
        memcg.remove(group).unwrap();
    }
    assert!([a, b, c].iter().all(|&group| !memcg.is_free(group)), "each is named by the next");
    assert_eq!(memcg.resolve(c), ROOT);
    memcg.uncharge(payer, 1);
    assert!([a, b, c].iter().all(|&group| memcg.is_free(group)));
}

#[test]
fn listed_pages_move_to_the_parent_and_are_uncharged_there() {
    let memcg = table(1, 8);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    assert_eq!(memcg.charge_listed(b, Gfp::KERNEL, 5), Ok(b));
    memcg.remove(b).unwrap();
    assert!(memcg.is_free(b), "lists hold no number");
    assert_eq!(memcg.usage(a), 5);
    Groups::uncharge(memcg, a, 5);
    memcg.drain_stocks();
    assert_eq!(memcg.usage(a), 0);
    let again = memcg.create(a).unwrap();
    assert_eq!((again, memcg.usage(again)), (b, 0), "the number's next group begins at zero");
}

#[test]
fn a_number_waits_for_pages_in_somebodys_hands() {
    let memcg = table(1, 3);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    memcg.charge_listed(b, Gfp::KERNEL, 2).unwrap();
    *memcg.env().forgets.lock().unwrap() = false;
    memcg.remove(b).unwrap();
    assert_eq!(memcg.create(ROOT), Err(GroupError::TableFull(3)), "the lists still know the number");
    Groups::uncharge(memcg, b, 2);
    memcg.drain_stocks();
    assert_eq!(memcg.usage(a), 0, "and a page that bears it is uncharged at the parent");
    *memcg.env().forgets.lock().unwrap() = true;
    assert_eq!(memcg.create(ROOT), Ok(b));
}

#[test]
fn a_group_that_goes_takes_its_limits_along() {
    let memcg = table(2, 8);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    memcg.set_max(b, 10, Wait::No).unwrap();
    memcg.set_min(b, 10).unwrap();
    let payer = memcg.charge(b, Gfp::KERNEL, 10).unwrap().unwrap();
    run_on(Some(1));
    memcg.remove(b).unwrap();
    let next = memcg.create(a).unwrap();
    assert_ne!(next, b);
    memcg.set_min(a, 100).unwrap();
    assert_eq!(memcg.protection(ROOT, a).min, 100);
    memcg.charge(next, Gfp::KERNEL, 65).unwrap();
    memcg.set_min(next, 65).unwrap();
    assert_eq!(memcg.protection(ROOT, next).min, 65, "nothing is claimed for the one that went");
    memcg.uncharge(payer, 10);
    memcg.remove(next).unwrap();
}
