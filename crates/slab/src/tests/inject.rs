//! Allocations that fail on purpose, and the page source failing at every single call.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp};

use super::env::{TestEnv, run_on};
use super::{destroy, family, family_with, give, take, with_flags};
use crate::{
    CacheArgs, CacheElements, CreateError, FaultInjection, KmemCache, Mempool, RcuHead, SlabConfig, SlabEnv, SlabFlags,
    Slabs,
};

const ALWAYS: FaultInjection = FaultInjection { probability: 100, times: None, ..FaultInjection::OFF };

fn try_one(slabs: &Slabs<TestEnv>, cache: &KmemCache, gfp: Gfp) -> bool {
    match slabs.alloc(cache, gfp) {
        Ok(object) => {
            give(slabs, cache, [object]);
            true
        }
        Err(error) => {
            assert_eq!(error, AllocError::Injected);
            false
        }
    }
}

#[test]
fn only_requests_that_can_be_failed_are() {
    // DB-32
    let slabs = family(1);
    let cache = slabs.create("victim", 64, &CacheArgs::default()).unwrap();
    slabs.set_fault_injection(ALWAYS);
    assert!(!try_one(&slabs, cache, Gfp::NOWAIT));
    assert!(!try_one(&slabs, cache, Gfp::ATOMIC));
    assert!(try_one(&slabs, cache, Gfp::ATOMIC | Gfp::NOFAIL), "promises hold");
    assert!(try_one(&slabs, cache, Gfp::KERNEL), "who may sleep is left alone");
    let object = slabs.alloc_nolock(cache, Gfp::empty(), None).unwrap();
    give(&slabs, cache, [object]);
    let later = slabs.create("later", 640, &CacheArgs::default()).unwrap();
    assert!(!try_one(&slabs, later, Gfp::NOWAIT), "caches made while it is armed are subject to it");
    slabs.set_fault_injection(FaultInjection { ignore_blocking: false, ..ALWAYS });
    assert!(!try_one(&slabs, cache, Gfp::KERNEL));
    let made = slabs.create("descriptor", 1280, &CacheArgs::default()).map(|cache| destroy(&slabs, cache));
    assert_eq!(made, Ok(()), "descriptors never fail");
    let failed = slabs.injected_failures();
    assert!(failed >= 4);
    slabs.set_fault_injection(FaultInjection::OFF);
    assert!(try_one(&slabs, cache, Gfp::NOWAIT));
    assert_eq!(slabs.injected_failures(), failed);
    destroy(&slabs, cache);
    destroy(&slabs, later);
}

#[test]
fn the_filter_spares_unmarked_caches() {
    // DB-32, DB-14
    let slabs = family_with(1, SlabConfig { debug: "A,marked*", ..SlabConfig::DEFAULT });
    let marked = slabs.create("marked-1", 64, &CacheArgs::default()).unwrap();
    let plain = slabs.create("plain", 64, &CacheArgs::default()).unwrap();
    assert!(slabs.cache_stats(marked).failslab && !slabs.cache_stats(plain).failslab);
    slabs.set_fault_injection(FaultInjection { cache_filter: true, ..ALWAYS });
    assert!(!try_one(&slabs, marked, Gfp::NOWAIT));
    assert!(try_one(&slabs, plain, Gfp::NOWAIT));
    assert!(slabs.set_failslab(plain, true));
    assert!(!try_one(&slabs, plain, Gfp::NOWAIT));
    assert!(slabs.set_failslab(plain, false));
    let alias = slabs.create("alias", 64, &CacheArgs::default()).unwrap();
    assert!(core::ptr::eq(alias, plain));
    assert!(!slabs.set_failslab(plain, true), "not for one user of several");
    assert!(try_one(&slabs, plain, Gfp::NOWAIT));
    destroy(&slabs, alias);
    destroy(&slabs, plain);
    destroy(&slabs, marked);
}

