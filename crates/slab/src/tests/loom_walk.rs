//! Models of caches that come and go while others walk over them: who may look at a descriptor, and until when.

use std::sync::Arc;

use kmem_gfp::{Gfp, PAGE_SIZE};
use loom::thread;

use super::env::{TestEnv, run_on};
use crate::{CacheArgs, KmemCache, RcuHead, SlabConfig, SlabEnv, SlabFlags, Slabs};

/// Two objects in a slab of one page.
const SIZE: usize = PAGE_SIZE / 2;

const TINY: SlabConfig =
    SlabConfig { max_order: 0, max_sheaf_capacity: 1, grow_orders: false, randomize: false, ..SlabConfig::DEFAULT };

fn explore(bound: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(bound));
    builder.max_branches = 50_000;
    builder.check(model);
}

fn family() -> Arc<Slabs<TestEnv>> {
    let slabs = Slabs::with_config(TestEnv::new(2, 64), TINY);
    slabs.init().unwrap();
    Arc::new(slabs)
}

fn create(slabs: &Slabs<TestEnv>, name: &str, flags: SlabFlags) -> *const KmemCache {
    slabs.create(name, SIZE, &CacheArgs::with_flags(flags)).unwrap()
}

/// # Safety
/// The caller does not use the cache any more.
unsafe fn destroy(slabs: &Slabs<TestEnv>, cache: *const KmemCache) {
    // SAFETY: the caller's promise; the cache is a live one of the family.
    unsafe { slabs.destroy(&*cache).unwrap() };
}

/// Runs `f` on another thread, on CPU 1.
fn elsewhere(slabs: &Arc<Slabs<TestEnv>>, f: impl FnOnce(&Slabs<TestEnv>) + Send + 'static) -> thread::JoinHandle<()> {
    let slabs = slabs.clone();
    thread::spawn(move || {
        run_on(Some(1));
        f(&slabs);
    })
}

#[test]
fn a_cache_stays_while_a_walker_looks_at_it() {
    explore(3, || {
        let slabs = family();
        create(&slabs, "older", SlabFlags::NO_MERGE);
        let cache = create(&slabs, "newer", SlabFlags::NO_MERGE);
        let walker = elsewhere(&slabs, |slabs| slabs.for_each_cache(KmemCache::assert_alive));
        // SAFETY: nobody but the walker uses the cache.
        unsafe { destroy(&slabs, cache) };
        walker.join().unwrap();
        let mut left = 0;
        slabs.for_each_cache(|_| left += 1);
        assert_eq!(left, 1);
    });
}

#[test]
fn what_another_cpu_is_moving_on_is_free_when_its_cache_is_destroyed() {
    // RC-08
    explore(2, || {
        let slabs = family();
        let cache = create(&slabs, "things", SlabFlags::empty());
        // SAFETY: the cache lives until it is destroyed below; the object is ours.
        unsafe {
            let object = slabs.alloc(&*cache, Gfp::KERNEL).unwrap();
            slabs.free_rcu(object, object.cast::<RcuHead>()).unwrap();
        }
        slabs.env().grace().pass();
        let poller = elsewhere(&slabs, Slabs::rcu_poll);
        // SAFETY: nobody but the poller uses the cache.
        unsafe { destroy(&slabs, cache) };
        poller.join().unwrap();
        slabs.shrink_all();
        assert_eq!(slabs.env().pages().in_use() as u64, slabs.stats().metadata_pages);
    });
}

#[test]
fn a_cache_on_its_way_out_is_shared_with_nobody() {
    // SL-08, SL-96
    explore(2, || {
        let slabs = family();
        let cache = create(&slabs, "things", SlabFlags::empty());
        let sharer = elsewhere(&slabs, |slabs| {
            let cache = create(slabs, "alike", SlabFlags::empty());
            // SAFETY: ours until it is destroyed.
            unsafe {
                (*cache).assert_alive();
                let object = slabs.alloc(&*cache, Gfp::KERNEL).unwrap();
                slabs.free(&*cache, object).unwrap();
                destroy(slabs, cache);
            }
        });
        // SAFETY: nobody else uses this share of the cache.
        unsafe { destroy(&slabs, cache) };
        sharer.join().unwrap();
        let mut left = 0;
        slabs.for_each_cache(|_| left += 1);
        assert_eq!(left, 0);
        slabs.shrink_all();
        assert_eq!(slabs.env().pages().in_use() as u64, slabs.stats().metadata_pages);
    });
}
