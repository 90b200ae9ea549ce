//! A page of the device: a lock, what kind of thing is kept for it, and one word that says where.
//!
//! ```text
//! state  .. │ priority │ idle │ incompressible │ huge │ kind │ locked │        word   handle, fill word or place on the backing device
//!             7..8       6      5                4      1..3   0
//! ```

use kmem_sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kmem_sync::{Cpu, UnsafeCell};

const LOCKED: u32 = 1;
const KIND_SHIFT: u32 = 1;
const KIND_MASK: u32 = 7 << KIND_SHIFT;
/// Kept whole, as it does not compress.
pub(super) const HUGE: u32 = 1 << 4;
/// No secondary compressor makes it smaller.
pub(super) const INCOMPRESSIBLE: u32 = 1 << 5;
/// Not accessed since it was marked.
pub(super) const IDLE: u32 = 1 << 6;
const PRIORITY_SHIFT: u32 = 7;
const PRIORITY_MASK: u32 = 3 << PRIORITY_SHIFT;

/// What is kept for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    /// Nothing: it reads as zeroes.
    Empty = 0,
    /// The word that fills it.
    Same = 1,
    /// An object of the pool.
    Object = 2,
    /// A page of the backing device.
    Backed = 3,
}

/// One page's slot.
///
/// # Invariants
/// `token` is accessed, and `word` and the rest of `state` change, only by whoever has set `LOCKED`.
#[derive(Debug)]
pub(crate) struct Slot {
    word: AtomicU64,
    state: AtomicU32,
    /// Stands for what the lock protects, so that loom sees two holders.
    token: UnsafeCell<()>,
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self { word: AtomicU64::new(0), state: AtomicU32::new(0), token: UnsafeCell::new(()) }
    }

    /// Waits for the slot and locks it.
    #[inline]
    pub(crate) fn lock<C: Cpu>(&self, cpu: &C) -> SlotGuard<'_> {
        loop {
            let state = self.state.load(Ordering::Relaxed);
            // Acquire pairs with the release in `drop`.
            if state & LOCKED == 0
                && self.state.compare_exchange_weak(state, state | LOCKED, Ordering::Acquire, Ordering::Relaxed).is_ok()
            {
                self.token.with_mut(|_| ());
                return SlotGuard { slot: self, state };
            }
            cpu.relax();
        }
    }
}

// SAFETY: two atomics; nothing is behind the token.
unsafe impl Sync for Slot {}

/// A slot that is locked.
#[derive(Debug)]
pub(crate) struct SlotGuard<'a> {
    slot: &'a Slot,
    state: u32,
}

impl SlotGuard<'_> {
    #[inline]
    pub(crate) fn kind(&self) -> Kind {
        match (self.state & KIND_MASK) >> KIND_SHIFT {
            1 => Kind::Same,
            2 => Kind::Object,
            3 => Kind::Backed,
            _ => Kind::Empty,
        }
    }

    #[inline]
    pub(crate) fn word(&self) -> u64 {
        self.slot.word.load(Ordering::Relaxed)
    }

    #[inline]
    pub(super) fn has(&self, flag: u32) -> bool {
        self.state & flag != 0
    }

    #[inline]
    pub(super) fn set_flag(&mut self, flag: u32, on: bool) {
        self.state = if on { self.state | flag } else { self.state & !flag };
    }

    /// Which compressor made the object: 0 is the primary.
    #[inline]
    pub(super) fn priority(&self) -> u8 {
        ((self.state & PRIORITY_MASK) >> PRIORITY_SHIFT) as u8
    }

    /// Another content; of the flags only those given are set.
    #[inline]
    pub(crate) fn set(&mut self, kind: Kind, word: u64, flags: u32, priority: u8) {
        self.slot.word.store(word, Ordering::Relaxed);
        self.state = (kind as u32) << KIND_SHIFT | flags | (u32::from(priority) << PRIORITY_SHIFT & PRIORITY_MASK);
    }
}

impl Drop for SlotGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.slot.token.with_mut(|_| ());
        // Release pairs with the acquire in `lock`.
        self.slot.state.store(self.state & !LOCKED, Ordering::Release);
    }
}
