//! Victims: one mark in each candidate, one count of those that have not exited.
//!
//! ```text
//! mark:   Clear ──mark──▶ Victim ──skip──▶ Skipped
//!           │               │                │
//!           └─────────────exit───────────────┴──▶ Exited (for good)
//!
//! count:  + 1 before a mark is made, − 1 if that fails, − 1 when a victim exits: never below the marks, never below zero
//! ```

use kmem_gfp::TaskFlags;
use kmem_sync::atomic::{AtomicU8, AtomicU64, Ordering};
use kmem_sync::const_fn;

const CLEAR: u8 = 0;
const VICTIM: u8 = 1;
const SKIPPED: u8 = 2;
const EXITED: u8 = 3;

/// Whether a candidate has been chosen: a word in the platform's process, as long as that lives.
#[derive(Debug)]
pub struct VictimMark {
    state: AtomicU8,
    /// Attempts at reaping so far.
    pub(crate) attempts: AtomicU8,
    /// When the reaper comes next, in milliseconds.
    pub(crate) reap_at_ms: AtomicU64,
}

impl Default for VictimMark {
    fn default() -> Self {
        Self::new()
    }
}

impl VictimMark {
    const_fn! {
        /// Not chosen.
        pub fn new() -> Self {
            Self { state: AtomicU8::new(CLEAR), attempts: AtomicU8::new(0), reap_at_ms: AtomicU64::new(0) }
        }
    }

    /// Whether it has been chosen and has not exited. Any context.
    #[inline]
    pub fn is_victim(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), VICTIM | SKIPPED)
    }

    /// Whether its memory has been reaped, or cannot be: it no longer stands in the way of killing another. Any context.
    #[inline]
    pub fn is_skipped(&self) -> bool {
        self.state.load(Ordering::Acquire) == SKIPPED
    }

    /// Whether its death is awaited. Any context.
    #[inline]
    pub fn is_pending(&self) -> bool {
        self.state.load(Ordering::Acquire) == VICTIM
    }

    /// What the platform adds to the task flags of its threads: [`TaskFlags::OOM_VICTIM`] opens half of the min reserve.
    #[inline]
    pub fn task_flags(&self) -> TaskFlags {
        if self.is_victim() { TaskFlags::OOM_VICTIM } else { TaskFlags::empty() }
    }

    /// Nobody waits for it any more.
    pub(crate) fn skip(&self) {
        let _ = self.state.compare_exchange(VICTIM, SKIPPED, Ordering::AcqRel, Ordering::Relaxed);
    }
}

/// How many victims have not exited.
#[derive(Debug)]
pub struct Victims {
    count: AtomicU64,
}

impl Default for Victims {
    fn default() -> Self {
        Self::new()
    }
}

impl Victims {
    const_fn! {
        /// None.
        pub fn new() -> Self {
            Self { count: AtomicU64::new(0) }
        }
    }

    /// How many there are. Any context. Zero after killing has been disabled: nobody uses reserves as a victim any more.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Makes a candidate a victim, whose reaper comes at `reap_at_ms`. `false` if it is one already or has exited. The caller
    /// has the turn.
    pub fn mark(&self, mark: &VictimMark, reap_at_ms: u64) -> bool {
        // First: an exit that finds the mark takes its count away again.
        self.count.fetch_add(1, Ordering::AcqRel);
        mark.attempts.store(0, Ordering::Relaxed);
        mark.reap_at_ms.store(reap_at_ms, Ordering::Relaxed);
        let marked = mark.state.compare_exchange(CLEAR, VICTIM, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !marked {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        marked
    }

    /// The candidate has given its memory up: the platform calls this once, when its address space is gone. It cannot be
    /// chosen any more. Returns whether it was a victim: memory may be free now, wake whoever waits. Any context.
    pub fn exit(&self, mark: &VictimMark) -> bool {
        let was_victim = matches!(mark.state.swap(EXITED, Ordering::AcqRel), VICTIM | SKIPPED);
        if was_victim {
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        was_victim
    }
}
