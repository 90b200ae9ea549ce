//! A plain allocator behind [`ReplayTarget`]: the second implementation of the seam, and the one that can be made to err.
//!
//! One lock around everything. Memory is one arena; a bitmap of frames is searched from the bottom for page blocks; a cache is a
//! list of free objects and takes whole slabs of at most eight pages. A slab goes back when its last object does.

use crate::program::CacheSpec;
use crate::target::{CacheUsage, FreeFault, MachineShape, ReplayTarget, TargetError, Usage, ZoneFree};
use crate::trace::TraceGfp;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PAGE: usize = 4096;
/// The first page of the areas' addresses, which lead nowhere.
const WINDOW: u64 = 1 << 34;

/// A fault that the model can be given, to see that a replay finds it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Fault {
    /// None.
    #[default]
    None,
    /// Every 100th object is handed out a second time.
    Overlap,
    /// Every 100th allocation writes into an object that is live.
    Corrupt,
    /// Every 100th free is answered "already free".
    DoubleFree,
    /// Every 100th free is forgotten.
    Leak,
    /// Every 100th allocation fails.
    Fail,
}

struct Slab {
    cache: usize,
    pfn: usize,
    pages: usize,
    live: usize,
}

#[derive(Default)]
struct Cache {
    name: String,
    stride: usize,
    slab_pages: usize,
    /// Frames of the slab and address of the object.
    free: BTreeSet<(usize, usize)>,
    pages: usize,
    live: u64,
}

struct State {
    used: Vec<bool>,
    taken: u64,
    caches: Vec<Cache>,
    classes: HashMap<usize, usize>,
    slab_of: BTreeMap<usize, usize>,
    slabs: Vec<Slab>,
    large: HashMap<usize, usize>,
    waiting: Vec<usize>,
    /// Pages of areas by their first page.
    areas: BTreeMap<u64, u64>,
    last: usize,
    calls: u64,
}

/// The model machine.
pub struct Model {
    arena: NonNull<u8>,
    layout: std::alloc::Layout,
    cpus: u32,
    fault: Fault,
    state: Mutex<State>,
}

// SAFETY: the arena is plain memory that the model hands out; everything else is behind the lock.
unsafe impl Sync for Model {}
// SAFETY: as above; nothing is bound to a thread.
unsafe impl Send for Model {}

