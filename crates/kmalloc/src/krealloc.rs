//! `krealloc`: another size for a block, in place where it can be.
//!
//! [`resize`](crate::resize) decides; this file finds the numbers, moves the bytes, and frees the old block last, so
//! that a failure leaves it as it was.

use core::ptr::NonNull;

use kmem_gfp::size::array_size;
use kmem_gfp::{AllocError, FrameTable, Gfp, NodeId, PageAllocator};
use kmem_slab::SlabEnv;

use crate::resize::{Resize, ResizeRequest};
use crate::{KfreeError, Kmalloc, ZERO_SIZE_PTR, is_zero_or_null};

/// Why a block was not resized. It is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KreallocError {
    /// No memory for the new size.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The address is not that of a block.
    #[error(transparent)]
    Block(#[from] KfreeError),
}

impl<E: SlabEnv> Kmalloc<'_, E> {
    /// Gives the block at `ptr` room for `new_bytes`, keeping its contents.
    ///
    /// Null or [`ZERO_SIZE_PTR`] for `ptr` allocates; zero for `new_bytes` frees and returns [`ZERO_SIZE_PTR`]. The block
    /// stays where it is whenever it has room: shrinking never moves it. A block that moves takes all its bytes along,
    /// the unused ones included.
    ///
    /// With [`Gfp::ZERO`] the bytes behind the contents are zero, if every allocation and reallocation of the block used
    /// it.
    ///
    /// # Safety
    /// As for [`kfree`](Self::kfree) on success; on failure the block is the caller's as before.
    ///
    /// # Errors
    /// [`KreallocError`]; the old block is unchanged and valid.
    #[inline(always)]
    pub unsafe fn krealloc(&self, ptr: *mut u8, new_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, KreallocError> {
        // An object that has room, with nothing to be written: neither null nor a large block is one.
        if !gfp.contains(Gfp::ZERO)
            && !self.tracks_sizes
            && let Some(block) = NonNull::new(ptr)
            && let Some(cache) = self.slabs.cache_of(block)
            && new_bytes.wrapping_sub(1) < cache.object_size()
        {
            return Ok(block);
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.krealloc_node_align(ptr, new_bytes, 1, gfp, None) }
    }

    /// As [`krealloc`](Self::krealloc) for `count` elements of `size_bytes` each.
    ///
    /// # Safety
    /// As for [`krealloc`](Self::krealloc).
    ///
    /// # Errors
    /// [`AllocError::TooLarge`] when the product overflows; the old block is unchanged and valid.
    #[inline]
    pub unsafe fn krealloc_array(
        &self,
        ptr: *mut u8,
        count: usize,
        size_bytes: usize,
        gfp: Gfp,
    ) -> Result<NonNull<u8>, KreallocError> {
        // SAFETY: the caller's promise is the same. An overflowing product is `usize::MAX` bytes, which no block has.
        unsafe { self.krealloc(ptr, array_size(count, size_bytes), gfp) }
    }

    /// As [`krealloc`](Self::krealloc); moves a block that is not aligned to `align`, or with [`Gfp::THISNODE`] not on
    /// `node`. A block that moves is aligned as [`kmalloc`](Self::kmalloc) aligns `new_bytes`, no more.
    ///
    /// # Safety
    /// As for [`krealloc`](Self::krealloc).
    ///
    /// # Errors
    /// [`AllocError::BadAlign`] if `align` is no power of two; otherwise those of [`krealloc`](Self::krealloc).
    pub unsafe fn krealloc_node_align(
        &self,
        ptr: *mut u8,
        new_bytes: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KreallocError> {
        if !align.is_power_of_two() {
            return Err(AllocError::BadAlign(align).into());
        }
        let Some(old) = NonNull::new(ptr).filter(|old| !is_zero_or_null(old.addr().get())) else {
            return Ok(self.kmalloc_node(new_bytes, gfp, node)?);
        };
        if new_bytes == 0 {
            // SAFETY: the caller's promise is the same.
            unsafe { self.kfree(ptr)? };
            return Ok(ZERO_SIZE_PTR);
        }
        let usable_bytes = self.class_size(old)?;
        // SAFETY: the caller owns the block.
        let tracked = if self.tracks_sizes { unsafe { self.slabs.requested_size(old) } } else { None };
        let kept_bytes = tracked.unwrap_or(usable_bytes);
        let request = ResizeRequest {
            usable_bytes,
            kept_bytes,
            new_bytes,
            address: old.addr().get(),
            align,
            node_fits: self.node_fits(old, gfp, node),
        };
        match request.decide() {
            Resize::Keep => {
                if gfp.contains(Gfp::ZERO) {
                    // With a tracked size the bytes behind it are the guard's, and are zeroed as the user gets them.
                    let (from, to) = match tracked {
                        Some(size) => (size, new_bytes),
                        None => (new_bytes, usable_bytes),
                    };
                    // SAFETY: both ends lie in the block's usable bytes, which the caller owns.
                    unsafe { old.add(from).write_bytes(0, to.saturating_sub(from)) };
                }
                if tracked.is_some() {
                    // SAFETY: the caller owns the block, which has that many bytes.
                    unsafe { self.slabs.set_requested_size(old, new_bytes) };
                }
                Ok(old)
            }
            Resize::Move { copy_bytes } => {
                let new = self.kmalloc_node(new_bytes, gfp, node)?;
                // SAFETY: both blocks are in use, the caller's or ours, with at least `copy_bytes` bytes; they do not
                // overlap because both are in use.
                unsafe { old.copy_to_nonoverlapping(new, copy_bytes) };
                // SAFETY: the caller's promise; the contents have moved.
                match unsafe { self.kfree(ptr) } {
                    Ok(()) => Ok(new),
                    Err(error) => {
                        // SAFETY: ours, and nobody has seen it.
                        let _ = unsafe { self.kfree(new.as_ptr()) };
                        Err(error.into())
                    }
                }
            }
        }
    }

    #[inline]
    fn node_fits(&self, block: NonNull<u8>, gfp: Gfp, node: Option<NodeId>) -> bool {
        let Some(node) = node.filter(|_| gfp.contains(Gfp::THISNODE)) else { return true };
        let env = self.slabs.env();
        env.frames().frame_of(block.addr().get()).is_some_and(|pfn| env.pages().node_of(pfn) == node)
    }
}
