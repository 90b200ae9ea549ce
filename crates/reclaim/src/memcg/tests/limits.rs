//! memory.max, memory.high and what they make happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kmem_gfp::{Gfp, OomOutcome, TaskFlags};

use super::rig::{Call, Table, table, task};
use crate::GroupId;
use crate::memcg::{Event, Events, GroupError, PAGES_MAX, Wait, throttle_ticks};

const ROOT: GroupId = GroupId::ROOT;

fn full(memcg: Table, pages: u64) -> GroupId {
    let g = memcg.create(ROOT).unwrap();
    memcg.charge_listed(g, Gfp::KERNEL, pages).unwrap();
    memcg.drain_stocks();
    memcg.env().take_calls();
    g
}

/// What a run of reclaim does with the pages that it freed.
fn reclaimed(memcg: Table, group: GroupId, pages: u64) -> u64 {
    task(TaskFlags::MEMALLOC);
    memcg.uncharge_listed(group, pages);
    task(TaskFlags::empty());
    pages
}

#[test]
fn the_root_has_no_limits() {
    let memcg = table(1, 4);
    assert_eq!(memcg.set_max(ROOT, 1, Wait::No), Err(GroupError::IsRoot));
    assert_eq!(memcg.set_high(ROOT, 1, Wait::No), Err(GroupError::IsRoot));
    assert_eq!(memcg.set_min(ROOT, 1), Err(GroupError::IsRoot));
    assert_eq!(memcg.set_low(GroupId(2), 1), Err(GroupError::NoSuchGroup(GroupId(2))));
    assert_eq!((memcg.max(ROOT), memcg.high(ROOT)), (PAGES_MAX, PAGES_MAX));
}

#[test]
fn a_lower_max_reclaims_until_the_usage_fits() {
    //
    let memcg = table(1, 4);
    let g = full(memcg, 100);
    let left = AtomicU64::new(100);
    memcg.env().on_reclaim(move |group, pages| {
        let freed = pages.min(30).min(left.load(Ordering::Relaxed));
        left.fetch_sub(freed, Ordering::Relaxed);
        reclaimed(memcg, group, freed)
    });
    let change = memcg.set_max(g, 20, Wait::MayBlock).unwrap();
    assert!(change.fits());
    assert!(memcg.usage(g) <= 20);
    assert!(!memcg.env().take_calls().iter().any(|call| matches!(call, Call::Oom(..))));
}

#[test]
fn a_max_that_reclaim_cannot_reach_kills_until_nothing_is_killable() {
    //
    let memcg = table(1, 4);
    let g = full(memcg, 100);
    let kills = Arc::new(AtomicU64::new(0));
    let counted = kills.clone();
    memcg.env().on_oom(move |group| {
        if counted.fetch_add(1, Ordering::Relaxed) < 3 {
            memcg.uncharge_listed(group, 20);
            return OomOutcome::Progress;
        }
        OomOutcome::NoVictim
    });
    let change = memcg.set_max(g, 10, Wait::MayBlock).unwrap();
    assert!(!change.fits() && change.usage == 40 && change.limit == 10);
    let calls = memcg.env().take_calls();
    assert_eq!(calls.iter().filter(|call| matches!(call, Call::Reclaim(..))).count(), 16, "sixteen fruitless rounds");
    assert_eq!(kills.load(Ordering::Relaxed), 4);
    assert_eq!(memcg.events(g, Event::Oom, Events::Local), 4);
    memcg.charge(g, Gfp::KERNEL | Gfp::NORETRY, 1).unwrap_err();
}

#[test]
fn a_write_that_does_not_block_and_a_dying_writer_only_set_the_limit() {
    //
    let memcg = table(1, 4);
    let g = full(memcg, 100);
    assert!(!memcg.set_max(g, 1, Wait::No).unwrap().fits());
    assert!(!memcg.set_high(g, 1, Wait::No).unwrap().fits());
    task(TaskFlags::FATAL_SIGNAL);
    assert!(!memcg.set_max(g, 2, Wait::MayBlock).unwrap().fits());
    assert!(!memcg.set_high(g, 2, Wait::MayBlock).unwrap().fits());
    assert_eq!((memcg.max(g), memcg.high(g)), (2, 2));
    assert!(memcg.env().take_calls().is_empty());
}

