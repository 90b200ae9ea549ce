//! Shrinking and destroying.

use kmem_gfp::Gfp;
use std::vec::Vec;

use super::{BARE, destroy, family, family_with, give, take, with_flags};
use crate::{CacheArgs, DestroyError, SlabEnv, SlabFlags};

#[test]
fn c03_destroying_with_live_objects_lists_them_and_loses_nothing() {
    // SL-97, C03: full slabs are found as well, and the cache works on.
    let slabs = family(1);
    let cache = slabs.create("things", 512, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 20);
    give(&slabs, cache, objects[19..].iter().copied());
    // SAFETY: refused, as objects are in use.
    let error = unsafe { slabs.destroy(cache) };
    let Err(DestroyError::ObjectsRemain { live: 19, slabs: 3, first }) = error else { panic!("{error:?}") };
    assert!(objects.iter().any(|object| object.addr().get() == first));
    for object in &objects[..19] {
        assert!(slabs.env().reported(&std::format!("Object {:#018x} remains", object.addr())).is_some());
    }
    let mut live = Vec::new();
    slabs.for_each_live_object(cache, |object| live.push(object));
    live.sort_unstable();
    let mut expected = objects[..19].to_vec();
    expected.sort_unstable();
    assert_eq!(live, expected);
    let more = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    give(&slabs, cache, [more]);
    give(&slabs, cache, objects[..19].iter().copied());
    destroy(&slabs, cache);
    assert!(slabs.find_cache("things").is_none(), "the name is free");
    slabs.create("things", 512, &CacheArgs::default()).unwrap();
}

#[test]
fn live_objects_of_caches_with_users_name_their_callers() {
    // SL-97, TS-07
    let slabs = family(1);
    let cache = slabs.create("things", 64, &with_flags(SlabFlags::STORE_USER)).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: refused.
    assert!(unsafe { slabs.destroy(cache) }.is_err());
    assert!(slabs.env().reported("Allocated in").unwrap().contains("destroy.rs"));
    give(&slabs, cache, [object]);
    destroy(&slabs, cache);
}

#[test]
fn shrinking_gives_empty_slabs_back_and_sorts_the_rest() {
    // SL-95, SL-63
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 512, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 40);
    for (slab, kept) in [(0, 1), (1, 7), (2, 3), (3, 0), (4, 5)] {
        give(&slabs, cache, objects[slab * 8 + kept..slab * 8 + 8].iter().copied());
    }
    assert!(slabs.shrink(cache), "slabs are left");
    assert_eq!(slabs.cache_stats(cache).slabs, 4);
    let node = cache.node(0).unwrap();
    let free = node.with(slabs.env().cpu(), crate::backend::Locking::Wait, |lists| {
        lists.partial.iter(slabs.env().frames()).map(|slab| slab.state().free()).collect::<Vec<_>>()
    });
    assert_eq!(free.unwrap(), [1, 3, 5, 7], "fullest first");
    for (slab, kept) in [(0, 1), (1, 7), (2, 3), (4, 5)] {
        give(&slabs, cache, objects[slab * 8..slab * 8 + kept].iter().copied());
    }
    assert!(!slabs.shrink(cache), "nothing is left");
}

#[test]
fn everything_freed_is_everything_back() {
    let slabs = family(4);
    let start = slabs.env().pages().in_use();
    let caches: Vec<_> = [8, 24, 64, 200, 700, 1024, 4096, 33000]
        .iter()
        .map(|size| slabs.create(&std::format!("c{size}"), *size, &CacheArgs::default()).unwrap())
        .collect();
    for cache in &caches {
        let mut objects = Vec::new();
        for cpu in 0..4 {
            super::env::run_on(Some(cpu));
            objects.extend(take(&slabs, cache, if cache.stride() > 8192 { 5 } else { 150 }));
        }
        super::env::run_on(Some(3));
        give(&slabs, cache, objects);
    }
    super::env::run_on(Some(0));
    slabs.shrink_all();
    assert_eq!(slabs.stats().slab_pages(), 0);
    for cache in caches {
        destroy(&slabs, cache);
    }
    slabs.shrink_all();
    assert_eq!(slabs.env().pages().in_use(), start);
}

#[test]
fn a_family_that_is_dropped_empty_returns_its_own_pages() {
    let env = super::env::TestEnv::new(2, 512);
    {
        let slabs = crate::Slabs::new(&env);
        slabs.init().unwrap();
        let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
        let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
        // SAFETY: ours; then nobody uses the cache.
        unsafe {
            slabs.free(cache, object).unwrap();
            slabs.destroy(cache).unwrap();
        }
    }
    assert_eq!(env.pages().in_use(), 0);
}
