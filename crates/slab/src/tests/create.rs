//! Creating caches: what is refused, what is shared, what is remembered.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicUsize, Ordering};

use kmem_gfp::{AllocError, Gfp};

use super::env::TestEnv;
use super::{BARE, destroy, family, family_with, give, take, with_flags};
use crate::{CacheArgs, CreateError, DestroyError, SharedId, SlabConfig, SlabEnv, SlabFlags, Slabs};

#[test]
fn the_arguments_are_remembered() {
    // SL-01
    let slabs = family(1);
    let args = CacheArgs {
        flags: SlabFlags::TYPESAFE_BY_RCU,
        align: 32,
        ctor: None,
        useroffset: 8,
        usersize: 16,
        freeptr_offset: Some(0),
        sheaf_capacity: 200,
    };
    let cache = slabs.create("everything", 100, &args).unwrap();
    assert_eq!((cache.name(), cache.object_size(), cache.align(), cache.stride()), ("everything", 100, 32, 128));
    // SL-05: offset 0 is legal. SL-07: a sheaf wish forbids sharing.
    assert_eq!(cache.layout.free_offset, 0);
    assert!(cache.flags().contains(SlabFlags::NO_MERGE));
    assert!(cache.sheaf_capacity() >= 200);
    destroy(&slabs, cache);
}

#[test]
fn unacceptable_arguments_are_named() {
    let slabs = family(1);
    let create = |name, size, args: CacheArgs| slabs.create(name, size, &args).err();
    // SL-03
    assert_eq!(create("", 8, CacheArgs::default()), Some(CreateError::BadName));
    assert_eq!(create("two words", 8, CacheArgs::default()), Some(CreateError::BadName));
    assert_eq!(create("zero", 0, CacheArgs::default()), Some(CreateError::BadSize(0)));
    let huge = (4 << 20) + 1;
    assert_eq!(create("huge", huge, CacheArgs::default()), Some(CreateError::BadSize(huge)));
    assert_eq!(create("odd", 8, CacheArgs { align: 3, ..CacheArgs::default() }), Some(CreateError::BadAlign(3)));
    // SL-04
    for flag in [SlabFlags::FAILSLAB, SlabFlags::NO_SHEAVES, SlabFlags::INTERNAL, SlabFlags::from_bits_retain(1 << 30)]
    {
        assert_eq!(create("flags", 8, with_flags(flag)), Some(CreateError::BadFlags(flag.bits())));
    }
    // SL-05
    let freeptr = |offset, flags| CacheArgs { freeptr_offset: Some(offset), ..with_flags(flags) };
    assert_eq!(create("p", 64, freeptr(0, SlabFlags::empty())), Some(CreateError::BadFreePointer(0)));
    assert_eq!(create("p", 64, freeptr(64, SlabFlags::TYPESAFE_BY_RCU)), Some(CreateError::BadFreePointer(64)));
    assert_eq!(create("p", 64, freeptr(12, SlabFlags::TYPESAFE_BY_RCU)), Some(CreateError::BadFreePointer(12)));
    slabs.create("taken", 64, &with_flags(SlabFlags::NO_MERGE)).unwrap();
    assert_eq!(create("taken", 64, with_flags(SlabFlags::NO_MERGE)), Some(CreateError::NameTaken));
}

#[test]
fn a_family_that_was_not_initialised_says_so() {
    // SL-102: nothing before `init`; everything after it, and `init` again does nothing.
    let slabs = Slabs::new(TestEnv::new(1, 64));
    assert_eq!(
        slabs.create("early", 8, &CacheArgs::default()).err(),
        Some(CreateError::NoMemory(AllocError::NotReady))
    );
    slabs.init().unwrap();
    let pages = slabs.env().pages().in_use();
    slabs.init().unwrap();
    assert_eq!(slabs.env().pages().in_use(), pages);
    slabs.create("late", 8, &CacheArgs::default()).unwrap();
}

