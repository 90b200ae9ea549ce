//! Counts instructions per pair of alloc and free, with page tables that do nothing, while many areas live.
//! `valgrind --tool=callgrind --toggle-collect='costs::pairs*' target/release/examples/costs <live areas> <pages>`

use core::cell::Cell;
use core::ptr::NonNull;

use kmem_gfp::{
    AllocError, BulkPages, ExactPages, FlatFrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE,
    PageAllocator, Pfn, PfnRange, PlainContext,
};
use kmem_sync::SingleCpu;
use kmem_vmalloc::{NoMapping, VmFlags, Vmalloc, VmallocEnv};

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

#[inline(never)]
fn pairs(vmalloc: &Vmalloc<Env>, nr: usize, pages: usize) {
    for _ in 0..nr {
        let memory = vmalloc.vmalloc(core::hint::black_box(pages * PAGE_SIZE)).expect("memory");
        // SAFETY: not used.
        unsafe { vmalloc.vfree(core::hint::black_box(memory.as_ptr())) }.expect("an area");
    }
}

/// [`pairs`] by another name, to be left out of the count.
#[inline(never)]
fn warm(vmalloc: &Vmalloc<Env>, nr: usize, pages: usize) {
    for _ in 0..nr {
        let memory = vmalloc.vmalloc(pages * PAGE_SIZE).expect("memory");
        // SAFETY: not used.
        unsafe { vmalloc.vfree(memory.as_ptr()) }.expect("an area");
    }
}

fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>().expect("a number"));
    let live = args.next().unwrap_or(10);
    let pages = args.next().unwrap_or(1);
    let nr_frames = 4_000_000_u64;
    let bookkeeping = 120_000_u64;
    let layout = std::alloc::Layout::from_size_align(bookkeeping as usize * PAGE_SIZE, PAGE_SIZE).expect("a layout");
    // SAFETY: not empty.
    let arena = unsafe { std::alloc::alloc(layout) };
    let words = Box::leak((0..bookkeeping).map(|_| FrameWords::new()).collect::<Box<[_]>>());
    let env = Env {
        // SAFETY: one thread.
        cpu: unsafe { SingleCpu::new() },
        // SAFETY: the arena holds the frames that bookkeeping is made of: those below the others.
        frames: unsafe {
            FlatFrameTable::new(NonNull::from(&mut words[0]), arena.expose_provenance(), Pfn(1), bookkeeping)
        },
        free: Cell::new(0),
        blocks: Cell::new(0),
        next: Cell::new(1),
        end: nr_frames,
        links: (0..nr_frames).map(|_| Cell::new(0)).collect(),
    };
    let vmalloc = Vmalloc::new(env);
    let base = 0xffff_c900_0000_0000;
    // SAFETY: the addresses are only numbers.
    unsafe { vmalloc.init(base..base + (1 << 45)) }.expect("a window");
    // Live areas that own no frames, so that a million of them leaves the frames to the pairs.
    for _ in 0..live {
        vmalloc.get_vm_area(PAGE_SIZE, 1, VmFlags::SPARSE, None, Gfp::KERNEL).expect("a range");
    }
    let nr = 20_000;
    warm(&vmalloc, 10_000, pages);
    pairs(&vmalloc, nr, pages);
    println!("{live} live areas, {} pairs of {pages} pages, {:?}", nr + 10_000, vmalloc.stats());
}
