//! The program itself: one event in, some operations out.

use super::areas::Areas;
use super::caches::CacheBook;
use super::census::{Census, Fate};
use super::linux::{LinuxFigures, LinuxSlabs};
use super::objects::{Birth, Object};
use super::op::{Level, Mark, Op, OpKind, Ref};
use super::pages::Pages;
use super::tables::{KeyMap, Slots};
use crate::trace::{Event, FieldFault, GfpNames, Line, hex_list};
use std::collections::VecDeque;

/// Beyond this size kmalloc asks the page allocator.
pub(super) const KMALLOC_MAX_CACHE: u64 = 8192;
/// Operations that wait for a later event to tell what they are.
const DELAY: usize = 1024;
/// The recorded kernel's direct map (`nokaslr`).
pub(super) const DIRECT_MAP: std::ops::Range<u64> = 0xffff_8880_0000_0000..0xffff_c900_0000_0000;
/// Marks kept for a whole trace, at most.
pub(crate) const MARKS: u64 = 1024;

/// Turns the events of one trace into operations. See the module for how.
#[derive(Debug)]
pub struct Program {
    pub(super) level: Level,
    pub(super) census: Census,
    pub(super) linux: LinuxSlabs,
    pub(super) caches: CacheBook,
    pub(super) gfp: GfpNames,
    pub(super) objects: KeyMap<Object>,
    pub(super) object_slots: Slots,
    pub(super) pages: Pages,
    pub(super) areas: Areas,
    /// Page allocations in the delay line that a later event may withdraw, by frame: position in the line, block, order.
    pub(super) open: KeyMap<(u64, Ref, u8)>,
    /// Page frees that belong to a slab or a large kmalloc that has been given back already, by frame.
    pub(super) expected: KeyMap<()>,
    /// Frees that may still come late, by address: until which event.
    pub(super) late: KeyMap<u64>,
    pub(super) line: VecDeque<Op>,
    pub(super) line_start: u64,
    pub(super) last_large: (u32, u64, u64),
    /// A `slab_new` has been seen.
    pub(super) probes: bool,
    pub(super) stride: u64,
    pub(super) marks: u64,
    pub(super) cpu: u16,
}

impl Program {
    /// A program that replays `level`, with what is known of the caches.
    #[must_use]
    pub fn new(level: Level, caches: CacheBook) -> Self {
        Self {
            level,
            census: Census::default(),
            linux: LinuxSlabs::default(),
            caches,
            gfp: GfpNames::default(),
            objects: KeyMap::default(),
            object_slots: Slots::default(),
            pages: Pages::default(),
            areas: Areas::default(),
            open: KeyMap::default(),
            expected: KeyMap::default(),
            late: KeyMap::default(),
            line: VecDeque::with_capacity(DELAY * 2),
            line_start: 0,
            last_large: (0, 0, 0),
            probes: false,
            stride: 64,
            marks: 0,
            cpu: 0,
        }
    }

    /// Reads one event.
    ///
    /// # Errors
    /// [`FieldFault`] if it cannot be understood; nothing has changed then, but that the event is counted.
    pub fn event(&mut self, line: &Line<'_>) -> Result<(), FieldFault> {
        self.cpu = line.cpu as u16;
        if self.census.events == 0 {
            self.mark(None);
        }
        self.census.count(line.event, line.cpu);
        let event = Event::parse(line.event, line.fields)?;
        let fate = self.dispatch(&event, line.pid)?;
        self.census.settle(fate, line.event);
        if self.census.events.is_multiple_of(self.stride) {
            self.mark(None);
        }
        Ok(())
    }

    /// The recorder lost `events`.
    pub fn lost(&mut self, events: u64) {
        self.census.lost = self.census.lost.saturating_add(events);
    }

    /// Moves the operations that wait no longer to `out`; all of them if the trace is `over`.
    pub fn drain(&mut self, out: &mut Vec<Op>, over: bool) {
        let keep = if over { 0 } else { DELAY };
        let ready = self.line.len().saturating_sub(keep);
        self.line_start += ready as u64;
        out.extend(self.line.drain(..ready).filter(|op| !matches!(op.kind, OpKind::Void)));
        if self.open.len() > DELAY * 4 || over {
            let start = self.line_start;
            self.open.retain(|_, (at, ..)| *at >= start);
        }
        if over {
            self.census.finish();
        }
    }

    /// Ends the program: the last operations go to `out`.
    pub fn finish(&mut self, out: &mut Vec<Op>) {
        self.mark(None);
        self.drain(out, true);
    }

    /// What became of the events.
    #[must_use]
    pub const fn census(&self) -> &Census {
        &self.census
    }

    /// Linux's side.
    #[must_use]
    pub const fn linux(&self) -> &LinuxSlabs {
        &self.linux
    }

    /// Linux's figures.
    #[must_use]
    pub fn linux_figures(&self) -> LinuxFigures {
        self.linux.figures()
    }

    /// Linux's side of vmalloc.
    #[must_use]
    pub fn linux_areas(&self) -> super::LinuxAreas {
        self.areas.linux
    }

    /// The caches that have been mentioned.
    #[must_use]
    pub const fn caches(&self) -> &CacheBook {
        &self.caches
    }

    pub(super) fn push(&mut self, kind: OpKind) {
        self.line.push_back(Op { cpu: self.cpu, kind });
    }

