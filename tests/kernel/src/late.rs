//! [`Late`]: a static that is filled in once, while the machine boots.

use core::mem::MaybeUninit;

use kmem_sync::UnsafeCell;
use kmem_sync::atomic::{AtomicU32, Ordering};

const EMPTY: u32 = 0;
const BUSY: u32 = 1;
const FULL: u32 = 2;

/// A place for a value that comes later.
///
/// # Invariants
/// `value` is initialised, and shared only, once `phase` is `FULL`. While it is `BUSY` it belongs to whoever made it so.
#[derive(Debug)]
pub(crate) struct Late<T> {
    phase: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: shared references give out shared references only; the value is written by one context (invariant).
unsafe impl<T: Send + Sync> Sync for Late<T> {}

impl<T> Late<T> {
    /// An empty place.
    pub(crate) const fn new() -> Self {
        Self { phase: AtomicU32::new(EMPTY), value: UnsafeCell::new(MaybeUninit::uninit()) }
    }

    /// Fills the place, if it is empty.
    pub(crate) fn set(&self, value: T) {
        if self.phase.compare_exchange(EMPTY, BUSY, Ordering::Acquire, Ordering::Relaxed).is_ok() {
            // SAFETY: ours while the phase is `BUSY` (invariant).
            self.value.with_mut(|place| unsafe { (*place).write(value) });
            // Release pairs with the acquire in `get`.
            self.phase.store(FULL, Ordering::Release);
        }
    }

    /// The value, once it is there.
    #[inline(always)]
    pub(crate) fn get(&self) -> Option<&T> {
        if self.phase.load(Ordering::Acquire) != FULL {
            return None;
        }
        // SAFETY: initialised, and only shared from here on (invariant).
        Some(self.value.with(|place| unsafe { (*place).assume_init_ref() }))
    }
}
