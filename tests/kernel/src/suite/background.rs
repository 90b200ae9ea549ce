//! kswapd, kcompactd and contiguous areas at work on pages with contents.

use alloc::vec::Vec;

use kmem::reclaim::ReclaimEvent;
use kmem::{Gfp, Order, Pfn};

use super::tools::{OPTIMISTIC, exhaust, settled_free_pages};
use crate::page_cache::{self, PAGES, PageCache};
use crate::platform::kmem;
use crate::reclaim::MM;
use crate::{daemons, sched};

super::tests![
    kswapd_frees_pages_of_a_page_cache,
    requests_reclaim_what_kswapd_does_not,
    kcompactd_makes_a_large_block_of_fragmented_memory,
    a_request_compacts_by_itself,
    a_contiguous_area_moves_what_lies_in_it,
];

/// Memory that can be moved, if it is free.
const MOVABLE: Gfp = Gfp::HIGHUSER_MOVABLE.difference(Gfp::RECLAIM).union(Gfp::NOWARN);
/// Pages that a test leaves free, and pages of the file that it then reads.
const ROOM: usize = 4000;
const FILE: usize = 12_000;

fn count(event: ReclaimEvent) -> u64 {
    MM.get().expect("reclaim").engine().stats().get(event)
}

/// Leaves so little memory that the file does not fit, reads all of it again and again with `gfp`, and gives everything back.
fn read_a_file_larger_than_memory(gfp: Gfp) {
    let cache = page_cache::cache();
    let mut hoard = exhaust(OPTIMISTIC);
    for _ in 0..ROOM {
        let page = hoard.pop().expect("a machine with more memory");
        // SAFETY: ours.
        unsafe { kmem().free_page(page) }.expect("ours");
    }
    for index in (0..3 * super::effort()).flat_map(|_| 0..FILE) {
        while cache.read(index, gfp | Gfp::NOWARN).is_err() {
            sched::park_or_yield();
        }
    }
    let resident = cache.resident();
    cache.clear();
    hoard.free();
    assert!(resident < FILE as u64, "{resident} pages in memory");
    assert_eq!(cache.resident(), 0);
}

fn kswapd_frees_pages_of_a_page_cache() {
    let (stolen, direct) = (count(ReclaimEvent::StealKswapd), count(ReclaimEvent::StealDirect));
    let evicted = page_cache::cache().evicted();
    let free = settled_free_pages();
    // Whoever may not reclaim by itself waits for kswapd.
    read_a_file_larger_than_memory(Gfp::HIGHUSER_MOVABLE.difference(Gfp::DIRECT_RECLAIM));
    let (stolen, direct) = (count(ReclaimEvent::StealKswapd) - stolen, count(ReclaimEvent::StealDirect) - direct);
    let evicted = page_cache::cache().evicted() - evicted;
    println!("kswapd freed {stolen} pages, {evicted} of them of the page cache");
    assert!(evicted as usize > FILE - ROOM && stolen >= evicted && direct == 0, "{stolen}, {evicted}, {direct}");
    let now = settled_free_pages();
    assert!(now + 64 >= free, "{free} pages were free, {now} are");
}

fn requests_reclaim_what_kswapd_does_not() {
    let evicted = page_cache::cache().evicted();
    read_a_file_larger_than_memory(Gfp::HIGHUSER_MOVABLE);
    assert!((page_cache::cache().evicted() - evicted) as usize > FILE - ROOM);
}

/// Memory in which every other page is the page cache's, without a free block of 2 MiB.
struct Fragments {
    cache: &'static PageCache,
    blocks: Vec<Pfn>,
}

