//! [`KvBlock`]: memory that frees itself.

use core::mem::{ManuallyDrop, MaybeUninit};
use core::ptr::NonNull;
use core::slice;

use kmem_gfp::Gfp;

use crate::{Kvmalloc, KvmallocEnv, KvmallocError, KvreallocError};

/// Owned bytes, from kmalloc or from vmalloc; freed on drop.
///
/// # Invariants
/// `memory` is what `kvmalloc` gave for `size_bytes` bytes, and nobody else's.
#[derive(Debug)]
#[must_use = "dropping a `KvBlock` frees it"]
pub struct KvBlock<'k, E: KvmallocEnv> {
    kvmalloc: &'k Kvmalloc<E>,
    memory: NonNull<u8>,
    size_bytes: usize,
}

// SAFETY: owns its memory; freeing is a shared call of `Kvmalloc`.
unsafe impl<E: KvmallocEnv> Send for KvBlock<'_, E> where Kvmalloc<E>: Sync {}
// SAFETY: shared access is to bytes that nobody changes through it.
unsafe impl<E: KvmallocEnv> Sync for KvBlock<'_, E> where Kvmalloc<E>: Sync {}

impl<E: KvmallocEnv> Kvmalloc<E> {
    /// Allocates as [`kvmalloc`](Self::kvmalloc) does, with a handle that frees.
    ///
    /// # Errors
    /// Those of [`kvmalloc`](Self::kvmalloc).
    #[inline]
    #[track_caller]
    pub fn block(&self, size_bytes: usize, gfp: Gfp) -> Result<KvBlock<'_, E>, KvmallocError> {
        // INVARIANT: just given to us.
        Ok(KvBlock { kvmalloc: self, memory: self.kvmalloc(size_bytes, gfp)?, size_bytes })
    }
}

impl<'k, E: KvmallocEnv> KvBlock<'k, E> {
    /// Bytes asked for.
    pub fn size(&self) -> usize {
        self.size_bytes
    }

    /// Where it starts.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Whether it came from vmalloc, so that its frames need not be neighbours.
    pub fn is_vmalloc(&self) -> bool {
        self.kvmalloc.is_vmalloc_addr(self.memory.as_ptr())
    }

    /// Its bytes, initialised or not.
    pub fn as_uninit_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: that many bytes, ours alone (type invariant), accessible (promise 2 of `KvmallocEnv`), borrowed alone; any
        // state will do.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr().cast(), self.size_bytes) }
    }

    /// Another size; the address may change, the bytes of the smaller size stay. See [`Kvmalloc::kvrealloc`].
    ///
    /// # Errors
    /// Those of [`Kvmalloc::kvrealloc`]; the block is as it was.
    #[track_caller]
    pub fn resize(&mut self, new_bytes: usize, gfp: Gfp) -> Result<(), KvreallocError> {
        // SAFETY: ours alone (type invariant), borrowed alone; the old address is replaced.
        let memory = unsafe { self.kvmalloc.kvrealloc(self.memory.as_ptr(), new_bytes, gfp)? };
        // INVARIANT: what `kvrealloc` gives replaces the old memory. Nothing is left of an area of no bytes.
        self.memory = memory.unwrap_or(kmem_kmalloc::ZERO_SIZE_PTR);
        self.size_bytes = new_bytes;
        Ok(())
    }

    /// Gives up ownership: the caller frees it with [`Kvmalloc::kvfree`], or never.
    pub fn into_raw(self) -> NonNull<u8> {
        ManuallyDrop::new(self).memory
    }

    /// Takes ownership.
    ///
    /// # Safety
    /// `memory` is what `kvmalloc` gave for `size_bytes` bytes, and nobody else uses or frees it.
    pub unsafe fn from_raw(kvmalloc: &'k Kvmalloc<E>, memory: NonNull<u8>, size_bytes: usize) -> Self {
        // INVARIANT: the caller's promise.
        Self { kvmalloc, memory, size_bytes }
    }
}

impl<E: KvmallocEnv> Drop for KvBlock<'_, E> {
    fn drop(&mut self) {
        // SAFETY: ours alone (type invariant), and gone after this.
        let freed = unsafe { self.kvmalloc.kvfree(self.memory.as_ptr()) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}
