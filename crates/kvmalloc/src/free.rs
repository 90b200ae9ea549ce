//! `kvfree` and its relatives: the address tells whose memory it is.

use kmem_kmalloc::{ObjectAllocator, is_zero_or_null};
use kmem_vmalloc::{VfreeError, VirtAllocator};

use crate::{KvfreeError, Kvmalloc, KvmallocEnv};

impl<E: KvmallocEnv> Kvmalloc<E> {
    /// Gives back what kvmalloc, kmalloc, a cache or vmalloc gave. Null and
    /// [`ZERO_SIZE_PTR`](kmem_kmalloc::ZERO_SIZE_PTR) do nothing.
    ///
    /// Contexts: any but NMI. In interrupts vmalloc puts the work off; in a task it may sleep over vmalloc memory: where it
    /// must not, there is [`kvfree_atomic`](Self::kvfree_atomic).
    ///
    /// # Safety
    /// If memory starts at `ptr` (or an area of vmalloc contains it), the caller owns it and nobody uses it any more.
    ///
    /// # Errors
    /// A [`KvfreeError`] that says what `ptr` is instead; nothing has changed.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn kvfree(&self, ptr: *mut u8) -> Result<(), KvfreeError> {
        if self.env.areas().owns(ptr) {
            // SAFETY: the caller's promise is the same.
            return unsafe { self.free_area(ptr) };
        }
        // SAFETY: the caller's promise is the same.
        Ok(unsafe { self.env.objects().free(ptr) }?)
    }

    /// As [`kvfree`](Self::kvfree), but never sleeps: vmalloc memory is always left to somebody else to take apart. Any
    /// context but NMI.
    ///
    /// # Safety
    /// As for [`kvfree`](Self::kvfree).
    ///
    /// # Errors
    /// Those of [`kvfree`](Self::kvfree).
    #[inline]
    pub unsafe fn kvfree_atomic(&self, ptr: *mut u8) -> Result<(), KvfreeError> {
        if self.env.areas().owns(ptr) {
            // SAFETY: the caller's promise is the same.
            return Ok(unsafe { self.env.areas().free_atomic(ptr) }?);
        }
        // SAFETY: the caller's promise is the same.
        Ok(unsafe { self.env.objects().free(ptr) }?)
    }

    /// Clears the first `len` bytes, exactly those, then frees as [`kvfree`](Self::kvfree) does: for keys and the like.
    ///
    /// # Safety
    /// As for [`kvfree`](Self::kvfree).
    ///
    /// # Errors
    /// Those of [`kvfree`](Self::kvfree), for an address inside an area as well; [`KvfreeError::TooLong`] if the memory is
    /// shorter. Then nothing has been cleared or freed.
    pub unsafe fn kvfree_sensitive(&self, ptr: *mut u8, len: usize) -> Result<(), KvfreeError> {
        let address = ptr.addr();
        if is_zero_or_null(address) {
            return Ok(());
        }
        let size_bytes = if self.env.areas().owns(ptr) {
            self.env.areas().sizes(ptr).ok_or(VfreeError::NoArea(address))?.1
        } else {
            // SAFETY: the caller's promise.
            unsafe { self.env.objects().usable_size(ptr)? }
        };
        if len > size_bytes {
            return Err(KvfreeError::TooLong { address, len, size_bytes });
        }
        // SAFETY: memory in use starts at `ptr` and has that many bytes; the caller owns it.
        unsafe { ptr.write_bytes(0, len) };
        // The stores must happen although nobody reads them.
        core::hint::black_box(ptr);
        // SAFETY: the caller's promise is the same.
        unsafe { self.kvfree(ptr) }
    }

    /// Frees vmalloc memory, after what waits for readers no longer.
    ///
    /// # Safety
    /// As for [`kvfree`](Self::kvfree).
    #[inline(never)]
    unsafe fn free_area(&self, ptr: *mut u8) -> Result<(), KvfreeError> {
        self.reap();
        // SAFETY: the caller's promise is the same.
        Ok(unsafe { self.env.areas().free(ptr) }?)
    }
}
