//! `kvrealloc`: another size. What kmalloc gave may become vmalloc memory; the way back does not exist.
//!
//! ```text
//! vmalloc's ──▶ vrealloc                                          final
//! kmalloc's ──▶ krealloc ──(no memory, more than a page)──▶ vmalloc, copy min(new, usable), kfree
//! ```

use core::ptr::NonNull;

use kmem_gfp::{Gfp, NodeId, PAGE_SIZE};
use kmem_kmalloc::{KreallocError as ObjectError, ObjectAllocator};
use kmem_vmalloc::VirtAllocator;

use crate::plan::{array_bytes, object_gfp, object_size};
use crate::{Kvmalloc, KvmallocEnv, KvreallocError};

impl<E: KvmallocEnv> Kvmalloc<E> {
    /// Gives the memory at `ptr` room for `new_bytes`, keeping its contents. Null or
    /// [`ZERO_SIZE_PTR`](kmem_kmalloc::ZERO_SIZE_PTR) allocates as [`kvmalloc`](Self::kvmalloc) does. Zero for `new_bytes`
    /// frees: then vmalloc memory leaves `None`, and a block of kmalloc
    /// [`ZERO_SIZE_PTR`](kmem_kmalloc::ZERO_SIZE_PTR).
    ///
    /// With [`Gfp::ZERO`] the bytes behind the contents are zero, if every allocation and reallocation of the memory used
    /// it. No other kvrealloc or kvfree of the same memory may run meanwhile; of other memory they may. Contexts: as for
    /// [`kvmalloc`](Self::kvmalloc), vmalloc memory in tasks only.
    ///
    /// # Safety
    /// As for [`kvfree`](Self::kvfree) on success; on failure the memory is the caller's as before.
    ///
    /// # Errors
    /// [`KvreallocError`]; the old memory is unchanged and valid.
    #[inline]
    #[track_caller]
    pub unsafe fn kvrealloc(
        &self,
        ptr: *mut u8,
        new_bytes: usize,
        gfp: Gfp,
    ) -> Result<Option<NonNull<u8>>, KvreallocError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.kvrealloc_node_align(ptr, new_bytes, 1, gfp, None) }
    }

    /// As [`kvrealloc`](Self::kvrealloc) for `count` elements of `size_bytes` each.
    ///
    /// # Safety
    /// As for [`kvrealloc`](Self::kvrealloc).
    ///
    /// # Errors
    /// Those of [`kvrealloc`](Self::kvrealloc), also when the product overflows.
    #[inline]
    #[track_caller]
    pub unsafe fn kvrealloc_array(
        &self,
        ptr: *mut u8,
        count: usize,
        size_bytes: usize,
        gfp: Gfp,
    ) -> Result<Option<NonNull<u8>>, KvreallocError> {
        let new_bytes = array_bytes(count, size_bytes)?;
        // SAFETY: the caller's promise is the same.
        unsafe { self.kvrealloc(ptr, new_bytes, gfp) }
    }

    /// As [`kvrealloc`](Self::kvrealloc), minding alignment and node: a block of kmalloc that is aligned to less than `align`
    /// moves, vmalloc memory is refused ([`VmallocError::BadAlign`](kmem_vmalloc::VmallocError::BadAlign)).
    ///
    /// # Safety
    /// As for [`kvrealloc`](Self::kvrealloc).
    ///
    /// # Errors
    /// Those of [`kvrealloc`](Self::kvrealloc).
    #[track_caller]
    pub unsafe fn kvrealloc_node_align(
        &self,
        ptr: *mut u8,
        new_bytes: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<Option<NonNull<u8>>, KvreallocError> {
        let areas = self.env.areas();
        if areas.owns(ptr) {
            // SAFETY: the caller's promise is the same.
            return Ok(unsafe { areas.resize(ptr, new_bytes, align, gfp, node) }?);
        }
        let object_bytes = object_size(new_bytes, align)?;
        // SAFETY: the caller's promise is the same.
        match unsafe { self.env.objects().resize(ptr, object_bytes, align, object_gfp(object_bytes, gfp), node) } {
            Ok(block) => Ok(Some(block)),
            Err(ObjectError::Alloc(error)) if object_bytes > PAGE_SIZE => {
                // kmalloc has just said no, so that the second try of kvmalloc is what is left.
                let area = self.fall_back(new_bytes, object_bytes, align, gfp, node, error)?;
                // SAFETY: a new area of `new_bytes` bytes; the caller's promise.
                unsafe { self.move_to_area(ptr, area, new_bytes) }.map(Some)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Moves a block of kmalloc into a new area.
    ///
    /// # Safety
    /// The caller owns the block and `area`, which has `new_bytes` bytes.
    #[cold]
    unsafe fn move_to_area(
        &self,
        ptr: *mut u8,
        area: NonNull<u8>,
        new_bytes: usize,
    ) -> Result<NonNull<u8>, KvreallocError> {
        let objects = self.env.objects();
        // SAFETY: the caller's promise.
        let moved = unsafe { objects.usable_size(ptr) }.and_then(|usable| {
            if usable > 0 {
                // SAFETY: both are in use, ours, with that many bytes (promise 3 of `ObjectAllocator`), accessible
                // (promise 2 of `KvmallocEnv`), and disjoint because both are in use. Null and the pointer to no bytes have none.
                unsafe { ptr.copy_to_nonoverlapping(area.as_ptr(), usable.min(new_bytes)) };
            }
            // SAFETY: the caller's promise; the contents have moved.
            unsafe { objects.free(ptr) }
        });
        match moved {
            Ok(()) => Ok(area),
            Err(error) => {
                // SAFETY: ours, and nobody has seen it.
                let freed = unsafe { self.env.areas().free(area.as_ptr()) };
                debug_assert!(freed.is_ok(), "{freed:?}");
                Err(KvreallocError::Free(error.into()))
            }
        }
    }
}
