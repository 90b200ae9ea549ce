//! Frees that wait for readers, and slabs that do.

use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::vec::Vec;

use kmem_gfp::Gfp;

use super::{BARE, destroy, family, family_with, give, take, with_flags};
use crate::{CacheArgs, RcuHead, SlabEnv, SlabFlags, Slabs};

#[repr(C)]
struct Node {
    value: u64,
    head: RcuHead,
}

fn head(object: NonNull<u8>) -> NonNull<RcuHead> {
    // SAFETY: inside the object.
    unsafe { object.add(offset_of!(Node, head)).cast() }
}

fn free_rcu(slabs: &Slabs<super::env::TestEnv>, object: NonNull<u8>) {
    // SAFETY: ours; readers look at `value` only.
    unsafe { slabs.free_rcu(object, head(object)).unwrap() };
}

#[test]
fn an_object_is_not_reused_before_its_readers_finish() {
    // RC-01, RC-03, RC-04
    let slabs = family(1);
    let cache = slabs.create("nodes", size_of::<Node>(), &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 60);
    for object in &objects {
        free_rcu(&slabs, *object);
    }
    let fresh = take(&slabs, cache, 200);
    assert!(fresh.iter().all(|object| !objects.contains(object)), "still waiting");
    slabs.env().grace().pass();
    slabs.rcu_poll();
    assert_eq!(slabs.cache_stats(cache).barn_full, 1, "a full sheaf goes to the barn");
    let reused = take(&slabs, cache, 150);
    assert!(reused.iter().filter(|object| objects.contains(object)).count() >= 50);
    give(&slabs, cache, fresh.into_iter().chain(reused));
    destroy(&slabs, cache);
}

#[test]
fn a_part_filled_sheaf_waits_for_a_barrier() {
    // RC-04, RC-08, SL-115
    let slabs = family(2);
    let cache = slabs.create("nodes", size_of::<Node>(), &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 10);
    super::env::run_on(Some(1));
    for object in &objects {
        free_rcu(&slabs, *object);
    }
    super::env::run_on(Some(0));
    slabs.env().grace().pass();
    slabs.rcu_poll();
    assert!(slabs.cache_stats(cache).objects >= 10);
    slabs.rcu_barrier();
    assert_eq!(slabs.env().grace().synchronized.load(Ordering::Relaxed), 1);
    assert!(!slabs.shrink(cache), "all free");
}

#[test]
fn destroying_right_after_is_safe() {
    // RC-08, SL-96, SL-98, TS-06
    let slabs = family(1);
    for _ in 0..10 {
        let cache = slabs.create("nodes", size_of::<Node>(), &CacheArgs::default()).unwrap();
        for object in take(&slabs, cache, 70) {
            free_rcu(&slabs, object);
        }
        destroy(&slabs, cache);
    }
}

#[test]
fn without_sheaves_objects_wait_by_their_own_heads() {
    // RC-02, RC-05, RC-12: every head has its own grace period, oldest first.
    let slabs = family_with(1, BARE);
    let checked = slabs.create("checked", size_of::<Node>(), &with_flags(SlabFlags::DEBUG_DEFAULT)).unwrap();
    let cache = slabs.create("nodes", size_of::<Node>(), &CacheArgs::default()).unwrap();
    for cache in [cache, checked] {
        let objects = take(&slabs, cache, 3);
        free_rcu(&slabs, objects[0]);
        slabs.env().grace().pass();
        free_rcu(&slabs, objects[1]);
        assert_eq!(slabs.cache_stats(cache).objects, 2, "the first is free, the second waits");
        // SAFETY: ours.
        unsafe { slabs.free_rcu_mightsleep(objects[2]).unwrap() };
        assert!(slabs.env().grace().synchronized.load(Ordering::Relaxed) > 0, "no memory to note it: waits");
        slabs.rcu_poll();
        assert_eq!(slabs.cache_stats(cache).objects, 0);
        assert_eq!(slabs.validate(checked), Some(0));
    }
    let outside = slabs.env().frame(2000);
    // SAFETY: refused.
    assert!(unsafe { slabs.free_rcu(outside, outside.cast()) }.is_err());
    // SAFETY: refused.
    assert!(unsafe { slabs.free_rcu_mightsleep(outside) }.is_err());
}

#[test]
fn mightsleep_uses_the_sheaf_when_it_can() {
    // RC-02
    let slabs = family(1);
    let cache = slabs.create("nodes", 64, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: ours.
    unsafe { slabs.free_rcu_mightsleep(object).unwrap() };
    assert_eq!(slabs.env().grace().synchronized.load(Ordering::Relaxed), 0);
    destroy(&slabs, cache);
}

#[test]
fn typesafe_slabs_leave_after_a_grace_period() {
    // SL-14, SL-98
    let slabs = family_with(1, BARE);
    let cache = slabs.create("typesafe", 512, &with_flags(SlabFlags::TYPESAFE_BY_RCU)).unwrap();
    cache.set_min_partial(0);
    let objects = take(&slabs, cache, 40);
    // SAFETY: ours.
    unsafe { objects[0].write_bytes(0x42, 512) };
    let pages = slabs.env().pages().in_use();
    give(&slabs, cache, objects.iter().copied());
    assert_eq!(slabs.env().pages().in_use(), pages, "not one page has gone");
    // SAFETY: as a reader of a typesafe cache would.
    assert!((0..512).all(|at| unsafe { objects[0].add(at).read() } == 0x42), "contents intact");
    slabs.env().grace().pass();
    slabs.rcu_poll();
    assert!(slabs.env().pages().in_use() < pages);
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    give(&slabs, cache, [object]);
    destroy(&slabs, cache);
}

#[test]
fn typesafe_objects_are_reused_at_once() {
    // SL-14, TS-20, TS-36
    let slabs = family(1);
    let cache = slabs.create("typesafe", 16, &with_flags(SlabFlags::TYPESAFE_BY_RCU)).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: ours.
    unsafe { object.write_bytes(0x5c, 16) };
    give(&slabs, cache, [object]);
    let again = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    assert_eq!(object, again);
    // SAFETY: ours.
    assert!((0..16).all(|at| unsafe { again.add(at).read() } == 0x5c));
    give(&slabs, cache, [again]);
    destroy(&slabs, cache);
}

#[test]
fn many_sheaves_wait_in_order() {
    // RC-03: when the barn has enough full sheaves, the rest is flushed.
    let slabs = family(1);
    let cache = slabs.create("nodes", 64, &CacheArgs::default()).unwrap();
    let objects: Vec<_> = take(&slabs, cache, 60 * 13);
    for object in objects {
        free_rcu(&slabs, object);
    }
    slabs.env().grace().pass();
    slabs.rcu_poll();
    assert_eq!(slabs.cache_stats(cache).barn_full, 10);
    slabs.rcu_barrier();
    assert!(!slabs.shrink(cache));
}
