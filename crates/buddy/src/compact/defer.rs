//! What a zone remembers of compactions: where the scanners are, and how long to leave it alone after failures.
//!
//! ```text
//! migrate, by mode ─▶ ................. ◀─ free       ordinals of pageblocks in the order of the zone's segments
//! failed at order o   requests of order >= o wait until 1 << shift of them have been turned away
//! ```
//!
//! All of it is advice: races cost a pageblock looked at twice, or a compaction more or less.

use kmem_gfp::{MigrateMode, Order};
use kmem_sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::zone::Zone;

/// The longest wait: 64 requests.
const MAX_SHIFT: u32 = 6;

/// A zone's memory of compactions.
#[derive(Debug)]
pub(crate) struct Progress {
    /// Where the next migrate scan begins: of those that do not wait, and of those that do.
    migrate_at: [AtomicU64; 2],
    /// Where the next free scan begins, going down; one more than the first pageblock it looks at.
    free_at: AtomicU64,
    considered: AtomicU32,
    shift: AtomicU32,
    order_failed: AtomicU32,
    /// The smallest order that a pageblock was found useless for: smaller ones need not heed the skip hints.
    hinted: AtomicU32,
    /// The skip hints have served a whole scan: it is time to forget them.
    stale_hints: AtomicBool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            migrate_at: [AtomicU64::new(0), AtomicU64::new(0)],
            free_at: AtomicU64::new(u64::MAX),
            considered: AtomicU32::new(0),
            shift: AtomicU32::new(0),
            order_failed: AtomicU32::new(Order::COUNT as u32),
            hinted: AtomicU32::new(u32::MAX),
            stale_hints: AtomicBool::new(false),
        }
    }

    /// Where the scanners are.
    pub(crate) fn positions(&self, mode: MigrateMode) -> (u64, u64) {
        let [hasty, patient] = &self.migrate_at;
        let migrate = if mode == MigrateMode::Async { hasty } else { patient };
        (migrate.load(Ordering::Relaxed), self.free_at.load(Ordering::Relaxed))
    }

    /// A migrate scan got so far. What a patient one has passed need not be passed again by a hasty one.
    pub(crate) fn note_migrate(&self, mode: MigrateMode, at: u64) {
        let [hasty, patient] = &self.migrate_at;
        hasty.fetch_max(at, Ordering::Relaxed);
        if mode != MigrateMode::Async {
            patient.fetch_max(at, Ordering::Relaxed);
        }
    }

    /// A free scan got so far.
    pub(crate) fn note_free(&self, at: u64) {
        self.free_at.fetch_min(at, Ordering::Relaxed);
    }

    /// The scanners have met: the next ones begin at the ends.
    pub(crate) fn rewind(&self) {
        self.migrate_at.iter().for_each(|at| at.store(0, Ordering::Relaxed));
        self.free_at.store(u64::MAX, Ordering::Relaxed);
    }

    /// A pageblock yielded nothing for `order`.
    pub(crate) fn note_hint(&self, order: Order) {
        if self.hinted.load(Ordering::Relaxed) > order.get() {
            self.hinted.fetch_min(order.get(), Ordering::Relaxed);
        }
    }

    /// Whether the skip hints say anything about blocks of `order`.
    pub(crate) fn heeds_hints(&self, order: Order) -> bool {
        order.get() >= self.hinted.load(Ordering::Relaxed)
    }

    /// A whole scan has gone by the hints.
    pub(crate) fn note_stale_hints(&self) {
        self.stale_hints.store(true, Ordering::Relaxed);
    }

    /// Whether a request is to be turned away without trying.
    pub(crate) fn is_deferred(&self, order: Order) -> bool {
        if order.get() < self.order_failed.load(Ordering::Relaxed) {
            return false;
        }
        let limit = 1 << self.shift.load(Ordering::Relaxed);
        let considered = self.considered.fetch_add(1, Ordering::Relaxed) + 1;
        if considered >= limit {
            self.considered.store(limit, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Whether the longest wait is over: then everything is looked at afresh.
    pub(crate) fn is_restarting(&self, order: Order) -> bool {
        order.get() >= self.order_failed.load(Ordering::Relaxed)
            && self.shift.load(Ordering::Relaxed) == MAX_SHIFT
            && self.considered.load(Ordering::Relaxed) >= 1 << MAX_SHIFT
    }

    /// A compaction that waited failed: the next ones wait longer.
    pub(crate) fn failed(&self, order: Order) {
        self.considered.store(0, Ordering::Relaxed);
        let shift = (self.shift.load(Ordering::Relaxed) + 1).min(MAX_SHIFT);
        self.shift.store(shift, Ordering::Relaxed);
        self.order_failed.fetch_min(order.get(), Ordering::Relaxed);
    }

    /// A compaction looks successful; `allocated`: it was, a block was had.
    pub(crate) fn succeeded(&self, order: Order, allocated: bool) {
        if allocated {
            self.considered.store(0, Ordering::Relaxed);
            self.shift.store(0, Ordering::Relaxed);
        }
        self.order_failed.fetch_max(order.get() + 1, Ordering::Relaxed);
    }
}

impl Zone {
    /// Forgets the skip hints and the scanners' places.
    pub(crate) fn forget_skips(&self) {
        for segment in self.segments() {
            let arena = segment.arena();
            for index in segment.start..segment.end {
                arena.skips.clear(index);
                arena.full.clear(index);
            }
        }
        self.progress.stale_hints.store(false, Ordering::Relaxed);
        self.progress.hinted.store(u32::MAX, Ordering::Relaxed);
        self.progress.rewind();
    }

    /// As [`forget_skips`](Self::forget_skips), if they have served a whole scan.
    pub(crate) fn forget_stale_skips(&self) {
        if self.progress.stale_hints.load(Ordering::Relaxed) {
            self.forget_skips();
        }
    }
}
