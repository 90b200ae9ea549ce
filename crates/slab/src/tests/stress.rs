//! Threads on their CPUs, and one without, doing everything at once with shared caches. Every object carries a pattern
//! that must be there when it is freed, whoever frees it.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;
use std::vec::Vec;

use kmem_gfp::{Gfp, NodeId};
use kmem_sync::CpuId;

use super::env::{TestEnv, run_on};
use super::{destroy, with_flags};
use crate::{KmemCache, RcuHead, SlabConfig, SlabEnv, SlabFlags, Slabs};

/// An object on its way, with the byte that fills it.
struct Parcel {
    cache: usize,
    object: NonNull<u8>,
    byte: u8,
}

// SAFETY: plain memory that its holder owns.
unsafe impl Send for Parcel {}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % limit
    }
}

struct Worker<'t> {
    slabs: &'t Slabs<TestEnv>,
    caches: &'t [&'t KmemCache],
    mailbox: &'t Mutex<Vec<Parcel>>,
    random: Random,
    held: Vec<Parcel>,
}

impl Worker<'_> {
    fn keep(&mut self, cache: usize, object: NonNull<u8>) {
        let byte = self.random.below(256) as u8;
        // SAFETY: just allocated.
        unsafe { object.write_bytes(byte, self.caches[cache].object_size()) };
        self.held.push(Parcel { cache, object, byte });
    }

    /// Checks the pattern and frees the object in one of the ways.
    fn part(&mut self, parcel: Parcel) {
        let Parcel { cache, object, byte } = parcel;
        let (slabs, cache) = (self.slabs, self.caches[cache]);
        // SAFETY: ours.
        let bytes = unsafe { core::slice::from_raw_parts(object.as_ptr(), cache.object_size()) };
        assert!(bytes.iter().all(|found| *found == byte), "an object of {} changed in its owner's hands", cache.name());
        // SAFETY: ours; nobody reads it.
        unsafe {
            match self.random.below(8) {
                0 => slabs.free_rcu(object, object.cast::<RcuHead>()).unwrap(),
                1 => slabs.free_nolock(object).unwrap(),
                2 => slabs.free_any(object).unwrap(),
                3 => slabs.free_bulk(cache, &mut [None, Some(object), None]).unwrap(),
                _ => slabs.free(cache, object).unwrap(),
            }
        }
    }

    fn step(&mut self) {
        let cache = self.random.below(self.caches.len());
        let target = self.caches[cache];
        match self.random.below(20) {
            0..6 => {
                let object = match self.random.below(4) {
                    0 => self.slabs.alloc_node(target, Gfp::KERNEL, Some(NodeId(self.random.below(2) as u32))).ok(),
                    1 => self.slabs.alloc_nolock(target, Gfp::empty(), None).ok(),
                    _ => Some(self.slabs.alloc(target, Gfp::KERNEL).unwrap()),
                };
                if let Some(object) = object {
                    self.keep(cache, object);
                }
            }
            6 => {
                let mut many = std::vec![None; 1 + self.random.below(90)];
                self.slabs.alloc_bulk(target, Gfp::KERNEL, &mut many).unwrap();
                if self.random.below(2) == 0 {
                    for object in many.iter().copied().flatten() {
                        self.keep(cache, object);
                    }
                } else {
                    // SAFETY: just allocated.
                    unsafe { self.slabs.free_bulk(target, &mut many).unwrap() };
                }
            }
            7 => {
                let count = 1 + self.random.below(70) as u32;
                let mut sheaf = self.slabs.prefill(target, Gfp::KERNEL, count).unwrap();
                for _ in 0..self.random.below(count as usize + 1) {
                    let object = sheaf.alloc(Gfp::empty()).unwrap();
                    self.keep(cache, object);
                }
                drop(sheaf);
            }
            8..11 => {
                // What others have sent is freed here.
                let parcels = core::mem::take(&mut *self.mailbox.lock().unwrap());
                for parcel in parcels {
                    self.part(parcel);
                }
            }
            11..14 => {
                let at = self.held.len() - self.held.len().min(20);
                let sent = self.held.split_off(at);
                self.mailbox.lock().unwrap().extend(sent);
            }
            _ => {
                for _ in 0..3 {
                    if self.held.is_empty() {
                        break;
                    }
                    let at = self.random.below(self.held.len());
                    let parcel = self.held.swap_remove(at);
                    self.part(parcel);
                }
            }
        }
        while self.held.len() > 300 {
            let Some(parcel) = self.held.pop() else { break };
            self.part(parcel);
        }
    }
}

