//! A device that several threads use at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use super::machine;
use crate::tests::pagers::{Cut, Pairs, paired_page_of};
use crate::zram::{Recompress, Zram, ZramOptions};
use kmem_zsmalloc::Config;

const PAGES: usize = 64;
const ROUNDS: u64 = 3000;

fn step(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state >> 16
}

#[test]
fn threads_writing_reading_discarding_and_recompressing_lose_no_page() {
    let options =
        ZramOptions::new(PAGES as u64 * 4096, Cut).secondary(Pairs).pool(Config::new().with_moves_per_free(1));
    let device = Zram::new(machine(), options).unwrap();
    let done = AtomicBool::new(false);
    // The lock of a page of the model makes its write and the device's one step.
    let model: Vec<Mutex<Option<[u8; 4096]>>> = (0..PAGES).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (1..4_u64)
            .map(|seed| {
                let (device, model) = (&device, &model);
                scope.spawn(move || {
                    let mut state = seed * 0x1234_5678_9abc_def1;
                    let mut data = [0; 4096];
                    for _ in 0..ROUNDS {
                        let draw = step(&mut state);
                        let page = draw as usize % PAGES;
                        let mut held = model[page].lock().unwrap_or_else(PoisonError::into_inner);
                        match draw >> 8 & 3 {
                            0 | 1 => {
                                let new = paired_page_of((draw >> 16) as usize % 4096 + 1, draw);
                                device.write_page(page as u64, &new).unwrap();
                                *held = Some(new);
                            }
                            2 => {
                                device.read_page(page as u64, &mut data).unwrap();
                                assert_eq!(data, held.unwrap_or([0; 4096]));
                            }
                            _ => {
                                device.discard(page as u64..page as u64 + 1);
                                *held = None;
                            }
                        }
                    }
                })
            })
            .collect();
        let (device, done) = (&device, &done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                device.recompress(Recompress { max_pages: 20, ..Recompress::default() }).unwrap();
                device.mark_idle();
                device.compact();
            }
        });
        let results: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|result| result.unwrap());
    });
    let mut data = [0; 4096];
    for (page, held) in model.iter().enumerate() {
        device.read_page(page as u64, &mut data).unwrap();
        assert_eq!(data, held.lock().unwrap().unwrap_or([0; 4096]), "page {page}");
    }
    let (stat, pool) = (device.mm_stat(), device.pool_stats());
    assert_eq!((stat.compr_data_size, stat.mem_used_total), (pool.bytes_stored, pool.object_frames * 4096));
}

#[test]
fn threads_racing_for_one_page_leave_one_of_their_pages() {
    let device = Zram::new(machine(), ZramOptions::new(4096, Cut)).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..3_u64 {
            let device = &device;
            scope.spawn(move || {
                let mut data = [0; 4096];
                for round in 0..1000_u64 {
                    device.write_page(0, &paired_page_of(200 + 100 * seed as usize, seed)).unwrap();
                    device.read_page(0, &mut data).unwrap();
                    let known = (0..3).any(|seed| data == paired_page_of(200 + 100 * seed as usize, seed));
                    assert!(known || data == [0; 4096], "round {round}");
                    if round % 16 == seed {
                        device.discard(0..1);
                    }
                }
            });
        }
    });
    assert!(device.pool_stats().objects <= 1);
}
