//! One operation on the allocator, checked from both sides.

use super::integrity::Integrity;
use super::sample::{Sample, Samples};
use super::slots::{Slot, SlotTable};
use crate::program::{CacheId, CacheSpec, Mark, Op, OpKind, Ref};
use crate::target::{FreeFault, ReplayTarget, TargetError, Usage};
use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

const PAGE: usize = 4096;
const LARGE: usize = 8192;
/// Requests between two looks at the machine's page counts.
const LOOK_EVERY: u64 = 16;
/// More caches than any kernel has.
const CACHES: usize = 1 << 14;

/// A cache of the machine and the size of its objects, once it has been created.
type Created<C> = OnceLock<(C, usize)>;

/// A number that goes up and down, and its maximum.
#[derive(Debug, Default)]
pub(crate) struct Level {
    pub(crate) now: AtomicU64,
    pub(crate) peak: AtomicU64,
}

impl Level {
    fn add(&self, n: u64) {
        let now = self.now.fetch_add(n, Ordering::Relaxed) + n;
        self.note(now);
    }

    fn sub(&self, n: u64) {
        self.now.fetch_sub(n, Ordering::Relaxed);
    }

    pub(crate) fn note(&self, now: u64) {
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> (u64, u64) {
        (self.now.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed))
    }
}

/// Everything that operations of one replay share.
pub(crate) struct Executor<'a, T: ReplayTarget> {
    pub(crate) target: &'a T,
    pub(crate) integrity: Integrity,
    pub(crate) samples: Samples,
    pub(crate) stop: AtomicBool,
    objects: SlotTable,
    blocks: SlotTable,
    areas: SlotTable,
    /// Addresses of live areas, from the first to behind the last.
    ranges: Mutex<BTreeMap<usize, usize>>,
    /// Of blocks that come back in parts, by slot: which pages have come back.
    parts: Mutex<HashMap<u32, Vec<bool>>>,
    caches: Box<[Created<T::Cache>]>,
    specs: RwLock<Vec<CacheSpec>>,
    creating: Mutex<()>,
    fault: OnceLock<TargetError>,
    pub(crate) live_bytes: Level,
    pub(crate) live_objects: Level,
    pub(crate) large_bytes: Level,
    pub(crate) live_pages: Level,
    pub(crate) slab_pages: Level,
    pub(crate) total_pages: Level,
    pub(crate) metadata_pages: Level,
    pub(crate) live_areas: Level,
    pub(crate) area_pages: Level,
    pub(crate) lazy_pages: Level,
    pub(crate) failed: AtomicU64,
    takes: AtomicU64,
    base_pages: u64,
}

impl<'a, T: ReplayTarget> Executor<'a, T> {
    pub(crate) fn new(target: &'a T) -> Self {
        Self {
            integrity: Integrity::new(target.window()),
            samples: Samples::default(),
            stop: AtomicBool::new(false),
            objects: SlotTable::new(),
            blocks: SlotTable::new(),
            areas: SlotTable::new(),
            ranges: Mutex::new(BTreeMap::new()),
            parts: Mutex::new(HashMap::new()),
            caches: (0..CACHES).map(|_| OnceLock::new()).collect(),
            specs: RwLock::new(Vec::new()),
            creating: Mutex::new(()),
            fault: OnceLock::new(),
            live_bytes: Level::default(),
            live_objects: Level::default(),
            large_bytes: Level::default(),
            live_pages: Level::default(),
            slab_pages: Level::default(),
            total_pages: Level::default(),
            metadata_pages: Level::default(),
            live_areas: Level::default(),
            area_pages: Level::default(),
            lazy_pages: Level::default(),
            failed: AtomicU64::new(0),
            takes: AtomicU64::new(0),
            base_pages: target.usage().total_pages,
            target,
        }
    }

    /// Tells what the caches are like; called before operations that use them.
    pub(crate) fn know(&self, specs: &[CacheSpec]) {
        // A cache may have got its size since.
        let mut known = self.specs.write().unwrap_or_else(PoisonError::into_inner);
        known.clear();
        known.extend_from_slice(specs);
    }

