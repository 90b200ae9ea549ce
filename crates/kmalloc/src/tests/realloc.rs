//! `krealloc` in all its corners.

use core::ptr;
use core::ptr::NonNull;
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp, NodeId, PAGE_SIZE, PageAllocator};
use kmem_slab::{SlabEnv, SlabFlags};

use super::machine::{usable, with_config, with_kmalloc};
use crate::{KMALLOC_MAX_SIZE, KfreeError, KmallocConfig, KreallocError, ZERO_SIZE_PTR};

const KERNEL: Gfp = Gfp::KERNEL;

fn fill(block: NonNull<u8>, len: usize) {
    for at in 0..len {
        // SAFETY: the test owns a block of at least `len` bytes.
        unsafe { block.add(at).write(at as u8 ^ 0x3c) };
    }
}

fn holds(block: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the test owns a block of at least `len` bytes that `fill` has written.
    (0..len).all(|at| unsafe { block.add(at).read() } == at as u8 ^ 0x3c)
}

#[test]
fn null_allocates_and_zero_frees() {
    // KM-18
    with_kmalloc(|kmalloc, env| {
        let before = env.pages.in_use();
        // SAFETY: neither is a block; then the block allocated.
        unsafe {
            let block = kmalloc.krealloc(ptr::null_mut(), 20_000, KERNEL).unwrap();
            assert_eq!(env.pages.in_use() - before, 8);
            assert_eq!(kmalloc.krealloc(block.as_ptr(), 0, KERNEL), Ok(ZERO_SIZE_PTR));
            assert_eq!(env.pages.in_use(), before);
            let block = kmalloc.krealloc(ZERO_SIZE_PTR.as_ptr(), 50, KERNEL).unwrap();
            assert_eq!(usable(kmalloc, block.as_ptr()), Ok(64));
            kmalloc.kfree(block.as_ptr()).unwrap();
            assert_eq!(kmalloc.krealloc(ptr::null_mut(), 0, KERNEL), Ok(ZERO_SIZE_PTR));
        }
    });
}

#[test]
fn a_failure_leaves_the_old_block_valid() {
    // KM-18, KM-23
    with_kmalloc(|kmalloc, env| {
        let block = kmalloc.kmalloc(4096, KERNEL).unwrap();
        fill(block, 4096);
        env.pages.exhaust(true);
        let quiet = KERNEL | Gfp::NOWARN;
        // SAFETY: allocated above; each call fails and leaves it ours.
        unsafe {
            let error = kmalloc.krealloc(block.as_ptr(), 100_000, quiet);
            assert!(matches!(error, Err(KreallocError::Alloc(AllocError::NoMemory { .. }))), "{error:?}");
            let error = kmalloc.krealloc_array(block.as_ptr(), 1 << 40, 1 << 40, quiet);
            assert_eq!(error, Err(AllocError::TooLarge { size_bytes: usize::MAX }.into()));
            let error = kmalloc.krealloc(block.as_ptr(), KMALLOC_MAX_SIZE + 1, quiet);
            assert_eq!(error, Err(AllocError::TooLarge { size_bytes: KMALLOC_MAX_SIZE + 1 }.into()));
            let error = kmalloc.krealloc_node_align(block.as_ptr(), 10, 3, quiet, None);
            assert_eq!(error, Err(AllocError::BadAlign(3).into()));
        }
        assert!(holds(block, 4096));
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
    });
}

#[test]
fn a_block_stays_while_the_size_fits_and_never_shrinks() {
    // KM-19
    with_kmalloc(|kmalloc, env| {
        for (size, fits) in [(10, 16), (70, 96), (8192, 1), (20_000, 32768), (KMALLOC_MAX_SIZE, 8)] {
            let block = kmalloc.kmalloc(size, KERNEL).unwrap();
            let pages = env.pages.in_use();
            // SAFETY: allocated above.
            assert_eq!(unsafe { kmalloc.krealloc(block.as_ptr(), fits, KERNEL) }, Ok(block), "{size} to {fits}");
            assert_eq!(env.pages.in_use(), pages, "shrinking keeps the whole block");
            // SAFETY: allocated above.
            unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
        }
    });
}

#[test]
fn growth_takes_the_unused_bytes_along() {
    // KM-20
    with_kmalloc(|kmalloc, _| {
        for (size, usable, new) in [(10, 16, 17), (70, 96, 5000), (8000, 8192, 9000), (20_000, 32768, 40_000)] {
            let block = kmalloc.kmalloc(size, KERNEL).unwrap();
            fill(block, usable);
            // SAFETY: allocated above; the result replaces it.
            let grown = unsafe { kmalloc.krealloc(block.as_ptr(), new, KERNEL) }.unwrap();
            assert_ne!(grown, block);
            assert!(holds(grown, usable), "{size} to {new}");
            // SAFETY: allocated above.
            unsafe { kmalloc.kfree(grown.as_ptr()) }.unwrap();
        }
    });
}

