//! When a node has enough free pages: for background reclaim to stop, for requests to go ahead, for compaction to run.

use kmem_gfp::{NodeId, Order, Watermark, ZoneKind};
use kmem_sync::atomic::Ordering;

use crate::PageLists;
use crate::engine::Reclaim;
use crate::env::{ReclaimEnv, Zones};

/// Pages that a run of reclaim wants (`SWAP_CLUSTER_MAX`).
pub(crate) const CLUSTER: u64 = 32;
/// A fragmentation index up to this means that memory is short rather than scattered (`extfrag_threshold`).
const EXTFRAG_THRESHOLD: u32 = 500;

/// The free pages that compaction needs to work with, in pages (C-10). Pure.
pub(crate) const fn compact_gap(order: Order) -> u64 {
    let gap = 2u64 << order.get();
    if gap < 32 { gap } else { 32 }
}

/// The kinds of zone up to a ceiling, lowest first.
pub(crate) fn kinds(ceiling: ZoneKind) -> impl DoubleEndedIterator<Item = ZoneKind> + Clone {
    ZoneKind::ALL.into_iter().filter(move |&kind| kind <= ceiling)
}

impl<E: ReclaimEnv> Reclaim<E> {
    fn managed_zones(&self, node: NodeId, ceiling: ZoneKind) -> impl DoubleEndedIterator<Item = ZoneKind> {
        kinds(ceiling).filter(move |&zone| self.env().zones().managed(node, zone) > 0)
    }

    /// Whether a node has enough for requests of `order` below `ceiling`: one zone at the high mark, or no zone at
    /// all. Any context; a walk over at most five zones.
    pub fn is_balanced(&self, node: NodeId, order: Order, ceiling: ZoneKind) -> bool {
        let mark = if self.env().memory_tiering() { Watermark::Promo } else { Watermark::High };
        let mut zones = self.managed_zones(node, ceiling).peekable();
        zones.peek().is_none() || zones.any(|zone| self.env().zones().balanced(node, zone, order, mark, ceiling))
    }

    /// Whether some zone has a boost to be worked off.
    pub(crate) fn is_boosted(&self, node: NodeId, ceiling: ZoneKind) -> bool {
        self.managed_zones(node, ceiling).any(|zone| self.env().zones().boost(node, zone) > 0)
    }

    /// What a background pass wants to free.
    pub(crate) fn background_target(&self, node: NodeId, ceiling: ZoneKind) -> u64 {
        let zones = self.env().zones();
        self.managed_zones(node, ceiling)
            .map(|zone| zones.mark(node, zone, Watermark::High).max(CLUSTER))
            .fold(0, u64::saturating_add)
    }

    /// Whether requests may reclaim beside the background thread, or had better wait for it: more than half of the
    /// summed min marks is free. Nobody waits for a thread that is not there, has given up, or finds the node balanced.
    pub(crate) fn allows_direct(&self, node: NodeId) -> bool {
        let Some(state) = self.node(node) else { return true };
        if state.is_hopeless() || !state.has_kswapd.load(Ordering::Acquire) {
            return true;
        }
        let zones = self.env().zones();
        let (mut reserve, mut free) = (0u64, 0u64);
        for zone in self.managed_zones(node, ZoneKind::Normal) {
            if self.reclaimable_in(node, zone) == 0 {
                continue;
            }
            reserve = reserve.saturating_add(zones.mark(node, zone, Watermark::Min));
            free = free.saturating_add(zones.free(node, zone));
        }
        reserve == 0 || free > reserve / 2 || self.is_balanced(node, Order::ZERO, ZoneKind::Normal)
    }

    /// Whether a costly request had better be served by compaction than by freeing more pages of this zone.
    pub(crate) fn is_compaction_ready(&self, node: NodeId, zone: ZoneKind, order: Order, ceiling: ZoneKind) -> bool {
        let zones = self.env().zones();
        if zones.watermark_ok(node, zone, order, Watermark::Min, ceiling) {
            return true;
        }
        // C-10: enough pages for compaction to work with, above the high mark.
        let mut wanted = zones.mark(node, zone, Watermark::High).saturating_add(compact_gap(order));
        if order.is_costly() {
            let low = zones.mark(node, zone, Watermark::Low);
            wanted = wanted.saturating_add(low.saturating_sub(zones.mark(node, zone, Watermark::Min)));
        }
        let wanted = wanted.saturating_add(zones.lowmem_reserve(node, zone, ceiling));
        if zones.free(node, zone) <= wanted {
            return false;
        }
        // C-11: the free pages must be scattered, or compaction gains nothing.
        !order.is_costly() || zones.fragmentation_index(node, zone, order).is_none_or(|index| index > EXTFRAG_THRESHOLD)
    }

    /// Pages of a zone that lie on lists from which something can be taken.
    pub(crate) fn reclaimable_in(&self, node: NodeId, zone: ZoneKind) -> u64 {
        let counts = self.env().lists().counts(node, Some(zone));
        let file = counts.inactive_file.saturating_add(counts.active_file);
        if !self.env().can_swap(crate::GroupId::ROOT) {
            return file;
        }
        file.saturating_add(counts.inactive_anon).saturating_add(counts.active_anon)
    }

    /// A run has freed pages of a node: it is no longer hopeless if that was enough.
    pub(crate) fn clear_hopeless_if_balanced(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        if let Some(state) = self.node(node)
            && state.failures.load(Ordering::Relaxed) != 0
            && self.is_balanced(node, order, ceiling)
        {
            state.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Something has changed that makes another try worth while although the node was given up: a free restored the high
    /// mark of one of its zones, or memory was added. Any context; a store.
    pub fn clear_hopeless(&self, node: NodeId) {
        if let Some(state) = self.node(node) {
            state.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Whether background reclaim has given the node up. Any context; a load.
    pub fn is_hopeless(&self, node: NodeId) -> bool {
        self.node(node).is_some_and(|state| state.is_hopeless())
    }
}
