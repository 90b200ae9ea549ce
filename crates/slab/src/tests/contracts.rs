//! Rows of the contract that object caches serve: what was given comes back every permitted way, and no other way.

use core::ptr::NonNull;
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp, NodeId};

use super::env::{TestEnv, run_on};
use super::{destroy, family, family_with, give, take, with_flags};
use crate::{CacheArgs, DestroyError, KmemCache, ObjectError, RcuHead, SlabConfig, SlabEnv, SlabFlags, Slabs};

/// Whether the cache is empty after flushing.
fn all_free(slabs: &Slabs<TestEnv>, cache: &KmemCache) -> bool {
    slabs.rcu_barrier();
    !slabs.shrink(cache)
}

#[test]
fn c02_plain_zeroing_node_and_bulk_forms() {
    // SL-80
    let slabs = family(1);
    let cache = slabs.create("things", 104, &CacheArgs::default()).unwrap();
    let dirty = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: ours.
    unsafe { dirty.write_bytes(0xff, 104) };
    give(&slabs, cache, [dirty]);
    let zeroed = slabs.zalloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: ours.
    assert_eq!(unsafe { zeroed.cast::<[u8; 104]>().read() }, [0; 104]);
    let near = slabs.alloc_node(cache, Gfp::KERNEL, Some(NodeId(0))).unwrap();
    let anywhere = slabs.alloc_node(cache, Gfp::KERNEL, None).unwrap();
    assert_eq!(slabs.alloc_node(cache, Gfp::KERNEL, Some(NodeId(1))), Err(AllocError::NoSuchNode(NodeId(1))));
    let mut many = [None; 16];
    slabs.alloc_bulk(cache, Gfp::KERNEL | Gfp::ZERO, &mut many).unwrap();
    for object in many.iter().copied().flatten() {
        // SAFETY: ours.
        assert_eq!(unsafe { object.cast::<[u8; 104]>().read() }, [0; 104]);
    }
    let mut all: Vec<_> = many.iter().copied().flatten().chain([zeroed, near, anywhere]).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 19, "every object is another");
    give(&slabs, cache, all);
    assert!(all_free(&slabs, cache));
    destroy(&slabs, cache);
}

#[test]
fn c03_a_cache_with_live_objects_works_on() {
    // SL-96, SL-97
    for flags in [SlabFlags::empty(), SlabFlags::DEBUG_DEFAULT, SlabFlags::TYPESAFE_BY_RCU] {
        for live in [1, 7, 40, 200] {
            let slabs = family(2);
            let cache = slabs.create("things", 200, &with_flags(flags)).unwrap();
            let objects = take(&slabs, cache, live);
            run_on(Some(1));
            give(&slabs, cache, take(&slabs, cache, 100));
            run_on(Some(0));
            slabs.env().reports();
            // SAFETY: refused, as objects are in use.
            let error = unsafe { slabs.destroy(cache) }.unwrap_err();
            let DestroyError::ObjectsRemain { live: counted, first, .. } = error else { panic!("{error}") };
            assert_eq!(counted, live, "{flags:?}");
            assert!(objects.iter().any(|object| object.addr().get() == first));
            let lines = slabs.env().reports();
            assert!(lines[0].contains("BUG things: Objects remaining"), "{lines:?}");
            let listed = lines.iter().filter(|line| line.starts_with("Object 0x") && line.ends_with("remains")).count();
            assert_eq!(listed, live.min(32));
            let traced = lines.iter().filter(|line| line.starts_with("Allocated in ")).count();
            assert_eq!(traced, if flags.contains(SlabFlags::STORE_USER) { listed } else { 0 });
            for object in &objects {
                // SAFETY: still ours.
                unsafe { object.write_bytes(1, 200) };
            }
            give(&slabs, cache, take(&slabs, cache, 10));
            give(&slabs, cache, objects);
            destroy(&slabs, cache);
        }
    }
}

#[test]
fn f02_objects_of_a_cache_come_back_through_either_call() {
    // SL-83
    let slabs = family(1);
    for flags in [SlabFlags::empty(), SlabFlags::DEBUG_DEFAULT, SlabFlags::TYPESAFE_BY_RCU] {
        let cache = slabs.create("things", 96, &with_flags(flags | SlabFlags::NO_MERGE)).unwrap();
        for (at, object) in take(&slabs, cache, 300).into_iter().enumerate() {
            // SAFETY: ours.
            unsafe {
                match at % 3 {
                    0 => slabs.free(cache, object).unwrap(),
                    1 => slabs.free_any(object).unwrap(),
                    _ => slabs.free_nolock(object).unwrap(),
                }
            }
        }
        slabs.env().grace().pass();
        slabs.shrink(cache);
        slabs.env().grace().pass();
        assert!(all_free(&slabs, cache), "{flags:?}");
        destroy(&slabs, cache);
    }
}

