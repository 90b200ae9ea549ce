//! [`ReclaimPlatform`]: what reclaim needs from the machine besides its allocators.

use core::fmt;
use core::ops::ControlFlow;

use kmem_gfp::{NodeId, Order, Pfn, ZoneKind};
use kmem_reclaim::lru::{OwnerId, PageOwner};
use kmem_reclaim::oom::{Candidate, OomScope, PanicReason};
use kmem_reclaim::{GroupId, Park, PressureLevel, memcg};

use crate::Platform;

/// A platform with reclaim: page owners, tasks, groups, a way to sleep.
///
/// Apart from [`park`](Self::park) and [`page_owner`](Self::page_owner) everything has a default that is right for a machine
/// without that part: no swap, one group, nobody to kill. Such a platform forwards these methods of [`Platform`] to its
/// [`Mm`](crate::Mm): `background_running`, `reclaim_node`, `charge`, `uncharge`, `high_mark_restored`, `movable_owner`,
/// `reclaim_counter`, `reclaim_event`.
///
/// **Contexts:** as the methods of the traits of `kmem-reclaim` behind them say; none allocates from this machine.
pub trait ReclaimPlatform: Platform {
    /// How a task sleeps.
    type Park: Park;

    /// How a task sleeps.
    fn park(&self) -> &Self::Park;

    /// Whom pages belong to. `None` if there is no such owner (any more).
    fn page_owner(&self, id: OwnerId) -> Option<&dyn PageOwner>;

    /// Free pages of swap.
    fn swap_free_pages(&self) -> u64 {
        0
    }

    /// All pages of swap.
    fn swap_total_pages(&self) -> u64 {
        0
    }

    /// Walks the page tables of a group for accessed marks; see [`LruEnv::walk_accessed`](kmem_reclaim::lru::LruEnv).
    fn walk_accessed(&self, node: NodeId, group: GroupId, young: &mut dyn FnMut(Pfn)) {
        let _ = (node, group, young);
    }

    /// A monotonic clock in microseconds, for stalls.
    fn now_us(&self) -> u64 {
        use kmem_gfp::AllocContext;
        self.context().now_ms().saturating_mul(1000)
    }

    /// Wakes the node's background compaction ([`Kcompactd::wake`](kmem_buddy::Kcompactd::wake)). Never sleeps.
    fn wake_compaction(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        let _ = (node, order, ceiling);
    }

    /// A window of scanned pages is full, and this is how hard it was.
    fn pressure(&self, group: GroupId, level: PressureLevel) {
        let _ = (group, level);
    }

    /// The group of the running task.
    fn task_group(&self) -> GroupId {
        GroupId::ROOT
    }

    /// The group that pays instead, if one has been named (`set_active_memcg`).
    #[inline(always)]
    fn active_group(&self) -> Option<GroupId> {
        None
    }

    /// Whether charges of the running task are refused without trying.
    fn in_group_oom(&self) -> bool {
        false
    }

    /// Adds to the pages that the running task has charged above `memory.high`; returns the sum.
    fn add_backlog(&self, pages: u64) -> u64 {
        let _ = pages;
        0
    }

    /// Takes that sum.
    fn take_backlog(&self) -> u64 {
        0
    }

    /// A charge in an interrupt left a group above its high limit.
    fn defer_high(&self, group: GroupId) {
        let _ = group;
    }

    /// Sleeps, unless a fatal signal arrives.
    fn sleep_ms(&self, ms: u64) {
        let _ = ms;
    }

    /// An event has been counted in a group.
    fn group_event(&self, group: GroupId, event: memcg::Event) {
        let _ = (group, event);
    }

    /// Visits those that could be killed; see [`OomEnv::for_each`](kmem_reclaim::oom::OomEnv::for_each).
    fn for_each_candidate(&self, scope: OomScope, visit: &mut dyn FnMut(&Candidate<'_>) -> ControlFlow<()>) {
        let _ = (scope, visit);
    }

    /// Shows the running task as a candidate, if it is one.
    fn current_candidate(&self, see: &mut dyn FnMut(&Candidate<'_>)) {
        let _ = see;
    }

    /// Sends a fatal signal to all threads of a candidate.
    fn kill(&self, candidate: &Candidate<'_>) {
        let _ = candidate;
    }

    /// Takes a victim's private memory away; `false` if that cannot be done now.
    fn reap(&self, victim: &Candidate<'_>) -> bool {
        let _ = victim;
        false
    }

    /// Carries out a verdict to stop the machine. If it returns, the request fails.
    fn oom_panic(&self, reason: PanicReason) {
        let _ = reason;
    }

    /// Lines of the platform's own for the report of a shortage.
    fn memory_lines(&self, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
        let _ = line;
    }
}
