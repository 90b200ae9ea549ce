//! Who pays for pages: charged when they are allocated with `__GFP_ACCOUNT`, uncharged by every free.
//!
//! Each frame of a charged block bears its payer, so that a block can be split and freed in parts.

use kmem_gfp::{Gfp, MovableOwner, NodeId, Order, Pfn, PfnRange, ReclaimRequest};

use super::mm::Mm;
use super::platform::ReclaimPlatform;

impl<P: ReclaimPlatform> Mm<P> {
    /// Whether there are memory cgroups.
    pub fn has_groups(&self) -> bool {
        self.config.groups > 1
    }

    /// For [`Platform::charge`](crate::Platform::charge): charges a block to whoever pays for it.
    pub fn charge_pages(&self, gfp: Gfp, pfn: Pfn, order: Order) -> bool {
        let payer = match self.groups.charge_page(gfp, order) {
            Ok(None) => return true,
            Ok(Some(payer)) => payer,
            Err(_) => return false,
        };
        let frames = PfnRange::block(pfn, order).unwrap_or_default();
        let noted = frames.iter().take_while(|&pfn| self.payers.set(pfn, payer)).count() as u64;
        let unnoted = (order.nr_pages() as u64).saturating_sub(noted);
        if unnoted > 0 {
            // Frames that have no place for a payer are free of charge.
            self.groups.uncharge(payer, unnoted);
        }
        true
    }

    /// For [`Platform::uncharge`](crate::Platform::uncharge): a load for a block that nobody paid for.
    #[inline]
    pub fn uncharge_pages(&self, pfn: Pfn, order: Order) {
        let Some(payer) = self.payers.take(pfn) else { return };
        let rest = PfnRange::block(pfn, order).unwrap_or_default();
        let more = rest.iter().skip(1).filter(|&pfn| self.payers.take(pfn).is_some()).count() as u64;
        self.groups.uncharge(payer, 1 + more);
    }

    /// For [`Platform::movable_owner`](crate::Platform::movable_owner): pages on the lists move.
    pub fn movable_owner(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        self.lists.contains(pfn).then_some(&self.lists as &dyn MovableOwner)
    }

    /// For [`Platform::background_running`](crate::Platform::background_running).
    pub fn background_running(&self, node: NodeId) -> bool {
        self.engine.kswapd_is_running(node)
    }

    /// For [`Platform::reclaim_node`](crate::Platform::reclaim_node).
    pub fn reclaim_node(&self, node: NodeId, request: &ReclaimRequest) -> bool {
        self.engine.reclaim_node(self.side.platform().context(), node, request)
    }

    /// For [`Platform::high_mark_restored`](crate::Platform::high_mark_restored).
    pub fn high_mark_restored(&self, node: NodeId) {
        self.engine.clear_hopeless(node);
    }
}
