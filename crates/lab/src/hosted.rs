//! Kmem's hosted machine behind [`ReplayTarget`].

use crate::app::View;
use crate::proc::Snapshots;
use crate::program::CacheSpec;
use crate::target::{AreaUsage, CacheUsage, FreeFault, MachineShape, ReplayTarget, TargetError, Usage, ZoneFree};
use crate::trace::TraceGfp;
use kmem::gfp::{BulkPages, ExactPages};
use kmem::slab::BulkFreeError;
use kmem::vmalloc::{VfreeError, VmFlags};
use kmem::{
    CacheArgs, CreateError, FreeError, Gfp, KfreeError, KmemCache, NodeId, ObjectError, Order, PAGE_SIZE, Pfn,
    PfnRange, RcuHead, SlabFlags,
};
use kmem_hosted::{Binding, CpuId, Host, HostCpu, Machine, Reports};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

type Kmem = kmem::Kmem<Host<HostCpu>>;

/// A booted machine; shut down when dropped.
pub struct HostedTarget {
    machine: &'static Machine,
    kmem: &'static Kmem,
    cpus: u32,
    window: Range<usize>,
    first_pfn: u64,
    /// Caches made for the replay.
    created: Mutex<Vec<&'static KmemCache>>,
}

impl HostedTarget {
    /// Boots a machine.
    ///
    /// # Errors
    /// [`TargetError`] with the machine's own words.
    pub fn boot(MachineShape { cpus, ram_bytes }: MachineShape) -> Result<Self, TargetError> {
        let machine = Machine::builder()
            .cpus(cpus)
            .ram_bytes(ram_bytes)
            .binding(Binding::ByName)
            .reports(Reports::Discard)
            .boot()
            .map_err(|e| TargetError(e.to_string()))?;
        let kmem = machine.kmem();
        let span = machine.plan().span();
        let address = |pfn: u64| kmem.page_address(Pfn(pfn)).map(|a| a.addr().get());
        let refuse = || TargetError("the machine's memory is not mapped".into());
        let first = span.start.0;
        let last = span.end.0.checked_sub(1).ok_or_else(refuse)?;
        let window = address(first).ok_or_else(refuse)?..address(last).ok_or_else(refuse)? + PAGE_SIZE;
        Ok(Self { machine, kmem, cpus, window, first_pfn: first, created: Mutex::new(Vec::new()) })
    }

    /// The machine's views by the names that they have under `/proc`, in the kernel's formats.
    #[must_use]
    pub fn views(&self) -> Vec<View> {
        vec![
            ("buddyinfo", self.kmem.buddyinfo().to_string()),
            ("zoneinfo", self.kmem.zoneinfo().to_string()),
            ("slabinfo", self.kmem.slabinfo().to_string()),
            ("pagetypeinfo", self.kmem.pagetypeinfo().to_string()),
            ("vmstat", self.kmem.vmstat().to_string()),
            ("vmallocinfo", self.kmem.vmalloc_layer().vmallocinfo().to_string()),
        ]
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &'static Machine {
        self.machine
    }
}

impl Drop for HostedTarget {
    fn drop(&mut self) {
        // SAFETY: replays run on scoped threads, which have ended, and everything that this machine handed out was used
        // by them only.
        unsafe { self.machine.shut_down() }
    }
}

/// The recorded flags have the values of kmem's.
///
/// One thing is changed. In a replay nobody else frees memory, and nobody reclaims: requests that wait until somebody does
/// (those that never fail, and those that may not call into file systems or start I/O) would wait for ever where the machine
/// is too small. They are to fail and be counted. A request that finds memory is served as ever.
#[inline(always)]
fn gfp(flags: TraceGfp) -> Gfp {
    let gfp = Gfp::from_bits_truncate(flags.0).difference(Gfp::NOFAIL);
    let waits = gfp.contains(Gfp::DIRECT_RECLAIM) && !gfp.contains(Gfp::NORETRY);
    if waits { gfp | Gfp::RETRY_MAYFAIL } else { gfp }
}

