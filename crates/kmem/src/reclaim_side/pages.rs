//! The machine as the page lists see it.

use kmem_gfp::{AllocContext, NodeId, Pfn, Watermark, ZoneKind};
use kmem_reclaim::GroupId;
use kmem_reclaim::lru::{LruEnv, OwnerId, PageOwner};
use kmem_reclaim::memcg::Memcg;

use super::platform::ReclaimPlatform;
use super::side::ReclaimSide;
use crate::PageSource;

impl<P: ReclaimPlatform> LruEnv for ReclaimSide<P> {
    type Cpu = P::Cpu;
    type Frames = P::Frames;
    type Pages = PageSource<P>;
    type Groups = Memcg<Self>;

    #[inline(always)]
    fn cpu(&self) -> &P::Cpu {
        self.platform().cpu()
    }
    #[inline(always)]
    fn frames(&self) -> &P::Frames {
        self.platform().frames()
    }
    #[inline(always)]
    fn pages(&self) -> &PageSource<P> {
        &self.kmem.pages
    }
    #[inline(always)]
    fn groups(&self) -> &Memcg<Self> {
        &self.mm().groups
    }
    #[inline(always)]
    fn owner(&self, id: OwnerId) -> Option<&dyn PageOwner> {
        self.platform().page_owner(id)
    }
    #[inline(always)]
    fn zone_of(&self, pfn: Pfn) -> (NodeId, ZoneKind) {
        self.kmem.pages.zone_of(pfn).unwrap_or((NodeId(0), ZoneKind::Normal))
    }
    fn swap_free(&self) -> u64 {
        self.platform().swap_free_pages()
    }
    fn shortfall(&self, node: NodeId) -> u64 {
        let zones = || ZoneKind::ALL.into_iter().filter_map(|kind| self.kmem.pages.zone(node, kind));
        let marks: u64 = zones().map(|zone| zone.watermark(Watermark::High)).fold(0, u64::saturating_add);
        let free: u64 = zones().map(|zone| zone.free_pages()).fold(0, u64::saturating_add);
        marks.saturating_sub(free)
    }
    fn now_ms(&self) -> u64 {
        self.platform().context().now_ms()
    }
    fn walk_accessed(&self, node: NodeId, group: GroupId, young: &mut dyn FnMut(Pfn)) {
        self.platform().walk_accessed(node, group, young);
    }
}
