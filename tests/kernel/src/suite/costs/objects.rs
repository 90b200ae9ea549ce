//! kmalloc, caches, mempools.

use alloc::vec::Vec;
use core::ptr::NonNull;

use kmem::slab::{CacheElements, ElementSource, Mempool};
use kmem::{AllocError, CacheArgs, Gfp, Kmem, KmemCache, Order, RcuHead};

use super::super::random::Random;
use super::meter::{Table, both, each, opaque, opaque_pointer, per_batch, sustained};
use crate::platform::{Machine, kmem};
use crate::sched;

const KERNEL: Gfp = Gfp::KERNEL;

/// The machine: its address is known to the compiler, once somebody has asked whether it is there.
type K = &'static Kmem<Machine>;

/// Memory, or the end of the measurement.
#[inline(always)]
fn some<T, E>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(_) => none(),
    }
}

#[cold]
fn none() -> ! {
    // PANIC: a count without memory means nothing.
    panic!("no memory")
}

#[inline(always)]
fn kfree(k: K, block: NonNull<u8>) {
    // SAFETY: the measurement's own.
    let _ = unsafe { k.kfree(block.as_ptr()) };
}

/// A row for each constant size.
macro_rules! constant_sizes {
    ($table:ident, $k:ident, $(($name:literal, $size:literal, $linux:literal)),* $(,)?) => {
        $($table.row($name, pair($k, || $k.kmalloc($size, KERNEL)), $linux);)*
    };
}

/// Allocation and free, a thousand times a batch.
#[inline(always)]
fn pair(k: K, alloc: impl Fn() -> Result<NonNull<u8>, AllocError>) -> u64 {
    each(1000, |_| kfree(k, opaque_pointer(some(alloc()))))
}

pub(super) fn measure(table: &mut Table) {
    let k = kmem();
    table.section("slab");
    constant_sizes!(
        table,
        k,
        ("kmalloc(8)+kfree, constant size", 8, 1030),
        ("kmalloc(64)+kfree, constant size", 64, 1030),
        ("kmalloc(192)+kfree, constant size", 192, 1030),
        ("kmalloc(256)+kfree, constant size", 256, 1030),
        ("kmalloc(1024)+kfree, constant size", 1024, 1030),
        ("kmalloc(4096)+kfree, constant size", 4096, 1030),
        ("kmalloc(8192)+kfree, constant size", 8192, 1030),
        ("kmalloc(16384)+kfree, constant size", 16384, 9120),
    );
    for (name, size, linux) in [
        ("kmalloc(8)+kfree, variable size", 8, 1180),
        ("kmalloc(64)+kfree, variable size", 64, 1180),
        ("kmalloc(192)+kfree, variable size", 192, 1180),
        ("kmalloc(256)+kfree, variable size", 256, 1180),
        ("kmalloc(1024)+kfree, variable size", 1024, 1180),
        ("kmalloc(4096)+kfree, variable size", 4096, 1180),
        ("kmalloc(8192)+kfree, variable size", 8192, 1180),
        ("kmalloc(16384)+kfree, variable size", 16384, 9240),
    ] {
        table.row(name, pair(k, || k.kmalloc(opaque(size), KERNEL)), linux);
    }
    table.row("kzalloc(64)+kfree, constant size", pair(k, || k.kzalloc(64, KERNEL)), 1410);
    table.row("kmalloc(64, GFP_ATOMIC)+kfree, constant", pair(k, || k.kmalloc(64, Gfp::ATOMIC)), 1030);
    table.row("kmalloc(64, GFP_KERNEL_ACCOUNT)+kfree, const", pair(k, || k.kmalloc(64, Gfp::KERNEL_ACCOUNT)), 1030);
    batches(table, k);
    live_set(table, k);
    caches(table, k);
    pools(table, k);
    krealloc_and_rcu(table, k);
}

fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, random.below(i + 1));
    }
    order
}

/// Many blocks, then many frees in the order given.
#[inline(never)]
fn many(k: K, n: usize, alloc: impl Fn() -> NonNull<u8>, order: impl Iterator<Item = usize> + Clone) -> (u64, u64) {
    let blocks = core::cell::RefCell::new(alloc::vec![NonNull::<u8>::dangling(); n]);
    both(
        n,
        || {
            for slot in blocks.borrow_mut().iter_mut() {
                *slot = alloc();
            }
        },
        || {
            let blocks = blocks.borrow();
            for i in order.clone() {
                kfree(k, blocks[i]);
            }
        },
    )
}

