//! Victims: their reserve, their exit, and the reaper.

use std::sync::atomic::Ordering;
use std::vec;

use kmem_gfp::alloc_flags::Reserve;
use kmem_gfp::{Gfp, TaskFlags};

use super::rig::{Machine, Process, pages};
use crate::oom::{NoVictim, OomSource, OomVerdict, Progress};

#[test]
fn a_victim_may_use_half_of_the_min_reserve_unless_it_says_no() {
    // O-12, O-16
    let oom = Machine::with(vec![Process::new(1, 10)]).oom();
    oom.decide(pages(Gfp::KERNEL));
    let task = oom.env.process(1).mark.task_flags();
    assert_eq!(task, TaskFlags::OOM_VICTIM);
    assert_eq!(Reserve::decide(Gfp::KERNEL, task), Reserve::OomVictim);
    assert_eq!(Reserve::decide(Gfp::KERNEL | Gfp::NOMEMALLOC, task), Reserve::None);
}

#[test]
fn an_exit_ends_the_wait_for_a_victim() {
    let oom = Machine::with(vec![Process::new(1, 10)]).oom();
    oom.decide(pages(Gfp::KERNEL));
    assert_eq!(oom.victims().count(), 1);
    let mark = &oom.env.process(1).mark;
    assert!(oom.victims().exit(mark));
    assert!(!oom.victims().exit(mark) && !mark.is_victim());
    assert_eq!(oom.victims().count(), 0);
    assert!(!oom.victims().mark(mark, 0), "it cannot be chosen any more");
    assert_eq!(oom.victims().count(), 0);
    oom.disable();
    assert_eq!(oom.decide(OomSource::SysRq), OomVerdict::NoVictim(NoVictim::Disabled));
}

#[test]
fn the_reaper_comes_after_two_seconds_ten_times_and_then_gives_up() {
    // O-13
    let oom = Machine::with(vec![Process::new(1, 10), Process::new(2, 5)]).oom();
    assert_eq!(oom.reap(), None, "no victims");
    let now = |ms| oom.env.context.now_ms.store(ms, Ordering::Relaxed);
    now(1000);
    oom.decide(pages(Gfp::KERNEL));
    assert_eq!(oom.reap(), Some(3000));
    now(2999);
    assert_eq!((oom.reap(), oom.env.reaped.load(Ordering::Relaxed)), (Some(3000), 0));
    for attempt in 1..10 {
        now(3000 + 100 * (attempt - 1));
        assert_eq!(oom.reap(), Some(3000 + 100 * attempt));
        assert_eq!(oom.env.reaped.load(Ordering::Relaxed), attempt);
        assert_eq!(oom.decide(pages(Gfp::KERNEL)), OomVerdict::Progress(Progress::VictimPending));
    }
    now(3900);
    assert_eq!(oom.reap(), None, "the tenth attempt is the last");
    assert!(oom.env.process(1).mark.is_skipped());
    assert!(matches!(oom.decide(pages(Gfp::KERNEL)), OomVerdict::Progress(Progress::Killed(_))), "others may die");
    assert!(
        oom.env
            .context
            .lines
            .lock()
            .unwrap()
            .iter()
            .any(|line| line == "oom_reaper: unable to reap process 1 (process)")
    );
}

#[test]
fn a_victim_that_was_reaped_is_skipped_at_once() {
    // O-13
    let mut machine = Machine::with(vec![Process::new(1, 10)]);
    machine.reapable = true;
    let oom = machine.oom();
    oom.decide(pages(Gfp::KERNEL));
    oom.env.context.now_ms.store(2000, Ordering::Relaxed);
    assert_eq!(oom.reap(), None);
    let mark = &oom.env.process(1).mark;
    assert!(mark.is_skipped() && mark.is_victim(), "it keeps its reserve until it exits");
    assert_eq!(oom.env.reaped.load(Ordering::Relaxed), 1);
}