impl Model {
    /// A machine with `ram` bytes, rounded down to pages.
    ///
    /// # Errors
    /// [`TargetError`] if there is no such memory to be had.
    pub fn new(cpus: u32, ram: usize, fault: Fault) -> Result<Self, TargetError> {
        let frames = ram / PAGE;
        let refuse = || TargetError(format!("no {ram} bytes for the model machine"));
        let layout = std::alloc::Layout::from_size_align(frames * PAGE, 1 << 22).map_err(|_| refuse())?;
        if frames == 0 {
            return Err(refuse());
        }
        // SAFETY: the layout has a size, as checked.
        let arena = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).ok_or_else(refuse)?;
        let state = State {
            used: vec![false; frames],
            taken: 0,
            caches: Vec::new(),
            classes: HashMap::new(),
            slab_of: BTreeMap::new(),
            slabs: Vec::new(),
            large: HashMap::new(),
            waiting: Vec::new(),
            areas: BTreeMap::new(),
            last: 0,
            calls: 0,
        };
        Ok(Self { arena, layout, cpus, fault, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ptr(&self, offset: usize) -> Option<NonNull<u8>> {
        NonNull::new(self.arena.as_ptr().wrapping_add(offset))
    }

    fn offset(&self, object: NonNull<u8>) -> usize {
        object.as_ptr() as usize - self.arena.as_ptr() as usize
    }

    fn alloc(&self, pick: impl FnOnce(&mut State) -> Option<usize>) -> Option<NonNull<u8>> {
        let mut s = self.lock();
        s.calls += 1;
        if s.calls.is_multiple_of(100) {
            match self.fault {
                Fault::Fail => return None,
                Fault::Overlap if s.last != 0 => return self.ptr(s.last),
                Fault::Corrupt if s.last != 0 => {
                    let victim = self.ptr(s.last)?;
                    // SAFETY: the arena spans the object; writing here is the fault that this model is asked to have.
                    unsafe { victim.as_ptr().write(!victim.as_ptr().read()) };
                }
                _ => {}
            }
        }
        let offset = pick(&mut s)?;
        s.last = offset;
        self.ptr(offset)
    }

    fn free(&self, object: NonNull<u8>) -> Result<(), FreeFault> {
        let mut s = self.lock();
        s.calls += 1;
        if s.calls.is_multiple_of(100) {
            match self.fault {
                Fault::DoubleFree => return Err(FreeFault::AlreadyFree),
                Fault::Leak => return Ok(()),
                _ => {}
            }
        }
        s.last = 0;
        s.free(self.offset(object))
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: this layout is what the arena was allocated with.
        unsafe { std::alloc::dealloc(self.arena.as_ptr(), self.layout) }
    }
}

impl State {
    fn pages(&mut self, count: usize) -> Option<usize> {
        let align = count.next_power_of_two();
        // Frame 0 stays unused: the trace's way to say "failed".
        let at = (align..self.used.len().saturating_sub(count - 1))
            .step_by(align)
            .find(|&at| self.used.get(at..at + count).is_some_and(|r| !r.contains(&true)))?;
        self.used.get_mut(at..at + count)?.fill(true);
        self.taken += count as u64;
        Some(at)
    }

    fn release(&mut self, at: usize, count: usize) -> Result<(), FreeFault> {
        let range = self.used.get_mut(at..at + count).ok_or(FreeFault::Refused)?;
        if range.contains(&false) {
            return Err(FreeFault::AlreadyFree);
        }
        range.fill(false);
        self.taken -= count as u64;
        Ok(())
    }

    fn cache(&mut self, name: String, stride: usize) -> usize {
        let slab_pages = [1, 2, 4, 8].into_iter().find(|p| p * PAGE >= stride * 8).unwrap_or(8);
        self.caches.push(Cache { name, stride, slab_pages, ..Cache::default() });
        self.caches.len() - 1
    }

    fn object(&mut self, cache: usize) -> Option<usize> {
        if self.caches.get(cache)?.free.is_empty() {
            let (pages, stride) = self.caches.get(cache).map(|c| (c.slab_pages, c.stride))?;
            let pfn = self.pages(pages)?;
            self.slabs.push(Slab { cache, pfn, pages, live: 0 });
            let number = self.slabs.len() - 1;
            for p in pfn..pfn + pages {
                self.slab_of.insert(p, number);
            }
            let c = self.caches.get_mut(cache)?;
            c.pages += pages;
            c.free.extend((0..pages * PAGE / stride).map(|n| (pfn, pfn * PAGE + n * stride)));
        }
        let c = self.caches.get_mut(cache)?;
        let (pfn, offset) = c.free.pop_first()?;
        c.live += 1;
        let slab = *self.slab_of.get(&pfn)?;
        self.slabs.get_mut(slab)?.live += 1;
        Some(offset)
    }

    fn free(&mut self, offset: usize) -> Result<(), FreeFault> {
        let page = offset / PAGE;
        if let Some(pages) = self.large.remove(&offset) {
            return self.release(page, pages);
        }
        let slab = self.slab_of.get(&page).and_then(|&s| self.slabs.get_mut(s)).ok_or(FreeFault::Refused)?;
        let c = self.caches.get_mut(slab.cache).ok_or(FreeFault::Refused)?;
        if !c.free.insert((slab.pfn, offset)) {
            return Err(FreeFault::AlreadyFree);
        }
        c.live -= 1;
        slab.live -= 1;
        if slab.live > 0 {
            return Ok(());
        }
        let (pfn, pages) = (slab.pfn, slab.pages);
        c.pages -= pages;
        c.free = c.free.iter().copied().filter(|(p, _)| *p != pfn).collect();
        for p in pfn..pfn + pages {
            self.slab_of.remove(&p);
        }
        self.release(pfn, pages)
    }
}

// SAFETY: objects and blocks lie in the arena, and are as long as was asked for (a cache's stride is at least its object).
unsafe impl ReplayTarget for Model {
    type Cache = usize;

    fn shape(&self) -> MachineShape {
        MachineShape { cpus: self.cpus, ram_bytes: self.layout.size() as u64 }
    }

    fn window(&self) -> Range<usize> {
        let start = self.arena.as_ptr() as usize;
        start..start + self.layout.size()
    }

    fn on_cpu<R>(&self, _cpu: u32, work: impl FnOnce() -> R) -> R {
        work()
    }

    fn create_cache(&self, spec: &CacheSpec) -> Result<Option<usize>, TargetError> {
        let stride = spec.size.next_multiple_of(spec.align) as usize;
        Ok(Some(self.lock().cache(spec.name.clone(), stride.max(8))))
    }

    fn kmalloc(&self, size: usize, _gfp: TraceGfp, _node: i32) -> Option<NonNull<u8>> {
        self.alloc(|s| {
            if size > 8192 {
                let pages = size.div_ceil(PAGE);
                let pfn = s.pages(pages)?;
                s.large.insert(pfn * PAGE, pages);
                return Some(pfn * PAGE);
            }
            let class = size.next_power_of_two().max(8);
            let cache = match s.classes.get(&class) {
                Some(&cache) => cache,
                None => {
                    let cache = s.cache(format!("kmalloc-{class}"), class);
                    s.classes.insert(class, cache);
                    cache
                }
            };
            s.object(cache)
        })
    }

    fn cache_alloc(&self, cache: usize, _gfp: TraceGfp, _node: i32) -> Option<NonNull<u8>> {
        self.alloc(|s| s.object(cache))
    }

    fn cache_alloc_bulk(&self, cache: usize, gfp: TraceGfp, out: &mut [*mut u8]) -> bool {
        for place in out {
            match self.cache_alloc(cache, gfp, -1) {
                Some(object) => *place = object.as_ptr(),
                None => return false,
            }
        }
        true
    }

    unsafe fn kfree(&self, object: NonNull<u8>) -> Result<(), FreeFault> {
        self.free(object)
    }

    unsafe fn cache_free(&self, _cache: usize, object: NonNull<u8>) -> Result<(), FreeFault> {
        self.free(object)
    }

    unsafe fn cache_free_bulk(&self, _cache: usize, objects: &[NonNull<u8>]) -> Result<(), FreeFault> {
        objects.iter().try_for_each(|&o| self.free(o))
    }

    unsafe fn kfree_rcu(&self, object: NonNull<u8>) -> Result<(), FreeFault> {
        let offset = self.offset(object);
        self.lock().waiting.push(offset);
        Ok(())
    }

    fn alloc_pages(&self, order: u8, _gfp: TraceGfp, _migratetype: u8) -> Option<u64> {
        self.lock().pages(1 << order).map(|p| p as u64)
    }

    unsafe fn free_pages(&self, pfn: u64, order: u8, _whole: bool) -> Result<(), FreeFault> {
        self.lock().release(pfn as usize, 1 << order)
    }

    fn area_alloc(&self, pages: u64, align: u64) -> Option<NonNull<u8>> {
        let mut s = self.lock();
        let align = (align / PAGE as u64).max(1);
        let mut at = WINDOW;
        for (&start, &len) in &s.areas {
            if at + pages <= start {
                break;
            }
            at = (start + len).next_multiple_of(align);
        }
        s.areas.insert(at, pages);
        NonNull::new(std::ptr::without_provenance_mut(at as usize * PAGE))
    }

    unsafe fn area_free(&self, area: NonNull<u8>) -> Result<(), FreeFault> {
        let page = (area.addr().get() / PAGE) as u64;
        self.lock().areas.remove(&page).map(|_| ()).ok_or(FreeFault::AlreadyFree)
    }

    fn frame(&self, pfn: u64) -> NonNull<u8> {
        self.ptr(pfn as usize * PAGE).unwrap_or(self.arena)
    }

    fn quiesce(&self) {
        let mut s = self.lock();
        for offset in std::mem::take(&mut s.waiting) {
            // A fault may have freed it before.
            let _ = s.free(offset);
        }
    }

    fn usage(&self) -> Usage {
        let s = self.lock();
        Usage { slab_pages: s.caches.iter().map(|c| c.pages as u64).sum(), total_pages: s.taken, metadata_pages: 0 }
    }

    fn caches(&self) -> Vec<CacheUsage> {
        let s = self.lock();
        s.caches
            .iter()
            .map(|c| CacheUsage {
                name: c.name.clone(),
                object_bytes: c.stride as u32,
                active_objects: c.live,
                objects: c.live + c.free.len() as u64,
                pages: c.pages as u64,
            })
            .collect()
    }

    fn free_blocks(&self) -> Vec<ZoneFree> {
        let s = self.lock();
        let mut blocks = vec![0u64; 11];
        // Runs of free frames, each cut into the largest aligned blocks that fit.
        let mut at = 0;
        for run in s.used.chunk_by(|a, b| a == b) {
            let (mut pos, end) = (at, at + run.len());
            at = end;
            while run.first() == Some(&false) && pos < end {
                let order = pos.trailing_zeros().min((end - pos).ilog2()).min(10);
                if let Some(n) = blocks.get_mut(order as usize) {
                    *n += 1;
                }
                pos += 1 << order;
            }
        }
        vec![ZoneFree { node: 0, zone: "Normal".into(), blocks }]
    }

    fn in_use(&self) -> u64 {
        self.quiesce();
        let s = self.lock();
        let slabs: u64 = s.caches.iter().map(|c| c.pages as u64).sum();
        s.caches.iter().map(|c| c.live).sum::<u64>() + s.taken - slabs + s.areas.len() as u64
    }
}
