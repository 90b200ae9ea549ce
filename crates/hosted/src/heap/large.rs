//! Blocks above the classes: whole pages.
//!
//! ```text
//! up to 4 MiB     frames of the heap's page allocator: exactly as many pages as the size needs
//! above, or       a mapping of its own from the host
//! aligned so
//! ```
//!
//! The layout says which of the two a block is, and how many pages it has. The one thing written down, in the words of the
//! first frame, is that a block has been resized where it is: then it is no longer one block of the page allocator's.

use core::alloc::Layout;
use core::ptr::NonNull;

use kmem_gfp::{FrameTable, Gfp, Order, OwnerTag, PAGE_SIZE, Pfn, PfnRange};
use kmem_sync::atomic::Ordering;

use super::env::{BUDDY, host};
use crate::sys::{self, Access};

/// The flags that the heap allocates with: failure is a null pointer, at once and in silence.
pub(super) const GFP: Gfp = Gfp::KERNEL.union(Gfp::NOWARN).union(Gfp::NORETRY);

/// How a layout above the classes is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// By this many frames.
    Frames(usize),
    /// By a mapping of this many bytes.
    Mapping(usize),
}

impl Kind {
    fn of(layout: Layout) -> Self {
        // A block of frames is aligned to its own size, rounded up to a power of two.
        let bytes = layout.size().max(layout.align().min(Order::MAX.size_bytes())).max(1);
        if layout.size() <= Order::MAX.size_bytes() && layout.align() <= Order::MAX.size_bytes() {
            Self::Frames(bytes.div_ceil(PAGE_SIZE))
        } else {
            // Cannot overflow: a layout's size fits `isize`.
            Self::Mapping(layout.size().next_multiple_of(PAGE_SIZE))
        }
    }
}

/// Allocates for a layout above the classes; zeroed if asked for.
#[cold]
pub(super) fn alloc(layout: Layout, zeroed: bool) -> Option<NonNull<u8>> {
    match Kind::of(layout) {
        Kind::Frames(nr) => {
            let gfp = if zeroed { GFP | Gfp::ZERO } else { GFP };
            host().table.address_of(take_frames(nr, gfp)?)
        }
        Kind::Mapping(len) if layout.align() <= PAGE_SIZE => sys::map_anonymous(len, Access::ReadWrite).ok(),
        Kind::Mapping(len) => {
            let start = sys::reserve(len, layout.align()).ok()?;
            // SAFETY: just reserved, and empty.
            if unsafe { sys::commit_private(start, len) }.is_err() {
                // SAFETY: ours alone.
                unsafe { sys::unmap(start, len) };
                return None;
            }
            Some(start)
        }
    }
}

fn take_frames(nr: usize, gfp: Gfp) -> Option<Pfn> {
    if nr.is_power_of_two() {
        return BUDDY.alloc_pages(gfp, Order::new(nr.trailing_zeros())?, None).ok();
    }
    BUDDY.alloc_pages_exact(gfp, nr, None).ok().map(|range| range.start)
}

/// Frees a block that [`alloc`] gave for `layout`.
///
/// # Safety
/// Nobody uses the block any more.
#[cold]
pub(super) unsafe fn free(block: NonNull<u8>, layout: Layout) {
    match Kind::of(layout) {
        // SAFETY: the caller gives the block up.
        Kind::Mapping(len) => unsafe { sys::unmap(block, len) },
        Kind::Frames(nr) => {
            let Some(first) = host().table.frame_of(block.addr().get()) else { return };
            // SAFETY: the block's frames, given up by the caller.
            unsafe { give_frames(first, nr) };
            super::limit::freed(nr);
        }
    }
}

/// Gives back a whole block of `nr` frames.
///
/// # Safety
/// The caller owns them.
unsafe fn give_frames(first: Pfn, nr: usize) {
    let resized = host().table.words(first).is_some_and(|words| {
        // Relaxed: the words are the block's owner's, who is here.
        let resized = words.owner.load(Ordering::Relaxed) != 0;
        if resized {
            words.owner.store(0, Ordering::Relaxed);
        }
        resized
    });
    let order = if resized || !nr.is_power_of_two() { None } else { Order::new(nr.trailing_zeros()) };
    let freed = match order {
        // SAFETY: a block as the page allocator gave it, the caller's.
        Some(order) => unsafe { BUDDY.free_pages(first, order) },
        // SAFETY: the caller's frames.
        None => unsafe { BUDDY.free_range(frames(first, 0, nr)) },
    };
    debug_assert!(freed.is_ok(), "{freed:?}");
}

/// The frames `from..to` behind `first`.
const fn frames(first: Pfn, from: usize, to: usize) -> PfnRange {
    PfnRange::new(Pfn(first.0 + from as u64), Pfn(first.0 + to as u64))
}

/// Makes a block fit `new` where it is, or moves a mapping. `None` if the contents have to be copied; nothing has
/// changed then.
///
/// # Safety
/// The block was allocated for `old`; `new` has the same alignment and is also above the classes.
#[cold]
pub(super) unsafe fn resize(block: NonNull<u8>, old: Layout, new: Layout) -> Option<NonNull<u8>> {
    match (Kind::of(old), Kind::of(new)) {
        (Kind::Mapping(old), Kind::Mapping(len)) if new.align() <= PAGE_SIZE => {
            // SAFETY: a mapping of exactly this length, the caller's.
            unsafe { sys::remap(block, old, len) }.ok()
        }
        (Kind::Frames(old), Kind::Frames(nr)) => {
            let first = host().table.frame_of(block.addr().get())?;
            if nr > old && !take_behind(first, old, nr) {
                return None;
            }
            if nr != old {
                let words = host().table.words(first)?;
                words.owner.store(OwnerTag::Other as u64, Ordering::Relaxed);
            }
            if nr < old {
                // SAFETY: the tail of the caller's frames.
                let freed = unsafe { BUDDY.free_range(frames(first, nr, old)) };
                debug_assert!(freed.is_ok(), "{freed:?}");
            }
            Some(block)
        }
        _ => None,
    }
}

/// Takes the frames `from..to` behind `first`, if all of them are free.
fn take_behind(first: Pfn, from: usize, to: usize) -> bool {
    let end = first.0 + to as u64;
    let start = first.0 + from as u64;
    let mut at = start;
    while at < end {
        // The largest aligned block that starts here and ends in time.
        let aligned = at.trailing_zeros().min(Order::MAX.get());
        let fits = (end - at).ilog2();
        let Some(order) = Order::new(aligned.min(fits)) else { break };
        if BUDDY.alloc_pages_at(GFP, Pfn(at), order).is_err() {
            break;
        }
        at += order.nr_pages() as u64;
    }
    if at < end && at > start {
        // SAFETY: taken above.
        let freed = unsafe { BUDDY.free_range(PfnRange::new(Pfn(start), Pfn(at))) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
    at >= end
}
