//! The slab level: lists, states, retirement, hardening. Caches without sheaves, so that every call gets here.

use core::sync::atomic::Ordering;
use std::collections::HashSet;
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp};

use super::{BARE, destroy, family, family_with, give, take, with_flags};
use crate::slab::Slab;
use crate::{CacheArgs, ObjectError, SlabConfig, SlabEnv, SlabFlags};

#[test]
fn slabs_move_between_the_lists() {
    // SL-70..SL-72
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 512, &CacheArgs::default()).unwrap();
    let per_slab = cache.objects_per_slab();
    assert_eq!(per_slab, 8);
    let objects = take(&slabs, cache, 2 * per_slab);
    assert_eq!((slabs.cache_stats(cache).slabs, slabs.cache_stats(cache).partial), (2, 0), "full, on no partial list");
    give(&slabs, cache, [objects[0]]);
    let stats = slabs.cache_stats(cache);
    assert_eq!((stats.slabs, stats.partial, stats.objects_partial), (2, 1, 7), "the first free lists it");
    assert_eq!(take(&slabs, cache, 1), [objects[0]], "from the partial slab, not a new one");
    give(&slabs, cache, objects);
    destroy(&slabs, cache);
}

#[test]
fn empty_slabs_are_released_beyond_the_partial_minimum() {
    // SL-73
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 512, &CacheArgs::default()).unwrap();
    cache.set_min_partial(3);
    assert_eq!(cache.min_partial(), 3);
    let objects = take(&slabs, cache, 80);
    for slab in objects.chunks(8) {
        give(&slabs, cache, slab[1..].iter().copied());
    }
    assert_eq!(slabs.cache_stats(cache).partial, 10);
    give(&slabs, cache, objects.iter().step_by(8).copied());
    assert_eq!(slabs.cache_stats(cache).slabs, 2, "released down to the minimum, itself included");
    assert_eq!(slabs.cache_stats(cache).objects, 0);
    cache.set_min_partial(0);
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    give(&slabs, cache, [object]);
    assert_eq!(slabs.cache_stats(cache).slabs, 1, "with a minimum of 0 an emptied slab goes at once");
}

#[test]
fn an_empty_slab_stays_only_without_company() {
    // SL-73: unless the minimum is set by hand, so that idle caches hold no more than one.
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 512, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 32);
    give(&slabs, cache, objects[..1].iter().copied());
    give(&slabs, cache, objects[8..16].iter().copied());
    assert_eq!(slabs.cache_stats(cache).slabs, 3, "another has a free slot");
    give(&slabs, cache, objects[1..8].iter().chain(&objects[16..]).copied());
    assert_eq!(slabs.cache_stats(cache).slabs, 1);
}

#[test]
fn the_fullest_slabs_are_used_first() {
    // SL-74: among the first few on the list, so that emptier slabs can drain.
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 512, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 24);
    give(&slabs, cache, objects[0..6].iter().copied());
    give(&slabs, cache, objects[8..9].iter().copied());
    give(&slabs, cache, objects[16..20].iter().copied());
    assert_eq!(take(&slabs, cache, 1), objects[8..9], "one free slot");
    let next = take(&slabs, cache, 4);
    assert!(next.iter().all(|object| objects[16..20].contains(object)), "then four free slots");
}

#[test]
fn the_smallest_order_helps_when_memory_is_fragmented() {
    // SL-35
    let slabs = family_with(4, BARE);
    let cache = slabs.create("things", 1024, &CacheArgs::default()).unwrap();
    assert_eq!(cache.order().get(), 2);
    slabs.env().pages().fragmented.store(true, Ordering::Relaxed);
    slabs.env().requests();
    let objects = take(&slabs, cache, 4);
    let requests = slabs.env().requests();
    assert_eq!(requests.iter().map(|(_, order)| *order).collect::<Vec<_>>(), [2, 0]);
    assert!(requests[1].0.contains(Gfp::KERNEL) && !requests[1].0.contains(Gfp::NORETRY), "the caller's own flags");
    assert_eq!(slabs.cache_stats(cache).pages, 1);
    slabs.env().requests();
    let more = slabs.alloc(cache, Gfp::ATOMIC).unwrap();
    let first = slabs.env().requests()[0].0;
    assert!(
        first.contains(Gfp::KSWAPD_RECLAIM | Gfp::NOWARN | Gfp::NORETRY),
        "{first}: reclaim stays when it cannot sleep"
    );
    give(&slabs, cache, objects);
    give(&slabs, cache, [more]);
    assert!(!slabs.shrink(cache));
}

