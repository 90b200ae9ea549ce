//! The names of kmalloc on [`Kmem`].

use core::ffi::{CStr, c_char};
use core::ptr::NonNull;

use kmem_gfp::{AllocError, Gfp, NodeId};
use kmem_kmalloc::{BucketArgs, KBox, KfreeBulkError, KfreeError, KmemBuckets, KreallocError, SizeClass};
use kmem_slab::{CreateError, DestroyError, ObjectError, RcuHead, UsercopyError};

use crate::{Kmem, ObjectSide, Platform};

macro_rules! forward {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;
    )*) => {
        $(
            $(#[$meta])*
            #[inline(always)]
            #[track_caller]
            pub fn $name(&self, $($arg: $ty),*) -> $ret {
                self.kmalloc.$name($($arg),*)
            }
        )*
    };
}

macro_rules! forward_unsafe {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;
    )*) => {
        $(
            $(#[$meta])*
            #[inline(always)]
            pub unsafe fn $name(&self, $($arg: $ty),*) -> $ret {
                // SAFETY: the caller's promise is the same.
                unsafe { self.kmalloc.$name($($arg),*) }
            }
        )*
    };
}

/// # kmalloc
impl<P: Platform> Kmem<P> {
    /// At least `size_bytes` bytes.
    ///
    /// # Errors
    /// Those of [`Kmalloc::kmalloc`](kmem_kmalloc::Kmalloc::kmalloc).
    #[inline(always)]
    #[track_caller]
    pub fn kmalloc(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        // As kmalloc does it, but without the load of where the caches are: here they are neighbours.
        match SizeClass::for_size(size_bytes) {
            Some(class) if !gfp.contains(Gfp::ZERO) && !cfg!(debug_assertions) => {
                self.slabs.alloc_sized(self.kmalloc.cache(class, gfp), gfp, size_bytes)
            }
            _ => self.kmalloc.kmalloc(size_bytes, gfp),
        }
    }

