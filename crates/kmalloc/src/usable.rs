//! What a block has: its usable size, and which of its bytes may be copied to or from user space.

use core::ptr::NonNull;

use kmem_gfp::{FrameTable, OwnerTag};
use kmem_slab::{ObjectError, SlabEnv, UsercopyError};
use kmem_sync::atomic::Ordering;

use crate::{KfreeError, Kmalloc, is_zero_or_null, large};

/// The longest copy to or from user space, in bytes (`INT_MAX`).
pub const USERCOPY_MAX: usize = 0x7fff_ffff;

impl<E: SlabEnv> Kmalloc<'_, E> {
    /// How many bytes the block at `ptr` has for its user: the slot of its cache, or its pages. Zero for null and
    /// [`ZERO_SIZE_PTR`](crate::ZERO_SIZE_PTR). All of them may be used afterwards: a red zone behind the size asked for
    /// goes away.
    ///
    /// # Safety
    /// If there is a block, the caller owns it.
    ///
    /// # Errors
    /// A [`KfreeError`] if no block starts at `ptr`.
    pub unsafe fn ksize(&self, ptr: *const u8) -> Result<usize, KfreeError> {
        let Some(block) = NonNull::new(ptr.cast_mut()) else { return Ok(0) };
        // SAFETY: the caller's promise.
        match unsafe { self.slabs.usable_size(block) } {
            Ok(size_bytes) => Ok(size_bytes),
            Err(error) => self.large_size(block.addr().get(), error),
        }
    }

    /// Bytes of the block's class or pages, without any effect on it.
    ///
    /// # Errors
    /// A [`KfreeError`] if no block starts at `block`.
    #[inline]
    pub(crate) fn class_size(&self, block: NonNull<u8>) -> Result<usize, KfreeError> {
        let address = block.addr().get();
        match self.slabs.cache_of(block) {
            Some(cache) => Ok(cache.object_size()),
            None => self.large_size(address, ObjectError::NotSlab { address }),
        }
    }

    #[cold]
    fn large_size(&self, address: usize, error: ObjectError) -> Result<usize, KfreeError> {
        if is_zero_or_null(address) {
            return Ok(0);
        }
        match large::find(self.slabs.env().frames(), address) {
            Some(block) if block.start == address => Ok(block.order.size_bytes()),
            _ => Err(self.explain(address, error)),
        }
    }

    /// Whether `len` bytes at `ptr` may be copied to or from user space: inside one large block, or inside the usercopy
    /// window of one object. Memory that is neither is not judged. Zero bytes always may.
    ///
    /// # Errors
    /// [`UsercopyError`], naming the offset and length that are wrong.
    #[doc(alias = "__check_object_size")]
    pub fn check_object_size(&self, ptr: *const u8, len: usize) -> Result<(), UsercopyError> {
        let address = ptr.addr();
        if len == 0 {
            return Ok(());
        }
        if len > USERCOPY_MAX || is_zero_or_null(address) || address.checked_add(len - 1).is_none() {
            return Err(UsercopyError::BadRange { address, len });
        }
        let frames = self.slabs.env().frames();
        let Some((_, words)) = frames.lookup(address) else { return Ok(()) };
        if OwnerTag::of(words.owner.load(Ordering::Relaxed)) == OwnerTag::Slab {
            return self.slabs.check_usercopy(address, len);
        }
        match large::find(frames, address) {
            Some(block) => {
                let offset = address.wrapping_sub(block.start);
                if block.order.size_bytes().saturating_sub(offset) < len {
                    return Err(UsercopyError::OutsideWindow { offset, len });
                }
                Ok(())
            }
            None => Ok(()),
        }
    }
}
