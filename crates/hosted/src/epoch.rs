//! Epochs: grace periods whose readers pay two plain stores.
//!
//! ```text
//! Epoch::now ──▶ e            advances from e to e + 1 once every running reader has seen e
//! Reader       since = e      0: outside     one per CPU, written by its owner alone
//! shared       [even, odd]    readers on threads without a CPU, counted by the parity of their epoch
//! ```
//!
//! A reader publishes the epoch it starts in. From then on the epoch can advance once more, and not twice: the second
//! step needs every reader to have seen the first. So an object that was unlinked while the epoch was `g` is out of
//! everybody's reach when it is `g + 2`.
//!
//! **Ordering.** A reader's publication is a plain store with a compiler fence behind it. Whoever advances the epoch pays
//! for both sides with a barrier on all CPUs before looking at the readers: a reader that it still does not see
//! starts its reads after the barrier, and so sees everything that was unlinked before it.

use kmem_sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence, fence};
use kmem_sync::{Grace, const_fn};

/// The first epoch. Not zero, which means "outside" in a reader.
const FIRST: u64 = 2;
/// Not reading.
const OUTSIDE: u64 = 0;

/// The read-side state of one CPU.
///
/// # Invariants
/// Only the CPU's owner writes. `since` is no later than the epoch in which the outermost running section began;
/// [`OUTSIDE`] if `depth` is zero.
#[derive(Debug)]
pub(crate) struct Reader {
    since: AtomicU64,
    depth: AtomicU32,
}

impl Reader {
    const_fn! {
        /// Outside.
        pub(crate) fn new() -> Self {
            Self { since: AtomicU64::new(OUTSIDE), depth: AtomicU32::new(0) }
        }
    }

    /// Ends every section. For slots whose owner is gone.
    pub(crate) fn reset(&self) {
        self.depth.store(0, Ordering::Relaxed);
        self.since.store(OUTSIDE, Ordering::Release);
    }
}

/// The epoch of one machine.
#[derive(Debug)]
pub(crate) struct Epoch {
    now: AtomicU64,
    /// Readers on threads without a CPU, by the parity of the epoch they began in.
    shared: [AtomicU32; 2],
}

impl Epoch {
    const_fn! {
        /// The first epoch, without readers.
        pub(crate) fn new() -> Self {
            Self { now: AtomicU64::new(FIRST), shared: [AtomicU32::new(0), AtomicU32::new(0)] }
        }
    }

    /// Begins a read-side section on the CPU of `reader`; they nest.
    #[inline]
    pub(crate) fn enter(&self, reader: &Reader) {
        let depth = reader.depth.load(Ordering::Relaxed);
        reader.depth.store(depth.wrapping_add(1), Ordering::Relaxed);
        if depth == 0 {
            // Release, so that whoever reads it knows the section before this one to be over.
            reader.since.store(self.now.load(Ordering::Relaxed), Ordering::Release);
            // The light half; the barrier in `advance` is the heavy one.
            compiler_fence(Ordering::SeqCst);
        }
    }

    /// Ends the innermost section of `reader`.
    #[inline]
    pub(crate) fn exit(&self, reader: &Reader) {
        let depth = reader.depth.load(Ordering::Relaxed).wrapping_sub(1);
        reader.depth.store(depth, Ordering::Relaxed);
        if depth == 0 {
            // Release pairs with the acquire in `all_have_seen`: the section's reads come before the grace period's end.
            reader.since.store(OUTSIDE, Ordering::Release);
        }
    }

    /// Begins a section on a thread that has no CPU; returns what [`exit_shared`](Self::exit_shared) wants.
    #[cold]
    pub(crate) fn enter_shared(&self) -> u64 {
        loop {
            let epoch = self.now.load(Ordering::Relaxed);
            self.counter(epoch).fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            // Counted under an epoch that has passed meanwhile, the reader would hold up the wrong step.
            if self.now.load(Ordering::Relaxed) == epoch {
                return epoch;
            }
            self.counter(epoch).fetch_sub(1, Ordering::Release);
        }
    }

    /// Ends a section that [`enter_shared`](Self::enter_shared) began.
    #[cold]
    pub(crate) fn exit_shared(&self, epoch: u64) {
        self.counter(epoch).fetch_sub(1, Ordering::Release);
    }

    /// The present, for [`has_passed`](Self::has_passed).
    pub(crate) fn snapshot(&self) -> Grace {
        // A read-modify-write: whoever advances from this epoch acquires what the caller unlinked before.
        Grace(self.now.fetch_add(0, Ordering::AcqRel))
    }

    /// Whether every section that ran at `grace` has ended; advances the epoch as far as the readers let it.
    /// `heavy` makes every CPU execute a full barrier.
    pub(crate) fn has_passed<'a, I>(&self, grace: Grace, readers: impl Fn() -> I, heavy: impl Fn()) -> bool
    where
        I: Iterator<Item = &'a Reader>,
    {
        loop {
            let now = self.now.load(Ordering::Acquire);
            if now >= grace.0.saturating_add(2) {
                return true;
            }
            // A look without the barrier first: it may find a reader that holds up this step, but never clear it.
            if !self.all_have_seen(now, readers()) {
                return false;
            }
            heavy();
            if !self.all_have_seen(now, readers()) {
                return false;
            }
            // If somebody else has made the step, so much the better.
            let _ = self.now.compare_exchange(now, now.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// Whether no running reader began before epoch `now`.
    fn all_have_seen<'a>(&self, now: u64, mut readers: impl Iterator<Item = &'a Reader>) -> bool {
        self.counter(now.wrapping_sub(1)).load(Ordering::Acquire) == 0
            && readers.all(|reader| {
                let since = reader.since.load(Ordering::Acquire);
                since == OUTSIDE || since >= now
            })
    }

    /// Forgets the readers without a CPU. In the child of a fork, where their threads are not.
    pub(crate) fn forget_shared(&self) {
        for count in &self.shared {
            count.store(0, Ordering::Relaxed);
        }
    }

    fn counter(&self, epoch: u64) -> &AtomicU32 {
        let [even, odd] = &self.shared;
        if epoch & 1 == 0 { even } else { odd }
    }
}
