//! The order of the decision, notifiers, panic policy, and the report.

use std::sync::atomic::{AtomicU64, Ordering};
use std::vec;

use kmem_gfp::verdict::OomEligibility;
use kmem_gfp::{Gfp, OomOutcome, Order, TaskFlags, ZoneKind};

use super::rig::{Machine, Process, group, pages, request};
use crate::OomKiller;
use crate::oom::{
    CandidateFlags, CandidateId, Constraint, NoVictim, OomNotifier, OomSource, OomVerdict, PanicPolicy, PanicReason,
    Progress,
};

const INELIGIBLE: OomVerdict = OomVerdict::NoVictim(NoVictim::Ineligible);

fn two() -> Machine {
    Machine::with(vec![Process::new(1, 10), Process::new(2, 20)])
}

fn killed(id: u64) -> OomVerdict {
    OomVerdict::Progress(Progress::Killed(CandidateId(id)))
}

#[test]
fn while_somebody_else_kills_there_is_progress_and_nothing_happens() {
    // O-01
    let oom = two().oom();
    assert!(oom.try_turn());
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), OomVerdict::Progress(Progress::Busy));
    assert!(oom.env.take_killed().is_empty());
    oom.end_turn();
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), killed(2));
}

#[test]
fn a_last_look_with_the_turn_held_may_end_the_step() {
    // O-02
    let oom = two().oom();
    let verdict = oom.decide_after(pages(Gfp::KERNEL), || {
        assert!(!oom.try_turn(), "the turn is held");
        true
    });
    assert_eq!(verdict, OomVerdict::Progress(Progress::Found));
    assert!(oom.env.take_killed().is_empty() && oom.try_turn());
}

#[test]
fn requests_that_may_not_kill_do_not() {
    // O-03
    let source = |gfp, order| OomSource::Allocation(request(gfp, order));
    assert_eq!(two().oom().decide(source(Gfp::KERNEL, 4)), INELIGIBLE);
    assert_eq!(two().oom().decide(source(Gfp::KERNEL | Gfp::RETRY_MAYFAIL, 0)), INELIGIBLE);
    assert_eq!(two().oom().decide(source(Gfp::KERNEL | Gfp::THISNODE, 0)), INELIGIBLE);
    for ceiling in [ZoneKind::Dma, ZoneKind::Dma32] {
        let low = kmem_gfp::ReclaimRequest { ceiling, ..request(Gfp::KERNEL, 0) };
        assert_eq!(two().oom().decide(OomSource::Allocation(low)), INELIGIBLE);
    }
    let mut suspended = two();
    suspended.suspended = true;
    assert_eq!(suspended.oom().decide(pages(Gfp::KERNEL)), INELIGIBLE);
    let mut dumping = Machine::with(vec![Process::new(1, 10).flags(CandidateFlags::DUMPING_CORE)]);
    dumping.current = Some(1);
    assert_eq!(dumping.oom().decide(pages(Gfp::KERNEL)), INELIGIBLE);
}

#[test]
fn the_page_allocators_rules_agree_about_who_never_gets_here() {
    // O-03, O-04, O-05
    let of = |gfp, order| OomEligibility::of(gfp, Order::new(order).unwrap(), ZoneKind::Normal, true);
    assert_eq!(of(Gfp::KERNEL, 0), OomEligibility::Kill);
    assert_eq!(of(Gfp::NOFS, 0), OomEligibility::PretendProgress);
    for (gfp, order) in [
        (Gfp::NOWAIT, 0),
        (Gfp::ATOMIC, 0),
        (Gfp::KERNEL | Gfp::NORETRY, 0),
        (Gfp::KERNEL, 4),
        (Gfp::KERNEL | Gfp::RETRY_MAYFAIL, 0),
    ] {
        let verdict = of(gfp, order);
        assert!(
            !matches!(verdict, OomEligibility::Kill | OomEligibility::PretendProgress),
            "{gfp} of order {order}: {verdict:?}"
        );
    }
}

#[test]
fn a_request_without_fs_makes_progress_without_a_kill_but_a_groups_oom_kills() {
    // O-05
    let oom = two().oom();
    assert_eq!(oom.decide(pages(Gfp::NOFS)), OomVerdict::Progress(Progress::NoFilesystem));
    assert!(oom.env.take_killed().is_empty());
    let machine = Machine::with(vec![Process::new(1, 10).group(1)]).oom();
    let nofs = OomSource::Group { group: crate::GroupId(1), gfp: Gfp::NOFS, order: Order::ZERO };
    assert_eq!(machine.decide(nofs), killed(1));
}

#[test]
fn decisions_come_in_order() {
    // O-06
    let mut machine = two();
    machine.current = Some(1);
    machine.processes[0].flags = CandidateFlags::DYING;
    let oom = machine.oom();
    oom.set_panic_policy(PanicPolicy::Always);
    let freed = AtomicU64::new(3);
    let free = || freed.swap(0, Ordering::Relaxed);
    let notifier = OomNotifier::new(&free);
    // SAFETY: the notifier stays where it is until it is unregistered below.
    unsafe { oom.register(&notifier) };
    oom.disable();
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), OomVerdict::NoVictim(NoVictim::Disabled), "first: disabled");
    oom.enable();
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), OomVerdict::Progress(Progress::Notified(3)), "second: notifiers");
    assert_eq!(oom.decide(pages(Gfp::NOFS)), OomVerdict::Progress(Progress::CallerDying), "third: a dying caller");
    assert!(oom.env.process(1).mark.task_flags().contains(TaskFlags::OOM_VICTIM), "which gets the reserve");
    assert!(oom.env.take_killed().is_empty());
    oom.victims().exit(&oom.env.process(1).mark);
    assert!(oom.unregister(&notifier));
    assert!(!oom.unregister(&notifier), "once");
}

