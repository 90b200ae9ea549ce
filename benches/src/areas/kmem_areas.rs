//! Ours: vmalloc over page tables that do nothing and a page source that is a stack, so that little but vmalloc is measured.

use std::{cell::Cell, ptr::NonNull};

use kmem::vmalloc::{NoMapping, VmFlags, Vmalloc, VmallocEnv};
use kmem_gfp::{
    AllocError, BulkPages, ExactPages, FlatFrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE,
    PageAllocator, Pfn, PfnRange, PlainContext,
};
use kmem_sync::SingleCpu;

use super::{Areas, Workload, subject};
use crate::measure::{Role, Subject};

/// Everyone of ours who runs `workload`.
pub(crate) fn subjects(workload: Workload) -> Vec<Subject> {
    vec![
        subject::<Memory>("kmem", Role::Kmem, workload),
        subject::<Addresses>("kmem, addresses only", Role::Kmem, workload),
    ]
}

const FRAMES: u64 = 1 << 20;
/// Frames that hold bookkeeping: those below the others.
const BOOKS: u64 = 120_000;

/// A window with live areas that own no frames, so that a million of them leaves the frames to the pairs.
fn window(live: usize, holes: bool) -> Vmalloc<Env> {
    let layout = std::alloc::Layout::from_size_align(BOOKS as usize * PAGE_SIZE, PAGE_SIZE).expect("a layout");
    // SAFETY: not empty.
    let arena = unsafe { std::alloc::alloc(layout) };
    let words = Box::leak((0..BOOKS).map(|_| FrameWords::new()).collect::<Box<[_]>>());
    let env = Env {
        // SAFETY: one thread.
        cpu: unsafe { SingleCpu::new() },
        // SAFETY: the arena holds these frames as long as the process.
        frames: unsafe { FlatFrameTable::new(NonNull::from(&mut words[0]), arena.expose_provenance(), Pfn(1), BOOKS) },
        free: Cell::new(0),
        blocks: Cell::new(0),
        next: Cell::new(1),
        end: FRAMES,
        links: (0..FRAMES).map(|_| Cell::new(0)).collect(),
    };
    let vmalloc = Vmalloc::new(env);
    let base = 0xffff_c900_0000_0000;
    // SAFETY: the addresses are only numbers.
    unsafe { vmalloc.init(base..base + (1 << 45)) }.expect("a window");
    let mut free = Vec::new();
    for _ in 0..live {
        reserve(&vmalloc, 1, VmFlags::SPARSE);
        if holes {
            free.push(reserve(&vmalloc, 1, VmFlags::SPARSE | VmFlags::NO_GUARD));
        }
    }
    for hole in free {
        release(&vmalloc, hole);
    }
    // Whatever was freed becomes ordinary free space.
    vmalloc.purge();
    kmem::vmalloc::PoolShrinker::scan_objects(&vmalloc);
    vmalloc
}

#[inline(always)]
fn reserve(vmalloc: &Vmalloc<Env>, pages: usize, flags: VmFlags) -> usize {
    vmalloc.get_vm_area(pages * PAGE_SIZE, 1, flags, None, Gfp::KERNEL).expect("a range").addr().get()
}

#[inline(always)]
fn release(vmalloc: &Vmalloc<Env>, area: usize) {
    // SAFETY: not used.
    unsafe { vmalloc.vfree(std::ptr::without_provenance_mut(area)) }.expect("an area");
}

/// vmalloc and vfree: addresses and frames.
pub(crate) struct Memory(Vmalloc<Env>);

impl Areas for Memory {
    fn new(live: usize, holes: bool) -> Self {
        Self(window(live, holes))
    }
    #[inline(always)]
    fn alloc(&mut self, pages: usize) -> usize {
        self.0.vmalloc(pages * PAGE_SIZE).expect("memory").addr().get()
    }
    #[inline(always)]
    fn free(&mut self, area: usize, _pages: usize) {
        release(&self.0, area);
    }
}

/// A reserved range without frames.
pub(crate) struct Addresses(Vmalloc<Env>);

