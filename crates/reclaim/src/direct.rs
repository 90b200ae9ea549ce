//! Direct reclaim: a request that found nothing frees pages itself.
//!
//! ```text
//! reserve half empty? ─▶ wait for kswapd (killed meanwhile: 1)
//! priority 12, 11, .. 0: each node of the zonelist once ─▶ 32 pages freed, or compaction is ready: done
//!   nothing freed ─▶ again, walking every group to the end
//!                 ─▶ again, deactivating pages that were spared
//!                 ─▶ again, below the groups' low protection
//! ```

use kmem_gfp::{AllocContext, Gfp, NoReclaimScope, NodeId, ReclaimRequest, TaskFlags, ZoneKind, current_gfp_context};

use crate::balance::{CLUSTER, kinds};
use crate::engine::Reclaim;
use crate::env::{ReclaimEnv, StallKind, Zones};
use crate::events::ReclaimEvent;
use crate::wait::Wait;
use crate::{GroupId, Scan, ScanLimits};

/// How long a request that must not enter a filesystem waits at the entry: the thread may be waiting for what it holds.
const NOFS_THROTTLE_MS: u64 = 1000;

/// How the request that a run serves goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    GoAhead,
    /// Killed while waiting.
    Killed,
}

impl<E: ReclaimEnv> Reclaim<E> {
    /// Direct reclaim for a request: returns the pages freed, or 1 if that many only stands for "go on" (R-17). Only where
    /// the request may sleep.
    #[doc(alias = "try_to_free_pages")]
    pub(crate) fn reclaim_for(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> u64 {
        let request = ReclaimRequest { gfp: current_gfp_context(request.gfp, context.task_flags()), ..*request };
        if self.throttle_entry(context, &request) == Entry::Killed {
            return 1;
        }
        let limits = ScanLimits {
            gfp: request.gfp,
            order: request.order,
            ceiling: request.ceiling,
            target: CLUSTER,
            root: GroupId::ROOT,
            background: false,
            may_write: true,
            may_unmap: true,
            may_swap: true,
            swappiness: self.swappiness(),
        };
        let _reserves = NoReclaimScope::enter(context);
        self.stalled(context, StallKind::DirectReclaim, || {
            let mut scan = Scan::new(limits, context);
            let counted = (ReclaimEvent::ScanDirect, ReclaimEvent::StealDirect);
            self.free_pages(Some(&request), request.node, &mut scan, counted)
        })
    }

    /// Waits while less than half of the reserve is free on the first node of the zonelist that has low memory (R-09).
    fn throttle_entry(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> Entry {
        if context.task_flags().intersects(TaskFlags::KTHREAD.union(TaskFlags::FATAL_SIGNAL)) {
            return Entry::GoAhead;
        }
        let low = request.ceiling.min(ZoneKind::Normal);
        let zones = self.env().zones();
        let first = self
            .zonelist(Some(request), request.node)
            .find(|&node| kinds(low).any(|zone| zones.managed(node, zone) > 0));
        let Some((node, state)) = first.and_then(|node| Some((node, self.node(node)?))) else { return Entry::GoAhead };
        if self.allows_direct(node) {
            return Entry::GoAhead;
        }
        state.events.add(ReclaimEvent::ScanDirectThrottle, 1);
        let timed = !request.gfp.contains(Gfp::FS);
        self.stalled(context, StallKind::Throttled, || {
            let started = context.now_ms();
            let mut left = NOFS_THROTTLE_MS;
            loop {
                let seen = state.throttled.sequence();
                self.rouse(state, kmem_gfp::Order::ZERO, ZoneKind::Normal);
                if self.allows_direct(node) {
                    break;
                }
                let wait = if timed { Wait::for_ms(left) } else { Wait::KILLABLE };
                state.throttled.wait(self.env().park(), context, seen, wait);
                if context.task_flags().contains(TaskFlags::FATAL_SIGNAL) {
                    break;
                }
                if timed {
                    let elapsed = context.now_ms().saturating_sub(started);
                    left = NOFS_THROTTLE_MS.saturating_sub(elapsed);
                    // Without a clock, and without having been woken, the time was up.
                    if left == 0 || state.throttled.sequence() == seen {
                        break;
                    }
                }
            }
        });
        if context.task_flags().contains(TaskFlags::FATAL_SIGNAL) { Entry::Killed } else { Entry::GoAhead }
    }

    /// The nodes that a run may take pages from, nearest first, each once.
    fn zonelist<'a>(
        &'a self,
        request: Option<&'a ReclaimRequest>,
        from: NodeId,
    ) -> impl Iterator<Item = NodeId> + use<'a, E> {
        let zones = self.env().zones();
        let only = request.is_some_and(|request| request.this_node_only);
        let mut nr = 0;
        let nodes = core::iter::from_fn(move || {
            let node = zones.nth_node(from, nr)?;
            nr += 1;
            Some(node)
        });
        nodes
            .filter(move |&node| !only || node == from)
            .filter(move |&node| request.is_none_or(|request| zones.node_allowed(node, request)))
    }