    /// A mark; there are never more than [`MARKS`] in a trace of any length, evenly spaced.
    fn mark(&mut self, phase: Option<String>) {
        let mark = Mark {
            event: self.census.events,
            linux_slab_pages: self.linux.all_pages(),
            linux_lazy_pages: self.areas.linux.lazy_pages_end,
            phase,
        };
        self.push(OpKind::Mark(Box::new(mark)));
        self.marks += 1;
        if self.marks >= MARKS {
            self.stride *= 2;
            self.marks /= 2;
        }
    }

    pub(super) const fn has_objects(&self) -> bool {
        matches!(self.level, Level::Objects | Level::All)
    }

    pub(super) const fn has_pages(&self) -> bool {
        matches!(self.level, Level::Pages | Level::All)
    }

    fn dispatch(&mut self, event: &Event<'_>, pid: u32) -> Result<Fate, FieldFault> {
        Ok(match *event {
            Event::CacheAlloc { call_site, ptr, name, bytes_req, bytes_alloc, gfp, node } => {
                let cache = self.caches.id(name, bytes_req as u32, bytes_alloc as u32);
                let gfp = self.gfp.get(gfp);
                let birth = Birth { ptr, cache, stride: bytes_alloc, call_site, cache_name: Some(name), large: false };
                self.born(&birth, |object| OpKind::CacheAlloc { object, cache, gfp, node })
            }
            Event::CacheFree { ptr, .. } | Event::Kfree { ptr } => {
                let named = matches!(event, Event::CacheFree { .. });
                self.dies(ptr, named)
            }
            Event::Kmalloc { call_site, ptr, bytes_req, bytes_alloc, gfp, node } => {
                let large = bytes_alloc > KMALLOC_MAX_CACHE;
                if large
                    && ptr != 0
                    && std::mem::replace(&mut self.last_large, (pid, ptr, bytes_req)) == (pid, ptr, bytes_req)
                {
                    // The kernel reports it from two functions.
                    return Ok(Fate::Duplicate);
                }
                let gfp = self.gfp.get(gfp);
                self.kmalloc(call_site, ptr, bytes_req, bytes_alloc, gfp, node)
            }
            Event::KvfreeRcu { ptr } => self.deferred(ptr),
            Event::PageAlloc { pfn, order, migratetype, gfp } => {
                let gfp = self.gfp.get(gfp);
                self.page_alloc(pfn, order, migratetype, gfp)
            }
            Event::PageFree { pfn, order } => self.page_free(pfn, order),
            Event::SlabNew { name, pfn, order } => self.slab_new(name, pfn, order),
            Event::SlabFree { pfn, order } => self.slab_free(pfn, order),
            Event::PageAllocBulk { got, migratetype, gfp, pfns } => {
                let gfp = self.gfp.get(gfp);
                self.page_alloc_bulk(got, migratetype, gfp, pfns)?
            }
            Event::CacheAllocBulk { call_site, name, bytes_req, bytes_alloc, gfp, nr, ok, ptrs } => {
                if !ok {
                    return Ok(Fate::FailedInTrace);
                }
                let cache = self.caches.id(name, bytes_req as u32, bytes_alloc as u32);
                let gfp = self.gfp.get(gfp);
                let list: Vec<u64> = hex_list(ptrs, "ptrs").collect::<Result<_, _>>()?;
                self.census.bulk_cut_off += nr.saturating_sub(list.len() as u64);
                let mut births = list.iter().map(|&ptr| Birth {
                    ptr,
                    cache,
                    stride: bytes_alloc,
                    call_site,
                    cache_name: Some(name),
                    large: false,
                });
                let objects: Box<[Ref]> = births.by_ref().filter_map(|b| self.enter(&b)).collect();
                if objects.is_empty() {
                    return Ok(Fate::Metadata);
                }
                self.object_op(OpKind::CacheAllocBulk { objects, cache, gfp })
            }
            Event::CacheFreeBulk { nr, ptrs, .. } => {
                let list: Vec<u64> = hex_list(ptrs, "ptrs").collect::<Result<_, _>>()?;
                self.census.bulk_cut_off += nr.saturating_sub(list.len() as u64);
                self.free_bulk(&list)
            }
            Event::MigrateDst { dst, order } => {
                let gfp = self.gfp.get(b"GFP_HIGHUSER_MOVABLE");
                self.page_alloc(dst, order, 1, gfp)
            }
            Event::AreaAlloc { start, size, align, failed } => self.area_alloc(start, size, align, failed),
            Event::AreaFree { start, lazy_pages, lazy_limit } => self.area_free(start, lazy_pages, lazy_limit),
            Event::AreaPurge { purged } => self.area_purge(purged),
            Event::PageFreeBatched => Fate::Duplicate,
            Event::Mark { text } => {
                self.mark(Some(String::from_utf8_lossy(text).into_owned()));
                Fate::Bookkeeping
            }
            Event::PageAllocExtfrag | Event::Other(crate::trace::Known::Activity) => Fate::Bookkeeping,
            Event::Other(crate::trace::Known::OtherAllocator) => Fate::Unsupported,
            Event::Unknown => Fate::Unknown,
        })
    }
}

/// The frame of an address in the direct map.
pub(super) fn frame(ptr: u64) -> Option<u64> {
    DIRECT_MAP.contains(&ptr).then(|| (ptr - DIRECT_MAP.start) / 4096)
}
