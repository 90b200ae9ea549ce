//! Copies of memory and strings in blocks of their own.

use core::ffi::{CStr, c_char};
use core::ptr::NonNull;

use kmem_gfp::size::{array_size, size_add};
use kmem_gfp::{AllocError, Gfp};
use kmem_slab::SlabEnv;

use crate::{KfreeError, Kmalloc};

impl<E: SlabEnv> Kmalloc<'_, E> {
    /// A copy of `source` in a block of its own.
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    pub fn kmemdup(&self, source: &[u8], gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        let copy = self.kmalloc(source.len(), gfp)?;
        // SAFETY: the new block has `source.len()` bytes and, being new, overlaps nothing; for no bytes any address does.
        unsafe { copy.copy_from_nonoverlapping(NonNull::from(source).cast(), source.len()) };
        Ok(copy)
    }

    /// A copy of `count` elements of `size_bytes` each, at `source`.
    ///
    /// # Safety
    /// If the product does not overflow, that many bytes at `source` can be read.
    ///
    /// # Errors
    /// Those of [`kmalloc_array`](Self::kmalloc_array).
    pub unsafe fn kmemdup_array(
        &self,
        source: NonNull<u8>,
        count: usize,
        size_bytes: usize,
        gfp: Gfp,
    ) -> Result<NonNull<u8>, AllocError> {
        let len = array_size(count, size_bytes);
        let copy = self.kmalloc(len, gfp)?;
        // SAFETY: the new block has `len` bytes, which is no overflowed product because it was granted; the source has
        // them by the caller's promise.
        unsafe { copy.copy_from_nonoverlapping(source, len) };
        Ok(copy)
    }

    /// A copy of `source` with a zero byte behind it.
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    pub fn kmemdup_nul(&self, source: &[u8], gfp: Gfp) -> Result<NonNull<c_char>, AllocError> {
        let copy = self.kmalloc(size_add(source.len(), 1), gfp)?;
        // SAFETY: the new block has one byte more than `source` and overlaps nothing.
        unsafe {
            copy.copy_from_nonoverlapping(NonNull::from(source).cast(), source.len());
            copy.add(source.len()).write(0);
        }
        Ok(copy.cast())
    }

    /// A copy of a string; no string gives no string.
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    pub fn kstrdup(&self, string: Option<&CStr>, gfp: Gfp) -> Result<Option<NonNull<c_char>>, AllocError> {
        string.map(|string| self.kmemdup_nul(string.to_bytes(), gfp)).transpose()
    }

    /// A copy of a string's first `max` bytes, or of all of it if it is shorter; no string gives no string.
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    pub fn kstrndup(&self, string: Option<&CStr>, max: usize, gfp: Gfp) -> Result<Option<NonNull<c_char>>, AllocError> {
        let Some(string) = string else { return Ok(None) };
        let bytes = string.to_bytes();
        self.kmemdup_nul(bytes.get(..max).unwrap_or(bytes), gfp).map(Some)
    }

    /// The string itself if it lies in the kernel's constant data ([`KmallocConfig::rodata`]), else a copy. To be freed
    /// with [`kfree_const`](Self::kfree_const).
    ///
    /// [`KmallocConfig::rodata`]: crate::KmallocConfig::rodata
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    pub fn kstrdup_const(&self, string: Option<&CStr>, gfp: Gfp) -> Result<Option<NonNull<c_char>>, AllocError> {
        match string {
            Some(string) if self.config.rodata.contains(&string.as_ptr().addr()) => {
                Ok(NonNull::new(string.as_ptr().cast_mut()))
            }
            string => self.kstrdup(string, gfp),
        }
    }

    /// Frees what [`kstrdup_const`](Self::kstrdup_const) gave; constant data is left alone.
    ///
    /// # Safety
    /// As for [`kfree`](Self::kfree).
    ///
    /// # Errors
    /// Those of [`kfree`](Self::kfree).
    pub unsafe fn kfree_const(&self, string: *mut c_char) -> Result<(), KfreeError> {
        if self.config.rodata.contains(&string.addr()) {
            return Ok(());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.kfree(string.cast()) }
    }
}
