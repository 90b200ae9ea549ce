//! Page allocators that a sequence of page events can be replayed on.

use super::plugin::Plugin;
use crate::trace::TraceGfp;
use frame_alloc::{PageSize, PhysicalAllocator, Provenance, RegionInit, SummaryBuddyAllocator};
use kmem::gfp::ExactPages;
use kmem::{Gfp, Order, PAGE_SIZE, Pfn, PfnRange};
use kmem_hosted::{Binding, CpuId, Host, HostCpu, Machine, Reports, ZoneSplit};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::num::NonZeroUsize;
use std::ptr::NonNull;

/// Pages in a huge frame.
pub(crate) const HUGE: usize = 512;

/// A page allocator over frames `0..frames`.
pub(crate) trait Pages {
    /// What tables call it.
    fn name(&self) -> &'static str;
    /// `1 << order` frames, aligned to that.
    fn alloc(&mut self, cpu: u32, order: u8, gfp: TraceGfp) -> Option<u64>;
    /// Frees `1 << order` frames, which are the `whole` of a block, or a part if [`takes_parts`](Self::takes_parts).
    fn free(&mut self, cpu: u32, frame: u64, order: u8, whole: bool);
    /// Whether a block can be freed in parts. Others get it when its last part is free.
    fn takes_parts(&self) -> bool {
        false
    }
    /// Gives back what is kept for each CPU, as a kernel does before it gives up.
    fn settle(&mut self) {}
}

/// Every allocator that takes part, over `frames` frames, and a notice for each that does not.
pub(crate) fn all(frames: usize, cpus: u32) -> (Vec<Box<dyn Pages>>, Vec<String>) {
    let mut notices = Vec::new();
    let mut subjects: Vec<Box<dyn Pages>> = Vec::new();
    let mut add = |made: Result<Box<dyn Pages>, String>| match made {
        Ok(subject) => subjects.push(subject),
        Err(notice) => notices.push(notice),
    };
    add(KmemPages::new(frames, cpus).map(|pages| Box::new(pages) as _));
    add(FrameAlloc::new(frames).map(|pages| Box::new(pages) as _));
    add(Plugin::new(frames, cpus).map(|pages| Box::new(pages) as _));
    (subjects, notices)
}

/// kmem's page allocator on a hosted machine with one zone.
struct KmemPages {
    machine: &'static Machine,
    first: u64,
    cpus: u32,
}

type Kmem = kmem::Kmem<Host<HostCpu>>;

/// The flags of a request on a machine that has one zone, no reclaim, and nobody who would free memory.
pub(crate) fn flags(gfp: TraceGfp) -> Gfp {
    let zones = Gfp::DMA.union(Gfp::DMA32);
    Gfp::from_bits_truncate(gfp.0).difference(zones.union(Gfp::NOFAIL).union(Gfp::ZERO).union(Gfp::ACCOUNT))
        | Gfp::NORETRY
        | Gfp::NOWARN
        | Gfp::MEMALLOC
}

impl KmemPages {
    fn new(frames: usize, cpus: u32) -> Result<Self, String> {
        let machine = Machine::builder()
            .cpus(cpus)
            .ram_bytes((frames * PAGE_SIZE) as u64)
            .zones(ZoneSplit::NORMAL_ONLY)
            .binding(Binding::ByName)
            .reports(Reports::Discard)
            .compaction(false)
            .boot()
            .map_err(|error| format!("kmem is left out: {error}"))?;
        Ok(Self { machine, first: machine.plan().span().start.0, cpus })
    }

    fn on<R>(&self, cpu: u32, work: impl FnOnce(&Kmem) -> R) -> Option<R> {
        // SAFETY: no pin or read-side section outlives the call.
        unsafe { self.machine.on_cpu(CpuId(cpu % self.cpus), || work(self.machine.kmem())) }.ok()
    }
}

