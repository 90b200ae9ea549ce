//! What the cache does, rule by rule.

use std::io;
use std::sync::atomic::Ordering;

use kmem_gfp::{Gfp, NodeId};

use super::{Map, machine};
use crate::tests::pagers::{Cut, page_of};
use crate::zswap::{Rejected, SwapDevice, SwapFile, Zswap, ZswapOptions};

fn cache() -> Zswap<Map> {
    Zswap::new(machine(), Cut, Map::default(), ZswapOptions::new()).unwrap()
}

fn loaded(cache: &Zswap<Map>, offset: u64) -> Option<[u8; 4096]> {
    let mut page = [0xee; 4096];
    cache.load(offset, &mut page).unwrap().then_some(page)
}

#[test]
fn a_page_is_stored_loaded_and_invalidated() {
    let cache = cache();
    cache.store(5, &page_of(1000, 5), Some(NodeId(0))).unwrap();
    cache.store(6, &page_of(2500, 6), None).unwrap();
    assert_eq!(loaded(&cache, 5), Some(page_of(1000, 5)));
    cache.store(5, &page_of(1200, 7), None).unwrap();
    assert_eq!(loaded(&cache, 5), Some(page_of(1200, 7)), "the last one stored");
    assert!(cache.invalidate(5) && !cache.invalidate(5));
    assert_eq!(loaded(&cache, 5), None);
    let mut page = [0; 4096];
    assert!(cache.take(6, &mut page).unwrap() && !cache.take(6, &mut page).unwrap());
    assert_eq!(page, page_of(2500, 6));
    let stats = cache.stats();
    assert_eq!((stats.zswpout, stats.zswpin, stats.stored_pages), (3, 3, 0));
    assert_eq!((stats.stored_bytes, cache.pool().stats().objects), (0, 0));
    assert!(stats.to_string().starts_with("stored_pages 0\n"));
}

#[test]
fn objects_wait_for_nothing_and_may_lie_where_frames_move() {
    // ZS-42
    let flags = Gfp::NOWAIT | Gfp::NORETRY | Gfp::NOWARN | Gfp::HIGHMEM | Gfp::MOVABLE;
    assert_eq!(crate::zswap::FLAGS, flags);
    assert!(!flags.intersects(Gfp::DIRECT_RECLAIM));
}

#[test]
fn objects_that_span_frames_are_read_from_both() {
    // ZS-42: as a list of pieces
    let cache = cache();
    for offset in 0..200 {
        cache.store(offset, &page_of(2600, offset), None).unwrap();
    }
    let stats = cache.stats();
    assert!(stats.pool_total_size < 200 * 4096 * 7 / 10, "some span two frames");
    for offset in 0..200 {
        assert_eq!(loaded(&cache, offset), Some(page_of(2600, offset)));
    }
}

#[test]
fn incompressible_pages_are_kept_whole_only_with_writeback() {
    // ZS-42
    let cache = cache();
    cache.store(1, &page_of(4096, 1), None).unwrap();
    assert_eq!(loaded(&cache, 1), Some(page_of(4096, 1)));
    let stats = cache.stats();
    assert_eq!((stats.stored_incompressible_pages, stats.stored_bytes), (1, 4096));
    cache.invalidate(1);
    assert_eq!(cache.stats().stored_incompressible_pages, 0);

    let without = Zswap::new(machine(), Cut, Map::default(), ZswapOptions::new().writeback(false)).unwrap();
    without.store(1, &page_of(100, 1), None).unwrap();
    assert_eq!(without.store(1, &page_of(4096, 2), None), Err(Rejected::Incompressible));
    assert_eq!(loaded(&without, 1), None, "what was there is stale");
    assert_eq!(without.stats().reject_compress_poor, 1);
    without.store(2, &page_of(100, 1), None).unwrap();
    assert_eq!(without.writeback(10).unwrap(), 0);
    assert_eq!(without.stats().stored_pages, 1);
}

#[test]
fn the_pool_takes_a_fifth_of_memory_and_accepts_again_at_nine_tenths_of_that() {
    // ZS-42
    let cache = cache();
    let frames = (16 << 20) / 4096;
    assert_eq!(cache.limit_frames(), frames / 5);
    let mut offset = 0;
    let rejected = loop {
        match cache.store(offset, &page_of(4096, offset), None) {
            Ok(()) => offset += 1,
            Err(rejected) => break rejected,
        }
    };
    let (limit, accept) = (frames / 5, frames / 5 * 9 / 10);
    assert_eq!(rejected, Rejected::Full { used: limit, accept });
    assert_eq!(offset, limit);
    assert!(cache.wants_shrink());
    // Below the limit is not enough.
    for gone in 0..limit - accept - 1 {
        cache.invalidate(gone);
        assert!(matches!(cache.store(9999, &page_of(10, 1), None), Err(Rejected::Full { .. })));
    }
    cache.invalidate(limit - accept - 1);
    cache.store(9999, &page_of(10, 1), None).unwrap();
    let stats = cache.stats();
    assert_eq!((stats.pool_limit_hit, stats.reject_full), (1, limit - accept));
    // Only the oldest have to go to make room.
    for more in 10_000.. {
        if cache.store(more, &page_of(4096, more), None).is_err() {
            break;
        }
    }
    let written = cache.shrink().unwrap();
    assert!(written >= limit - accept && written <= limit - accept + 20, "{written}");
    cache.store(1, &page_of(4096, 1), None).unwrap();
    let order = cache.device().order.lock().unwrap();
    assert_eq!(order.first(), Some(&(limit - accept)), "the oldest that is left");
    assert!(order.is_sorted());
}

