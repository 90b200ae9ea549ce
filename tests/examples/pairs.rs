//! Runs pairs of an allocation and its free, for counting instructions: `pairs WHAT COUNT`.
//!
//! Two counts under `valgrind --tool=callgrind` differ by exactly the instructions of the additional pairs, the loop's own
//! three or four included.

use core::ptr::NonNull;
use std::hint::black_box;

use kmem::{CacheArgs, Gfp, KmemCache, Order};
use kmem_tests::{Kmem, machine};

const KERNEL: Gfp = Gfp::KERNEL;

type Pairs = fn(Kmem, &'static KmemCache, usize) -> Option<()>;

/// Declares a loop around a pair, as a function of its own.
macro_rules! pairs {
    ($($name:ident($kmem:ident, $cache:ident) $body:block)*) => {
        $(
            #[inline(never)]
            fn $name($kmem: Kmem, $cache: &'static KmemCache, count: usize) -> Option<()> {
                let _ = $cache;
                for _ in 0..count $body
                Some(())
            }
        )*
    };
}

// SAFETY: here and below, each block is freed once, right after it was allocated.
#[inline(always)]
unsafe fn kfree(kmem: Kmem, block: NonNull<u8>) -> Option<()> {
    // SAFETY: as above.
    unsafe { kmem.kfree(block.as_ptr()) }.ok()
}

pairs! {
    kmalloc(kmem, cache) {
        let block = black_box(kmem.kmalloc(64, KERNEL).ok()?);
        // SAFETY: as above.
        unsafe { kfree(kmem, block)? };
    }
    kmalloc_size(kmem, cache) {
        let block = black_box(kmem.kmalloc(black_box(64), KERNEL).ok()?);
        // SAFETY: as above.
        unsafe { kfree(kmem, block)? };
    }
    kzalloc(kmem, cache) {
        let block = black_box(kmem.kzalloc(64, KERNEL).ok()?);
        // SAFETY: as above.
        unsafe { kfree(kmem, block)? };
    }
    large(kmem, cache) {
        let block = black_box(kmem.kmalloc(16384, KERNEL).ok()?);
        // SAFETY: as above.
        unsafe { kfree(kmem, block)? };
    }
    kvmalloc(kmem, cache) {
        let block = black_box(kmem.kvmalloc(64, KERNEL).ok()?);
        // SAFETY: as above.
        unsafe { kmem.kvfree(block.as_ptr()) }.ok()?;
    }
    kvmalloc_size(kmem, cache) {
        let block = black_box(kmem.kvmalloc(black_box(64), KERNEL).ok()?);
        // SAFETY: as above.
        unsafe { kmem.kvfree(block.as_ptr()) }.ok()?;
    }
    large_weak(kmem, cache) {
        // With the flags that kvmalloc asks with.
        let block = black_box(kmem.kmalloc(black_box(16384), kmem::kvmalloc::object_gfp(16384, KERNEL)).ok()?);
        // SAFETY: as above.
        unsafe { kfree(kmem, block)? };
    }
    large_kvmalloc(kmem, cache) {
        let block = black_box(kmem.kvmalloc(black_box(16384), KERNEL).ok()?);
        // SAFETY: as above.
        unsafe { kmem.kvfree(block.as_ptr()) }.ok()?;
    }
    vmalloc(kmem, cache) {
        let memory = black_box(kmem.vmalloc(4096).ok()?);
        // SAFETY: as above.
        unsafe { kmem.vfree(memory.as_ptr()) }.ok()?;
    }
    cache(kmem, cache) {
        let object = black_box(kmem.kmem_cache_alloc(cache, KERNEL).ok()?);
        // SAFETY: as above.
        unsafe { kmem.kmem_cache_free(cache, object) }.ok()?;
    }
    page(kmem, cache) {
        let page = black_box(kmem.alloc_pages(KERNEL, Order::ZERO).ok()?);
        // SAFETY: as above.
        unsafe { kmem.free_pages(page, Order::ZERO) }.ok()?;
    }
}

/// Resizes in place.
#[inline(never)]
fn krealloc(kmem: Kmem, _cache: &'static KmemCache, count: usize) -> Option<()> {
    let mut block = kmem.kmalloc(40, KERNEL).ok()?;
    for _ in 0..count {
        // SAFETY: ours; the result replaces it.
        block = unsafe { kmem.krealloc(black_box(block).as_ptr(), 50, KERNEL) }.ok()?;
    }
    // SAFETY: as above.
    unsafe { kfree(kmem, block) }
}

/// Thirty-two objects a round.
#[inline(never)]
fn bulk(kmem: Kmem, cache: &'static KmemCache, count: usize) -> Option<()> {
    let mut batch = [None; 32];
    for _ in 0..count {
        kmem.kmem_cache_alloc_bulk(cache, KERNEL, &mut batch).ok()?;
        // SAFETY: as above.
        unsafe { kmem.kmem_cache_free_bulk(cache, black_box(&mut batch)) }.ok()?;
    }
    Some(())
}

const ALL: [(&str, Pairs); 13] = [
    ("kmalloc", kmalloc),
    ("kmalloc-size", kmalloc_size),
    ("kzalloc", kzalloc),
    ("krealloc", krealloc),
    ("large", large),
    ("kvmalloc", kvmalloc),
    ("kvmalloc-size", kvmalloc_size),
    ("large-weak", large_weak),
    ("large-kvmalloc", large_kvmalloc),
    ("vmalloc", vmalloc),
    ("cache", cache),
    ("page", page),
    ("bulk", bulk),
];

fn main() {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let count: usize = args.next().and_then(|count| count.parse().ok()).unwrap_or(1000);
    let Some((_, pairs)) = ALL.iter().find(|(name, _)| *name == what) else {
        let names = ALL.map(|(name, _)| name).join(", ");
        eprintln!("pairs WHAT COUNT, where WHAT is one of {names}");
        return;
    };
    let kmem = machine().kmem();
    let cache = kmem.kmem_cache_create("pairs", 64, &CacheArgs::default()).expect("a cache");
    pairs(kmem, cache, count).expect("memory");
}
