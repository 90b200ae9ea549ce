//! Bookkeeping memory: blocks of frames of the page source, seen through the direct map.
//!
//! vmalloc has no heap. Its tables, descriptors and lists of frames live in blocks from the same page source that serves
//! areas. Tables and descriptors are kept until the window is torn down, which is what lets lookups run without a lock:
//! whatever pointer a reader has picked up points to memory that still holds a value of the same type.

use core::ptr::NonNull;

use kmem_gfp::{AllocError, FrameTable, Gfp, NodeId, Order, PageAllocator};

use crate::VmallocEnv;

/// The order whose block holds a `T`.
pub(crate) const fn order_of<T>() -> Order {
    match Order::for_size(size_of::<T>()) {
        Some(order) => order,
        None => Order::MAX,
    }
}

/// The larger of two orders.
pub(crate) const fn max_order(a: Order, b: Order) -> Order {
    if a.get() > b.get() { a } else { b }
}

/// The flags for bookkeeping memory of a request with `gfp`: how to reclaim and how to fail, nothing else.
#[inline]
pub(crate) fn meta_gfp(gfp: Gfp) -> Gfp {
    gfp.inherited()
}

/// Allocates a block and finds where it is mapped. Its contents are arbitrary.
pub(crate) fn alloc_block<E: VmallocEnv>(env: &E, gfp: Gfp, order: Order) -> Result<NonNull<u8>, AllocError> {
    alloc_block_on(env, gfp, order, None)
}

/// [`alloc_block`], preferably on `node`.
pub(crate) fn alloc_block_on<E: VmallocEnv>(
    env: &E,
    gfp: Gfp,
    order: Order,
    node: Option<NodeId>,
) -> Result<NonNull<u8>, AllocError> {
    let pfn = env.pages().alloc_pages(gfp, order, node)?;
    match env.frames().address_of(pfn) {
        Some(address) => Ok(address),
        None => {
            // SAFETY: just handed out to us, never used.
            let freed = unsafe { env.pages().free_pages(pfn, order) };
            debug_assert!(freed.is_ok(), "{freed:?}");
            Err(AllocError::NoMemory { order, gfp })
        }
    }
}

/// Gives a block back.
///
/// # Safety
/// `block` came from [`alloc_block`] with this order, and nothing uses it any more.
pub(crate) unsafe fn free_block<E: VmallocEnv>(env: &E, block: NonNull<u8>, order: Order) {
    let Some(pfn) = env.frames().frame_of(block.addr().get()) else {
        debug_assert!(false, "a block of ours is not in the frame table");
        return;
    };
    // SAFETY: the caller's promise; frames are found by the inverse of `address_of` (promise 3 of `FrameTable`).
    let freed = unsafe { env.pages().free_pages(pfn, order) };
    debug_assert!(freed.is_ok(), "{freed:?}");
}

/// Blocks of one order in stock: linked through their first word.
///
/// # Invariants
/// Following `head` visits exactly `len` unused blocks that belong to the stock.
#[derive(Debug)]
pub(crate) struct Spares {
    head: Option<NonNull<Spare>>,
    len: usize,
}

#[derive(Debug)]
struct Spare {
    next: Option<NonNull<Spare>>,
}

// SAFETY: owns its blocks; nothing is tied to a thread.
unsafe impl Send for Spares {}

impl Spares {
    pub(crate) const fn new() -> Self {
        Self { head: None, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a block.
    ///
    /// # Safety
    /// The block is the caller's, large and aligned as a page at least, and unused.
    pub(crate) unsafe fn push(&mut self, block: NonNull<u8>) {
        let spare = block.cast::<Spare>();
        // SAFETY: page-aligned, large enough and ours by the caller's promise.
        unsafe { spare.write(Spare { next: self.head }) };
        self.head = Some(spare);
        self.len += 1;
    }

    /// Takes a block.
    pub(crate) fn pop(&mut self) -> Option<NonNull<u8>> {
        let spare = self.head?;
        // SAFETY: listed blocks hold a `Spare` (type invariant).
        self.head = unsafe { spare.read() }.next;
        self.len -= 1;
        Some(spare.cast())
    }
}
