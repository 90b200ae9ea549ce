//! The program itself: one event in, some operations out.

use super::caches::{CacheBook, CacheId, is_metadata, kmalloc_name};
use super::census::{Census, Fate};
use super::linux::{LinuxFigures, LinuxSlabs};
use super::op::{Level, Mark, Op, OpKind, Ref};
use super::pages::{Pages, Piece};
use super::tables::{KeyMap, Slots};
use crate::trace::{Event, FieldFault, GfpNames, Line, TraceGfp, hex_list};
use std::collections::VecDeque;

/// Beyond this size kmalloc asks the page allocator.
const KMALLOC_MAX_CACHE: u64 = 8192;
/// The greatest order of a page allocator.
const MAX_ORDER: u8 = 10;
/// The greatest order of a slab.
const SLAB_MAX_ORDER: u8 = 3;
/// Operations that wait for a later event to tell what they are.
const DELAY: usize = 1024;
/// A free that comes this many events after its address has been handed out again is that of the object before.
const LATE_FREE: u64 = 64;
/// The recorded kernel's direct map (`nokaslr`).
const DIRECT_MAP: std::ops::Range<u64> = 0xffff_8880_0000_0000..0xffff_c900_0000_0000;
/// Marks kept for a whole trace, at most.
pub(crate) const MARKS: u64 = 1024;

/// An object of the trace that is live.
#[derive(Clone, Copy, Debug)]
struct Object {
    used: Ref,
    cache: CacheId,
    /// What Linux took for it.
    stride: u64,
    /// Linux's own: not replayed.
    metadata: bool,
    /// A kmalloc of whole pages.
    large: bool,
    /// Taken from a cache by name, not by kmalloc.
    named: bool,
    /// Stands in a slab of the books.
    booked: bool,
    /// Given to `kvfree_rcu`: dead to its owner, not yet seen freed.
    deferred: bool,
}

/// What one allocation event says of an object.
struct Birth<'a> {
    ptr: u64,
    cache: CacheId,
    stride: u64,
    call_site: &'a [u8],
    cache_name: Option<&'a [u8]>,
    large: bool,
}

/// Turns the events of one trace into operations. See the module for how.
#[derive(Debug)]
pub struct Program {
    level: Level,
    census: Census,
    linux: LinuxSlabs,
    caches: CacheBook,
    gfp: GfpNames,
    objects: KeyMap<Object>,
    object_slots: Slots,
    pages: Pages,
    /// Page allocations in the delay line that a later event may withdraw, by frame: position in the line, block, order.
    open: KeyMap<(u64, Ref, u8)>,
    /// Page frees that belong to a slab or a large kmalloc that has been given back already, by frame.
    expected: KeyMap<()>,
    /// Frees that may still come late, by address: until which event.
    late: KeyMap<u64>,
    line: VecDeque<Op>,
    line_start: u64,
    last_large: (u32, u64, u64),
    /// A `slab_new` has been seen.
    probes: bool,
    stride: u64,
    marks: u64,
    cpu: u16,
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

    /// The caches that have been mentioned.
    #[must_use]
    pub const fn caches(&self) -> &CacheBook {
        &self.caches
    }

    fn push(&mut self, kind: OpKind) {
        self.line.push_back(Op { cpu: self.cpu, kind });
    }

    /// A mark; there are never more than [`MARKS`] in a trace of any length, evenly spaced.
    fn mark(&mut self, phase: Option<String>) {
        let mark = Mark { event: self.census.events, linux_slab_pages: self.linux.all_pages(), phase };
        self.push(OpKind::Mark(Box::new(mark)));
        self.marks += 1;
        if self.marks >= MARKS {
            self.stride *= 2;
            self.marks /= 2;
        }
    }

    const fn has_objects(&self) -> bool {
        matches!(self.level, Level::Objects | Level::All)
    }

