//! What a replay needs of an allocator: one small trait.
//!
//! Kmem's hosted machine stands behind it; the [model](crate::model) is a second, plain
//! implementation that tests use, also with faults built in.

use crate::program::CacheSpec;
use crate::trace::TraceGfp;
use std::ops::Range;
use std::ptr::NonNull;

/// Why an allocator did not accept a free.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FreeFault {
    /// It says that the memory is free already.
    AlreadyFree,
    /// It says something else.
    Refused,
}

/// An allocator that cannot be set up as a replay needs it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TargetError(pub String);

/// What a machine consists of.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct MachineShape {
    /// CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub ram_bytes: u64,
}

/// Pages in use.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Usage {
    /// Pages that are slabs.
    pub slab_pages: u64,
    /// Pages that are allocated, slabs included.
    pub total_pages: u64,
    /// Of these, pages of the object allocator's own descriptions, which are no slabs.
    pub metadata_pages: u64,
}

/// One object cache as the machine sees it.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct CacheUsage {
    /// Its name.
    pub name: String,
    /// Bytes from one object to the next.
    pub object_bytes: u32,
    /// Objects handed out or parked in a CPU's stock.
    pub active_objects: u64,
    /// Objects that its slabs have room for.
    pub objects: u64,
    /// Pages of its slabs.
    pub pages: u64,
}

/// Free blocks of one zone, by order.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct ZoneFree {
    /// Node number.
    pub node: u32,
    /// The zone's name as `/proc` prints it.
    pub zone: String,
    /// Blocks of order 0, 1, ...
    pub blocks: Vec<u64>,
}

/// Ranges of addresses of vmalloc.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct AreaUsage {
    /// Pages freed and not yet flushed.
    pub lazy_pages: u64,
    /// Above so many of them a purge starts.
    pub lazy_limit: u64,
    /// Purges so far.
    pub purges: u64,
    /// Flushes so far.
    pub flushes: u64,
    /// Areas whose range had been flushed and kept for the next one of its size.
    pub pool_hits: u64,
}

/// An allocator that a trace can be replayed on.
///
/// All calls but [`on_cpu`](Self::on_cpu), [`create_cache`](Self::create_cache) and the statistics are made on a CPU of the machine.
///
/// # Safety
/// Memory handed out lies in [`window`](Self::window), is as long as was asked for, is readable and writable, and belongs to
/// the caller until the caller frees it. (Whether memory handed out *overlaps* is what a replay checks: it may.)
pub unsafe trait ReplayTarget: Sync {
    /// An object cache.
    type Cache: Copy + Send + Sync;

    /// What the machine consists of.
    fn shape(&self) -> MachineShape;

    /// The addresses at which the machine's memory stands.
    fn window(&self) -> Range<usize>;

    /// Runs `work` on CPU `cpu`, which must be free.
    fn on_cpu<R>(&self, cpu: u32, work: impl FnOnce() -> R) -> R;

    /// Creates an object cache; `None` if there is no memory for it at the moment.
    ///
    /// # Errors
    /// [`TargetError`] if the arguments are refused.
    fn create_cache(&self, spec: &CacheSpec) -> Result<Option<Self::Cache>, TargetError>;

    /// `kmalloc`.
    fn kmalloc(&self, size: usize, gfp: TraceGfp, node: i32) -> Option<NonNull<u8>>;

    /// `kmem_cache_alloc`.
    fn cache_alloc(&self, cache: Self::Cache, gfp: TraceGfp, node: i32) -> Option<NonNull<u8>>;

    /// `kmem_cache_alloc_bulk`: fills all of `out`, or none and returns false.
    fn cache_alloc_bulk(&self, cache: Self::Cache, gfp: TraceGfp, out: &mut [*mut u8]) -> bool;