#[test]
fn the_decision_follows_probability_times_space_and_interval() {
    // DB-33
    let slabs = family(1);
    let cache = slabs.create("victim", 64, &CacheArgs::default()).unwrap();
    let outcomes = |rule: FaultInjection, count: usize| -> Vec<bool> {
        slabs.set_fault_injection(rule);
        (0..count).map(|_| try_one(&slabs, cache, Gfp::NOWAIT)).collect()
    };
    let default = FaultInjection { probability: 100, ..FaultInjection::OFF };
    assert_eq!(outcomes(FaultInjection::OFF, 5), [true; 5], "probability 0 passes");
    assert_eq!(outcomes(default, 4), [false, true, true, true], "one time by default");
    let twice = FaultInjection { times: Some(2), ..default };
    assert_eq!(outcomes(twice, 4), [false, false, true, true]);
    let third = FaultInjection { interval: 3, times: None, ..default };
    assert_eq!(outcomes(third, 7), [true, true, false, true, true, false, true]);
    // 64-byte requests: the budget pays for two and is not enough for the third.
    let budget = FaultInjection { space: 160, times: Some(1), ..default };
    assert_eq!(outcomes(budget, 4), [true, true, false, true]);
    let countdown = FaultInjection { fail_nth: Some(3), ..default };
    assert_eq!(outcomes(countdown, 4), [true, true, false, false], "the countdown comes before everything else");
    assert_eq!(outcomes(FaultInjection::nth(2), 4), [true, false, true, true]);
    let dice = outcomes(FaultInjection { probability: 30, times: None, ..default }, 2000);
    let failed = dice.iter().filter(|passed| !**passed).count();
    assert!((450..750).contains(&failed), "{failed} of 2000 at 30 %");
    slabs.set_fault_injection(FaultInjection::OFF);
    destroy(&slabs, cache);
}

#[test]
fn boot_strings_name_interval_probability_space_and_times() {
    // DB-33
    let rule = FaultInjection { interval: 10, probability: 50, space: 4096, times: None, ..FaultInjection::OFF };
    assert_eq!(FaultInjection::parse("10,50,4096,-1"), Some(rule));
    assert_eq!(FaultInjection::parse("1, 100, 0, 7").map(|rule| rule.times), Some(Some(7)));
    for wrong in ["", "1", "1,2,3", "1,2,3,4,5", "a,2,3,4", "1,2,3,-2", "1,-2,3,4"] {
        assert_eq!(FaultInjection::parse(wrong), None, "{wrong}");
    }
    let off = FaultInjection::default();
    assert_eq!((off.interval, off.probability, off.times), (1, 0, Some(1)));
}

#[test]
fn an_injected_failure_of_a_bulk_request_leaves_nothing_behind() {
    // DB-32, SL-86
    let slabs = family(1);
    let cache = slabs.create("victim", 64, &CacheArgs::default()).unwrap();
    for flags in [SlabFlags::empty(), SlabFlags::DEBUG_DEFAULT] {
        let cache = slabs.create("bulk", 72, &with_flags(flags | SlabFlags::NO_MERGE)).unwrap();
        for n in 1..5 {
            slabs.set_fault_injection(FaultInjection::nth(n));
            let mut objects = [Some(NonNull::dangling()); 20];
            for _ in 0..6 {
                match slabs.alloc_bulk(cache, Gfp::KERNEL, &mut objects) {
                    Ok(()) => {
                        // SAFETY: just allocated.
                        unsafe { slabs.free_bulk(cache, &mut objects).unwrap() };
                    }
                    Err(error) => {
                        assert_eq!(error, AllocError::Injected);
                        assert_eq!(objects, [None; 20]);
                    }
                }
            }
        }
        slabs.set_fault_injection(FaultInjection::OFF);
        destroy(&slabs, cache);
    }
    destroy(&slabs, cache);
}

/// What fails at the N-th time.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Failing {
    /// That call of the page source.
    Page,
    /// That call of the page source and all behind it.
    PagesFromThenOn,
    /// That request, by the fault injector.
    Request,
}

/// Runs `life` on fresh families, with something failing at the N-th time, for all N. Whatever happened, everything must
/// be given back in the end.
fn at_every_failure(config: SlabConfig, life: impl Fn(&Slabs<TestEnv>)) {
    for failing in [Failing::Page, Failing::PagesFromThenOn, Failing::Request] {
        for n in 0.. {
            let slabs = Slabs::with_config(TestEnv::new(2, 1024), config);
            slabs.init().unwrap();
            let pages = slabs.env().pages();
            let before = pages.in_use();
            pages.for_good.store(failing == Failing::PagesFromThenOn, Ordering::Relaxed);
            match failing {
                Failing::Request => slabs.set_fault_injection(FaultInjection::nth(n as u32 + 1)),
                _ => pages.fail_in(n),
            }
            life(&slabs);
            let happened = match failing {
                Failing::Request => slabs.injected_failures() > 0,
                _ => pages.fail_in_left() < 0,
            };
            pages.fail_in(-1);
            pages.exhausted.store(false, Ordering::Relaxed);
            slabs.for_each_cache(|cache| panic!("{} is left", cache.name()));
            slabs.shrink_all();
            assert_eq!(pages.in_use(), before, "{failing:?} {n}: something was lost");
            assert_eq!(slabs.stats().slab_pages(), 0);
            assert!(slabs.env().reported("BUG").is_none(), "{:?}", slabs.env().reports());
            if !happened {
                break;
            }
            assert!(n < 1000, "there is no end of requests");
        }
    }
}