    const fn has_pages(&self) -> bool {
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

    // Objects

    fn kmalloc(&mut self, call_site: &[u8], ptr: u64, size: u64, alloc: u64, gfp: TraceGfp, node: i32) -> Fate {
        if ptr == 16 {
            self.census.nothing_to_do += 1;
            return Fate::Replayed;
        }
        let large = alloc > KMALLOC_MAX_CACHE;
        let pfn = frame(ptr);
        if large && let Some(pfn) = pfn {
            self.not_plain_pages(pfn);
            let _ = self.linux.remove(pfn);
        }
        let told = pfn.and_then(|p| self.linux.at(p)).filter(|v| v.probed).and_then(|v| v.cache);
        let cache = told.unwrap_or_else(|| {
            let name = if large { "kmalloc-large".into() } else { kmalloc_name(alloc, gfp) };
            self.caches.id(name.as_bytes(), 0, 0)
        });
        let birth = Birth { ptr, cache, stride: alloc, call_site, cache_name: None, large };
        self.born(&birth, |object| OpKind::Kmalloc { object, size, gfp, node })
    }

    fn born(&mut self, birth: &Birth<'_>, op: impl FnOnce(Ref) -> OpKind) -> Fate {
        if birth.ptr == 0 {
            return Fate::FailedInTrace;
        }
        match self.enter(birth) {
            Some(used) => self.object_op(op(used)),
            None => Fate::Metadata,
        }
    }

    fn object_op(&mut self, op: OpKind) -> Fate {
        if !self.has_objects() {
            return Fate::OtherLevel;
        }
        self.push(op);
        Fate::Replayed
    }

    /// Books an object; `None` if it is Linux's own.
    fn enter(&mut self, birth: &Birth<'_>) -> Option<Ref> {
        if let Some(old) = self.objects.remove(&birth.ptr)
            && !old.deferred
        {
            // Its free was lost, or comes late.
            self.census.reused_live += 1;
            self.late.insert(birth.ptr, self.census.events + LATE_FREE);
            self.release(birth.ptr, &old);
            if !old.metadata && self.has_objects() {
                self.push(OpKind::Kfree { object: old.used });
            }
        }
        let metadata = is_metadata(birth.call_site, birth.cache_name);
        let pfn = frame(birth.ptr).filter(|_| !birth.large);
        let seen = pfn.and_then(|p| self.linux.at(p)).is_some_and(|v| v.probed);
        let booked = pfn.is_some_and(|p| self.linux.object(p, birth.cache, metadata));
        if !booked && !metadata && !birth.large {
            self.linux.older_object(birth.stride, true);
        }
        let used = if metadata { Ref { slot: u32::MAX, turn: 0, seen } } else { self.object_slots.take(seen) };
        let object = Object {
            used,
            cache: birth.cache,
            stride: birth.stride,
            metadata,
            large: birth.large,
            named: birth.cache_name.is_some(),
            booked,
            deferred: false,
        };
        self.objects.insert(birth.ptr, object);
        (!metadata).then_some(used)
    }

    /// Takes an object out of Linux's books and gives its slot back.
    fn release(&mut self, ptr: u64, object: &Object) {
        if object.booked {
            if let Some(pfn) = frame(ptr) {
                self.linux.object_freed(pfn);
            }
        } else if !object.metadata && !object.large {
            self.linux.older_object(object.stride, false);
        }
        if !object.metadata {
            self.object_slots.retire(object.used);
        }
        if object.large
            && let Some(pfn) = frame(ptr)
        {
            self.expected.insert(pfn, ());
        }
    }

    /// The free of `ptr`, if it is one of something live: the object, or what to say of the event.
    fn take(&mut self, ptr: u64) -> Result<Object, Fate> {
        if ptr == 0 || ptr == 16 {
            self.census.nothing_to_do += 1;
            return Err(Fate::Replayed);
        }
        if !self.late.is_empty()
            && let Some(until) = self.late.remove(&ptr)
            && self.census.events <= until
        {
            return Err(Fate::Duplicate);
        }
        match self.objects.remove(&ptr) {
            Some(object) if object.deferred => Err(Fate::Duplicate),
            Some(object) => {
                self.release(ptr, &object);
                if object.metadata { Err(Fate::Metadata) } else { Ok(object) }
            }
            None => Err(Fate::UnmatchedFree),
        }
    }

    fn dies(&mut self, ptr: u64, named: bool) -> Fate {
        match self.take(ptr) {
            Ok(o) if named && o.named => self.object_op(OpKind::CacheFree { object: o.used, cache: o.cache }),
            Ok(o) => self.object_op(OpKind::Kfree { object: o.used }),
            Err(fate) => fate,
        }
    }

    fn deferred(&mut self, ptr: u64) -> Fate {
        if (DIRECT_MAP.end..0xffff_ea00_0000_0000).contains(&ptr) {
            // vmalloc's.
            return Fate::Unsupported;
        }
        match self.take(ptr) {
            Ok(object) => {
                self.objects.insert(ptr, Object { deferred: true, booked: false, ..object });
                self.object_op(OpKind::KfreeRcu { object: object.used })
            }
            Err(fate) => fate,
        }
    }

    fn free_bulk(&mut self, list: &[u64]) -> Fate {
        let mut by_cache: Vec<(CacheId, Vec<Ref>)> = Vec::new();
        let mut fate = Fate::Bookkeeping;
        for &ptr in list {
            match self.take(ptr) {
                Ok(o) if !o.named => fate = self.object_op(OpKind::Kfree { object: o.used }),
                Ok(o) => match by_cache.iter_mut().find(|(c, _)| *c == o.cache) {
                    Some((_, refs)) => refs.push(o.used),
                    None => by_cache.push((o.cache, vec![o.used])),
                },
                Err(other) => fate = other,
            }
        }
        for (cache, refs) in by_cache {
            fate = self.object_op(OpKind::CacheFreeBulk { objects: refs.into(), cache });
        }
        fate
    }

    // Pages

    fn free_pages(&mut self, pfn: u64, order: u8) -> u64 {
        let (line, cpu) = (&mut self.line, self.cpu);
        self.pages.free(pfn, 1 << order, |Piece { block, offset, order, last }| {
            line.push_back(Op { cpu, kind: OpKind::PageFree { block, offset, order, last } });
        })
    }

    fn page_alloc(&mut self, pfn: u64, order: u8, migratetype: u8, gfp: TraceGfp) -> Fate {
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
    fn not_plain_pages(&mut self, pfn: u64) {
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

    fn page_free(&mut self, pfn: u64, order: u8) -> Fate {
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

    fn page_alloc_bulk(&mut self, got: u64, migratetype: u8, gfp: TraceGfp, pfns: &[u8]) -> Result<Fate, FieldFault> {
        let list: Vec<u64> = hex_list(pfns, "pfns").collect::<Result<_, _>>()?;
        self.census.bulk_cut_off += got.saturating_sub(list.len() as u64);
        if !self.has_pages() {
            return Ok(Fate::OtherLevel);
        }
        let mut blocks = Vec::with_capacity(list.len());
        for pfn in list {
            // One that fell back to a single page has been reported before.
            if pfn != 0 && !self.pages.is_live(pfn) {
                blocks.push(self.pages.alloc(pfn, 0));
            }
        }
        if blocks.is_empty() {
            return Ok(if got == 0 { Fate::FailedInTrace } else { Fate::Duplicate });
        }
        self.push(OpKind::PageAllocBulk { blocks: blocks.into(), gfp, migratetype });
        Ok(Fate::Replayed)
    }

    // Slabs

    fn slab_new(&mut self, name: &[u8], pfn: u64, order: u8) -> Fate {
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

    fn slab_free(&mut self, pfn: u64, order: u8) -> Fate {
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
    fn remove_slab(&mut self, pfn: u64) -> bool {
        let Some(slab) = self.linux.remove(pfn) else { return false };
        if slab.live > 0 {
            // Freed without an event: a probe was missed, or a bulk event had no room.
            let start = DIRECT_MAP.start + slab.pfn * 4096;
            for ptr in (start..start + u64::from(slab.pages) * 4096).step_by(8) {
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

/// The frame of an address in the direct map.
fn frame(ptr: u64) -> Option<u64> {
    DIRECT_MAP.contains(&ptr).then(|| (ptr - DIRECT_MAP.start) / 4096)
}