    /// The first thing that went wrong with the machine itself.
    pub(crate) fn fault(self) -> Option<TargetError> {
        self.fault.into_inner()
    }

    /// The cache, if there was memory to create it, and its object size; `None` if the replay is to be given up. A cache is
    /// created at its first use, as the trace does not tell when Linux did.
    fn cache(&self, id: CacheId) -> Option<(Option<T::Cache>, usize)> {
        let place = self.caches.get(id.0 as usize)?;
        if let Some(&(cache, size)) = place.get() {
            return Some((Some(cache), size));
        }
        let specs = self.specs.read().unwrap_or_else(PoisonError::into_inner);
        let spec = specs.get(id.0 as usize)?;
        // Two CPUs may meet here.
        let _turn = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        if place.get().is_none() {
            match self.target.create_cache(spec) {
                Ok(None) => {}
                Ok(Some(cache)) => _ = place.set((cache, spec.size as usize)),
                Err(e) => {
                    let _ = self.fault.set(e);
                    self.stop.store(true, Ordering::Relaxed);
                    return None;
                }
            }
        }
        Some((place.get().map(|c| c.0), spec.size as usize))
    }

    /// The cache, if it has been created: it has if an object of it is live.
    fn known(&self, id: CacheId) -> Option<T::Cache> {
        self.caches.get(id.0 as usize)?.get().map(|c| c.0)
    }

    /// Pages in use because of the replay.
    pub(crate) fn usage(&self) -> Usage {
        let usage = self.target.usage();
        Usage { total_pages: usage.total_pages.saturating_sub(self.base_pages), ..usage }
    }

    fn look(&self) {
        let usage = self.usage();
        self.slab_pages.note(usage.slab_pages);
        self.total_pages.note(usage.total_pages);
        self.metadata_pages.note(usage.metadata_pages);
    }

    /// Runs one operation on the current CPU; false if the replay has been given up.
    pub(crate) fn run(&self, op: &Op) -> bool {
        match &op.kind {
            &OpKind::CacheAlloc { object, cache, gfp, node } => {
                let Some((cache, size)) = self.cache(cache) else { return false };
                self.alloc(object, size, || self.target.cache_alloc(cache?, gfp, node))
            }
            &OpKind::CacheFree { object, cache } => {
                self.free(object, |o| {
                    // Not before: another CPU may be creating it, for this very object.
                    let cache = self.known(cache).ok_or(FreeFault::Refused)?;
                    // SAFETY: the slot says that the object is live, and it came from this cache.
                    unsafe { self.target.cache_free(cache, o) }
                })
            }
            &OpKind::Kmalloc { object, size, gfp, node } => {
                let Ok(size) = usize::try_from(size) else { return true };
                self.alloc(object, size, || self.target.kmalloc(size, gfp, node))
            }
            &OpKind::Kfree { object } => self.free(object, |o| {
                // SAFETY: the slot says that the object is live.
                unsafe { self.target.kfree(o) }
            }),
            &OpKind::KfreeRcu { object } => self.free(object, |o| {
                // SAFETY: as above.
                unsafe { self.target.kfree_rcu(o) }
            }),
            OpKind::CacheAllocBulk { objects, cache, gfp } => {
                let Some((cache, size)) = self.cache(*cache) else { return false };
                let mut found = vec![std::ptr::null_mut(); objects.len()];
                let done = cache.is_some_and(|cache| self.target.cache_alloc_bulk(cache, *gfp, &mut found));
                objects
                    .iter()
                    .zip(found)
                    .all(|(&object, found)| self.alloc(object, size, || NonNull::new(found).filter(|_| done)))
            }
            OpKind::CacheFreeBulk { objects, cache } => self.free_bulk(objects, *cache),
            &OpKind::PageAlloc { block, order, gfp, migratetype } => {
                self.block(block, order, || self.target.alloc_pages(order, gfp, migratetype))
            }
            OpKind::PageAllocBulk { blocks, gfp, migratetype } => {
                let mut found = Vec::with_capacity(blocks.len());
                self.target.alloc_pages_bulk(blocks.len(), *gfp, *migratetype, &mut found);
                let mut found = found.into_iter();
                blocks.iter().all(|&block| self.block(block, 0, || found.next()))
            }
            &OpKind::PageFree { block, offset, order, last } => self.free_block(block, offset, order, last),
            &OpKind::AreaAlloc { area, pages, align } => self.area(area, pages, align),
            &OpKind::AreaFree { area } => self.free_area(area),
            OpKind::UnmapAliases => {
                self.target.unmap_aliases();
                true
            }
            OpKind::Mark(mark) => {
                self.sample(mark);
                true
            }
            OpKind::Void => true,
        }
    }