#[test]
fn creation_without_memory_is_an_error() {
    // SL-02, SL-11: failing is a result; nobody panics.
    let slabs = family(1);
    slabs.env().pages().exhausted.store(true, Ordering::Relaxed);
    let made = slabs.create("none", 8, &CacheArgs { sheaf_capacity: 4000, ..CacheArgs::default() });
    assert!(matches!(made.err(), Some(CreateError::NoMemory(AllocError::NoMemory { .. }))));
}

#[test]
fn a_usercopy_window_that_does_not_fit_is_dropped() {
    // SL-06
    let slabs = family(1);
    for (name, useroffset, usersize) in [("a", 8, 0), ("b", 0, 65), ("c", 60, 8), ("d", usize::MAX, 2)] {
        let cache = slabs.create(name, 64, &CacheArgs { useroffset, usersize, ..CacheArgs::default() }).unwrap();
        assert_eq!((cache.useroffset, cache.usersize), (0, 0));
        assert!(!slabs.env().reports().is_empty());
    }
}

#[test]
fn compatible_caches_are_shared() {
    // SL-08, SL-40..SL-43, SL-105
    let slabs = family(1);
    let old = slabs.create("old", 60, &CacheArgs::default()).unwrap();
    let alias = slabs.create("alias", 64, &CacheArgs::default()).unwrap();
    assert!(ptr::eq(old, alias));
    assert_eq!(alias.object_size(), 64, "the larger user's size");
    let object = slabs.zalloc(old, Gfp::KERNEL).unwrap();
    // SAFETY: ours, 64 bytes.
    assert!((0..64).all(|at| unsafe { object.add(at).read() } == 0));
    give(&slabs, old, [object]);
    let distinct = |name, size, args: CacheArgs| !ptr::eq(old, slabs.create(name, size, &args).unwrap());
    assert!(distinct("smaller", 56, CacheArgs::default()), "8 bytes less");
    assert!(distinct("aligned", 64, CacheArgs { align: 128, ..CacheArgs::default() }), "stride is no multiple");
    // SL-16, SL-17, SL-42
    for (name, flag) in [
        ("no-merge", SlabFlags::NO_MERGE),
        ("typesafe", SlabFlags::TYPESAFE_BY_RCU),
        ("hidden", SlabFlags::NOLEAKTRACE),
        ("red", SlabFlags::RED_ZONE),
        ("reclaimable", SlabFlags::RECLAIM_ACCOUNT),
        ("dma", SlabFlags::CACHE_DMA),
        ("dma32", SlabFlags::CACHE_DMA32),
        ("charged", SlabFlags::ACCOUNT),
    ] {
        assert!(distinct(name, 64, with_flags(flag)), "{name}");
    }
    assert!(distinct("copied", 64, CacheArgs { usersize: 8, ..CacheArgs::default() }));
    assert!(distinct("built", 64, CacheArgs { ctor: Some(count), ..CacheArgs::default() }));
    // The hardware alignment is not compared as such.
    assert!(!distinct("lined", 64, with_flags(SlabFlags::HWCACHE_ALIGN)) || !old.stride().is_multiple_of(64));
    // Destroying an alias drops a reference; the last user destroys.
    destroy(&slabs, alias);
    assert!(slabs.find_cache("old").is_some());
    assert_eq!(slabs.cache_stats(old).aliases, 1, "`lined` is left");
}

#[test]
fn sharing_can_be_switched_off() {
    // SL-40, SL-103
    let slabs = family_with(1, SlabConfig { merge: false, ..SlabConfig::DEFAULT });
    let old = slabs.create("old", 64, &CacheArgs::default()).unwrap();
    assert!(!ptr::eq(old, slabs.create("new", 64, &CacheArgs::default()).unwrap()));
}

static BUILT: AtomicUsize = AtomicUsize::new(0);

unsafe fn count(object: NonNull<u8>) {
    BUILT.fetch_add(1, Ordering::Relaxed);
    // SAFETY: an object of 64 bytes.
    unsafe { object.write_bytes(0xc7, 64) };
}

