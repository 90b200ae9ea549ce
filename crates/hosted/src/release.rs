//! Free memory back to the host: take a free block at a given place from the page allocator, discard what is behind it,
//! put it back.
//!
//! ```text
//! range    │ 16 MiB │ 16 MiB │ ...      what does the host have in memory?       from the top down
//! block    2 MiB with something in memory: free as a whole? take, discard, put back
//!          otherwise its halves, down to 64 KiB
//! ```
//!
//! One block is taken at a time, so requests that come meanwhile find nearly everything that is free. Blocks are named by
//! their place, so no pageblock changes its type, and no watermark is in the way.

use kmem_gfp::{ExactPages, Gfp, Order, PAGE_SIZE, Pfn, PfnRange};

use crate::ram::{LOOK, Ram};

/// The smallest block worth a call to the host: 64 KiB.
const SMALLEST: Order = match Order::new(4) {
    Some(order) => order,
    None => Order::ZERO,
};

/// Gives up to `bytes` of free memory back to the host; returns how much the host had in memory and has no more, which may
/// be a block more than asked. Only frames below `end` are looked at. Pages in per-CPU sets are not free.
pub(crate) fn release_free<P: ExactPages>(pages: &P, ram: &Ram, end: Pfn, bytes: u64) -> u64 {
    let mut released = 0;
    for range in ram.plan().ranges().iter().rev() {
        let mut end = range.frames.end.min(end);
        while end > range.frames.start && released < bytes {
            let start = Pfn(end.0.saturating_sub(LOOK as u64).max(range.frames.start.0));
            released += release_in(pages, ram, PfnRange::new(start, end), bytes - released);
            end = start;
        }
    }
    released
}

/// As [`release_free`], inside `range`, of at most [`LOOK`] pages.
fn release_in<P: ExactPages>(pages: &P, ram: &Ram, range: PfnRange, bytes: u64) -> u64 {
    let mut known = [false; LOOK];
    let Some(known) = known.get_mut(..range.len() as usize) else { return 0 };
    if !ram.look(range, known) {
        return 0;
    }
    let mut released = 0;
    let block = Order::PAGEBLOCK.nr_pages();
    let mut end = known.len();
    while end > 0 && released < bytes {
        // The last block ends where the range does, and ranges end at block boundaries; the first may be cut.
        let start = (end - 1) / block * block;
        let first = Pfn(range.start.0 + start as u64);
        if let Some(resident) = known.get(start..end)
            && resident.iter().any(|&page| page)
        {
            released += release_block(pages, ram, first, Order::PAGEBLOCK, resident);
        }
        end = start;
    }
    released
}

/// Gives back what is free of the block of `order` at `first`, of whose pages `resident` says which the host has.
fn release_block<P: ExactPages>(pages: &P, ram: &Ram, first: Pfn, order: Order, resident: &[bool]) -> u64 {
    let nr = resident.iter().filter(|&&page| page).count() as u64;
    if nr == 0 {
        return 0;
    }
    if pages.alloc_pages_at(Gfp::NOWARN, first, order).is_err() {
        let Some(half) = order.get().checked_sub(1).and_then(Order::new).filter(|&half| half >= SMALLEST) else {
            return 0;
        };
        let (low, high) = resident.split_at(half.nr_pages().min(resident.len()));
        let middle = Pfn(first.0 + half.nr_pages() as u64);
        return release_block(pages, ram, first, half, low) + release_block(pages, ram, middle, half, high);
    }
    let range = PfnRange::block(first, order).unwrap_or_default();
    // SAFETY: just handed out to us, and nobody has written to it.
    let discarded = unsafe { ram.discard(range) }.is_ok();
    // SAFETY: taken above with this order, and used by nobody.
    let freed = unsafe { pages.free_pages(first, order) };
    debug_assert!(freed.is_ok(), "{freed:?}");
    if discarded { nr * PAGE_SIZE as u64 } else { 0 }
}
