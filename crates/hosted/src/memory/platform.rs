//! A machine in this process as [`ReclaimPlatform`].

use core::ops::ControlFlow;

use kmem::ReclaimPlatform;
use kmem::reclaim::GroupId;
use kmem::reclaim::lru::{OwnerId, PageOwner};
use kmem::reclaim::oom::{Candidate, OomScope};
use kmem_gfp::{NodeId, Order, ZoneKind};
use kmem_sync::atomic::Ordering;

use super::park::HostPark;
use super::task;
use crate::host::Host;
use crate::{HostCpu, sys};

impl ReclaimPlatform for Host<HostCpu> {
    type Park = HostPark;

    fn park(&self) -> &HostPark {
        &HostPark
    }
    fn page_owner(&self, id: OwnerId) -> Option<&dyn PageOwner> {
        self.memory.get()?.owner(id)
    }
    fn swap_free_pages(&self) -> u64 {
        self.memory.get().and_then(|memory| memory.swap()).map_or(0, |swap| swap.free_pages())
    }
    fn swap_total_pages(&self) -> u64 {
        self.memory.get().and_then(|memory| memory.swap()).map_or(0, |swap| swap.total_pages())
    }
    fn wake_compaction(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        self.reclaimer.wake_compactor(node, order, ceiling);
    }
    fn now_us(&self) -> u64 {
        sys::now_us()
    }
    fn task_group(&self) -> GroupId {
        task::current().map_or(GroupId::ROOT, |task| task.group())
    }
    fn in_group_oom(&self) -> bool {
        task::current().is_some_and(|task| task.mark.is_skipped())
    }
    fn add_backlog(&self, pages: u64) -> u64 {
        task::current().map_or(0, |task| task.backlog.fetch_add(pages, Ordering::Relaxed) + pages)
    }
    fn take_backlog(&self) -> u64 {
        task::current().map_or(0, |task| task.backlog.swap(0, Ordering::Relaxed))
    }
    fn sleep_ms(&self, ms: u64) {
        std::thread::sleep(core::time::Duration::from_millis(ms));
    }
    fn for_each_candidate(&self, _scope: OomScope, visit: &mut dyn FnMut(&Candidate<'_>) -> ControlFlow<()>) {
        let Some(memory) = self.memory.get() else { return };
        for task in memory.tasks.iter() {
            if visit(&task.candidate()).is_break() {
                return;
            }
        }
    }
    fn current_candidate(&self, see: &mut dyn FnMut(&Candidate<'_>)) {
        if let Some(task) = task::current() {
            see(&task.candidate());
        }
    }
    fn kill(&self, candidate: &Candidate<'_>) {
        if let Some(task) = self.memory.get().and_then(|memory| memory.tasks.find(candidate.id)) {
            task.kill();
        }
    }
    fn reap(&self, victim: &Candidate<'_>) -> bool {
        let task = self.memory.get().and_then(|memory| memory.tasks.find(victim.id));
        task.is_some_and(|task| task.reap())
    }
}
