//! The hot path, on one screen: pop from and push to the running CPU's main sheaf.
//!
//! ```text
//! alloc   not to be zeroed? ─▶ pin, local trylock ─▶ main not empty? ─▶ pop                else `slow`
//! free    frame ─▶ owner word ─▶ pin, local trylock ─▶ word == slot's? top != object? room? ─▶ push
//! ```
//!
//! A cache whose requests need care (injected failures, zeroing, debug options, no sheaves) says so by pointing `hot` at
//! the family's idle slots, which hold no objects and match no owner word: both paths fall through without a test.
//!
//! One comparison of the owner word says three things: the memory is a slab's, of this cache, on this CPU's node.
//! No atomic read-modify-write, no line that another CPU writes.

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::verdict::check_sleep;
use kmem_gfp::{AllocContext, AllocError, FrameTable, Gfp, NodeId, OwnerTag};
use kmem_sync::atomic::{AtomicPtr, Ordering};
use kmem_sync::{Cpu, Pinned};

use crate::sheaf::Sheaf;
use crate::slab::owner_cache;
use crate::slots::Slot;
use crate::{KmemCache, ObjectError, SlabEnv, Slabs};

/// "The whole object": the requested size of calls that do not say one.
pub(crate) const WHOLE: usize = usize::MAX;

/// Runs `f` on the main sheaf of the CPU that is pinned, among the slots at `hot`; `None` if it cannot be had. Fast paths pin
/// quickly: who is not yet a CPU becomes one on the slower path.
///
/// # Safety
/// `hot` points to a slot for every CPU, slot `i` being CPU `i`'s. `f` touches nothing but the sheaf.
#[inline(always)]
pub(crate) unsafe fn on_main<C: Cpu, R>(
    pin: Option<Pinned<'_, C>>,
    hot: &AtomicPtr<Slot>,
    f: impl FnOnce(*mut Sheaf, &u64) -> Option<R>,
) -> Option<R> {
    let pin = pin?;
    // Relaxed: a request may as well have come before the pointer was changed.
    let hot = hot.load(Ordering::Relaxed);
    // SAFETY: there is a slot for every CPU, this is the running one's, and it stays so until `pin` is dropped.
    unsafe { (*hot.add(pin.id().index())).fast::<C, R>(f) }
}

#[inline(always)]
pub(crate) fn pop<C: Cpu>(pin: Option<Pinned<'_, C>>, cache: &KmemCache) -> Option<NonNull<u8>> {
    // SAFETY: `hot` keeps invariant 2 of `KmemCache`; in a fast section the main sheaf is ours.
    unsafe { on_main(pin, &cache.hot, |main, _| Sheaf::pop(main)) }
}

/// # Safety
/// The caller gives up `object`, which lies in a frame with the owner word `owner`; if that is this cache's, it is one of
/// its objects.
#[inline(always)]
pub(crate) unsafe fn push<C: Cpu>(cpu: &C, cache: &KmemCache, owner: u64, object: NonNull<u8>) -> bool {
    // SAFETY: `hot` keeps invariant 2 of `KmemCache`; in a fast section the main sheaf is ours; the word says that the
    // object is this cache's.
    let pushed = unsafe {
        on_main(Pinned::quick(cpu), &cache.hot, |main, local| {
            let done = *local == owner && !Sheaf::tops(main, object) && Sheaf::push(main, object);
            done.then_some(())
        })
    };
    pushed.is_some()
}

/// [`push`] without asking the frame table.
///
/// # Safety
/// The caller gives up `object`, which is an object in use of this cache.
#[inline(always)]
pub(crate) unsafe fn push_known<C: Cpu>(cpu: &C, cache: &KmemCache, object: NonNull<u8>) -> bool {
    // SAFETY: `hot_known` keeps invariant 2 of `KmemCache`; in a fast section the main sheaf is ours; the caller vouches
    // for the object.
    unsafe {
        on_main(Pinned::quick(cpu), &cache.hot_known, |main, _| Sheaf::push(main, object).then_some(())).is_some()
    }
}

impl<E: SlabEnv> Slabs<E> {
    /// Complains in debug builds about a request that may sleep where sleeping is forbidden, whether or not it would have
    /// slept this time.
    #[inline(always)]
    pub(crate) fn debug_sleep_check(&self, gfp: Gfp) {
        if cfg!(debug_assertions) {
            let allowed = check_sleep(gfp, self.env.context().task_flags());
            debug_assert!(allowed.is_ok(), "kmem_cache: {allowed:?}");
        }
    }

    /// Allocates an object. Contexts: any that `gfp` allows, NMI excepted.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] if the page source has nothing that the flags allow; [`AllocError::OverLimit`] and its kin if
    /// the object is to be charged and whoever pays may not have more.
    #[doc(alias = "kmem_cache_alloc")]
    #[inline(always)]
    #[track_caller]
    pub fn alloc(&self, cache: &KmemCache, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.alloc_sized(cache, gfp, WHOLE)
    }

    /// [`alloc`](Self::alloc) with the object zeroed.
    ///
    /// # Errors
    /// As for [`alloc`](Self::alloc).
    #[doc(alias = "kmem_cache_zalloc")]
    #[inline(always)]
    #[track_caller]
    pub fn zalloc(&self, cache: &KmemCache, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.alloc_sized(cache, gfp | Gfp::ZERO, WHOLE)
    }