    /// `kfree`.
    ///
    /// # Errors
    /// [`FreeFault`] if the allocator does not take it.
    ///
    /// # Safety
    /// `object` came from this machine and is not used any more.
    unsafe fn kfree(&self, object: NonNull<u8>) -> Result<(), FreeFault>;

    /// `kmem_cache_free`.
    ///
    /// # Errors
    /// [`FreeFault`] if the allocator does not take it.
    ///
    /// # Safety
    /// As for [`kfree`](Self::kfree); `cache` is the cache it came from.
    unsafe fn cache_free(&self, cache: Self::Cache, object: NonNull<u8>) -> Result<(), FreeFault>;

    /// `kmem_cache_free_bulk`.
    ///
    /// # Errors
    /// [`FreeFault`] if the allocator does not take one of them.
    ///
    /// # Safety
    /// As for [`cache_free`](Self::cache_free), for each.
    unsafe fn cache_free_bulk(&self, cache: Self::Cache, objects: &[NonNull<u8>]) -> Result<(), FreeFault>;

    /// `kfree_rcu`.
    ///
    /// # Errors
    /// [`FreeFault`] if the allocator does not take it.
    ///
    /// # Safety
    /// As for [`kfree`](Self::kfree).
    unsafe fn kfree_rcu(&self, object: NonNull<u8>) -> Result<(), FreeFault>;

    /// `alloc_pages`: the first frame of `1 << order`.
    fn alloc_pages(&self, order: u8, gfp: TraceGfp, migratetype: u8) -> Option<u64>;

    /// `alloc_pages_bulk`: pushes up to `want` single frames.
    fn alloc_pages_bulk(&self, want: usize, gfp: TraceGfp, migratetype: u8, out: &mut Vec<u64>) {
        while out.len() < want
            && let Some(pfn) = self.alloc_pages(0, gfp, migratetype)
        {
            out.push(pfn);
        }
    }

    /// Frees `1 << order` frames from `pfn` on, which are the `whole` of what was allocated together, or a part of it.
    ///
    /// # Errors
    /// [`FreeFault`] if the allocator does not take them.
    ///
    /// # Safety
    /// The frames came from this machine and their memory is not used any more.
    unsafe fn free_pages(&self, pfn: u64, order: u8, whole: bool) -> Result<(), FreeFault>;

    /// A range of addresses for vmalloc: `pages` with the guard page, nothing mapped. A machine without virtual memory,
    /// which is the default, has none to give.
    fn area_alloc(&self, pages: u64, align: u64) -> Option<NonNull<u8>> {
        let _ = (pages, align);
        None
    }

    /// Gives a range back.
    ///
    /// # Errors
    /// [`FreeFault`] if the allocator does not take it.
    ///
    /// # Safety
    /// `area` came from this machine and is not used any more.
    unsafe fn area_free(&self, area: NonNull<u8>) -> Result<(), FreeFault> {
        let _ = area;
        Err(FreeFault::Refused)
    }

    /// `vm_unmap_aliases`.
    fn unmap_aliases(&self) {}

    /// What vmalloc counts.
    fn areas(&self) -> AreaUsage {
        AreaUsage::default()
    }

    /// Where the memory of a frame stands.
    fn frame(&self, pfn: u64) -> NonNull<u8>;

    /// A grace period has passed: what waited for it long enough is freed. Not on a CPU.
    fn quiesce(&self);

    /// A moment between two requests at which the current CPU holds no reference to anything.
    fn quiescent(&self) {}

    /// Pages in use; cheap enough to be asked often.
    fn usage(&self) -> Usage;

    /// All object caches.
    fn caches(&self) -> Vec<CacheUsage>;

    /// Free blocks of every zone.
    fn free_blocks(&self) -> Vec<ZoneFree>;

    /// Waits for everything deferred, forgets the caches, gives back whatever the machine keeps in stock, and returns what
    /// somebody still holds: objects, and pages that are no slabs. Not on a CPU, and only when no replay runs.
    fn in_use(&self) -> u64;
}
