//! Runs bursts, many allocations and then many frees, for counting instructions: `bursts WHAT ROUNDS`.
//!
//! `valgrind --tool=callgrind --toggle-collect='*::take_all' bursts WHAT 20` counts the allocations of 20 rounds, and with
//! `*::give_all` the frees; a round has 1,000 objects (992 in bulk).

use core::ptr::NonNull;
use std::hint::black_box;

use kmem::{CacheArgs, Gfp, KmemCache, RcuHead};
use kmem_tests::{Kmem, machine};

const COUNT: usize = 1000;
const BATCH: usize = 32;

/// What a burst is made of.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Kmalloc(usize),
    Bulk,
    Zeroed,
    Rcu,
    Resize,
}

type Objects = Vec<Option<NonNull<u8>>>;

#[inline(never)]
fn take_all(kmem: Kmem, cache: &KmemCache, kind: Kind, objects: &mut Objects) -> Option<()> {
    match kind {
        Kind::Kmalloc(256) => objects.iter_mut().try_for_each(|place| {
            *place = Some(kmem.kmalloc(256, Gfp::KERNEL).ok()?);
            Some(())
        }),
        Kind::Kmalloc(size) => objects.iter_mut().try_for_each(|place| {
            *place = Some(kmem.kmalloc(black_box(size), Gfp::KERNEL).ok()?);
            Some(())
        }),
        Kind::Rcu => objects.iter_mut().try_for_each(|place| {
            *place = Some(kmem.kmalloc(64, Gfp::KERNEL).ok()?);
            Some(())
        }),
        Kind::Bulk => objects
            .chunks_exact_mut(BATCH)
            .try_for_each(|batch| kmem.kmem_cache_alloc_bulk(cache, Gfp::KERNEL, batch).ok()),
        Kind::Zeroed => objects.iter_mut().try_for_each(|place| {
            let object = black_box(kmem.kmem_cache_zalloc(cache, Gfp::KERNEL).ok()?);
            // SAFETY: just allocated.
            unsafe { kmem.kmem_cache_free(cache, object) }.ok()?;
            *place = None;
            Some(())
        }),
        Kind::Resize => {
            let mut block = kmem.kmalloc(96, Gfp::KERNEL).ok()?;
            for _ in 0..COUNT {
                // SAFETY: ours; the result replaces it.
                block = unsafe { kmem.krealloc(black_box(block).as_ptr(), black_box(64), Gfp::KERNEL) }.ok()?;
                // SAFETY: as above.
                block = unsafe { kmem.krealloc(black_box(block).as_ptr(), black_box(96), Gfp::KERNEL) }.ok()?;
            }
            // SAFETY: as above.
            unsafe { kmem.kfree(block.as_ptr()) }.ok()
        }
    }
}

#[inline(never)]
fn give_all(kmem: Kmem, cache: &KmemCache, kind: Kind, objects: &mut Objects) -> Option<()> {
    match kind {
        Kind::Bulk => objects.chunks_exact_mut(BATCH).try_for_each(|batch| {
            // SAFETY: ours; each object is freed once.
            unsafe { kmem.kmem_cache_free_bulk(cache, batch) }.ok()
        }),
        Kind::Rcu => objects.iter().flatten().try_for_each(|object| {
            // SAFETY: as above; nobody looks at the head.
            unsafe { kmem.kfree_rcu(object.as_ptr(), object.cast::<RcuHead>()) }.ok()
        }),
        _ => objects.iter().flatten().try_for_each(|object| {
            // SAFETY: as above.
            unsafe { kmem.kfree(object.as_ptr()) }.ok()
        }),
    }
}

fn shuffle(objects: &mut Objects) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..objects.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        objects.swap(at, (state % (at as u64 + 1)) as usize);
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let rounds: usize = args.next().and_then(|rounds| rounds.parse().ok()).unwrap_or(1);
    let kmem = machine().kmem();
    let cache = kmem.kmem_cache_create("bursts", 192, &CacheArgs::default()).expect("a cache");
    let (kind, random) = match what.as_str() {
        "fifo" => (Kind::Kmalloc(256), false),
        "random" => (Kind::Kmalloc(256), true),
        "pages" => (Kind::Kmalloc(4096), false),
        "small" => (Kind::Kmalloc(64), false),
        "bulk" => (Kind::Bulk, false),
        "zeroed" => (Kind::Zeroed, false),
        "rcu" => (Kind::Rcu, false),
        "resize" => (Kind::Resize, false),
        _ => {
            eprintln!("bursts WHAT ROUNDS, where WHAT is one of fifo, random, pages, small, bulk, zeroed, rcu, resize");
            return;
        }
    };
    let mut objects: Objects = vec![None; if kind == Kind::Bulk { COUNT / BATCH * BATCH } else { COUNT }];
    for _ in 0..rounds {
        take_all(kmem, cache, kind, &mut objects).expect("memory");
        if random {
            shuffle(&mut objects);
        }
        give_all(kmem, cache, kind, &mut objects).expect("no refusal");
        if kind == Kind::Rcu {
            kmem.kfree_rcu_barrier();
        }
    }
}
