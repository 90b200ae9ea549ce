//! Pages by the number: many at once, counts that are no power of two, any part of a block.

use kmem_gfp::{AllocError, BulkPages, ExactPages, FreeError, Gfp, Order, Pfn, PfnRange};

use crate::{Kmem, Platform};

/// # Pages by the number
impl<P: Platform> Kmem<P> {
    /// Fills the `None` slots of `pages` and returns how many leading slots are filled.
    pub fn alloc_pages_bulk(&self, gfp: Gfp, pages: &mut [Option<Pfn>]) -> usize {
        BulkPages::alloc_pages_bulk(&self.pages, gfp, None, pages)
    }

    /// Takes back every frame in `pages`.
    ///
    /// # Safety
    /// As for [`free_pages`](Self::free_pages), for each frame.
    ///
    /// # Errors
    /// Those of [`BulkPages::free_pages_bulk`].
    #[doc(alias = "release_pages")]
    pub unsafe fn free_pages_bulk(&self, pages: &mut [Option<Pfn>]) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { BulkPages::free_pages_bulk(&self.pages, pages) }
    }

    /// Exactly as many contiguous frames as `size_bytes` needs.
    ///
    /// # Errors
    /// Those of [`ExactPages::alloc_pages_exact`].
    pub fn alloc_pages_exact(&self, size_bytes: usize, gfp: Gfp) -> Result<PfnRange, AllocError> {
        let nr_pages = size_bytes.div_ceil(kmem_gfp::PAGE_SIZE);
        ExactPages::alloc_pages_exact(&self.pages, gfp, nr_pages, None)
    }

    /// Takes back any frames that the caller owns: parts of blocks, several blocks.
    ///
    /// # Safety
    /// As for [`free_pages`](Self::free_pages), for each frame.
    ///
    /// # Errors
    /// Those of [`ExactPages::free_range`].
    #[doc(alias = "free_pages_exact")]
    pub unsafe fn free_range(&self, range: PfnRange) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { ExactPages::free_range(&self.pages, range) }
    }

    /// The block of `order` at exactly `pfn`, if all of it is free.
    ///
    /// # Errors
    /// Those of [`ExactPages::alloc_pages_at`].
    pub fn alloc_pages_at(&self, gfp: Gfp, pfn: Pfn, order: Order) -> Result<(), AllocError> {
        ExactPages::alloc_pages_at(&self.pages, gfp, pfn, order)
    }
}
