//! The page source: blocks of frames for flags and a node.
//!
//! ```text
//! PageAllocator          a block of 2^order frames; give it back whole
//!   BulkPages            many single frames in one call
//!   ExactPages           any number of pages, a given address, freeing any part of a block
//! Pages                  an owned block that frees itself
//! ```

use core::mem::ManuallyDrop;

use crate::{AllocError, FreeError, Gfp, NodeId, Order, Pfn, PfnRange};

/// Hands out blocks of page frames.
///
/// # Safety
/// Frames handed out belong to the caller alone until given back. Implementations never touch the memory behind the
/// frames unless [`Gfp::ZERO`] asks for it.
pub unsafe trait PageAllocator {
    /// Allocates `1 << order` contiguous frames, aligned to their count, in zones that `gfp` allows, preferably on
    /// `node` (`None`: the nearest).
    ///
    /// Contexts: any that `gfp` allows (it may sleep only with [`Gfp::DIRECT_RECLAIM`]).
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] when nothing fits and the flags forbid trying harder; nothing has changed.
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError>;

    /// Takes back a block that [`alloc_pages`](Self::alloc_pages) gave. Any context; never sleeps.
    ///
    /// # Safety
    /// The caller owns the whole block and nothing uses its memory any more.
    ///
    /// # Errors
    /// A [`FreeError`] if the block is recognisably not an allocated block of this order; nothing has changed.
    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError>;

    /// The any-context form: callable from NMI, takes no lock that it cannot have at once, never reclaims. The default
    /// refuses.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] for shortage and contention alike.
    fn alloc_pages_nolock(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let _ = node;
        Err(AllocError::NoMemory { order, gfp })
    }

    /// Which node a frame of this allocator lies on.
    #[inline(always)]
    fn node_of(&self, pfn: Pfn) -> NodeId {
        let _ = pfn;
        NodeId(0)
    }

    /// How many nodes there are; at least one.
    #[inline(always)]
    fn nr_nodes(&self) -> u32 {
        1
    }
}

/// Many order-0 frames in one call.
///
/// # Safety
/// As for [`PageAllocator`].
pub unsafe trait BulkPages: PageAllocator {
    /// Fills the `None` slots of `pages` in order and returns how many leading slots are filled; it may be fewer than
    /// asked. `Some` slots are left alone.
    fn alloc_pages_bulk(&self, gfp: Gfp, node: Option<NodeId>, pages: &mut [Option<Pfn>]) -> usize;

    /// Takes back every frame in `pages`, leaving `None`. Frames in ascending order are fastest.
    ///
    /// # Safety
    /// As for [`PageAllocator::free_pages`], for each frame.
    ///
    /// # Errors
    /// The first frame that is recognisably not allocated; it and those behind it stay in `pages`.
    unsafe fn free_pages_bulk(&self, pages: &mut [Option<Pfn>]) -> Result<(), FreeError>;
}

/// Any page count, any address, freeing by parts.
///
/// # Safety
/// As for [`PageAllocator`].
pub unsafe trait ExactPages: PageAllocator {
    /// Allocates exactly `nr_pages` contiguous frames.
    ///
    /// # Errors
    /// As for [`PageAllocator::alloc_pages`]; [`AllocError::TooLarge`] above the largest block.
    fn alloc_pages_exact(&self, gfp: Gfp, nr_pages: usize, node: Option<NodeId>) -> Result<PfnRange, AllocError>;

    /// Allocates the block of `order` at exactly `pfn`, if all of it is free.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] if it is not; [`AllocError::BadAlign`] if no such block exists.
    fn alloc_pages_at(&self, gfp: Gfp, pfn: Pfn, order: Order) -> Result<(), AllocError>;

    /// Takes back any range of frames that the caller owns: parts of blocks, several blocks, in any order.
    ///
    /// # Safety
    /// As for [`PageAllocator::free_pages`], for each frame.
    ///
    /// # Errors
    /// A [`FreeError`] naming the first offending frame; nothing has changed.
    unsafe fn free_range(&self, range: PfnRange) -> Result<(), FreeError>;
}

