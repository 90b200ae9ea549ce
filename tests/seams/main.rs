//! The seams, each with a second implementation: a machine of one CPU and static memory, object caches over a foreign page
//! allocator.

mod board;
mod compressed;
mod contiguous;
mod estate;
mod foreign;
mod global;
mod init;
mod memory_of_either_kind;
mod paying;
mod threads;
mod views;

use kmem::{Gfp, Order};

#[test]
fn one_cpu_and_static_memory_are_a_machine() {
    let kmem = board::kmem();
    let mut blocks = Vec::new();
    for size in (1..3000).step_by(7) {
        let block = kmem.kmalloc(size, Gfp::KERNEL).unwrap();
        // SAFETY: ours, of that size.
        unsafe { block.write_bytes(size as u8, size) };
        blocks.push((block, size));
    }
    for (block, size) in blocks {
        // SAFETY: ours, of that size, freed once.
        unsafe {
            assert!((0..size).all(|at| block.add(at).read() == size as u8));
            kmem.kfree(block.as_ptr()).unwrap();
        }
    }
    let page = kmem.alloc_pages(Gfp::KERNEL | Gfp::ZERO, Order::new(3).unwrap()).unwrap();
    // SAFETY: ours, freed once.
    unsafe { kmem.free_pages(page, Order::new(3).unwrap()) }.unwrap();
    let cache = kmem.cache::<[u32; 9]>("nines").unwrap();
    let nine = cache.alloc([9; 9], Gfp::KERNEL).unwrap();
    assert_eq!(nine[8], 9);
    assert!(kmem.kmalloc(5 << 20, Gfp::KERNEL).is_err());
    let all: Vec<_> = core::iter::from_fn(|| kmem.kmalloc(1 << 20, Gfp::KERNEL | Gfp::NORETRY).ok()).collect();
    assert!(all.len() >= 5, "most of 8 MiB");
    for block in all {
        // SAFETY: ours, freed once.
        unsafe { kmem.kfree(block.as_ptr()) }.unwrap();
    }
}
