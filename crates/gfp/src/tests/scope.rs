//! Scopes: tokens, guards, nesting, masks.

use std::vec::Vec;

use proptest::prelude::*;

use super::Task;
use crate::{
    AllocContext, CallerScope, Gfp, NoFsScope, NoIoScope, NoReclaimScope, PinScope, PlainContext, TaskFlags, ZoneKind,
    alloc_flags::{AllocFlags, CpusetEntry, MobilityGrouping, Reserve},
    current_gfp_context,
    scope::{
        ScopeError, memalloc_nofs_restore, memalloc_nofs_save, memalloc_noio_restore, memalloc_noio_save,
        memalloc_noreclaim_restore, memalloc_noreclaim_save, memalloc_pin_restore, memalloc_pin_save, retry_wait_ticks,
    },
    select::{OptionalZones, ZoneTable},
};

#[test]
fn a_scope_sets_one_flag_and_its_end_clears_it() {
    // S-01
    let task = Task::with(TaskFlags::REALTIME);
    {
        let token = memalloc_noio_save(&task);
        assert_eq!(task.task_flags(), TaskFlags::REALTIME | TaskFlags::NOIO);
        assert_eq!(memalloc_noio_restore(&task, token), Ok(()));
        let token = memalloc_nofs_save(&task);
        assert_eq!(task.task_flags(), TaskFlags::REALTIME | TaskFlags::NOFS);
        assert_eq!(memalloc_nofs_restore(&task, token), Ok(()));
        let token = memalloc_noreclaim_save(&task);
        assert_eq!(task.task_flags(), TaskFlags::REALTIME | TaskFlags::MEMALLOC);
        assert_eq!(memalloc_noreclaim_restore(&task, token), Ok(()));
        let token = memalloc_pin_save(&task);
        assert_eq!(task.task_flags(), TaskFlags::REALTIME | TaskFlags::PIN);
        assert_eq!(memalloc_pin_restore(&task, token), Ok(()));
    }
    assert_eq!(task.task_flags(), TaskFlags::REALTIME);
}

#[test]
fn an_inner_scope_ends_without_effect() {
    // S-02
    let task = Task::default();
    let outer = NoIoScope::enter(&task);
    NoIoScope::run(&task, || assert_eq!(task.task_flags(), TaskFlags::NOIO));
    assert_eq!(task.task_flags(), TaskFlags::NOIO, "the outermost scope clears, no other");
    drop(outer);
    assert_eq!(task.task_flags(), TaskFlags::empty());
    assert!(task.reports.take().is_empty());
}

#[test]
fn an_outer_scope_closed_first_is_reported() {
    // S-02
    let task = Task::default();
    let outer = memalloc_nofs_save(&task);
    let inner = memalloc_nofs_save(&task);
    assert_eq!(memalloc_nofs_restore(&task, outer), Ok(()));
    assert_eq!(memalloc_nofs_restore(&task, inner), Err(ScopeError { scope: "nofs" }));

    let outer = PinScope::enter(&task);
    let inner = PinScope::enter(&task);
    drop(outer);
    drop(inner);
    assert_eq!(task.reports.take(), ["kmem: the pin scope was closed from outside while this one was open"]);
}

#[test]
fn noio_takes_io_and_fs_and_decides_when_both_are_open() {
    // S-03
    let masked = |task| current_gfp_context(Gfp::KERNEL | Gfp::ZERO, task);
    assert_eq!(masked(TaskFlags::NOIO), Gfp::NOIO | Gfp::ZERO);
    assert_eq!(masked(TaskFlags::NOFS), Gfp::NOFS | Gfp::ZERO);
    assert_eq!(masked(TaskFlags::NOIO | TaskFlags::NOFS), Gfp::NOIO | Gfp::ZERO);
    assert_eq!(masked(TaskFlags::empty()), Gfp::KERNEL | Gfp::ZERO);
    let unknown = Gfp::from_bits_retain(1 << 31);
    assert_eq!(current_gfp_context(Gfp::FS | unknown, TaskFlags::NOFS), unknown, "nothing else is touched");
}

#[test]
fn pin_takes_movable_and_so_the_movable_zone_and_contiguous_areas() {
    // S-04
    let gfp = current_gfp_context(Gfp::HIGHUSER_MOVABLE, TaskFlags::PIN);
    assert_eq!(gfp, Gfp::HIGHUSER);
    let table = ZoneTable::new(OptionalZones::DMA32);
    let selection = table.select(gfp, MobilityGrouping::Enabled).unwrap();
    assert_eq!(selection.ceiling, ZoneKind::Normal);
    let flags = AllocFlags::fast_path(gfp, selection.migrate_type, CpusetEntry::Off, AllocFlags::empty());
    assert!(!flags.contains(AllocFlags::CMA));
}

#[test]
fn noreclaim_changes_no_flag_but_opens_the_reserves() {
    // S-05
    let task = Task::default();
    let _scope = NoReclaimScope::enter(&task);
    assert_eq!(current_gfp_context(Gfp::KERNEL, task.task_flags()), Gfp::KERNEL);
    assert_eq!(Reserve::decide(Gfp::KERNEL, task.task_flags()), Reserve::Everything);
    assert_eq!(Reserve::decide(Gfp::KERNEL | Gfp::NOMEMALLOC, task.task_flags()), Reserve::None);
}

