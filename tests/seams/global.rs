//! The one-CPU machine as a global allocator, by the calls that Rust makes.

use core::alloc::{GlobalAlloc, Layout};

use kmem::{Gfp, KmemCell, KmemGlobal};

use crate::board::{self, Board};

#[test]
fn the_global_allocator_keeps_layouts_and_contents() {
    let global = KmemGlobal::new(board::cell(), Gfp::KERNEL | Gfp::NOWARN);
    board::kmem();
    for (size, align) in [(1, 1), (24, 8), (100, 64), (10, 4096), (5000, 16), (9000, 8192), (100_000, 1 << 16)] {
        let layout = Layout::from_size_align(size, align).unwrap();
        // SAFETY: blocks are used within their layouts and freed once.
        unsafe {
            let block = global.alloc_zeroed(layout);
            assert_eq!(block.addr() % align, 0);
            assert!((0..size).all(|at| block.add(at).read() == 0));
            block.write_bytes(0x31, size);
            let block = global.realloc(block, layout, 3 * size);
            assert_eq!(block.addr() % align, 0, "{size} aligned to {align}");
            assert!((0..size).all(|at| block.add(at).read() == 0x31));
            let grown = Layout::from_size_align(3 * size, align).unwrap();
            let block = global.realloc(block, grown, size);
            assert!((0..size).all(|at| block.add(at).read() == 0x31));
            global.dealloc(block, layout);
        }
    }
    // SAFETY: refused.
    assert!(unsafe { global.alloc(Layout::from_size_align(64 << 20, 8).unwrap()) }.is_null());
}

#[test]
fn before_the_machine_is_there_the_global_allocator_has_nothing() {
    static EMPTY: KmemCell<Board> = KmemCell::new();
    let global = KmemGlobal::new(&EMPTY, Gfp::KERNEL);
    // SAFETY: refused.
    assert!(unsafe { global.alloc(Layout::new::<u64>()) }.is_null());
    assert!(EMPTY.get().is_none());
}