    fn alloc(&self, object: Ref, bytes: usize, call: impl FnOnce() -> Option<NonNull<u8>>) -> bool {
        let Some(slot) = self.objects.get(object) else { return false };
        if !slot.wait(object.turn, &self.stop) {
            return false;
        }
        let mut place = 0;
        match call() {
            Some(found) if self.integrity.claim(found, bytes) => {
                // SAFETY: the allocator handed `bytes` out, and nobody else has them, as just seen.
                unsafe { self.integrity.fill(found, bytes, object) };
                place = found.as_ptr() as usize;
                if bytes > LARGE {
                    self.large_bytes.add(bytes as u64);
                } else {
                    self.live_bytes.add(bytes as u64);
                    self.live_objects.add(1);
                }
            }
            // Somebody else's bytes: counted, and never touched.
            Some(_) => {}
            None => self.fail(),
        }
        slot.place.store(place, Ordering::Relaxed);
        slot.bytes.store(bytes, Ordering::Relaxed);
        slot.advance(object.turn.wrapping_add(1));
        self.taken();
        true
    }

    fn fail(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    fn taken(&self) {
        if self.takes.fetch_add(1, Ordering::Relaxed).is_multiple_of(LOOK_EVERY) {
            self.look();
        }
    }

    /// The object in a slot, checked and booked as free; `None` if its allocation failed.
    fn surrender(&self, slot: &Slot, object: Ref) -> Option<NonNull<u8>> {
        let (place, bytes) = (slot.place.load(Ordering::Relaxed), slot.bytes.load(Ordering::Relaxed));
        let found = NonNull::new(place as *mut u8)?;
        slot.place.store(0, Ordering::Relaxed);
        // SAFETY: the object is live and was filled for this use of the slot.
        unsafe { self.integrity.check(found, bytes, object) };
        self.integrity.release(found, bytes);
        if bytes > LARGE {
            self.large_bytes.sub(bytes as u64);
        } else {
            self.live_bytes.sub(bytes as u64);
            self.live_objects.sub(1);
        }
        Some(found)
    }

    fn free(&self, object: Ref, call: impl FnOnce(NonNull<u8>) -> Result<(), FreeFault>) -> bool {
        let Some(slot) = self.objects.get(object) else { return false };
        if !slot.wait(object.turn.wrapping_add(1), &self.stop) {
            return false;
        }
        if let Some(found) = self.surrender(slot, object) {
            self.judge(call(found));
        }
        slot.advance(object.turn.wrapping_add(2));
        true
    }

    fn judge(&self, answer: Result<(), FreeFault>) {
        match answer {
            Ok(()) => {}
            Err(FreeFault::AlreadyFree) => _ = self.integrity.double_free.fetch_add(1, Ordering::Relaxed),
            Err(FreeFault::Refused) => _ = self.integrity.refused_free.fetch_add(1, Ordering::Relaxed),
        }
    }

    fn free_bulk(&self, objects: &[Ref], cache: CacheId) -> bool {
        let mut found = Vec::with_capacity(objects.len());
        for &object in objects {
            let Some(slot) = self.objects.get(object) else { return false };
            if !slot.wait(object.turn.wrapping_add(1), &self.stop) {
                return false;
            }
            found.extend(self.surrender(slot, object));
        }
        if !found.is_empty() {
            // SAFETY: the slots say that the objects are live, and they came from this cache.
            let free = |cache| unsafe { self.target.cache_free_bulk(cache, &found) };
            self.judge(self.known(cache).map_or(Err(FreeFault::Refused), free));
        }
        for object in objects {
            if let Some(slot) = self.objects.get(*object) {
                slot.advance(object.turn.wrapping_add(2));
            }
        }
        true
    }

    fn block(&self, block: Ref, order: u8, call: impl FnOnce() -> Option<u64>) -> bool {
        let Some(slot) = self.blocks.get(block) else { return false };
        if !slot.wait(block.turn, &self.stop) {
            return false;
        }
        let pages = 1u32 << order;
        slot.left.store(0, Ordering::Relaxed);
        match call() {
            Some(pfn) if self.integrity.claim(self.target.frame(pfn), PAGE << order) => {
                for at in 0..pages {
                    // SAFETY: the page is part of the block that has just been handed out.
                    unsafe { self.integrity.fill_page(self.target.frame(pfn + u64::from(at)), at, block) };
                }
                slot.place.store(pfn as usize, Ordering::Relaxed);
                slot.left.store(pages, Ordering::Relaxed);
                slot.bytes.store(pages as usize, Ordering::Relaxed);
                self.live_pages.add(u64::from(pages));
            }
            Some(_) => {}
            None => self.fail(),
        }
        slot.advance(block.turn.wrapping_add(1));
        self.taken();
        true
    }

    fn free_block(&self, block: Ref, offset: u32, order: u8, last: bool) -> bool {
        let Some(slot) = self.blocks.get(block) else { return false };
        if !slot.wait(block.turn.wrapping_add(1), &self.stop) {
            return false;
        }
        let pages = 1u32 << order;
        if last {
            // Parts that other CPUs free come first: the slot is used up by this operation.
            let mut rounds = 0u32;
            while slot.left.load(Ordering::Acquire) > pages && !self.stop.load(Ordering::Relaxed) && rounds < u32::MAX {
                rounds += 1;
                std::thread::yield_now();
            }
        }
        if slot.left.load(Ordering::Acquire) > 0 {
            let pfn = slot.place.load(Ordering::Relaxed) as u64 + u64::from(offset);
            for at in 0..pages {
                // SAFETY: the page is live and was filled for this use of the slot.
                unsafe { self.integrity.check_page(self.target.frame(pfn + u64::from(at)), offset + at, block) };
            }
            self.integrity.release(self.target.frame(pfn), PAGE << order);
            self.live_pages.sub(u64::from(pages));
            let whole = pages as usize == slot.bytes.load(Ordering::Relaxed);
            // SAFETY: these pages are live and nobody uses them any more.
            self.judge(unsafe { self.target.free_pages(pfn, order, whole) });
            if !whole {
                self.note_part(block, offset, pages, last);
            }
            // Release: pairs with the Acquire above, so that the slot is reused after all parts are free.
            slot.left.fetch_sub(pages, Ordering::Release);
        }
        if last {
            slot.advance(block.turn.wrapping_add(2));
        }
        true
    }

    /// Remembers that part of a block has come back; forgets the block with its last part.
    fn note_part(&self, block: Ref, offset: u32, pages: u32, last: bool) {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if last {
            parts.remove(&block.slot);
            return;
        }
        let gone = parts.entry(block.slot).or_default();
        let end = (offset + pages) as usize;
        gone.resize(gone.len().max(end), false);
        gone.iter_mut().take(end).skip(offset as usize).for_each(|g| *g = true);
    }

    fn area(&self, area: Ref, pages: u64, align: u64) -> bool {
        let Some(slot) = self.areas.get(area) else { return false };
        if !slot.wait(area.turn, &self.stop) {
            return false;
        }
        let mut place = 0;
        match self.target.area_alloc(pages, align) {
            Some(found) => {
                let start = found.addr().get();
                let end = start.saturating_add(pages as usize * PAGE);
                let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
                let before = ranges.range(..end).next_back().is_some_and(|(_, &behind)| behind > start);
                if before || !(start as u64).is_multiple_of(align) {
                    // Somebody else's addresses, or the wrong ones: counted, and never given back.
                    self.integrity.overlaps.fetch_add(1, Ordering::Relaxed);
                } else {
                    ranges.insert(start, end);
                    place = start;
                    self.live_areas.add(1);
                    self.area_pages.add(pages);
                }
            }
            None => self.fail(),
        }
        slot.place.store(place, Ordering::Relaxed);
        slot.bytes.store(pages as usize, Ordering::Relaxed);
        slot.advance(area.turn.wrapping_add(1));
        self.taken();
        true
    }

    fn free_area(&self, area: Ref) -> bool {
        let Some(slot) = self.areas.get(area) else { return false };
        if !slot.wait(area.turn.wrapping_add(1), &self.stop) {
            return false;
        }
        self.give_area_up(slot);
        slot.advance(area.turn.wrapping_add(2));
        true
    }

    fn give_area_up(&self, slot: &Slot) {
        let start = slot.place.swap(0, Ordering::Relaxed);
        let Some(found) = NonNull::new(start as *mut u8) else { return };
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner).remove(&start);
        self.live_areas.sub(1);
        self.area_pages.sub(slot.bytes.load(Ordering::Relaxed) as u64);
        // SAFETY: the area was live until now, and nothing is ever done with its addresses.
        self.judge(unsafe { self.target.area_free(found) });
        self.lazy_pages.note(self.target.areas().lazy_pages);
    }