#[test]
fn a_folio_is_stored_whole_or_not_at_all() {
    // ZS-42
    let machine = machine();
    let cache = Zswap::new(machine, Cut, Map::default(), ZswapOptions::new().writeback(false)).unwrap();
    let good: Vec<_> = (0..4).map(|nth| page_of(1000, nth)).collect();
    let pages: Vec<_> = good.iter().collect();
    cache.store_folio(100, &pages, None).unwrap();
    for nth in 0..4 {
        assert_eq!(loaded(&cache, 100 + nth), Some(page_of(1000, nth)));
    }
    let objects = cache.pool().stats().objects;
    let bad = page_of(4096, 9);
    let pages = [&good[1], &good[2], &bad, &good[3]];
    assert_eq!(cache.store_folio(102, &pages, None), Err(Rejected::Incompressible));
    for offset in 102..106 {
        assert_eq!(loaded(&cache, offset), None, "stale entries at these offsets have gone");
    }
    assert_eq!(loaded(&cache, 101), Some(page_of(1000, 1)), "others have not");
    assert_eq!(cache.pool().stats().objects, objects - 2, "and nothing of the folio is left");
    assert_eq!(cache.stats().stored_pages, 2);
}

#[test]
fn writeback_takes_the_oldest_and_keeps_what_the_device_refuses() {
    // ZS-42
    let cache = cache();
    for offset in [7, 3, 9, 1] {
        cache.store(offset, &page_of(500, offset), None).unwrap();
    }
    cache.store(7, &page_of(600, 77), None).unwrap(); // the youngest again
    assert_eq!(cache.writeback(2).unwrap(), 2);
    assert_eq!(*cache.device().order.lock().unwrap(), [3, 9]);
    cache.device().fails.store(true, Ordering::Relaxed);
    assert_eq!(cache.writeback(2).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(loaded(&cache, 1), Some(page_of(500, 1)));
    assert_eq!(cache.stats().stored_pages, 2);
    cache.device().fails.store(false, Ordering::Relaxed);
    assert_eq!(cache.writeback(10).unwrap(), 2);
    assert_eq!(cache.stats().written_back_pages, 4);
    assert_eq!(cache.pool().stats().objects, 0);
    let mut page = [0; 4096];
    for (offset, seed, len) in [(7, 77, 600), (3, 3, 500), (9, 9, 500), (1, 1, 500)] {
        cache.read_page(offset, &mut page).unwrap();
        assert_eq!(page, page_of(len, seed));
    }
    assert_eq!(cache.stats().zswpin, 1, "reads from the device are not loads");
}

#[test]
fn as_a_device_it_hands_on_what_it_does_not_take() {
    let cache = Zswap::new(machine(), Cut, Map::default(), ZswapOptions::new().max_pool_percent(0)).unwrap();
    cache.write_page(4, &page_of(100, 4)).unwrap();
    assert_eq!((cache.stats().stored_pages, cache.stats().reject_full), (0, 1));
    let mut page = [0; 4096];
    cache.read_page(4, &mut page).unwrap();
    assert_eq!(page, page_of(100, 4));
    cache.discard_page(4);
    assert!(cache.read_page(4, &mut page).is_err());
}

#[test]
fn pages_go_through_a_swap_file() {
    let path = std::env::temp_dir().join(format!("zswap-file-{}", std::process::id()));
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    let cache = Zswap::new(machine(), Cut, SwapFile::new(file), ZswapOptions::new()).unwrap();
    for offset in 0..50 {
        cache.write_page(offset * 3, &page_of(900, offset)).unwrap();
    }
    assert_eq!(cache.writeback(30).unwrap(), 30);
    let mut page = [0; 4096];
    for offset in 0..50 {
        cache.read_page(offset * 3, &mut page).unwrap();
        assert_eq!(page, page_of(900, offset));
    }
    assert!(cache.write_page(u64::MAX, &page_of(1, 1)).is_ok(), "the cache takes any offset");
    assert!(cache.writeback(100).is_err(), "the file does not");
}

#[test]
fn each_page_request_may_fail_and_nothing_is_lost() {
    // ZS-42
    let machine = machine();
    for nth in 1.. {
        machine.fail_page_request(nth);
        let Ok(cache) = Zswap::new(machine, Cut, Map::default(), ZswapOptions::new()) else { continue };
        for offset in 0..60 {
            let page = page_of([100, 1500, 4096][offset as usize % 3], offset);
            cache.write_page(offset, &page).unwrap();
        }
        cache.writeback(10).unwrap();
        let mut page = [0; 4096];
        for offset in 0..60 {
            cache.read_page(offset, &mut page).unwrap();
            assert_eq!(page, page_of([100, 1500, 4096][offset as usize % 3], offset), "request {nth}, page {offset}");
        }
        let stats = cache.stats();
        assert_eq!(stats.stored_pages + stats.reject_alloc_fail + stats.written_back_pages, 60);
        drop(cache);
        if machine.failure_pending() {
            break;
        }
        assert!(nth < 500);
    }
    machine.fail_page_request(0);
    assert_eq!(machine.take_reports(), "");
}