fn node(number: i32) -> Option<NodeId> {
    // Nodes that this machine does not have mean any node.
    (number == 0).then_some(NodeId(0))
}

fn page_fault(error: FreeError) -> FreeFault {
    match error {
        FreeError::AlreadyFree(_) => FreeFault::AlreadyFree,
        _ => FreeFault::Refused,
    }
}

fn object_fault(error: ObjectError) -> FreeFault {
    match error {
        ObjectError::DoubleFree { .. } => FreeFault::AlreadyFree,
        _ => FreeFault::Refused,
    }
}

fn kfree_fault(error: KfreeError) -> FreeFault {
    match error {
        KfreeError::Object(e) => object_fault(e),
        KfreeError::Pages(e) => page_fault(e),
        KfreeError::NotAllocated { .. } => FreeFault::AlreadyFree,
        _ => FreeFault::Refused,
    }
}

fn bulk_fault(_: BulkFreeError) -> FreeFault {
    FreeFault::Refused
}

/// Does nothing: a constructed object keeps the bytes that its last user left.
unsafe fn keep(_: NonNull<u8>) {}

// SAFETY: `window` is the machine's direct map, in which all its memory is readable and writable; the allocators hand out as much
// as is asked for.
unsafe impl ReplayTarget for HostedTarget {
    type Cache = &'static KmemCache;

    fn shape(&self) -> MachineShape {
        MachineShape { cpus: self.cpus, ram_bytes: self.machine.ram_bytes() }
    }

    fn window(&self) -> Range<usize> {
        self.window.clone()
    }

    fn on_cpu<R>(&self, cpu: u32, work: impl FnOnce() -> R) -> R {
        let mut work = Some(work);
        // SAFETY: no pin or read-side section is made here, and the allocators' own end with each call.
        let done = unsafe { self.machine.on_cpu(CpuId(cpu), || work.take().map(|w| w())) };
        match (done, work) {
            (Ok(Some(result)), _) => result,
            // Without a CPU the allocators work all the same, on their shared structures.
            (_, Some(work)) => work(),
            (_, None) => unreachable!("the closure either ran and gave its result, or is still here"),
        }
    }

