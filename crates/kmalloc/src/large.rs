//! Large blocks: requests above the classes take one block of `2^order` pages each.
//!
//! ```text
//! frame words of the first frame     owner = [queued:1] order << 3 | LargeKmalloc
//! of the others                      untouched (zero)
//! ```
//!
//! Only the first frame is marked, so a block costs two stores whatever its size. The block that an inner frame
//! belongs to is still found without a search: blocks are aligned to their size, so for each order there is one
//! frame that can be its start, and at most one of the eleven is marked with an order that reaches that far.
//!
//! **Ownership:** the mark is written after the frames have been handed out and removed before they are given back,
//! by a compare-and-swap: of two racing frees of one block exactly one wins, the other gets an error, and neither
//! touches the words of the frames' next owner.

use core::ptr::NonNull;

use kmem_gfp::{AllocError, FrameTable, FrameWords, Gfp, NodeId, Order, OwnerTag, PAGE_SIZE, PageAllocator, Pfn};
use kmem_sync::atomic::Ordering;

use crate::{KMALLOC_MAX_SIZE, KfreeError};

/// Set in the owner word while the block waits for a grace period: it is no longer the user's.
const QUEUED: u64 = 1 << 63;

/// The owner word of a large block's first frame.
const fn mark(order: Order) -> u64 {
    ((order.get() as u64) << 3) | OwnerTag::LargeKmalloc as u64
}

/// The order that an owner word tells, if it marks a large block in use.
#[inline]
fn marked_order(owner: u64) -> Option<Order> {
    let tagged = OwnerTag::of(owner) == OwnerTag::LargeKmalloc && owner & QUEUED == 0;
    if tagged { Order::new((owner >> 3) as u32) } else { None }
}

/// A large block in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LargeBlock {
    /// Its first frame.
    pub(crate) first: Pfn,
    /// log2 of its pages.
    pub(crate) order: Order,
    /// Its address.
    pub(crate) start: usize,
}

/// Allocates a block for `size_bytes`, which is above the classes.
///
/// # Errors
/// [`AllocError::TooLarge`] above [`KMALLOC_MAX_SIZE`]; those of the page allocator. Nothing has changed.
pub(crate) fn alloc<P: PageAllocator, F: FrameTable>(
    pages: &P,
    frames: &F,
    size_bytes: usize,
    gfp: Gfp,
    node: Option<NodeId>,
) -> Result<(NonNull<u8>, Order), AllocError> {
    let too_large = AllocError::TooLarge { size_bytes };
    if size_bytes > KMALLOC_MAX_SIZE {
        return Err(too_large);
    }
    let order = Order::for_size(size_bytes).ok_or(too_large)?;
    let gfp = gfp.difference(Gfp::SLAB_BUG_MASK).union(Gfp::COMP);
    let first = pages.alloc_pages(gfp, order, node)?;
    match publish(frames, first, order) {
        Some(address) => Ok((address, order)),
        None => {
            // A frame that the table does not cover, or that is mapped nowhere: no kmalloc memory can come from it.
            // SAFETY: allocated above with this order, and nobody has seen its address.
            let freed = unsafe { pages.free_pages(first, order) };
            debug_assert!(freed.is_ok(), "{freed:?}");
            Err(AllocError::NotReady)
        }
    }
}

fn publish<F: FrameTable>(frames: &F, first: Pfn, order: Order) -> Option<NonNull<u8>> {
    let address = frames.address_of(first)?;
    // Release pairs with the acquires in `find` and `take`: whoever sees the mark sees what the block's previous owner
    // did before giving it back.
    frames.words(first)?.owner.store(mark(order), Ordering::Release);
    Some(address)
}

/// Replaces the mark of the block at `address` by `instead`, if it is a block in use that starts there. Of several
/// callers one succeeds.
fn take(words: &FrameWords, pfn: Pfn, address: usize, instead: impl Fn(u64) -> u64) -> Result<Order, KfreeError> {
    let not_allocated = KfreeError::NotAllocated { address, pfn };
    let owner = words.owner.load(Ordering::Acquire);
    let order = marked_order(owner).ok_or(not_allocated)?;
    let offset = address % PAGE_SIZE;
    if offset != 0 {
        return Err(KfreeError::InsideBlock { address, start: address.wrapping_sub(offset) });
    }
    // Release: the caller's last use of the block comes before whatever the next owner does.
    let taken = words.owner.compare_exchange(owner, instead(owner), Ordering::AcqRel, Ordering::Relaxed);
    taken.map(|_| order).map_err(|_| not_allocated)
}

/// Frees the block at `address`, in frame `pfn` with `words`.
///
/// # Safety
/// The caller owns the block, if there is one, and nobody uses it any more.
///
/// # Errors
/// [`KfreeError::NotAllocated`] if there is none or somebody else has freed it meanwhile, [`KfreeError::InsideBlock`]
/// if `address` is not its start, [`KfreeError::Pages`] if the page allocator refuses it. The block is as before.
pub(crate) unsafe fn free<P: PageAllocator>(
    pages: &P,
    words: &FrameWords,
    pfn: Pfn,
    address: usize,
) -> Result<Order, KfreeError> {
    // The mark goes first: from the moment that the frames are back, their words may be another's.
    let order = take(words, pfn, address, |_| 0)?;
    // SAFETY: we took the mark, which `alloc` put on a block of this order that it was handed out; by the caller's
    // promise nothing uses the memory any more.
    if let Err(error) = unsafe { pages.free_pages(pfn, order) } {
        words.owner.store(mark(order), Ordering::Release);
        return Err(error.into());
    }
    Ok(order)
}

/// Turns the block at `address` into one that waits for a grace period: no longer in use, not yet free. Its `state` and
/// `links` words are the caller's from here on.
///
/// # Errors
/// As for [`free`].
pub(crate) fn mark_queued(words: &FrameWords, pfn: Pfn, address: usize) -> Result<Order, KfreeError> {
    take(words, pfn, address, |owner| owner | QUEUED)
}

/// Frees a block that [`mark_queued`] marked.
///
/// # Safety
/// The block's grace period has passed, and the caller took it off its queue.
///
/// # Errors
/// [`KfreeError::Pages`] if the page allocator refuses it.
pub(crate) unsafe fn free_queued<P: PageAllocator>(
    pages: &P,
    words: &FrameWords,
    first: Pfn,
) -> Result<Order, KfreeError> {
    let owner = words.owner.load(Ordering::Relaxed) & !QUEUED;
    let order = marked_order(owner).ok_or(KfreeError::NotAllocated { address: 0, pfn: first })?;
    words.owner.store(0, Ordering::Release);
    // SAFETY: a block of this order by its mark; by the caller's promise nothing uses it any more.
    unsafe { pages.free_pages(first, order)? };
    Ok(order)
}

/// The large block in use that `address` lies in.
pub(crate) fn find<F: FrameTable>(frames: &F, address: usize) -> Option<LargeBlock> {
    let pfn = frames.frame_of(address)?;
    for candidate in Order::all() {
        let first = Pfn(pfn.0 & !(candidate.nr_pages() as u64 - 1));
        let Some(words) = frames.words(first) else { continue };
        let Some(order) = marked_order(words.owner.load(Ordering::Acquire)) else { continue };
        if order >= candidate {
            let start = frames.address_of(first)?.addr().get();
            return Some(LargeBlock { first, order, start });
        }
    }
    None
}
