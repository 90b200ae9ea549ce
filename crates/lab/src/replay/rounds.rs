//! Operations without the checks around them: the round that measures time, and what the second machine runs.

use super::drive::{GRACE, Kept};
use super::stamp::{Clock, ticks};
use crate::LabError;
use crate::program::{CacheId, CacheSpec, Op, OpKind, Ref};
use crate::target::ReplayTarget;
use serde::Serialize;
use std::ptr::NonNull;

/// What the allocator's calls cost.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Times {
    /// Nanoseconds per object allocated, kmalloc and caches.
    pub ns_per_alloc: f64,
    /// Nanoseconds per object freed.
    pub ns_per_free: f64,
    /// Nanoseconds per block of pages allocated.
    pub ns_per_page_alloc: f64,
    /// Nanoseconds per part of a block freed.
    pub ns_per_page_free: f64,
    /// Objects allocated while measuring.
    pub allocs: u64,
    /// Objects freed while measuring.
    pub frees: u64,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    ticks: u64,
    calls: u64,
    units: u64,
}

impl Sum {
    #[inline(always)]
    fn time<R>(&mut self, units: u64, call: impl FnOnce() -> R) -> R {
        let start = ticks();
        let result = call();
        self.ticks += ticks().wrapping_sub(start);
        self.calls += 1;
        self.units += units;
        result
    }

    fn ns(&self, clock: &Clock) -> f64 {
        if self.units == 0 { 0.0 } else { clock.ns(self.ticks, self.calls) / self.units as f64 }
    }
}

#[derive(Clone, Copy, Default)]
struct Sums {
    alloc: Sum,
    free: Sum,
    page_alloc: Sum,
    page_free: Sum,
}

/// Operations on a machine, with nothing around them.
pub(crate) struct Bare<'a, T: ReplayTarget> {
    target: &'a T,
    caches: Vec<Option<T::Cache>>,
    specs: Vec<CacheSpec>,
    objects: Vec<Option<NonNull<u8>>>,
    /// First frame, and which pages of the block have come back.
    blocks: Vec<(Option<u64>, u32, Vec<bool>)>,
    sums: Sums,
}

pub(crate) fn entry<V: Default>(list: &mut Vec<V>, at: u32) -> Option<&mut V> {
    let at = at as usize;
    if list.len() <= at {
        list.resize_with(at + 1, V::default);
    }
    list.get_mut(at)
}

impl<'a, T: ReplayTarget> Bare<'a, T> {
    pub(crate) fn new(target: &'a T) -> Self {
        Self {
            target,
            caches: Vec::new(),
            specs: Vec::new(),
            objects: Vec::new(),
            blocks: Vec::new(),
            sums: Sums::default(),
        }
    }

    /// Tells what the caches are like; called before operations that use them.
    pub(crate) fn know(&mut self, specs: &[CacheSpec]) {
        self.specs.clear();
        self.specs.extend_from_slice(specs);
        self.caches.resize(specs.len(), None);
    }

    /// The cache, if there is memory to create it.
    fn cache(&mut self, id: CacheId) -> Result<Option<T::Cache>, LabError> {
        let at = id.0 as usize;
        if let Some(Some(cache)) = self.caches.get(at) {
            return Ok(Some(*cache));
        }
        let spec = self.specs.get(at).ok_or(LabError::Stopped)?;
        let cache = self.target.create_cache(spec).map_err(LabError::Target)?;
        if let Some(place) = self.caches.get_mut(at) {
            *place = cache;
        }
        Ok(cache)
    }

    fn put(&mut self, object: Ref, found: Option<NonNull<u8>>) {
        if let Some(place) = entry(&mut self.objects, object.slot) {
            *place = found;
        }
    }

    fn take(&mut self, object: Ref) -> Option<NonNull<u8>> {
        self.objects.get_mut(object.slot as usize)?.take()
    }

