//! The machine as memory cgroups see it: reclaim within a group, the killer, the page lists.

use kmem_gfp::{Gfp, NodeId, OomOutcome, Order};
use kmem_reclaim::memcg::{Event, MemcgEnv};
use kmem_reclaim::{GroupId, GroupReclaim, GroupReclaimer, ListCounts, PageLists, Zones};

use super::platform::ReclaimPlatform;
use super::side::ReclaimSide;

impl<P: ReclaimPlatform> MemcgEnv for ReclaimSide<P> {
    type Cpu = P::Cpu;
    type Context = P::Context;

    #[inline(always)]
    fn cpu(&self) -> &P::Cpu {
        self.platform().cpu()
    }
    #[inline(always)]
    fn context(&self) -> &P::Context {
        self.platform().context()
    }
    #[inline(always)]
    fn task_group(&self) -> GroupId {
        self.platform().task_group()
    }
    #[inline(always)]
    fn active_group(&self) -> Option<GroupId> {
        self.platform().active_group()
    }
    fn in_group_oom(&self) -> bool {
        self.platform().in_group_oom()
    }
    fn reclaim(&self, group: GroupId, pages: u64, gfp: Gfp) -> u64 {
        let (mm, how) = (self.mm(), GroupReclaim::default());
        let freed = mm.engine.reclaim_group(self.platform().context(), group, pages, gfp, how);
        if freed > 0 {
            return freed;
        }
        // The last pages may lie in other CPUs' batches.
        mm.lists.drain_all();
        mm.engine.reclaim_group(self.platform().context(), group, pages, gfp, how)
    }
    fn out_of_memory(&self, group: GroupId, gfp: Gfp, order: Order) -> OomOutcome {
        let mm = self.mm();
        let pages = order.nr_pages() as u64;
        let has_room = || mm.groups.usage(group).saturating_add(pages) <= mm.groups.max(group);
        let verdict = mm.killer.group_out_of_memory(group, gfp, order, has_room);
        verdict.outcome(|reason| self.platform().oom_panic(reason))
    }
    fn reparent(&self, group: GroupId, parent: GroupId) {
        self.mm().lists.reparent(group, parent);
    }
    fn forget(&self, group: GroupId) -> bool {
        self.mm().lists.open_group(group).is_ok()
    }
    fn add_backlog(&self, pages: u64) -> u64 {
        self.platform().add_backlog(pages)
    }
    fn take_backlog(&self) -> u64 {
        self.platform().take_backlog()
    }
    fn defer_high(&self, group: GroupId) {
        self.platform().defer_high(group);
    }
    fn sleep_ms(&self, ms: u64) {
        self.platform().sleep_ms(ms);
    }
    fn notify(&self, group: GroupId, event: Event) {
        self.platform().group_event(group, event);
    }
    fn list_counts(&self, group: GroupId) -> ListCounts {
        (0..self.nr_nodes())
            .map(NodeId)
            .fold(ListCounts::default(), |sum, node| plus(sum, self.mm().lists.group_counts(node, group)))
    }
}

/// The sum of two.
pub(super) fn plus(a: ListCounts, b: ListCounts) -> ListCounts {
    ListCounts {
        inactive_anon: a.inactive_anon.saturating_add(b.inactive_anon),
        active_anon: a.active_anon.saturating_add(b.active_anon),
        inactive_file: a.inactive_file.saturating_add(b.inactive_file),
        active_file: a.active_file.saturating_add(b.active_file),
        unevictable: a.unevictable.saturating_add(b.unevictable),
        isolated_anon: a.isolated_anon.saturating_add(b.isolated_anon),
        isolated_file: a.isolated_file.saturating_add(b.isolated_file),
    }
}