    /// Gives back what kmalloc or a cache gave; null does nothing.
    ///
    /// # Safety
    /// As for [`Kmalloc::kfree`](kmem_kmalloc::Kmalloc::kfree).
    ///
    /// # Errors
    /// A [`KfreeError`]; nothing has changed.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn kfree(&self, ptr: *mut u8) -> Result<(), KfreeError> {
        let Some(block) = NonNull::new(ptr) else { return Ok(()) };
        // SAFETY: the caller's promise is the same.
        match unsafe { self.slabs.free_any(block) } {
            // SAFETY: the caller's promise is the same.
            Err(ObjectError::NotSlab { .. }) => unsafe { self.kmalloc.kfree(ptr) },
            freed => Ok(freed?),
        }
    }

    forward! {
        /// As [`kmalloc`](Self::kmalloc), zeroed.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc`](kmem_kmalloc::Kmalloc::kmalloc).
        fn kzalloc(size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError>;
        /// An array; an overflowing product fails.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc_array`](kmem_kmalloc::Kmalloc::kmalloc_array).
        fn kmalloc_array(count: usize, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError>;
        /// As [`kmalloc_array`](Self::kmalloc_array), zeroed.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc_array`](kmem_kmalloc::Kmalloc::kmalloc_array).
        fn kcalloc(count: usize, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError>;
        /// As [`kmalloc`](Self::kmalloc), preferably on `node`.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc_node`](kmem_kmalloc::Kmalloc::kmalloc_node).
        fn kmalloc_node(size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError>;
        /// As [`kzalloc`](Self::kzalloc), preferably on `node`.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc_node`](kmem_kmalloc::Kmalloc::kmalloc_node).
        fn kzalloc_node(size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError>;
        /// As [`kmalloc_array`](Self::kmalloc_array), preferably on `node`.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc_array_node`](kmem_kmalloc::Kmalloc::kmalloc_array_node).
        fn kmalloc_array_node(count: usize, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError>;
        /// As [`kcalloc`](Self::kcalloc), preferably on `node`.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kcalloc_node`](kmem_kmalloc::Kmalloc::kcalloc_node).
        fn kcalloc_node(count: usize, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError>;
        /// From any context whatsoever.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc_nolock`](kmem_kmalloc::Kmalloc::kmalloc_nolock).
        fn kmalloc_nolock(size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError>;
        /// How many bytes a request gets.
        fn kmalloc_size_roundup(size_bytes: usize) -> usize;
        /// A copy in a block of its own.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc`](kmem_kmalloc::Kmalloc::kmalloc).
        fn kmemdup(source: &[u8], gfp: Gfp) -> Result<NonNull<u8>, AllocError>;
        /// A copy with a zero byte behind it.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc`](kmem_kmalloc::Kmalloc::kmalloc).
        fn kmemdup_nul(source: &[u8], gfp: Gfp) -> Result<NonNull<c_char>, AllocError>;
        /// A copy of a string.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc`](kmem_kmalloc::Kmalloc::kmalloc).
        fn kstrdup(string: Option<&CStr>, gfp: Gfp) -> Result<Option<NonNull<c_char>>, AllocError>;
        /// A copy of a string's first bytes.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc`](kmem_kmalloc::Kmalloc::kmalloc).
        fn kstrndup(string: Option<&CStr>, max: usize, gfp: Gfp) -> Result<Option<NonNull<c_char>>, AllocError>;
        /// A string of the kernel's constant data itself, or a copy.
        ///
        /// # Errors
        /// Those of [`Kmalloc::kmalloc`](kmem_kmalloc::Kmalloc::kmalloc).
        fn kstrdup_const(string: Option<&CStr>, gfp: Gfp) -> Result<Option<NonNull<c_char>>, AllocError>;
        /// Waits until everything freed through RCU before is free.
        fn kfree_rcu_barrier() -> ();
    }

    forward_unsafe! {
        /// How many bytes a block has; all of them may be used afterwards.
        ///
        /// # Safety
        /// If there is a block, the caller owns it.
        ///
        /// # Errors
        /// A [`KfreeError`] if no block starts there.
        fn ksize(ptr: *const u8) -> Result<usize, KfreeError>;
        /// Another size for a block, keeping its contents.
        ///
        /// # Safety
        /// As for [`Kmalloc::krealloc`](kmem_kmalloc::Kmalloc::krealloc).
        ///
        /// # Errors
        /// [`KreallocError`]; the old block is unchanged and valid.
        fn krealloc(ptr: *mut u8, new_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, KreallocError>;
        /// As [`krealloc`](Self::krealloc) for an array.
        ///
        /// # Safety
        /// As for [`Kmalloc::krealloc`](kmem_kmalloc::Kmalloc::krealloc).
        ///
        /// # Errors
        /// [`KreallocError`]; the old block is unchanged and valid.
        fn krealloc_array(ptr: *mut u8, count: usize, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, KreallocError>;
        /// As [`krealloc`](Self::krealloc), minding alignment and node.
        ///
        /// # Safety
        /// As for [`Kmalloc::krealloc`](kmem_kmalloc::Kmalloc::krealloc).
        ///
        /// # Errors
        /// [`KreallocError`]; the old block is unchanged and valid.
        fn krealloc_node_align(ptr: *mut u8, new_bytes: usize, align: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, KreallocError>;
        /// As [`kfree`](Self::kfree), zeroing the block first.
        ///
        /// # Safety
        /// As for [`Kmalloc::kfree`](kmem_kmalloc::Kmalloc::kfree).
        ///
        /// # Errors
        /// A [`KfreeError`]; nothing has changed.
        fn kfree_sensitive(ptr: *mut u8) -> Result<(), KfreeError>;
        /// Gives back what [`kmalloc_nolock`](Self::kmalloc_nolock) gave, from any context.
        ///
        /// # Safety
        /// As for [`Kmalloc::kfree`](kmem_kmalloc::Kmalloc::kfree).
        ///
        /// # Errors
        /// A [`KfreeError`]; nothing has changed.
        fn kfree_nolock(ptr: *mut u8) -> Result<(), KfreeError>;
        /// Gives back many blocks.
        ///
        /// # Safety
        /// As for [`Kmalloc::kfree`](kmem_kmalloc::Kmalloc::kfree), for each.
        ///
        /// # Errors
        /// [`KfreeBulkError`] if some were refused.
        fn kfree_bulk(blocks: &[*mut u8]) -> Result<(), KfreeBulkError>;
        /// Gives a block back after every reader now running has finished.
        ///
        /// # Safety
        /// As for [`Kmalloc::kfree_rcu`](kmem_kmalloc::Kmalloc::kfree_rcu).
        ///
        /// # Errors
        /// A [`KfreeError`]; nothing has changed.
        fn kfree_rcu(ptr: *mut u8, head: NonNull<RcuHead>) -> Result<(), KfreeError>;
        /// As [`kfree_rcu`](Self::kfree_rcu) without a head, where sleeping is allowed.
        ///
        /// # Safety
        /// As for [`Kmalloc::kfree_rcu_mightsleep`](kmem_kmalloc::Kmalloc::kfree_rcu_mightsleep).
        ///
        /// # Errors
        /// A [`KfreeError`]; nothing has changed.
        fn kfree_rcu_mightsleep(ptr: *mut u8) -> Result<(), KfreeError>;
        /// Frees what [`kstrdup_const`](Self::kstrdup_const) gave.
        ///
        /// # Safety
        /// As for [`Kmalloc::kfree`](kmem_kmalloc::Kmalloc::kfree).
        ///
        /// # Errors
        /// A [`KfreeError`]; nothing has changed.
        fn kfree_const(string: *mut c_char) -> Result<(), KfreeError>;
    }

    /// Whether the bytes may be copied to or from user space: inside one block, the usercopy window of one object, or one
    /// area of vmalloc. Memory that is none of these is not judged.
    ///
    /// # Errors
    /// [`UsercopyError`].
    #[doc(alias = "__check_object_size")]
    pub fn check_object_size(&self, ptr: *const u8, len: usize) -> Result<(), UsercopyError> {
        if len == 0 || !self.vmalloc.is_vmalloc_addr(ptr) {
            return self.kmalloc.check_object_size(ptr, len);
        }
        let address = ptr.addr();
        let area = self.vmalloc.find_vm_area(ptr).ok_or(UsercopyError::BadRange { address, len })?;
        if area.range.end.saturating_sub(address) < len {
            return Err(UsercopyError::OutsideWindow { offset: address.saturating_sub(area.range.start), len });
        }
        Ok(())
    }

    /// A private set of caches.
    ///
    /// # Errors
    /// Those of [`Kmalloc::kmem_buckets_create`](kmem_kmalloc::Kmalloc::kmem_buckets_create).
    pub fn kmem_buckets_create(&self, name: &str, args: &BucketArgs) -> Result<KmemBuckets<'static>, CreateError> {
        self.kmalloc.kmem_buckets_create(name, args)
    }

    /// A block from a private set of caches.
    ///
    /// # Errors
    /// Those of [`Kmalloc::kmalloc`](kmem_kmalloc::Kmalloc::kmalloc).
    #[inline]
    pub fn kmem_buckets_alloc(
        &self,
        buckets: &KmemBuckets<'static>,
        size_bytes: usize,
        gfp: Gfp,
    ) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc.kmem_buckets_alloc(buckets, size_bytes, gfp)
    }

    /// Destroys a private set of caches.
    ///
    /// # Errors
    /// [`DestroyError`] if objects are left.
    pub fn kmem_buckets_destroy(&self, buckets: KmemBuckets<'static>) -> Result<(), DestroyError> {
        self.kmalloc.kmem_buckets_destroy(buckets)
    }

    /// A value in a block of its own, dropped and given back on drop.
    ///
    /// # Errors
    /// Those of [`Kmalloc::kmalloc`](kmem_kmalloc::Kmalloc::kmalloc); the value is dropped.
    #[inline]
    pub fn kbox<T>(&'static self, value: T, gfp: Gfp) -> Result<KBox<'static, T, ObjectSide<P>>, AllocError> {
        KBox::new(&self.kmalloc, value, gfp)
    }
}
