//! One pass over a node: every group's lists, then the shrinkers, at the run's priority.

use kmem_gfp::NodeId;

use crate::engine::Reclaim;
use crate::env::ReclaimEnv;
use crate::throttle::Throttle;
use crate::{GroupId, Groups, PageLists, Protection, Scan};

/// What a pass may do with a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Reclaim from it.
    Shrink,
    /// It is below its `min`.
    Never,
    /// It is below its `low`, which this pass respects.
    NotYet,
}

/// Pure.
pub(crate) fn turn(protection: Protection, below_low: bool) -> Turn {
    let Protection { min, low, usage } = protection;
    if min > 0 && usage <= min {
        Turn::Never
    } else if low > 0 && usage <= low && !below_low {
        Turn::NotYet
    } else {
        Turn::Shrink
    }
}

impl<E: ReclaimEnv> Reclaim<E> {
    /// Shrinks the groups of a node below the run's root. A run that may stop early does so at its target, and the next one
    /// goes on where it stopped.
    pub(crate) fn shrink_node(&self, node: NodeId, scan: &mut Scan<'_>) {
        let root = scan.limits.root;
        let (scanned, reclaimed, dirty, writeback) = (scan.scanned, scan.reclaimed, scan.dirty, scan.writeback);
        let partial = !scan.limits.background && !scan.full_walk;
        self.walk(node, root, partial, &mut |group| {
            let protection = self.env().groups().protection(root, group);
            // The target of a run has no protection against it.
            let turn = if group == root { Turn::Shrink } else { turn(protection, scan.below_low) };
            match turn {
                Turn::Never => return false,
                Turn::NotYet => {
                    scan.skipped_low = true;
                    return false;
                }
                Turn::Shrink => {}
            }
            self.env().lists().shrink(node, group, protection, scan);
            let freed = self.shrink_slab(node, group, scan.priority, scan.limits.gfp, scan.context);
            scan.reclaimed = scan.reclaimed.saturating_add(freed);
            scan.is_done()
        });
        let scanned = scan.scanned.saturating_sub(scanned);
        let reclaimed = scan.reclaimed.saturating_sub(reclaimed);
        if !scan.proactive {
            self.note_pressure(root, scan.limits.gfp, scanned, reclaimed);
        }
        if reclaimed > 0 {
            self.clear_hopeless_if_balanced(node, scan.limits.order, scan.limits.ceiling);
        }
        if !scan.limits.background && root == GroupId::ROOT && reclaimed == 0 && scanned > 0 {
            if scan.writeback.saturating_sub(writeback) >= scanned {
                self.throttle(scan.context, node, Throttle::Writeback);
            } else if scan.dirty.saturating_sub(dirty) >= scanned {
                self.throttle(scan.context, node, Throttle::Congested);
            }
        }
        self.end_throttle(node, Throttle::Isolated);
    }

    /// Calls `visit` for each group of the subtree once, until it returns `true` if the walk is partial.
    fn walk(&self, node: NodeId, root: GroupId, partial: bool, visit: &mut dyn FnMut(GroupId) -> bool) {
        let groups = self.env().groups();
        let state = self.node(node);
        let start = if partial { state.and_then(|state| state.cursor(root)) } else { None };
        // From behind the cursor to the end, then from the root up to the cursor.
        let legs = [(start, None), (None, start)];
        for (from, to) in legs.into_iter().take(if start.is_some() { 2 } else { 1 }) {
            let mut at = groups.next_in_subtree(root, from);
            while let Some(group) = at {
                if visit(group) && partial {
                    if let Some(state) = state {
                        state.set_cursor(root, Some(group));
                    }
                    return;
                }
                if Some(group) == to {
                    break;
                }
                at = groups.next_in_subtree(root, Some(group));
            }
        }
        if partial && let Some(state) = state {
            state.set_cursor(root, None);
        }
    }

    /// Adds a pass to the pressure gauges.
    pub(crate) fn note_pressure(&self, root: GroupId, gfp: kmem_gfp::Gfp, scanned: u64, reclaimed: u64) {
        if let Some(gauge) = self.gauge(root)
            && let Some(level) = gauge.note(self.env().cpu(), gfp, scanned, reclaimed)
        {
            self.env().pressure(root, level);
        }
    }

    /// Tells the gauge how deep a run has come.
    pub(crate) fn note_priority(&self, root: GroupId, gfp: kmem_gfp::Gfp, priority: u8) {
        if let Some(gauge) = self.gauge(root)
            && let Some(level) = gauge.note_priority(self.env().cpu(), gfp, priority)
        {
            self.env().pressure(root, level);
        }
    }
}
