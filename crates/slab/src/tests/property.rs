//! Random operations against a plain oracle: a map of the live objects and the pattern each was filled with.

use core::ptr::NonNull;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use kmem_gfp::Gfp;
use proptest::prelude::*;

use super::env::run_on;
use super::{family_with, with_flags};
use crate::{CacheArgs, KmemCache, SlabConfig, SlabEnv, SlabFlags, Slabs};

#[derive(Clone, Debug)]
enum Op {
    Alloc { cache: usize, cpu: u32 },
    Free { nth: usize, cpu: u32 },
    AllocNolock { cache: usize, cpu: u32 },
    FreeNolock { nth: usize, cpu: u32 },
    Bulk { cache: usize, count: usize, cpu: u32 },
    FreeMany { nth: usize, count: usize, cpu: u32 },
    Prefill { cache: usize, count: u32, used: usize },
    Shrink { cache: usize },
    Flush { cpu: u32 },
    Fragment { yes: bool },
    Interrupt { cache: usize, nth: usize },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let cache = 0..5_usize;
    let cpu = 0..4_u32;
    let nth = 0..10_000_usize;
    let op = prop_oneof![
        8 => (cache.clone(), cpu.clone()).prop_map(|(cache, cpu)| Op::Alloc { cache, cpu }),
        8 => (nth.clone(), cpu.clone()).prop_map(|(nth, cpu)| Op::Free { nth, cpu }),
        2 => (cache.clone(), cpu.clone()).prop_map(|(cache, cpu)| Op::AllocNolock { cache, cpu }),
        2 => (nth.clone(), cpu.clone()).prop_map(|(nth, cpu)| Op::FreeNolock { nth, cpu }),
        3 => (cache.clone(), 0..150_usize, cpu.clone()).prop_map(|(cache, count, cpu)| Op::Bulk { cache, count, cpu }),
        4 => (nth.clone(), 0..150_usize, cpu.clone()).prop_map(|(nth, count, cpu)| Op::FreeMany { nth, count, cpu }),
        1 => (cache.clone(), 1..100_u32, 0..100_usize).prop_map(|(cache, count, used)| Op::Prefill { cache, count, used }),
        1 => cache.clone().prop_map(|cache| Op::Shrink { cache }),
        1 => cpu.clone().prop_map(|cpu| Op::Flush { cpu }),
        1 => any::<bool>().prop_map(|yes| Op::Fragment { yes }),
        2 => (cache, nth).prop_map(|(cache, nth)| Op::Interrupt { cache, nth }),
    ];
    proptest::collection::vec(op, 1..120)
}

/// The oracle.
struct Model<'s> {
    slabs: &'s Slabs<super::env::TestEnv>,
    caches: Vec<&'s KmemCache>,
    live: BTreeMap<usize, (usize, u8)>,
    next: u8,
}

impl Model<'_> {
    fn add(&mut self, cache: usize, object: NonNull<u8>) {
        let size = self.caches[cache].object_size();
        let address = object.addr().get();
        assert_eq!(address % self.caches[cache].align(), 0);
        if let Some((below, (other, _))) = self.live.range(..=address).next_back() {
            assert!(below + self.caches[*other].object_size() <= address, "overlaps a live object");
        }
        if let Some((above, _)) = self.live.range(address..).next() {
            assert!(address + size <= *above, "overlaps a live object");
        }
        self.next = self.next.wrapping_add(1);
        // SAFETY: allocated just now.
        unsafe { object.write_bytes(self.next, size) };
        self.live.insert(address, (cache, self.next));
    }

    fn remove(&mut self, nth: usize) -> Option<(usize, NonNull<u8>)> {
        let address = *self.live.keys().nth(nth % self.live.len().max(1))?;
        let (cache, fill) = self.live.remove(&address)?;
        let object = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address)).unwrap();
        for at in 0..self.caches[cache].object_size() {
            // SAFETY: live until now.
            assert_eq!(unsafe { object.add(at).read() }, fill, "contents changed");
        }
        Some((cache, object))
    }

    fn run(&mut self, op: &Op) {
        let slabs = self.slabs;
        match *op {
            Op::Alloc { cache, cpu } => {
                run_on(Some(cpu));
                if let Ok(object) = slabs.alloc(self.caches[cache], Gfp::KERNEL) {
                    self.add(cache, object);
                }
            }
            Op::AllocNolock { cache, cpu } => {
                run_on(if cpu == 0 { None } else { Some(cpu) });
                if let Ok(object) = slabs.alloc_nolock(self.caches[cache], Gfp::empty(), None) {
                    self.add(cache, object);
                }
            }
            Op::Free { nth, cpu } => {
                run_on(Some(cpu));
                if let Some((cache, object)) = self.remove(nth) {
                    // SAFETY: live until now.
                    unsafe { slabs.free(self.caches[cache], object).unwrap() };
                }
            }
            Op::FreeNolock { nth, cpu } => {
                run_on(if cpu == 0 { None } else { Some(cpu) });
                if let Some((_, object)) = self.remove(nth) {
                    // SAFETY: live until now.
                    unsafe { slabs.free_nolock(object).unwrap() };
                }
            }
            Op::Bulk { cache, count, cpu } => {
                run_on(Some(cpu));
                let mut objects = std::vec![None; count];
                if slabs.alloc_bulk(self.caches[cache], Gfp::KERNEL, &mut objects).is_ok() {
                    for object in objects {
                        self.add(cache, object.unwrap());
                    }
                }
            }
            Op::FreeMany { nth, count, cpu } => {
                run_on(Some(cpu));
                let mut objects: Vec<_> =
                    (0..count).map_while(|_| self.remove(nth)).map(|(_, object)| Some(object)).collect();
                // SAFETY: live until now.
                unsafe { slabs.free_bulk_any(&mut objects).unwrap() };
            }
            Op::Prefill { cache, count, used } => {
                run_on(Some(1));
                if let Ok(mut sheaf) = slabs.prefill(self.caches[cache], Gfp::KERNEL, count) {
                    assert!(sheaf.len() >= count);
                    for _ in 0..used {
                        if let Some(object) = sheaf.alloc(Gfp::empty()) {
                            self.add(cache, object);
                        }
                    }
                }
            }
            Op::Shrink { cache } => {
                run_on(Some(0));
                let left = slabs.shrink(self.caches[cache]);
                assert_eq!(left, self.live.values().any(|(of, _)| *of == cache), "shrunk to exactly what lives");
            }
            Op::Flush { cpu } => slabs.cpu_dead(kmem_sync::CpuId(cpu)),
            Op::Fragment { yes } => slabs.env().pages().fragmented.store(yes, core::sync::atomic::Ordering::Relaxed),
            Op::Interrupt { cache, nth } => {
                run_on(Some(2));
                let object = self.remove(nth);
                let new = self.caches[cache].slots.try_with(slabs.env().cpu(), |_, _| {
                    if let Some((_, object)) = object {
                        // SAFETY: live until now.
                        unsafe { slabs.free_any(object).unwrap() };
                    }
                    slabs.alloc(self.caches[cache], Gfp::ATOMIC)
                });
                match new {
                    Some(Ok(object)) => self.add(cache, object),
                    Some(Err(_)) => {}
                    None => {
                        if let Some((_, object)) = object {
                            // SAFETY: live until now.
                            unsafe { slabs.free_any(object).unwrap() };
                        }
                    }
                }
            }
        }
    }
}

