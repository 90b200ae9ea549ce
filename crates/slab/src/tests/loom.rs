//! Models: small sheaves, two objects a slab, two or three CPUs. Every object has a shadow cell that its holder writes, so
//! that two holders at a time, or a hand-over without ordering, are errors.

use core::ptr::NonNull;
use std::sync::Arc;
use std::vec::Vec;

use kmem_gfp::Gfp;
use kmem_sync::CpuId;
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::env::{TestEnv, run_on};
use super::with_flags;
use crate::backend::Locking;
use crate::{CacheArgs, DestroyError, KmemCache, SlabConfig, SlabEnv, SlabFlags, Slabs};

const FRAMES: usize = 128;
/// Two objects in a slab of one page.
const SIZE: usize = 2048;

const TINY: SlabConfig = SlabConfig {
    max_order: 0,
    max_sheaf_capacity: 1,
    barn_full: 1,
    barn_empty: 1,
    grow_orders: false,
    randomize: false,
    merge: false,
    ..SlabConfig::DEFAULT
};
const BARE: SlabConfig = SlabConfig { max_sheaf_capacity: 0, ..TINY };

/// A family, one cache, and a shadow for each place where an object can be.
struct Model {
    slabs: Slabs<TestEnv>,
    shadows: Vec<UnsafeCell<u32>>,
    /// Whether some other thread has finished.
    finished: AtomicBool,
}

/// An object on its way to another thread.
#[derive(Clone, Copy)]
struct Sent(NonNull<u8>);
// SAFETY: tests hand each object over once.
unsafe impl Send for Sent {}

impl Model {
    fn new(nr_cpus: u32, config: SlabConfig) -> Arc<Self> {
        let slabs = Slabs::with_config(TestEnv::new(nr_cpus, FRAMES), config);
        slabs.init().unwrap();
        slabs.create("things", SIZE, &CacheArgs::default()).unwrap();
        let shadows = (0..FRAMES * 2).map(|_| UnsafeCell::new(0)).collect();
        Arc::new(Self { slabs, shadows, finished: AtomicBool::new(false) })
    }

    fn cache(&self) -> &KmemCache {
        self.slabs.find_cache("things").unwrap()
    }

    fn shadow(&self, object: NonNull<u8>) -> &UnsafeCell<u32> {
        let base = self.slabs.env().frame(0).addr().get();
        &self.shadows[(object.addr().get() - base) / SIZE]
    }

    /// A place where the schedules part: another thread has finished, or not yet. Orders nothing. (Loom remembers only the
    /// last access to each word, so a look that the other thread takes itself may hide that its write matters here.)
    fn glance(&self) -> bool {
        self.finished.load(Ordering::Relaxed)
    }

    /// What a holder does.
    fn write(&self, object: NonNull<u8>) {
        // SAFETY: loom checks that nobody else is here.
        self.shadow(object).with_mut(|shadow| unsafe { *shadow += 1 });
    }

    fn alloc(&self, cache: &KmemCache) -> NonNull<u8> {
        let object = self.slabs.alloc(cache, Gfp::KERNEL).unwrap();
        self.write(object);
        object
    }

    fn free(&self, cache: &KmemCache, object: NonNull<u8>) {
        self.write(object);
        // SAFETY: held by the caller.
        unsafe { self.slabs.free(cache, object).unwrap() };
    }

    /// Destroys the cache, and finds no page missing.
    fn finish(&self) {
        run_on(Some(0));
        // SAFETY: every thread has finished.
        unsafe { self.slabs.destroy(self.cache()).unwrap() };
        self.slabs.shrink_all();
        let metadata = self.slabs.stats().metadata_pages;
        assert_eq!(self.slabs.stats().slab_pages(), 0);
        assert_eq!(self.slabs.env().pages().in_use() as u64, metadata);
    }
}

fn explore(bound: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(bound));
    builder.max_branches = 50_000;
    builder.check(model);
}