impl Fragments {
    fn new() -> Self {
        let cache = page_cache::cache();
        let mut blocks = Vec::with_capacity(4096);
        // The file is as large as memory that matters; the rest is taken away.
        while kmem().pages().free_page_count() > PAGES as u64 / 2 && blocks.len() < blocks.capacity() {
            let Ok(block) = kmem().alloc_pages(OPTIMISTIC | Gfp::NOWARN, Order::PAGEBLOCK) else { break };
            blocks.push(block);
        }
        for index in 0..PAGES {
            if cache.read(index, MOVABLE).is_err() {
                break;
            }
        }
        (1..PAGES).step_by(2).for_each(|index| cache.forget(index));
        MM.get().expect("reclaim").lists().drain_all();
        kmem().pages().drain_all_pages();
        // What lies in reserves is whole still.
        while let Ok(block) = kmem().alloc_pages(MOVABLE, Order::PAGEBLOCK) {
            blocks.push(block);
        }
        Self { cache, blocks }
    }

    fn check(&self) {
        for index in (0..PAGES).filter(|&index| self.cache.is_resident(index)) {
            let _ = self.cache.read(index, MOVABLE);
        }
    }
}

impl Drop for Fragments {
    fn drop(&mut self) {
        self.cache.clear();
        for block in self.blocks.drain(..) {
            // SAFETY: ours.
            unsafe { kmem().free_pages(block, Order::PAGEBLOCK) }.expect("ours");
        }
    }
}

fn kcompactd_makes_a_large_block_of_fragmented_memory() {
    let mut fragments = Fragments::new();
    let moved = fragments.cache.moved();
    let resident = fragments.cache.resident();
    let highest = kmem().pages().zones().map(|zone| zone.kind()).max().expect("a zone");
    let mut asked = 0;
    let block = loop {
        if let Ok(block) = kmem().alloc_pages(MOVABLE, Order::PAGEBLOCK) {
            break block;
        }
        let now = sched::now_ms();
        if now >= asked + 200 {
            daemons::wake_compaction(Order::PAGEBLOCK, highest);
            asked = now;
        }
        sched::park_or_yield();
    };
    fragments.blocks.push(block);
    let moved = fragments.cache.moved() - moved;
    println!("{moved} of {resident} pages moved for a block of 2 MiB");
    assert!(moved > 0);
    fragments.check();
    drop(fragments);
}

fn a_request_compacts_by_itself() {
    let mut fragments = Fragments::new();
    let moved = fragments.cache.moved();
    let gfp = Gfp::HIGHUSER_MOVABLE | Gfp::NOWARN | Gfp::RETRY_MAYFAIL;
    // Requests like this one may go deeper into what is free than those before: a block or two may be whole there.
    let mut failure = None;
    for _ in 0..100 {
        match kmem().alloc_pages(gfp, Order::PAGEBLOCK) {
            Ok(block) => fragments.blocks.push(block),
            // A costly request may fail while the daemon holds what it would move, or after a failure of others.
            Err(error) => {
                failure = Some(error);
                sched::park_or_yield();
            }
        }
        if fragments.cache.moved() > moved && !fragments.blocks.is_empty() {
            break;
        }
    }
    assert!(!fragments.blocks.is_empty(), "half of memory is free, in pieces: {failure:?}");
    assert!(fragments.cache.moved() > moved, "blocks came without moving anything");
    fragments.check();
    drop(fragments);
}

fn a_contiguous_area_moves_what_lies_in_it() {
    let cache = page_cache::cache();
    let area = kmem().cma_layer().area("devices").expect("declared at boot");
    let range = area.ranges().next().expect("a range");
    for index in 0..PAGES {
        if cache.read(index, MOVABLE).is_err() {
            break;
        }
    }
    let (before, resident) = (cache.resident_in(range), cache.resident());
    let taken = kmem().cma_alloc(area, area.nr_pages(), 0).map(|pages| {
        let inside = cache.resident_in(range);
        drop(pages);
        inside
    });
    for index in (0..PAGES).filter(|&index| cache.is_resident(index)) {
        let _ = cache.read(index, MOVABLE);
    }
    cache.clear();
    println!("{before} of {resident} pages lay in the area of {} pages", area.nr_pages());
    assert_eq!(taken.expect("movable pages move"), 0);
    assert!(before > 0);
}