    /// The priority loop and its reruns (R-10..R-12), for a request or (`None`) a group. Counts what it looked at and freed
    /// under `counted`.
    pub(crate) fn free_pages(
        &self,
        request: Option<&ReclaimRequest>,
        from: NodeId,
        scan: &mut Scan<'_>,
        counted: (ReclaimEvent, ReclaimEvent),
    ) -> u64 {
        let (mut forced, mut below_low) = (false, false);
        loop {
            let ready = self.priority_loop(request, from, scan, counted);
            if scan.reclaimed > 0 {
                return scan.reclaimed;
            }
            if ready {
                return 1;
            }
            if !scan.full_walk {
                scan.full_walk = true;
            } else if scan.spared_active && !forced {
                (forced, scan.force_deactivate, scan.spared_active) = (true, true, false);
            } else if scan.skipped_low && !below_low {
                (below_low, scan.below_low, scan.skipped_low) = (true, true, false);
                scan.force_deactivate = false;
            } else {
                return 0;
            }
        }
    }

    /// From the first priority down to 0; whether it ended because compaction is ready.
    fn priority_loop(
        &self,
        request: Option<&ReclaimRequest>,
        from: NodeId,
        scan: &mut Scan<'_>,
        counted: (ReclaimEvent, ReclaimEvent),
    ) -> bool {
        let (root, gfp) = (scan.limits.root, scan.limits.gfp);
        for priority in (0..=Scan::FIRST_PRIORITY).rev() {
            scan.priority = priority;
            scan.scanned = 0;
            if !scan.proactive {
                self.note_priority(root, gfp, priority);
            }
            let ready = self.shrink_zonelist(request, from, scan, counted);
            if scan.is_done() {
                return false;
            }
            if ready {
                return true;
            }
        }
        false
    }

    /// One pass over the zonelist; whether some zone is ready for compaction.
    fn shrink_zonelist(
        &self,
        request: Option<&ReclaimRequest>,
        from: NodeId,
        scan: &mut Scan<'_>,
        counted: (ReclaimEvent, ReclaimEvent),
    ) -> bool {
        let zones = self.env().zones();
        let compacts = scan.limits.order.is_costly() && self.env().can_compact() && request.is_some();
        let (mut ready, mut first) = (false, None);
        for node in self.zonelist(request, from) {
            let mut wanted = false;
            for zone in kinds(scan.limits.ceiling).filter(|&zone| zones.managed(node, zone) > 0) {
                if compacts && self.is_compaction_ready(node, zone, scan.limits.order, scan.limits.ceiling) {
                    ready = true;
                } else {
                    wanted = true;
                }
            }
            if !wanted {
                continue;
            }
            first = first.or(Some(node));
            // Only whoever is not part of the background waits for others' pages (R-14).
            if request.is_some() && !self.wait_for_isolated(node, scan) {
                continue;
            }
            let (scanned, reclaimed) = (scan.scanned, scan.reclaimed);
            self.shrink_node(node, scan);
            if let Some(state) = self.node(node) {
                state.events.add(counted.0, scan.scanned.saturating_sub(scanned));
                state.events.add(counted.1, scan.reclaimed.saturating_sub(reclaimed));
            }
        }
        if let Some(node) = first {
            self.consider_throttle(node, scan, request.is_some());
        }
        ready
    }
}
