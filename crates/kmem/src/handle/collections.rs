//! The bridge to collections: three calls of each handle, and the two traits over them.

use core::alloc::Layout;
use core::num::NonZero;
use core::ptr::NonNull;

use kmem_gfp::Gfp;

use super::{GfpAlloc, KvAlloc};
use crate::Platform;

impl<P: Platform> GfpAlloc<P> {
    #[inline]
    fn get(&self, layout: Layout, gfp: Gfp) -> Option<NonNull<u8>> {
        self.kmem.kmalloc.alloc_layout(layout, gfp).ok()
    }

    /// # Safety
    /// The block was given for `layout`, and nobody uses it any more.
    #[inline]
    unsafe fn put(&self, block: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise is the same.
        let freed = unsafe { self.kmem.kmalloc.free_layout(block, layout) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    /// Another layout for a block; `None` (and nothing changed) without memory. With `zeroed` what is gained is zero.
    ///
    /// # Safety
    /// The caller owns the block, which was given for `old`.
    #[inline]
    unsafe fn change(&self, block: NonNull<u8>, old: Layout, new: Layout, zeroed: bool) -> Option<NonNull<u8>> {
        let gfp = if zeroed { self.gfp | Gfp::ZERO } else { self.gfp };
        if old.align() != new.align() {
            let moved = self.get(new, gfp)?;
            // SAFETY: both blocks are in use and have that many bytes; blocks in use do not overlap.
            unsafe { moved.copy_from_nonoverlapping(block, old.size().min(new.size())) };
            // SAFETY: the caller's promise; the contents have moved.
            unsafe { self.put(block, old) };
            return Some(moved);
        }
        // SAFETY: the caller's promise; `new` is a layout, so its size rounded up fits `isize`.
        unsafe { self.kmem.kmalloc.realloc_layout(block, old, new.size(), gfp) }.ok()
    }
}

/// The address of memory without bytes.
fn dangling(layout: Layout) -> NonNull<u8> {
    NonZero::new(layout.align()).map_or(NonNull::dangling(), NonNull::without_provenance)
}

impl<P: Platform> KvAlloc<P> {
    #[inline]
    fn get(&self, layout: Layout, gfp: Gfp) -> Option<NonNull<u8>> {
        if layout.size() == 0 {
            return Some(dangling(layout));
        }
        self.kmem.kvmalloc_node_align(layout.size(), layout.align(), gfp, None).ok()
    }

    /// # Safety
    /// The memory was given for `layout`, and nobody uses it any more.
    #[inline]
    unsafe fn put(&self, memory: NonNull<u8>, layout: Layout) {
        if layout.size() == 0 {
            return;
        }
        // SAFETY: the caller's promise is the same.
        let freed = unsafe { self.kmem.kvfree(memory.as_ptr()) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    /// Another layout for memory; `None` (and nothing changed) without memory. With `zeroed` what is gained is zero.
    ///
    /// # Safety
    /// The caller owns the memory, which was given for `old`.
    unsafe fn change(&self, memory: NonNull<u8>, old: Layout, new: Layout, zeroed: bool) -> Option<NonNull<u8>> {
        let kept = old.size().min(new.size());
        let moves = kept == 0 || !memory.addr().get().is_multiple_of(new.align());
        let changed = if moves {
            let moved = self.get(new, self.gfp)?;
            // SAFETY: both have that many bytes; memory in use does not overlap.
            unsafe { moved.copy_from_nonoverlapping(memory, kept) };
            // SAFETY: the caller's promise; the contents have moved.
            unsafe { self.put(memory, old) };
            moved
        } else {
            let kvmalloc = &self.kmem.kvmalloc;
            // SAFETY: the caller's promise; the memory has bytes, so kvmalloc gave it.
            let changed =
                unsafe { kvmalloc.kvrealloc_node_align(memory.as_ptr(), new.size(), new.align(), self.gfp, None) };
            changed.ok()??
        };
        if zeroed && new.size() > kept {
            // SAFETY: the memory has `new.size()` bytes.
            unsafe { changed.add(kept).write_bytes(0, new.size() - kept) };
        }
        Some(changed)
    }
}

macro_rules! implement_allocator {
    ($version:ident, $handle:ident) => {
        // SAFETY: memory is kmalloc's or vmalloc's and stays valid until freed, whichever copy of the handle frees it; copies
        // are interchangeable because whose it is follows from its address.
        unsafe impl<P: Platform> $version::alloc::Allocator for $handle<P> {
            #[inline]
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                let memory = self.get(layout, self.gfp).ok_or($version::alloc::AllocError)?;
                Ok(NonNull::slice_from_raw_parts(memory, layout.size()))
            }

            #[inline]
            fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                let memory = self.get(layout, self.gfp | Gfp::ZERO).ok_or($version::alloc::AllocError)?;
                Ok(NonNull::slice_from_raw_parts(memory, layout.size()))
            }

            #[inline]
            unsafe fn deallocate(&self, memory: NonNull<u8>, layout: Layout) {
                // SAFETY: by the caller's promise it was given for this layout and nobody uses it any more.
                unsafe { self.put(memory, layout) };
            }

            #[inline]
            unsafe fn grow(
                &self,
                memory: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                // SAFETY: the caller's promise.
                let grown = unsafe { self.change(memory, old, new, false) };
                Ok(NonNull::slice_from_raw_parts(grown.ok_or($version::alloc::AllocError)?, new.size()))
            }

            #[inline]
            unsafe fn grow_zeroed(
                &self,
                memory: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                // SAFETY: the caller's promise.
                let grown = unsafe { self.change(memory, old, new, true) };
                Ok(NonNull::slice_from_raw_parts(grown.ok_or($version::alloc::AllocError)?, new.size()))
            }

            #[inline]
            unsafe fn shrink(
                &self,
                memory: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                // SAFETY: the caller's promise.
                let shrunk = unsafe { self.change(memory, old, new, false) };
                Ok(NonNull::slice_from_raw_parts(shrunk.ok_or($version::alloc::AllocError)?, new.size()))
            }
        }
    };
}

#[cfg(feature = "allocator-api2-02")]
implement_allocator!(allocator_api2_02, GfpAlloc);
#[cfg(feature = "allocator-api2-02")]
implement_allocator!(allocator_api2_02, KvAlloc);
#[cfg(feature = "allocator-api2-04")]
implement_allocator!(allocator_api2_04, GfpAlloc);
#[cfg(feature = "allocator-api2-04")]
implement_allocator!(allocator_api2_04, KvAlloc);
