//! Sheaves and barns: what the fast path gives, trades and keeps.

use std::vec::Vec;

use kmem_gfp::Gfp;
use kmem_sync::CpuId;

use super::env::run_on;
use super::{destroy, family, family_with, give, take, with_flags};
use crate::{CacheArgs, SlabConfig, SlabEnv, SlabFlags};

#[test]
fn allocation_is_last_in_first_out() {
    // SL-54
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 20);
    give(&slabs, cache, objects.clone());
    let again = take(&slabs, cache, 20);
    assert!(again.iter().eq(objects.iter().rev()));
    give(&slabs, cache, again);
}

#[test]
fn every_cache_has_sheaves_but_those_that_must_not() {
    // SL-53, SL-17, SL-19
    let slabs = family(2);
    let capacity = |name, flags| slabs.create(name, 64, &with_flags(flags)).unwrap().sheaf_capacity();
    assert_eq!(capacity("plain", SlabFlags::empty()), 60);
    assert_eq!(capacity("hidden", SlabFlags::NOLEAKTRACE), 0);
    assert_eq!(capacity("red", SlabFlags::RED_ZONE), 0);
    assert_eq!(capacity("traced", SlabFlags::TRACE), 0);
}

#[test]
fn full_sheaves_go_to_the_barn_and_come_back() {
    // SL-50, SL-51, SL-55: main, spare, then the barn up to its limit, then the slabs.
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let capacity = cache.sheaf_capacity();
    let objects = take(&slabs, cache, capacity * 14);
    give(&slabs, cache, objects);
    let stats = slabs.cache_stats(cache);
    assert_eq!(stats.barn_full, 10);
    let parked = stats.objects as usize;
    assert!(parked <= 12 * capacity && parked >= 11 * capacity, "{parked} parked");
    let slab_pages = stats.pages;
    let again = take(&slabs, cache, capacity * 11);
    assert_eq!(slabs.cache_stats(cache).pages, slab_pages, "no new slab while sheaves are full");
    assert!(slabs.cache_stats(cache).barn_full <= 1);
    give(&slabs, cache, again);
    destroy(&slabs, cache);
}

#[test]
fn a_barn_that_nobody_draws_from_gets_smaller() {
    // SL-51, SL-55: what a long run of frees cannot place goes to the slabs, and so does more and more of the barn.
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let capacity = cache.sheaf_capacity();
    let objects = take(&slabs, cache, capacity * 60);
    give(&slabs, cache, objects);
    assert!(slabs.cache_stats(cache).barn_full <= 2);
    let objects = take(&slabs, cache, capacity * 60);
    give(&slabs, cache, objects[..capacity * 14].iter().copied());
    assert!(slabs.cache_stats(cache).barn_full >= 9, "refills from slabs make it large again");
    give(&slabs, cache, objects[capacity * 14..].iter().copied());
    destroy(&slabs, cache);
}

#[test]
fn a_barn_grows_with_bursts_that_repeat() {
    // SL-51: what one burst sent to the slabs and the next one missed stays in sheaves, within limits.
    let slabs = family(1);
    let cache = slabs.create("things", 256, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 800);
    give(&slabs, cache, objects);
    assert!(slabs.cache_stats(cache).barn_full <= 10, "a burst alone earns nothing");
    for _ in 0..6 {
        let objects = take(&slabs, cache, 800);
        give(&slabs, cache, objects);
    }
    slabs.env().requests();
    let objects = take(&slabs, cache, 800);
    assert_eq!(slabs.env().requests(), [], "nothing comes from new slabs");
    let more = take(&slabs, cache, 4000);
    give(&slabs, cache, objects);
    give(&slabs, cache, more);
    let parked = slabs.cache_stats(cache).barn_full as usize * cache.sheaf_capacity() * cache.stride();
    assert!(parked <= 256 << 10, "{parked} bytes");
    destroy(&slabs, cache);
}

#[test]
fn barns_pass_objects_between_cpus() {
    // SL-51, SL-54
    let slabs = family(2);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let capacity = cache.sheaf_capacity();
    let objects = take(&slabs, cache, capacity * 5);
    give(&slabs, cache, objects.clone());
    run_on(Some(1));
    let again = take(&slabs, cache, capacity * 2);
    assert!(again.iter().all(|object| objects.contains(object)), "no new slab for the second CPU");
    give(&slabs, cache, again);
}

#[test]
fn a_busy_section_is_no_error() {
    // SL-56: what cannot have the sheaves goes to the slabs.
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::ATOMIC).unwrap();
    let inside = cache.slots.try_with(slabs.env().cpu(), |slot, _| {
        let before = slot.main;
        let interrupting = slabs.alloc(cache, Gfp::ATOMIC).unwrap();
        give(&slabs, cache, [interrupting, object]);
        before == slot.main
    });
    assert_eq!(inside, Some(true));
    destroy(&slabs, cache);
}

