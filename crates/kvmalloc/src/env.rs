//! What kvmalloc needs from the machine below it.
//!
//! ```text
//! Kvmalloc<E> ──▶ E: KvmallocEnv ─┬─ objects()  the first try              kmem_kmalloc::ObjectAllocator
//!                                 ├─ areas()    the second                 kmem_vmalloc::VirtAllocator
//!                                 ├─ grace()    when readers have finished kmem_sync::GracePeriod
//!                                 ├─ cpu()      interrupts off             kmem_sync::Cpu
//!                                 └─ context()  where reports go           kmem_gfp::AllocContext
//! ```

use kmem_gfp::AllocContext;
use kmem_kmalloc::ObjectAllocator;
use kmem_sync::{Cpu, GracePeriod};
use kmem_vmalloc::VirtAllocator;

/// The parts that a [`Kvmalloc`](crate::Kvmalloc) is built over.
///
/// Usually references to the two allocators, or a reference to the structure that holds them. Each method returns the same
/// part every time.
///
/// # Safety
/// Implementors promise:
/// 1. The two allocators never hand out the same address, and [`areas`](Self::areas) owns no address of
///    [`objects`](Self::objects).
/// 2. Code that calls kvmalloc can access what both hand out by its address: the window is part of the running address
///    space.
pub unsafe trait KvmallocEnv {
    /// The machine's CPUs.
    type Cpu: Cpu;
    /// Physically contiguous blocks: kmalloc.
    type Objects: ObjectAllocator;
    /// Virtually contiguous areas: vmalloc.
    type Areas: VirtAllocator;
    /// The running context.
    type Context: AllocContext;
    /// Grace periods.
    type Grace: GracePeriod;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// kmalloc.
    fn objects(&self) -> &Self::Objects;
    /// vmalloc.
    fn areas(&self) -> &Self::Areas;
    /// The running context.
    fn context(&self) -> &Self::Context;
    /// Grace periods.
    fn grace(&self) -> &Self::Grace;
}

// SAFETY: forwards to an implementation that keeps the promises.
unsafe impl<E: KvmallocEnv + ?Sized> KvmallocEnv for &E {
    type Cpu = E::Cpu;
    type Objects = E::Objects;
    type Areas = E::Areas;
    type Context = E::Context;
    type Grace = E::Grace;

    #[inline(always)]
    fn cpu(&self) -> &Self::Cpu {
        (**self).cpu()
    }
    #[inline(always)]
    fn objects(&self) -> &Self::Objects {
        (**self).objects()
    }
    #[inline(always)]
    fn areas(&self) -> &Self::Areas {
        (**self).areas()
    }
    #[inline(always)]
    fn context(&self) -> &Self::Context {
        (**self).context()
    }
    #[inline(always)]
    fn grace(&self) -> &Self::Grace {
        (**self).grace()
    }
}