    fn create_cache(&self, spec: &CacheSpec) -> Result<Option<&'static KmemCache>, TargetError> {
        // Linux has merged whatever could be; what has a name of its own in the trace is a cache of its own.
        let mut flags = SlabFlags::NO_MERGE;
        flags.set(SlabFlags::RECLAIM_ACCOUNT, spec.reclaimable);
        flags.set(SlabFlags::TYPESAFE_BY_RCU, spec.typesafe_by_rcu);
        let needs_freeptr = spec.typesafe_by_rcu || spec.constructed;
        let args = CacheArgs {
            align: spec.align as usize,
            ctor: spec.constructed.then_some(keep as unsafe fn(NonNull<u8>)),
            // Linux found no room beside the object for the free pointer: it overlays the object.
            freeptr_offset: (spec.stride < spec.size.saturating_add(8)).then_some(0).filter(|_| needs_freeptr),
            ..CacheArgs::with_flags(flags)
        };
        let name: String = spec.name.chars().map(|c| if c.is_whitespace() { '_' } else { c }).collect();
        let cache = match self.kmem.kmem_cache_create(&name, spec.size.max(1) as usize, &args) {
            Ok(cache) => cache,
            Err(CreateError::NoMemory(_)) => return Ok(None),
            Err(e) => return Err(TargetError(format!("cache {:?} of {} bytes: {e}", spec.name, spec.size))),
        };
        self.created.lock().unwrap_or_else(PoisonError::into_inner).push(cache);
        Ok(Some(cache))
    }

    #[inline(always)]
    fn kmalloc(&self, size: usize, flags: TraceGfp, number: i32) -> Option<NonNull<u8>> {
        match node(number) {
            None => self.kmem.kmalloc(size, gfp(flags)).ok(),
            node => self.kmem.kmalloc_node(size, gfp(flags), node).ok(),
        }
    }

    #[inline(always)]
    fn cache_alloc(&self, cache: &'static KmemCache, flags: TraceGfp, number: i32) -> Option<NonNull<u8>> {
        match node(number) {
            None => self.kmem.kmem_cache_alloc(cache, gfp(flags)).ok(),
            node => self.kmem.kmem_cache_alloc_node(cache, gfp(flags), node).ok(),
        }
    }

    fn cache_alloc_bulk(&self, cache: &'static KmemCache, flags: TraceGfp, out: &mut [*mut u8]) -> bool {
        let mut objects = vec![None; out.len()];
        let done = self.kmem.kmem_cache_alloc_bulk(cache, gfp(flags), &mut objects).is_ok();
        for (place, object) in out.iter_mut().zip(objects) {
            *place = object.map_or(std::ptr::null_mut(), NonNull::as_ptr);
        }
        done
    }

    #[inline(always)]
    unsafe fn kfree(&self, object: NonNull<u8>) -> Result<(), FreeFault> {
        // SAFETY: the caller's.
        unsafe { self.kmem.kfree(object.as_ptr()) }.map_err(kfree_fault)
    }

    #[inline(always)]
    unsafe fn cache_free(&self, cache: &'static KmemCache, object: NonNull<u8>) -> Result<(), FreeFault> {
        // SAFETY: the caller's.
        unsafe { self.kmem.kmem_cache_free(cache, object) }.map_err(object_fault)
    }

    unsafe fn cache_free_bulk(&self, cache: &'static KmemCache, objects: &[NonNull<u8>]) -> Result<(), FreeFault> {
        let mut objects: Vec<Option<NonNull<u8>>> = objects.iter().copied().map(Some).collect();
        // SAFETY: the caller's.
        unsafe { self.kmem.kmem_cache_free_bulk(cache, &mut objects) }.map_err(bulk_fault)
    }

    unsafe fn kfree_rcu(&self, object: NonNull<u8>) -> Result<(), FreeFault> {
        // SAFETY: the caller's: the object is live.
        let room = unsafe { self.kmem.ksize(object.as_ptr()) }.map_err(kfree_fault)?;
        let done = if room >= size_of::<RcuHead>() {
            // SAFETY: the caller gives up the object, which has room for a head at its beginning.
            unsafe { self.kmem.kfree_rcu(object.as_ptr(), object.cast()) }
        } else {
            // SAFETY: the caller gives up the object.
            unsafe { self.kmem.kfree_rcu_mightsleep(object.as_ptr()) }
        };
        done.map_err(kfree_fault)
    }

    #[inline(always)]
    fn alloc_pages(&self, order: u8, flags: TraceGfp, _migratetype: u8) -> Option<u64> {
        // The flags say the migratetype.
        let order = Order::new(u32::from(order))?;
        self.kmem.alloc_pages(gfp(flags), order).ok().map(|pfn| pfn.0)
    }

    fn alloc_pages_bulk(&self, want: usize, flags: TraceGfp, _migratetype: u8, out: &mut Vec<u64>) {
        let mut pages = vec![None; want];
        let got = BulkPages::alloc_pages_bulk(self.kmem.pages(), gfp(flags), None, &mut pages);
        out.extend(pages.into_iter().take(got).flatten().map(|pfn| pfn.0));
        // As in the kernel: what bulk does not give is asked for page by page.
        while out.len() < want
            && let Some(pfn) = self.alloc_pages(0, flags, 0)
        {
            out.push(pfn);
        }
    }

    #[inline(always)]
    unsafe fn free_pages(&self, pfn: u64, order: u8, whole: bool) -> Result<(), FreeFault> {
        let order = Order::new(u32::from(order)).ok_or(FreeFault::Refused)?;
        let pfn = Pfn(pfn);
        let done = if whole {
            // SAFETY: the caller's.
            unsafe { self.kmem.free_pages(pfn, order) }
        } else {
            let end = Pfn(pfn.0 + order.nr_pages() as u64);
            // SAFETY: the caller's.
            unsafe { ExactPages::free_range(self.kmem.pages(), PfnRange { start: pfn, end }) }
        };
        done.map_err(page_fault)
    }

    fn area_alloc(&self, pages: u64, align: u64) -> Option<NonNull<u8>> {
        // A single page has no guard page behind it.
        let guard = pages > 1;
        let size = usize::try_from(pages - u64::from(guard)).ok()?.checked_mul(PAGE_SIZE)?;
        let flags = if guard { VmFlags::SPARSE } else { VmFlags::SPARSE | VmFlags::NO_GUARD };
        self.kmem.vmalloc_layer().get_vm_area(size, usize::try_from(align).ok()?, flags, None, Gfp::KERNEL).ok()
    }

    unsafe fn area_free(&self, area: NonNull<u8>) -> Result<(), FreeFault> {
        // SAFETY: the caller's.
        unsafe { self.kmem.vmalloc_layer().vunmap(area.as_ptr()) }.map_err(|error| match error {
            VfreeError::AlreadyFree(_) => FreeFault::AlreadyFree,
            _ => FreeFault::Refused,
        })
    }

    fn unmap_aliases(&self) {
        self.kmem.vmalloc_layer().vm_unmap_aliases();
    }

    fn areas(&self) -> AreaUsage {
        let stats = self.kmem.vmalloc_layer().stats();
        AreaUsage {
            lazy_pages: stats.lazy_pages,
            lazy_limit: stats.lazy_limit,
            purges: stats.purges,
            flushes: stats.flushes,
            pool_hits: stats.pool_hits,
        }
    }

    #[inline]
    fn frame(&self, pfn: u64) -> NonNull<u8> {
        // All frames of a machine are mapped side by side.
        let at =
            self.window.start.wrapping_add(pfn.wrapping_sub(self.first_pfn).wrapping_mul(PAGE_SIZE as u64) as usize);
        NonNull::new(std::ptr::with_exposed_provenance_mut(at)).unwrap_or(NonNull::dangling())
    }

    fn quiesce(&self) {
        self.kmem.slabs().rcu_poll();
        self.kmem.kmalloc_layer().reap();
    }

    fn usage(&self) -> Usage {
        let stats = self.kmem.slabs().stats();
        let pages = self.kmem.pages();
        let cached: u64 = pages.zones().map(|zone| pages.zone_stats(zone).cached_pages).sum();
        let free = pages.free_page_count() + cached;
        Usage {
            slab_pages: stats.slab_pages(),
            total_pages: pages.managed_pages().saturating_sub(free),
            metadata_pages: stats.metadata_pages + self.kmem.vmalloc_layer().stats().metadata_pages,
        }
    }

    fn caches(&self) -> Vec<CacheUsage> {
        let slabs = self.kmem.slabs();
        let mut out = Vec::new();
        slabs.for_each_cache(|cache| {
            let stats = slabs.cache_stats(cache);
            out.push(CacheUsage {
                name: cache.name().to_owned(),
                object_bytes: stats.stride as u32,
                active_objects: stats.objects,
                objects: stats.total_objects,
                pages: stats.pages,
            });
        });
        out
    }

    fn free_blocks(&self) -> Vec<ZoneFree> {
        Snapshots::parse("", &self.kmem.buddyinfo().to_string()).free_blocks
    }

    fn in_use(&self) -> u64 {
        let slabs = self.kmem.slabs();
        slabs.rcu_barrier();
        self.kmem.kfree_rcu_barrier();
        let created = std::mem::take(&mut *self.created.lock().unwrap_or_else(PoisonError::into_inner));
        for cache in created {
            // One that cannot be destroyed still has objects, which are counted below.
            // SAFETY: the replay is over and uses the cache no more.
            let _ = unsafe { self.kmem.kmem_cache_destroy(cache) };
        }
        slabs.shrink_all();
        self.kmem.pages().drain_all_pages();
        let mut objects = 0;
        slabs.for_each_cache(|cache| objects += slabs.slab_info(cache).active_objs);
        let usage = self.usage();
        let areas = self.kmem.vmalloc_layer().live_areas();
        objects + areas + usage.total_pages.saturating_sub(usage.slab_pages + usage.metadata_pages)
    }
}
