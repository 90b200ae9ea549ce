//! Who is chosen.

use std::vec;
use std::vec::Vec;

use kmem_gfp::Gfp;
use proptest::prelude::*;

use super::rig::{Machine, Process, group, pages};
use crate::GroupId;
use crate::oom::{
    Badness, CandidateFlags, CandidateId, Constraint, NoVictim, OomSource, OomVerdict, Progress, badness,
};

fn killed(id: u64) -> OomVerdict {
    OomVerdict::Progress(Progress::Killed(CandidateId(id)))
}

#[test]
fn badness_is_pages_plus_thousandths_of_all() {
    // O-08
    let process = Process::new(1, 100);
    let mut candidate = process.candidate();
    (candidate.swap, candidate.page_tables) = (20, 3);
    let with = |adj, total| {
        let mut candidate = candidate;
        candidate.adj = adj;
        badness(&candidate, total)
    };
    assert_eq!(with(0, 50_000), Badness::Points(123));
    assert_eq!(with(500, 50_000), Badness::Points(123 + 500 * 50));
    assert_eq!(with(-999, 50_999), Badness::Points(123 - 999 * 50), "the division comes first");
    assert_eq!(with(1000, 999), Badness::Points(123), "below 1000 pages the adjustment does nothing");
    assert_eq!(with(-1000, 50_000), Badness::Exempt);
}

#[test]
fn some_are_never_chosen_and_some_always() {
    // O-09
    for flags in [
        CandidateFlags::INIT,
        CandidateFlags::KTHREAD,
        CandidateFlags::NO_ADDRESS_SPACE,
        CandidateFlags::VFORK,
        CandidateFlags::INIT | CandidateFlags::ORIGIN,
    ] {
        assert_eq!(badness(&Process::new(1, 10).flags(flags).candidate(), 1000), Badness::Exempt, "{flags:?}");
    }
    let oom = Machine::with(vec![
        Process::new(1, 90_000).flags(CandidateFlags::INIT),
        Process::new(2, 10).flags(CandidateFlags::ORIGIN),
        Process::new(3, 50_000).adj(1000),
    ])
    .oom();
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), killed(2), "who asked to be first");
}

#[test]
fn the_later_of_two_equals_is_chosen() {
    // O-09
    let oom = Machine::with(vec![Process::new(1, 10), Process::new(2, 10), Process::new(3, 9)]).oom();
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), killed(2));
}

#[test]
fn a_victim_that_has_not_exited_stops_the_scan() {
    // O-10
    let machine = Machine::with(vec![Process::new(1, 10), Process::new(2, 20), Process::new(3, 30)]);
    let oom = machine.oom();
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), killed(3));
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), OomVerdict::Progress(Progress::VictimPending));
    assert_eq!(oom.env.take_killed(), [3]);
    oom.env.process(3).mark.skip();
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), killed(2), "reaped: it is never chosen again, and blocks nobody");
    assert_eq!(oom.decide(OomSource::SysRq), killed(2), "the console does not wait for a victim");
}

#[test]
fn what_badness_is_measured_against_follows_from_the_constraint() {
    // O-11
    // 10 pages with adj 100 against 15 without: 100 * (total / 1000) decides.
    let contest = |constraint, swap, adj, rss| {
        let mut machine = Machine::with(vec![Process::new(1, 10).adj(adj), Process::new(2, rss)]);
        (machine.constraint, machine.swap) = (constraint, swap);
        machine.oom().decide(pages(Gfp::KERNEL))
    };
    // All memory: 100 thousandths a point; with swap 200.
    assert_eq!(contest(Constraint::None, 0, 1, 111), killed(2));
    assert_eq!(contest(Constraint::None, 0, 1, 109), killed(1));
    assert_eq!(contest(Constraint::None, 100_000, 1, 111), killed(1));
    // A cpuset or a policy: the nodes' 10000 pages.
    for constraint in [Constraint::Cpuset, Constraint::MemoryPolicy] {
        assert_eq!(contest(constraint, 0, 1, 21), killed(2));
        assert_eq!(contest(constraint, 0, 1, 19), killed(1));
    }
    // A group: its limit of 5000.
    let of_group = |rss| {
        let processes = vec![Process::new(1, 10).adj(1).group(1), Process::new(2, rss).group(1)];
        Machine::with(processes).oom().decide(group(1, 0))
    };
    assert_eq!([of_group(16), of_group(14)], [killed(2), killed(1)]);
}