#[test]
fn f03_bulk_and_rcu_forms_take_any_mixture() {
    // SL-87
    let slabs = family(1);
    let sizes = [32, 96, 700, 5000];
    let caches = sizes.map(|size| slabs.create(&std::format!("c{size}"), size, &CacheArgs::default()).unwrap());
    let mut objects: Vec<Option<NonNull<u8>>> = Vec::new();
    for at in 0..200 {
        objects.push(Some(slabs.alloc(caches[at * 7 % 4], Gfp::KERNEL).unwrap()));
        if at % 50 == 0 {
            objects.push(None);
        }
    }
    let rest = objects.split_off(120);
    // SAFETY: ours.
    unsafe { slabs.free_bulk_any(&mut objects).unwrap() };
    for (at, object) in rest.into_iter().flatten().enumerate() {
        // SAFETY: ours, and nobody reads them.
        unsafe {
            match at % 2 {
                0 => slabs.free_rcu(object, object.cast::<RcuHead>()).unwrap(),
                _ => slabs.free_rcu_mightsleep(object).unwrap(),
            }
        }
    }
    for cache in caches {
        assert!(all_free(&slabs, cache), "{}", cache.name());
        destroy(&slabs, cache);
    }
}

#[test]
fn f06_every_other_pairing_is_an_error_and_corrupts_nothing() {
    // SL-84, SL-85
    let slabs = family(1);
    let foreign = slabs.env().frame(2000);
    let outside = NonNull::from(&mut [0_u64; 8]).cast::<u8>();
    for flags in [SlabFlags::empty(), SlabFlags::DEBUG_DEFAULT] {
        let cache = slabs.create("things", 96, &with_flags(flags | SlabFlags::NO_MERGE)).unwrap();
        let other = slabs.create("others", 128, &with_flags(flags | SlabFlags::NO_MERGE)).unwrap();
        let object = take(&slabs, cache, 1)[0];
        let address = object.addr().get();
        // SAFETY: deliberately wrong; each call must notice.
        unsafe {
            for wrong in [foreign, outside] {
                let refused = ObjectError::NotSlab { address: wrong.addr().get() };
                assert_eq!(slabs.free(cache, wrong), Err(refused));
                assert_eq!(slabs.free_any(wrong), Err(refused));
                assert_eq!(slabs.free_nolock(wrong), Err(refused));
                assert_eq!(slabs.free_rcu_mightsleep(wrong), Err(refused));
                assert_eq!(slabs.free_bulk(cache, &mut [Some(wrong)]).unwrap_err().first, refused);
                assert_eq!(slabs.free_bulk_any(&mut [Some(wrong)]).unwrap_err().first, refused);
            }
            assert_eq!(slabs.free(other, object), Err(ObjectError::WrongCache { address }));
            let bulk = slabs.free_bulk(other, &mut [Some(object), None]).unwrap_err();
            assert_eq!((bulk.refused, bulk.first), (1, ObjectError::WrongCache { address }));
            slabs.free(cache, object).unwrap();
            assert_eq!(slabs.free(cache, object), Err(ObjectError::DoubleFree { address }));
            assert_eq!(slabs.free_any(object), Err(ObjectError::DoubleFree { address }));
        }
        let mut fresh = take(&slabs, cache, 100);
        fresh.sort_unstable();
        fresh.dedup();
        assert_eq!(fresh.len(), 100, "no object is given out twice");
        give(&slabs, cache, fresh);
        assert!(all_free(&slabs, cache));
        destroy(&slabs, cache);
        destroy(&slabs, other);
    }
}

#[test]
fn freed_contents_stay_but_for_the_link() {
    // SL-82
    for config in [SlabConfig::DEFAULT, super::BARE] {
        let slabs = family_with(1, config);
        let cache = slabs.create("things", 128, &CacheArgs::default()).unwrap();
        let object = take(&slabs, cache, 1)[0];
        // SAFETY: ours.
        unsafe { object.write_bytes(0x3c, 128) };
        give(&slabs, cache, [object]);
        slabs.flush_cpu(cache, kmem_sync::CpuId(0));
        // SAFETY: the slab is kept, as it is the only empty one.
        let bytes = unsafe { object.cast::<[u8; 128]>().read() };
        let link = cache.layout.free_offset..cache.layout.free_offset + 8;
        assert!(bytes.iter().enumerate().all(|(at, byte)| link.contains(&at) || *byte == 0x3c));
    }
}

