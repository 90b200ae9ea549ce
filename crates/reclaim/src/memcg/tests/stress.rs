//! Several threads at once: charges, objects, listed pages, limits that change, groups that come and go. In the end every
//! counter is zero and every number free.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::vec::Vec;
use std::{boxed::Box, thread};

use kmem_gfp::Gfp;

use super::rig::{Table, TestEnv, run_on, table_over};
use crate::memcg::{MemcgConfig, Payer, Wait};
use crate::{GroupId, Groups};

const ROOT: GroupId = GroupId::ROOT;

struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

fn worker(memcg: Table, cpu: u32, groups: &[AtomicU32], rounds: u32) {
    run_on(Some(cpu));
    let mut random = Random(0x9e37 + u64::from(cpu));
    let mut pages: Vec<(Payer, u64)> = Vec::new();
    let mut objects: Vec<(Payer, usize)> = Vec::new();
    for round in 0..rounds {
        let group = GroupId(groups[random.next(groups.len() as u64) as usize].load(Ordering::Relaxed));
        match random.next(6) {
            0 | 1 => {
                let nr = 1 + random.next(70);
                if let Ok(Some(payer)) = memcg.charge(group, Gfp::KERNEL | Gfp::NORETRY, nr) {
                    pages.push((payer, nr));
                }
            }
            2 => {
                let size = 1 + random.next(6000) as usize;
                if let Ok(Some(payer)) = memcg.charge_object_to(group, Gfp::NOWAIT, size) {
                    objects.push((payer, size));
                }
            }
            3 if !pages.is_empty() => {
                let (payer, nr) = pages.swap_remove(random.next(pages.len() as u64) as usize);
                memcg.uncharge(payer, nr);
            }
            4 if !objects.is_empty() => {
                let (payer, size) = objects.swap_remove(random.next(objects.len() as u64) as usize);
                memcg.uncharge_object(payer, size);
            }
            _ if round % 64 == 0 => memcg.drain_stocks(),
            _ => {}
        }
    }
    pages.into_iter().for_each(|(payer, nr)| memcg.uncharge(payer, nr));
    objects.into_iter().for_each(|(payer, size)| memcg.uncharge_object(payer, size));
}

#[test]
fn counters_conserve_pages_while_groups_come_and_go() {
    const WORKERS: u32 = 3;
    let mut env = TestEnv::new(WORKERS + 1);
    env.quiet = true;
    let memcg = table_over(env, MemcgConfig::new(24));
    let parent = memcg.create(ROOT).unwrap();
    let groups: &'static [AtomicU32] =
        Box::leak((0..4).map(|_| AtomicU32::new(memcg.create(parent).unwrap().0)).collect());
    let done: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    let start: &'static Barrier = Box::leak(Box::new(Barrier::new(WORKERS as usize + 1)));
    let workers: Vec<_> = (0..WORKERS)
        .map(|cpu| {
            thread::spawn(move || {
                start.wait();
                worker(memcg, cpu, groups, 4000);
            })
        })
        .collect();
    let manager = thread::spawn(move || {
        run_on(Some(WORKERS));
        let mut random = Random(77);
        while !done.load(Ordering::Relaxed) {
            let place = &groups[random.next(4) as usize];
            let old = GroupId(place.load(Ordering::Relaxed));
            if random.next(2) == 0 {
                if let Ok(next) = memcg.create(parent) {
                    place.store(next.0, Ordering::Relaxed);
                    memcg.remove(old).unwrap();
                }
            } else {
                memcg.set_max(old, random.next(400), Wait::No).unwrap();
                memcg.set_low(old, random.next(400)).unwrap();
            }
            thread::yield_now();
        }
    });
    start.wait();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    done.store(true, Ordering::Relaxed);
    manager.join().unwrap();
    run_on(Some(0));
    memcg.drain_stocks();
    assert_eq!(memcg.usage(parent), 0, "every page came back");
    for place in groups {
        let group = GroupId(place.load(Ordering::Relaxed));
        assert_eq!(memcg.usage(group), 0);
        memcg.remove(group).unwrap();
    }
    memcg.remove(parent).unwrap();
    let taken: Vec<_> = (1..24).filter(|&id| !memcg.is_free(GroupId(id))).collect();
    assert!(taken.is_empty(), "numbers in use: {taken:?}");
}

#[test]
fn a_limit_holds_under_charges_from_several_cpus() {
    //
    let mut env = TestEnv::new(3);
    env.quiet = true;
    let memcg = table_over(env, MemcgConfig::new(4));
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 150, Wait::No).unwrap();
    let threads: Vec<_> = (0..3)
        .map(|cpu| {
            thread::spawn(move || {
                run_on(Some(cpu));
                let mut held = 0;
                for i in 0..3000u64 {
                    let pages = i % 5 + 1;
                    if memcg.charge_listed(g, Gfp::NOWAIT, pages).is_ok() {
                        held += pages;
                    } else {
                        Groups::uncharge(memcg, g, held);
                        held = 0;
                    }
                }
                held
            })
        })
        .collect();
    let held: u64 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    run_on(Some(0));
    memcg.drain_stocks();
    assert_eq!(memcg.usage(g), held);
    assert!(held <= 150);
}
