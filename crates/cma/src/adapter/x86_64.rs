//! [`PageFrames`]: `FrameAllocator` and `FrameDeallocator` of x86_64 0.15 over any page allocator.

use kmem_gfp::{Gfp, Order, PageAllocator, Pfn};
use x86_64_015::PhysAddr;
use x86_64_015::structures::paging::{FrameAllocator, FrameDeallocator, PageSize, PhysFrame, Size2MiB, Size4KiB};

/// Frames for page tables and mappings, of 4 KiB or 2 MiB. Contexts: those that the flags allow.
///
/// ```no_run
/// use kmem_cma::adapter::PageFrames;
/// use kmem_gfp::{Gfp, PageAllocator};
/// use x86_64::structures::paging::{FrameAllocator, PhysFrame, Size2MiB};
/// # use x86_64_015 as x86_64;
///
/// fn huge(pages: &impl PageAllocator) -> Option<PhysFrame<Size2MiB>> {
///     PageFrames::new(pages, Gfp::KERNEL | Gfp::ZERO).allocate_frame()
/// }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct PageFrames<A> {
    source: A,
    gfp: Gfp,
}

impl<A: PageAllocator> PageFrames<A> {
    /// Frames of `source`, allocated with `gfp`. Tables that the CPU walks must be zeroed: [`Gfp::ZERO`], unless the mapper does so.
    pub const fn new(source: A, gfp: Gfp) -> Self {
        Self { source, gfp }
    }

    fn take<S: PageSize>(&self, order: Order) -> Option<PhysFrame<S>> {
        let pfn = self.source.alloc_pages(self.gfp, order, None).ok()?;
        let frame = pfn.address().and_then(|address| PhysAddr::try_new(address).ok());
        match frame.and_then(|address| PhysFrame::from_start_address(address).ok()) {
            Some(frame) => Some(frame),
            None => {
                self.give(pfn, order);
                None
            }
        }
    }

    fn give(&self, pfn: Pfn, order: Order) {
        // SAFETY: the caller of `deallocate_frame` promises that the frame is unused; `take` gives back what nobody has seen.
        let freed = unsafe { self.source.free_pages(pfn, order) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

macro_rules! frames {
    ($size:ty, $order:expr) => {
        // SAFETY: a page allocator hands out a frame once until it is given back.
        unsafe impl<A: PageAllocator> FrameAllocator<$size> for PageFrames<A> {
            fn allocate_frame(&mut self) -> Option<PhysFrame<$size>> {
                self.take($order)
            }
        }

        impl<A: PageAllocator> FrameDeallocator<$size> for PageFrames<A> {
            unsafe fn deallocate_frame(&mut self, frame: PhysFrame<$size>) {
                self.give(Pfn::containing(frame.start_address().as_u64()), $order);
            }
        }
    };
}

frames!(Size4KiB, Order::ZERO);
frames!(Size2MiB, Order::PAGEBLOCK);
