//! Memory that crosses CPUs: given by one thread, freed by another; read while it is being retired; sets drained meanwhile.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use kmem::{CacheArgs, Gfp, Order, RcuHead};
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use kmem_sync::{CpuId, Pinned, SpinLock};

use super::random::Random;
use super::tools::{check, fill};
use crate::cpu::KernelCpu;
use crate::platform::kmem;
use crate::{percpu, sched, thread};

super::tests![
    threads_come_and_go,
    a_panic_ends_its_thread_alone,
    objects_are_freed_on_another_cpu,
    readers_never_see_memory_that_was_given_back,
    caches_shrink_and_sets_drain_under_load,
];

fn threads_come_and_go() {
    for _ in 0..20 {
        let threads: Vec<_> = (0..10)
            .map(|i| {
                thread::spawn("short", None, move || {
                    let _ = Box::new([i; 100]);
                    sched::yield_now();
                })
            })
            .collect();
        for thread in threads {
            assert!(thread.join());
        }
    }
}

fn a_panic_ends_its_thread_alone() {
    let failing = thread::spawn("panics", None, || panic!("on purpose"));
    assert!(!failing.join());
}

/// A block on its way to another thread.
struct Parcel {
    address: usize,
    size: usize,
    tag: u64,
}

fn objects_are_freed_on_another_cpu() {
    let cpus = percpu::nr_cpus();
    let rounds = 3000 * super::effort() as u64;
    let boxes: Arc<Vec<SpinLock<Vec<Parcel>>>> = Arc::new((0..cpus).map(|_| SpinLock::new(Vec::new())).collect());
    let threads: Vec<_> = (0..cpus)
        .map(|cpu| {
            let boxes = Arc::clone(&boxes);
            thread::spawn("parcels", Some(CpuId(cpu)), move || {
                let mut random = Random::new(u64::from(cpu) + 50);
                for round in 0..rounds {
                    let size = 8 << random.below(9);
                    let block = kmem().kmalloc(size, Gfp::KERNEL).expect("memory");
                    let tag = round << 8 | u64::from(cpu);
                    fill(block, size, tag);
                    let to = &boxes[(cpu + 1) as usize % cpus as usize];
                    to.with(&KernelCpu, |to| to.push(Parcel { address: block.expose_provenance().get(), size, tag }));
                    for _ in 0..random.below(3) {
                        receive(&boxes[cpu as usize]);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join());
    }
    for place in boxes.iter() {
        while receive(place) {}
    }
}

fn receive(place: &SpinLock<Vec<Parcel>>) -> bool {
    let Some(parcel) = place.with(&KernelCpu, Vec::pop) else { return false };
    let block = NonNull::new(core::ptr::with_exposed_provenance_mut(parcel.address)).expect("a block");
    check(block, parcel.size, parcel.tag);
    super::contract::kfree(block);
    true
}

#[repr(C)]
struct Shared {
    rcu: RcuHead,
    value: u64,
    twice: u64,
}

/// One writer replaces an object and retires the old one; readers on every CPU find one that is whole.
fn readers_never_see_memory_that_was_given_back() {
    static PLACE: AtomicPtr<Shared> = AtomicPtr::new(core::ptr::null_mut());
    static STOP: AtomicBool = AtomicBool::new(false);
    static READS: AtomicU64 = AtomicU64::new(0);
    let new = |value: u64| {
        let block = kmem().kmalloc(size_of::<Shared>(), Gfp::KERNEL).expect("memory").cast::<Shared>();
        // SAFETY: room for one, ours.
        unsafe { block.write(Shared { rcu: RcuHead::new(), value, twice: value * 2 }) };
        block.as_ptr()
    };
    PLACE.store(new(1), Ordering::Release);
    STOP.store(false, Ordering::Relaxed);
    READS.store(0, Ordering::Relaxed);
    let readers: Vec<_> = (0..percpu::nr_cpus())
        .map(|cpu| {
            thread::spawn("reads", Some(CpuId(cpu)), || {
                while !STOP.load(Ordering::Relaxed) {
                    for _ in 0..100 {
                        let _section = Pinned::new(&KernelCpu);
                        let shared = PLACE.load(Ordering::Acquire);
                        // SAFETY: retired only after this section.
                        let (value, twice) = unsafe {
                            let value = (&raw const (*shared).value).read_volatile();
                            for _ in 0..20 {
                                core::hint::spin_loop();
                            }
                            (value, (&raw const (*shared).twice).read_volatile())
                        };
                        assert_eq!(twice, value * 2);
                    }
                    READS.fetch_add(100, Ordering::Relaxed);
                    sched::yield_now();
                }
            })
        })
        .collect();
    let until = sched::now_ms() + 100 * super::effort() as u64;
    let mut value = 1;
    while sched::now_ms() < until || READS.load(Ordering::Relaxed) < 1000 {
        value += 1;
        let old = PLACE.swap(new(value), Ordering::AcqRel);
        // SAFETY: ours, out of reach for new readers; the head is not what they look at.
        unsafe { kmem().kfree_rcu(old.cast(), NonNull::new_unchecked(&raw mut (*old).rcu)) }.expect("ours");
        if value % 64 == 0 {
            sched::yield_now();
        }
    }
    STOP.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join());
    }
    // SAFETY: the last one, and nobody reads any more.
    unsafe { kmem().kfree(PLACE.load(Ordering::Acquire).cast()) }.expect("ours");
    kmem().kfree_rcu_barrier();
}

/// Whoever reaches into other CPUs' sets meets CPUs that are busy with them, and interrupts on top.
fn caches_shrink_and_sets_drain_under_load() {
    static STOP: AtomicBool = AtomicBool::new(false);
    STOP.store(false, Ordering::Relaxed);
    let cache = kmem().kmem_cache_create("churn", 136, &CacheArgs::default()).expect("a cache");
    let workers: Vec<_> = (0..percpu::nr_cpus())
        .map(|cpu| {
            thread::spawn("churns", Some(CpuId(cpu)), move || {
                let mut random = Random::new(u64::from(cpu) + 90);
                let mut live = Vec::with_capacity(64);
                let mut tag = u64::from(cpu) << 40;
                while !STOP.load(Ordering::Relaxed) {
                    tag += 1;
                    if live.len() < 64 && random.percent(55) {
                        let object = kmem().kmem_cache_alloc(cache, Gfp::KERNEL).expect("memory");
                        fill(object, 136, tag);
                        live.push((object, tag));
                    } else if !live.is_empty() {
                        let (object, tag) = live.swap_remove(random.below(live.len()));
                        check(object, 136, tag);
                        // SAFETY: ours.
                        unsafe { kmem().kmem_cache_free(cache, object) }.expect("ours");
                    }
                    let page = kmem().alloc_page(Gfp::KERNEL).expect("memory");
                    // SAFETY: ours.
                    unsafe { kmem().free_pages(page, Order::ZERO) }.expect("ours");
                }
                for (object, tag) in live {
                    check(object, 136, tag);
                    // SAFETY: ours.
                    unsafe { kmem().kmem_cache_free(cache, object) }.expect("ours");
                }
            })
        })
        .collect();
    for _ in 0..8 * super::effort() {
        kmem().kmem_cache_shrink(cache);
        kmem().pages().drain_all_pages();
        sched::yield_now();
    }
    STOP.store(true, Ordering::Relaxed);
    for worker in workers {
        assert!(worker.join());
    }
    // SAFETY: nobody uses it any more.
    unsafe { kmem().kmem_cache_destroy(cache) }.expect("empty");
}
