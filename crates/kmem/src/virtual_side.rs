//! [`VirtualSide`]: the platform as vmalloc sees it, and [`NoAddressSpace`] for machines without virtual memory.

use core::ops::Range;

use kmem_vmalloc::{
    AddressSpace, CpuSet, ExhaustionNotifier, Granule, MapError, Prot, Run, TableSource, VmallocEnv, Work,
};

use crate::{PageSource, Pfn, Platform};

/// The platform and its page allocator as vmalloc sees them.
#[derive(Debug)]
pub struct VirtualSide<P: Platform> {
    platform: &'static P,
    pages: &'static PageSource<P>,
    cpu: P::Cpu,
    frames: P::Frames,
}

impl<P: Platform> VirtualSide<P> {
    pub(crate) fn new(platform: &'static P, pages: &'static PageSource<P>) -> Self {
        Self { platform, pages, cpu: *platform.cpu(), frames: *platform.frames() }
    }
}

impl<P: Platform> Clone for VirtualSide<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P: Platform> Copy for VirtualSide<P> {}

impl<P: Platform> VmallocEnv for VirtualSide<P> {
    type Cpu = P::Cpu;
    type Pages = PageSource<P>;
    type Frames = P::Frames;
    type Context = P::Context;
    type Space = P::Space;

    #[inline(always)]
    fn cpu(&self) -> &P::Cpu {
        &self.cpu
    }
    #[inline(always)]
    fn pages(&self) -> &PageSource<P> {
        self.pages
    }
    #[inline(always)]
    fn frames(&self) -> &P::Frames {
        &self.frames
    }
    #[inline(always)]
    fn context(&self) -> &P::Context {
        self.platform.context()
    }
    #[inline(always)]
    fn space(&self) -> &P::Space {
        self.platform.space()
    }
    fn total_pages(&self) -> u64 {
        self.pages.managed_pages()
    }
    fn flush_cpus(&self) -> CpuSet<'_> {
        self.platform.flush_cpus()
    }
    fn schedule(&self, work: Work) -> bool {
        self.platform.schedule_vmalloc(work)
    }
    fn notifier(&self) -> &dyn ExhaustionNotifier {
        self.platform.vmalloc_notifier()
    }
    fn shared_alignment(&self) -> usize {
        self.platform.shared_alignment()
    }
    fn clears_memory(&self) -> bool {
        self.platform.clears_memory()
    }
}

/// No page tables: for machines where every address is a physical one. Every mapping is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAddressSpace;

// SAFETY: nothing is ever mapped, so nothing can be reached or accessed through it.
unsafe impl AddressSpace for NoAddressSpace {
    fn granules(&self) -> &[Granule] {
        &[Granule::BASE]
    }
    unsafe fn map(
        &self,
        at: usize,
        _runs: &[Run],
        _prot: Prot,
        _largest: Granule,
        _tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        Err(MapError::Refused { address: at })
    }
    unsafe fn unmap(&self, _at: usize, _size_bytes: usize) {}
    unsafe fn protect(
        &self,
        at: usize,
        _size_bytes: usize,
        _prot: Prot,
        _tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        Err(MapError::NotMapped { address: at })
    }
    fn flush(&self, _range: Range<usize>, _cpus: CpuSet<'_>) {}
    fn translate(&self, _at: usize) -> Option<Pfn> {
        None
    }
}
