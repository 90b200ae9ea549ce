//! What contiguous areas take from their surroundings.

use kmem_gfp::{AllocContext, AllocError, ContigRange, PfnRange};
use kmem_sync::Cpu;

/// The platform of a [`Cma`](crate::Cma).
///
/// Usually a reference or a zero-sized type.
pub trait CmaEnv {
    /// The CPUs.
    type Cpu: Cpu;
    /// The running task and context.
    type Context: AllocContext;
    /// The page allocator.
    type Source: Lender;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// The running task and context.
    fn context(&self) -> &Self::Context;
    /// The page allocator that areas take their memory from and lend it to.
    fn source(&self) -> &Self::Source;
}

impl<T: CmaEnv> CmaEnv for &T {
    type Cpu = T::Cpu;
    type Context = T::Context;
    type Source = T::Source;

    fn cpu(&self) -> &T::Cpu {
        (**self).cpu()
    }
    fn context(&self) -> &T::Context {
        (**self).context()
    }
    fn source(&self) -> &T::Source {
        (**self).source()
    }
}

/// A page allocator that areas can be made from: it gives up whole pageblocks and takes them back as a loan.
///
/// ```text
/// ordinary memory ──reserve──▶ the area's ──lend──▶ serves movable requests ──take_range──▶ the area's user's
/// boot reservation ──adopt──▶      │                        ◀────────────return_range──────────
/// ordinary memory ◀───give_up──────┘
/// ```
///
/// # Safety
/// 1. As for [`ContigRange`]: frames belong to one holder at a time.
/// 2. After [`lend`](Self::lend) the frames of the range serve requests of migratetype
///    [`Movable`](kmem_gfp::MigrateType::Movable) and no others, for good.
pub unsafe trait Lender: ContigRange {
    /// The frames among which areas are looked for.
    fn span(&self) -> PfnRange;

    /// Takes ordinary memory: every frame of `range`, which is made of whole pageblocks. Only where sleeping is allowed.
    ///
    /// # Errors
    /// [`AllocError::Busy`] names a frame that cannot be had, for instance because it lies in another zone than the first;
    /// [`AllocError::NoMemory`] and the like. Who owns which frames has not changed.
    fn reserve(&self, range: PfnRange) -> Result<(), AllocError>;

    /// Takes memory that was reserved when the machine was set up, as [`reserve`](Self::reserve) takes ordinary memory.
    ///
    /// # Errors
    /// [`AllocError::Busy`] if not all of it was reserved, or not all of it lies in one zone. What had been reserved of it is
    /// ordinary memory then.
    ///
    /// # Safety
    /// Nobody uses those frames of the range that are reserved.
    unsafe fn adopt(&self, range: PfnRange) -> Result<(), AllocError>;

    /// Lends a part of what [`reserve`](Self::reserve) or [`adopt`](Self::adopt) took, made of whole pageblocks: they become
    /// pageblocks of type [`Cma`](kmem_gfp::MigrateType::Cma), and their frames free.
    ///
    /// # Safety
    /// The caller owns the frames and nobody uses them.
    unsafe fn lend(&self, range: PfnRange);

    /// Makes ordinary free memory of what was taken and not lent.
    ///
    /// # Safety
    /// The caller owns the frames and nobody uses them.
    unsafe fn give_up(&self, range: PfnRange);
}

// SAFETY: forwards to an implementation that keeps the promises.
unsafe impl<L: Lender> Lender for &L {
    fn span(&self) -> PfnRange {
        (**self).span()
    }
    fn reserve(&self, range: PfnRange) -> Result<(), AllocError> {
        (**self).reserve(range)
    }
    unsafe fn adopt(&self, range: PfnRange) -> Result<(), AllocError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).adopt(range) }
    }
    unsafe fn lend(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).lend(range) }
    }
    unsafe fn give_up(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).give_up(range) }
    }
}