/// Runs `f` on another thread, on CPU `cpu`, with the cache.
fn on_cpu<R: Send + 'static>(
    model: &Arc<Model>,
    cpu: u32,
    f: impl FnOnce(&Model, &KmemCache) -> R + Send + 'static,
) -> thread::JoinHandle<R> {
    let cache = Sent(NonNull::from(model.cache()).cast());
    let model = model.clone();
    thread::spawn(move || {
        run_on(Some(cpu));
        let Sent(cache) = { cache };
        // SAFETY: models destroy a cache only after its last object has been freed.
        let result = f(&model, unsafe { cache.cast::<KmemCache>().as_ref() });
        model.finished.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn sheaves_travel_through_the_barn_between_two_cpus() {
    // SL-113, SL-114
    explore(2, || {
        let model = Model::new(2, TINY);
        let warm: Vec<_> = (0..4).map(|_| model.alloc(model.cache())).collect();
        warm.into_iter().for_each(|object| model.free(model.cache(), object));
        let burst = |model: &Model, cache: &KmemCache| {
            let objects = [(); 3].map(|()| model.alloc(cache));
            objects.into_iter().for_each(|object| model.free(cache, object));
        };
        let other = on_cpu(&model, 1, burst);
        burst(&model, model.cache());
        other.join().unwrap();
        model.finish();
    });
}

#[test]
fn an_empty_slab_is_given_back_exactly_once() {
    explore(3, || {
        let model = Model::new(2, BARE);
        let cache = model.cache();
        cache.set_min_partial(0);
        let objects = [(); 2].map(|()| model.alloc(cache));
        let sent = Sent(objects[1]);
        let other = on_cpu(&model, 1, move |model, cache| {
            let Sent(object) = { sent };
            model.free(cache, object);
        });
        model.free(cache, objects[0]);
        let again = model.alloc(cache);
        model.free(cache, again);
        other.join().unwrap();
        // The page source panics at a block given back twice; one that never was is missing here.
        assert_eq!(model.slabs.stats().slab_pages(), 0);
        model.finish();
    });
}

#[test]
fn a_sheaf_that_waits_for_readers_is_handed_over_behind_them() {
    // SL-115
    explore(2, || {
        let model = Model::new(3, TINY);
        let cache = model.cache();
        let object = model.alloc(cache);
        let sent = Sent(object);
        let reader = on_cpu(&model, 1, move |model, _| {
            let Sent(object) = { sent };
            // SAFETY: loom checks that nobody writes meanwhile.
            model.shadow(object).with(|shadow| unsafe { *shadow });
            model.slabs.env().grace().pass();
        });
        let freer = on_cpu(&model, 2, move |model, _| {
            let Sent(object) = { sent };
            // SAFETY: the reader looks at the shadow only, which stands for the part outside of the head.
            unsafe { model.slabs.free_rcu(object, object.cast()).unwrap() };
        });
        model.glance();
        let one = model.alloc(cache);
        let two = model.alloc(cache);
        model.free(cache, one);
        model.free(cache, two);
        reader.join().unwrap();
        freer.join().unwrap();
        model.slabs.rcu_barrier();
        model.finish();
    });
}

#[test]
fn a_destroyed_cache_is_never_touched_by_a_late_free() {
    explore(3, || {
        let model = Model::new(2, TINY);
        let cache = model.cache();
        cache.set_min_partial(0);
        let sent = Sent(model.alloc(cache));
        let late = on_cpu(&model, 1, move |model, cache| {
            let Sent(object) = { sent };
            model.free(cache, object);
        });
        // SAFETY: only the late free still uses the cache.
        match unsafe { model.slabs.destroy(cache) } {
            Ok(()) => late.join().unwrap(),
            Err(DestroyError::ObjectsRemain { live, slabs, .. }) => {
                assert!(live <= 1 && slabs == 1);
                late.join().unwrap();
                // SAFETY: nobody uses the cache any more.
                unsafe { model.slabs.destroy(cache).unwrap() };
            }
            Err(error) => panic!("{error}"),
        }
        model.slabs.shrink_all();
        assert_eq!(model.slabs.env().pages().in_use() as u64, model.slabs.stats().metadata_pages);
    });
}

#[test]
fn a_free_into_a_slab_may_race_its_caches_end() {
    explore(3, || {
        let model = Model::new(2, BARE);
        let cache = model.cache();
        cache.set_min_partial(0);
        let sent = Sent(model.alloc(cache));
        let late = on_cpu(&model, 1, move |model, cache| {
            let Sent(object) = { sent };
            model.free(cache, object);
        });
        // SAFETY: only the late free still uses the cache.
        let first = unsafe { model.slabs.destroy(cache) };
        late.join().unwrap();
        if first.is_err() {
            // SAFETY: nobody uses the cache any more.
            unsafe { model.slabs.destroy(cache).unwrap() };
        }
        model.slabs.shrink_all();
        assert_eq!(model.slabs.env().pages().in_use() as u64, model.slabs.stats().metadata_pages);
    });
}

#[test]
fn bulk_and_single_calls_share_slabs() {
    explore(3, || {
        let model = Model::new(2, SlabConfig { max_sheaf_capacity: 2, ..TINY });
        let cache = model.cache();
        let sent = [(); 2].map(|()| Sent(model.alloc(cache)));
        let other = on_cpu(&model, 1, move |model, cache| {
            for Sent(object) in { sent } {
                model.free(cache, object);
            }
            let object = model.alloc(cache);
            model.free(cache, object);
        });
        let mut objects = [None; 3];
        model.slabs.alloc_bulk(cache, Gfp::KERNEL, &mut objects).unwrap();
        objects.iter().flatten().for_each(|object| model.write(*object));
        // SAFETY: ours.
        unsafe { model.slabs.free_bulk(cache, &mut objects).unwrap() };
        other.join().unwrap();
        model.finish();
    });
}

#[test]
fn any_context_calls_meet_everything() {
    explore(2, || {
        let model = Model::new(2, TINY);
        let cache = model.cache();
        let sent = [(); 2].map(|()| Sent(model.alloc(cache)));
        let other = on_cpu(&model, 1, move |model, cache| {
            for Sent(object) in { sent } {
                model.write(object);
                // SAFETY: handed over.
                unsafe { model.slabs.free_nolock(object).unwrap() };
            }
            if let Ok(object) = model.slabs.alloc_nolock(cache, Gfp::empty(), None) {
                model.write(object);
                // SAFETY: ours.
                unsafe { model.slabs.free_nolock(object).unwrap() };
            }
        });
        let objects = [(); 2].map(|()| model.alloc(cache));
        objects.into_iter().for_each(|object| model.free(cache, object));
        model.slabs.shrink(cache);
        other.join().unwrap();
        model.finish();
    });
}

#[test]
fn what_was_deferred_is_handed_over_in_order() {
    // SL-117
    explore(3, || {
        let model = Model::new(2, BARE);
        let cache = model.cache();
        let objects = [(); 2].map(|()| Sent(model.alloc(cache)));
        let other = on_cpu(&model, 1, move |model, _| {
            for Sent(object) in { objects } {
                model.write(object);
                // SAFETY: handed over. While the list lock is held elsewhere, the object has to wait.
                unsafe { model.slabs.free_nolock(object).unwrap() };
            }
        });
        let node = cache.node(0).unwrap();
        node.with(model.slabs.env().cpu(), Locking::Wait, |_| model.glance());
        let objects = [(); 2].map(|()| model.alloc(cache));
        objects.into_iter().for_each(|object| model.free(cache, object));
        other.join().unwrap();
        model.finish();
    });
}

#[test]
fn a_free_without_the_lock_hands_its_object_over() {
    // SL-110, SL-111, SL-112: of four objects the middle ones come and go by exchange alone.
    explore(3, || {
        let model = Model::new(2, BARE);
        let cache = model.slabs.create("quarters", 1024, &CacheArgs::default()).unwrap();
        let objects = [(); 4].map(|()| Sent(model.slabs.alloc(cache, Gfp::KERNEL).unwrap()));
        let Sent(first) = objects[0];
        // SAFETY: ours.
        unsafe { model.slabs.free(cache, first).unwrap() };
        let address = Sent(NonNull::from(cache).cast());
        let other = on_cpu(&model, 1, move |model, _| {
            let (Sent(object), Sent(cache)) = { (objects[1], address) };
            model.shadows[1].with_mut(|shadow| {
                // SAFETY: loom checks that nobody else is here.
                unsafe { *shadow += 1 };
            });
            // SAFETY: the cache lives; the object was handed over.
            unsafe { model.slabs.free(cache.cast::<KmemCache>().as_ref(), object).unwrap() };
        });
        model.glance();
        let taken = [(); 2].map(|()| {
            let object = model.slabs.alloc(cache, Gfp::KERNEL).unwrap();
            if object == objects[1].0 {
                // SAFETY: as above.
                model.shadows[1].with_mut(|shadow| unsafe { *shadow += 1 });
            }
            object
        });
        other.join().unwrap();
        for object in taken.into_iter().chain([objects[2].0, objects[3].0]) {
            // SAFETY: ours.
            unsafe { model.slabs.free(cache, object).unwrap() };
        }
        // SAFETY: nobody uses the cache any more.
        unsafe { model.slabs.destroy(cache).unwrap() };
        model.finish();
    });
}

#[test]
fn flushing_a_cpu_shuts_its_sections_out() {
    explore(2, || {
        let model = Model::new(2, SlabConfig { max_sheaf_capacity: 2, ..TINY });
        let cache = model.cache();
        run_on(Some(1));
        let warm = [(); 2].map(|()| model.alloc(cache));
        warm.into_iter().for_each(|object| model.free(cache, object));
        run_on(Some(0));
        let other = on_cpu(&model, 1, |model, cache| {
            let objects = [(); 2].map(|()| model.alloc(cache));
            objects.into_iter().for_each(|object| model.free(cache, object));
        });
        model.slabs.flush_cpu(cache, CpuId(1));
        let objects = [(); 2].map(|()| model.alloc(cache));
        objects.into_iter().for_each(|object| model.free(cache, object));
        other.join().unwrap();
        model.finish();
    });
}

#[test]
fn typesafe_slabs_leave_behind_their_readers() {
    explore(2, || {
        let model = Model::new(2, BARE);
        let cache = model.slabs.create("typesafe", 1024, &with_flags(SlabFlags::TYPESAFE_BY_RCU)).unwrap();
        cache.set_min_partial(0);
        let object = model.alloc(cache);
        let sent = Sent(object);
        let page = model.slabs.env().pages().in_use();
        let reader = on_cpu(&model, 1, move |model, _| {
            let Sent(object) = { sent };
            // SAFETY: loom checks that nobody writes meanwhile.
            model.shadow(object).with(|shadow| unsafe { *shadow });
            model.slabs.env().grace().pass();
        });
        // SAFETY: held; the reader may still look.
        unsafe { model.slabs.free(cache, object).unwrap() };
        model.slabs.rcu_poll();
        if model.slabs.env().pages().in_use() < page {
            // The page has gone: its next owner writes.
            model.write(object);
        }
        reader.join().unwrap();
        // SAFETY: nobody uses the cache any more.
        unsafe { model.slabs.destroy(cache).unwrap() };
        model.finish();
    });
}
