//! Frees that wait for readers, on several nodes and with every way to hurry them.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use kmem_gfp::{Gfp, NodeId};
use kmem_sync::CpuId;

use super::env::{TestEnv, run_on};
use super::{destroy, family, give, take, with_flags};
use crate::{CacheArgs, KmemCache, RcuHead, SlabEnv, SlabFlags, Slabs};

/// Frees an object of at least 16 bytes through RCU, the head at its start.
fn free_rcu(slabs: &Slabs<TestEnv>, object: NonNull<u8>) {
    // SAFETY: the test owns the object, and nobody reads it.
    unsafe { slabs.free_rcu(object, object.cast::<RcuHead>()).unwrap() };
}

fn grace_passes(slabs: &Slabs<TestEnv>) {
    slabs.env().grace().pass();
    slabs.rcu_poll();
}

fn two_nodes() -> Slabs<TestEnv> {
    let slabs = Slabs::new(TestEnv::with_nodes(2, 1024, 2));
    slabs.init().unwrap();
    slabs
}

#[test]
fn an_object_of_another_node_waits_by_itself() {
    // RC-03, RC-05
    let slabs = two_nodes();
    let cache = slabs.create("nodes", 64, &CacheArgs::default()).unwrap();
    run_on(Some(0));
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    assert!(slabs.shrink(cache), "only the object is left");
    run_on(Some(1));
    free_rcu(&slabs, object);
    slabs.rcu_poll();
    assert_eq!(slabs.slab_info(cache).num_slabs, 1);
    grace_passes(&slabs);
    assert!(!slabs.shrink(cache), "no sheaf had it: the grace period was all it waited for");
    run_on(Some(0));
    destroy(&slabs, cache);
}

#[test]
fn a_sheaf_goes_to_the_barn_of_its_objects_node_whoever_polls() {
    // RC-03
    let slabs = two_nodes();
    let cache = slabs.create("nodes", 64, &CacheArgs::default()).unwrap();
    run_on(Some(0));
    for object in take(&slabs, cache, cache.sheaf_capacity()) {
        free_rcu(&slabs, object);
    }
    run_on(Some(1));
    grace_passes(&slabs);
    assert_eq!(cache.node(0).unwrap().barn.nr_full(), 1);
    assert_eq!(cache.node(1).unwrap().barn.nr_full(), 0);
    let object = slabs.alloc_node(cache, Gfp::KERNEL | Gfp::THISNODE, Some(NodeId(1))).unwrap();
    give(&slabs, cache, [object]);
    run_on(Some(0));
    destroy(&slabs, cache);
}

#[test]
fn a_part_filled_sheaf_stays_until_something_flushes_it() {
    // RC-04
    type Flush = fn(&Slabs<TestEnv>, &KmemCache);
    let flushes: [(&str, Flush); 3] = [
        ("a barrier", |slabs, _| slabs.rcu_barrier()),
        ("shrinking", |slabs, cache| {
            slabs.shrink(cache);
        }),
        ("a CPU's end", |slabs, _| slabs.cpu_dead(CpuId(0))),
    ];
    for (what, flush) in flushes {
        let slabs = family(1);
        let cache = slabs.create("nodes", 64, &CacheArgs::default()).unwrap();
        for object in take(&slabs, cache, 3) {
            free_rcu(&slabs, object);
        }
        for _ in 0..5 {
            grace_passes(&slabs);
        }
        assert!(slabs.slab_info(cache).active_objs >= 3, "there is no timer");
        flush(&slabs, cache);
        grace_passes(&slabs);
        slabs.shrink(cache);
        assert_eq!(slabs.slab_info(cache).num_slabs, 0, "{what}");
        destroy(&slabs, cache);
    }
}

#[test]
fn the_head_may_be_anywhere_in_the_object() {
    // RC-01, RC-05, RC-09, RC-12
    let slabs = family(1);
    let cache = slabs.create("nodes", 96, &CacheArgs::default()).unwrap();
    // Without a CPU there is no sheaf.
    run_on(None);
    let objects = take(&slabs, cache, 6);
    slabs.env().pages().exhausted.store(true, Ordering::Relaxed);
    let (early, late) = objects.split_at(3);
    for (at, &object) in early.iter().enumerate() {
        // SAFETY: ours, and nobody reads it.
        unsafe { slabs.free_rcu(object, object.add(8 * at).cast()).unwrap() };
    }
    slabs.env().grace().pass();
    for &object in late {
        // SAFETY: as above.
        unsafe { slabs.free_rcu(object, object.add(80).cast()).unwrap() };
    }
    assert_eq!(slabs.slab_info(cache).active_objs, 3, "the first three were moved on, and only those");
    grace_passes(&slabs);
    assert_eq!(slabs.slab_info(cache).active_objs, 0);
    run_on(Some(0));
    destroy(&slabs, cache);
}

#[test]
fn a_barrier_waits_for_every_cpu_and_cache() {
    // RC-08
    let slabs = family(2);
    let first = slabs.create("first", 64, &CacheArgs::default()).unwrap();
    let second = slabs.create("second", 640, &with_flags(SlabFlags::CONSISTENCY_CHECKS)).unwrap();
    for cpu in 0..2 {
        run_on(Some(cpu));
        for cache in [first, second] {
            for object in take(&slabs, cache, 70) {
                free_rcu(&slabs, object);
            }
        }
    }
    run_on(Some(0));
    slabs.rcu_barrier();
    for cache in [first, second] {
        assert!(!slabs.shrink(cache), "everything is free");
        destroy(&slabs, cache);
    }
}

#[test]
fn every_kind_of_cache_may_be_destroyed_right_after() {
    // RC-08, SL-96, SL-98
    for flags in [SlabFlags::empty(), SlabFlags::DEBUG_DEFAULT, SlabFlags::TYPESAFE_BY_RCU] {
        let slabs = family(1);
        let pages = slabs.env().pages().in_use();
        let cache = slabs.create("nodes", 64, &with_flags(flags | SlabFlags::NO_MERGE)).unwrap();
        for object in take(&slabs, cache, 200) {
            free_rcu(&slabs, object);
        }
        destroy(&slabs, cache);
        slabs.shrink_all();
        assert_eq!(slabs.env().pages().in_use(), pages, "{flags:?}");
    }
}
