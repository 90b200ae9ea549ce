//! Whether compaction can help: the fragmentation index, and what a zone must have free for it to run.

use kmem_gfp::alloc_flags::AllocFlags;
use kmem_gfp::{NodeId, Order, Watermark, ZoneKind};
use kmem_sync::atomic::Ordering;

use crate::bits::{WORD_ORDER, heads};
use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::line::{for_each_block, largest_in};
use crate::state::State;
use crate::zone::Zone;

/// What a zone has free, as far as an order is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FreeShape {
    /// Free pages.
    pub pages: u64,
    /// Free blocks of any order.
    pub blocks: u64,
    /// Blocks of the order that could be had without compaction.
    pub suitable: u64,
}

/// Why a block of `order` cannot be had, in thousandths: near 0 for want of memory, near 1000 because what there is is
/// scattered; -1000 if one can be had. 0 also if nothing is free.
pub const fn fragmentation_index(order: Order, shape: FreeShape) -> i32 {
    if shape.blocks == 0 {
        return 0;
    }
    if shape.suitable > 0 {
        return -1000;
    }
    let wanted = order.nr_pages() as u64;
    let index = 1000 - ((1000 + shape.pages as u128 * 1000 / wanted as u128) / shape.blocks as u128) as i64;
    index as i32
}

/// How much of what is free is of no use for blocks of `order`, in percent.
pub const fn extfrag_percent(order: Order, shape: FreeShape) -> u32 {
    if shape.pages == 0 {
        return 0;
    }
    let useful = shape.suitable << order.get();
    ((shape.pages.saturating_sub(useful)) as u128 * 100 / shape.pages as u128) as u32
}

/// Free pages that compaction needs to work with, above the mark it is to keep.
pub(crate) const fn compact_gap(order: Order) -> u64 {
    let gap = 2u64 << order.get();
    if gap < 32 { gap } else { 32 }
}

/// Whose sake a zone is judged for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) order: Order,
    pub(crate) ceiling: ZoneKind,
    pub(crate) flags: AllocFlags,
    /// It does not wait for anything.
    pub(crate) hasty: bool,
}

/// What is to be done about a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The request would be served already.
    Success,
    /// Compaction could not work here, or would not help.
    Skipped,
    Continue,
}

impl Zone {
    /// What is free, isolated pages included.
    pub(crate) fn shape(&self, order: Order) -> FreeShape {
        let mut shape = FreeShape::default();
        for block in self.blocks() {
            let words = block.free_line().snapshot();
            let pages: u32 = words.iter().map(|word| word.count_ones()).sum();
            if pages == 0 {
                continue;
            }
            shape.pages += u64::from(pages);
            let mut blocks = 0;
            for_each_block(&words, |_, _| blocks += 1);
            shape.blocks += blocks;
            let k = order.get();
            shape.suitable += if k <= WORD_ORDER {
                words.iter().map(|&word| u64::from(heads(word, k).count_ones())).sum()
            } else if k < 10 {
                let group = 1 << (k - WORD_ORDER);
                words.chunks(group).filter(|words| words.iter().all(|&word| word == u64::MAX)).count() as u64
            } else {
                let whole = |words: &[u64; 8]| largest_in(words) == Some(9);
                let pair = block.index.is_multiple_of(2) && whole(&words);
                u64::from(pair && block.neighbour().is_some_and(|other| whole(&other.free_line().snapshot())))
            };
        }
        shape
    }

    /// Whether `extra` more free pages would pass the order-0 check at `mark` pages for this ceiling, with or without what
    /// is free in contiguous areas.
    fn passes(&self, mark: u64, ceiling: ZoneKind, flags: AllocFlags, extra: u64) -> bool {
        let mut levels = self.levels(Watermark::Min, ceiling);
        levels.mark = mark;
        levels.free = levels.free.saturating_add(extra);
        levels.passes(Order::ZERO, flags)
    }