    /// [`alloc`](Self::alloc) for a user who needs only `requested` bytes of the object: caches that track sizes guard
    /// the bytes behind.
    ///
    /// # Errors
    /// As for [`alloc`](Self::alloc).
    #[inline(always)]
    #[track_caller]
    pub fn alloc_sized(&self, cache: &KmemCache, gfp: Gfp, requested: usize) -> Result<NonNull<u8>, AllocError> {
        self.debug_sleep_check(gfp);
        let popped = match gfp.intersects(Self::SLOW_FLAGS) {
            true => self.pop_zeroed(cache, gfp),
            false => pop(Pinned::quick(self.env.cpu()), cache),
        };
        // The pointer of either way, not the `Result`: that would go through memory on both.
        Ok(match popped {
            Some(object) => object,
            None => self.alloc_slow(cache, gfp, requested, Location::caller())?,
        })
    }

    /// The sheaf's next object, zeroed, if zeroing is all that the request wants beyond it.
    #[inline(never)]
    fn pop_zeroed(&self, cache: &KmemCache, gfp: Gfp) -> Option<NonNull<u8>> {
        // What a constructor made is not overwritten in families that zero everything: the slow path knows.
        if gfp.intersects(Self::SLOW_FLAGS.difference(Gfp::ZERO)) || cache.ctor.is_some() {
            return None;
        }
        let object = pop(Pinned::quick(self.env.cpu()), cache)?;
        // SAFETY: an object has `object_size` bytes, ours. A cache whose sheaves can be had here tracks no sizes.
        unsafe { object.write_bytes(0, cache.object_size()) };
        Some(object)
    }

    /// Allocates an object on `node`: strictly with [`Gfp::THISNODE`], otherwise as a preference. `None` is
    /// [`alloc`](Self::alloc).
    ///
    /// # Errors
    /// As for [`alloc`](Self::alloc); [`AllocError::NoSuchNode`].
    #[doc(alias = "kmem_cache_alloc_node")]
    #[inline]
    #[track_caller]
    pub fn alloc_node(&self, cache: &KmemCache, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError> {
        self.alloc_node_sized(cache, gfp, node, WHOLE)
    }

    /// [`alloc_node`](Self::alloc_node) with a requested size, as for [`alloc_sized`](Self::alloc_sized).
    ///
    /// # Errors
    /// As for [`alloc_node`](Self::alloc_node).
    #[inline]
    #[track_caller]
    pub fn alloc_node_sized(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: Option<NodeId>,
        requested: usize,
    ) -> Result<NonNull<u8>, AllocError> {
        match node {
            None => self.alloc_sized(cache, gfp, requested),
            Some(node) => self.alloc_on_node(cache, gfp, node, requested, Location::caller()),
        }
    }

    /// Takes an object back. Any context but NMI.
    ///
    /// # Safety
    /// Nobody uses the object any more.
    ///
    /// # Errors
    /// An [`ObjectError`] if it is recognisably not an object in use of this cache; it is leaked.
    #[doc(alias = "kmem_cache_free")]
    #[inline(always)]
    #[track_caller]
    pub unsafe fn free(&self, cache: &KmemCache, object: NonNull<u8>) -> Result<(), ObjectError> {
        if let Some((_, words)) = self.env.frames().lookup(object.addr().get()) {
            // Relaxed: whoever has the object got it after the slab was made.
            let owner = words.owner.load(Ordering::Relaxed);
            // SAFETY: given up by the caller.
            if unsafe { push(self.env.cpu(), cache, owner, object) } {
                return Ok(());
            }
        }
        // SAFETY: given up by the caller.
        unsafe { self.free_slow(cache, object, Location::caller()) }
    }

    /// [`free`](Self::free) for an object that the caller vouches for: the common path looks nothing up, so it notices no
    /// foreign object and no second free. Debug builds look all the same.
    ///
    /// # Safety
    /// The object is one of this cache's, in use, and nobody uses it any more.
    ///
    /// # Errors
    /// As for [`free`](Self::free), where something is noticed.
    #[inline(always)]
    #[track_caller]
    pub unsafe fn free_known(&self, cache: &KmemCache, object: NonNull<u8>) -> Result<(), ObjectError> {
        // SAFETY: the caller vouches for the object and gives it up.
        if !cfg!(debug_assertions) && unsafe { push_known(self.env.cpu(), cache, object) } {
            return Ok(());
        }
        // SAFETY: given up by the caller.
        unsafe { self.free_looking(cache, object) }
    }

    /// [`free`](Self::free) as a call: behind [`free_known`](Self::free_known), where caches of several nodes end up as well.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    #[inline(never)]
    #[track_caller]
    unsafe fn free_looking(&self, cache: &KmemCache, object: NonNull<u8>) -> Result<(), ObjectError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.free(cache, object) }
    }

    /// Takes back an object of any cache of this family. Any context but NMI.
    ///
    /// # Safety
    /// Nobody uses the object any more.
    ///
    /// # Errors
    /// [`ObjectError::NotSlab`] for memory that is no cache's, which is left alone: it may be another allocator's.
    #[doc(alias = "kfree")]
    #[inline(always)]
    #[track_caller]
    pub unsafe fn free_any(&self, object: NonNull<u8>) -> Result<(), ObjectError> {
        let address = object.addr().get();
        let Some((_, words)) = self.env.frames().lookup(address) else {
            return Err(ObjectError::NotSlab { address });
        };
        let owner = words.owner.load(Ordering::Relaxed);
        // Without its tag a slab's word is a pointer whose low bits are clear: shorter than comparing tags.
        let untagged = owner.wrapping_sub(OwnerTag::Slab as u64);
        if untagged & OwnerTag::MASK != 0 {
            return Err(ObjectError::NotSlab { address });
        }
        // SAFETY: the frame belongs to a slab, so its cache lives.
        let cache = unsafe { owner_cache(untagged) };
        // SAFETY: given up by the caller.
        if unsafe { push(self.env.cpu(), cache, owner, object) } {
            return Ok(());
        }
        // SAFETY: given up by the caller.
        unsafe { self.free_slow(cache, object, Location::caller()) }
    }
}
