//! A shrinker and all that reclaim keeps about it, in memory of whoever registers it.

use core::fmt;
use core::ptr::NonNull;

use kmem_gfp::{Gfp, NodeId};
use kmem_sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use kmem_sync::{UnsafeCell, const_fn};

use super::Shrinker;
use super::formula::{DEFAULT_BATCH, DEFAULT_SEEKS};
use crate::GroupId;

/// Whether a slot is on a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// On none.
    Free,
    /// Its callbacks may run.
    Live,
    /// On its way out: no new callback begins.
    Dying,
}

/// What belongs to the list that a slot is on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) next: Option<NonNull<ShrinkerSlot<'static>>>,
    pub(super) state: State,
    /// Walkers that are at this slot.
    pub(super) walkers: u32,
}

/// A [`Shrinker`] with its weight and awareness, ready to be [registered](super::Shrinkers).
///
/// By default it is asked once per node with node 0, for global reclaim only, in batches of 128, with 2 seeks. Objects that
/// should have been scanned and were not are remembered: in one word by default, per node or per (group, node) in words that
/// the caller supplies.
///
/// ```
/// use kmem_reclaim::{ShrinkControl, ShrinkCount, ShrinkScan, Shrinker, ShrinkerSlot};
/// use kmem_gfp::Gfp;
///
/// struct Dentries;
/// impl Shrinker for Dentries {
///     fn count_objects(&self, _: &ShrinkControl<'_>) -> ShrinkCount { ShrinkCount::Objects(100) }
///     fn scan_objects(&self, _: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
///         ShrinkScan::Scanned { freed: nr, scanned: nr }
///     }
/// }
/// static DENTRIES: ShrinkerSlot<'static> = ShrinkerSlot::new("dentries", &Dentries).needing(Gfp::FS).with_seeks(4);
/// assert_eq!(DENTRIES.name(), "dentries");
/// ```
///
/// # Invariants
/// While `link.state` is not `Free` the slot is on exactly one list, whose lock guards `link`.
#[doc(alias = "shrinker_alloc")]
pub struct ShrinkerSlot<'s> {
    name: &'s str,
    shrinker: &'s dyn Shrinker,
    seeks: u32,
    batch: u64,
    needs: Gfp,
    nonslab: bool,
    awareness: Awareness<'s>,
    /// Deferred work of a shrinker that tells nothing apart.
    deferred: AtomicU64,
    /// Whether the slot is on a list, or about to be.
    pub(super) claimed: AtomicBool,
    pub(super) link: UnsafeCell<Link>,
}

/// What a shrinker tells apart.
#[derive(Clone, Copy)]
enum Awareness<'s> {
    Nothing,
    Nodes { deferred: &'s [AtomicU64] },
    Groups { nr_nodes: u32, deferred: &'s [AtomicU64], filled: &'s [AtomicU64] },
}

// SAFETY: `link` is touched only under the lock of the registry the slot is on (type invariant); all else is `Sync`.
unsafe impl Sync for ShrinkerSlot<'_> {}
// SAFETY: the parts may be used from any thread (`Shrinker: Sync`), and a slot that is on a list is borrowed or pinned.
unsafe impl Send for ShrinkerSlot<'_> {}

impl<'s> ShrinkerSlot<'s> {
    const_fn! {
        /// A slot for `shrinker` with the defaults. The name is for reports.
        pub fn new(name: &'s str, shrinker: &'s dyn Shrinker) -> Self {
            Self {
                name,
                shrinker,
                seeks: DEFAULT_SEEKS,
                batch: DEFAULT_BATCH,
                needs: Gfp::empty(),
                nonslab: false,
                awareness: Awareness::Nothing,
                deferred: AtomicU64::new(0),
                claimed: AtomicBool::new(false),
                link: UnsafeCell::new(Link { next: None, state: State::Free, walkers: 0 }),
            }
        }
    }

    /// Asks for `batch` objects at a time; 0 for the default.
    #[must_use]
    pub const fn with_batch(mut self, batch: u64) -> Self {
        self.batch = if batch == 0 { DEFAULT_BATCH } else { batch };
        self
    }

    /// What it costs to make an object again; 0: nothing, so that half of the objects go in each pass.
    #[must_use]
    pub const fn with_seeks(mut self, seeks: u32) -> Self {
        self.seeks = seeks;
        self
    }

    /// The shrinker is not called at all for requests that lack one of these flags: [`Gfp::FS`] for one that enters a
    /// filesystem, [`Gfp::IO`] for one that starts I/O.
    #[must_use]
    pub const fn needing(mut self, flags: Gfp) -> Self {
        self.needs = flags;
        self
    }

    /// The objects do not come from slab caches: they are asked for in groups even where kernel memory is not accounted.
    #[doc(alias = "SHRINKER_NONSLAB")]
    #[must_use]
    pub const fn nonslab(mut self) -> Self {
        self.nonslab = true;
        self
    }