/// Takes and returns given ranges of frames, moving what is movable out of the way. For contiguous areas, so ranges may
/// lie in pageblocks of type [`Cma`](crate::MigrateType::Cma).
///
/// # Safety
/// As for [`PageAllocator`].
pub unsafe trait ContigRange {
    /// Takes every frame of `range`, each as a page of its own. Only where sleeping is allowed.
    ///
    /// Flags: those that [`verdict::judge`](crate::verdict::judge) lets pass for
    /// [`Interface::ContigRange`](crate::verdict::Interface::ContigRange); they say how hard to look for new places for what
    /// lies in the range, and with [`Gfp::COMP`] the range is one block.
    ///
    /// # Errors
    /// [`AllocError::Busy`] if something in it cannot be moved, which may be different next time; [`AllocError::NoMemory`] if there
    /// is no other place for what lies in it; [`AllocError::Interrupted`]; [`AllocError::BadFlags`]. Who owns which
    /// frames has not changed, though some may have moved.
    fn take_range(&self, range: PfnRange, gfp: Gfp) -> Result<(), AllocError>;

    /// Returns frames that [`take_range`](Self::take_range) took.
    ///
    /// # Safety
    /// The caller owns every frame of `range` and nothing uses them any more.
    ///
    /// # Errors
    /// A [`FreeError`] naming the first offending frame; nothing has changed.
    unsafe fn return_range(&self, range: PfnRange) -> Result<(), FreeError>;
}

// SAFETY: forwards to an implementation that keeps the promise.
unsafe impl<A: ContigRange> ContigRange for &A {
    fn take_range(&self, range: PfnRange, gfp: Gfp) -> Result<(), AllocError> {
        (**self).take_range(range, gfp)
    }
    unsafe fn return_range(&self, range: PfnRange) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).return_range(range) }
    }
}

// SAFETY: forwards to an implementation that keeps the promise.
unsafe impl<A: PageAllocator> PageAllocator for &A {
    #[inline(always)]
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        (**self).alloc_pages(gfp, order, node)
    }
    #[inline(always)]
    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).free_pages(pfn, order) }
    }
    fn alloc_pages_nolock(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        (**self).alloc_pages_nolock(gfp, order, node)
    }
    #[inline(always)]
    fn node_of(&self, pfn: Pfn) -> NodeId {
        (**self).node_of(pfn)
    }
    #[inline(always)]
    fn nr_nodes(&self) -> u32 {
        (**self).nr_nodes()
    }
}

/// An owned block of frames; given back on drop.
///
/// # Invariants
/// `first` starts a block of `order` that `source` handed out and nobody else owns.
#[derive(Debug)]
#[must_use = "dropping `Pages` frees the frames"]
pub struct Pages<A: PageAllocator> {
    source: A,
    first: Pfn,
    order: Order,
}

impl<A: PageAllocator> Pages<A> {
    /// Allocates a block; see [`PageAllocator::alloc_pages`].
    ///
    /// # Errors
    /// Those of [`PageAllocator::alloc_pages`].
    pub fn new(source: A, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Self, AllocError> {
        let first = source.alloc_pages(gfp, order, node)?;
        // INVARIANT: just handed out to us.
        Ok(Self { source, first, order })
    }

    /// The first frame.
    pub fn first(&self) -> Pfn {
        self.first
    }

    /// log2 of the number of frames.
    pub fn order(&self) -> Order {
        self.order
    }

    /// The frames.
    pub fn range(&self) -> PfnRange {
        PfnRange::new(self.first, Pfn(self.first.0.saturating_add(self.order.nr_pages() as u64)))
    }

    /// Gives up ownership: the caller frees the block by hand, or never.
    pub fn into_raw(self) -> (Pfn, Order) {
        let this = ManuallyDrop::new(self);
        (this.first, this.order)
    }

    /// Takes ownership of a block, as [`into_raw`](Self::into_raw) left it.
    ///
    /// # Safety
    /// The block was handed out by `source` with this order, and the caller owns it.
    pub unsafe fn from_raw(source: A, first: Pfn, order: Order) -> Self {
        // INVARIANT: the caller's promise.
        Self { source, first, order }
    }
}

impl<A: PageAllocator> Drop for Pages<A> {
    fn drop(&mut self) {
        // SAFETY: we own the block (type invariant) and are its last user.
        let freed = unsafe { self.source.free_pages(self.first, self.order) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}
