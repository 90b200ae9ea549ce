//! Charging objects to whoever pays for them.
//!
//! ```text
//! alloc   object in hand ─▶ env.charge_object ─▶ payer ─▶ a word in its slab's vector       (`payers`)
//!                               └──refused──▶ the object goes back to its slab: OverLimit
//! free    word ─▶ payer ─▶ env.uncharge_object ─▶ the object is free
//! ```
//!
//! An object is charged while it is in use, waiting for readers included; objects in sheaves and slabs are nobody's. A cache
//! whose objects may be charged points its hot path at the idle slots, as any that needs care does, so that caches which
//! charge nobody pay nothing: those made with [`SlabFlags::ACCOUNT`](crate::SlabFlags::ACCOUNT) always, any other from its
//! first request with [`Gfp::ACCOUNT`] on. Where the environment does not account ([`SlabEnv::ACCOUNTS`]), none of this is
//! compiled.

use core::num::NonZeroU32;
use core::ptr::NonNull;

use kmem_gfp::{AllocError, Gfp};
use kmem_sync::Pinned;
use kmem_sync::atomic::Ordering;

use crate::backend::Locking;
use crate::cache::CARE_ACCOUNT;
use crate::create::set_care;
use crate::payers::{NODE_BYTES, Payers, install, installed};
use crate::sheaf::Sheaf;
use crate::slab::Slab;
use crate::{KmemCache, SlabEnv, SlabFlags, Slabs};

impl<E: SlabEnv> Slabs<E> {
    /// The flags of a request that the hot path leaves to the slower one.
    pub(crate) const SLOW_FLAGS: Gfp = if E::ACCOUNTS { Gfp::ZERO.union(Gfp::ACCOUNT) } else { Gfp::ZERO };

    /// Whether a request is charged.
    #[inline(always)]
    pub(crate) fn is_charged(cache: &KmemCache, gfp: Gfp) -> bool {
        E::ACCOUNTS && (cache.flags.contains(SlabFlags::ACCOUNT) || gfp.contains(Gfp::ACCOUNT))
    }

    /// Charges an object that is about to be handed out. Without memory to note the payer it goes out uncharged.
    ///
    /// # Errors
    /// Those of [`SlabEnv::charge_object`]. The object is the caller's as before.
    #[inline]
    pub(crate) fn charge(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        object: NonNull<u8>,
        how: Locking,
    ) -> Result<(), AllocError> {
        let reclaimable = cache.flags.contains(SlabFlags::RECLAIM_ACCOUNT);
        let Some(payer) = self.env.charge_object(gfp, cache.stride(), reclaimable)? else { return Ok(()) };
        let noted = Slab::find(self.env.frames(), object).and_then(|(_, slab)| {
            let total = slab.state().total();
            let index = slab.index(cache, total, object.as_ptr())?;
            let payers = self.payers_for(cache, gfp, &slab, total, how)?;
            // SAFETY: the caller holds the object, which is in this slot.
            unsafe { payers.set(index, payer) };
            Some(())
        });
        if noted.is_none() {
            self.env.uncharge_object(payer, cache.stride(), reclaimable);
        }
        Ok(())
    }

    /// [`charge`](Self::charge) for a request that is to be charged; the object goes back to its slab if that is refused.
    ///
    /// # Errors
    /// As for [`charge`](Self::charge); the object is free again.
    #[inline(always)]
    pub(crate) fn charge_if_due(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        object: NonNull<u8>,
        how: Locking,
    ) -> Result<NonNull<u8>, AllocError> {
        if Self::is_charged(cache, gfp)
            && let Err(error) = self.charge(cache, gfp, object, how)
        {
            self.take_back(cache, object, how);
            return Err(error);
        }
        Ok(object)
    }

