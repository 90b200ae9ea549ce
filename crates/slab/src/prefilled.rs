//! [`PrefilledSheaf`]: objects set aside where failing is allowed, for use where it is not.

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, AllocError, Gfp};
use kmem_sync::atomic::Ordering;

use crate::backend::Locking;
use crate::error::no_memory;
use crate::fast::WHOLE;
use crate::sheaf::Sheaf;
use crate::{KmemCache, SlabEnv, Slabs};

/// A private sheaf of ready objects. What is left in it goes back to the cache on drop.
///
/// # Invariants
/// `sheaf` is held by this value alone; its objects are free objects of `cache`.
#[doc(alias = "slab_sheaf")]
#[derive(Debug)]
#[must_use = "dropping the sheaf gives its objects back"]
pub struct PrefilledSheaf<'s, E: SlabEnv> {
    slabs: &'s Slabs<E>,
    cache: &'s KmemCache,
    sheaf: *mut Sheaf,
}

// SAFETY: the sheaf is exclusively owned memory and tied to no thread.
unsafe impl<E: SlabEnv> Send for PrefilledSheaf<'_, E> where Slabs<E>: Sync {}

impl<E: SlabEnv> Slabs<E> {
    /// Sets at least `count` objects aside. Up to the cache's sheaf capacity this is one of its sheaves, filled up if it
    /// held fewer; above, or in caches without sheaves, one of exactly `count`. Contexts: any that `gfp` allows.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`]; nothing is set aside then.
    #[doc(alias = "kmem_cache_prefill_sheaf")]
    pub fn prefill<'s>(
        &'s self,
        cache: &'s KmemCache,
        gfp: Gfp,
        count: u32,
    ) -> Result<PrefilledSheaf<'s, E>, AllocError> {
        let capacity = cache.sheaf_capacity;
        let sheaf = if count > capacity {
            self.new_sheaf_of(count, gfp.nested(), Locking::Wait)
        } else {
            let node = self.env.context().local_node().index();
            let cpu = self.env.cpu();
            let reused = cache.slots.try_with(cpu, |slot, _| {
                let spare = core::mem::replace(&mut slot.spare, core::ptr::null_mut());
                if !spare.is_null() {
                    return Some(spare);
                }
                let barn = &cache.node(node)?.barn;
                barn.take_full(cpu, Locking::Wait).or_else(|| barn.take_empty(cpu, Locking::Wait))
            });
            reused.flatten().or_else(|| self.new_sheaf(cache, gfp.nested(), Locking::Wait))
        };
        let mut prefilled = PrefilledSheaf { slabs: self, cache, sheaf: sheaf.ok_or(no_memory(gfp))? };
        if prefilled.len() < count {
            prefilled.fill(gfp)?;
        }
        Ok(prefilled)
    }
}

