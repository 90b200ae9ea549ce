//! Node reclaim: frees what is cheap to free on a node before a request goes on to another one.

use kmem_gfp::{
    AllocContext, Gfp, NoReclaimScope, NodeId, Order, ReclaimRequest, TaskFlags, ZoneKind, current_gfp_context,
};
use kmem_sync::atomic::Ordering;

use crate::balance::{CLUSTER, kinds};
use crate::engine::Reclaim;
use crate::env::{ReclaimEnv, StallKind, Zones};
use crate::events::ReclaimEvent;
use crate::group_reclaim::GroupReclaim;
use crate::{GroupId, PageLists, Scan, ScanLimits, Swappiness};

/// Node reclaim begins here: it is not meant to be cheap at any price.
const NODE_RECLAIM_PRIORITY: u8 = 4;

mod mode {
    pub(super) const ON: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const UNMAP: u32 = 4;
}

impl<E: ReclaimEnv> Reclaim<E> {
    /// Frees pages of a node for a request that would otherwise use another one (B-67); whether as many as it wants. Does
    /// nothing unless [switched on](Self::set_node_reclaim_mode) and worth while, or if the request may not sleep. One at a
    /// time per node.
    #[doc(alias("node_reclaim", "zone_reclaim"))]
    pub fn reclaim_node(&self, context: &dyn AllocContext, node: NodeId, request: &ReclaimRequest) -> bool {
        let mode = self.node_reclaim_mode.load(Ordering::Relaxed);
        let flags = context.task_flags();
        let may = mode & mode::ON != 0 && request.gfp.allows_blocking() && !flags.contains(TaskFlags::MEMALLOC);
        if !may || !self.is_worth_while(node) {
            return false;
        }
        let Some(state) = self.node(node) else { return false };
        let wanted = request.order.nr_pages() as u64;
        let limits = ScanLimits {
            gfp: current_gfp_context(request.gfp, flags),
            order: request.order,
            ceiling: request.ceiling,
            target: wanted.max(CLUSTER),
            root: GroupId::ROOT,
            background: false,
            may_write: mode & mode::WRITE != 0,
            may_unmap: mode & mode::UNMAP != 0,
            may_swap: true,
            swappiness: self.swappiness(),
        };
        let counted = (ReclaimEvent::ScanDirect, ReclaimEvent::StealDirect);
        let freed = self.shrink_one_node(context, node, limits, counted, None);
        let enough = freed.is_some_and(|freed| freed >= wanted);
        if freed.is_some() {
            let event = if enough { ReclaimEvent::NodeReclaimSuccess } else { ReclaimEvent::NodeReclaimFailed };
            state.events.add(event, 1);
        }
        enough
    }

    fn is_worth_while(&self, node: NodeId) -> bool {
        let zones = self.env().zones();
        let managed = kinds(ZoneKind::Movable).map(|zone| zones.managed(node, zone)).fold(0, u64::saturating_add);
        let share = |ratio: u32| (u128::from(managed) * u128::from(ratio) / 100) as u64;
        let counts = self.env().lists().counts(node, None);
        let cache = counts.inactive_file.saturating_add(counts.active_file);
        cache > share(self.min_unmapped_ratio.load(Ordering::Relaxed))
            || self.env().reclaimable_slab_pages(node) > share(self.min_slab_ratio.load(Ordering::Relaxed))
    }

    /// Frees about `pages` pages of a node for nobody in particular; `None` if somebody else does.
    pub(crate) fn reclaim_one_node(
        &self,
        context: &dyn AllocContext,
        node: NodeId,
        pages: u64,
        how: GroupReclaim,
    ) -> Option<u64> {
        let limits = ScanLimits {
            gfp: current_gfp_context(Gfp::KERNEL, context.task_flags()),
            order: Order::ZERO,
            ceiling: ZoneKind::Movable,
            target: pages.max(CLUSTER),
            root: GroupId::ROOT,
            background: false,
            may_write: true,
            may_unmap: true,
            may_swap: how.may_swap,
            swappiness: self.swappiness(),
        };
        let counted = (ReclaimEvent::ScanProactive, ReclaimEvent::StealProactive);
        self.shrink_one_node(context, node, limits, counted, how.swappiness)
    }

    fn shrink_one_node(
        &self,
        context: &dyn AllocContext,
        node: NodeId,
        limits: ScanLimits,
        counted: (ReclaimEvent, ReclaimEvent),
        swappiness: Option<Swappiness>,
    ) -> Option<u64> {
        let state = self.node(node)?;
        if state.node_reclaim.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return None;
        }
        let _reserves = NoReclaimScope::enter(context);
        let freed = self.stalled(context, StallKind::DirectReclaim, || {
            let mut scan = Scan::new(limits, context);
            scan.swappiness = swappiness;
            scan.proactive = counted.0 == ReclaimEvent::ScanProactive;
            for priority in (0..=NODE_RECLAIM_PRIORITY).rev() {
                scan.priority = priority;
                self.shrink_node(node, &mut scan);
                if scan.is_done() {
                    break;
                }
            }
            state.events.add(counted.0, scan.scanned);
            state.events.add(counted.1, scan.reclaimed);
            scan.reclaimed
        });
        state.node_reclaim.store(false, Ordering::Release);
        Some(freed)
    }
}