    /// Charges new objects, all or none.
    ///
    /// # Errors
    /// As for [`charge`](Self::charge); none is charged.
    #[cold]
    pub(crate) fn charge_all(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        objects: &[Option<NonNull<u8>>],
    ) -> Result<(), AllocError> {
        for (done, object) in objects.iter().enumerate() {
            let Some(object) = *object else { continue };
            if let Err(error) = self.charge(cache, gfp, object, Locking::Wait) {
                for object in objects.iter().take(done).copied().flatten() {
                    self.uncharge_found(cache, object);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives back the charge of the object in slot `index`, which is being freed.
    #[inline(always)]
    pub(crate) fn uncharge(&self, cache: &KmemCache, slab: &Slab<'_>, index: usize) {
        // Relaxed: it was set before any object of the cache was charged.
        if self.has_payers(cache) {
            self.uncharge_noted(cache, slab, index);
        }
    }

    #[inline]
    fn uncharge_noted(&self, cache: &KmemCache, slab: &Slab<'_>, index: usize) {
        let Some(payers) = self.core().and_then(|core| core.payers.find(slab.pfn)) else { return };
        // SAFETY: the object is in use, and the caller's.
        if let Some(payer) = unsafe { payers.take(index) } {
            let reclaimable = cache.flags.contains(SlabFlags::RECLAIM_ACCOUNT);
            self.env.uncharge_object(payer, cache.stride(), reclaimable);
        }
    }

    /// [`uncharge`](Self::uncharge) for an object of the cache that is in the caller's hands.
    #[inline]
    pub(crate) fn uncharge_found(&self, cache: &KmemCache, object: NonNull<u8>) {
        if self.has_payers(cache)
            && let Some((_, slab)) = Slab::find(self.env.frames(), object)
            && let Some(index) = slab.index(cache, slab.state().total(), object.as_ptr())
        {
            self.uncharge_noted(cache, &slab, index);
        }
    }

    /// Puts an object whose charge was refused back into its slab.
    #[cold]
    fn take_back(&self, cache: &KmemCache, object: NonNull<u8>, how: Locking) {
        // SAFETY: nobody has seen the object.
        let freed = unsafe {
            match cache.is_debug() {
                true => self.free_checked(cache, object, how, core::panic::Location::caller()),
                false => self.put_object(cache, object, how),
            }
        };
        if let Err(error) = freed {
            self.report_refused(cache, error);
        }
    }

    /// The payers of a slab in which the caller holds an object; made if there are none. `None` without memory, or if a
    /// lock is needed and cannot be had.
    #[inline]
    fn payers_for(&self, cache: &KmemCache, gfp: Gfp, slab: &Slab<'_>, total: usize, how: Locking) -> Option<Payers> {
        match self.core()?.payers.find(slab.pfn) {
            // Whoever made it has seen to the cache.
            Some(payers) => Some(payers),
            None => self.make_payers(cache, gfp, slab, total, how),
        }
    }

    #[cold]
    #[inline(never)]
    fn make_payers(&self, cache: &KmemCache, gfp: Gfp, slab: &Slab<'_>, total: usize, how: Locking) -> Option<Payers> {
        let core = self.core()?;
        let gfp = gfp.nested();
        if cache.care.load(Ordering::Relaxed) & CARE_ACCOUNT == 0
            && !set_care(self.env.cpu(), cache, core.idle, CARE_ACCOUNT, true, how)
        {
            return None;
        }
        // SAFETY: what is given back was allocated just before, with the same size.
        let give = |memory, bytes| unsafe { self.meta_free(memory, bytes, how) };
        let node = || self.meta_alloc(NODE_BYTES, gfp, how).ok();
        let place = core.payers.reach(slab.pfn, node, |node| give(node, NODE_BYTES))?;
        let bytes = Payers::size_bytes(total);
        let memory = self.meta_alloc(bytes, gfp, how).ok()?;
        // SAFETY: just allocated, of that size.
        unsafe { Payers::init(memory, total) };
        match install(place, memory) {
            Ok(()) => Some(installed(memory)),
            Err(winner) => {
                give(memory, bytes);
                Some(winner)
            }
        }
    }

    /// Whether slabs of the cache may have payers.
    #[inline(always)]
    pub(crate) fn has_payers(&self, cache: &KmemCache) -> bool {
        E::ACCOUNTS && cache.care.load(Ordering::Relaxed) & CARE_ACCOUNT != 0
    }

    /// Gives up the payers of a slab that is going back to the page source.
    pub(crate) fn drop_payers(&self, cache: &KmemCache, slab: &Slab<'_>, total: usize) {
        if self.has_payers(cache)
            && let Some(vector) = self.core().and_then(|core| core.payers.remove(slab.pfn))
        {
            // SAFETY: no object of the slab is in use, so nobody looks at the vector, which was made for `total` slots.
            unsafe { self.meta_free(vector, Payers::size_bytes(total), Locking::Wait) };
        }
    }

    /// The top of the CPU's main sheaf, wherever the cache's hot path points.
    #[inline]
    pub(crate) fn pop_own(&self, cache: &KmemCache) -> Option<NonNull<u8>> {
        let pin = Pinned::new(self.env.cpu())?;
        // SAFETY: pinned to the slot's CPU; in a fast section the main sheaf is ours.
        unsafe { cache.slots.slot(pin.id())?.fast::<E::Cpu, _>(|main, _| Sheaf::pop(main)) }
    }

    /// Pushes an object to the CPU's main sheaf, wherever the cache's hot path points.
    ///
    /// # Safety
    /// The caller gives up `object`, an object of the cache in a frame with the owner word `owner`, if the result is `true`.
    #[inline]
    pub(crate) unsafe fn push_own(&self, cache: &KmemCache, owner: u64, object: NonNull<u8>) -> bool {
        let Some(pin) = Pinned::new(self.env.cpu()) else { return false };
        let Some(slot) = cache.slots.slot(pin.id()) else { return false };
        // SAFETY: pinned to the slot's CPU; in a fast section the main sheaf is ours; the object is the cache's.
        let pushed = unsafe {
            slot.fast::<E::Cpu, _>(|main, local| {
                let done = *local == owner && !Sheaf::tops(main, object) && Sheaf::push(main, object);
                done.then_some(())
            })
        };
        pushed.is_some()
    }

    /// Charges an object that has been handed out uncharged to whoever pays now. Nothing happens where the environment does not
    /// account, nobody pays, the object has a payer already, or there is no memory to note one; nor for an object of a plain
    /// kmalloc class. Contexts as `gfp` says.
    ///
    /// # Safety
    /// The caller owns the object.
    ///
    /// # Errors
    /// Those of [`SlabEnv::charge_object`], as an [`AllocError`]; the object stays the caller's, uncharged.
    /// [`AllocError::BadFlags`] for memory that is no cache's.
    #[doc(alias = "kmem_cache_charge")]
    pub unsafe fn charge_later(&self, object: NonNull<u8>, gfp: Gfp) -> Result<(), AllocError> {
        let Some(cache) = self.cache_of(object) else { return Err(AllocError::BadFlags(gfp)) };
        let is_plain_class = cache.flags.contains(SlabFlags::KMALLOC)
            && !cache.flags.intersects(SlabFlags::ACCOUNT | SlabFlags::RECLAIM_ACCOUNT);
        // SAFETY: the caller's promise.
        if !E::ACCOUNTS || is_plain_class || unsafe { self.payer_of(object) }.is_some() {
            return Ok(());
        }
        self.charge(cache, gfp, object, Locking::Wait)
    }

    /// Who pays for an object: the word that [`SlabEnv::charge_object`] gave. `None` for nobody, and for what is no object. Any
    /// context.
    ///
    /// # Safety
    /// The caller owns the object.
    #[doc(alias("mem_cgroup_from_obj", "mem_cgroup_from_slab_obj"))]
    pub unsafe fn payer_of(&self, object: NonNull<u8>) -> Option<NonZeroU32> {
        let cache = self.cache_of(object).filter(|_| E::ACCOUNTS)?;
        let (_, slab) = Slab::find(self.env.frames(), object)?;
        let index = slab.index(cache, slab.state().total(), object.as_ptr())?;
        let payers = self.core()?.payers.find(slab.pfn)?;
        // SAFETY: the object is in use, and the caller's.
        unsafe { payers.get(index) }
    }
}