#[test]
fn running_out_is_reported_once_in_a_while() {
    // SL-77, SL-80
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 512, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 8);
    slabs.env().pages().exhausted.store(true, Ordering::Relaxed);
    slabs.env().context().now.store(5000, Ordering::Relaxed);
    let failed = slabs.alloc(cache, Gfp::KERNEL);
    assert!(matches!(failed, Err(AllocError::NoMemory { gfp: Gfp::KERNEL, .. })), "{failed:?}");
    let reports = slabs.env().reports();
    assert!(reports[0].contains("Unable to allocate memory on node 0, gfp=0xcc0(GFP_KERNEL)"), "{reports:?}");
    assert!(reports[1].contains("cache: things, object size: 512, buffer size: 512, default order: 0, min order: 0"));
    assert!(reports[2].contains("node 0: slabs: 1, objs: 8, free: 0"));
    assert!(slabs.alloc(cache, Gfp::KERNEL).is_err());
    assert!(slabs.env().reports().is_empty(), "rate-limited");
    slabs.env().context().now.store(9000, Ordering::Relaxed);
    assert!(slabs.alloc(cache, Gfp::KERNEL | Gfp::NOWARN).is_err());
    assert!(slabs.env().reports().is_empty(), "silenced");
    give(&slabs, cache, objects);
    assert!(slabs.alloc(cache, Gfp::KERNEL).is_ok(), "what was freed is there");
}

#[test]
fn a_double_free_at_the_freelist_head_is_refused() {
    // SL-85
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 2);
    give(&slabs, cache, [objects[0]]);
    let address = objects[0].addr().get();
    // SAFETY: deliberately freed twice; the call must notice.
    assert_eq!(unsafe { slabs.free(cache, objects[0]) }, Err(ObjectError::DoubleFree { address }));
    assert!(slabs.env().reported("already free").is_some());
    // The same on top of a sheaf.
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    give(&slabs, cache, [object]);
    let address = object.addr().get();
    // SAFETY: as above.
    assert_eq!(unsafe { slabs.free(cache, object) }, Err(ObjectError::DoubleFree { address }));
}

#[test]
fn wrong_frees_leak_instead_of_corrupting() {
    // SL-83, SL-84, F06
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let other = slabs.create("others", 128, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    let address = object.addr().get();
    // SAFETY: deliberately wrong; the calls must notice.
    unsafe {
        assert_eq!(slabs.free(other, object), Err(ObjectError::WrongCache { address }));
        assert!(slabs.env().reported("belongs to another cache; object leaked").is_some());
        let inside = object.add(8);
        assert_eq!(slabs.free(cache, inside), Err(ObjectError::NotAnObject { address: address + 8 }));
        let foreign = slabs.env().frame(2000);
        let elsewhere = foreign.addr().get();
        assert_eq!(slabs.free(cache, foreign), Err(ObjectError::NotSlab { address: elsewhere }));
        assert_eq!(slabs.free_any(foreign), Err(ObjectError::NotSlab { address: elsewhere }));
        let mut local = 0_u64;
        assert!(matches!(
            slabs.free_any(core::ptr::NonNull::from(&mut local).cast()),
            Err(ObjectError::NotSlab { .. })
        ));
        assert_eq!(slabs.free_any(object), Ok(()), "objects of a cache may go to kfree");
    }
}

#[test]
fn the_freelist_is_masked() {
    // SL-99: the stored word is the pointer, a secret and its own swapped address.
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 3);
    give(&slabs, cache, objects.iter().copied());
    let head = objects[2];
    // SAFETY: free, on the chain, its link in the middle.
    let stored = unsafe { head.add(32).cast::<usize>().read() };
    // SAFETY: free, on the chain.
    let next = unsafe { cache.next(head) };
    assert_eq!(next, objects[1].as_ptr());
    assert_ne!(stored, next.addr());
    let link = head.addr().get() + 32;
    // SAFETY: the first object is free as well.
    let other = unsafe { objects[1].add(32).cast::<usize>().read() };
    let other_link = objects[1].addr().get() + 32;
    let secret = stored ^ next.addr() ^ link.swap_bytes();
    assert_eq!(other ^ objects[0].addr().get() ^ other_link.swap_bytes(), secret, "one secret a cache");
}

