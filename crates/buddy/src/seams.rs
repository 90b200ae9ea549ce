//! The traits of `kmem-gfp` that the allocator implements.

use kmem_gfp::{
    AllocError, BulkPages, ContigRange, ExactPages, FreeError, Gfp, NodeId, Order, PageAllocator, Pfn, PfnRange,
};

use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::isolate::IsolateMode;

// SAFETY: a frame is handed out by whoever turned its bit from free to used, which only one can; the memory is touched
// only through `BuddyEnv::zero_frames`.
unsafe impl<E: BuddyEnv> PageAllocator for Buddy<E> {
    #[inline(always)]
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        Buddy::alloc_pages(self, gfp, order, node)
    }

    #[inline(always)]
    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { Buddy::free_pages(self, pfn, order) }
    }

    fn alloc_pages_nolock(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        Buddy::alloc_pages_nolock(self, gfp, order, node)
    }

    fn node_of(&self, pfn: Pfn) -> NodeId {
        let zone = self.state().and_then(|state| state.block_of(pfn)).and_then(|block| block.zone());
        zone.map_or(NodeId(0), |zone| zone.node)
    }

    fn nr_nodes(&self) -> u32 {
        self.state().map_or(1, |state| state.nr_nodes)
    }
}

// SAFETY: as above.
unsafe impl<E: BuddyEnv> BulkPages for Buddy<E> {
    fn alloc_pages_bulk(&self, gfp: Gfp, node: Option<NodeId>, pages: &mut [Option<Pfn>]) -> usize {
        Buddy::alloc_pages_bulk(self, gfp, node, pages)
    }

    unsafe fn free_pages_bulk(&self, pages: &mut [Option<Pfn>]) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { Buddy::free_pages_bulk(self, pages) }
    }
}

// SAFETY: as above.
unsafe impl<E: BuddyEnv> ExactPages for Buddy<E> {
    fn alloc_pages_exact(&self, gfp: Gfp, nr_pages: usize, node: Option<NodeId>) -> Result<PfnRange, AllocError> {
        Buddy::alloc_pages_exact(self, gfp, nr_pages, node)
    }

    fn alloc_pages_at(&self, gfp: Gfp, pfn: Pfn, order: Order) -> Result<(), AllocError> {
        Buddy::alloc_pages_at(self, gfp, pfn, order)
    }

    unsafe fn free_range(&self, range: PfnRange) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { Buddy::free_range(self, range) }
    }
}

// SAFETY: as above; frames are moved only at the hands of their owners, who agreed to it.
unsafe impl<E: BuddyEnv> ContigRange for Buddy<E> {
    fn take_range(&self, range: PfnRange, gfp: Gfp) -> Result<(), AllocError> {
        self.alloc_contig_range(range, gfp, IsolateMode::Cma)
    }

    unsafe fn return_range(&self, range: PfnRange) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.free_contig_range(range) }
    }
}
