//! What devices' memory takes from its surroundings.

use kmem_gfp::{AllocContext, ExactPages, FrameTable, PfnRange};
use kmem_sync::Cpu;

use crate::ReleaseError;
use crate::dma::bus::{DmaBus, PhysicalBus};

/// The platform of a [`Dma`](crate::Dma).
///
/// Usually a reference or a zero-sized type.
pub trait DmaEnv {
    /// The CPUs.
    type Cpu: Cpu;
    /// The running task and context.
    type Context: AllocContext;
    /// The page allocator.
    type Pages: ExactPages;
    /// Where frames are mapped; three words for each.
    type Frames: FrameTable;
    /// Where large buffers come from; [`NoContiguous`] if from the page allocator alone.
    type Contiguous: Contiguous;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// The running task and context.
    fn context(&self) -> &Self::Context;
    /// The page allocator.
    fn pages(&self) -> &Self::Pages;
    /// The frame table.
    fn frames(&self) -> &Self::Frames;
    /// Where large buffers come from.
    fn contiguous(&self) -> &Self::Contiguous;

    /// What lies between memory and devices.
    fn bus(&self) -> &dyn DmaBus {
        &PhysicalBus
    }

    /// Fills frames with zeroes.
    ///
    /// # Safety
    /// The caller owns the frames.
    unsafe fn zero_frames(&self, range: PfnRange);
}

impl<T: DmaEnv> DmaEnv for &T {
    type Cpu = T::Cpu;
    type Context = T::Context;
    type Pages = T::Pages;
    type Frames = T::Frames;
    type Contiguous = T::Contiguous;

    fn cpu(&self) -> &T::Cpu {
        (**self).cpu()
    }
    fn context(&self) -> &T::Context {
        (**self).context()
    }
    fn pages(&self) -> &T::Pages {
        (**self).pages()
    }
    fn frames(&self) -> &T::Frames {
        (**self).frames()
    }
    fn contiguous(&self) -> &T::Contiguous {
        (**self).contiguous()
    }
    fn bus(&self) -> &dyn DmaBus {
        (**self).bus()
    }
    unsafe fn zero_frames(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).zero_frames(range) }
    }
}

/// A source of large contiguous buffers: [`CmaArea`](crate::CmaArea), all areas of a [`Cma`](crate::Cma) that are
/// [for devices](crate::AreaSpec::for_dma), or none.
///
/// # Safety
/// Frames belong to whoever took them until given back.
pub unsafe trait Contiguous {
    /// Takes `nr_pages` frames, the first a multiple of `1 << align_order`. Called only where sleeping is allowed.
    fn take(&self, nr_pages: u64, align_order: u32) -> Option<PfnRange>;

    /// Takes back what [`take`](Self::take) gave, all of it.
    ///
    /// # Safety
    /// The caller owns the frames and nobody uses them any more.
    ///
    /// # Errors
    /// [`ReleaseError::Foreign`] if they are not from here; other errors for misuse. Nothing has changed.
    unsafe fn give(&self, range: PfnRange) -> Result<(), ReleaseError>;
}

// SAFETY: forwards to an implementation that keeps the promise.
unsafe impl<T: Contiguous> Contiguous for &T {
    fn take(&self, nr_pages: u64, align_order: u32) -> Option<PfnRange> {
        (**self).take(nr_pages, align_order)
    }
    unsafe fn give(&self, range: PfnRange) -> Result<(), ReleaseError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).give(range) }
    }
}

/// No source of large contiguous buffers.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoContiguous;

// SAFETY: gives nothing.
unsafe impl Contiguous for NoContiguous {
    fn take(&self, _nr_pages: u64, _align_order: u32) -> Option<PfnRange> {
        None
    }
    unsafe fn give(&self, range: PfnRange) -> Result<(), ReleaseError> {
        Err(ReleaseError::Foreign(range))
    }
}
