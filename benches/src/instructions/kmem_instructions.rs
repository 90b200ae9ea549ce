//! The counted loops of kmem, on a hosted machine; calls of the platform are part of what is counted.

use std::{hint::black_box, ptr::NonNull};

use kmem::slab::CacheArgs;
use kmem_gfp::{Gfp, Order};

use super::Case;
use crate::{
    caches::{Cache, kmem_caches::Typed},
    machine,
    measure::Role,
    objects::kmem_objects::HEAP,
};

/// Every counted loop that is ours.
pub(crate) fn cases() -> Vec<Case> {
    let case = |operation, subject, per_turn, run| Case { operation, subject, role: Role::Kmem, per_turn, run };
    vec![
        case("kmalloc(64) + kfree", "kmem", 1, kmalloc),
        case("kmalloc(64) + kfree", "kmem, GlobalAlloc", 1, heap),
        case("cache alloc + free", "kmem", 1, cache),
        case("cache alloc + free", "kmem, typed", 1, typed),
        case("page of order 0, pair", "kmem", 1, |count| pages(count, 0)),
        case("page of order 9, pair", "kmem", 1, |count| pages(count, 9)),
        case("bulk of 32 objects, per object", "kmem", 32, bulk),
    ]
}

fn kmalloc(count: u64) {
    let kmem = machine::shared();
    for _ in 0..count {
        if let Ok(object) = kmem.kmalloc(64, Gfp::KERNEL) {
            // SAFETY: just allocated, freed once.
            let freed = unsafe { kmem.kfree(black_box(object).as_ptr()) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}

fn heap(count: u64) {
    use std::alloc::{GlobalAlloc, Layout};
    let layout = Layout::new::<[u64; 8]>();
    for _ in 0..count {
        // SAFETY: the layout has a size; the block is freed once, with the layout it was allocated with.
        unsafe { HEAP.dealloc(black_box(HEAP.alloc(layout)), layout) };
    }
}

fn cache(count: u64) {
    let kmem = machine::shared();
    let cache = kmem.kmem_cache_create("bench_raw", 192, &CacheArgs::default()).expect("memory for a cache");
    for _ in 0..count {
        if let Ok(object) = kmem.kmem_cache_alloc(cache, Gfp::KERNEL) {
            // SAFETY: just allocated, freed once.
            let freed = unsafe { kmem.kmem_cache_free(cache, black_box(object)) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}

fn typed(count: u64) {
    let cache = Typed::new();
    for id in 0..count {
        cache.free(black_box::<<Typed as Cache>::Handle>(cache.alloc(id)));
    }
}

fn pages(count: u64, order: u32) {
    let kmem = machine::shared();
    let Some(order) = Order::new(order) else { return };
    for _ in 0..count {
        if let Ok(pfn) = kmem.alloc_pages(Gfp::KERNEL, order) {
            // SAFETY: just allocated, freed once.
            let freed = unsafe { kmem.free_pages(black_box(pfn), order) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}

fn bulk(count: u64) {
    let kmem = machine::shared();
    let cache = kmem.kmem_cache_create("bench_bulk", 64, &CacheArgs::default()).expect("memory for a cache");
    let mut objects = [None::<NonNull<u8>>; 32];
    for _ in 0..count {
        if kmem.kmem_cache_alloc_bulk(cache, Gfp::KERNEL, &mut objects).is_ok() {
            // SAFETY: just allocated, freed once.
            let freed = unsafe { kmem.kmem_cache_free_bulk(cache, black_box(&mut objects)) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    }
}
