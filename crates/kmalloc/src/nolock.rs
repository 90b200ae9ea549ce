//! The any-context forms: callable where everything else is not, NMI included.
//!
//! They take no lock that they cannot have at once and never reclaim; a failure means "not now".

use core::ptr::NonNull;

use kmem_gfp::{AllocError, FrameTable, Gfp, NodeId};
use kmem_slab::SlabEnv;

use crate::config::NOLOCK_FLAGS;
use crate::{KMALLOC_MAX_CACHE_SIZE, KfreeError, Kmalloc, SizeClass, ZERO_SIZE_PTR, is_zero_or_null};

impl<E: SlabEnv> Kmalloc<'_, E> {
    /// As [`kmalloc_node`](Self::kmalloc_node) from any context whatsoever. Only [`Gfp::ZERO`] and [`Gfp::ACCOUNT`] may
    /// be given. After one failure it tries the next larger class once.
    ///
    /// # Errors
    /// [`AllocError::BadFlags`] for other flags, [`AllocError::TooLarge`] above
    /// [`KMALLOC_MAX_CACHE_SIZE`](crate::KMALLOC_MAX_CACHE_SIZE), [`AllocError::NoMemory`] for shortage and contention
    /// alike.
    pub fn kmalloc_nolock(&self, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError> {
        if !NOLOCK_FLAGS.contains(gfp) {
            return Err(AllocError::BadFlags(gfp.difference(NOLOCK_FLAGS)));
        }
        if size_bytes == 0 {
            return Ok(ZERO_SIZE_PTR);
        }
        let class = SizeClass::for_size(size_bytes).ok_or(AllocError::TooLarge { size_bytes })?;
        let cache = self.cache(class, gfp);
        self.slabs.alloc_nolock(cache, gfp, node).or_else(|error| {
            let next = cache.object_size().saturating_add(1);
            if next > KMALLOC_MAX_CACHE_SIZE {
                return Err(error);
            }
            let class = SizeClass::for_size(next).ok_or(error)?;
            self.slabs.alloc_nolock(self.cache(class, gfp), gfp, node)
        })
    }

    /// Gives back, from any context whatsoever, what [`kmalloc_nolock`](Self::kmalloc_nolock) gave. Null and
    /// [`ZERO_SIZE_PTR`] do nothing.
    ///
    /// # Safety
    /// As for [`kfree`](Self::kfree).
    ///
    /// # Errors
    /// A [`KfreeError`]; large blocks, which `kmalloc_nolock` does not give, are refused too. Nothing has changed.
    pub unsafe fn kfree_nolock(&self, ptr: *mut u8) -> Result<(), KfreeError> {
        let Some(block) = NonNull::new(ptr).filter(|block| !is_zero_or_null(block.addr().get())) else {
            return Ok(());
        };
        // SAFETY: the caller's promise is the same.
        unsafe { self.slabs.free_nolock(block) }.map_err(|error| {
            let address = ptr.addr();
            match self.slabs.env().frames().frame_of(address) {
                Some(pfn) if self.is_large(address) => {
                    KfreeError::OtherOwner { address, pfn, owner: kmem_gfp::OwnerTag::LargeKmalloc }
                }
                _ => self.explain(address, error),
            }
        })
    }
}