fn is_shortage(error: AllocError) -> bool {
    matches!(error, AllocError::NoMemory { .. } | AllocError::Injected)
}

/// Runs `f` on a cache; leaves none behind.
fn with_cache(slabs: &Slabs<TestEnv>, size: usize, flags: SlabFlags, f: impl FnOnce(&KmemCache)) {
    match slabs.create("life", size, &with_flags(flags)) {
        Ok(cache) => {
            f(cache);
            destroy(slabs, cache);
        }
        Err(error) => assert!(matches!(error, CreateError::NoMemory(AllocError::NoMemory { .. })), "{error}"),
    }
}

/// Kinds of caches that take different ways.
const KINDS: [(usize, SlabFlags); 5] = [
    (64, SlabFlags::empty()),
    (700, SlabFlags::HWCACHE_ALIGN),
    (5000, SlabFlags::RECLAIM_ACCOUNT),
    (200, SlabFlags::TYPESAFE_BY_RCU),
    (96, SlabFlags::DEBUG_DEFAULT),
];

fn every_kind(life: impl Fn(&Slabs<TestEnv>, &KmemCache)) {
    for (size, flags) in KINDS {
        at_every_failure(SlabConfig::DEFAULT, |slabs| {
            with_cache(slabs, size, flags, |cache| life(slabs, cache));
        });
    }
}

#[test]
fn the_first_pages_may_be_missing() {
    // SL-102
    let slabs = Slabs::new(TestEnv::new(2, 256));
    let unmade = slabs.create("early", 64, &CacheArgs::default()).map(|cache| destroy(&slabs, cache));
    assert_eq!(unmade, Err(CreateError::NoMemory(AllocError::NotReady)));
    slabs.env().pages().fail_in(0);
    assert!(matches!(slabs.init(), Err(AllocError::NoMemory { .. })));
    assert_eq!(slabs.env().pages().in_use(), 0);
    slabs.init().unwrap();
    let cache = slabs.create("late", 64, &CacheArgs::default()).unwrap();
    destroy(&slabs, cache);
}

#[test]
fn creating_many_caches_loses_nothing() {
    at_every_failure(SlabConfig::DEFAULT, |slabs| {
        let mut caches = Vec::new();
        for (at, (size, flags)) in KINDS.into_iter().enumerate() {
            let name = std::format!("cache-{at}");
            match slabs.create(&name, size, &with_flags(flags)) {
                Ok(cache) => caches.push(cache),
                Err(error) => assert!(matches!(error, CreateError::NoMemory(_)), "{error}"),
            }
        }
        for cache in caches {
            destroy(slabs, cache);
        }
    });
}

#[test]
fn single_objects_lose_nothing() {
    every_kind(|slabs, cache| {
        let mut objects = Vec::new();
        for round in 0..120_usize {
            run_on(if round % 7 == 6 { None } else { Some(round as u32 % 2) });
            let got = match round % 4 {
                0 => slabs.alloc(cache, Gfp::KERNEL),
                1 => slabs.zalloc(cache, Gfp::ATOMIC),
                2 => slabs.alloc_node(cache, Gfp::NOWAIT, Some(kmem_gfp::NodeId(0))),
                _ => slabs.alloc_nolock(cache, Gfp::ZERO, None),
            };
            match got {
                Ok(object) => {
                    // SAFETY: ours.
                    unsafe { object.write_bytes(round as u8, cache.object_size()) };
                    objects.push((object, round as u8));
                }
                Err(error) => assert!(is_shortage(error), "{error}"),
            }
        }
        for (at, (object, byte)) in objects.into_iter().enumerate() {
            // SAFETY: ours since it was allocated.
            unsafe {
                assert!((0..cache.object_size()).all(|at| object.add(at).read() == byte));
                match at % 3 {
                    0 => slabs.free(cache, object).unwrap(),
                    1 => slabs.free_any(object).unwrap(),
                    _ => slabs.free_nolock(object).unwrap(),
                }
            }
        }
        run_on(Some(0));
    });
}

#[test]
fn bulk_calls_lose_nothing() {
    // SL-86
    every_kind(|slabs, cache| {
        for count in [1, 3, 40, 150] {
            let mut objects = std::vec![None; count];
            match slabs.alloc_bulk(cache, Gfp::KERNEL, &mut objects) {
                Ok(()) => {
                    assert!(objects.iter().all(Option::is_some));
                    // SAFETY: just allocated.
                    unsafe { slabs.free_bulk(cache, &mut objects).unwrap() };
                }
                Err(error) => {
                    assert!(is_shortage(error), "{error}");
                    assert!(objects.iter().all(Option::is_none), "all or nothing");
                }
            }
        }
    });
}