    /// The shrinker tells nodes apart; `deferred` has a zeroed word for each.
    #[doc(alias = "SHRINKER_NUMA_AWARE")]
    #[must_use]
    pub fn numa_aware(mut self, deferred: &'s [AtomicU64]) -> Self {
        self.awareness = Awareness::Nodes { deferred };
        self
    }

    /// The shrinker tells groups (and nodes) apart. `deferred` has a zeroed word for each group and node (index `group x
    /// nr_nodes + node`), `filled` a zeroed bit: whether there may be objects. A group beyond their end is always asked and
    /// has nothing deferred.
    #[doc(alias = "SHRINKER_MEMCG_AWARE")]
    #[must_use]
    pub fn memcg_aware(mut self, nr_nodes: u32, deferred: &'s [AtomicU64], filled: &'s [AtomicU64]) -> Self {
        self.awareness = Awareness::Groups { nr_nodes, deferred, filled };
        self
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        self.name
    }

    pub(crate) fn shrinker(&self) -> &dyn Shrinker {
        self.shrinker
    }

    pub(super) const fn seeks(&self) -> u32 {
        self.seeks
    }

    pub(super) const fn batch(&self) -> u64 {
        self.batch
    }

    /// Whether a run with these flags may call it.
    pub(super) const fn serves(&self, gfp: Gfp) -> bool {
        gfp.contains(self.needs)
    }

    pub(super) const fn is_memcg_aware(&self) -> bool {
        matches!(self.awareness, Awareness::Groups { .. })
    }

    pub(super) const fn is_nonslab(&self) -> bool {
        self.nonslab
    }

    /// The node that the callbacks are told.
    pub(super) const fn node_told(&self, node: NodeId) -> NodeId {
        match self.awareness {
            Awareness::Nothing => NodeId(0),
            Awareness::Nodes { .. } | Awareness::Groups { .. } => node,
        }
    }

    fn index(nr_nodes: u32, node: NodeId, group: GroupId) -> Option<usize> {
        if node.0 >= nr_nodes {
            return None;
        }
        (group.0 as usize).checked_mul(nr_nodes as usize)?.checked_add(node.index())
    }

    fn deferred_word(&self, node: NodeId, group: GroupId) -> Option<&AtomicU64> {
        match self.awareness {
            Awareness::Nothing => Some(&self.deferred),
            Awareness::Nodes { deferred } => deferred.get(node.index()),
            Awareness::Groups { nr_nodes, deferred, .. } => deferred.get(Self::index(nr_nodes, node, group)?),
        }
    }

    /// Takes the deferred work, so that nobody else does it too (R-37).
    pub(super) fn take_deferred(&self, node: NodeId, group: GroupId) -> u64 {
        self.deferred_word(node, group).map_or(0, |word| word.swap(0, Ordering::Relaxed))
    }

    /// Adds to the deferred work. Several passes that add back may get it over what one of them may (R-39).
    pub(super) fn defer(&self, node: NodeId, group: GroupId, nr: u64) {
        if let Some(word) = self.deferred_word(node, group)
            && nr > 0
        {
            word.fetch_add(nr, Ordering::Relaxed);
        }
    }

    /// Objects that earlier passes have left for later.
    pub fn nr_deferred(&self, node: NodeId, group: GroupId) -> u64 {
        self.deferred_word(node, group).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    fn filled_bit(&self, node: NodeId, group: GroupId) -> Option<(&AtomicU64, u64)> {
        let Awareness::Groups { nr_nodes, filled, .. } = self.awareness else { return None };
        let index = Self::index(nr_nodes, node, group)?;
        Some((filled.get(index / 64)?, 1 << (index % 64)))
    }

    /// Whether there may be objects (R-41).
    pub(super) fn is_filled(&self, node: NodeId, group: GroupId) -> bool {
        self.filled_bit(node, group).is_none_or(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// The shrinker has said that it is empty. If this returns `true`, look again: an object added before the bit was cleared
    /// is seen then.
    pub(super) fn clear_filled(&self, node: NodeId, group: GroupId) -> bool {
        let Some((word, bit)) = self.filled_bit(node, group) else { return false };
        word.fetch_and(!bit, Ordering::AcqRel);
        // Pairs with the fence in `note_objects`: either that sees the bit cleared, or the second look sees the object.
        fence(Ordering::SeqCst);
        true
    }

    /// A shrinker that tells groups apart has got an object, which is visible to its callbacks already: it must be asked again.
    /// Any context; a fence and a load while the bit is set.
    #[doc(alias = "set_shrinker_bit")]
    pub fn note_objects(&self, node: NodeId, group: GroupId) {
        if let Some((word, bit)) = self.filled_bit(node, group) {
            fence(Ordering::SeqCst);
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::AcqRel);
            }
        }
    }
}

impl fmt::Debug for ShrinkerSlot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShrinkerSlot")
            .field("name", &self.name)
            .field("seeks", &self.seeks)
            .field("batch", &self.batch)
            .field("nonslab", &self.nonslab)
            .finish_non_exhaustive()
    }
}
