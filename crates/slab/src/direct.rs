//! [`SheafSlot`]: a CPU's sheaf of one cache, looked up in advance, for embedders whose caches never change and who find the
//! slot in a table of their own: one load instead of the descriptor's two.
//!
//! ```text
//! embedder's table[cpu][class] ──▶ Slot ──▶ main sheaf        `IdleSlot` where there is none: every call falls through
//! ```

use core::ptr::NonNull;

use kmem_sync::{Cpu, CpuId, const_fn};

use crate::KmemCache;
use crate::sheaf::Sheaf;
use crate::slots::Slot;

/// The place of one CPU's sheaf of one cache.
///
/// Calls through it pass by whatever is switched on later (failure injection, zeroing): it is for caches that nobody
/// reconfigures.
///
/// # Invariants
/// Points to a slot that lives as long as the value is used.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct SheafSlot(NonNull<Slot>);

// SAFETY: `Slot` is `Sync`.
unsafe impl Sync for SheafSlot {}
// SAFETY: as above.
unsafe impl Send for SheafSlot {}

impl SheafSlot {
    /// Pops an object; `None` if the sheaf is empty or busy: then [`Slabs::alloc`](crate::Slabs::alloc) has the rest of the way.
    /// Contexts: as for that.
    ///
    /// # Safety
    /// The caller is pinned to the slot's CPU, the cache has not been destroyed, and requests of this caller need no zeroing.
    /// Any thread may call it on an [`IdleSlot`].
    #[inline(always)]
    pub unsafe fn alloc<C: Cpu>(self) -> Option<NonNull<u8>> {
        // SAFETY: the slot lives (type invariant); pinned; in a fast section the main sheaf is ours.
        unsafe { self.0.as_ref().fast::<C, _>(|main, _| Sheaf::pop(main)) }
    }

    /// Pushes an object; `false`, with nothing done, if the sheaf is full or busy: then
    /// [`Slabs::free_known`](crate::Slabs::free_known) has the rest of the way. Contexts: as for that.
    ///
    /// # Safety
    /// As for [`alloc`](Self::alloc), and the caller gives up `object`, which is an object in use of the slot's cache.
    #[inline(always)]
    pub unsafe fn free_known<C: Cpu>(self, object: NonNull<u8>) -> bool {
        // SAFETY: as in `alloc`; the caller vouches for the object.
        unsafe { self.0.as_ref().fast::<C, _>(|main, _| Sheaf::push(main, object).then_some(())).is_some() }
    }
}

/// A slot that never has an object nor room for one: stands in tables for CPUs and caches that are not there.
#[derive(Debug)]
pub struct IdleSlot(Slot);

impl IdleSlot {
    const_fn! {
        /// The slot.
        pub fn new() -> Self {
            Self(Slot::new())
        }
    }

    /// Where it is.
    pub const fn slot(&'static self) -> SheafSlot {
        SheafSlot(NonNull::from_ref(&self.0))
    }
}

impl KmemCache {
    /// The place of `cpu`'s sheaf, if frees of this cache may go there without a look at their frame: one node, no debugging,
    /// nothing to be zeroed or injected.
    pub fn sheaf_slot(&self, cpu: CpuId) -> Option<SheafSlot> {
        let known = self.hot_known.load(kmem_sync::atomic::Ordering::Relaxed);
        if known != self.slots.first().as_ptr() {
            return None;
        }
        self.slots.slot(cpu).map(|slot| SheafSlot(NonNull::from_ref(slot)))
    }
}
