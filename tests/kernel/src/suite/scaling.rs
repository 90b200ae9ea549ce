//! How often CPUs need each other's cache lines: atomic read-modify-writes per 1000 allocations, on 1 CPU to all.

use alloc::vec::Vec;

use kmem::{Gfp, Order, Pfn};
use kmem_sync::CpuId;
use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::platform::kmem;
use crate::vm::vmalloc;
use crate::{percpu, sched, step, thread};

super::tests![shared_operations_per_1000_allocations];

/// Allocations of one thread.
const N: usize = 500;
/// Areas of one thread.
const AREAS: usize = 50;

fn pair_of_256() {
    for _ in 0..N {
        super::contract::kfree(kmem().kmalloc(256, Gfp::KERNEL).expect("memory"));
    }
}

fn batch_of_256() {
    let mut blocks = [core::ptr::null_mut(); N];
    for block in &mut blocks {
        *block = kmem().kmalloc(256, Gfp::KERNEL).expect("memory").as_ptr();
    }
    for block in blocks {
        // SAFETY: ours.
        unsafe { kmem().kfree(block) }.expect("ours");
    }
}

fn pair_of_pages() {
    for _ in 0..N {
        let page = kmem().alloc_page(Gfp::KERNEL).expect("memory");
        // SAFETY: ours.
        unsafe { kmem().free_page(page) }.expect("ours");
    }
}

fn batch_of_pages() {
    let mut pages = [Pfn(0); N];
    for page in &mut pages {
        *page = kmem().alloc_page(Gfp::KERNEL).expect("memory");
    }
    for page in pages {
        // SAFETY: ours.
        unsafe { kmem().free_page(page) }.expect("ours");
    }
}

fn pairs_of_order_3() {
    let order = Order::new(3).expect("an order");
    for _ in 0..N {
        let pages = kmem().alloc_pages(Gfp::KERNEL, order).expect("memory");
        // SAFETY: ours.
        unsafe { kmem().free_pages(pages, order) }.expect("ours");
    }
}

fn areas_of_a_page() {
    for _ in 0..AREAS {
        let area = vmalloc().vmalloc(4096).expect("memory");
        // SAFETY: ours.
        unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours");
    }
}

const WORK: [(&str, usize, fn()); 6] = [
    ("kmalloc(256)+kfree", N, pair_of_256),
    ("500 x kmalloc(256), then 500 x kfree", N, batch_of_256),
    ("alloc_pages(0)+free_pages", N, pair_of_pages),
    ("500 x alloc_pages(0), then 500 x free", N, batch_of_pages),
    ("alloc_pages(3)+free_pages", N, pairs_of_order_3),
    ("vmalloc(4 KiB)+vfree", AREAS, areas_of_a_page),
];

fn shared_operations_per_1000_allocations() {
    static READY: AtomicU64 = AtomicU64::new(0);
    static ATOMICS: AtomicU64 = AtomicU64::new(0);
    static STEPS: AtomicU64 = AtomicU64::new(0);
    println!("{:<40} {:>5} {:>12} {:>14}", "work, on each CPU", "CPUs", "shared/1000", "instructions");
    for (name, nr, work) in WORK {
        // What was freed lazily is in the pools.
        vmalloc().vm_unmap_aliases();
        let mut cpus = 1;
        while cpus <= percpu::nr_cpus() {
            for counter in [&READY, &ATOMICS, &STEPS] {
                counter.store(0, Ordering::Relaxed);
            }
            let threads: Vec<_> = (0..cpus)
                .map(|cpu| {
                    thread::spawn("counts", Some(CpuId(cpu)), move || {
                        // Once without counting: sets and sheaves are as they go on being.
                        work();
                        READY.fetch_add(1, Ordering::AcqRel);
                        while READY.load(Ordering::Acquire) < u64::from(cpus) {
                            sched::park_or_yield();
                        }
                        let ((), atomics, steps) = step::count(cpu as usize, work);
                        ATOMICS.fetch_add(atomics, Ordering::Relaxed);
                        STEPS.fetch_add(steps, Ordering::Relaxed);
                    })
                })
                .collect();
            for thread in threads {
                assert!(thread.join());
            }
            let allocations = u64::from(cpus) * nr as u64;
            let per_1000 = |count: &AtomicU64| count.load(Ordering::Relaxed) * 1000 / allocations;
            println!("{name:<40} {cpus:>5} {:>12} {:>14}", per_1000(&ATOMICS), per_1000(&STEPS) / 1000);
            assert!(per_1000(&STEPS) > 1000, "nothing was counted");
            cpus *= 2;
        }
    }
}
