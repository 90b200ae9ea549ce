//! Who pays, batches, and the failure path.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kmem_gfp::{Gfp, OomOutcome, Order, TaskFlags};
use kmem_sync::Cpu;

use super::rig::{Call, TestEnv, run_on, table, table_over, task};
use crate::memcg::{Event, Events, Memcg, MemcgConfig, MemcgEnv, Wait};
use crate::{GroupId, Groups};

const ROOT: GroupId = GroupId::ROOT;

#[test]
fn without_a_table_nobody_is_charged() {
    let memcg = Memcg::new(TestEnv::new(1));
    assert_eq!(memcg.payer(), None);
    assert_eq!(memcg.charge(GroupId(3), Gfp::KERNEL, 1), Ok(None));
    assert_eq!(memcg.charge_listed(GroupId(3), Gfp::KERNEL, 1), Ok(ROOT));
    assert_eq!(memcg.charge_object_to(GroupId(3), Gfp::KERNEL, 100), Ok(None));
    assert_eq!(memcg.usage(GroupId(3)), 0);
    assert!(Groups::is_online(&memcg, ROOT));
    assert_eq!(memcg.next_in_subtree(ROOT, None), Some(ROOT));
    assert_eq!(memcg.next_in_subtree(ROOT, Some(ROOT)), None);
}

#[test]
fn who_pays_depends_on_the_context() {
    //
    let memcg = table(1, 8);
    let (env, g, h) = (memcg.env(), memcg.create(ROOT).unwrap(), memcg.create(ROOT).unwrap());
    assert_eq!(memcg.payer(), None, "a task in the root");
    env.group.store(g.0.into(), Ordering::Relaxed);
    assert_eq!(memcg.payer(), Some(g));
    for interrupted in [TaskFlags::IN_IRQ, TaskFlags::IN_NMI, TaskFlags::IN_SOFTIRQ, TaskFlags::KTHREAD] {
        task(interrupted);
        assert_eq!(memcg.payer(), None, "{interrupted:?}");
        *env.active.lock().unwrap() = Some(h);
        assert_eq!(memcg.payer(), Some(h), "the override, {interrupted:?}");
        *env.active.lock().unwrap() = Some(ROOT);
        assert_eq!(memcg.payer(), None, "the root is not charged");
        *env.active.lock().unwrap() = None;
    }
}

#[test]
fn nokmem_switches_kernel_memory_off() {
    //
    let memcg = table_over(TestEnv::new(1), MemcgConfig { kernel_memory: false, ..MemcgConfig::new(4) });
    let g = memcg.create(ROOT).unwrap();
    memcg.env().group.store(g.0.into(), Ordering::Relaxed);
    assert_eq!(memcg.charge_page(Gfp::KERNEL_ACCOUNT, Order::ZERO), Ok(None));
    assert_eq!(memcg.charge_listed(g, Gfp::KERNEL, 1), Ok(g), "pages of user space are charged all the same");
    assert_eq!(memcg.usage(g), 64);
}

#[test]
fn a_first_charge_takes_a_batch_and_the_rest_serves_the_next_ones() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    let first = memcg.charge(g, Gfp::KERNEL, 1).unwrap().unwrap();
    assert_eq!((first.group(), memcg.usage(g)), (g, 64));
    let others: std::vec::Vec<_> = (0..63).map(|_| memcg.charge(g, Gfp::KERNEL, 1).unwrap().unwrap()).collect();
    assert_eq!(memcg.usage(g), 64, "all from the stock");
    memcg.charge(g, Gfp::KERNEL, 1).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 128, "the next batch");
    memcg.uncharge(first, 1);
    assert_eq!(memcg.usage(g), 128, "back into the stock, which holds 64");
    memcg.uncharge(first, 1);
    assert_eq!(memcg.usage(g), 64, "above 64 pages a stock is flushed; the page that was too much begins anew");
    others.into_iter().for_each(|payer| memcg.uncharge(payer, 1));
    memcg.drain_stocks();
    assert_eq!(memcg.usage(g), 0);
}

#[test]
fn a_large_charge_is_exact_and_passes_the_stock() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    let payer = memcg.charge(g, Gfp::KERNEL, 100).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 100);
    memcg.uncharge(payer, 100);
    assert_eq!(memcg.usage(g), 0);
}

#[test]
fn a_cpu_keeps_stocks_of_seven_groups() {
    //
    let memcg = table(1, 16);
    let groups: std::vec::Vec<_> = (0..8).map(|_| memcg.create(ROOT).unwrap()).collect();
    for &g in &groups[..7] {
        memcg.charge(g, Gfp::KERNEL, 1).unwrap();
    }
    assert!(groups[..7].iter().all(|&g| memcg.usage(g) == 64));
    memcg.charge(groups[7], Gfp::KERNEL, 1).unwrap();
    let flushed = groups.iter().filter(|&&g| memcg.usage(g) == 1).count();
    assert_eq!(flushed, 1, "the eighth pushed one out");
}