    /// Whether compaction has the pages it needs: at `mark`, a gap more, and for costly orders the distance from min to low.
    pub(crate) fn has_room_to_compact(&self, order: Order, mark: Watermark, ceiling: ZoneKind, extra: u64) -> bool {
        let distance = self.mark(Watermark::Low).saturating_sub(self.mark(Watermark::Min));
        let costly = if order.is_costly() { distance } else { 0 };
        self.passes(self.mark(mark) + compact_gap(order) + costly, ceiling, AllocFlags::CMA, extra)
    }

    /// Whether taking `pages` more out of circulation for a while leaves the min mark intact.
    pub(crate) fn can_spare(&self, pages: u64) -> bool {
        self.spare_pages() >= pages
    }

    /// How many pages may be taken out of circulation for a while.
    pub(crate) fn spare_pages(&self) -> u64 {
        self.free_pages().saturating_sub(self.watermark(Watermark::Min) + 1)
    }
}

impl State {
    pub(crate) fn extfrag_threshold(&self) -> i32 {
        self.tunables.extfrag_threshold.load(Ordering::Relaxed) as i32
    }

    /// Whether a zone can be compacted with hope for blocks of `order`: enough pages, and, for costly orders, scattered ones.
    pub(crate) fn is_suitable(&self, zone: &Zone, order: Order, mark: Watermark, ceiling: ZoneKind) -> bool {
        if !zone.has_room_to_compact(order, mark, ceiling, 0) {
            return false;
        }
        if !order.is_costly() {
            return true;
        }
        let index = fragmentation_index(order, zone.shape(order));
        !(0..=self.extfrag_threshold()).contains(&index)
    }

    /// What is to be done about a zone for the sake of a request.
    pub(crate) fn judge(&self, zone: &Zone, wish: &Wish) -> Verdict {
        let mark = wish.flags.watermark();
        if zone.watermark_ok(wish.order, mark, wish.ceiling, wish.flags) {
            return Verdict::Success;
        }
        // One that does not wait must find its pages outside the contiguous areas if it may not use those.
        if wish.order.is_costly() && wish.hasty && !wish.flags.contains(AllocFlags::CMA) {
            let needed = zone.mark(mark) + compact_gap(wish.order);
            if !zone.passes(needed, wish.ceiling, AllocFlags::empty(), 0) {
                return Verdict::Skipped;
            }
        }
        if self.is_suitable(zone, wish.order, mark, wish.ceiling) { Verdict::Continue } else { Verdict::Skipped }
    }
}

impl<E: BuddyEnv> Buddy<E> {
    /// Whether compacting a zone at `mark` could make a block of `order` for requests with this ceiling
    /// (`compaction_suitable`). O(pageblocks) for costly orders.
    pub fn compaction_suitable(&self, zone: &Zone, order: Order, mark: Watermark, ceiling: ZoneKind) -> bool {
        self.state().is_some_and(|state| state.is_suitable(zone, order, mark, ceiling))
    }

    /// The fragmentation score of a node, 0..=100: how much of its free memory is of no use for pageblocks.
    #[doc(alias = "fragmentation_score_node")]
    pub fn fragmentation_score(&self, node: NodeId) -> u32 {
        self.state().map_or(0, |state| state.node_score(node))
    }
}

impl State {
    /// The score of a zone.
    pub(crate) fn zone_score(&self, zone: &Zone) -> u64 {
        u64::from(extfrag_percent(Order::PAGEBLOCK, zone.shape(Order::PAGEBLOCK)))
    }

    /// The scores of a node's zones, weighted by their size.
    pub(crate) fn node_score(&self, node: NodeId) -> u32 {
        let zones = || self.zones_of(node).iter().filter(|zone| zone.is_populated());
        let present: u64 = zones().map(Zone::present_pages).sum();
        zones().map(|zone| self.zone_score(zone) * zone.present_pages() / (present + 1)).sum::<u64>() as u32
    }

    /// Between which scores proactive compaction works: from the higher down to the lower.
    pub(crate) fn score_marks(&self) -> (u64, u64) {
        let low = 100 - self.tunables.compaction_proactiveness.load(Ordering::Relaxed).min(100);
        (u64::from(low), u64::from((low + (low / 2).min(10)).min(100)))
    }
}
