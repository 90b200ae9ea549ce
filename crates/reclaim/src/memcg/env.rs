//! What memory cgroups take from their surroundings.
//!
//! ```text
//! Memcg<E> ──▶ E: MemcgEnv ─┬─ cpu(), context()              which CPU, which task flags, the clock
//!                           ├─ task_group(), active_group()  who pays
//!                           ├─ reclaim(), out_of_memory()    what to do at a limit
//!                           ├─ add_backlog(), sleep_ms()     memory.high
//!                           └─ reparent(), list_counts()     the page lists
//! ```

use kmem_gfp::{AllocContext, Gfp, OomOutcome, Order};
use kmem_sync::Cpu;

use crate::memcg::Event;
use crate::{GroupId, ListCounts};

/// The platform of a [`Memcg`](crate::memcg::Memcg).
///
/// Methods are called in the context of the charge unless they say otherwise; those that may sleep only where the request
/// may.
pub trait MemcgEnv {
    /// The CPUs.
    type Cpu: Cpu;
    /// The running task and context.
    type Context: AllocContext;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// The running task and context.
    fn context(&self) -> &Self::Context;

    /// The group of the running task. The platform keeps a group that has tasks.
    fn task_group(&self) -> GroupId;

    /// The group that pays instead, if one has been named: by the running task in task context, for this CPU in interrupts
    /// (`set_active_memcg`).
    #[inline(always)]
    fn active_group(&self) -> Option<GroupId> {
        None
    }

    /// Whether the running task is in a memory-cgroup OOM already, or is a victim whose memory has all been reaped: its
    /// charges are refused without trying.
    fn in_group_oom(&self) -> bool {
        false
    }

    /// Frees about `pages` pages in the subtree of `group`; returns how many were freed. May sleep.
    fn reclaim(&self, group: GroupId, pages: u64, gfp: Gfp) -> u64;

    /// Has something in the subtree of `group` killed. May sleep. Never asked above order 3 (O-15).
    fn out_of_memory(&self, group: GroupId, gfp: Gfp, order: Order) -> OomOutcome {
        let _ = (group, gfp, order);
        OomOutcome::NoVictim
    }

    /// Moves what the page lists hold of `group` to `parent` (`PageLists::reparent`). May sleep. When it returns no page
    /// lies on a list of `group`, and none will.
    fn reparent(&self, group: GroupId, parent: GroupId) {
        let _ = (group, parent);
    }

    /// Whether no page that bears the number of a gone group is in anybody's hands, so that the lists may take the number for
    /// another group (`Lists::open_group` succeeds). Asked until it says so; till then the number is not given out. May
    /// sleep.
    fn forget(&self, group: GroupId) -> bool {
        let _ = group;
        true
    }

    /// Adds to the pages that the running task has charged above `memory.high` and not answered for, and returns the sum.
    /// The platform calls [`handle_over_high`](crate::memcg::Memcg::handle_over_high) before the task returns to user space.
    fn add_backlog(&self, pages: u64) -> u64 {
        let _ = pages;
        0
    }

    /// Takes what [`add_backlog`](Self::add_backlog) has gathered.
    fn take_backlog(&self) -> u64 {
        0
    }

    /// A charge in an interrupt left `group` above its high limit: somebody else has to reclaim (a work item that calls
    /// [`reclaim_high`](crate::memcg::Memcg::reclaim_high)). Any context.
    fn defer_high(&self, group: GroupId) {
        let _ = group;
    }

    /// Sleeps, unless a fatal signal arrives.
    fn sleep_ms(&self, ms: u64) {
        let _ = ms;
    }

    /// An event has been counted in `group`: wake who polls `memory.events`. Not called for any-context charges (A-09).
    fn notify(&self, group: GroupId, event: Event) {
        let _ = (group, event);
    }

    /// What lies on the page lists of `group` itself, over all nodes; for `memory.stat`.
    fn list_counts(&self, group: GroupId) -> ListCounts {
        let _ = group;
        ListCounts::default()
    }
}

impl<T: MemcgEnv> MemcgEnv for &T {
    type Cpu = T::Cpu;
    type Context = T::Context;

    #[inline(always)]
    fn cpu(&self) -> &Self::Cpu {
        (**self).cpu()
    }
    #[inline(always)]
    fn context(&self) -> &Self::Context {
        (**self).context()
    }
    #[inline(always)]
    fn task_group(&self) -> GroupId {
        (**self).task_group()
    }
    #[inline(always)]
    fn active_group(&self) -> Option<GroupId> {
        (**self).active_group()
    }
    fn in_group_oom(&self) -> bool {
        (**self).in_group_oom()
    }
    fn reclaim(&self, group: GroupId, pages: u64, gfp: Gfp) -> u64 {
        (**self).reclaim(group, pages, gfp)
    }
    fn out_of_memory(&self, group: GroupId, gfp: Gfp, order: Order) -> OomOutcome {
        (**self).out_of_memory(group, gfp, order)
    }
    fn reparent(&self, group: GroupId, parent: GroupId) {
        (**self).reparent(group, parent);
    }
    fn forget(&self, group: GroupId) -> bool {
        (**self).forget(group)
    }
    fn add_backlog(&self, pages: u64) -> u64 {
        (**self).add_backlog(pages)
    }
    fn take_backlog(&self) -> u64 {
        (**self).take_backlog()
    }
    fn defer_high(&self, group: GroupId) {
        (**self).defer_high(group);
    }
    fn sleep_ms(&self, ms: u64) {
        (**self).sleep_ms(ms);
    }
    fn notify(&self, group: GroupId, event: Event) {
        (**self).notify(group, event);
    }
    fn list_counts(&self, group: GroupId) -> ListCounts {
        (**self).list_counts(group)
    }
}
