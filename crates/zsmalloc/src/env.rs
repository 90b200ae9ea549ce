//! What a pool needs from its surroundings.

use kmem_gfp::{AllocContext, FrameTable, PageAllocator};
use kmem_sync::Cpu;

/// The surroundings of a [`Pool`](crate::Pool): usually a reference to the machine, or a zero-sized type.
pub trait ZsEnv {
    /// The CPUs: interrupts off around short sections, waiting in spin loops.
    type Cpu: Cpu;
    /// Where frames come from, for objects and metadata alike; order 0 only.
    type Pages: PageAllocator;
    /// Where frames are mapped, and the words in which a pool notes what a frame holds.
    type Frames: FrameTable;
    /// Takes the lines of a report (objects left at the end, damage found).
    type Context: AllocContext;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// The page source.
    fn pages(&self) -> &Self::Pages;
    /// The frame table.
    fn frames(&self) -> &Self::Frames;
    /// The running context.
    fn context(&self) -> &Self::Context;
}

impl<T: ZsEnv> ZsEnv for &T {
    type Cpu = T::Cpu;
    type Pages = T::Pages;
    type Frames = T::Frames;
    type Context = T::Context;

    #[inline(always)]
    fn cpu(&self) -> &Self::Cpu {
        (**self).cpu()
    }
    #[inline(always)]
    fn pages(&self) -> &Self::Pages {
        (**self).pages()
    }
    #[inline(always)]
    fn frames(&self) -> &Self::Frames {
        (**self).frames()
    }
    #[inline(always)]
    fn context(&self) -> &Self::Context {
        (**self).context()
    }
}