#[test]
fn near_the_limit_a_charge_takes_exactly_what_it_needs() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 10, Wait::No).unwrap();
    memcg.charge(g, Gfp::KERNEL, 3).unwrap();
    assert_eq!(memcg.usage(g), 3, "64 do not fit");
    assert!(memcg.env().take_calls().is_empty(), "and nobody was asked to reclaim");
}

#[test]
fn a_charge_counts_in_every_level_and_rolls_back_at_the_first_that_is_full() {
    //
    let memcg = table(1, 8);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    let c = memcg.create(b).unwrap();
    memcg.set_max(a, 70, Wait::No).unwrap();
    memcg.charge(c, Gfp::KERNEL, 65).unwrap();
    assert_eq!([a, b, c].map(|g| memcg.usage(g)), [65; 3]);
    let refused = memcg.charge(c, Gfp::NOWAIT, 6).unwrap_err();
    assert_eq!((refused.group, refused.pages), (a, 6), "the error names the group over its limit");
    assert_eq!([a, b, c].map(|g| memcg.usage(g)), [65; 3], "rolled back");
    assert!(memcg.limit_hits(a) > 0 && memcg.limit_hits(b) == 0);
    assert_eq!(memcg.usage(ROOT), 65, "the root adds up its children");
}

#[test]
fn atomic_requests_exceed_the_limit_and_nowait_ones_fail() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 4, Wait::No).unwrap();
    memcg.charge(g, Gfp::KERNEL, 4).unwrap();
    memcg.charge(g, Gfp::NOWAIT | Gfp::ACCOUNT, 1).unwrap_err();
    assert_eq!(memcg.usage(g), 4);
    memcg.charge(g, Gfp::ATOMIC | Gfp::ACCOUNT, 1).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 5, "HIGH is forced");
    assert!(memcg.env().take_calls().iter().all(|call| matches!(call, Call::Notify(..))), "and nobody slept");
}

#[test]
fn a_task_in_reclaim_is_forced_and_one_in_a_group_oom_refused() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 1, Wait::No).unwrap();
    memcg.charge(g, Gfp::KERNEL, 1).unwrap();
    task(TaskFlags::MEMALLOC);
    memcg.charge(g, Gfp::KERNEL, 1).unwrap();
    assert_eq!(memcg.usage(g), 2);
    task(TaskFlags::empty());
    *memcg.env().in_oom.lock().unwrap() = true;
    memcg.charge(g, Gfp::KERNEL, 1).unwrap_err();
    assert!(memcg.env().take_calls().iter().all(|call| matches!(call, Call::Notify(..))), "neither tried anything");
}

#[test]
fn reclaim_that_makes_room_lets_the_charge_through() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 8, Wait::No).unwrap();
    assert_eq!(memcg.charge_listed(g, Gfp::KERNEL, 8), Ok(g));
    memcg.env().on_reclaim(move |group, pages| {
        memcg.uncharge_listed(group, pages);
        pages
    });
    memcg.charge(g, Gfp::KERNEL, 2).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 8);
    assert!(memcg.env().take_calls().contains(&Call::Reclaim(g, 2)), "it asked for what it needed");
}

#[test]
fn stocks_are_drained_once_before_a_charge_gives_up() {
    //
    let memcg = table(2, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 64, Wait::No).unwrap();
    run_on(Some(1));
    memcg.charge(g, Gfp::KERNEL, 1).unwrap();
    run_on(Some(0));
    assert_eq!(memcg.usage(g), 64, "63 of them lie on CPU 1");
    memcg.charge(g, Gfp::KERNEL | Gfp::NORETRY, 1).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 2);
    assert_eq!(memcg.env().take_calls().iter().filter(|call| matches!(call, Call::Reclaim(..))).count(), 1);
}

fn reclaims(memcg: super::rig::Table, gfp: Gfp, pages: u64, each: u64) -> (usize, usize, bool) {
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 16, Wait::No).unwrap();
    memcg.charge(g, Gfp::KERNEL, 16).unwrap();
    memcg.env().take_calls();
    let rounds = Arc::new(AtomicU64::new(0));
    memcg.env().on_reclaim(move |_, _| {
        // Progress that somebody else eats; at some point it ends.
        if rounds.fetch_add(1, Ordering::Relaxed) < 100 { each } else { 0 }
    });
    let result = memcg.charge(g, gfp, pages);
    let calls = memcg.env().take_calls();
    let count = |of: fn(&Call) -> bool| calls.iter().filter(|call| of(call)).count();
    (count(|call| matches!(call, Call::Reclaim(..))), count(|call| matches!(call, Call::Oom(..))), result.is_ok())
}

