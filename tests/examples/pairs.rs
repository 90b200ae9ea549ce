//! Runs pairs of an allocation and its free, for counting instructions: `pairs WHAT COUNT`.
//!
//! Two counts under `valgrind --tool=callgrind` differ by exactly the instructions of the additional pairs.

use std::hint::black_box;

use kmem::{CacheArgs, Gfp, Order};
use kmem_tests::machine;

fn main() {
    let mut args = std::env::args().skip(1);
    let what = args.next().unwrap_or_default();
    let count: usize = args.next().and_then(|count| count.parse().ok()).unwrap_or(1000);
    let kmem = machine().kmem();
    let cache = kmem.kmem_cache_create("pairs", 64, &CacheArgs::default()).expect("a cache");
    let size = black_box(64);
    let mut batch = [None; 32];
    // SAFETY: each block is freed once, right after it was allocated.
    let pair = |what: &str| unsafe {
        match what {
            "kmalloc" => {
                for _ in 0..count {
                    let block = kmem.kmalloc(64, Gfp::KERNEL).expect("memory");
                    let _ = kmem.kfree(black_box(block.as_ptr()));
                }
            }
            "kmalloc-size" => {
                for _ in 0..count {
                    let block = kmem.kmalloc(black_box(size), Gfp::KERNEL).expect("memory");
                    let _ = kmem.kfree(black_box(block.as_ptr()));
                }
            }
            "kzalloc" => {
                for _ in 0..count {
                    let block = kmem.kzalloc(64, Gfp::KERNEL).expect("memory");
                    let _ = kmem.kfree(black_box(block.as_ptr()));
                }
            }
            "krealloc" => {
                let mut block = kmem.kmalloc(40, Gfp::KERNEL).expect("memory");
                for _ in 0..count {
                    block = kmem.krealloc(black_box(block.as_ptr()), 50, Gfp::KERNEL).expect("memory");
                }
                let _ = kmem.kfree(black_box(block.as_ptr()));
            }
            "large" => {
                for _ in 0..count {
                    let block = kmem.kmalloc(16384, Gfp::KERNEL).expect("memory");
                    let _ = kmem.kfree(black_box(block.as_ptr()));
                }
            }
            "cache" => {
                for _ in 0..count {
                    let object = kmem.kmem_cache_alloc(cache, Gfp::KERNEL).expect("memory");
                    let _ = kmem.kmem_cache_free(cache, black_box(object));
                }
            }
            "page" => {
                for _ in 0..count {
                    let page = kmem.alloc_pages(Gfp::KERNEL, Order::ZERO).expect("memory");
                    let _ = kmem.free_pages(black_box(page), Order::ZERO);
                }
            }
            "bulk" => {
                for _ in 0..count {
                    let _ = kmem.kmem_cache_alloc_bulk(cache, Gfp::KERNEL, &mut batch);
                    let _ = kmem.kmem_cache_free_bulk(cache, black_box(&mut batch));
                }
            }
            _ => eprintln!("kmalloc, kmalloc-size, kzalloc, krealloc, large, cache, page or bulk"),
        }
    };
    let mut pair = pair;
    pair(&what);
}