#[test]
fn a_lower_high_reclaims_and_never_kills() {
    //
    let memcg = table(1, 4);
    let g = full(memcg, 100);
    let change = memcg.set_high(g, 10, Wait::MayBlock).unwrap();
    assert!(!change.fits());
    let calls = memcg.env().take_calls();
    assert_eq!(calls, [Call::Reclaim(g, 90)].repeat(17), "16 retries");
    memcg.env().on_reclaim(move |group, pages| reclaimed(memcg, group, pages));
    assert!(memcg.set_high(g, 10, Wait::MayBlock).unwrap().fits());
}

#[test]
fn a_charge_above_high_succeeds_and_owes() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_high(g, 10, Wait::No).unwrap();
    memcg.charge(g, Gfp::KERNEL, 1).unwrap().unwrap();
    assert!(memcg.env().take_calls().is_empty(), "a batch of 64 is a backlog that waits for the way out");
    memcg.env().on_reclaim(move |group, pages| reclaimed(memcg, group, pages.min(memcg.usage(group))));
    memcg.handle_over_high(g, Gfp::KERNEL);
    let calls = memcg.env().take_calls();
    assert!(calls.contains(&Call::Reclaim(g, 64)), "{calls:?}");
    assert!(memcg.events(g, Event::High, Events::Local) >= 1);
    memcg.handle_over_high(g, Gfp::KERNEL);
    assert!(memcg.env().take_calls().is_empty(), "nothing is owed twice");
}

#[test]
fn a_large_backlog_is_answered_for_at_once_if_the_charge_may_block() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_high(g, 10, Wait::No).unwrap();
    memcg.charge(g, Gfp::NOWAIT, 100).unwrap().unwrap();
    assert!(memcg.env().take_calls().is_empty(), "not where it may not sleep");
    memcg.charge(g, Gfp::KERNEL, 100).unwrap().unwrap();
    let calls = memcg.env().take_calls();
    let asked: std::vec::Vec<_> = calls.iter().filter(|call| !matches!(call, Call::Notify(..))).copied().collect();
    let mut expected = std::vec![Call::Reclaim(g, 200)];
    expected.extend([Call::Reclaim(g, 32); 16]);
    expected.push(Call::Sleep(2000));
    assert_eq!(asked, expected, "its backlog, 16 fruitless retries, then the longest sleep");
}

#[test]
fn in_an_interrupt_somebody_else_reclaims() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_high(g, 10, Wait::No).unwrap();
    task(TaskFlags::IN_IRQ);
    memcg.charge(g, Gfp::ATOMIC, 100).unwrap().unwrap();
    assert_eq!(memcg.env().take_calls(), [Call::DeferHigh(g)]);
}

#[test]
fn a_dying_task_does_not_sleep_for_high() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_high(g, 10, Wait::No).unwrap();
    task(TaskFlags::EXITING);
    memcg.charge(g, Gfp::KERNEL, 200).unwrap().unwrap();
    assert!(memcg.env().take_calls().is_empty());
}

#[test]
fn a_sleep_grows_with_the_square_of_the_overage_and_with_the_backlog() {
    //
    // 1/8 above: overage 2^17, squared 2^34, times HZ, >> 34: HZ ticks a batch.
    assert_eq!(throttle_ticks(9000, 8000, 64, 250), 250);
    assert_eq!(throttle_ticks(9000, 8000, 32, 250), 125);
    assert_eq!(throttle_ticks(8500, 8000, 64, 1000), 250);
    assert_eq!(throttle_ticks(9000, 8000, 640, 1000), 2000, "at most 2 s");
    assert_eq!(throttle_ticks(9000, 8000, 1, 640), 10, "above a hundredth of a second: slept");
    assert_eq!(throttle_ticks(9000, 8000, 1, 1000), 15);
    assert_eq!(throttle_ticks(8800, 8000, 1, 1000), 0, "ten milliseconds are not worth it");
    assert_eq!(throttle_ticks(5, 0, 64, 1000), 2000, "a limit of zero counts as one");
    assert_eq!(throttle_ticks(u64::MAX, 1, u64::MAX, u64::MAX / 2), u64::MAX - 1, "nothing overflows");
}

#[test]
fn the_topmost_group_that_dies_together_is_found() {
    // O-12
    let memcg = table(1, 8);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    let c = memcg.create(b).unwrap();
    assert_eq!(memcg.oom_group(c, ROOT), None);
    memcg.set_oom_group(c, true).unwrap();
    memcg.set_oom_group(a, true).unwrap();
    assert_eq!(memcg.oom_group(c, ROOT), Some(a));
    assert_eq!(memcg.oom_group(c, b), Some(c), "not above the group that is out of memory");
    assert_eq!(memcg.oom_group(b, b), None);
}
