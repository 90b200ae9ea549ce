//! Random operations with fixed seeds, against models that are too simple to be wrong; on all CPUs at once for the soak.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::ptr::NonNull;

use kmem::{CacheArgs, Gfp, KmemCache, Order, Pfn};
use kmem_sync::{CpuId, Pinned};
use kmem_vmalloc::{VmRequest, VmallocError};

use super::random::Random;
use super::tools::{check, fill, is_zero, settled_free_pages};
use crate::cpu::KernelCpu;
use crate::memory::GIVEN;
use crate::platform::{fail_page_request, kmem};
use crate::vm::vmalloc;
use crate::{percpu, thread};

super::tests![
    no_two_blocks_of_pages_overlap,
    objects_keep_their_contents,
    areas_do_not_overlap,
    a_failed_page_request_loses_nothing,
    soak_on_every_cpu,
    nothing_is_lost,
];

const SEEDS: [u64; 3] = [1, 0x5eed, 0xdead_beef];

/// A bit for each frame that somebody has.
struct Owned(Vec<u64>);

impl Owned {
    fn new() -> Self {
        let end = GIVEN.get().expect("the map").regions().iter().map(|region| region.range.end.0).max();
        Self(vec![0; end.unwrap_or(0) as usize / 64 + 1])
    }

    fn set(&mut self, pfn: Pfn, order: Order, owned: bool) {
        for frame in pfn.0..pfn.0 + order.nr_pages() as u64 {
            let (word, bit) = (&mut self.0[frame as usize / 64], 1_u64 << (frame % 64));
            assert_eq!(*word & bit != 0, !owned, "frame {frame:#x}");
            *word ^= bit;
        }
    }
}

fn no_two_blocks_of_pages_overlap() {
    let given = GIVEN.get().expect("the map");
    for seed in SEEDS {
        let mut random = Random::new(seed);
        let mut owned = Owned::new();
        let mut live: Vec<(Pfn, Order)> = Vec::new();
        for _ in 0..4000 * super::effort() {
            if live.len() < 600 && random.percent(53) {
                let order = Order::new(if random.percent(70) { 0 } else { random.below(8) as u32 }).expect("an order");
                let gfp = [Gfp::KERNEL, Gfp::ATOMIC, Gfp::HIGHUSER_MOVABLE, Gfp::KERNEL | Gfp::DMA32][random.below(4)];
                let Ok(page) = kmem().alloc_pages(gfp | Gfp::NOWARN, order) else { continue };
                assert!(page.is_aligned(order) && given.is_free_memory(page));
                owned.set(page, order, true);
                live.push((page, order));
            } else if !live.is_empty() {
                let (page, order) = live.swap_remove(random.below(live.len()));
                owned.set(page, order, false);
                // SAFETY: ours.
                unsafe { kmem().free_pages(page, order) }.expect("ours");
            }
        }
        for (page, order) in live {
            // SAFETY: ours.
            unsafe { kmem().free_pages(page, order) }.expect("ours");
        }
    }
}

/// A block, and what is in it.
struct Object {
    at: NonNull<u8>,
    size: usize,
    tag: u64,
    cache: bool,
}

/// A size; small ones are as likely as large ones.
fn random_size(random: &mut Random, largest: u32) -> usize {
    let scale = 1 << random.below(largest as usize);
    scale + random.below(scale)
}

