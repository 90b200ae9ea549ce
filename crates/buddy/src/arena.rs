//! An arena: the state of all pageblocks of one memory map.
//!
//! ```text
//! pfn ──▶ span ──▶ pageblock i     free[i]     a line: which frames are free
//!                                  tails[i]    a line: which frames continue the block before them
//!                                  records[i]  type, zone, the order it is filed under
//!                                  lists[i]    which per-CPU page set its frames go to
//!                                  owned[i]    a line: handed out to a caller (only with `check_free`)
//! hints ──▶ pageblocks by type and largest free order
//! skips ──▶ pageblocks where compaction found nothing lately
//! gaps  ──▶ for pageblocks with reserved or missing frames: which
//! ```
//!
//! Of a frame's two bits, `free` and `tail`, both clear means the first frame of an allocated block (or a frame in a
//! per-CPU set); so single pages never touch the tails.
//!
//! No locks. The free line decides who owns a frame; everything else follows it: whoever changed a line looks at the
//! record, and whoever changes a record looks at the line again, so the two cannot miss one another.

use core::ptr::NonNull;

use kmem_gfp::Pfn;
use kmem_sync::atomic::{AtomicPtr, AtomicU32};

use crate::block::Block;
use crate::hints::Hints;
use crate::line::{FRAMES_SHIFT, Line, WORDS};
use crate::record::Record;
use crate::skips::Skips;
use crate::table::Table;
use crate::zone::Zone;

/// Pageblocks with consecutive numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// The number of the first one: its first frame divided by 512.
    pub(crate) first: u64,
    /// How many.
    pub(crate) len: usize,
    /// The index of the first one in the arena's tables; as even or odd as its number.
    pub(crate) index: usize,
}

/// Frames of one pageblock that are not managed.
#[derive(Debug)]
pub(crate) struct Gap {
    /// The pageblock.
    pub(crate) index: usize,
    /// A bit per frame that is reserved or does not exist.
    pub(crate) line: Line,
    /// A bit per frame that does not exist.
    pub(crate) absent: [u64; WORDS],
}

/// The pageblocks of one memory map.
#[derive(Debug)]
pub(crate) struct Arena {
    pub(crate) spans: Table<Span>,
    pub(crate) free: Table<Line>,
    pub(crate) tails: Table<Line>,
    pub(crate) owned: Table<Line>,
    pub(crate) records: Table<AtomicU32>,
    pub(crate) lists: Table<AtomicU32>,
    pub(crate) counted: Table<AtomicU32>,
    pub(crate) gaps: Table<Gap>,
    pub(crate) hints: Hints,
    /// Pageblocks that nothing could be moved out of.
    pub(crate) skips: Skips,
    /// Pageblocks that nothing could be moved into.
    pub(crate) full: Skips,
    /// The zones' numbers, for counting.
    pub(crate) zones: NonNull<Zone>,
    pub(crate) nr_zones: usize,
    pub(crate) next: AtomicPtr<Arena>,
}

// SAFETY: `zones` is only read, as shared references to `Zone`s that live as long as the arena.
unsafe impl Sync for Arena {}
// SAFETY: as above.
unsafe impl Send for Arena {}

impl Arena {
    /// The pageblock that holds a frame.
    #[inline]
    pub(crate) fn block_of(&self, pfn: Pfn) -> Option<Block<'_>> {
        let span = self.span_of(pfn)?;
        self.block(span.index + ((pfn.0 >> FRAMES_SHIFT) - span.first) as usize)
    }

    /// The span that holds a frame.
    #[inline]
    pub(crate) fn span_of(&self, pfn: Pfn) -> Option<&Span> {
        let number = pfn.0 >> FRAMES_SHIFT;
        let i = self.spans.partition_point(|span| span.first <= number);
        let span = self.spans.get(i.checked_sub(1)?)?;
        (number - span.first < span.len as u64).then_some(span)
    }

    /// The pageblock at an index.
    #[inline]
    pub(crate) fn block(&self, index: usize) -> Option<Block<'_>> {
        Some(Block {
            arena: self,
            index,
            free: self.free.get(index)?,
            tails: self.tails.get(index)?,
            record: self.records.get(index)?,
        })
    }

    /// The first frame of a pageblock.
    #[inline]
    pub(crate) fn first_frame(&self, index: usize) -> Pfn {
        let i = self.spans.partition_point(|span| span.index <= index);
        match i.checked_sub(1).and_then(|i| self.spans.get(i)) {
            Some(span) => Pfn((span.first + (index - span.index) as u64) << FRAMES_SHIFT),
            None => Pfn(0),
        }
    }

    /// The zone with a number.
    #[inline]
    pub(crate) fn zone(&self, number: usize) -> Option<&Zone> {
        if number >= self.nr_zones {
            return None;
        }
        // SAFETY: below the number of zones in the array that outlives the arena.
        Some(unsafe { self.zones.add(number).as_ref() })
    }

    /// The bitmap that a pageblock with this record is filed in.
    pub(crate) fn list_of(record: Record) -> Option<usize> {
        if record.filed() == 0 || record.has(Record::ISOLATE) {
            return None;
        }
        Some(Hints::list(record.stored_type().index(), record.filed() - 1))
    }
}