fn all_at_once(config: SlabConfig, nr_nodes: u32, seed: u64) {
    const STEPS: usize = 3_000;
    let slabs = Slabs::with_config(TestEnv::with_nodes(4, 6144, nr_nodes), config);
    slabs.init().unwrap();
    let before = slabs.env().pages().in_use();
    let kinds = [
        (24, SlabFlags::empty()),
        (256, SlabFlags::HWCACHE_ALIGN),
        (1100, SlabFlags::RECLAIM_ACCOUNT),
        (128, SlabFlags::TYPESAFE_BY_RCU),
        (96, SlabFlags::DEBUG_DEFAULT),
    ];
    let caches = kinds.map(|(size, flags)| {
        slabs.create(&std::format!("c{size}"), size, &with_flags(flags | SlabFlags::NO_MERGE)).unwrap()
    });
    let mailbox = Mutex::new(Vec::new());
    let running = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let (slabs, caches, mailbox, running) = (&slabs, &caches, &mailbox, &running);
        let workers: Vec<_> = [Some(0), Some(1), Some(2), None]
            .into_iter()
            .enumerate()
            .map(|(number, cpu)| {
                scope.spawn(move || {
                    run_on(cpu);
                    let random = Random(seed + number as u64 * 77 + 1);
                    let mut worker = Worker { slabs, caches, mailbox, random, held: Vec::new() };
                    for _ in 0..STEPS {
                        worker.step();
                    }
                    mailbox.lock().unwrap().append(&mut worker.held);
                })
            })
            .collect();
        // Housekeeping, which takes the workers' sheaves away from them again and again.
        scope.spawn(move || {
            run_on(Some(3));
            let mut random = Random(seed);
            while running.load(Ordering::Acquire) {
                let cache = caches[random.below(caches.len())];
                match random.below(8) {
                    0 => _ = slabs.shrink(cache),
                    1 => slabs.cpu_dead(CpuId(random.below(4) as u32)),
                    2 => slabs.rcu_barrier(),
                    3 => _ = slabs.cache_stats(cache),
                    4 => assert!(slabs.validate(cache).is_none_or(|errors| errors == 0)),
                    _ => {
                        slabs.env().grace().pass();
                        slabs.rcu_poll();
                    }
                }
                std::thread::yield_now();
            }
        });
        for worker in workers {
            worker.join().unwrap();
        }
        running.store(false, Ordering::Release);
    });
    run_on(Some(0));
    let random = Random(seed);
    let mut last = Worker { slabs: &slabs, caches: &caches, mailbox: &mailbox, random, held: Vec::new() };
    for parcel in core::mem::take(&mut *mailbox.lock().unwrap()) {
        last.part(parcel);
    }
    for cache in caches {
        destroy(&slabs, cache);
    }
    assert_eq!(slabs.stats().slab_pages(), 0);
    slabs.shrink_all();
    assert_eq!(slabs.env().pages().in_use(), before);
    let reports = slabs.env().reports();
    assert!(reports.is_empty(), "{reports:?}");
}

#[test]
fn everything_at_once_keeps_every_object_its_owners() {
    all_at_once(SlabConfig::DEFAULT, 1, 11);
}

#[test]
fn everything_at_once_on_two_nodes() {
    all_at_once(SlabConfig::DEFAULT, 2, 12);
}

#[test]
fn everything_at_once_without_sheaves() {
    all_at_once(super::BARE, 1, 13);
}

#[test]
fn everything_at_once_with_tiny_barns_and_zeroing_frees() {
    let config = SlabConfig { barn_full: 1, barn_empty: 0, max_sheaf_capacity: 4, ..SlabConfig::DEFAULT };
    all_at_once(SlabConfig { init_on_free: true, ..config }, 1, 14);
    all_at_once(config, 2, 15);
}

#[test]
fn caches_come_and_go_under_everybodys_eyes() {
    // SL-02, SL-08, SL-96, RC-08
    let slabs = Slabs::new(TestEnv::new(3, 2048));
    slabs.init().unwrap();
    let before = slabs.env().pages().in_use();
    let left = AtomicUsize::new(2);
    std::thread::scope(|scope| {
        let (slabs, left) = (&slabs, &left);
        for cpu in 0..2 {
            scope.spawn(move || {
                run_on(Some(cpu));
                for round in 0..100 {
                    // Shared by both at times, and the name is taken by one that is going away at times.
                    let cache = slabs.create("fleeting", 64, &with_flags(SlabFlags::empty())).unwrap();
                    let objects = super::take(slabs, cache, 1 + round * 7 % 80);
                    for object in objects {
                        // SAFETY: ours, and nobody reads it.
                        unsafe { slabs.free_rcu(object, object.cast::<RcuHead>()).unwrap() };
                    }
                    destroy(slabs, cache);
                }
                left.fetch_sub(1, Ordering::Release);
            });
        }
        run_on(Some(2));
        let mut text = std::string::String::new();
        while left.load(Ordering::Acquire) > 0 {
            slabs.env().grace().pass();
            slabs.rcu_poll();
            slabs.shrink_all();
            text.clear();
            slabs.slabinfo(&mut text).unwrap();
            slabs.cpu_dead(CpuId(0));
        }
    });
    run_on(Some(0));
    assert!(slabs.find_cache("fleeting").is_none());
    slabs.shrink_all();
    assert_eq!(slabs.env().pages().in_use(), before);
    assert!(slabs.env().reports().is_empty());
}
