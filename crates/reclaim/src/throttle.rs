//! Sleeps inside reclaim: when going on at once would only burn time.
//!
//! | reason | for | ends early |
//! | --- | --- | --- |
//! | writeback | 100 ms | [`Reclaim::note_writeback_done`] |
//! | isolated | 20 ms | a run on the node ends |
//! | no progress, congested | a tick | somebody frees more than an eighth of what he looks at |

use kmem_gfp::{AllocContext, NodeId, TaskFlags};

use crate::engine::Reclaim;
use crate::env::ReclaimEnv;
use crate::events::ReclaimEvent;
use crate::wait::Wait;
use crate::{ListCounts, PageLists, Scan};

/// Why a run sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Throttle {
    /// The lists are full of pages under writeback.
    Writeback,
    /// Other runs have taken too many pages off the lists.
    Isolated,
    /// Nothing could be freed.
    NoProgress,
    /// The lists are full of dirty pages.
    Congested,
}

impl Throttle {
    pub(crate) const COUNT: usize = 4;

    const fn event(self) -> ReclaimEvent {
        match self {
            Self::Writeback => ReclaimEvent::ThrottleWriteback,
            Self::Isolated => ReclaimEvent::ThrottleIsolated,
            Self::NoProgress => ReclaimEvent::ThrottleNoProgress,
            Self::Congested => ReclaimEvent::ThrottleCongested,
        }
    }

    pub(crate) const fn ms(self, tick: u64) -> u64 {
        match self {
            Self::Writeback => 100,
            Self::Isolated => 20,
            Self::NoProgress | Self::Congested => tick,
        }
    }
}

/// Whether other runs hold so many pages that this one had better wait: more than lie on the inactive lists, or an eighth
/// of those if the caller could do everything with them itself. Pure.
pub(crate) fn too_many_isolated(counts: ListCounts, has_io_and_fs: bool) -> bool {
    let isolated = counts.isolated_anon.saturating_add(counts.isolated_file);
    let inactive = counts.inactive_anon.saturating_add(counts.inactive_file);
    let bound = if has_io_and_fs { inactive >> 3 } else { inactive };
    isolated > bound
}

impl<E: ReclaimEnv> Reclaim<E> {
    /// Sleeps for a reason. Kernel threads only let others run.
    pub(crate) fn throttle(&self, context: &dyn AllocContext, node: NodeId, why: Throttle) {
        let Some(state) = self.node(node) else { return };
        if context.task_flags().contains(TaskFlags::KTHREAD) || (why == Throttle::NoProgress && state.is_hopeless()) {
            context.yield_now();
            return;
        }
        let Some(queue) = state.naps.get(why as usize) else { return };
        state.events.add(why.event(), 1);
        let wait = Wait::for_ms(why.ms(self.env().tick_ms().max(1)));
        queue.wait(self.env().park(), context, queue.sequence(), wait);
    }

    /// Ends the sleeps on a node that are there for this reason.
    pub(crate) fn end_throttle(&self, node: NodeId, why: Throttle) {
        if let Some(queue) = self.node(node).and_then(|state| state.naps.get(why as usize))
            && queue.has_sleepers()
        {
            queue.wake(self.env().park());
        }
    }

    /// Pages of a node have been written back: runs that wait for that go on. Any context; never sleeps.
    pub fn note_writeback_done(&self, node: NodeId) {
        self.end_throttle(node, Throttle::Writeback);
    }

    /// Waits while other runs hold too many pages of a node; `false` if they still do after one sleep: leave the node alone
    /// in this pass. A fatal signal ends the wait.
    pub(crate) fn wait_for_isolated(&self, node: NodeId, scan: &Scan<'_>) -> bool {
        let eager = scan.limits.gfp.contains(kmem_gfp::Gfp::IO | kmem_gfp::Gfp::FS);
        let crowded = || too_many_isolated(self.env().lists().counts(node, None), eager);
        if !crowded() {
            return true;
        }
        self.throttle(scan.context, node, Throttle::Isolated);
        !crowded()
    }

    /// After a pass over all nodes at one priority: who is doing well wakes the others, who is not sleeps.
    pub(crate) fn consider_throttle(&self, node: NodeId, scan: &Scan<'_>, is_global: bool) {
        if scan.reclaimed > scan.scanned >> 3 {
            self.end_throttle(node, Throttle::NoProgress);
            self.end_throttle(node, Throttle::Congested);
            return;
        }
        if is_global && !scan.limits.background && scan.priority == 1 && scan.reclaimed == 0 {
            self.throttle(scan.context, node, Throttle::NoProgress);
        }
    }
}
