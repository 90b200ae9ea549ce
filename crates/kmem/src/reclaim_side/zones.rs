//! The page allocator's zones as reclaim sees them.

use kmem_gfp::alloc_flags::AllocFlags;
use kmem_gfp::{NodeId, Order, ReclaimRequest, Watermark, ZoneKind};
use kmem_reclaim::Zones;

use super::platform::ReclaimPlatform;
use super::side::ReclaimSide;

impl<P: ReclaimPlatform> ReclaimSide<P> {
    fn zone(&self, node: NodeId, kind: ZoneKind) -> Option<&'static kmem_buddy::Zone> {
        self.kmem.pages.zone(node, kind)
    }
}

impl<P: ReclaimPlatform> Zones for ReclaimSide<P> {
    fn nr_nodes(&self) -> u32 {
        kmem_gfp::PageAllocator::nr_nodes(&self.kmem.pages)
    }
    fn nth_node(&self, from: NodeId, n: u32) -> Option<NodeId> {
        self.kmem.pages.nth_node(from, n)
    }
    fn node_allowed(&self, node: NodeId, request: &ReclaimRequest) -> bool {
        self.platform().node_allowed(node, request.gfp)
    }
    fn managed(&self, node: NodeId, zone: ZoneKind) -> u64 {
        self.zone(node, zone).map_or(0, |zone| zone.managed_pages())
    }
    fn free(&self, node: NodeId, zone: ZoneKind) -> u64 {
        self.zone(node, zone).map_or(0, |zone| zone.free_pages())
    }
    fn mark(&self, node: NodeId, zone: ZoneKind, mark: Watermark) -> u64 {
        self.zone(node, zone).map_or(0, |zone| zone.watermark(mark))
    }
    fn boost(&self, node: NodeId, zone: ZoneKind) -> u64 {
        self.zone(node, zone).map_or(0, |zone| zone.boost_pages())
    }
    fn lower_boost(&self, node: NodeId, zone: ZoneKind, pages: u64) {
        self.kmem.pages.lower_boost(node, zone, pages);
    }
    fn lowmem_reserve(&self, node: NodeId, zone: ZoneKind, ceiling: ZoneKind) -> u64 {
        self.zone(node, zone).map_or(0, |zone| zone.lowmem_reserve(ceiling))
    }
    fn watermark_ok(&self, node: NodeId, zone: ZoneKind, order: Order, mark: Watermark, ceiling: ZoneKind) -> bool {
        self.zone(node, zone).is_some_and(|zone| zone.watermark_ok(order, mark, ceiling, AllocFlags::empty()))
    }
    fn balanced(&self, node: NodeId, zone: ZoneKind, order: Order, mark: Watermark, ceiling: ZoneKind) -> bool {
        if order == Order::ZERO || !self.kmem.pages.options().defrag_mode {
            return self.watermark_ok(node, zone, order, mark, ceiling);
        }
        // An allocator that never mixes types lives on whole pageblocks.
        self.zone(node, zone).is_some_and(|zone| {
            let wanted = zone.watermark(mark).saturating_add(zone.lowmem_reserve(ceiling));
            zone.free_pages_in_whole_blocks() > wanted
        })
    }
    fn fragmentation_index(&self, node: NodeId, zone: ZoneKind, order: Order) -> Option<u32> {
        u32::try_from(self.zone(node, zone)?.fragmentation_index(order)).ok()
    }
    fn drain(&self) {
        self.mm().lists.drain_all();
        self.kmem.pages.drain_all_pages();
    }
    fn wake_compaction(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        if order > Order::ZERO && self.mm().config.compaction {
            self.platform().wake_compaction(node, order, ceiling);
        }
    }
    fn reset_compaction_hints(&self, node: NodeId) {
        self.kmem.pages.reset_compaction_hints(node);
    }
}