impl<E: SlabEnv> PrefilledSheaf<'_, E> {
    /// Objects left.
    #[doc(alias = "kmem_cache_sheaf_size")]
    pub fn len(&self) -> u32 {
        // SAFETY: we hold the sheaf.
        unsafe { (*self.sheaf).len }
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Objects it has room for.
    pub fn capacity(&self) -> u32 {
        // SAFETY: we hold the sheaf.
        unsafe { (*self.sheaf).cap }
    }

    /// Takes an object; `None` only when none is left. Of `gfp` only [`Gfp::ZERO`] and [`Gfp::ACCOUNT`] mean something. The object
    /// is charged as it leaves the sheaf, beyond the limit if it must be. Any context.
    #[doc(alias = "kmem_cache_alloc_from_sheaf")]
    pub fn alloc(&mut self, gfp: Gfp) -> Option<NonNull<u8>> {
        // SAFETY: we hold the sheaf.
        let object = unsafe { Sheaf::pop(self.sheaf) }?;
        let care = self.cache.care.load(Ordering::Relaxed);
        if Slabs::<E>::is_charged(self.cache, gfp) {
            let forced = gfp.intersection(Gfp::ACCOUNT) | Gfp::NOFAIL;
            // A charge that cannot be refused.
            let _ = self.slabs.charge(self.cache, forced, object, Locking::Wait);
        }
        // SAFETY: just allocated.
        unsafe { self.slabs.hand_out(self.cache, gfp, care, object, WHOLE) };
        Some(object)
    }

    /// Fills the sheaf up if it holds fewer than `count` objects, moving to a larger one if it must.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`]; objects added before stay.
    #[doc(alias = "kmem_cache_refill_sheaf")]
    pub fn refill(&mut self, gfp: Gfp, count: u32) -> Result<(), AllocError> {
        if self.len() >= count {
            return Ok(());
        }
        if self.capacity() >= count {
            return self.fill(gfp);
        }
        let mut larger = self.slabs.prefill(self.cache, gfp, count)?;
        core::mem::swap(&mut self.sheaf, &mut larger.sheaf);
        Ok(())
    }

    fn fill(&mut self, gfp: Gfp) -> Result<(), AllocError> {
        let gfp = gfp.difference(Gfp::ZERO);
        let mut result = Ok(());
        // SAFETY: we hold the sheaf; the objects come from its cache.
        unsafe {
            Sheaf::fill_with(self.sheaf, u32::MAX, |room| {
                let places =
                    core::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<Option<NonNull<u8>>>(), room.len());
                if self.slabs.set_aside(self.cache, gfp, places).is_ok() {
                    return places.len();
                }
                // All at once was too much; what can be had stays.
                let mut got = 0;
                for place in places {
                    if let Err(error) = self.slabs.set_aside(self.cache, gfp, core::slice::from_mut(place)) {
                        result = Err(error);
                        break;
                    }
                    got += 1;
                }
                got
            });
        }
        result
    }

    /// Gives the sheaf back with flags for topping it up, which lets the barn keep it.
    #[doc(alias = "kmem_cache_return_sheaf")]
    pub fn give_back(mut self, gfp: Gfp) {
        self.release(gfp);
    }

    fn release(&mut self, gfp: Gfp) {
        let (slabs, cache) = (self.slabs, self.cache);
        if self.sheaf.is_null() {
            return;
        }
        if cache.sheaf_capacity > 0 && self.capacity() == cache.sheaf_capacity {
            let kept = cache.slots.try_with(slabs.env.cpu(), |slot, _| {
                if slot.spare.is_null() && slot.has_main() {
                    slot.spare = self.sheaf;
                    return true;
                }
                false
            });
            if kept == Some(true) {
                self.sheaf = core::ptr::null_mut();
                return;
            }
            let node = slabs.env.context().local_node().index();
            if let Some(home) = cache.node(node)
                && home.barn.nr_full() < slabs.config.barn_full
                && (self.len() == self.capacity() || self.fill(gfp | Gfp::NOWARN).is_ok())
            {
                // SAFETY: we hold the sheaf and give it up on success.
                let put = unsafe {
                    home.barn.put_full(slabs.env.cpu(), Locking::Wait, self.sheaf, slabs.config.barn_full, false)
                };
                if put.is_ok() {
                    self.sheaf = core::ptr::null_mut();
                    return;
                }
            }
        }
        // SAFETY: we hold the sheaf; its objects are free, though in debug caches they count as allocated.
        for object in unsafe { Sheaf::contents(self.sheaf) }.iter().copied().filter_map(NonNull::new) {
            // SAFETY: as above.
            let freed = unsafe { slabs.free_checked(cache, object, Locking::Wait, Location::caller()) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
        // SAFETY: we hold the sheaf.
        unsafe { (*self.sheaf).len = 0 };
        slabs.free_sheaf(self.sheaf, Locking::Wait);
        self.sheaf = core::ptr::null_mut();
    }
}

impl<E: SlabEnv> Drop for PrefilledSheaf<'_, E> {
    fn drop(&mut self) {
        self.release(Gfp::NOWAIT);
    }
}