#[test]
fn refills_never_make_a_slab_for_the_sheaf_alone() {
    // SL-54, SL-75
    let slabs = family(1);
    let cache = slabs.create("large", 4096, &CacheArgs::default()).unwrap();
    let mut objects = Vec::new();
    for nr in 1..100 {
        objects.push(slabs.alloc(cache, Gfp::KERNEL).unwrap());
        let stats = slabs.cache_stats(cache);
        assert!(stats.total_objects < nr + 8, "{} slots for {nr} objects", stats.total_objects);
    }
    give(&slabs, cache, objects);
}

#[test]
fn flushing_a_cpu_returns_its_objects() {
    // SL-63
    let slabs = family(2);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    run_on(Some(1));
    let objects = take(&slabs, cache, 30);
    give(&slabs, cache, objects);
    run_on(Some(0));
    assert!(slabs.cache_stats(cache).objects > 0, "parked objects count as active");
    slabs.cpu_dead(CpuId(1));
    assert_eq!(slabs.cache_stats(cache).objects, 0);
    slabs.wait_sections();
    assert!(!slabs.shrink(cache));
}

#[test]
fn sheaf_memory_is_not_counted_as_slab() {
    // SL-64: sheaves live in the family's own memory, so making one cannot recurse.
    let slabs = family(4);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    let stats = slabs.stats();
    assert_eq!(stats.slab_pages(), slabs.cache_stats(cache).pages);
    assert_eq!(slabs.env().pages().in_use() as u64, stats.slab_pages() + stats.metadata_pages);
    give(&slabs, cache, [object]);
}

#[test]
fn prefilled_sheaves_never_fail_until_empty() {
    // SL-59, SL-60
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let mut sheaf = slabs.prefill(cache, Gfp::KERNEL, 10).unwrap();
    assert_eq!((sheaf.len(), sheaf.capacity()), (60, 60), "topped up to full");
    slabs.env().pages().exhausted.store(true, core::sync::atomic::Ordering::Relaxed);
    let mut objects = Vec::new();
    while let Some(object) = sheaf.alloc(Gfp::ZERO) {
        // SAFETY: ours, 64 bytes.
        assert!((0..64).all(|at| unsafe { object.add(at).read() } == 0));
        objects.push(object);
    }
    assert_eq!(objects.len(), 60);
    assert!(sheaf.is_empty());
    slabs.env().pages().exhausted.store(false, core::sync::atomic::Ordering::Relaxed);
    // SL-61
    sheaf.refill(Gfp::KERNEL, 5).unwrap();
    assert_eq!(sheaf.len(), 60);
    sheaf.refill(Gfp::KERNEL, 5).unwrap();
    sheaf.refill(Gfp::KERNEL, 100).unwrap();
    assert_eq!((sheaf.len(), sheaf.capacity()), (100, 100), "replaced by a bigger one of exactly that");
    slabs.env().pages().exhausted.store(true, core::sync::atomic::Ordering::Relaxed);
    assert!(sheaf.refill(Gfp::KERNEL, 100_000).is_err());
    assert_eq!(sheaf.len(), 100, "not replaced");
    slabs.env().pages().exhausted.store(false, core::sync::atomic::Ordering::Relaxed);
    drop(sheaf);
    give(&slabs, cache, objects);
    destroy(&slabs, cache);
}

#[test]
fn returned_sheaves_are_reused() {
    // SL-59, SL-62
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    let mut first = slabs.prefill(cache, Gfp::KERNEL, 1).unwrap();
    let taken = first.alloc(Gfp::empty()).unwrap();
    let second = slabs.prefill(cache, Gfp::KERNEL, 1).unwrap();
    first.give_back(Gfp::KERNEL);
    assert!(cache.slots.try_with(slabs.env().cpu(), |slot, _| !slot.spare.is_null()).unwrap(), "became the spare");
    second.give_back(Gfp::KERNEL);
    assert_eq!(slabs.cache_stats(cache).barn_full, 1, "full, in the barn");
    let oversize = slabs.prefill(cache, Gfp::KERNEL, 61).unwrap();
    assert_eq!(oversize.len(), 61);
    let barn_full = slabs.cache_stats(cache).barn_full;
    oversize.give_back(Gfp::KERNEL);
    assert_eq!(slabs.cache_stats(cache).barn_full, barn_full, "flushed and freed");
    give(&slabs, cache, [object, taken]);
    destroy(&slabs, cache);
}

#[test]
fn prefilling_works_without_sheaves() {
    let slabs = family_with(1, SlabConfig { max_sheaf_capacity: 0, ..SlabConfig::DEFAULT });
    let plain = slabs.create("plain", 64, &CacheArgs::default()).unwrap();
    let checked = slabs.create("checked", 64, &with_flags(SlabFlags::DEBUG_DEFAULT)).unwrap();
    for cache in [plain, checked] {
        let mut sheaf = slabs.prefill(cache, Gfp::KERNEL, 7).unwrap();
        assert_eq!(sheaf.len(), 7);
        let object = sheaf.alloc(Gfp::empty()).unwrap();
        drop(sheaf);
        give(&slabs, cache, [object]);
        destroy(&slabs, cache);
    }
}