impl Areas for Addresses {
    fn new(live: usize, holes: bool) -> Self {
        Self(window(live, holes))
    }
    #[inline(always)]
    fn alloc(&mut self, pages: usize) -> usize {
        reserve(&self.0, pages, VmFlags::SPARSE)
    }
    #[inline(always)]
    fn free(&mut self, area: usize, _pages: usize) {
        release(&self.0, area);
    }
}

/// Frames from a stack, blocks from a counter.
struct Env {
    cpu: SingleCpu,
    frames: FlatFrameTable,
    free: Cell<u64>,
    /// Blocks of 256 frames.
    blocks: Cell<u64>,
    next: Cell<u64>,
    end: u64,
    links: Vec<Cell<u64>>,
}

// SAFETY: frames come from a counter and a stack of what was given back.
unsafe impl PageAllocator for Env {
    #[inline(always)]
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let top = self.free.get();
        if order == Order::ZERO && top != 0 {
            self.free.set(self.links[top as usize].get());
            return Ok(Pfn(top));
        }
        let block = self.blocks.get();
        if order.get() == 8 && block != 0 {
            self.blocks.set(self.links[block as usize].get());
            return Ok(Pfn(block));
        }
        let nr = order.nr_pages() as u64;
        let first = self.next.get().next_multiple_of(nr);
        if first + nr > self.end {
            return Err(AllocError::NoMemory { order, gfp });
        }
        self.next.set(first + nr);
        Ok(Pfn(first))
    }
    #[inline(always)]
    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        for i in 0..order.nr_pages() as u64 {
            self.links[(pfn.0 + i) as usize].set(self.free.replace(pfn.0 + i));
        }
        Ok(())
    }
}
// SAFETY: as above.
unsafe impl BulkPages for Env {
    fn alloc_pages_bulk(&self, gfp: Gfp, node: Option<NodeId>, pages: &mut [Option<Pfn>]) -> usize {
        for slot in pages.iter_mut() {
            *slot = self.alloc_pages(gfp, Order::ZERO, node).ok();
        }
        pages.len()
    }
    unsafe fn free_pages_bulk(&self, pages: &mut [Option<Pfn>]) -> Result<(), FreeError> {
        for pfn in pages.iter_mut().filter_map(Option::take) {
            // SAFETY: the caller's promise.
            unsafe { self.free_pages(pfn, Order::ZERO) }?;
        }
        Ok(())
    }
}
// SAFETY: as above.
unsafe impl ExactPages for Env {
    fn alloc_pages_exact(&self, gfp: Gfp, _nr: usize, _node: Option<NodeId>) -> Result<PfnRange, AllocError> {
        Err(AllocError::NoMemory { order: Order::ZERO, gfp })
    }
    fn alloc_pages_at(&self, gfp: Gfp, _pfn: Pfn, order: Order) -> Result<(), AllocError> {
        Err(AllocError::NoMemory { order, gfp })
    }
    unsafe fn free_range(&self, range: PfnRange) -> Result<(), FreeError> {
        if range.len() == 256 {
            self.links[range.start.0 as usize].set(self.blocks.replace(range.start.0));
            return Ok(());
        }
        for pfn in range.iter() {
            self.links[pfn.0 as usize].set(self.free.replace(pfn.0));
        }
        Ok(())
    }
}

impl VmallocEnv for Env {
    type Cpu = SingleCpu;
    type Pages = Self;
    type Frames = FlatFrameTable;
    type Context = PlainContext;
    type Space = NoMapping;

    #[inline(always)]
    fn cpu(&self) -> &SingleCpu {
        &self.cpu
    }
    #[inline(always)]
    fn pages(&self) -> &Self {
        self
    }
    #[inline(always)]
    fn frames(&self) -> &FlatFrameTable {
        &self.frames
    }
    #[inline(always)]
    fn context(&self) -> &PlainContext {
        &PlainContext
    }
    #[inline(always)]
    fn space(&self) -> &NoMapping {
        &NoMapping
    }
}
