//! The lock of a zspage: readers count up, movers and writers exclude everybody, nobody waits for a reader.
//!
//! ```text
//! bit 31 EXCLUSIVE   a mover, a migration or a write is at work (short)
//! bit 30 PENDING     objects were freed while readers were inside: the last one out frees them
//! bits 0..30         readers, who may sleep
//! ```
//! A reader may arrive with an old number and count itself on a record that holds another zspage by then; it finds that
//! out and leaves again. So a count above zero proves nothing, while zero proves that nobody is inside.

use kmem_sync::atomic::{AtomicU32, Ordering, fence_after_rmw};

const EXCLUSIVE: u32 = 1 << 31;
const PENDING: u32 = 1 << 30;
const READERS: u32 = PENDING - 1;

#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct LockWord(AtomicU32);

impl LockWord {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Counts a reader; `false` if that is not possible at the moment (someone works on the zspage).
    #[inline(always)]
    pub(crate) fn try_pin(&self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        if word & EXCLUSIVE != 0 || word & READERS == READERS {
            return false;
        }
        // Acquire pairs with the releases in `end_exclusive` and `retire`: the entry read next is at least that new.
        let counted = self.0.compare_exchange_weak(word, word + 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        // The other half of the handshake in `retire`.
        fence_after_rmw();
        counted
    }

    /// Ends a [`try_pin`](Self::try_pin). `true` if the caller is the last reader and frees are pending.
    #[inline(always)]
    #[must_use]
    pub(crate) fn unpin(&self) -> bool {
        // Release pairs with the acquires in `try_exclusive`, `retire` and `begin_reap`: our reads are over.
        self.0.fetch_sub(1, Ordering::Release) == PENDING | 1
    }

    /// Shuts everybody out if nobody is inside and nothing is pending.
    #[inline(always)]
    pub(crate) fn try_exclusive(&self) -> bool {
        let got = self.0.compare_exchange(0, EXCLUSIVE, Ordering::Acquire, Ordering::Relaxed).is_ok();
        fence_after_rmw();
        got
    }

    /// Ends a [`try_exclusive`](Self::try_exclusive). `true` if frees became pending meanwhile.
    #[inline(always)]
    #[must_use]
    pub(crate) fn end_exclusive(&self) -> bool {
        // Release pairs with the acquires in `try_pin` and `try_exclusive`.
        self.0.fetch_and(!EXCLUSIVE, Ordering::Release) & PENDING != 0
    }

    /// Whether [`try_exclusive`](Self::try_exclusive) failed because of readers, not of somebody's short work.
    pub(crate) fn has_readers(&self) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        word & EXCLUSIVE == 0 && word != 0
    }

    /// Asked after an object's entry has been made dead by a read-modify-write. `true`: nobody is inside, and whoever comes
    /// sees it dead, so its bytes can be used again. `false`: its slot must be kept until the last one inside reaps it. The
    /// caller is inside the section of the zspage's owner.
    #[inline(always)]
    pub(crate) fn retire(&self) -> bool {
        self.is_idle() || self.retire_slow()
    }

    /// The first look of [`retire`](Self::retire).
    #[inline(always)]
    pub(crate) fn is_idle(&self) -> bool {
        // Half of a handshake: a reader counts itself and then looks at the entry again. Each side writes by a
        // read-modify-write, fences, and looks. Acquire pairs with the release in `unpin`.
        fence_after_rmw();
        self.0.load(Ordering::Acquire) == 0
    }

    #[cold]
    #[inline(never)]
    fn retire_slow(&self) -> bool {
        loop {
            let word = self.0.load(Ordering::Relaxed);
            let free = word & !PENDING == 0;
            let new = if free { word } else { word | PENDING };
            if self.0.compare_exchange(word, new, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return free;
            }
        }
    }

    /// Takes the pending mark off if nobody is inside; the caller, inside the owner's section, then frees what is pending.
    pub(crate) fn begin_reap(&self) -> bool {
        self.0.compare_exchange(PENDING, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}
