//! [`CmaSide`] and [`DmaSide`]: the machine as contiguous areas and devices' memory see it.

use core::fmt;

use kmem_buddy::IsolateMode;
use kmem_cma::{Cma, CmaEnv, DmaBus, DmaEnv, Lender};
use kmem_gfp::{AllocError, ContigRange, FreeError, Gfp, MigrateType, Order, Pfn, PfnRange};

use crate::{PageSource, Platform};

/// The platform and its page allocator as contiguous areas see them.
pub struct CmaSide<P: Platform> {
    platform: &'static P,
    pages: &'static PageSource<P>,
    span: PfnRange,
}

impl<P: Platform> fmt::Debug for CmaSide<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmaSide").finish_non_exhaustive()
    }
}

impl<P: Platform> CmaSide<P> {
    pub(crate) fn new(platform: &'static P, pages: &'static PageSource<P>, span: PfnRange) -> Self {
        Self { platform, pages, span }
    }
}

impl<P: Platform> CmaEnv for CmaSide<P> {
    type Cpu = P::Cpu;
    type Context = P::Context;
    type Source = Self;

    fn cpu(&self) -> &P::Cpu {
        self.platform.cpu()
    }
    fn context(&self) -> &P::Context {
        self.platform.context()
    }
    fn source(&self) -> &Self {
        self
    }
}

// SAFETY: forwards to the page allocator.
unsafe impl<P: Platform> ContigRange for CmaSide<P> {
    fn take_range(&self, range: PfnRange, gfp: Gfp) -> Result<(), AllocError> {
        self.pages.take_range(range, gfp)
    }
    unsafe fn return_range(&self, range: PfnRange) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.pages.return_range(range) }
    }
}

// SAFETY: (1) the page allocator's ranges; (2) what pageblocks of type CMA serve is the page allocator's rule.
unsafe impl<P: Platform> Lender for CmaSide<P> {
    /// From the lowest to the highest frame of the map that the machine was set up with.
    fn span(&self) -> PfnRange {
        self.span
    }

    fn reserve(&self, range: PfnRange) -> Result<(), AllocError> {
        self.pages.alloc_contig_range(range, Gfp::KERNEL | Gfp::NOWARN, IsolateMode::Other)
    }

    unsafe fn adopt(&self, range: PfnRange) -> Result<(), AllocError> {
        // SAFETY: nobody uses what is reserved, the caller says.
        if unsafe { self.pages.free_reserved(range) } < range.len() {
            return Err(AllocError::Busy(range.start));
        }
        self.reserve(range)
    }

    unsafe fn lend(&self, range: PfnRange) {
        for number in range.start.0 >> Order::PAGEBLOCK.get()..range.end.0 >> Order::PAGEBLOCK.get() {
            let typed = self.pages.set_pageblock_type(Pfn(number << Order::PAGEBLOCK.get()), MigrateType::Cma);
            debug_assert!(typed.is_some());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.give_up(range) }
    }

    unsafe fn give_up(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        let freed = unsafe { self.pages.free_contig_range(range) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

/// The platform, its page allocator and its areas as devices' memory sees them.
pub struct DmaSide<P: Platform> {
    platform: &'static P,
    pages: &'static PageSource<P>,
    cma: &'static Cma<CmaSide<P>>,
}

impl<P: Platform> fmt::Debug for DmaSide<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSide").finish_non_exhaustive()
    }
}

impl<P: Platform> DmaSide<P> {
    pub(crate) fn new(platform: &'static P, pages: &'static PageSource<P>, cma: &'static Cma<CmaSide<P>>) -> Self {
        Self { platform, pages, cma }
    }
}

impl<P: Platform> DmaEnv for DmaSide<P> {
    type Cpu = P::Cpu;
    type Context = P::Context;
    type Pages = PageSource<P>;
    type Frames = P::Frames;
    type Contiguous = Cma<CmaSide<P>>;

    fn cpu(&self) -> &P::Cpu {
        self.platform.cpu()
    }
    fn context(&self) -> &P::Context {
        self.platform.context()
    }
    fn pages(&self) -> &PageSource<P> {
        self.pages
    }
    fn frames(&self) -> &P::Frames {
        self.platform.frames()
    }
    fn contiguous(&self) -> &Cma<CmaSide<P>> {
        self.cma
    }
    fn bus(&self) -> &dyn DmaBus {
        self.platform.dma_bus()
    }
    unsafe fn zero_frames(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { self.platform.zero_frames(range) }
    }
}