#[test]
fn how_often_a_charge_retries_depends_on_its_flags() {
    // A-06, H05, H06
    let noretry = reclaims(table(1, 4), Gfp::KERNEL | Gfp::NORETRY, 1, 0);
    assert_eq!(noretry, (2, 0, false), "once, and once after the drain");
    let retry = reclaims(table(1, 4), Gfp::KERNEL | Gfp::RETRY_MAYFAIL, 1, 0);
    assert_eq!(retry, (18, 0, false), "sixteen retries more, and nothing killed");
    let kernel = reclaims(table(1, 4), Gfp::KERNEL, 1, 0);
    assert_eq!(kernel, (18, 1, false), "then something is to be killed");
    let small = reclaims(table(1, 4), Gfp::KERNEL, 8, 1);
    assert_eq!(small, (117, 1, false), "with progress a small request goes on: 100 rounds, then 17");
    let large = reclaims(table(1, 4), Gfp::KERNEL, 9, 1);
    assert_eq!(large, (18, 0, false), "a large one does not, and never kills: order 4");
}

#[test]
fn a_kill_that_helps_starts_the_retries_anew() {
    // A-06, O-15
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 8, Wait::No).unwrap();
    memcg.charge(g, Gfp::KERNEL, 8).unwrap();
    let kills = Arc::new(AtomicU64::new(0));
    let counted = kills.clone();
    memcg.env().on_oom(move |group| {
        if counted.fetch_add(1, Ordering::Relaxed) == 2 {
            memcg.uncharge_listed(group, 8);
        }
        OomOutcome::Progress
    });
    memcg.charge(g, Gfp::KERNEL, 1).unwrap().unwrap();
    assert_eq!(kills.load(Ordering::Relaxed), 3);
    assert_eq!(memcg.events(g, Event::Oom, Events::Local), 3);
}

#[test]
fn a_dying_task_that_a_kill_did_not_help_is_refused() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 1, Wait::No).unwrap();
    memcg.charge(g, Gfp::KERNEL, 1).unwrap();
    memcg.env().on_oom(|_| {
        task(TaskFlags::OOM_VICTIM);
        OomOutcome::Progress
    });
    memcg.charge(g, Gfp::KERNEL, 1).unwrap_err();
    task(TaskFlags::empty());
    memcg.charge(g, Gfp::KERNEL | Gfp::NOFAIL, 1).unwrap().unwrap();
}

#[test]
fn every_call_that_meets_a_limit_raises_one_event() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 1, Wait::No).unwrap();
    memcg.charge(g, Gfp::KERNEL, 1).unwrap();
    memcg.charge(g, Gfp::KERNEL, 1).unwrap_err();
    assert_eq!(memcg.events(g, Event::Max, Events::Local), 1, "twenty tries, one event");
    memcg.charge(g, Gfp::ATOMIC, 1).unwrap().unwrap();
    assert_eq!(memcg.events(g, Event::Max, Events::Local), 2, "forced");
    memcg.env().take_calls();
    memcg.charge(g, Gfp::empty(), 1).unwrap_err();
    assert_eq!(memcg.events(g, Event::Max, Events::Local), 3, "counted");
    assert!(memcg.env().take_calls().is_empty(), "but nobody woken from any context");
}

#[test]
fn an_any_context_charge_takes_no_batch() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.charge(g, Gfp::empty(), 1).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 1);
    memcg.charge(g, Gfp::KERNEL, 1).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 65);
    memcg.charge(g, Gfp::empty(), 1).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 65, "what is in stock it may take");
}

#[test]
fn a_context_without_a_cpu_charges_the_counters() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    run_on(None);
    let payer = memcg.charge(g, Gfp::KERNEL, 1).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 1, "nowhere to keep a batch");
    memcg.uncharge(payer, 1);
    memcg.charge_listed(g, Gfp::KERNEL, 2).unwrap();
    memcg.uncharge_listed(g, 2);
    assert_eq!(memcg.usage(g), 0);
}

#[test]
fn an_interrupt_inside_a_section_takes_the_slower_path() {
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.charge(g, Gfp::KERNEL, 1).unwrap();
    let state = memcg.state().unwrap();
    let charged = state.stocks.try_with(memcg.env().cpu(), |_, _| {
        // The handler's charge finds the section entered.
        let payer = memcg.charge(g, Gfp::ATOMIC, 1).unwrap().unwrap();
        assert_eq!(memcg.usage(g), 65, "one page, past the stock");
        memcg.uncharge(payer, 1);
    });
    assert_eq!(charged, Some(()));
    assert_eq!(memcg.usage(g), 64);
    assert_eq!(memcg.env().cpu().nr_cpus(), 1);
}

#[test]
fn the_peak_is_the_highest_usage() {
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    let payer = memcg.charge(g, Gfp::KERNEL, 200).unwrap().unwrap();
    memcg.uncharge(payer, 200);
    assert_eq!((memcg.usage(g), memcg.peak(g)), (0, 200));
}
