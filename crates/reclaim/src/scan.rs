//! One run of reclaim: what it may do, what it has done so far, and the lists it does it to.
//!
//! The engine makes a [`Scan`], lowers its priority step by step, and hands it to [`PageLists::shrink`] for every
//! (node, group) on the way; the lists add to its counters.

use kmem_gfp::{AllocContext, Gfp, NodeId, Order, ZoneKind};

use crate::{GroupId, Protection};

/// How eagerly anonymous pages are taken in comparison with file pages: 0..=200, or nothing but anonymous pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swappiness {
    /// 0: file pages only while there are any; 100: both alike; 200: anonymous pages only while there are any.
    Share(u8),
    /// Anonymous pages only (`swappiness=max` of proactive reclaim).
    AnonOnly,
}

impl Default for Swappiness {
    /// 60.
    fn default() -> Self {
        Self::Share(60)
    }
}

/// What a run may do.
#[derive(Clone, Copy, Debug)]
pub struct ScanLimits {
    /// The flags of the request that the run serves: decides whether it may start I/O or enter a filesystem.
    pub gfp: Gfp,
    /// Its order.
    pub order: Order,
    /// Pages of zones above this one do not help.
    pub ceiling: ZoneKind,
    /// Pages to free.
    pub target: u64,
    /// The group whose subtree is reclaimed; [`GroupId::ROOT`] for the whole machine.
    pub root: GroupId,
    /// Whether the run is a background run (kswapd), which is throttled by nothing.
    pub background: bool,
    /// Whether pages may be written back. Boost reclaim may not.
    pub may_write: bool,
    /// Whether pages that are mapped may be unmapped.
    pub may_unmap: bool,
    /// Whether anonymous pages may go to swap.
    pub may_swap: bool,
    /// For groups without their own.
    pub swappiness: Swappiness,
}

/// A run of reclaim: its limits, its position, its outcome so far.
pub struct Scan<'a> {
    /// What it may do.
    pub limits: ScanLimits,
    /// The running context.
    pub context: &'a dyn AllocContext,
    /// A pass looks at `size >> priority` pages of each list: 12 at first, 0 in despair.
    pub priority: u8,
    /// Pages looked at.
    pub scanned: u64,
    /// Pages freed.
    pub reclaimed: u64,
    /// Pages that were dirty and could not be written by this run.
    pub dirty: u64,
    /// Pages found under writeback.
    pub writeback: u64,
    /// Whether groups were passed over because of their `low` protection: a further run may then go below it.
    pub skipped_low: bool,
    /// Go below `low` (never below `min`): all else failed.
    pub below_low: bool,
    /// Whether active pages were spared although a pass freed nothing.
    pub spared_active: bool,
    /// Deactivate active pages, whatever the balance says.
    pub force_deactivate: bool,
    /// Walk every group to the end instead of stopping at the target.
    pub full_walk: bool,
    /// Whether nobody is short of memory: the run was asked for ahead of time.
    pub proactive: bool,
    /// A swappiness asked for by name: goes before the groups' own.
    pub swappiness: Option<Swappiness>,
}

impl<'a> Scan<'a> {
    /// The priority that every run begins at.
    pub const FIRST_PRIORITY: u8 = 12;

    /// A run that has done nothing yet.
    pub fn new(limits: ScanLimits, context: &'a dyn AllocContext) -> Self {
        Self {
            limits,
            context,
            priority: Self::FIRST_PRIORITY,
            scanned: 0,
            reclaimed: 0,
            dirty: 0,
            writeback: 0,
            skipped_low: false,
            below_low: false,
            spared_active: false,
            force_deactivate: false,
            full_walk: false,
            proactive: false,
            swappiness: None,
        }
    }

    /// The swappiness for a group that has `own`: the one asked for by name, the group's, the machine's.
    pub fn swappiness_for(&self, own: Option<u8>) -> Swappiness {
        self.swappiness.or(own.map(Swappiness::Share)).unwrap_or(self.limits.swappiness)
    }

    /// Whether the target is reached.
    pub fn is_done(&self) -> bool {
        self.reclaimed >= self.limits.target
    }
}

impl core::fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Scan")
            .field("limits", &self.limits)
            .field("priority", &self.priority)
            .field("scanned", &self.scanned)
            .field("reclaimed", &self.reclaimed)
            .finish_non_exhaustive()
    }
}

/// How many pages are where, in pages. Sums may be transiently off by pages in motion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListCounts {
    /// Anonymous pages, not recently used.
    pub inactive_anon: u64,
    /// Anonymous pages, recently used.
    pub active_anon: u64,
    /// File pages, not recently used.
    pub inactive_file: u64,
    /// File pages, recently used.
    pub active_file: u64,
    /// Pages that must stay.
    pub unevictable: u64,
    /// Anonymous pages taken off the lists by a run.
    pub isolated_anon: u64,
    /// File pages taken off the lists by a run.
    pub isolated_file: u64,
}

/// The pages that reclaim may take, by node and group: generations, the classic lists, or a toy.
///
/// Called by runs of reclaim only: where the request may sleep, or on a background thread; several at once.
pub trait PageLists: Sync {
    /// One pass over the pages of `group` on `node`, at the run's priority: looks at its share of the lists (R-23, less
    /// what `protection` leaves alone, R-45), frees what it can, and adds to the run's counters.
    fn shrink(&self, node: NodeId, group: GroupId, protection: Protection, scan: &mut Scan<'_>);

    /// Ages the pages of `group` on `node` if that is due: the background run's first step.
    fn age(&self, node: NodeId, group: GroupId, scan: &mut Scan<'_>);

    /// What lies on a node's lists, in one zone or in all, over all groups. Any context.
    fn counts(&self, node: NodeId, zone: Option<ZoneKind>) -> ListCounts;

    /// What lies on the lists of one group on a node. Any context.
    fn group_counts(&self, node: NodeId, group: GroupId) -> ListCounts;

    /// Moves every page of `group` to `parent`: the group goes away. Several calls may run at once.
    fn reparent(&self, group: GroupId, parent: GroupId);
}
