//! A door before sections of code: whoever closes it knows when everybody is out.
//!
//! ```text
//! passing                             closing
//! publish (plain store on a CPU)      closed = 1
//! -- compiler fence --                barrier on all CPUs
//! closed?  yes -> withdraw, wait      wait until nobody is published
//! ```
//!
//! As with the local trylock, those who pass pay two plain stores and the one who closes pays with a barrier.

use kmem_sync::atomic::{AtomicBool, AtomicU32, Ordering, compiler_fence};
use kmem_sync::const_fn;

use crate::slots::Slot;

/// The door of one machine.
///
/// # Invariants
/// Between a successful [`try_enter`](Self::try_enter) and its [`leave`](Self::leave) the thread's slot says so, or, for
/// threads without a slot, it is counted in `without_slot`.
#[derive(Debug)]
pub(crate) struct Door {
    closed: AtomicBool,
    without_slot: AtomicU32,
}

impl Door {
    const_fn! {
        /// An open door.
        pub(crate) fn new() -> Self {
            Self { closed: AtomicBool::new(false), without_slot: AtomicU32::new(0) }
        }
    }

    /// Passes as the owner of `slot`, or as a thread without one; `false` if the door is closed.
    #[inline]
    pub(crate) fn try_enter(&self, slot: Option<&Slot>) -> bool {
        match slot {
            Some(slot) => slot.set_inside_shared(true),
            None => _ = self.without_slot.fetch_add(1, Ordering::AcqRel),
        }
        // The light half of the order between publishing and looking; `close` has the heavy one.
        compiler_fence(Ordering::SeqCst);
        // Acquire pairs with the release in `open`.
        if self.closed.load(Ordering::Acquire) {
            self.leave(slot);
            return false;
        }
        true
    }

    /// Leaves again, with the slot that was entered with.
    #[inline]
    pub(crate) fn leave(&self, slot: Option<&Slot>) {
        match slot {
            Some(slot) => slot.set_inside_shared(false),
            // Release pairs with the acquire in `is_empty`.
            None => _ = self.without_slot.fetch_sub(1, Ordering::Release),
        }
    }

    /// Closes the door. Who is inside may still be there; nobody enters any more.
    pub(crate) fn close(&self, heavy: impl FnOnce()) {
        self.closed.store(true, Ordering::Relaxed);
        heavy();
    }

    /// Whether nobody is inside of the closed door; `slots` are all that its users may own.
    pub(crate) fn is_empty<'a>(&self, mut slots: impl Iterator<Item = &'a Slot>) -> bool {
        self.without_slot.load(Ordering::Acquire) == 0 && slots.all(|slot| !slot.is_inside_shared())
    }

    /// Whether it is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Opens it.
    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::Release);
    }

    /// Forgets threads without a slot: in the child of a fork, where they are not.
    #[cfg(not(loom))]
    pub(crate) fn forget(&self) {
        self.without_slot.store(0, Ordering::Relaxed);
    }
}
