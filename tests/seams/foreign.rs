//! Object caches and kmalloc over a page allocator that is not kmem's: a buddy of free lists, forty lines long.

use core::ptr::NonNull;
use std::collections::BTreeSet;
use std::sync::Mutex;

use kmem_gfp::{
    AllocError, FlatFrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE, PageAllocator, Pfn, PlainContext,
};
use kmem_kmalloc::{Kmalloc, KmallocConfig};
use kmem_slab::{Cache, SlabEnv, Slabs};
use kmem_sync::{NoReaders, SingleCpu};

const PAGES: u64 = 4096;

/// Free blocks by order.
struct Foreign(Mutex<[BTreeSet<u64>; Order::COUNT]>);

impl Foreign {
    fn new() -> Self {
        let mut free = [const { BTreeSet::new() }; Order::COUNT];
        free[Order::MAX.index()].extend((0..PAGES).step_by(Order::MAX.nr_pages()));
        Self(Mutex::new(free))
    }

    fn free_pages_left(&self) -> usize {
        let free = self.0.lock().unwrap();
        Order::all().map(|order| free[order.index()].len() * order.nr_pages()).sum()
    }
}

// SAFETY: a block is in exactly one free set, or handed out.
unsafe impl PageAllocator for Foreign {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let mut free = self.0.lock().unwrap();
        let found = (order.index()..Order::COUNT).find(|from| !free[*from].is_empty());
        let mut from = found.ok_or(AllocError::NoMemory { order, gfp })?;
        let block = free[from].pop_first().unwrap();
        while from > order.index() {
            from -= 1;
            free[from].insert(block + (1 << from));
        }
        assert!(!gfp.contains(Gfp::ZERO), "nobody here asks for zeroed pages");
        Ok(Pfn(block))
    }

    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let mut free = self.0.lock().unwrap();
        let (mut block, mut at) = (pfn.0, order.index());
        if free[at].contains(&block) {
            return Err(FreeError::AlreadyFree(pfn));
        }
        while at < Order::MAX.index() && free[at].remove(&(block ^ (1 << at))) {
            block &= !(1 << at);
            at += 1;
        }
        free[at].insert(block);
        Ok(())
    }
}

struct Env {
    cpu: SingleCpu,
    pages: Foreign,
    frames: FlatFrameTable,
    grace: NoReaders,
}

impl SlabEnv for Env {
    type Cpu = SingleCpu;
    type Pages = Foreign;
    type Frames = FlatFrameTable;
    type Context = PlainContext;
    type Grace = NoReaders;

    fn cpu(&self) -> &SingleCpu {
        &self.cpu
    }
    fn pages(&self) -> &Foreign {
        &self.pages
    }
    fn frames(&self) -> &FlatFrameTable {
        &self.frames
    }
    fn context(&self) -> &PlainContext {
        &PlainContext
    }
    fn grace(&self) -> &NoReaders {
        &self.grace
    }
}

#[test]
fn caches_and_kmalloc_run_on_a_foreign_page_allocator() {
    let layout = std::alloc::Layout::from_size_align(PAGES as usize * PAGE_SIZE, 4 << 20).unwrap();
    // SAFETY: not of size zero.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    let words: Vec<FrameWords> = (0..PAGES).map(|_| FrameWords::new()).collect();
    // SAFETY: one thread; no readers; as many words as frames, and both live to the end of the test.
    let env = unsafe {
        let first = NonNull::new(words.as_ptr().cast_mut()).unwrap();
        let frames = FlatFrameTable::new(first, memory.expose_provenance(), Pfn(0), PAGES);
        Env { cpu: SingleCpu::new(), pages: Foreign::new(), frames, grace: NoReaders::new() }
    };
    let slabs = Slabs::new(&env);
    slabs.init().unwrap();
    let kmalloc = Kmalloc::new(&slabs, KmallocConfig::default()).unwrap();
    slabs.shrink_all();
    let start = env.pages.free_pages_left();
    {
        let cache = Cache::<String, _>::new(&slabs, "strings").unwrap();
        let strings: Vec<_> = (0..1000).map(|n| cache.alloc(format!("string {n}"), Gfp::KERNEL).unwrap()).collect();
        assert!(strings.iter().enumerate().all(|(n, string)| **string == format!("string {n}")));
    }
    let blocks: Vec<_> = (0..200).map(|n| kmalloc.kmalloc(n * 97, Gfp::KERNEL).unwrap()).collect();
    assert!(env.pages.free_pages_left() < start - 500);
    for block in blocks {
        // SAFETY: ours, freed once.
        unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
    }
    slabs.shrink_all();
    let stats = slabs.stats();
    assert_eq!(env.pages.free_pages_left() as u64 + stats.slab_pages() + stats.metadata_pages, PAGES);
    kmalloc.destroy().unwrap();
    drop(slabs);
    assert_eq!(env.pages.free_pages_left() as u64, PAGES, "everything freed is everything back");
    // SAFETY: allocated above with this layout; the allocators are gone.
    unsafe { std::alloc::dealloc(memory, layout) };
}