    /// Looks at the machine.
    pub(crate) fn sample(&self, mark: &Mark) {
        let usage = self.usage();
        self.slab_pages.note(usage.slab_pages);
        self.total_pages.note(usage.total_pages);
        self.metadata_pages.note(usage.metadata_pages);
        let mut free_blocks: Vec<u64> = Vec::new();
        for zone in self.target.free_blocks() {
            free_blocks.resize(free_blocks.len().max(zone.blocks.len()), 0);
            free_blocks.iter_mut().zip(&zone.blocks).for_each(|(sum, n)| *sum += n);
        }
        self.samples.push(Sample {
            mark: mark.clone(),
            live_bytes: self.live_bytes.get().0,
            live_objects: self.live_objects.get().0,
            slab_pages: usage.slab_pages,
            total_pages: usage.total_pages,
            lazy_pages: self.target.areas().lazy_pages,
            free_blocks,
        });
    }

    /// Frees everything that is live, checking it. On a CPU.
    pub(crate) fn free_all(&self) {
        for (object, slot) in self.objects.all() {
            if let Some(found) = self.surrender(slot, object) {
                // SAFETY: the object was live until now.
                self.judge(unsafe { self.target.kfree(found) });
            }
        }
        for (_, slot) in self.areas.all() {
            self.give_area_up(slot);
        }
        let parts = std::mem::take(&mut *self.parts.lock().unwrap_or_else(PoisonError::into_inner));
        for (block, slot) in self.blocks.all() {
            let mut left = slot.left.swap(0, Ordering::Relaxed);
            let first = slot.place.load(Ordering::Relaxed) as u64;
            let gone = parts.get(&block.slot).map_or(&[][..], Vec::as_slice);
            for at in 0u32.. {
                if left == 0 {
                    break;
                }
                if gone.get(at as usize) == Some(&true) {
                    continue;
                }
                let pfn = first + u64::from(at);
                let page = self.target.frame(pfn);
                // SAFETY: the page is one of those that have not come back.
                unsafe { self.integrity.check_page(page, at, block) };
                self.integrity.release(page, PAGE);
                self.live_pages.sub(1);
                // SAFETY: as above.
                self.judge(unsafe { self.target.free_pages(pfn, 0, slot.bytes.load(Ordering::Relaxed) == 1) });
                left -= 1;
            }
        }
    }
}