#[test]
fn a_broken_chain_costs_its_slab_and_nothing_else() {
    // SL-71, SL-99
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 64);
    give(&slabs, cache, objects[..10].iter().copied());
    // SAFETY: deliberately writing to a free object.
    unsafe { objects[9].add(32).cast::<u64>().write(0x4141_4141) };
    let fresh = take(&slabs, cache, 20);
    assert!(fresh.iter().all(|object| !objects.contains(object)), "from another slab");
    assert!(slabs.env().reported("taken out of service").is_some());
    let (_, slab) = Slab::find(slabs.env().frames(), objects[9]).unwrap();
    assert!(slab.state().is_frozen());
    let address = objects[20].addr().get();
    // SAFETY: ours.
    assert_eq!(unsafe { slabs.free(cache, objects[20]) }, Err(ObjectError::Corrupted { address }), "leaked on purpose");
    give(&slabs, cache, fresh);
}

#[test]
fn objects_of_a_slab_come_in_random_order() {
    // SL-100
    let shuffled = family_with(1, SlabConfig { randomize: true, ..BARE });
    let ordered = family_with(1, BARE);
    let offsets = |slabs: &crate::Slabs<super::env::TestEnv>| {
        let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
        let objects = take(slabs, cache, 128);
        let base = objects.iter().map(|object| object.addr().get()).min().unwrap();
        objects.iter().map(|object| (object.addr().get() - base) / 64).collect::<Vec<_>>()
    };
    assert!(offsets(&ordered).iter().copied().eq(0..128));
    let random = offsets(&shuffled);
    assert!(!random.is_sorted());
    assert_eq!(random.iter().copied().collect::<HashSet<_>>().len(), 128, "every slot once");
    assert_ne!(
        random[..64].iter().map(|at| at % 64).collect::<Vec<_>>(),
        random[64..].iter().map(|at| at % 64).collect::<Vec<_>>()
    );
}

#[test]
fn random_order_fits_smaller_slabs() {
    // SL-100: numbers that do not fit a slab of the fallback order are skipped.
    let slabs = family_with(4, SlabConfig { randomize: true, ..BARE });
    let cache = slabs.create("things", 1024, &CacheArgs::default()).unwrap();
    slabs.env().pages().fragmented.store(true, Ordering::Relaxed);
    let objects: HashSet<_> = take(&slabs, cache, 12).into_iter().collect();
    assert_eq!(objects.len(), 12);
    assert_eq!(slabs.cache_stats(cache).pages, 3);
    give(&slabs, cache, objects);
}

#[test]
fn contents_survive_a_free_except_for_the_link() {
    // SL-82
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: ours; then read though free, as the test's own memory.
    unsafe {
        object.write_bytes(0x77, 64);
        slabs.free(cache, object).unwrap();
        for at in 0..64 {
            assert!((32..40).contains(&at) || object.add(at).read() == 0x77, "byte {at}");
        }
    }
}

#[test]
fn zeroing_options_reach_every_object() {
    // SL-80, DB-28
    let config = SlabConfig { init_on_alloc: true, init_on_free: true, ..SlabConfig::DEFAULT };
    let slabs = family_with(1, config);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let typesafe = slabs.create("typesafe", 64, &with_flags(SlabFlags::TYPESAFE_BY_RCU)).unwrap();
    for _ in 0..3 {
        let objects = take(&slabs, cache, 200);
        for object in &objects {
            // SAFETY: ours, 64 bytes.
            unsafe {
                assert!((0..64).all(|at| object.add(at).read() == 0));
                object.write_bytes(0xff, 64);
            }
        }
        give(&slabs, cache, objects);
    }
    let object = slabs.alloc(typesafe, Gfp::KERNEL).unwrap();
    // SAFETY: ours; then read though free: typesafe caches keep contents.
    unsafe {
        object.write_bytes(0x66, 64);
        slabs.free(typesafe, object).unwrap();
        assert!((0..64).all(|at| object.add(at).read() == 0x66));
    }
    destroy(&slabs, cache);
}

#[test]
fn freeing_only_wipes_what_it_says() {
    // DB-28: init_on_free alone wipes the link too.
    let slabs = family_with(1, SlabConfig { init_on_free: true, ..BARE });
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 3);
    for object in &objects {
        // SAFETY: ours, 64 bytes.
        unsafe { object.write_bytes(0xff, 64) };
    }
    give(&slabs, cache, objects);
    for object in take(&slabs, cache, 3) {
        // SAFETY: ours, 64 bytes.
        assert!((0..64).all(|at| unsafe { object.add(at).read() } == 0));
    }
}
