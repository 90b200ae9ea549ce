//! kmalloc in terms of [`Layout`]: what Rust's allocator interfaces ask for.
//!
//! A size that is a multiple of the alignment gets that alignment from kmalloc anyway, so a layout costs one rounding
//! of its size, which folds away when it is constant.

use core::alloc::Layout;
use core::num::NonZero;
use core::ptr::NonNull;

use kmem_gfp::{AllocError, Gfp};
use kmem_slab::SlabEnv;

use crate::{KfreeError, Kmalloc, KreallocError};

/// Bytes to ask kmalloc for so that the block is aligned as `layout` says.
#[inline(always)]
const fn rounded(layout: Layout) -> usize {
    // A layout's size rounded up to its alignment fits `isize`.
    (layout.size() + (layout.align() - 1)) & !(layout.align() - 1)
}

/// The address of a block without bytes.
#[inline]
fn dangling(layout: Layout) -> NonNull<u8> {
    NonZero::new(layout.align()).map_or(NonNull::dangling(), NonNull::without_provenance)
}

impl<E: SlabEnv> Kmalloc<'_, E> {
    /// A block for `layout`. For no bytes, an address that is aligned and no block.
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc); [`AllocError::BadAlign`] above
    /// [`KMALLOC_MAX_SIZE`](crate::KMALLOC_MAX_SIZE).
    #[inline(always)]
    #[track_caller]
    pub fn alloc_layout(&self, layout: Layout, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        if layout.size() == 0 {
            return Ok(dangling(layout));
        }
        self.kmalloc(rounded(layout), gfp)
    }

    /// Gives back a block that [`alloc_layout`](Self::alloc_layout) or [`realloc_layout`](Self::realloc_layout) gave for
    /// `layout`.
    ///
    /// # Safety
    /// The caller owns the block, which was given for `layout`, and nobody uses it any more.
    ///
    /// # Errors
    /// Those of [`kfree`](Self::kfree).
    #[inline(always)]
    #[track_caller]
    pub unsafe fn free_layout(&self, block: NonNull<u8>, layout: Layout) -> Result<(), KfreeError> {
        if layout.size() == 0 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.kfree(block.as_ptr()) }
    }

    /// Gives the block of `old` room for `new_bytes` with the same alignment, in place if its class or page block has it.
    /// Only the bytes of the smaller layout are kept. With [`Gfp::ZERO`] the bytes behind those of `old` are zero.
    ///
    /// # Safety
    /// The caller owns the block, which was given for `old`; `new_bytes` rounded up to the alignment fits `isize`.
    ///
    /// # Errors
    /// Those of [`krealloc`](Self::krealloc); the block is as before.
    #[inline]
    pub unsafe fn realloc_layout(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new_bytes: usize,
        gfp: Gfp,
    ) -> Result<NonNull<u8>, KreallocError> {
        // SAFETY: the caller's promise.
        let new = unsafe { Layout::from_size_align_unchecked(new_bytes, old.align()) };
        if old.size() == 0 {
            return Ok(self.alloc_layout(new, gfp)?);
        }
        if new_bytes == 0 {
            // SAFETY: the caller's promise.
            unsafe { self.free_layout(block, old)? };
            return Ok(self.alloc_layout(new, gfp)?);
        }
        // The rounding of `old` decided the block, so what fits that fits without looking at the block.
        if self.kmalloc_size_roundup(rounded(old)) == self.kmalloc_size_roundup(rounded(new)) && !self.tracks_sizes {
            if gfp.contains(Gfp::ZERO) && new_bytes > old.size() {
                // SAFETY: the block has `new_bytes` bytes, because it has as many as the class of `new`.
                unsafe { block.add(old.size()).write_bytes(0, new_bytes - old.size()) };
            }
            return Ok(block);
        }
        // SAFETY: the caller's promise.
        unsafe { self.move_layout(block, old, new, gfp) }
    }

    /// # Safety
    /// As for [`realloc_layout`](Self::realloc_layout).
    unsafe fn move_layout(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
        gfp: Gfp,
    ) -> Result<NonNull<u8>, KreallocError> {
        let moved = self.alloc_layout(new, gfp)?;
        let kept = old.size().min(new.size());
        // SAFETY: both blocks are in use and have `kept` bytes at the least; blocks in use do not overlap.
        unsafe { moved.copy_from_nonoverlapping(block, kept) };
        // SAFETY: the caller's promise; the contents have moved.
        match unsafe { self.free_layout(block, old) } {
            Ok(()) => Ok(moved),
            Err(error) => {
                // SAFETY: ours, and nobody has seen it.
                let _ = unsafe { self.free_layout(moved, new) };
                Err(error.into())
            }
        }
    }
}
