//! The names of contiguous areas and of devices' memory on [`Kmem`].

use core::ptr::NonNull;

use kmem_cma::{
    AreaSpec, Cma, CmaArea, CmaError, CmaPages, Coherent, DeclareError, Dma, DmaBuffer, DmaDevice, DmaError, DmaPool,
    PoolError, PoolSpec, ReleaseError,
};
use kmem_gfp::{AllocError, Gfp, Order, PfnRange};

use crate::{CmaSide, DmaSide, Kmem, Platform};

/// # Contiguous areas and devices
impl<P: Platform> Kmem<P> {
    /// Declares a contiguous area and activates it: its memory serves movable requests from then on, until it is asked for. The
    /// bookkeeping memory comes from the page allocator, for good. Only where sleeping is allowed; best done early,
    /// while memory is free or movable.
    ///
    /// # Errors
    /// [`DeclareError`]; nothing has changed.
    pub fn cma_declare_contiguous(&self, spec: &AreaSpec<'_>) -> Result<CmaArea<'_, CmaSide<P>>, DeclareError> {
        let area = self.with_books(spec, |memory| {
            // SAFETY: as large as asked for, aligned to its size, and nobody else's from here on.
            unsafe { self.cma.declare_multi(spec, memory) }
        })?;
        area.activate();
        Ok(area)
    }

    /// As [`cma_declare_contiguous`](Self::cma_declare_contiguous), over memory that the machine's map said was reserved.
    ///
    /// # Errors
    /// Those of [`Cma::init_reserved`].
    ///
    /// # Safety
    /// Nobody uses those frames of the ranges that are reserved.
    pub unsafe fn cma_init_reserved_mem(
        &self,
        spec: &AreaSpec<'_>,
        ranges: &[PfnRange],
    ) -> Result<CmaArea<'_, CmaSide<P>>, DeclareError> {
        let nr_pages = ranges.iter().fold(0_u64, |sum, range| sum.saturating_add(range.len()));
        let area = self.with_books(&spec.sized(nr_pages), |memory| {
            // SAFETY: as large as asked for; the frames are the caller's promise.
            unsafe { self.cma.init_reserved(spec, ranges, memory) }
        })?;
        area.activate();
        Ok(area)
    }

    fn with_books<T>(
        &self,
        spec: &AreaSpec<'_>,
        declare: impl FnOnce(NonNull<u8>) -> Result<T, DeclareError>,
    ) -> Result<T, DeclareError> {
        let layout = kmem_cma::layout(spec)?;
        let too_large = AllocError::TooLarge { size_bytes: layout.size() };
        let order = Order::for_size(layout.size()).ok_or(too_large)?;
        let pfn = self.alloc_pages(Gfp::KERNEL, order)?;
        let declared = match self.page_address(pfn) {
            Some(memory) => declare(memory),
            None => Err(AllocError::NotReady.into()),
        };
        if declared.is_err() {
            // SAFETY: allocated above, and nobody has kept it.
            let freed = unsafe { self.free_pages(pfn, order) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
        declared
    }

    /// At least `nr_pages` contiguous pages of an area, the first a multiple of `1 << align_order`; released on drop. Moves what lies
    /// there. Only where sleeping is allowed.
    ///
    /// # Errors
    /// [`CmaError`].
    pub fn cma_alloc<'k>(
        &self,
        area: CmaArea<'k, CmaSide<P>>,
        nr_pages: u64,
        align_order: u32,
    ) -> Result<CmaPages<'k, CmaSide<P>>, CmaError> {
        area.alloc(nr_pages, align_order)
    }

    /// Takes back pages that [`CmaPages::into_raw`] left, whichever area they are from.
    ///
    /// # Safety
    /// The caller owns every frame of `range` and nothing uses them any more.
    ///
    /// # Errors
    /// [`ReleaseError`]; nothing has changed.
    pub unsafe fn cma_release(&self, range: PfnRange) -> Result<(), ReleaseError> {
        let area = self.cma.area_of(range.start).ok_or(ReleaseError::Foreign(range))?;
        // SAFETY: the caller's promise is the same.
        unsafe { area.release(range) }
    }

    /// Zeroed memory that `device` reaches and that it and the CPU use at the same time; freed on drop.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn dma_alloc_coherent(
        &self,
        device: &DmaDevice,
        len: usize,
        gfp: Gfp,
    ) -> Result<DmaBuffer<'_, DmaSide<P>>, DmaError> {
        self.dma.alloc_coherent(device, len, gfp)
    }

    /// Takes back what [`DmaBuffer::into_raw`] left.
    ///
    /// # Safety
    /// The caller owns the memory; neither the CPU nor the device uses it any more.
    ///
    /// # Errors
    /// [`DmaError`]; nothing has changed.
    pub unsafe fn dma_free_coherent(&self, block: Coherent) -> Result<(), DmaError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.dma.free_coherent_raw(block) }
    }

    /// A pool of small coherent blocks for `device`: [`DmaPool::alloc`] and its relatives are the other `dma_pool_*` names.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn dma_pool_create(
        &self,
        device: &DmaDevice,
        spec: &PoolSpec<'_>,
    ) -> Result<DmaPool<'_, DmaSide<P>>, PoolError> {
        DmaPool::new(&self.dma, device, spec)
    }

    /// The contiguous areas.
    pub fn cma_layer(&self) -> &Cma<CmaSide<P>> {
        &self.cma
    }

    /// Devices' memory.
    pub fn dma_layer(&self) -> &Dma<DmaSide<P>> {
        &self.dma
    }
}