#[test]
fn noreclaim_counts_in_softirq_but_not_in_hard_interrupts() {
    // S-06
    let decide = |interrupt| Reserve::decide(Gfp::ATOMIC, TaskFlags::MEMALLOC | interrupt);
    assert_eq!(decide(TaskFlags::IN_SOFTIRQ), Reserve::Everything);
    assert_eq!(decide(TaskFlags::IN_IRQ), Reserve::None);
    assert_eq!(decide(TaskFlags::IN_NMI), Reserve::None);
    assert_eq!(decide(TaskFlags::IN_SOFTIRQ | TaskFlags::IN_IRQ), Reserve::None);
}

#[test]
fn code_that_tests_flags_has_to_apply_the_masks_itself() {
    // S-07
    let task = Task::default();
    NoFsScope::run(&task, || {
        let asked = Gfp::KERNEL;
        assert!(asked.contains(Gfp::FS), "the request as written still says FS");
        assert!(!current_gfp_context(asked, task.task_flags()).contains(Gfp::FS));
    });
}

#[test]
fn a_retry_loop_waits_less_after_an_allocation_that_waited() {
    // S-08
    let ticks = |gfp| retry_wait_ticks(gfp, TaskFlags::empty(), 1000);
    assert_eq!(ticks(Gfp::KERNEL), 1);
    assert_eq!(ticks(Gfp::KERNEL | Gfp::NORETRY), 20);
    assert_eq!(ticks(Gfp::NOWAIT), 20);
    assert_eq!(retry_wait_ticks(Gfp::KERNEL, TaskFlags::NOIO, 250), 1);
    assert_eq!(retry_wait_ticks(Gfp::NOWAIT, TaskFlags::NOIO, 250), 5);
}

#[test]
fn one_scope_protects_everything_below_it() {
    // S-10
    fn deep_helper(task: &Task) -> Gfp {
        current_gfp_context(Gfp::KERNEL, task.task_flags())
    }
    let task = Task::default();
    let scope = NoFsScope::enter(&task);
    assert_eq!(deep_helper(&task), Gfp::NOFS);
    drop(scope);
    assert_eq!(deep_helper(&task), Gfp::KERNEL);
}

#[test]
fn a_callers_missing_bits_become_a_scope() {
    // S-11
    let inside = |gfp| {
        let task = Task::default();
        let _scope = CallerScope::enter(&task, gfp);
        task.task_flags()
    };
    assert_eq!(inside(Gfp::KERNEL), TaskFlags::empty());
    assert_eq!(inside(Gfp::NOFS), TaskFlags::NOFS);
    assert_eq!(inside(Gfp::NOIO), TaskFlags::NOIO);
    assert_eq!(inside(Gfp::ATOMIC), TaskFlags::NOIO);
    assert_eq!(inside(Gfp::KERNEL.difference(Gfp::IO)), TaskFlags::NOIO);
}

#[test]
fn a_context_without_scopes_takes_scopes_all_the_same() {
    let outer = NoIoScope::enter(&PlainContext);
    NoIoScope::run(&PlainContext, || ());
    drop(outer);
    let context: &dyn AllocContext = &PlainContext;
    drop(NoFsScope::enter(context));
}

/// Opens the scopes of `kinds` one in another, checks the effective flags at each depth, closes them from the inside.
fn nest(task: &Task, kinds: &[u8], allowed: Gfp) {
    let gfp = Gfp::HIGHUSER_MOVABLE;
    assert_eq!(current_gfp_context(gfp, task.task_flags()), gfp & allowed);
    let before = task.task_flags();
    let Some((kind, inner)) = kinds.split_first() else { return };
    match kind {
        0 => NoIoScope::run(task, || nest(task, inner, allowed.difference(Gfp::IO | Gfp::FS))),
        1 => NoFsScope::run(task, || nest(task, inner, allowed.difference(Gfp::FS))),
        2 => NoReclaimScope::run(task, || nest(task, inner, allowed)),
        _ => PinScope::run(task, || nest(task, inner, allowed.difference(Gfp::MOVABLE))),
    }
    assert_eq!(task.task_flags(), before);
}

proptest! {
    // I-08, S-02: any nesting ends where it began, and inside holds the intersection of all open scopes.
    #[test]
    fn scopes_nest(kinds in proptest::collection::vec(0_u8..4, 0..12), initial in 0_u32..16) {
        let task = Task::with(TaskFlags::from_bits_retain(initial & !0xf) | TaskFlags::KTHREAD);
        nest(&task, &kinds, Gfp::all());
        prop_assert_eq!(task.task_flags(), TaskFlags::KTHREAD);
        prop_assert_eq!(task.reports.take(), Vec::<std::string::String>::new());
    }
}

#[test]
fn sequences_of_scopes_leave_nothing_behind() {
    let task = Task::default();
    nest(&task, &[0; 40], Gfp::all());
    nest(&task, &[3, 2, 1, 0, 1, 2, 3], Gfp::all());
    assert_eq!(task.task_flags(), TaskFlags::empty());
}
