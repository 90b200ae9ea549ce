//! Threads that store, load, invalidate and write back at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{Map, machine};
use crate::tests::pagers::{Cut, page_of};
use crate::zswap::{SwapDevice, Zswap, ZswapOptions};

const PAGES: usize = 200;

#[test]
fn whatever_threads_do_an_offset_holds_what_was_written_last() {
    // ZS-42: a pool so small that it is full most of the time
    let options = ZswapOptions::new().max_pool_percent(2);
    let cache = Zswap::new(machine(), Cut, Map::default(), options).unwrap();
    let model: Vec<Mutex<Option<(usize, u64)>>> = (0..PAGES).map(|_| Mutex::new(None)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..4_u64)
            .map(|seed| {
                let (cache, model) = (&cache, &model);
                scope.spawn(move || {
                    let mut state = seed * 0x1234_5678_9abc_def1;
                    let mut page = [0; 4096];
                    for _ in 0..4000 {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        let draw = state >> 16;
                        let offset = draw as usize % PAGES;
                        let mut held = model[offset].lock().unwrap_or_else(PoisonError::into_inner);
                        match draw >> 8 & 3 {
                            0 | 1 => {
                                let (len, seed) = ((draw >> 16) as usize % 4096 + 1, draw);
                                cache.write_page(offset as u64, &page_of(len, seed)).unwrap();
                                *held = Some((len, seed));
                            }
                            2 => {
                                let read = cache.read_page(offset as u64, &mut page);
                                match *held {
                                    Some((len, seed)) => assert!(read.is_ok() && page == page_of(len, seed)),
                                    None => assert!(read.is_err()),
                                }
                            }
                            _ => {
                                cache.discard_page(offset as u64);
                                *held = None;
                            }
                        }
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            let (cache, done) = (&cache, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    cache.shrink().unwrap();
                    cache.writeback(1).unwrap();
                }
            });
        }
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    let mut page = [0; 4096];
    for (offset, held) in model.iter().enumerate() {
        if let Some((len, seed)) = *held.lock().unwrap() {
            cache.read_page(offset as u64, &mut page).unwrap();
            assert_eq!(page, page_of(len, seed), "offset {offset}");
        }
    }
    let stats = cache.stats();
    assert_eq!(stats.stored_pages, cache.pool().stats().objects);
    assert!(stats.written_back_pages > 0 && stats.reject_full > 0, "{stats:?}");
}