fn one_object(random: &mut Random, cache: &'static KmemCache, live: &mut Vec<Object>, tag: u64) {
    match random.below(10) {
        0..=4 if live.len() < 400 => {
            let size = random_size(random, 16);
            let zero = random.percent(20);
            let gfp = if zero { Gfp::KERNEL | Gfp::ZERO } else { Gfp::KERNEL };
            let at = kmem().kmalloc(size, gfp).expect("memory");
            assert!(!zero || is_zero(at, size));
            fill(at, size, tag);
            live.push(Object { at, size, tag, cache: false });
        }
        5 if live.len() < 400 => {
            let size = cache.object_size();
            let at = kmem().kmem_cache_alloc(cache, Gfp::KERNEL).expect("memory");
            fill(at, size, tag);
            live.push(Object { at, size, tag, cache: true });
        }
        6 if !live.is_empty() => {
            let i = random.below(live.len());
            let object = &mut live[i];
            if !object.cache {
                check(object.at, object.size, object.tag);
                let size = random_size(random, 15);
                // SAFETY: ours; the result replaces it.
                let moved = unsafe { kmem().krealloc(object.at.as_ptr(), size, Gfp::KERNEL) }.expect("memory");
                let kept = size.min(object.size).min(512);
                if kept == size.min(object.size) && object.size <= 512 {
                    check(moved, kept, object.tag);
                }
                *object = Object { at: moved, size, tag, cache: false };
                fill(moved, size, tag);
            }
        }
        _ if !live.is_empty() => {
            let object = live.swap_remove(random.below(live.len()));
            check(object.at, object.size, object.tag);
            if object.cache && random.percent(50) {
                // SAFETY: ours.
                unsafe { kmem().kmem_cache_free(cache, object.at) }.expect("ours");
            } else {
                super::contract::kfree(object.at);
            }
        }
        _ => {}
    }
}

fn free_objects(live: Vec<Object>) {
    for object in live {
        check(object.at, object.size, object.tag);
        super::contract::kfree(object.at);
    }
}

fn objects_keep_their_contents() {
    for seed in SEEDS {
        let cache = kmem().kmem_cache_create("oracle", 200, &CacheArgs::default()).expect("a cache");
        let mut random = Random::new(seed);
        let mut live = Vec::new();
        for tag in 0..5000 * super::effort() as u64 {
            one_object(&mut random, cache, &mut live, tag);
        }
        free_objects(live);
        // SAFETY: nobody uses it any more.
        unsafe { kmem().kmem_cache_destroy(cache) }.expect("empty");
    }
}

fn areas_do_not_overlap() {
    for seed in SEEDS {
        let mut random = Random::new(seed);
        // Start to size and tag; the guard page counts.
        let mut live: BTreeMap<usize, (usize, u64)> = BTreeMap::new();
        for tag in 0..300 * super::effort() as u64 {
            if live.len() < 40 && random.percent(60) {
                let size = random_size(&mut random, 20);
                let area = vmalloc().vmalloc(size).expect("memory");
                let (start, end) =
                    (area.expose_provenance().get(), area.addr().get() + size.next_multiple_of(4096) + 4096);
                if let Some((&before, &(size, _))) = live.range(..end).next_back() {
                    assert!(before + size.next_multiple_of(4096) + 4096 <= start || before >= end, "areas overlap");
                }
                fill(area, size, tag);
                live.insert(start, (size, tag));
            } else if let Some((&start, _)) = live.iter().nth(random.below(live.len().max(1))) {
                free_area(&mut live, start);
            }
        }
        while let Some((&start, _)) = live.first_key_value() {
            free_area(&mut live, start);
        }
    }
}

fn free_area(live: &mut BTreeMap<usize, (usize, u64)>, start: usize) {
    let (size, tag) = live.remove(&start).expect("it lives");
    let area = NonNull::new(core::ptr::with_exposed_provenance_mut(start)).expect("an address");
    check(area, size, tag);
    // SAFETY: ours.
    unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours");
}

/// Something that asks for pages; whether it got them.
type Operation = fn() -> bool;

