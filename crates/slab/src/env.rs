//! What object caches need from the machine below them.
//!
//! ```text
//! Slabs<E> ──▶ E: SlabEnv ─┬─ cpu()      which CPU, pin, interrupts            kmem_sync::Cpu
//!                          ├─ pages()    blocks of frames for slabs            kmem_gfp::PageAllocator
//!                          ├─ frames()   address ◀──▶ frame, three words each  kmem_gfp::FrameTable
//!                          ├─ context()  may it sleep, local node, reports     kmem_gfp::AllocContext
//!                          └─ grace()    polled grace periods                  kmem_sync::GracePeriod
//! ```

use kmem_gfp::{AllocContext, FrameTable, PageAllocator};
use kmem_sync::{Cpu, GracePeriod};

/// The five parts that a [`Slabs`](crate::Slabs) is built over, and a source of entropy.
///
/// Usually a zero-sized type or a reference to the structure that holds the parts; every method is called on hot paths
/// and should inline to a field access.
///
/// Each method returns the same part every time.
pub trait SlabEnv {
    /// The machine's CPUs.
    type Cpu: Cpu;
    /// Where slabs come from.
    type Pages: PageAllocator;
    /// Owner words and direct-map addresses of the frames that [`Pages`](Self::Pages) hands out.
    type Frames: FrameTable;
    /// The running context.
    type Context: AllocContext;
    /// Grace periods for typesafe caches and RCU frees.
    type Grace: GracePeriod;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// The page source.
    fn pages(&self) -> &Self::Pages;
    /// The frame table.
    fn frames(&self) -> &Self::Frames;
    /// The running context.
    fn context(&self) -> &Self::Context;
    /// Grace periods.
    fn grace(&self) -> &Self::Grace;

    /// A number that an attacker cannot guess: it seeds the secrets of freelists and their random order. The default is
    /// a constant, which keeps runs repeatable and hardens nothing.
    fn entropy(&self) -> u64 {
        0x9e37_79b9_7f4a_7c15
    }
}

impl<E: SlabEnv + ?Sized> SlabEnv for &E {
    type Cpu = E::Cpu;
    type Pages = E::Pages;
    type Frames = E::Frames;
    type Context = E::Context;
    type Grace = E::Grace;

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
    #[inline(always)]
    fn grace(&self) -> &Self::Grace {
        (**self).grace()
    }
    fn entropy(&self) -> u64 {
        (**self).entropy()
    }
}
