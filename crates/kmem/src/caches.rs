//! The names of object caches on [`Kmem`].

use core::ptr::NonNull;

use kmem_gfp::{AllocError, Gfp, NodeId};
use kmem_slab::{BulkFreeError, Cache, CacheArgs, CreateError, DestroyError, KmemCache, ObjectError};

use crate::{Kmem, ObjectSide, Platform};

/// # Caches
impl<P: Platform> Kmem<P> {
    /// A cache of objects of `size` bytes, or a compatible one that exists. May sleep.
    ///
    /// # Errors
    /// Those of [`Slabs::create`](kmem_slab::Slabs::create).
    pub fn kmem_cache_create(
        &'static self,
        name: &str,
        size: usize,
        args: &CacheArgs,
    ) -> Result<&'static KmemCache, CreateError> {
        self.slabs.create(name, size, args)
    }

    /// As [`kmem_cache_create`](Self::kmem_cache_create), naming the part of each object that may be copied to and from
    /// user space.
    ///
    /// # Errors
    /// Those of [`Slabs::create`](kmem_slab::Slabs::create).
    pub fn kmem_cache_create_usercopy(
        &'static self,
        name: &str,
        size: usize,
        args: &CacheArgs,
        useroffset: usize,
        usersize: usize,
    ) -> Result<&'static KmemCache, CreateError> {
        self.slabs.create(name, size, &CacheArgs { useroffset, usersize, ..*args })
    }

    /// A typed cache: its objects are owned handles.
    ///
    /// # Errors
    /// Those of [`Slabs::create`](kmem_slab::Slabs::create).
    pub fn cache<T>(&'static self, name: &str) -> Result<Cache<'static, T, ObjectSide<P>>, CreateError> {
        Cache::new(&self.slabs, name)
    }

    /// An object of the cache.
    ///
    /// # Errors
    /// Those of [`Slabs::alloc`](kmem_slab::Slabs::alloc).
    #[inline(always)]
    #[track_caller]
    pub fn kmem_cache_alloc(&self, cache: &KmemCache, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.slabs.alloc(cache, gfp)
    }

    /// As [`kmem_cache_alloc`](Self::kmem_cache_alloc), zeroed.
    ///
    /// # Errors
    /// Those of [`Slabs::alloc`](kmem_slab::Slabs::alloc).
    #[inline(always)]
    #[track_caller]
    pub fn kmem_cache_zalloc(&self, cache: &KmemCache, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.slabs.zalloc(cache, gfp)
    }

    /// As [`kmem_cache_alloc`](Self::kmem_cache_alloc), preferably on `node`.
    ///
    /// # Errors
    /// Those of [`Slabs::alloc_node`](kmem_slab::Slabs::alloc_node).
    #[inline]
    #[track_caller]
    pub fn kmem_cache_alloc_node(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, AllocError> {
        self.slabs.alloc_node(cache, gfp, node)
    }

    /// Fills `objects`, all or none.
    ///
    /// # Errors
    /// Those of [`Slabs::alloc_bulk`](kmem_slab::Slabs::alloc_bulk).
    #[inline]
    pub fn kmem_cache_alloc_bulk(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        objects: &mut [Option<NonNull<u8>>],
    ) -> Result<(), AllocError> {
        self.slabs.alloc_bulk(cache, gfp, objects)
    }

    /// Takes an object back.
    ///
    /// # Safety
    /// As for [`Slabs::free`](kmem_slab::Slabs::free).
    ///
    /// # Errors
    /// [`ObjectError`] if it is recognisably not an object in use of this cache.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn kmem_cache_free(&self, cache: &KmemCache, object: NonNull<u8>) -> Result<(), ObjectError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.slabs.free(cache, object) }
    }

    /// Takes many objects of one cache back.
    ///
    /// # Safety
    /// As for [`Slabs::free_bulk`](kmem_slab::Slabs::free_bulk).
    ///
    /// # Errors
    /// [`BulkFreeError`] if some were refused.
    #[inline]
    pub unsafe fn kmem_cache_free_bulk(
        &self,
        cache: &KmemCache,
        objects: &mut [Option<NonNull<u8>>],
    ) -> Result<(), BulkFreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.slabs.free_bulk(cache, objects) }
    }

    /// Gives every page back that the cache does not need; whether it still owns a slab.
    pub fn kmem_cache_shrink(&self, cache: &KmemCache) -> bool {
        self.slabs.shrink(cache)
    }

    /// Destroys a cache. May sleep.
    ///
    /// # Safety
    /// As for [`Slabs::destroy`](kmem_slab::Slabs::destroy).
    ///
    /// # Errors
    /// [`DestroyError::ObjectsRemain`] if objects are in use; nothing is lost.
    pub unsafe fn kmem_cache_destroy(&self, cache: &KmemCache) -> Result<(), DestroyError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.slabs.destroy(cache) }
    }
}