#[test]
fn zeroing_what_a_constructor_made_is_done_and_reported_once() {
    // SL-81
    static CALLS: core::sync::atomic::AtomicUsize = core::sync::atomic::AtomicUsize::new(0);
    unsafe fn constructor(object: NonNull<u8>) {
        CALLS.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        // SAFETY: an object of the cache below.
        unsafe { object.write_bytes(7, 48) };
    }
    let slabs = family(1);
    let args = CacheArgs { ctor: Some(constructor), ..CacheArgs::default() };
    let cache = slabs.create("constructed", 48, &args).unwrap();
    let objects = take(&slabs, cache, 3);
    let calls = CALLS.load(core::sync::atomic::Ordering::Relaxed);
    assert_eq!(calls as u64, slabs.slab_info(cache).num_objs, "once for each object of a new slab");
    // SAFETY: ours.
    assert!(objects.iter().all(|object| unsafe { object.cast::<[u8; 48]>().read() } == [7; 48]));
    // SAFETY: ours.
    unsafe { objects[0].write_bytes(8, 48) };
    give(&slabs, cache, [objects[0]]);
    let again = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: ours.
    assert_eq!(unsafe { again.cast::<[u8; 48]>().read() }, [8; 48], "as its user left it");
    let mut zeroed = Vec::new();
    for _ in 0..300 {
        let object = slabs.zalloc(cache, Gfp::KERNEL).unwrap();
        // SAFETY: ours.
        assert_eq!(unsafe { object.cast::<[u8; 48]>().read() }, [0; 48]);
        zeroed.push(object);
    }
    let told = slabs.env().reports().iter().filter(|line| line.contains("constructor")).count();
    assert_eq!(told, 1);
    give(&slabs, cache, zeroed.into_iter().chain([again, objects[1], objects[2]]));
    destroy(&slabs, cache);
}

#[test]
fn a_link_cannot_be_read_or_forged_without_the_secret() {
    // SL-99
    let slabs = family_with(1, super::BARE);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let other = slabs.create("others", 64, &with_flags(SlabFlags::NO_MERGE)).unwrap();
    let objects = take(&slabs, cache, 3);
    give(&slabs, cache, objects.iter().copied());
    let link = |object: NonNull<u8>| {
        // SAFETY: the word at the link's place of a free object.
        unsafe { object.add(cache.layout.free_offset).cast::<usize>().read() }
    };
    assert_ne!(link(objects[2]), objects[1].addr().get(), "not stored as it is");
    // SAFETY: the object is free and has a link.
    unsafe {
        assert_eq!(cache.next(objects[2]), objects[1].as_ptr());
        assert_ne!(other.next(objects[2]), objects[1].as_ptr(), "another cache has another secret");
    }
    let address = objects[2].addr().get();
    // SAFETY: deliberately wrong: the object would link to itself.
    assert_eq!(unsafe { slabs.free(cache, objects[2]) }, Err(ObjectError::DoubleFree { address }));
}

#[test]
fn long_lists_are_sorted_as_well() {
    // SL-95
    let slabs = family_with(1, SlabConfig { max_order: 0, ..super::BARE });
    // Of slabs with 64 objects, those with more than 32 free slots stay behind.
    for (size, per_slab) in [(128, 32), (64, 64)] {
        let cache = slabs.create("things", size, &with_flags(SlabFlags::NO_MERGE)).unwrap();
        assert_eq!(cache.objects_per_slab(), per_slab);
        let objects = take(&slabs, cache, 300 * per_slab);
        let mut kept = Vec::new();
        for (at, slab) in objects.chunks(per_slab).enumerate() {
            let free = 1 + at * 7 % (per_slab - 1);
            give(&slabs, cache, slab[..free].iter().copied());
            kept.extend_from_slice(&slab[free..]);
        }
        assert!(slabs.shrink(cache));
        let list: Vec<usize> = cache
            .node(0)
            .unwrap()
            .with(slabs.env().cpu(), crate::backend::Locking::Wait, |lists| {
                lists.partial.iter(slabs.env().frames()).map(|slab| slab.state().free()).collect()
            })
            .unwrap();
        assert_eq!(list.len(), 300);
        let sorted = list.iter().take_while(|free| **free <= 32).count();
        assert!(list[..sorted].is_sorted(), "the fullest first");
        assert!(list[sorted..].iter().all(|free| *free > 32), "then those with more than 32 free slots, as they were");
        give(&slabs, cache, kept);
        assert!(!slabs.shrink(cache));
        destroy(&slabs, cache);
    }
}

#[test]
fn any_context_frees_queue_nothing() {
    // SL-91
    let slabs = family_with(1, super::BARE);
    let cache = slabs.create("files", 512, &with_flags(SlabFlags::TYPESAFE_BY_RCU)).unwrap();
    cache.set_min_partial(0);
    let objects = take(&slabs, cache, 40);
    for object in objects {
        // SAFETY: ours.
        unsafe { slabs.free_nolock(object).unwrap() };
    }
    assert!(!cache.pending.any(), "empty slabs stay listed: their queue has a lock");
    assert_eq!(slabs.slab_info(cache).active_objs, 0);
    slabs.shrink(cache);
    assert!(cache.pending.any());
    slabs.env().grace().pass();
    assert!(!slabs.shrink(cache));
    destroy(&slabs, cache);
}
