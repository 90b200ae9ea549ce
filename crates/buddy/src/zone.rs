//! Zones: the memory of one kind on one node, and how much of it is free.
//!
//! ```text
//! Zone ─▶ Segment ─▶ Segment ...      runs of pageblocks, each in one arena; more are appended when memory is added
//! ```
//!
//! **Who writes what:** `free` and the special counts are changed by whoever changed a line, by the same number; marks,
//! reserves and the comfort level are recomputed under the configuration lock; boost and flags are atomics that
//! tolerate races, being advice.

use core::ptr::NonNull;

use kmem_gfp::alloc_flags::{AllocFlags, depth::ZoneLevels};
use kmem_gfp::{MigrateType, NodeId, Order, Watermark, ZoneKind};
use kmem_sync::SpinLock;
use kmem_sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::arena::Arena;
use crate::block::Block;
use crate::compact::Progress;
use crate::cpu::CpuBlock;
use crate::hints::Hints;
use crate::pcp::{Stack, ZoneSet, stack_index};

/// Pageblocks of one zone with consecutive indices in one arena.
#[derive(Debug)]
pub(crate) struct Segment {
    /// The arena; it lives as long as the segment.
    pub(crate) arena: NonNull<Arena>,
    /// The first pageblock.
    pub(crate) start: usize,
    /// One past the last.
    pub(crate) end: usize,
    /// The next segment of the same zone.
    pub(crate) next: AtomicPtr<Segment>,
}

// SAFETY: shared access to an arena that lives as long.
unsafe impl Sync for Segment {}
// SAFETY: as above.
unsafe impl Send for Segment {}

impl Segment {
    /// The arena of the pageblocks.
    #[inline]
    pub(crate) fn arena(&self) -> &Arena {
        // SAFETY: set when the segment was built, beside its arena, in memory that outlives both.
        unsafe { self.arena.as_ref() }
    }
}

/// Facts about a zone that change its behaviour; advice, not state.
pub(crate) mod flag {
    /// Free pages are below the high mark.
    pub(crate) const BELOW_HIGH: u32 = 1 << 0;
    /// Background reclaim has a boost to work off.
    pub(crate) const BOOSTED: u32 = 1 << 1;
    /// The per-CPU sets are switched off.
    pub(crate) const SETS_OFF: u32 = 1 << 2;
}

/// The memory of one kind on one node.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Zone {
    /// The free pages, isolated ones included; nothing else on its line.
    pub(crate) free: AtomicI64,
    /// Free pages of highatomic, CMA and isolated pageblocks.
    special: [AtomicI64; 3],
    /// Pages of pageblocks in the highatomic reserve.
    pub(crate) reserved_highatomic: AtomicU64,
    pub(crate) boost: AtomicU64,
    pub(crate) flags: AtomicU32,
    /// Per-CPU sets are closed to the fast path.
    pub(crate) pressed: AtomicBool,
    /// Below so many free pages watermarks must be looked at for each request.
    pub(crate) comfort: AtomicI64,

    pub(crate) number: usize,
    pub(crate) node: NodeId,
    pub(crate) kind: ZoneKind,
    /// Where the zone's sets lie in each CPU's array; `None` for a zone that never has memory.
    pub(crate) set: Option<usize>,
    pub(crate) segments: AtomicPtr<Segment>,
    pub(crate) managed: AtomicU64,
    pub(crate) present: AtomicU64,
    pub(crate) cma_pages: AtomicU64,
    /// What compactions remember of the zone.
    pub(crate) progress: Progress,
    /// Pageblocks that are isolated.
    pub(crate) isolated_blocks: AtomicU64,
    pub(crate) span_start: AtomicU64,
    pub(crate) span_end: AtomicU64,
    pub(crate) marks: [AtomicU64; Watermark::COUNT],
    pub(crate) lowmem_reserve: [AtomicU64; ZoneKind::COUNT],
    /// Serialises opening and closing the sets; how many drains want them closed.
    pub(crate) gate: SpinLock<u32>,

    /// Counts of contexts without a CPU of their own.
    pub(crate) allocated_pages: AtomicU64,
    pub(crate) allocated_calls: AtomicU64,
    pub(crate) freed_pages: AtomicU64,
    pub(crate) numa_miss: AtomicU64,
    pub(crate) numa_foreign: AtomicU64,
    pub(crate) numa_other: AtomicU64,
}

const SPECIAL: [MigrateType; 3] = [MigrateType::HighAtomic, MigrateType::Cma, MigrateType::Isolate];

