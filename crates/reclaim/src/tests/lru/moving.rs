//! The lists as an owner of movable frames.

use kmem_gfp::{Gfp, MigrateError, MovableOwner, NodeId, Order, PageAllocator, Pfn};

use super::machine::{LIMITS, Machine, bring_all, lists, run};
use crate::lru::{GenerationsPolicy, Lists, PageKind, Removed};
use crate::{PageLists, ScanLimits};

type Gens = Lists<&'static Machine, GenerationsPolicy>;

fn machine() -> (&'static Machine, Gens, Pfn) {
    let machine = Machine::new(64, 1, 1);
    let lists = lists(machine, 1);
    bring_all(&lists, 0..10, PageKind::File);
    let target = machine.alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
    (machine, lists, target)
}

fn free(machine: &Machine, pfn: Pfn) {
    // SAFETY: the caller's.
    unsafe { machine.free_pages(pfn, Order::ZERO) }.unwrap();
}

#[test]
fn a_page_moves_with_its_place_and_its_marks() {
    let (machine, lists, target) = machine();
    let source = machine.pfn(3);
    lists.mark_accessed(source);
    assert!(MovableOwner::isolate(&lists, source));
    assert!(!MovableOwner::isolate(&lists, source), "taken already");
    lists.migrate(source, target).unwrap();
    assert_eq!(machine.pfn(3), target);
    assert!(!lists.contains(source) && lists.contains(target));
    free(machine, source);
    assert_eq!(lists.counts(NodeId(0), None).isolated_file, 0);
    run(&lists, ScanLimits { target: 100, ..LIMITS });
    assert_eq!((machine.nr_free(), machine.nr_owned()), (64, 0));
}

#[test]
fn what_cannot_be_moved_is_put_back() {
    let (machine, lists, target) = machine();
    let source = machine.pfn(3);
    machine.state().pinned.push(3);
    assert!(MovableOwner::isolate(&lists, source));
    assert_eq!(lists.migrate(source, target), Err(MigrateError::Again(source)));
    assert!(!lists.contains(target), "the target is the caller's");
    MovableOwner::put_back(&lists, source);
    free(machine, target);
    machine.state().pinned.clear();
    run(&lists, ScanLimits { target: 100, ..LIMITS });
    assert_eq!((machine.nr_free(), machine.nr_owned()), (64, 0));
}

#[test]
fn a_page_that_was_removed_meanwhile_is_not_moved() {
    let (machine, lists, target) = machine();
    let source = machine.pfn(3);
    assert!(MovableOwner::isolate(&lists, source));
    machine.forget(3);
    assert_eq!(lists.remove(source), Ok(Removed::Later));
    assert_eq!(lists.migrate(source, target), Err(MigrateError::Permanent(source)));
    MovableOwner::put_back(&lists, source);
    free(machine, target);
    assert_eq!(machine.nr_free(), 64 - 9);
}

#[test]
fn frames_of_others_are_left_alone() {
    let (machine, lists, target) = machine();
    assert!(!MovableOwner::isolate(&lists, target) && !MovableOwner::isolate(&lists, Pfn(1 << 40)));
    assert_eq!(lists.migrate(target, machine.pfn(1)), Err(MigrateError::Permanent(target)));
    // A target that is in use.
    let source = machine.pfn(3);
    assert!(MovableOwner::isolate(&lists, source));
    let used = machine.pfn(4);
    assert_eq!(lists.migrate(source, used), Err(MigrateError::Permanent(used)));
    lists.writeback_started(source);
    assert_eq!(lists.migrate(source, target), Err(MigrateError::Again(source)), "being written");
    MovableOwner::put_back(&lists, source);
}
