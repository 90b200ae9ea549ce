//! A group's place in the table: its counters, settings, links, and what keeps the place taken.
//!
//! ```text
//! life:  ONLINE | TAKEN | FREEING | LINGERS |              references (48 bits)
//!                                    BIAS while the group is in the tree
//!                                  + 1 for each place whose parent this is
//!                                  + 1 for each page that a payer word names
//!                                  + those that a charge under way holds
//!
//!  0 ──create──▶ TAKEN+BIAS ──▶ ONLINE+TAKEN+BIAS+n ──remove──▶ TAKEN+BIAS+n ──drained──▶ TAKEN+n ──▶ TAKEN ──▶ FREEING ──▶ 0
//! ```
//!
//! A CPU's stock keeps the difference of references that its charges and uncharges made; the bias outweighs any such
//! difference, and once a group is offline and drained there is none.

use kmem_sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering, fence_after_rmw};

use crate::GroupId;
use crate::memcg::Event;
use crate::memcg::views::Stat;

/// The group takes charges.
pub(crate) const ONLINE: u64 = 1 << 63;
/// The place is somebody's.
pub(crate) const TAKEN: u64 = 1 << 62;
/// The last reference has gone; the place is being cleared.
pub(crate) const FREEING: u64 = 1 << 61;
/// The group has left the tree, but pages that bear its number are in somebody's hands; the bias stays meanwhile.
pub(crate) const LINGERS: u64 = 1 << 60;
/// References of a group that is in the tree, more than all stocks can lack.
pub(crate) const BIAS: u64 = 1 << 46;

/// No link.
pub(crate) const NONE: u32 = u32::MAX;

/// One place of the table.
///
/// # Invariants
/// 1. While [`ONLINE`] or [`BIAS`] is set, `parent` and `depth` are constant; they stay as they are until the place is
///    created anew, and the parent's place stays taken as long as this one.
/// 2. `usage` of every group in the tree is the sum of what was charged to it and to its descendants, whether those still
///    exist or not, plus what charges under way have added. Of a group that has left the tree it means nothing.
///    The root's is not kept.
/// 3. `children_min` is the sum of `protected_min` over the places whose parent this is; likewise `low`. Not the root's.
/// 4. Links are written under the tree's lock only.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Slot {
    // Written once a batch.
    pub(crate) usage: AtomicU64,
    pub(crate) life: AtomicU64,
    pub(crate) peak: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) protected_min: AtomicU64,
    pub(crate) protected_low: AtomicU64,
    pub(crate) children_min: AtomicU64,
    pub(crate) children_low: AtomicU64,
    // Read once a batch, written by who configures.
    pub(crate) min: AtomicU64,
    pub(crate) low: AtomicU64,
    pub(crate) high: AtomicU64,
    pub(crate) max: AtomicU64,
    pub(crate) parent: AtomicU32,
    pub(crate) depth: AtomicU32,
    /// Grows with every group made: the order among siblings.
    pub(crate) serial: AtomicU64,
    pub(crate) swappiness: AtomicU32,
    pub(crate) oom_group: AtomicBool,
    // The tree, under its lock.
    pub(crate) linked: AtomicBool,
    pub(crate) first_child: AtomicU32,
    pub(crate) last_child: AtomicU32,
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
    /// Bytes of charged pages that no object has and no stock holds (A-11).
    pub(crate) rest_bytes: AtomicU64,
    pub(crate) events_total: [AtomicU64; Event::COUNT],
    pub(crate) events_local: [AtomicU64; Event::COUNT],
    /// The first in pages, the others in bytes.
    pub(crate) stats: [AtomicI64; Stat::COUNT],
}

impl Slot {
    pub(crate) fn new() -> Self {
        Self {
            usage: AtomicU64::new(0),
            life: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            protected_min: AtomicU64::new(0),
            protected_low: AtomicU64::new(0),
            children_min: AtomicU64::new(0),
            children_low: AtomicU64::new(0),
            min: AtomicU64::new(0),
            low: AtomicU64::new(0),
            high: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(u64::MAX),
            parent: AtomicU32::new(NONE),
            depth: AtomicU32::new(0),
            serial: AtomicU64::new(0),
            swappiness: AtomicU32::new(NONE),
            oom_group: AtomicBool::new(false),
            linked: AtomicBool::new(false),
            first_child: AtomicU32::new(NONE),
            last_child: AtomicU32::new(NONE),
            next: AtomicU32::new(NONE),
            prev: AtomicU32::new(NONE),
            rest_bytes: AtomicU64::new(0),
            events_total: [0; Event::COUNT].map(AtomicU64::new),
            events_local: [0; Event::COUNT].map(AtomicU64::new),
            stats: [0; Stat::COUNT].map(AtomicI64::new),
        }
    }

