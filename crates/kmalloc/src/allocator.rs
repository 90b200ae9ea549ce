//! [`ObjectAllocator`]: what a layer above needs of kmalloc, as a trait.

use core::ptr::NonNull;

use kmem_gfp::{AllocError, Gfp, NodeId};
use kmem_slab::{RcuHead, SlabEnv};

use crate::{KfreeError, Kmalloc, KreallocError};

/// Hands out physically contiguous blocks of any size by address alone. [`Kmalloc`] is one; a test, or a machine with another
/// scheme, may bring its own.
///
/// # Safety
/// 1. Memory handed out is the caller's alone until freed, has at least as many bytes as asked for, all zero with
///    [`Gfp::ZERO`], and is aligned to the largest power of two that divides the size asked for.
/// 2. [`resize`](Self::resize) keeps the bytes of the smaller of both sizes, and leaves the block as it was when it fails.
/// 3. [`usable_size`](Self::usable_size) succeeds only for the start of a block in use, with as many bytes as its owner may
///    use, at least as many as were asked for.
pub unsafe trait ObjectAllocator {
    /// At least `size_bytes` bytes for `gfp`, preferably on `node`. See [`Kmalloc::kmalloc_node`].
    ///
    /// # Errors
    /// An [`AllocError`]; nothing has changed.
    fn alloc(&self, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError>;

    /// As [`alloc`](Self::alloc) without a preference: the fast path, to be inlined.
    ///
    /// # Errors
    /// An [`AllocError`]; nothing has changed.
    #[inline(always)]
    fn alloc_local(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.alloc(size_bytes, gfp, None)
    }

    /// Frees a block. Null and [`ZERO_SIZE_PTR`](crate::ZERO_SIZE_PTR) do nothing. Any context but NMI; never sleeps.
    ///
    /// # Safety
    /// If a block starts there, the caller owns it and nobody uses it any more.
    ///
    /// # Errors
    /// A [`KfreeError`] for anything else; nothing has changed.
    unsafe fn free(&self, block: *mut u8) -> Result<(), KfreeError>;

    /// Frees a block once every reader that runs now has finished. See [`Kmalloc::kfree_rcu`].
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// A [`KfreeError`]; nothing has changed.
    unsafe fn free_rcu(&self, block: *mut u8, head: NonNull<RcuHead>) -> Result<(), KfreeError>;

    /// As [`free_rcu`](Self::free_rcu) without a head, where sleeping is allowed.
    ///
    /// # Safety
    /// As for [`free_rcu`](Self::free_rcu).
    ///
    /// # Errors
    /// A [`KfreeError`]; nothing has changed.
    unsafe fn free_rcu_mightsleep(&self, block: *mut u8) -> Result<(), KfreeError>;

    /// Waits until every block given to [`free_rcu`](Self::free_rcu) before is free. May sleep.
    fn rcu_barrier(&self);

    /// Another size for a block. See [`Kmalloc::krealloc_node_align`].
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// A [`KreallocError`]; the block is as it was.
    unsafe fn resize(
        &self,
        block: *mut u8,
        new_bytes: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KreallocError>;

    /// How many bytes a block has for its owner, who may use them all afterwards; 0 for null and
    /// [`ZERO_SIZE_PTR`](crate::ZERO_SIZE_PTR).
    ///
    /// # Safety
    /// If there is a block, the caller owns it.
    ///
    /// # Errors
    /// A [`KfreeError`] if no block starts there.
    unsafe fn usable_size(&self, block: *const u8) -> Result<usize, KfreeError>;
}

// SAFETY: kmalloc's blocks are slab objects and page blocks: disjoint, as large and aligned as described (KM-07), and found
// by address; krealloc copies before it frees.
unsafe impl<E: SlabEnv> ObjectAllocator for Kmalloc<'_, E> {
    #[inline]
    #[track_caller]
    fn alloc(&self, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc_node(size_bytes, gfp, node)
    }
    #[inline(always)]
    #[track_caller]
    fn alloc_local(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc(size_bytes, gfp)
    }
    #[inline(always)]
    #[track_caller]
    unsafe fn free(&self, block: *mut u8) -> Result<(), KfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.kfree(block) }
    }
    unsafe fn free_rcu(&self, block: *mut u8, head: NonNull<RcuHead>) -> Result<(), KfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.kfree_rcu(block, head) }
    }
    unsafe fn free_rcu_mightsleep(&self, block: *mut u8) -> Result<(), KfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.kfree_rcu_mightsleep(block) }
    }
    fn rcu_barrier(&self) {
        self.kfree_rcu_barrier();
    }
    unsafe fn resize(
        &self,
        block: *mut u8,
        new_bytes: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KreallocError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.krealloc_node_align(block, new_bytes, align, gfp, node) }
    }
    unsafe fn usable_size(&self, block: *const u8) -> Result<usize, KfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.ksize(block) }
    }
}

// SAFETY: forwards to an implementation that keeps the promises.
unsafe impl<O: ObjectAllocator> ObjectAllocator for &O {
    #[inline(always)]
    #[track_caller]
    fn alloc(&self, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError> {
        (**self).alloc(size_bytes, gfp, node)
    }
    #[inline(always)]
    #[track_caller]
    fn alloc_local(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        (**self).alloc_local(size_bytes, gfp)
    }
    #[inline(always)]
    #[track_caller]
    unsafe fn free(&self, block: *mut u8) -> Result<(), KfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).free(block) }
    }
    unsafe fn free_rcu(&self, block: *mut u8, head: NonNull<RcuHead>) -> Result<(), KfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).free_rcu(block, head) }
    }
    unsafe fn free_rcu_mightsleep(&self, block: *mut u8) -> Result<(), KfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).free_rcu_mightsleep(block) }
    }
    fn rcu_barrier(&self) {
        (**self).rcu_barrier();
    }
    unsafe fn resize(
        &self,
        block: *mut u8,
        new_bytes: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KreallocError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).resize(block, new_bytes, align, gfp, node) }
    }
    unsafe fn usable_size(&self, block: *const u8) -> Result<usize, KfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).usable_size(block) }
    }
}