#[test]
fn notifiers_come_and_go_in_any_order() {
    // O-06
    let oom = two().oom();
    let asked = [const { AtomicU64::new(0) }; 3];
    let frees = [0, 1, 2].map(|i| {
        let asked = &asked;
        move || {
            asked[i].fetch_add(1, Ordering::Relaxed);
            0
        }
    });
    let notifiers = [OomNotifier::new(&frees[0]), OomNotifier::new(&frees[1]), OomNotifier::new(&frees[2])];
    for notifier in &notifiers {
        // SAFETY: they stay where they are until they are unregistered below.
        unsafe { oom.register(notifier) };
    }
    assert!(oom.unregister(&notifiers[1]));
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), killed(2), "nobody freed anything");
    assert_eq!(asked.each_ref().map(|count| count.load(Ordering::Relaxed)), [1, 0, 1]);
    oom.decide(group(1, 0));
    assert_eq!(asked.each_ref().map(|count| count.load(Ordering::Relaxed)), [1, 0, 1], "not for a group");
    assert!(oom.unregister(&notifiers[2]) && oom.unregister(&notifiers[0]));
}

#[test]
fn the_allocating_task_can_be_the_one_to_go() {
    // O-06
    let with = |adj| {
        let mut machine = two();
        machine.current = Some(1);
        machine.processes[0].adj = adj;
        let oom = machine.oom();
        oom.set_kill_allocating_task(true);
        oom.decide(pages(Gfp::KERNEL))
    };
    assert_eq!(with(0), killed(1));
    assert_eq!(with(-1000), killed(2), "unless it is never killed");
}

#[test]
fn nobody_to_kill_is_a_panic_for_the_machine_and_a_failure_else() {
    // O-06, O-07
    let empty = || Machine::with(vec![Process::new(1, 5).flags(CandidateFlags::INIT)]).oom();
    assert_eq!(empty().decide(pages(Gfp::KERNEL)), OomVerdict::Panic(PanicReason::Nobody));
    assert_eq!(empty().decide(OomSource::SysRq), OomVerdict::NoVictim(NoVictim::Nobody));
    let oom = empty();
    let context = &oom.env.context;
    assert_eq!(OomKiller::out_of_memory(&oom, context, &request(Gfp::KERNEL, 0)), OomOutcome::NoVictim);
    assert_eq!(*oom.env.panics.lock().unwrap(), [PanicReason::Nobody], "the platform carries it out");
    let oom = two().oom();
    let context = &oom.env.context;
    assert_eq!(OomKiller::out_of_memory(&oom, context, &request(Gfp::KERNEL, 0)), OomOutcome::Progress);
}

#[test]
fn the_panic_policy_depends_on_the_constraint() {
    // O-14
    let decide = |policy, constraint, source| {
        let mut machine = Machine::with(vec![Process::new(1, 10).group(1)]);
        machine.constraint = constraint;
        let oom = machine.oom();
        oom.set_panic_policy(policy);
        matches!(oom.decide(source), OomVerdict::Panic(PanicReason::Policy(_)))
    };
    let all = pages(Gfp::KERNEL);
    let table = [
        (PanicPolicy::Never, Constraint::None, all, false),
        (PanicPolicy::Unconstrained, Constraint::None, all, true),
        (PanicPolicy::Unconstrained, Constraint::Cpuset, all, false),
        (PanicPolicy::Unconstrained, Constraint::MemoryPolicy, all, false),
        (PanicPolicy::Unconstrained, Constraint::None, group(1, 0), false),
        (PanicPolicy::Always, Constraint::Cpuset, all, true),
        (PanicPolicy::Always, Constraint::None, group(1, 0), true),
        (PanicPolicy::Always, Constraint::None, OomSource::SysRq, false),
    ];
    for (policy, constraint, source, expected) in table {
        assert_eq!(decide(policy, constraint, source), expected, "{policy:?} {constraint:?} {source:?}");
    }
}

#[test]
fn the_report_tells_who_asked_what_memory_looks_like_and_who_dies() {
    let mut machine = two();
    machine.current = Some(1);
    machine.processes[1].adj = 7;
    let oom = machine.oom();
    oom.decide(pages(Gfp::KERNEL));
    let lines = oom.env.context.lines.lock().unwrap().join("\n");
    let expected = [
        &*std::format!(
            "process invoked oom-killer: gfp_mask={:#x}(GFP_KERNEL), order=0, oom_score_adj=0",
            Gfp::KERNEL.bits()
        ),
        "Mem-Info: 100000 pages",
        "Tasks state (memory values in pages):",
        "[     id]       rss  swapents  pgtables oom_score_adj name",
        "[      1]        10         0         0             0 process",
        "[      2]        20         0         0             7 process",
        "Out of memory: Killed process 2 (process) CONSTRAINT_NONE rss:80kB swap:0kB pgtables:0kB oom_score_adj:7",
    ]
    .join("\n");
    assert_eq!(lines, expected);
}

#[test]
fn ten_reports_in_five_seconds_are_enough() {
    let oom = two().oom();
    oom.set_panic_policy(PanicPolicy::Always);
    let count = || oom.env.context.lines.lock().unwrap().iter().filter(|line| line.contains("gfp_mask")).count();
    for _ in 0..15 {
        oom.decide(pages(Gfp::KERNEL));
    }
    assert_eq!(count(), 10);
    oom.env.context.now_ms.store(5000, Ordering::Relaxed);
    oom.decide(pages(Gfp::KERNEL));
    assert_eq!(count(), 11);
    assert!(oom.env.context.lines.lock().unwrap().iter().any(|line| line == "oom-killer: 5 reports suppressed"));
}