/// Fails the first page request of an operation, then the second, and so on until it succeeds: nothing may be lost.
fn a_failed_page_request_loses_nothing() {
    let quiet = Gfp::KERNEL | Gfp::NOWARN;
    let operations: [(&str, Operation); 4] = [
        ("vmalloc", || {
            let area = vmalloc().alloc(&VmRequest::new(300_000, Gfp::KERNEL | Gfp::NOWARN));
            // SAFETY: ours.
            area.map(|area| unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours")).is_ok()
        }),
        ("kmalloc", || kmem().kmalloc(100_000, Gfp::KERNEL | Gfp::NOWARN).map(super::contract::kfree).is_ok()),
        ("a cache", || {
            let Ok(cache) = kmem().kmem_cache_create("fails", 2000, &CacheArgs::default()) else { return false };
            let object = kmem().kmem_cache_alloc(cache, Gfp::KERNEL | Gfp::NOWARN);
            let ok = object.map(super::contract::kfree).is_ok();
            // SAFETY: nobody uses it.
            unsafe { kmem().kmem_cache_destroy(cache) }.expect("empty");
            ok
        }),
        ("bulk", || {
            let mut pages = [None; 40];
            let got = kmem().alloc_pages_bulk(Gfp::KERNEL | Gfp::NOWARN, &mut pages);
            // SAFETY: ours.
            unsafe { kmem().free_pages_bulk(&mut pages[..got]) }.expect("ours");
            got == 40
        }),
    ];
    for (name, operation) in operations {
        operation();
        let mut failures = 0;
        for n in 1..200 {
            kmem().slabs().shrink_all();
            fail_page_request(n);
            let ok = operation();
            let fired = crate::platform::page_failure_pending();
            fail_page_request(0);
            if !ok {
                failures += 1;
            }
            if fired {
                break;
            }
        }
        println!("{name}: {failures} failures survived");
    }
    let refused: Result<_, VmallocError> = vmalloc().alloc(&VmRequest::new(usize::MAX / 2, quiet));
    assert!(refused.is_err());
    let _pin = Pinned::new(&KernelCpu);
}

fn soak_on_every_cpu() {
    let cache = kmem().kmem_cache_create("soak", 320, &CacheArgs::default()).expect("a cache");
    let threads: Vec<_> = (0..percpu::nr_cpus() * 2)
        .map(|i| {
            // Half of the threads stay on a CPU, the others go where the scheduler sends them.
            let cpu = (i < percpu::nr_cpus()).then_some(CpuId(i));
            thread::spawn("soaks", cpu, move || {
                let mut random = Random::new(u64::from(i) + 1000);
                let mut objects = Vec::new();
                let mut pages: Vec<(Pfn, Order)> = Vec::new();
                let mut areas: BTreeMap<usize, (usize, u64)> = BTreeMap::new();
                for tag in 0..4000 * super::effort() as u64 {
                    one_object(&mut random, cache, &mut objects, tag);
                    if pages.len() < 100 && random.percent(40) {
                        let order = Order::new(random.below(5) as u32).expect("an order");
                        if let Ok(page) = kmem().alloc_pages(Gfp::HIGHUSER_MOVABLE | Gfp::NOWARN, order) {
                            fill(kmem().page_address(page).expect("mapped"), order.size_bytes(), page.0);
                            pages.push((page, order));
                        }
                    } else if !pages.is_empty() && random.percent(70) {
                        let (page, order) = pages.swap_remove(random.below(pages.len()));
                        check(kmem().page_address(page).expect("mapped"), order.size_bytes(), page.0);
                        // SAFETY: ours.
                        unsafe { kmem().free_pages(page, order) }.expect("ours");
                    }
                    if random.percent(4) {
                        let size = random_size(&mut random, 18);
                        let area = vmalloc().vmalloc(size).expect("memory");
                        fill(area, size, tag);
                        areas.insert(area.expose_provenance().get(), (size, tag));
                    }
                    if areas.len() > 8 {
                        let nth = random.below(areas.len());
                        if let Some((&start, _)) = areas.iter().nth(nth) {
                            free_area(&mut areas, start);
                        }
                    }
                }
                free_objects(objects);
                for (page, order) in pages {
                    // SAFETY: ours.
                    unsafe { kmem().free_pages(page, order) }.expect("ours");
                }
                while let Some((&start, _)) = areas.first_key_value() {
                    free_area(&mut areas, start);
                }
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join());
    }
    // SAFETY: nobody uses it any more.
    unsafe { kmem().kmem_cache_destroy(cache) }.expect("empty");
}

/// The same work twice: the second time takes nothing that does not come back.
fn nothing_is_lost() {
    let work = || {
        objects_keep_their_contents();
        no_two_blocks_of_pages_overlap();
        areas_do_not_overlap();
    };
    work();
    let before = settled_free_pages();
    work();
    let after = settled_free_pages();
    // A page table or a descriptor's page may be new.
    assert!(after + 8 >= before, "{before} pages free before, {after} after");
}
