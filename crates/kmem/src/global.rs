//! A machine as Rust's global allocator.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr;
use core::ptr::NonNull;

use kmem_gfp::Gfp;

use crate::{KmemCell, Platform};

/// The `#[global_allocator]` of a program whose machine lives in a `static` cell.
///
/// Allocations use the flags given, before the machine has been initialised they fail.
///
/// ```
/// use kmem::{Gfp, KmemCell, KmemGlobal, Platform};
///
/// // static KMEM: KmemCell<Board> = KmemCell::new();
/// // #[global_allocator]
/// // static GLOBAL: KmemGlobal<Board> = KmemGlobal::new(&KMEM, Gfp::KERNEL);
/// const fn global<P: Platform>(kmem: &'static KmemCell<P>) -> KmemGlobal<P> {
///     KmemGlobal::new(kmem, Gfp::KERNEL)
/// }
/// ```
#[derive(Debug)]
pub struct KmemGlobal<P: Platform> {
    cell: &'static KmemCell<P>,
    gfp: Gfp,
}

impl<P: Platform> KmemGlobal<P> {
    /// A global allocator over `cell` that asks with `gfp`.
    pub const fn new(cell: &'static KmemCell<P>, gfp: Gfp) -> Self {
        Self { cell, gfp }
    }
}

// SAFETY: blocks are kmalloc's: each is handed out once, with the size and (see `alloc_layout`) the alignment asked for,
// and stays valid until freed. Nothing unwinds.
unsafe impl<P: Platform> GlobalAlloc for KmemGlobal<P> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(kmem) = self.cell.get() else { return ptr::null_mut() };
        kmem.kmalloc.alloc_layout(layout, self.gfp).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(kmem) = self.cell.get() else { return ptr::null_mut() };
        kmem.kmalloc.alloc_layout(layout, self.gfp | Gfp::ZERO).map_or(ptr::null_mut(), NonNull::as_ptr)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let (Some(kmem), Some(block)) = (self.cell.get(), NonNull::new(block)) else { return };
        // SAFETY: by the caller's promise the block was given for this layout and nobody uses it any more.
        let freed = unsafe { kmem.kmalloc.free_layout(block, layout) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let (Some(kmem), Some(block)) = (self.cell.get(), NonNull::new(block)) else { return ptr::null_mut() };
        // SAFETY: by the caller's promise the block was given for this layout, and the new size rounded up to the
        // alignment fits `isize`.
        let moved = unsafe { kmem.kmalloc.realloc_layout(block, layout, new_size, self.gfp) };
        moved.map_or(ptr::null_mut(), NonNull::as_ptr)
    }
}