#[test]
fn a_groups_oom_looks_at_its_subtree_only() {
    // O-15
    let processes = || vec![Process::new(1, 90), Process::new(2, 5).group(1), Process::new(3, 6).group(2)];
    assert_eq!(Machine::with(processes()).oom().decide(group(1, 3)), killed(3), "the subtree");
    assert_eq!(Machine::with(processes()).oom().decide(group(2, 0)), killed(3));
    let ineligible = OomVerdict::NoVictim(NoVictim::Ineligible);
    assert_eq!(Machine::with(processes()).oom().decide(group(1, 4)), ineligible, "never above order 3");
    assert_eq!(
        Machine::with(vec![Process::new(1, 90)]).oom().decide(group(1, 0)),
        OomVerdict::NoVictim(NoVictim::Nobody),
        "a group without candidates is no reason to stop the machine"
    );
}

#[test]
fn all_that_share_the_victims_memory_die_but_init_and_kernel_threads() {
    // O-12
    let oom = Machine::with(vec![
        Process::new(1, 1).shares(9).flags(CandidateFlags::INIT),
        Process::new(2, 50),
        Process::new(3, 50).shares(9),
        Process::new(4, 70).shares(9),
        Process::new(5, 1).shares(9).flags(CandidateFlags::KTHREAD),
    ])
    .oom();
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), killed(4));
    assert_eq!(oom.env.take_killed(), [4, 3]);
    let mark = &oom.env.process(4).mark;
    assert!(mark.is_victim() && mark.is_skipped(), "init keeps the memory: nobody waits for it");
}

#[test]
fn a_group_that_dies_together_dies_whole() {
    // O-12, A-18
    let mut machine = Machine::with(vec![
        Process::new(1, 10).group(2),
        Process::new(2, 50).group(2),
        Process::new(3, 40).group(2).adj(-1000),
        Process::new(4, 45),
    ]);
    machine.whole_group = Some(GroupId(2));
    let oom = machine.oom();
    assert_eq!(oom.decide(pages(Gfp::KERNEL)), killed(2));
    assert_eq!(oom.env.take_killed(), [2, 1], "but for those that are never killed");
    assert_eq!(*oom.env.events.lock().unwrap(), [(GroupId(2), false), (GroupId(2), true), (GroupId(2), false)]);
    assert_eq!(oom.victims().count(), 2);
}

proptest! {
    #[test]
    fn the_choice_is_the_last_of_the_worst(
        specs in proptest::collection::vec((0u64..2000, -1000i16..=1000, 0u32..64), 1..20),
    ) {
        // O-08, O-09
        let processes: Vec<Process> = specs
            .iter()
            .enumerate()
            .map(|(i, &(rss, adj, flags))| {
                // Rarely a flag.
                let flags = if flags < 6 { 1 << flags } else { 0 };
                Process::new(i as u64 + 1, rss).adj(adj).flags(CandidateFlags::from_bits_truncate(flags))
            })
            .collect();
        let score = |process: &Process| -> Option<i64> {
            let never = CandidateFlags::INIT
                | CandidateFlags::KTHREAD
                | CandidateFlags::NO_ADDRESS_SPACE
                | CandidateFlags::VFORK;
            if process.flags.intersects(never) || process.adj == -1000 {
                return None;
            }
            if process.flags.contains(CandidateFlags::ORIGIN) {
                return Some(i64::MAX);
            }
            Some(process.rss as i64 + i64::from(process.adj) * 100)
        };
        let expected = processes.iter().filter_map(|process| Some((score(process)?, process.id))).max();
        let global = Machine::with(processes).oom().decide(OomSource::SysRq);
        match expected {
            Some((_, id)) => prop_assert_eq!(global, killed(id)),
            None => prop_assert_eq!(global, OomVerdict::NoVictim(NoVictim::Nobody)),
        }
    }
}
