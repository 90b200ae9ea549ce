//! The lists of one group on one node, behind one lock.
//!
//! ```text
//! Vector ─┬─ lock ─▶ Inner: chains 0..8 (the policy's), chain 8 (unevictable); pages by zone; forward; policy
//!         ├─ counts  pages by kind, readable without the lock
//!         └─ shared  the policy's counters, likewise
//! ```

use kmem_gfp::ZoneKind;
use kmem_sync::IrqLock;
use kmem_sync::atomic::{AtomicI64, Ordering};

use super::chain::Chain;
use super::policy::Policy;
use crate::{GroupId, ListCounts};

/// Lists of a vector; the last holds what must stay.
pub(crate) const NR_LISTS: usize = 9;
/// The list of pages that must stay.
pub(crate) const UNEVICTABLE_LIST: usize = 8;

/// How pages are counted: the fields of [`ListCounts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// Anonymous, not recently used.
    InactiveAnon,
    /// Anonymous, recently used.
    ActiveAnon,
    /// File, not recently used.
    InactiveFile,
    /// File, recently used.
    ActiveFile,
    /// Must stay.
    Unevictable,
    /// Anonymous, taken off the lists.
    IsolatedAnon,
    /// File, taken off the lists.
    IsolatedFile,
}

const KINDS: usize = 7;

impl Kind {
    pub(crate) fn evictable(page: super::PageKind, active: bool) -> Self {
        match (page, active) {
            (super::PageKind::Anon, false) => Self::InactiveAnon,
            (super::PageKind::Anon, true) => Self::ActiveAnon,
            (super::PageKind::File, false) => Self::InactiveFile,
            (super::PageKind::File, true) => Self::ActiveFile,
        }
    }

    pub(crate) fn isolated(page: super::PageKind) -> Self {
        match page {
            super::PageKind::Anon => Self::IsolatedAnon,
            super::PageKind::File => Self::IsolatedFile,
        }
    }
}

/// Pages by kind, in pages. Signed, because the two halves of a move may be added in either order.
#[derive(Debug, Default)]
pub(crate) struct Counts([AtomicI64; KINDS]);

impl Counts {
    pub(crate) fn add(&self, kind: Kind, n: i64) {
        if let Some(count) = self.0.get(kind as usize) {
            count.fetch_add(n, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self, kind: Kind) -> u64 {
        self.0.get(kind as usize).map_or(0, |count| count.load(Ordering::Relaxed).max(0) as u64)
    }

    pub(crate) fn add_to(&self, sum: &mut ListCounts) {
        sum.inactive_anon += self.get(Kind::InactiveAnon);
        sum.active_anon += self.get(Kind::ActiveAnon);
        sum.inactive_file += self.get(Kind::InactiveFile);
        sum.active_file += self.get(Kind::ActiveFile);
        sum.unevictable += self.get(Kind::Unevictable);
        sum.isolated_anon += self.get(Kind::IsolatedAnon);
        sum.isolated_file += self.get(Kind::IsolatedFile);
    }
}

/// The counts of a node, by zone.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct NodeCounts(pub(crate) [Counts; ZoneKind::COUNT]);

/// What a section has moved, by zone and kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally([[i32; KINDS]; ZoneKind::COUNT]);

impl Tally {
    pub(crate) fn add(&mut self, zone: usize, kind: Kind, n: i32) {
        if let Some(count) = self.0.get_mut(zone).and_then(|zone| zone.get_mut(kind as usize)) {
            *count += n;
        }
    }

    /// Adds everything to the counts of a vector and of its node.
    pub(crate) fn flush(&self, vector: &Counts, node: Option<&NodeCounts>) {
        for (at, zone) in self.0.iter().enumerate() {
            let node = node.and_then(|node| node.0.get(at));
            for (kind, &n) in zone.iter().enumerate().filter(|(_, n)| **n != 0) {
                if let Some(count) = vector.0.get(kind) {
                    count.fetch_add(i64::from(n), Ordering::Relaxed);
                }
                if let Some(count) = node.and_then(|node| node.0.get(kind)) {
                    count.fetch_add(i64::from(n), Ordering::Relaxed);
                }
            }
        }
    }
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct Inner<P> {
    pub(crate) chains: [Chain; NR_LISTS],
    /// Pages of each list by zone.
    pub(crate) zones: [[u32; ZoneKind::COUNT]; NR_LISTS],
    /// The group that this one's pages have gone to.
    pub(crate) forward: Option<GroupId>,
    pub(crate) policy: P,
}

/// The lists of one group on one node.
#[derive(Debug)]
#[repr(align(64))]
pub struct Vector<P: Policy> {
    pub(crate) lock: IrqLock<Inner<P>>,
    pub(crate) counts: Counts,
    pub(crate) shared: P::Shared,
}

impl<P: Policy> Vector<P> {
    pub(crate) fn new() -> Self {
        Self {
            lock: IrqLock::new(Inner {
                chains: [Chain::default(); NR_LISTS],
                zones: [[0; ZoneKind::COUNT]; NR_LISTS],
                forward: None,
                policy: P::new(),
            }),
            counts: Counts::default(),
            shared: P::Shared::default(),
        }
    }
}