#[test]
fn a_constructor_runs_once_for_each_object_of_a_slab() {
    // SL-81, SL-82
    let slabs = family_with(1, BARE);
    let cache = slabs.create("built", 64, &CacheArgs { ctor: Some(count), ..CacheArgs::default() }).unwrap();
    BUILT.store(0, Ordering::Relaxed);
    let objects = take(&slabs, cache, 10);
    assert_eq!(BUILT.load(Ordering::Relaxed), cache.objects_per_slab());
    give(&slabs, cache, objects);
    for object in take(&slabs, cache, 10) {
        // SAFETY: ours, 64 bytes.
        assert!((0..64).all(|at| unsafe { object.add(at).read() } == 0xc7), "still constructed");
        give(&slabs, cache, [object]);
    }
    assert_eq!(BUILT.load(Ordering::Relaxed), cache.objects_per_slab());
    let zeroed = slabs.zalloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: ours.
    assert_eq!(unsafe { zeroed.read() }, 0, "zeroing is obeyed all the same");
}

#[test]
fn slab_requests_carry_the_caches_zone_and_mobility() {
    // SL-12, SL-13, SL-35, SL-76, SL-106
    let slabs = family_with(2, BARE);
    for (name, flag, wanted) in [
        ("dma", SlabFlags::CACHE_DMA, Gfp::DMA),
        ("dma32", SlabFlags::CACHE_DMA32, Gfp::DMA32),
        ("reclaimable", SlabFlags::RECLAIM_ACCOUNT, Gfp::RECLAIMABLE),
    ] {
        let cache = slabs.create(name, 512, &with_flags(flag)).unwrap();
        slabs.env().requests();
        let object = slabs.alloc(cache, Gfp::KERNEL | Gfp::ZERO | Gfp::NOFAIL).unwrap();
        let (gfp, order) = slabs.env().requests()[0];
        assert_eq!(order, cache.order().get());
        assert!(gfp.contains(wanted | Gfp::COMP | Gfp::NOWARN | Gfp::NORETRY | Gfp::NOMEMALLOC), "{gfp}");
        assert!(!gfp.intersects(Gfp::ZERO | Gfp::NOFAIL | Gfp::RECLAIM), "{gfp}");
        give(&slabs, cache, [object]);
    }
    let reclaimable = slabs.stats().reclaimable_pages;
    assert_eq!(reclaimable, slabs.cache_stats(slabs.find_cache("reclaimable").unwrap()).pages);
    assert!(slabs.stats().unreclaimable_pages > 0);
}

#[test]
fn flags_that_a_slab_cannot_honour_are_fixed_with_a_message() {
    // SL-76: only when a slab is really needed.
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL | Gfp::HIGHMEM).unwrap();
    assert!(slabs.env().reported("Fix your code").is_some());
    assert!(slabs.env().requests().iter().all(|(gfp, _)| !gfp.contains(Gfp::HIGHMEM)));
    slabs.env().reports();
    give(&slabs, cache, [object]);
    let object = slabs.alloc(cache, Gfp::KERNEL | Gfp::HIGHMEM).unwrap();
    assert!(slabs.env().reports().is_empty(), "the sheaf hides the mistake");
    give(&slabs, cache, [object]);
}

#[test]
fn an_unknown_cache_cannot_be_destroyed() {
    let slabs = family(1);
    let other = family(1);
    let cache = other.create("foreign", 64, &CacheArgs::default()).unwrap();
    // SAFETY: refused.
    assert_eq!(unsafe { slabs.destroy(cache) }, Err(DestroyError::UnknownCache));
}

#[test]
fn shared_caches_have_an_id() {
    // DB-14
    let slabs = family(1);
    let plain = slabs.create("plain", 64, &CacheArgs::default()).unwrap();
    let charged = slabs.create("charged", 1000, &with_flags(SlabFlags::ACCOUNT | SlabFlags::RECLAIM_ACCOUNT)).unwrap();
    assert_eq!(std::format!("{}", SharedId(plain)), ":0000064");
    assert_eq!(std::format!("{}", SharedId(charged)), ":aA-0001000");
}
