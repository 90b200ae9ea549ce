//! Every allocation fails once.

use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp};

use super::machine::Machine;
use super::objects::{bytes, read};
use crate::{Config, CreateError, DebugFlags, Pool, StoreError};

#[test]
fn creation_fails_cleanly_at_every_allocation() {
    let machine = Machine::new(100);
    for n in 0.. {
        machine.fail_after(n);
        match Pool::new(&*machine, Config::new(), Gfp::KERNEL) {
            Ok(_) => {
                assert!(n > 2);
                break;
            }
            Err(error) => assert!(matches!(error, CreateError::Alloc(AllocError::NoMemory { .. })), "{error}"),
        }
        assert_eq!(machine.nr_taken(), 0);
    }
}

#[test]
fn stores_fail_cleanly_at_every_allocation() {
    for debug in [DebugFlags::empty(), DebugFlags::VERIFY] {
        let lens: Vec<usize> = (0..60).map(|i| 1 + i * 1103 % 4096).collect();
        for n in 0.. {
            let machine = Machine::new(300);
            let pool = Pool::new(&*machine, Config::new().with_debug(debug), Gfp::KERNEL).unwrap();
            machine.fail_after(n);
            let mut stored = Vec::new();
            let mut failed = 0;
            for &len in &lens {
                match pool.store(&bytes(len, len), Gfp::KERNEL) {
                    Ok(handle) => stored.push((len, handle)),
                    Err(StoreError::Alloc(AllocError::NoMemory { .. })) => failed += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(pool.nr_objects(), stored.len() as u64);
            let stats = pool.stats();
            assert_eq!(machine.nr_taken() as u64, stats.object_frames + stats.metadata_frames);
            assert_eq!(pool.total_pages(), stats.object_frames);
            // A compaction that cannot have a frame does without.
            pool.compact();
            machine.never_fail();
            for &len in &lens {
                stored.push((len, pool.store(&bytes(len, len), Gfp::KERNEL).unwrap()));
            }
            for (len, handle) in stored {
                assert_eq!(read(&pool, handle), bytes(len, len));
                pool.free(handle).unwrap();
            }
            assert_eq!(pool.total_pages(), 0);
            drop(pool);
            assert_eq!(machine.nr_taken(), 0);
            if failed == 0 {
                assert!(n > 20);
                break;
            }
        }
    }
}

#[test]
fn a_compaction_without_frames_to_borrow_loses_nothing() {
    let machine = Machine::new(3000);
    for n in 0..4 {
        let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
        let all: Vec<_> = (0..1000).map(|i| (i, pool.store(&bytes(i, 2600), Gfp::KERNEL).unwrap())).collect();
        let (freed, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|(i, _)| i * 7 % 11 % 2 == 0);
        for (_, handle) in freed {
            pool.free(handle).unwrap();
        }
        machine.fail_after(n);
        pool.compact();
        machine.never_fail();
        for (i, handle) in kept {
            assert_eq!(read(&pool, handle), bytes(i, 2600));
            pool.free(handle).unwrap();
        }
        assert_eq!(pool.total_pages(), 0);
    }
    assert_eq!(machine.nr_taken(), 0);
}