#[test]
fn prefilled_sheaves_lose_nothing() {
    every_kind(|slabs, cache| {
        let capacity = cache.sheaf_capacity() as u32;
        for count in [1, capacity.max(1), capacity + 9] {
            let Ok(mut sheaf) = slabs.prefill(cache, Gfp::KERNEL, count) else { continue };
            assert!(sheaf.len() >= count);
            let mut objects = Vec::new();
            while objects.len() < count as usize {
                objects.push(sheaf.alloc(Gfp::empty()).unwrap());
            }
            if sheaf.refill(Gfp::KERNEL, count + 5).is_ok() {
                assert!(sheaf.len() >= count + 5);
            }
            give(slabs, cache, objects);
            sheaf.give_back(Gfp::KERNEL);
        }
    });
}

#[test]
fn frees_through_rcu_lose_nothing() {
    every_kind(|slabs, cache| {
        for round in 0..3 {
            let objects: Vec<_> = (0..130).filter_map(|_| slabs.alloc(cache, Gfp::KERNEL).ok()).collect();
            for (at, object) in objects.into_iter().enumerate() {
                // SAFETY: ours, and nobody reads it.
                unsafe {
                    if at % 10 == 9 {
                        slabs.free_rcu_mightsleep(object).unwrap();
                    } else {
                        slabs.free_rcu(object, object.cast::<RcuHead>()).unwrap();
                    }
                }
            }
            if round == 1 {
                slabs.env().grace().pass();
                slabs.rcu_poll();
            }
        }
    });
}

#[test]
fn pools_lose_nothing() {
    // MP-01
    for (size, flags) in KINDS {
        at_every_failure(SlabConfig::DEFAULT, |slabs| {
            with_cache(slabs, size, flags, |cache| {
                let source = CacheElements { slabs, cache };
                let Ok(pool) = Mempool::new(slabs, 20, source, Gfp::KERNEL) else { return };
                assert_eq!(pool.available(), 20);
                let mut elements: Vec<_> = (0..20).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
                elements.extend((0..40).filter_map(|_| pool.alloc(Gfp::NOWAIT).ok()));
                for element in elements {
                    // SAFETY: from the pool.
                    unsafe { pool.free(element) };
                }
                let mut bulk = [None; 20];
                pool.alloc_bulk(Gfp::KERNEL, &mut bulk).unwrap();
                for element in bulk.into_iter().flatten() {
                    // SAFETY: from the pool.
                    unsafe { pool.free(element) };
                }
                match pool.resize(60, Gfp::KERNEL) {
                    Ok(()) => assert_eq!(pool.min_nr(), 60),
                    Err(_) => assert_eq!(pool.min_nr(), 20),
                }
            });
        });
    }
}

#[test]
fn shrinking_and_destroying_need_no_memory() {
    // SL-95, SL-96
    for (size, flags) in KINDS {
        let slabs = family(2);
        let before = slabs.env().pages().in_use();
        let cache = slabs.create("life", size, &with_flags(flags)).unwrap();
        let objects = take(&slabs, cache, 200);
        slabs.env().pages().exhausted.store(true, Ordering::Relaxed);
        slabs.env().requests();
        give(&slabs, cache, objects);
        slabs.env().grace().pass();
        slabs.shrink(cache);
        slabs.env().grace().pass();
        assert!(!slabs.shrink(cache));
        assert_eq!(slabs.stats().slab_pages(), 0);
        destroy(&slabs, cache);
        slabs.env().pages().exhausted.store(false, Ordering::Relaxed);
        slabs.shrink_all();
        assert_eq!(slabs.env().pages().in_use(), before);
        let asked = slabs.env().requests().len();
        assert!(asked <= 200, "sheaves for freeing are asked for gently: {asked}");
    }
}

#[test]
fn a_fragmented_source_gives_the_smallest_slabs() {
    // SL-35
    let slabs = family(1);
    let cache = slabs.create("large", 700, &CacheArgs::default()).unwrap();
    assert!(cache.order().get() > 0);
    slabs.env().pages().fragmented.store(true, Ordering::Relaxed);
    let objects = take(&slabs, cache, 30);
    assert_eq!(slabs.slab_info(cache).num_slabs, 6, "five in a page");
    give(&slabs, cache, objects);
    destroy(&slabs, cache);
}
