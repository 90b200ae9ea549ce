//! Slots: the CPUs of a machine as things that threads own.
//!
//! ```text
//! SlotTable   ┌ slot 0 ─────────────────┐┌ slot 1 ─────────────────┐ ...     two cache lines each
//!             │ owner │ reader │ shared ││ owner │ reader │ shared │
//!             └─────────────────────────┘└─────────────────────────┘
//! ```
//!
//! While a thread owns slot `k` it *is* CPU `k`: nobody else is pinned there. Taking a slot is an acquire and giving it
//! back a release, so whatever one owner did to the CPU's data happens before what the next does.

use kmem_sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kmem_sync::const_fn;

use crate::epoch::Reader;

/// Nobody owns the slot.
const FREE: u64 = 0;

/// One CPU.
///
/// # Invariants
/// `owner` is [`FREE`], or twice the token of the one thread that may pin this CPU, plus one if the thread took it for
/// a while by name (and not for the rest of its life because it needed one).
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Slot {
    owner: AtomicU64,
    /// The owner's read-side sections.
    pub(crate) reader: Reader,
    /// Whether the owner is inside a section that may hold shared locks.
    inside_shared: AtomicBool,
}

impl Slot {
    const_fn! {
        /// A free slot.
        pub(crate) fn new() -> Self {
            Self { owner: AtomicU64::new(FREE), reader: Reader::new(), inside_shared: AtomicBool::new(false) }
        }
    }

    /// Whether the thread with `token` owns it, in whichever way.
    pub(crate) fn is_owned_by(&self, token: u64) -> bool {
        // Relaxed: a thread's own ownership is its own doing.
        self.owner.load(Ordering::Relaxed) >> 1 == token
    }

    /// Whether somebody owns it for the time being, by name.
    pub(crate) fn is_taken_by_name(&self) -> bool {
        self.owner.load(Ordering::Relaxed) & 1 != 0
    }

    /// Whether somebody owns it for life.
    pub(crate) fn is_taken_for_life(&self) -> bool {
        let owner = self.owner.load(Ordering::Relaxed);
        owner != FREE && owner & 1 == 0
    }

    /// Says whether the owner is inside a section that may hold shared locks. Only the owner calls this.
    #[inline]
    pub(crate) fn set_inside_shared(&self, inside: bool) {
        // Release pairs with the acquire in `is_inside_shared`.
        self.inside_shared.store(inside, Ordering::Release);
    }

    /// Whether the owner is inside a section that may hold shared locks.
    pub(crate) fn is_inside_shared(&self) -> bool {
        self.inside_shared.load(Ordering::Acquire)
    }

    /// Whether nobody owns it.
    pub(crate) fn is_free(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == FREE
    }

    /// Makes the thread with `token` the owner if nobody is.
    pub(crate) fn try_take(&self, token: u64, by_name: bool) -> bool {
        let owner = token << 1 | u64::from(by_name);
        // Acquire pairs with the release in `give_back`.
        self.is_free() && self.owner.compare_exchange(FREE, owner, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Ends the ownership. The slot's read-side sections end with it: whoever forgot a guard is gone.
    ///
    /// # Safety
    /// The caller owns the slot, or the owner does not exist any more; nothing is pinned to the CPU.
    pub(crate) unsafe fn give_back(&self) {
        self.reader.reset();
        self.inside_shared.store(false, Ordering::Relaxed);
        self.owner.store(FREE, Ordering::Release);
    }
}

/// All slots of a machine.
#[derive(Debug)]
pub(crate) struct SlotTable<'a> {
    slots: &'a [Slot],
    /// How many slots are free for threads that need any; a hint that saves threads without a slot the search.
    nr_free: AtomicU32,
}

impl<'a> SlotTable<'a> {
    const_fn! {
        /// A table over `slots`, of which threads that need any may have `nr_free`.
        pub(crate) fn new(slots: &'a [Slot], nr_free: u32) -> Self {
            Self { slots, nr_free: AtomicU32::new(nr_free) }
        }
    }

    /// The slots, in CPU order.
    #[inline(always)]
    pub(crate) fn slots(&self) -> &'a [Slot] {
        self.slots
    }

    /// Whether looking for a free slot is worth it.
    pub(crate) fn may_have_free(&self) -> bool {
        self.nr_free.load(Ordering::Relaxed) != 0
    }

    /// Corrects the hint.
    pub(crate) fn set_nr_free(&self, nr_free: u32) {
        self.nr_free.store(nr_free, Ordering::Release);
    }

    /// A free slot among the first `limit`, for the rest of the life of the thread with `token`.
    pub(crate) fn take_any(&self, token: u64, limit: u32) -> Option<u32> {
        let (cpu, _) = (0..limit).zip(self.slots).find(|(_, slot)| slot.try_take(token, false))?;
        // Saturating, by a loop that loom can follow: the count is a hint and must not wrap.
        let _ = self.nr_free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |nr| nr.checked_sub(1));
        Some(cpu)
    }

    /// Gives back what the thread with `token` took through [`take_any`](Self::take_any) or by name.
    ///
    /// # Safety
    /// The thread is the calling one and pinned nowhere, or it does not exist any more.
    pub(crate) unsafe fn give_back_all(&self, token: u64) {
        for slot in self.slots.iter().filter(|slot| slot.is_owned_by(token)) {
            // SAFETY: owned by that thread (checked above), the rest is the caller's promise.
            unsafe { slot.give_back() };
            self.nr_free.fetch_add(1, Ordering::Relaxed);
        }
    }
}
