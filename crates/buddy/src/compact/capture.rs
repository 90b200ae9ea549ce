//! Capture: the block that a compaction makes goes straight to the request it was made for.
//!
//! ```text
//! slow path   publish(wish) ─▶ slot: waiting ─────────────────────▶ collect ─▶ a block, or none
//! compaction                        └──▶ offer(block): filled ───────┘
//! ```
//!
//! The slow path reaches compaction through the embedder's reclaimer, which knows nothing of blocks; so the wish waits in a
//! slot of the allocator, and whoever compacts for exactly such a request fills it. Whoever published a slot empties it.

use kmem_gfp::{Pfn, ReclaimRequest};
use kmem_sync::atomic::{AtomicU64, Ordering};

/// How many requests may wait at a time; others do without.
const SLOTS: usize = 8;

const WAITING: u64 = 1;
const FILLED: u64 = 2;

/// Requests that wait for the block that is being made for them.
#[derive(Debug)]
pub(crate) struct Captures {
    slots: [AtomicU64; SLOTS],
}

/// A request that waits in a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published(usize);

/// What a block must be like; waiting requests of which this is the same are as good as one another.
fn key(request: &ReclaimRequest) -> u64 {
    WAITING
        | u64::from(request.order.get()) << 2
        | (request.migratetype as u64) << 6
        | (request.ceiling as u64) << 9
        | u64::from(request.this_node_only) << 12
        | u64::from(request.node.0) << 16
}

impl Captures {
    pub(crate) fn new() -> Self {
        Self { slots: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Waits for a block; `None` if all slots are taken.
    pub(crate) fn publish(&self, request: &ReclaimRequest) -> Option<Published> {
        let key = key(request);
        let free = |slot: &AtomicU64| slot.compare_exchange(0, key, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        self.slots.iter().position(free).map(Published)
    }

    /// Whether somebody waits for a block like this.
    pub(crate) fn is_wanted(&self, request: &ReclaimRequest) -> bool {
        let key = key(request);
        self.slots.iter().any(|slot| slot.load(Ordering::Relaxed) == key)
    }

    /// Gives a block to one of those who wait for it; `false` if nobody does.
    pub(crate) fn offer(&self, request: &ReclaimRequest, block: Pfn) -> bool {
        let (key, filled) = (key(request), FILLED | block.0 << 2);
        // Release pairs with the acquire in `collect`.
        let fill = |slot: &AtomicU64| slot.compare_exchange(key, filled, Ordering::Release, Ordering::Relaxed).is_ok();
        self.slots.iter().any(fill)
    }

    /// Stops waiting; the block, if one came.
    pub(crate) fn collect(&self, published: Published) -> Option<Pfn> {
        let slot = self.slots.get(published.0)?.swap(0, Ordering::Acquire);
        (slot & 3 == FILLED).then_some(Pfn(slot >> 2))
    }
}
