//! What tests share: taking all memory, filling and checking it, and counting what is free.

use core::ptr::NonNull;

use kmem::{Gfp, Order, PAGE_SIZE};
use kmem_sync::GracePeriod;

use super::random::mix;
use crate::grace::SchedulerGrace;
use crate::page_list::PageList;
use crate::platform::kmem;
use crate::vm::vmalloc;

/// Asks for memory that is free, and for nothing else.
pub(crate) const OPTIMISTIC: Gfp = Gfp::KERNEL.difference(Gfp::RECLAIM);

/// Takes single pages with `gfp` until none is left for it.
pub(crate) fn exhaust(gfp: Gfp) -> PageList {
    let mut pages = PageList::new();
    while let Ok(page) = kmem().alloc_pages(gfp | Gfp::NOWARN, Order::ZERO) {
        pages.push(page);
    }
    pages
}

/// Fills memory with a pattern that depends on `tag` and the place.
pub(crate) fn fill(memory: NonNull<u8>, bytes: usize, tag: u64) {
    for at in (0..bytes).step_by(stride(bytes)) {
        // SAFETY: the test's own memory of that size.
        unsafe { memory.add(at).write(mix(tag ^ at as u64) as u8) };
    }
}

/// Checks what [`fill`] wrote.
#[track_caller]
pub(crate) fn check(memory: NonNull<u8>, bytes: usize, tag: u64) {
    for at in (0..bytes).step_by(stride(bytes)) {
        // SAFETY: the test's own memory of that size.
        let found = unsafe { memory.add(at).read() };
        assert_eq!(found, mix(tag ^ at as u64) as u8, "byte {at} of {bytes} at {memory:?}");
    }
}

/// Every byte of small memory; some of every page of large.
fn stride(bytes: usize) -> usize {
    match bytes {
        0..=512 => 1,
        513..=PAGE_SIZE => 61,
        _ => 1021,
    }
}

/// Whether memory is all zero.
pub(crate) fn is_zero(memory: NonNull<u8>, bytes: usize) -> bool {
    // SAFETY: the test's own memory of that size.
    (0..bytes).all(|at| unsafe { memory.add(at).read() } == 0)
}

/// How many pages are free once nothing is kept back in caches and sets.
pub(crate) fn settled_free_pages() -> u64 {
    SchedulerGrace.synchronize();
    kmem().kfree_rcu_barrier();
    vmalloc().run_deferred();
    vmalloc().vm_unmap_aliases();
    kmem().slabs().shrink_all();
    kmem().pages().drain_all_pages();
    kmem().pages().free_page_count()
}
