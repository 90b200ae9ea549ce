//! The any-context forms: callable from an NMI, or from code that interrupted the allocator itself. Every lock is tried
//! once; what cannot be had at once is an answer, not a wait.

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{AllocError, FrameTable, Gfp, NodeId, OwnerTag};
use kmem_sync::Pinned;
use kmem_sync::atomic::Ordering;

use crate::backend::Locking;
use crate::fast::{WHOLE, pop, push};
use crate::slab::owner_cache;
use crate::{KmemCache, ObjectError, SlabEnv, Slabs};

impl<E: SlabEnv> Slabs<E> {
    /// Allocates an object in any context. `gfp` may hold [`Gfp::ZERO`] and [`Gfp::ACCOUNT`] only; a failure means "not
    /// now" as well as "no memory", and is never reported. Not subject to fault injection.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`]; [`AllocError::BadFlags`] for other flags; [`AllocError::NoSuchNode`].
    #[doc(alias = "kmalloc_nolock")]
    #[track_caller]
    pub fn alloc_nolock(&self, cache: &KmemCache, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError> {
        let bad = gfp.difference(Gfp::ZERO | Gfp::ACCOUNT | Gfp::NOWARN | Gfp::NOMEMALLOC);
        if !bad.is_empty() {
            return Err(AllocError::BadFlags(bad));
        }
        let gfp = gfp | Gfp::NOWARN | Gfp::NOMEMALLOC;
        if let Some(node) = node
            && cache.node(node.index()).is_none()
        {
            return Err(AllocError::NoSuchNode(node));
        }
        let care = cache.care.load(Ordering::Relaxed);
        if cache.is_debug() {
            let object = self.debug_alloc_how(cache, gfp, node, WHOLE, Locking::Try, Location::caller())?;
            return self.charge_if_due(cache, gfp, object, Locking::Try);
        }
        let object = match node {
            Some(node) => self.take_one(cache, gfp, node.index(), Locking::Try)?,
            None => match pop(Pinned::new(self.env.cpu()), cache) {
                Some(object) => object,
                None => self.alloc_behind_sheaf(cache, gfp, Locking::Try)?,
            },
        };
        self.charge_if_due(cache, gfp, object, Locking::Try)?;
        // SAFETY: just allocated.
        unsafe { self.hand_out(cache, gfp, care, object, WHOLE) };
        Ok(object)
    }

    /// Frees an object in any context. What cannot go to a sheaf or a slab at once waits for the cache's next slow call.
    ///
    /// # Safety
    /// Nobody uses the object any more.
    ///
    /// # Errors
    /// As for [`free_any`](Self::free_any).
    #[doc(alias = "kfree_nolock")]
    #[track_caller]
    pub unsafe fn free_nolock(&self, object: NonNull<u8>) -> Result<(), ObjectError> {
        let address = object.addr().get();
        let Some((_, words)) = self.env.frames().lookup(address) else {
            return Err(ObjectError::NotSlab { address });
        };
        let owner = words.owner.load(Ordering::Relaxed);
        if OwnerTag::of(owner) != OwnerTag::Slab {
            return Err(ObjectError::NotSlab { address });
        }
        // SAFETY: the frame belongs to a slab, so its cache lives.
        let cache = unsafe { owner_cache(owner) };
        // SAFETY: given up by the caller.
        unsafe {
            if push(self.env.cpu(), cache, owner, object) {
                return Ok(());
            }
            self.free_checked(cache, object, Locking::Try, Location::caller())
        }
    }
}