fn batches(table: &mut Table, k: K) {
    let of_256 = || some(k.kmalloc(256, KERNEL));
    let (alloc, free) = many(k, 1000, of_256, 0..1000);
    table.row("batch 1000: kmalloc(256)", alloc, 901);
    table.row("batch 1000: kfree, FIFO order", free, 1040);
    let (alloc, free) = many(k, 1000, of_256, (0..1000).rev());
    table.row("batch 1000: kmalloc(256) (again)", alloc, 860);
    table.row("batch 1000: kfree, LIFO order", free, 977);
    let order = shuffled(1000, 1);
    let (alloc, free) = many(k, 1000, of_256, order.iter().copied());
    table.row("batch 1000: kmalloc(256) (after random frees)", alloc, 755);
    table.row("batch 1000: kfree, random order", free, 1640);
    let order = shuffled(10_000, 2);
    let (alloc, free) = many(k, 10_000, of_256, order.iter().copied());
    table.row("batch 10000: kmalloc(256)", alloc, 975);
    table.row("batch 10000: kfree, random order", free, 2210);
    let (alloc, free) = many(k, 10_000, || some(k.kmalloc(64, KERNEL)), 0..10_000);
    table.row("batch 10000: kmalloc(64)", alloc, 812);
    table.row("batch 10000: kfree(64), FIFO order", free, 941);
    let (alloc, free) = many(k, 1000, || some(k.kmalloc(4096, KERNEL)), 0..1000);
    table.row("batch 1000: kmalloc(4096)", alloc, 2010);
    table.row("batch 1000: kfree(4096), FIFO order", free, 2150);
}

fn live_set(table: &mut Table, k: K) {
    let mut random = Random::new(3);
    let mut size = || 16 + random.below(1009);
    let mut live: Vec<_> = (0..10_000).map(|_| some(k.kmalloc(size(), KERNEL))).collect();
    let sizes: Vec<_> = (0..10_000).map(|_| size()).collect();
    let order = shuffled(10_000, 4);
    let mut next = 0;
    let count = each(1000, |_| {
        next = if next + 1 == 10_000 { 0 } else { next + 1 };
        let slot = &mut live[order[next]];
        kfree(k, *slot);
        *slot = some(k.kmalloc(sizes[next], KERNEL));
    });
    table.row("live set 10k, 16..1024 B: kfree+kmalloc", count, 1270);
    live.into_iter().for_each(|block| kfree(k, block));
}

fn free_to(k: K, cache: &KmemCache, object: NonNull<u8>) {
    // SAFETY: the measurement's own.
    let _ = unsafe { k.kmem_cache_free(cache, object) };
}

fn caches(table: &mut Table, k: K) {
    let cache = some(k.kmem_cache_create("costs-192", 192, &CacheArgs::default()));
    let free = |object| free_to(k, cache, object);
    let count = each(1000, |_| free(opaque_pointer(some(k.kmem_cache_alloc(cache, KERNEL)))));
    table.row("kmem_cache_alloc+free, 192 B private", count, 1000);
    let count = each(1000, |_| free(opaque_pointer(some(k.kmem_cache_zalloc(cache, KERNEL)))));
    table.row("kmem_cache_zalloc+free, 192 B private", count, 1600);
    let blocks = core::cell::RefCell::new(alloc::vec![NonNull::<u8>::dangling(); 1000]);
    let (alloc, freed) = both(
        1000,
        || {
            for slot in blocks.borrow_mut().iter_mut() {
                *slot = some(k.kmem_cache_alloc(cache, KERNEL));
            }
        },
        || {
            for &object in blocks.borrow().iter() {
                free(object);
            }
        },
    );
    table.row("batch 1000: kmem_cache_alloc 192 B", alloc, 633);
    table.row("batch 1000: kmem_cache_free, FIFO", freed, 704);
    bulk(table, k, cache);
    // SAFETY: nobody uses it any more.
    let _ = unsafe { k.kmem_cache_destroy(cache) };
}

type Objects = [Option<NonNull<u8>>; 32];

fn alloc_bulk(k: K, cache: &KmemCache, objects: &mut Objects) {
    some(k.kmem_cache_alloc_bulk(cache, KERNEL, objects));
}

fn free_bulk(k: K, cache: &KmemCache, objects: &mut Objects) {
    // SAFETY: the measurement's own.
    let _ = unsafe { k.kmem_cache_free_bulk(cache, objects) };
}

