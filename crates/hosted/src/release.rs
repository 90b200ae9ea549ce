//! Free memory back to the host: take free blocks from the page allocator, discard what is behind them, put them back.
//!
//! Blocks are taken from the largest order downwards, so that each call to the host covers as much as possible, and only
//! blocks that the host has in memory count. Those taken are strung together through their frame words until the end of the
//! round: the page allocator would hand the same block out again.

use kmem_gfp::{FrameTable, Gfp, Order, OwnerTag, PAGE_SIZE, PageAllocator, Pfn, PfnRange};
use kmem_sync::atomic::Ordering;

use crate::ram::Ram;

/// No reclaim, no waiting, no reserves, no report.
const TAKE: Gfp = Gfp::NOWARN.union(Gfp::NORETRY).union(Gfp::NOMEMALLOC).union(Gfp::MOVABLE).union(Gfp::HIGHMEM);

/// The smallest blocks worth a call to the host: 64 KiB.
const SMALLEST: u32 = 4;

/// Gives up to `bytes` of free memory back to the host; returns how much the host had in memory and has no more.
pub(crate) fn release_free<P: PageAllocator>(pages: &P, ram: &Ram, bytes: u64) -> u64 {
    let mut released = 0;
    for order in (SMALLEST..=Order::MAX.get()).rev().filter_map(Order::new) {
        if released >= bytes {
            break;
        }
        released += release_order(pages, ram, order, bytes - released);
    }
    released
}

/// As [`release_free`], from blocks of one order.
fn release_order<P: PageAllocator>(pages: &P, ram: &Ram, order: Order, bytes: u64) -> u64 {
    let mut released = 0;
    let mut taken: Option<Pfn> = None;
    while released < bytes
        && let Ok(first) = pages.alloc_pages(TAKE, order, None)
    {
        let words = ram.table().words(first);
        if let (Some(words), Some(range)) = (words, PfnRange::block(first, order)) {
            let resident = ram.resident(range);
            // SAFETY: just handed out to us, and nobody has written to it.
            if resident > 0 && unsafe { ram.discard(range) }.is_ok() {
                released += resident * PAGE_SIZE as u64;
            }
            words.owner.store(OwnerTag::Other as u64, Ordering::Relaxed);
            // Zero ends the string, so numbers are stored plus one.
            words.links.store(taken.map_or(0, |pfn| pfn.0 + 1), Ordering::Relaxed);
        }
        taken = Some(first);
    }
    while let Some(first) = taken {
        let words = ram.table().words(first);
        let next = words.map_or(0, |words| words.links.swap(0, Ordering::Relaxed));
        if let Some(words) = words {
            words.owner.store(0, Ordering::Relaxed);
        }
        // SAFETY: taken above with this order, and used by nobody.
        let freed = unsafe { pages.free_pages(first, order) };
        debug_assert!(freed.is_ok(), "{freed:?}");
        taken = next.checked_sub(1).map(Pfn);
    }
    released
}
