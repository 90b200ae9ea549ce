//! The familiar names: each is one line over [`Kvmalloc::kvmalloc`] or [`Kvmalloc::kvmalloc_node_align`].

use core::ptr::NonNull;

use kmem_gfp::{Gfp, NodeId};

use crate::plan::array_bytes;
use crate::{Kvmalloc, KvmallocEnv, KvmallocError};

impl<E: KvmallocEnv> Kvmalloc<E> {
    /// As [`kvmalloc`](Self::kvmalloc), zeroed.
    ///
    /// # Errors
    /// Those of [`kvmalloc`](Self::kvmalloc).
    #[inline(always)]
    #[track_caller]
    pub fn kvzalloc(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, KvmallocError> {
        self.kvmalloc(size_bytes, gfp.union(Gfp::ZERO))
    }

    /// As [`kvmalloc`](Self::kvmalloc), preferably on `node`; with [`Gfp::THISNODE`] only there.
    ///
    /// # Errors
    /// Those of [`kvmalloc`](Self::kvmalloc).
    #[inline]
    #[track_caller]
    pub fn kvmalloc_node(
        &self,
        size_bytes: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KvmallocError> {
        self.kvmalloc_node_align(size_bytes, 1, gfp, node)
    }

    /// As [`kvmalloc_node`](Self::kvmalloc_node), zeroed.
    ///
    /// # Errors
    /// Those of [`kvmalloc`](Self::kvmalloc).
    #[inline]
    #[track_caller]
    pub fn kvzalloc_node(
        &self,
        size_bytes: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KvmallocError> {
        self.kvmalloc_node(size_bytes, gfp.union(Gfp::ZERO), node)
    }

    /// Room for `count` elements of `size_bytes` each.
    ///
    /// # Errors
    /// [`KvmallocError::TooLarge`] as well when the product overflows.
    #[inline(always)]
    #[track_caller]
    pub fn kvmalloc_array(&self, count: usize, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, KvmallocError> {
        self.kvmalloc(array_bytes(count, size_bytes)?, gfp)
    }

    /// As [`kvmalloc_array`](Self::kvmalloc_array), zeroed.
    ///
    /// # Errors
    /// Those of [`kvmalloc_array`](Self::kvmalloc_array).
    #[inline(always)]
    #[track_caller]
    pub fn kvcalloc(&self, count: usize, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, KvmallocError> {
        self.kvmalloc_array(count, size_bytes, gfp.union(Gfp::ZERO))
    }

    /// As [`kvmalloc_array`](Self::kvmalloc_array), preferably on `node`.
    ///
    /// # Errors
    /// Those of [`kvmalloc_array`](Self::kvmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kvmalloc_array_node(
        &self,
        count: usize,
        size_bytes: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KvmallocError> {
        self.kvmalloc_node(array_bytes(count, size_bytes)?, gfp, node)
    }

    /// As [`kvcalloc`](Self::kvcalloc), preferably on `node`.
    ///
    /// # Errors
    /// Those of [`kvmalloc_array`](Self::kvmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kvcalloc_node(
        &self,
        count: usize,
        size_bytes: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KvmallocError> {
        self.kvmalloc_array_node(count, size_bytes, gfp.union(Gfp::ZERO), node)
    }

    /// Room for a `T`, not initialised.
    ///
    /// # Errors
    /// Those of [`kvmalloc`](Self::kvmalloc).
    #[inline]
    #[track_caller]
    pub fn kvmalloc_obj<T>(&self, gfp: Gfp) -> Result<NonNull<T>, KvmallocError> {
        self.kvmalloc_objs(1, gfp)
    }

    /// As [`kvmalloc_obj`](Self::kvmalloc_obj), zeroed.
    ///
    /// # Errors
    /// Those of [`kvmalloc`](Self::kvmalloc).
    #[inline]
    #[track_caller]
    pub fn kvzalloc_obj<T>(&self, gfp: Gfp) -> Result<NonNull<T>, KvmallocError> {
        self.kvmalloc_obj(gfp.union(Gfp::ZERO))
    }

    /// Room for `count` values of `T`, not initialised, aligned for `T`.
    ///
    /// # Errors
    /// Those of [`kvmalloc_array`](Self::kvmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kvmalloc_objs<T>(&self, count: usize, gfp: Gfp) -> Result<NonNull<T>, KvmallocError> {
        // A multiple of the alignment, which kmalloc keeps for it; vmalloc is told.
        Ok(self.kvmalloc_node_align(array_bytes(count, size_of::<T>())?, align_of::<T>(), gfp, None)?.cast())
    }

    /// As [`kvmalloc_objs`](Self::kvmalloc_objs), zeroed.
    ///
    /// # Errors
    /// Those of [`kvmalloc_array`](Self::kvmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kvzalloc_objs<T>(&self, count: usize, gfp: Gfp) -> Result<NonNull<T>, KvmallocError> {
        self.kvmalloc_objs(count, gfp.union(Gfp::ZERO))
    }

    /// Room for a `T` that `count` values of `U` follow, not initialised. `T` should be `#[repr(C)]` and end in a `[U; 0]`.
    ///
    /// # Errors
    /// Those of [`kvmalloc_array`](Self::kvmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kvmalloc_flex<T, U>(&self, count: usize, gfp: Gfp) -> Result<NonNull<T>, KvmallocError> {
        let bytes = array_bytes(count, size_of::<U>())?.checked_add(size_of::<T>());
        let bytes = bytes.ok_or(KvmallocError::TooLarge { size_bytes: usize::MAX })?;
        Ok(self.kvmalloc_node_align(bytes, align_of::<T>(), gfp, None)?.cast())
    }

    /// As [`kvmalloc_flex`](Self::kvmalloc_flex), zeroed.
    ///
    /// # Errors
    /// Those of [`kvmalloc_array`](Self::kvmalloc_array).
    #[inline]
    #[track_caller]
    pub fn kvzalloc_flex<T, U>(&self, count: usize, gfp: Gfp) -> Result<NonNull<T>, KvmallocError> {
        self.kvmalloc_flex::<T, U>(count, gfp.union(Gfp::ZERO))
    }
}