impl Pages for KmemPages {
    fn name(&self) -> &'static str {
        "kmem"
    }
    fn alloc(&mut self, cpu: u32, order: u8, gfp: TraceGfp) -> Option<u64> {
        let order = Order::new(u32::from(order))?;
        let pfn = self.on(cpu, |kmem| kmem.alloc_pages(flags(gfp), order).ok())??;
        pfn.0.checked_sub(self.first)
    }
    fn free(&mut self, cpu: u32, frame: u64, order: u8, whole: bool) {
        let (pfn, nr) = (Pfn(self.first + frame), 1 << order);
        let _ = self.on(cpu, |kmem| match Order::new(u32::from(order)) {
            // SAFETY: a replay frees what it was given, once.
            Some(order) if whole => unsafe { kmem.free_pages(pfn, order) },
            // SAFETY: as above.
            _ => unsafe { ExactPages::free_range(kmem.pages(), PfnRange::new(pfn, Pfn(pfn.0 + nr))) },
        });
    }
    fn takes_parts(&self) -> bool {
        true
    }
    fn settle(&mut self) {
        self.machine.kmem().pages().drain_all_pages();
    }
}

impl Drop for KmemPages {
    fn drop(&mut self) {
        // SAFETY: frames are all that was taken of it, and only as numbers.
        unsafe { self.machine.shut_down() }
    }
}

/// "Physical" addresses are those of a block of the heap.
struct Mapped;

// SAFETY: addresses inside a live block whose provenance is exposed.
unsafe impl Provenance for Mapped {
    unsafe fn create(address: usize) -> NonNull<u8> {
        // SAFETY: addresses inside a block are never null.
        unsafe { NonNull::new_unchecked(std::ptr::with_exposed_provenance_mut(address)) }
    }
    unsafe fn destroy<T>(pointer: NonNull<T>) -> usize {
        pointer.as_ptr().expose_provenance()
    }
}

/// `frame-alloc`, without its per-CPU magazines, which would keep single pages back.
struct FrameAlloc {
    inner: Box<SummaryBuddyAllocator<11, Mapped>>,
    region: NonNull<u8>,
    layout: Layout,
}

const FRAME: PageSize = PageSize::from_log2(12);

impl FrameAlloc {
    fn new(frames: usize) -> Result<Self, String> {
        let out = |why: &str| format!("frame-alloc is left out: {why}");
        let layout = Layout::from_size_align(frames * PAGE_SIZE, 4 << 20).map_err(|_| out("too large a machine"))?;
        // SAFETY: not empty.
        let region = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| out("no memory"))?;
        let this = Self { inner: Box::new(SummaryBuddyAllocator::new(FRAME)), region, layout };
        let at = region.as_ptr().expose_provenance();
        // SAFETY: a block of ours, frame-aligned, which lives as long as the allocator; nobody shares it yet.
        unsafe { this.inner.try_init_region(at, layout.size()) }.map_err(|_| out("it refuses the region"))?;
        Ok(this)
    }
}

fn count(order: u8) -> NonZeroUsize {
    NonZeroUsize::new(1 << order).unwrap_or(NonZeroUsize::MIN)
}

impl Pages for FrameAlloc {
    fn name(&self) -> &'static str {
        "frame-alloc"
    }
    fn alloc(&mut self, _cpu: u32, order: u8, _gfp: TraceGfp) -> Option<u64> {
        let at = self.inner.allocate_physical(FRAME, count(order)).ok()?;
        Some((at.checked_sub(self.region.addr().get())? / PAGE_SIZE) as u64)
    }
    fn free(&mut self, _cpu: u32, frame: u64, order: u8, _whole: bool) {
        let at = self.region.addr().get() + frame as usize * PAGE_SIZE;
        // SAFETY: a replay frees what it was given, once, with the same order.
        unsafe { self.inner.deallocate_physical(FRAME, count(order), at) };
    }
}

impl Drop for FrameAlloc {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout; the allocator forgets it with this value.
        unsafe { dealloc(self.region.as_ptr(), self.layout) }
    }
}