#[test]
fn zeroing_every_time_keeps_the_rest_zero() {
    // KM-21
    with_kmalloc(|kmalloc, _| {
        let zeroed = KERNEL | Gfp::ZERO;
        let mut block = kmalloc.kmalloc(40, zeroed).unwrap();
        let mut old = 40;
        for new in [64, 30, 60, 100, 90, 96, 9000, 8500, 30_000] {
            // SAFETY: the block has `old` bytes that were asked for.
            unsafe { block.write_bytes(0xff, old) };
            // SAFETY: ours; the result replaces it.
            block = unsafe { kmalloc.krealloc(block.as_ptr(), new, zeroed) }.unwrap();
            let kept = old.min(new);
            let usable = usable(kmalloc, block.as_ptr()).unwrap();
            for at in 0..usable {
                // SAFETY: inside the block, initialised by zeroing.
                let byte = unsafe { block.add(at).read() };
                assert_eq!(byte, if at < kept { 0xff } else { 0 }, "byte {at} after {old} to {new}");
            }
            old = new;
        }
        // SAFETY: ours.
        unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
    });
}

#[test]
fn tracked_sizes_follow_the_block_and_guard_what_is_behind() {
    // KM-22, SL-80
    let config = KmallocConfig {
        flags: SlabFlags::RED_ZONE | SlabFlags::STORE_USER | SlabFlags::CONSISTENCY_CHECKS,
        ..KmallocConfig::default()
    };
    with_config(config, |kmalloc, env| {
        let block = kmalloc.kmalloc(40, KERNEL).unwrap();
        fill(block, 40);
        // SAFETY: ours; it stays.
        assert_eq!(unsafe { kmalloc.krealloc(block.as_ptr(), 50, KERNEL) }, Ok(block));
        // SAFETY: byte 50 is in the object, behind the size asked for.
        let guard = unsafe { block.add(50).read() };
        assert_eq!(guard, 0xcc, "the red zone begins at the new end");
        assert!(holds(block, 40));
        // SAFETY: inside the object: an overrun of the requested size by one byte.
        unsafe { block.add(50).write(0) };
        env.take_reports();
        // SAFETY: ours.
        let _ = unsafe { kmalloc.kfree(block.as_ptr()) };
        assert!(!env.take_reports().is_empty(), "the overrun is reported");
    });
}

#[test]
fn alignment_and_node_can_force_a_move() {
    // KM-19, KM-23
    with_kmalloc(|kmalloc, env| {
        let node_of = |block: NonNull<u8>| {
            use kmem_gfp::FrameTable;
            env.pages.node_of(env.frames().frame_of(block.addr().get()).unwrap())
        };
        let blocks: Vec<_> = (0..8).map(|_| kmalloc.kmalloc(32, KERNEL).unwrap()).collect();
        let odd = *blocks.iter().find(|block| block.addr().get() % 64 != 0).unwrap();
        fill(odd, 32);
        // SAFETY: ours; the result replaces it.
        let moved = unsafe { kmalloc.krealloc_node_align(odd.as_ptr(), 32, 32, KERNEL, None) };
        assert_eq!(moved, Ok(odd), "aligned as asked");
        // SAFETY: as above.
        let moved = unsafe { kmalloc.krealloc_node_align(odd.as_ptr(), 64, 64, KERNEL, None) }.unwrap();
        assert_ne!(moved, odd);
        assert_eq!(moved.addr().get() % 64, 0);
        assert!(holds(moved, 32));
        let there = NodeId(1 - node_of(moved).0);
        let strict = KERNEL | Gfp::THISNODE;
        // SAFETY: as above.
        let stays = unsafe { kmalloc.krealloc_node_align(moved.as_ptr(), 64, 1, KERNEL, Some(there)) };
        assert_eq!(stays, Ok(moved), "a mere preference moves nothing");
        // SAFETY: as above.
        let over = unsafe { kmalloc.krealloc_node_align(moved.as_ptr(), 64, 1, strict, Some(there)) }.unwrap();
        assert_eq!(node_of(over), there);
        assert!(holds(over, 32));
        for block in blocks.into_iter().filter(|block| *block != odd).chain([over]) {
            // SAFETY: ours.
            unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
        }
    });
}

#[test]
fn an_address_that_is_no_block_is_refused() {
    with_kmalloc(|kmalloc, env| {
        let calls = env.pages.calls();
        let mut local = 0_u64;
        let address = (&raw mut local).addr();
        // SAFETY: not a block, which is what is tested.
        let error = unsafe { kmalloc.krealloc((&raw mut local).cast(), 100, KERNEL) };
        assert_eq!(error, Err(KfreeError::NotMemory { address }.into()));
        let block = kmalloc.kmalloc(20_000, KERNEL).unwrap();
        let inside = block.addr().get() + PAGE_SIZE;
        // SAFETY: not the start of a block, which is what is tested.
        let error = unsafe { kmalloc.krealloc(block.as_ptr().wrapping_add(PAGE_SIZE), 10, KERNEL) };
        assert_eq!(error, Err(KfreeError::InsideBlock { address: inside, start: block.addr().get() }.into()));
        assert_eq!(env.pages.calls(), calls + 1);
        // SAFETY: ours.
        unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
    });
}