    pub(crate) fn run(&mut self, op: &Op) -> Result<(), LabError> {
        let target = self.target;
        match &op.kind {
            &OpKind::CacheAlloc { object, cache, gfp, node } => {
                let Some(cache) = self.cache(cache)? else { return Ok(()) };
                let found = self.sums.alloc.time(1, || target.cache_alloc(cache, gfp, node));
                self.put(object, found);
            }
            &OpKind::CacheFree { object, cache } => {
                let Some(cache) = self.cache(cache)? else { return Ok(()) };
                if let Some(found) = self.take(object) {
                    // SAFETY: it came from this cache and is live.
                    let _ = self.sums.free.time(1, || unsafe { target.cache_free(cache, found) });
                }
            }
            &OpKind::Kmalloc { object, size, gfp, node } => {
                let found = self.sums.alloc.time(1, || target.kmalloc(size as usize, gfp, node));
                self.put(object, found);
            }
            &OpKind::Kfree { object } => {
                if let Some(found) = self.take(object) {
                    // SAFETY: it is live.
                    let _ = self.sums.free.time(1, || unsafe { target.kfree(found) });
                }
            }
            &OpKind::KfreeRcu { object } => {
                if let Some(found) = self.take(object) {
                    // SAFETY: it is live.
                    let _ = self.sums.free.time(1, || unsafe { target.kfree_rcu(found) });
                }
            }
            OpKind::CacheAllocBulk { objects, cache, gfp } => {
                let Some(cache) = self.cache(*cache)? else { return Ok(()) };
                let mut out = vec![std::ptr::null_mut(); objects.len()];
                let done = self.sums.alloc.time(out.len() as u64, || target.cache_alloc_bulk(cache, *gfp, &mut out));
                for (&object, found) in objects.iter().zip(out) {
                    self.put(object, NonNull::new(found).filter(|_| done));
                }
            }
            OpKind::CacheFreeBulk { objects, cache } => {
                let Some(cache) = self.cache(*cache)? else { return Ok(()) };
                let found: Vec<_> = objects.iter().filter_map(|&o| self.take(o)).collect();
                if !found.is_empty() {
                    // SAFETY: they came from this cache and are live.
                    let _ =
                        self.sums.free.time(found.len() as u64, || unsafe { target.cache_free_bulk(cache, &found) });
                }
            }
            &OpKind::PageAlloc { block, order, gfp, migratetype } => {
                let found = self.sums.page_alloc.time(1, || target.alloc_pages(order, gfp, migratetype));
                self.put_block(block, order, found);
            }
            OpKind::PageAllocBulk { blocks, gfp, migratetype } => {
                let mut out = Vec::with_capacity(blocks.len());
                self.sums
                    .page_alloc
                    .time(blocks.len() as u64, || target.alloc_pages_bulk(blocks.len(), *gfp, *migratetype, &mut out));
                let mut out = out.into_iter();
                for &block in blocks {
                    self.put_block(block, 0, out.next());
                }
            }
            &OpKind::PageFree { block, offset, order, .. } => self.free_part(block, offset, order),
            // Ranges of addresses are no objects, and seldom.
            OpKind::AreaAlloc { .. } | OpKind::AreaFree { .. } | OpKind::UnmapAliases => {}
            OpKind::Mark(_) | OpKind::Void => {}
        }
        Ok(())
    }

    fn put_block(&mut self, block: Ref, order: u8, found: Option<u64>) {
        if let Some(place) = entry(&mut self.blocks, block.slot) {
            (place.0, place.1) = (found, 1 << order);
            place.2.clear();
        }
    }

    fn free_part(&mut self, block: Ref, offset: u32, order: u8) {
        let Some((first, pages, gone)) = self.blocks.get_mut(block.slot as usize) else { return };
        let Some(pfn) = *first else { return };
        let whole = 1 << order == *pages;
        if whole {
            *first = None;
        } else {
            gone.resize(*pages as usize, false);
            gone.iter_mut().skip(offset as usize).take(1 << order).for_each(|g| *g = true);
        }
        let target = self.target;
        // SAFETY: this part of the block is live.
        let _ = self.sums.page_free.time(1, || unsafe { target.free_pages(pfn + u64::from(offset), order, whole) });
    }

    /// Runs them all, each on its CPU.
    fn run_all<'o>(&mut self, ops: impl Iterator<Item = &'o Op>) -> Result<(), LabError> {
        let cpus = self.target.shape().cpus.max(1);
        let mut ops = ops.peekable();
        let mut since = 0;
        while let Some(first) = ops.peek() {
            let cpu = first.cpu;
            let target = self.target;
            target.on_cpu(u32::from(cpu) % cpus, || {
                while since < GRACE
                    && let Some(op) = ops.next_if(|op| op.cpu == cpu)
                {
                    self.run(op)?;
                    since += 1;
                }
                Ok::<(), LabError>(())
            })?;
            if since >= GRACE {
                target.quiesce();
                since = 0;
            }
        }
        Ok(())
    }

    pub(crate) fn free_all(&mut self) {
        let target = self.target;
        target.on_cpu(0, || {
            for object in self.objects.iter_mut().filter_map(Option::take) {
                // SAFETY: it is live.
                let _ = unsafe { target.kfree(object) };
            }
            for (first, pages, gone) in &mut self.blocks {
                let Some(first) = first.take() else { continue };
                for at in (0..*pages).filter(|at| gone.get(*at as usize) != Some(&true)) {
                    // SAFETY: this page of the block is live.
                    let _ = unsafe { target.free_pages(first + u64::from(at), 0, *pages == 1) };
                }
            }
        });
        target.quiesce();
    }
}

/// Times the calls of `ops` on a fresh machine. A first round that is not measured makes the machine's memory present.
///
/// # Errors
/// [`LabError`] if a cache cannot be created.
pub fn time<T: ReplayTarget>(target: &T, ops: &Kept, specs: &[CacheSpec]) -> Result<Times, LabError> {
    let clock = Clock::calibrate();
    let mut bare = Bare::new(target);
    bare.know(specs);
    bare.run_all(ops.iter())?;
    bare.free_all();
    bare.sums = Sums::default();
    bare.run_all(ops.iter())?;
    let sums = bare.sums;
    bare.free_all();
    Ok(Times {
        ns_per_alloc: sums.alloc.ns(&clock),
        ns_per_free: sums.free.ns(&clock),
        ns_per_page_alloc: sums.page_alloc.ns(&clock),
        ns_per_page_free: sums.page_free.ns(&clock),
        allocs: sums.alloc.units,
        frees: sums.free.units,
    })
}