    /// Makes the place as new, but for `life`. The caller has taken it and nobody else knows it.
    pub(crate) fn reset(&self, parent: Option<GroupId>, depth: u32, serial: u64) {
        for word in [&self.usage, &self.peak, &self.failures, &self.min, &self.low, &self.rest_bytes] {
            word.store(0, Ordering::Relaxed);
        }
        for word in [&self.protected_min, &self.protected_low, &self.children_min, &self.children_low] {
            word.store(0, Ordering::Relaxed);
        }
        for word in self.events_total.iter().chain(&self.events_local) {
            word.store(0, Ordering::Relaxed);
        }
        for word in &self.stats {
            word.store(0, Ordering::Relaxed);
        }
        self.high.store(u64::MAX, Ordering::Relaxed);
        self.max.store(u64::MAX, Ordering::Relaxed);
        self.parent.store(parent.map_or(NONE, |parent| parent.0), Ordering::Relaxed);
        self.depth.store(depth, Ordering::Relaxed);
        self.serial.store(serial, Ordering::Relaxed);
        self.swappiness.store(NONE, Ordering::Relaxed);
        self.oom_group.store(false, Ordering::Relaxed);
        for link in [&self.first_child, &self.last_child, &self.next, &self.prev] {
            link.store(NONE, Ordering::Relaxed);
        }
    }

    /// Whether the group takes charges. Acquire pairs with the release in `create`: its settings are seen.
    #[inline(always)]
    pub(crate) fn is_online(&self) -> bool {
        self.life.load(Ordering::Acquire) & ONLINE != 0
    }

    /// The group above; `None` for the root.
    #[inline(always)]
    pub(crate) fn parent(&self) -> Option<GroupId> {
        let parent = self.parent.load(Ordering::Relaxed);
        (parent != NONE).then_some(GroupId(parent))
    }

    /// Adds to the usage and says whether it is within the limit.
    #[inline]
    pub(crate) fn add(&self, pages: u64) -> Added {
        let usage = self.usage.fetch_add(pages, Ordering::AcqRel).wrapping_add(pages);
        // Pairs with the fence in `Memcg::set_max`: of a charge and a new limit at least one sees the other.
        fence_after_rmw();
        if usage > self.max.load(Ordering::Relaxed) { Added::Over } else { Added::Within(usage) }
    }

    /// Takes from the usage.
    #[inline]
    pub(crate) fn sub(&self, pages: u64) -> u64 {
        self.usage.fetch_sub(pages, Ordering::AcqRel).wrapping_sub(pages)
    }

    /// Notes the highest usage so far.
    #[inline]
    pub(crate) fn note_peak(&self, usage: u64) {
        if usage > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(usage, Ordering::Relaxed);
        }
    }

    /// Tells the parent how much of this group's usage its own settings protect (A-16). `parent` is this place's parent.
    #[inline]
    pub(crate) fn tell_protected(&self, parent: &Self, usage: u64) {
        let pairs = [
            (&self.min, &self.protected_min, &parent.children_min),
            (&self.low, &self.protected_low, &parent.children_low),
        ];
        for (setting, told, sum) in pairs {
            let protected = usage.min(setting.load(Ordering::Relaxed));
            if protected != told.load(Ordering::Relaxed) {
                let before = told.swap(protected, Ordering::Relaxed);
                sum.fetch_add(protected.wrapping_sub(before), Ordering::Relaxed);
            }
        }
    }

    /// Adds to a statistic.
    #[inline]
    pub(crate) fn add_stat(&self, stat: Stat, delta: i64) {
        if let Some(count) = self.stats.get(stat as usize) {
            count.fetch_add(delta, Ordering::Relaxed);
        }
    }
}

/// What [`Slot::add`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// Added; the usage is this.
    Within(u64),
    /// Added, and more than the limit: to be taken back.
    Over,
}