impl Zone {
    pub(crate) fn new(number: usize, node: NodeId, kind: ZoneKind, set: Option<usize>) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            free: AtomicI64::new(0),
            special: core::array::from_fn(|_| AtomicI64::new(0)),
            reserved_highatomic: zero(),
            boost: zero(),
            flags: AtomicU32::new(0),
            pressed: AtomicBool::new(false),
            comfort: AtomicI64::new(0),
            number,
            node,
            kind,
            set,
            segments: AtomicPtr::new(core::ptr::null_mut()),
            managed: zero(),
            present: zero(),
            cma_pages: zero(),
            progress: Progress::new(),
            isolated_blocks: zero(),
            span_start: AtomicU64::new(u64::MAX),
            span_end: zero(),
            marks: core::array::from_fn(|_| zero()),
            lowmem_reserve: core::array::from_fn(|_| zero()),
            gate: SpinLock::new(0),
            allocated_pages: zero(),
            allocated_calls: zero(),
            freed_pages: zero(),
            numa_miss: zero(),
            numa_foreign: zero(),
            numa_other: zero(),
        }
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// What kind of memory it is.
    pub fn kind(&self) -> ZoneKind {
        self.kind
    }

    /// Pages that exist and are not reserved.
    pub fn managed_pages(&self) -> u64 {
        self.managed.load(Ordering::Relaxed)
    }

    /// Pages that exist.
    pub fn present_pages(&self) -> u64 {
        self.present.load(Ordering::Relaxed)
    }

    /// Free pages (`NR_FREE_PAGES`): those in the bitmaps, without isolated ones and without the per-CPU sets.
    pub fn free_pages(&self) -> u64 {
        let isolated = self.free_of(MigrateType::Isolate);
        (self.free.load(Ordering::Relaxed).max(0) as u64).saturating_sub(isolated)
    }

    /// Free pages in pageblocks of a type that is counted apart: highatomic, CMA or isolated; 0 for the others.
    pub fn free_of(&self, migratetype: MigrateType) -> u64 {
        let index = SPECIAL.iter().position(|&special| special == migratetype);
        index.and_then(|i| self.special.get(i)).map_or(0, |count| count.load(Ordering::Relaxed).max(0) as u64)
    }

    /// A watermark in pages, the boost included.
    pub fn watermark(&self, mark: Watermark) -> u64 {
        self.mark(mark).saturating_add(self.boost_pages())
    }

    /// The present watermark boost in pages.
    pub fn boost_pages(&self) -> u64 {
        self.boost.load(Ordering::Relaxed)
    }

    /// Takes up to `pages` off the boost: background reclaim has worked for them.
    pub fn lower_boost(&self, pages: u64) {
        let mut boost = self.boost.load(Ordering::Relaxed);
        while let Err(now) =
            self.boost.compare_exchange(boost, boost.saturating_sub(pages), Ordering::Relaxed, Ordering::Relaxed)
        {
            boost = now;
        }
    }

    /// Pages in the highatomic reserve, free or not.
    pub fn reserved_highatomic_pages(&self) -> u64 {
        self.reserved_highatomic.load(Ordering::Relaxed)
    }

    /// What this zone keeps back from requests with the given ceiling, in pages.
    pub fn lowmem_reserve(&self, ceiling: ZoneKind) -> u64 {
        self.lowmem_reserve.get(ceiling.index()).map_or(0, |pages| pages.load(Ordering::Relaxed))
    }

    pub(crate) fn mark(&self, mark: Watermark) -> u64 {
        self.marks.get(mark as usize).map_or(0, |pages| pages.load(Ordering::Relaxed))
    }

    pub(crate) fn is_populated(&self) -> bool {
        self.present_pages() > 0
    }

    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    pub(crate) fn set_flag(&self, flag: u32, value: bool) {
        if self.has_flag(flag) != value {
            if value {
                self.flags.fetch_or(flag, Ordering::Relaxed);
            } else {
                self.flags.fetch_and(!flag, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn count_special(&self, migratetype: u32, pages: i64) {
        let index = SPECIAL.iter().position(|&special| special as u32 == migratetype);
        if let Some(count) = index.and_then(|i| self.special.get(i)) {
            count.fetch_add(pages, Ordering::Relaxed);
        }
    }

    /// Where pages of a pageblock of this type are cached: the byte offset of the order-0 stack in a CPU's block.
    pub(crate) fn list_of(&self, migratetype: MigrateType) -> u32 {
        let bytes = match (self.set, stack_index(Order::ZERO, migratetype)) {
            (Some(set), Some(stack)) => {
                CpuBlock::size(set) + core::mem::offset_of!(ZoneSet, stacks) + stack * size_of::<Stack>()
            }
            _ => CpuBlock::NEVER,
        };
        bytes as u32
    }

    /// The zone's segments.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &Segment> {
        let mut next = self.segments.load(Ordering::Acquire);
        core::iter::from_fn(move || {
            // SAFETY: segments are published whole and live as long as the allocator.
            let segment = unsafe { next.as_ref() }?;
            next = segment.next.load(Ordering::Acquire);
            Some(segment)
        })
    }

    /// Appends a segment. Under the configuration lock.
    pub(crate) fn append(&self, segment: &Segment) {
        let mut link = &self.segments;
        // SAFETY: as in `segments`.
        while let Some(last) = unsafe { link.load(Ordering::Acquire).as_ref() } {
            link = &last.next;
        }
        link.store(core::ptr::from_ref(segment).cast_mut(), Ordering::Release);
    }

    /// All pageblocks that hold memory of this zone.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = Block<'_>> {
        self.segments()
            .flat_map(|segment| (segment.start..segment.end).filter_map(|index| segment.arena().block(index)))
    }

    /// Calls `visit` for pageblocks filed in `list`, as long as it returns `true`. Within each segment the search
    /// begins `part / parts` of the way in, so that CPUs open different pageblocks.
    pub(crate) fn each_filed<'z>(
        &'z self,
        list: usize,
        (part, parts): (usize, usize),
        filter: impl Fn(u64) -> u64 + Copy,
        mut visit: impl FnMut(&Block<'z>) -> bool,
    ) {
        for segment in self.segments() {
            let arena = segment.arena();
            if arena.hints.is_empty(list) {
                continue;
            }
            // Even, so that pairs stay pairs.
            let middle = (segment.start + (segment.end - segment.start) * part / parts.max(1)) & !1;
            let middle = middle.max(segment.start);
            for (mut from, to) in [(middle, segment.end), (segment.start, middle)] {
                while let Some(index) = arena.hints.find(list, from, to, filter) {
                    let Some(block) = arena.block(index) else { break };
                    if !visit(&block) {
                        return;
                    }
                    from = index + 1;
                }
            }
        }
    }

    /// The first pageblock filed in `list`.
    pub(crate) fn first_filed(&self, list: usize, filter: impl Fn(u64) -> u64 + Copy) -> Option<Block<'_>> {
        self.segments().find_map(|segment| {
            let arena = segment.arena();
            arena.block(arena.hints.find(list, segment.start, segment.end, filter)?)
        })
    }

    /// The figures of a watermark check for a request with this ceiling.
    pub(crate) fn levels(&self, mark: Watermark, ceiling: ZoneKind) -> ZoneLevels {
        ZoneLevels {
            free: self.free_pages(),
            free_highatomic: self.free_of(MigrateType::HighAtomic),
            free_cma: self.free_of(MigrateType::Cma),
            mark: self.mark(mark),
            boost: self.boost_pages(),
            lowmem_reserve: self.lowmem_reserve(ceiling),
        }
    }

    /// Whether the zone may serve a request (`zone_watermark_ok`): pages enough, and for orders above 0 a block that is
    /// large enough.
    #[doc(alias = "zone_watermark_ok")]
    pub fn watermark_ok(&self, order: Order, mark: Watermark, ceiling: ZoneKind, flags: AllocFlags) -> bool {
        self.watermark_ok_with(order, mark, ceiling, flags, 0)
    }

    /// As [`watermark_ok`](Self::watermark_ok), as if `extra` more pages were free.
    pub(crate) fn watermark_ok_with(
        &self,
        order: Order,
        mark: Watermark,
        ceiling: ZoneKind,
        flags: AllocFlags,
        extra: u64,
    ) -> bool {
        if flags.contains(AllocFlags::NO_WATERMARKS) {
            return true;
        }
        let mut levels = self.levels(mark, ceiling);
        levels.free = levels.free.saturating_add(extra);
        if !levels.passes(order, flags.with_watermark(mark)) {
            return false;
        }
        order == Order::ZERO || self.has_block(order, flags)
    }

    /// Whether some list that the flags allow holds a block of `order` or more.
    pub(crate) fn has_block(&self, order: Order, flags: AllocFlags) -> bool {
        let mut types = [true, true, true, false, false];
        types[MigrateType::HighAtomic.index()] = flags.intersects(AllocFlags::HIGHATOMIC.union(AllocFlags::OOM));
        types[MigrateType::Cma.index()] = flags.contains(AllocFlags::CMA);
        types.iter().enumerate().any(|(migratetype, &allowed)| allowed && self.has_block_of(migratetype, order.get()))
    }

    pub(crate) fn has_block_of(&self, migratetype: usize, order: u32) -> bool {
        if order > 9 {
            return self.first_filed(Hints::list(migratetype, 9), pairs).is_some();
        }
        (order..10).any(|k| {
            let list = Hints::list(migratetype, k);
            let mut found = false;
            self.each_filed(
                list,
                (0, 1),
                |word| word,
                |block| {
                    // A hint may promise more than there is.
                    block.drop_hint(list);
                    found = block.record().filed() > order && block.record().migratetype().index() == migratetype;
                    !found
                },
            );
            found
        })
    }
}

/// Of a word of leaves, the lower pageblocks of pairs.
#[inline(always)]
pub(crate) const fn pairs(word: u64) -> u64 {
    word & word >> 1 & 0x5555_5555_5555_5555
}

/// Of a word of leaves, the pageblocks whose neighbour is not in it.
#[inline(always)]
pub(crate) const fn singles(word: u64) -> u64 {
    word & !(pairs(word) * 3)
}