fn check(config: SlabConfig, ops: &[Op]) {
    let slabs = family_with(4, config);
    let start = slabs.env().pages().in_use();
    let specs = [
        ("tiny", 8, SlabFlags::empty()),
        ("odd", 200, SlabFlags::NO_MERGE),
        ("wide", 1500, SlabFlags::empty()),
        ("lines", 100, SlabFlags::HWCACHE_ALIGN | SlabFlags::NOLEAKTRACE),
        ("checked", 72, SlabFlags::DEBUG_DEFAULT),
    ];
    let caches: Vec<_> =
        specs.iter().map(|(name, size, flags)| slabs.create(name, *size, &with_flags(*flags)).unwrap()).collect();
    let mut model = Model { slabs: &slabs, caches, live: BTreeMap::new(), next: 0 };
    for op in ops {
        model.run(op);
    }
    let caches = model.caches.clone();
    for (at, cache) in caches.iter().enumerate() {
        let mut live = 0;
        slabs.shrink(cache);
        slabs.for_each_live_object(cache, |object| {
            assert!(model.live.get(&object.addr().get()).is_some_and(|(of, _)| *of == at));
            live += 1;
        });
        assert_eq!(live, model.live.values().filter(|(of, _)| *of == at).count());
    }
    while let Some((cache, object)) = model.remove(7) {
        // SAFETY: live until now.
        unsafe { slabs.free(caches[cache], object).unwrap() };
    }
    run_on(Some(0));
    for cache in caches {
        // SAFETY: nobody uses it any more.
        unsafe { slabs.destroy(cache).unwrap() };
    }
    slabs.shrink_all();
    assert_eq!(slabs.env().pages().in_use(), start, "everything freed, the start is back");
    assert!(slabs.env().reports().iter().all(|line| line.contains("Unable") || line.starts_with("  ")));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_operations_keep_live_objects_apart_and_intact(ops in ops()) {
        check(SlabConfig::DEFAULT, &ops);
    }

    #[test]
    fn tiny_sheaves_do_too(ops in ops()) {
        check(SlabConfig { max_sheaf_capacity: 2, barn_full: 1, barn_empty: 1, ..SlabConfig::DEFAULT }, &ops);
    }

    #[test]
    fn no_sheaves_do_too(ops in ops()) {
        check(SlabConfig { max_sheaf_capacity: 0, ..SlabConfig::DEFAULT }, &ops);
    }
}

#[test]
fn threads_share_a_family() {
    let slabs = family_with(4, SlabConfig { max_sheaf_capacity: 4, barn_full: 2, ..SlabConfig::DEFAULT });
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let exchange: std::sync::Mutex<Vec<usize>> = std::sync::Mutex::default();
    std::thread::scope(|scope| {
        for cpu in 0..4 {
            let (slabs, exchange) = (&slabs, &exchange);
            scope.spawn(move || {
                run_on(if cpu == 3 { None } else { Some(cpu) });
                for round in 0..1500_usize {
                    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
                    // SAFETY: ours, 64 bytes.
                    unsafe { object.cast::<usize>().write(object.addr().get()) };
                    let mut shared = exchange.lock().unwrap();
                    shared.push(object.addr().get());
                    let other = if shared.len() > 50 { Some(shared.swap_remove(round % 50)) } else { None };
                    drop(shared);
                    if let Some(address) = other {
                        let object = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address)).unwrap();
                        // SAFETY: taken out of the exchange: ours.
                        unsafe {
                            assert_eq!(object.cast::<usize>().read(), address);
                            slabs.free(cache, object).unwrap();
                        }
                    }
                    if cpu == 0 && round % 500 == 0 {
                        slabs.shrink(cache);
                    }
                }
            });
        }
    });
    for address in exchange.into_inner().unwrap() {
        let object = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(address)).unwrap();
        // SAFETY: ours.
        unsafe { slabs.free(cache, object).unwrap() };
    }
    // SAFETY: nobody uses it any more.
    unsafe { slabs.destroy(cache).unwrap() };
}
