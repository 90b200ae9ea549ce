//! Pages and slabs: from their events to operations and into Linux's books.

use super::census::Fate;
use super::feed::{DIRECT_MAP, Program};
use super::op::{Level, Op, OpKind};
use super::pages::Piece;
use crate::trace::{FieldFault, TraceGfp, hex_list};

/// The greatest order of a page allocator.
const MAX_ORDER: u8 = 10;
/// Frames beyond this are no machine's.
const MAX_PFN: u64 = 1 << 40;
/// The greatest order of a slab.
const SLAB_MAX_ORDER: u8 = 3;

impl Program {
    pub(super) fn free_pages(&mut self, pfn: u64, order: u8) -> u64 {
        let (line, cpu) = (&mut self.line, self.cpu);
        self.pages.free(pfn, 1 << order, |Piece { block, offset, order, last }| {
            line.push_back(Op { cpu, kind: OpKind::PageFree { block, offset, order, last } });
        })
    }

    pub(super) fn page_alloc(&mut self, pfn: u64, order: u8, migratetype: u8, gfp: TraceGfp) -> Fate {
        if order > MAX_ORDER {
            return Fate::Unsupported;
        }
        if pfn == 0 {
            return Fate::FailedInTrace;
        }
        self.expected.remove(&pfn);
        // Once the probes are in place, a slab is what they say.
        let signature = !self.probes && order <= SLAB_MAX_ORDER && gfp.is_slabs();
        if signature {
            self.linux.appear(pfn, order, None, false);
        }
        match self.level {
            Level::Objects => return Fate::OtherLevel,
            // It is a slab's: the replay makes its own.
            Level::All if signature => return Fate::Bookkeeping,
            Level::Pages | Level::All => {}
        }
        let stale = self.free_pages(pfn, order) != 1 << order;
        if stale {
            self.census.reused_live += 1;
        }
        let block = self.pages.alloc(pfn, order);
        if self.level == Level::All && gfp.contains(TraceGfp::COMP) {
            let at = self.line_start + self.line.len() as u64;
            self.open.insert(pfn, (at, block, order));
        }
        self.push(OpKind::PageAlloc { block, order, gfp, migratetype });
        Fate::Replayed
    }

    /// The pages from `pfn` on turn out to be a slab's or a large kmalloc's: their allocation is not replayed.
    pub(super) fn not_plain_pages(&mut self, pfn: u64) {
        let Some((at, block, order)) = self.open.remove(&pfn) else { return };
        let place = at.checked_sub(self.line_start).and_then(|n| self.line.get_mut(n as usize));
        match place {
            Some(op) if matches!(&op.kind, OpKind::PageAlloc { block: b, .. } if *b == block) => {
                op.kind = OpKind::Void;
                self.pages.withdraw(block, order);
                self.census.replayed -= 1;
                self.census.bookkeeping += 1;
            }
            // It has left the line: give it back instead.
            _ => {
                self.free_pages(pfn, order);
            }
        }
    }

    pub(super) fn page_free(&mut self, pfn: u64, order: u8) -> Fate {
        if order > MAX_ORDER {
            return Fate::Unsupported;
        }
        let slab = self.remove_slab(pfn);
        let expected = self.expected.remove(&pfn).is_some();
        match self.level {
            Level::Objects => return Fate::OtherLevel,
            Level::All if slab || expected => return Fate::Bookkeeping,
            Level::Pages | Level::All => {}
        }
        self.open.remove(&pfn);
        let strange = self.free_pages(pfn, order);
        self.census.unmatched_pages += strange;
        if strange == 1 << order { Fate::UnmatchedFree } else { Fate::Replayed }
    }

    pub(super) fn page_alloc_bulk(
        &mut self,
        got: u64,
        migratetype: u8,
        gfp: TraceGfp,
        pfns: &[u8],
    ) -> Result<Fate, FieldFault> {
        let list: Vec<u64> = hex_list(pfns, "pfns").collect::<Result<_, _>>()?;
        self.census.bulk_cut_off += got.saturating_sub(list.len() as u64);
        if !self.has_pages() {
            return Ok(Fate::OtherLevel);
        }
        let mut blocks = Vec::with_capacity(list.len());
        for pfn in list {
            // One that fell back to a single page has been reported before.
            if pfn != 0 && pfn < MAX_PFN && !self.pages.is_live(pfn) {
                blocks.push(self.pages.alloc(pfn, 0));
            }
        }
        if blocks.is_empty() {
            return Ok(if got == 0 { Fate::FailedInTrace } else { Fate::Duplicate });
        }
        self.push(OpKind::PageAllocBulk { blocks: blocks.into(), gfp, migratetype });
        Ok(Fate::Replayed)
    }

    pub(super) fn slab_new(&mut self, name: &[u8], pfn: u64, order: u8) -> Fate {
        self.probes = true;
        if pfn == 0 {
            return Fate::FailedInTrace;
        }
        if order > MAX_ORDER {
            return Fate::Unsupported;
        }
        if self.level == Level::All {
            self.not_plain_pages(pfn);
        }
        let cache = self.caches.id(name, 0, 0);
        self.linux.appear(pfn, order, Some(cache), true);
        Fate::Bookkeeping
    }

    pub(super) fn slab_free(&mut self, pfn: u64, order: u8) -> Fate {
        if order > MAX_ORDER {
            return Fate::Unsupported;
        }
        if !self.remove_slab(pfn) {
            self.linux.older_freed();
        }
        self.expected.insert(pfn, ());
        Fate::Bookkeeping
    }

    /// Linux gave the slab over `pfn` back, if there is one in the books.
    pub(super) fn remove_slab(&mut self, pfn: u64) -> bool {
        let Some(slab) = self.linux.remove(pfn) else { return false };
        if slab.live > 0 {
            // Freed without an event: a probe was missed, or a bulk event had no room.
            let start = DIRECT_MAP.start.saturating_add(slab.pfn * 4096);
            for ptr in (start..start.saturating_add(u64::from(slab.pages) * 4096)).step_by(8) {
                if let Some(object) = self.objects.remove(&ptr) {
                    self.census.lost_frees += 1;
                    self.release(ptr, &object);
                    if !object.metadata && !object.deferred && self.has_objects() {
                        self.push(OpKind::Kfree { object: object.used });
                    }
                }
            }
        }
        true
    }
}