fn bulk(table: &mut Table, k: K, cache: &KmemCache) {
    let objects = core::cell::RefCell::new([None; 32]);
    let (alloc, free) =
        both(1, || alloc_bulk(k, cache, &mut objects.borrow_mut()), || free_bulk(k, cache, &mut objects.borrow_mut()));
    table.row("kmem_cache_alloc_bulk of 32, per call", alloc, 4840);
    table.row("kmem_cache_free_bulk of 32, per call", free, 10_950);
    let mut objects = [None; 32];
    let pair = each(100, |_| {
        alloc_bulk(k, cache, &mut objects);
        free_bulk(k, cache, &mut objects);
    });
    table.row("alloc_bulk(32)+free_bulk(32), per object", pair / 32, 493);
    let objects = core::cell::RefCell::new([[None; 32]; 31]);
    let (alloc, free) = both(
        31,
        || objects.borrow_mut().iter_mut().for_each(|objects| alloc_bulk(k, cache, objects)),
        || objects.borrow_mut().iter_mut().for_each(|objects| free_bulk(k, cache, objects)),
    );
    table.row("31 x alloc_bulk(32), per object", alloc / 32, 265);
    table.row("31 x free_bulk(32), per object", free / 32, 490);
}

/// Elements from the page allocator.
struct PageElements(K);

// SAFETY: pages belong to whoever allocated them.
unsafe impl ElementSource for PageElements {
    fn alloc(&self, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.0.get_free_pages(gfp, Order::ZERO)
    }
    unsafe fn free(&self, element: NonNull<u8>) {
        // SAFETY: the caller's promise.
        let _ = unsafe { self.0.free_pages_at(element.as_ptr(), Order::ZERO) };
    }
}

/// Elements from kmalloc.
struct Blocks(K);

// SAFETY: blocks belong to whoever allocated them.
unsafe impl ElementSource for Blocks {
    fn alloc(&self, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.0.kmalloc(256, gfp)
    }
    unsafe fn free(&self, element: NonNull<u8>) {
        kfree(self.0, element);
    }
}

fn pools(table: &mut Table, k: K) {
    let slabs = k.slabs();
    let pool = some(Mempool::new(slabs, 4, Blocks(k), KERNEL));
    // SAFETY: the pool's own.
    let count = each(1000, |_| unsafe { pool.free(opaque_pointer(some(pool.alloc(KERNEL)))) });
    table.row("mempool(kmalloc 256) alloc+free", count, 1800);
    let pool = some(Mempool::new(slabs, 4, PageElements(k), KERNEL));
    // SAFETY: the pool's own.
    let count = each(1000, |_| unsafe { pool.free(opaque_pointer(some(pool.alloc(KERNEL)))) });
    table.row("mempool(page, order 0) alloc+free", count, 5940);
    let cache = some(k.kmem_cache_create("costs-pool", 192, &CacheArgs::default()));
    let pool = some(Mempool::new(slabs, 4, CacheElements { slabs, cache }, KERNEL));
    // SAFETY: the pool's own.
    let count = each(1000, |_| unsafe { pool.free(opaque_pointer(some(pool.alloc(KERNEL)))) });
    table.row("mempool(cache 192) alloc+free", count, 0);
}

fn krealloc_and_rcu(table: &mut Table, k: K) {
    let block = some(k.kmalloc(96, KERNEL)).as_ptr();
    let count = each(1000, |_| {
        // SAFETY: ours, and it stays where it is.
        unsafe {
            opaque_pointer(some(k.krealloc(block, opaque(64), KERNEL)));
            opaque_pointer(some(k.krealloc(block, opaque(96), KERNEL)));
        }
    });
    table.row("krealloc 64 -> 96 -> 64 (in place)", count, 640);
    kfree(k, some(NonNull::new(block).ok_or(())));

    let retire = |block: NonNull<u8>| {
        // SAFETY: ours; the head is the block's first words.
        let _ = unsafe { k.kfree_rcu(block.as_ptr(), block.cast::<RcuHead>()) };
    };
    let count = per_batch(
        1000,
        || {
            k.kfree_rcu_barrier();
            (0..1000).map(|_| some(k.kmalloc(64, KERNEL))).collect::<Vec<_>>()
        },
        |blocks| {
            for &block in &blocks {
                retire(block);
            }
            core::mem::forget(blocks);
        },
    );
    table.row("kfree_rcu(64 B), call only", count, 866);
    k.kfree_rcu_barrier();
    let count = sustained(100_000, |i| {
        retire(some(k.kmalloc(64, KERNEL)));
        if i % 128 == 0 {
            sched::yield_now();
        }
    });
    table.row("kmalloc(64)+kfree_rcu sustained, all in", count, 2380);
    k.kfree_rcu_barrier();
}
