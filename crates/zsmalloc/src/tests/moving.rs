//! Compaction and migration.

use std::vec::Vec;

use kmem_gfp::{Gfp, MigrateError, MovableOwner, Order, PageAllocator, Pfn};

use super::machine::Machine;
use super::objects::{bytes, read};
use crate::{Config, Handle, Pool};

fn take(machine: &Machine) -> Pfn {
    machine.alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap()
}

fn give(machine: &Machine, pfn: Pfn) {
    // SAFETY: the caller owns the frame.
    unsafe { machine.free_pages(pfn, Order::ZERO) }.unwrap();
}

/// Frames of objects, found by asking the pool to isolate every frame that is taken.
fn object_frames(machine: &Machine, pool: &Pool<&Machine>) -> Vec<Pfn> {
    let frames: Vec<_> = machine.taken().into_iter().filter(|&pfn| pool.isolate(pfn)).collect();
    frames.iter().for_each(|&pfn| pool.put_back(pfn));
    frames
}

fn sparse(pool: &Pool<&Machine>, nr: usize, len: usize) -> Vec<(usize, Handle)> {
    let all: Vec<_> = (0..nr).map(|i| (i, pool.store(&bytes(i, len), Gfp::KERNEL).unwrap())).collect();
    let (freed, kept): (Vec<_>, Vec<_>) = all.into_iter().partition(|(i, _)| i * 7 % 11 % 2 == 0);
    for (_, handle) in freed {
        pool.free(handle).unwrap();
    }
    kept
}

#[test]
fn compaction_gives_back_all_it_promises_and_harms_nothing() {
    // ZS-30, ZS-31: from the estimate to zero.
    let machine = Machine::new(3000);
    for len in [40, 300, 1024, 2100, 2600, 3000, 3600] {
        let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
        let kept = sparse(&pool, 700, len);
        let (before, promised) = (pool.total_pages(), pool.freeable_pages());
        let given = pool.compact();
        assert_eq!(before - pool.total_pages(), given);
        assert!(given + 1 >= promised, "{len}: {given} of {promised}");
        assert!(pool.freeable_pages() <= 1);
        for (i, handle) in &kept {
            assert_eq!(read(&pool, *handle), bytes(*i, len));
        }
        assert_eq!(pool.compact(), 0);
        for (_, handle) in kept {
            pool.free(handle).unwrap();
        }
        assert_eq!(pool.total_pages(), 0);
    }
    assert_eq!(machine.nr_taken(), 0);
}

#[test]
fn a_zspage_with_a_reader_is_left_alone() {
    // ZS-26, ZS-32, ZS-46: movers only try, and nobody waits.
    let machine = Machine::new(500);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let kept = sparse(&pool, 200, 1000);
    let guards: Vec<_> = kept.iter().map(|(_, handle)| pool.read_parts(*handle).unwrap()).collect();
    assert_eq!(pool.compact(), 0);
    for (guard, (i, _)) in guards.iter().zip(&kept) {
        assert_eq!([guard.parts().0, guard.parts().1].concat(), bytes(*i, 1000));
    }
    let frame = object_frames(&machine, &pool)[0];
    assert!(pool.isolate(frame));
    let target = take(&machine);
    assert_eq!(pool.migrate(frame, target), Err(MigrateError::Again(frame)));
    pool.put_back(frame);
    give(&machine, target);
    drop(guards);
    assert!(pool.compact() > 0);
}

#[test]
fn incremental_compaction_keeps_a_class_dense() {
    let machine = Machine::new(3000);
    let config = Config::new().with_moves_per_free(1);
    let pool = Pool::new(&*machine, config, Gfp::KERNEL).unwrap();
    let kept = sparse(&pool, 2000, 1500);
    assert!(pool.stats().density() > 0.9, "{:?}", pool.stats());
    for (i, handle) in &kept {
        assert_eq!(read(&pool, *handle), bytes(*i, 1500));
    }
}

#[test]
fn every_frame_can_move() {
    let machine = Machine::new(2000);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let kept: Vec<_> = (0..300).map(|i| (i, pool.store(&bytes(i, 40 + i * 13), Gfp::KERNEL).unwrap())).collect();
    for frame in object_frames(&machine, &pool) {
        let target = take(&machine);
        assert_eq!(pool.migrate(frame, target), Err(MigrateError::Permanent(frame)), "not isolated");
        assert!(pool.isolate(frame));
        assert!(!pool.isolate(frame), "it is isolated already");
        assert_eq!(pool.migrate(frame, target), Ok(()));
        assert!(!pool.isolate(frame), "the pool has forgotten it");
        give(&machine, frame);
    }
    for (i, handle) in &kept {
        assert_eq!(read(&pool, *handle), bytes(*i, 40 + i * 13));
    }
    drop(pool);
    assert_eq!(machine.nr_taken(), 0);
}

#[test]
fn an_isolated_frame_stays_while_its_objects_go() {
    let machine = Machine::new(200);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    for migrates in [false, true] {
        // The zspage must not be the current one, or it stays anyhow.
        let first: Vec<_> = (0..4).map(|i| pool.store(&bytes(i, 1024), Gfp::KERNEL).unwrap()).collect();
        let second = pool.store(&bytes(9, 1024), Gfp::KERNEL).unwrap();
        let frames = object_frames(&machine, &pool);
        frames.iter().for_each(|&frame| assert!(pool.isolate(frame)));
        for handle in first {
            pool.free(handle).unwrap();
        }
        pool.free(second).unwrap();
        assert_eq!(pool.total_pages(), 2);
        for frame in frames {
            let target = take(&machine);
            if migrates {
                assert_eq!(pool.migrate(frame, target), Ok(()));
                give(&machine, frame);
            } else {
                pool.put_back(frame);
                give(&machine, target);
            }
        }
        assert_eq!(pool.total_pages(), 0);
    }
    drop(pool);
    assert_eq!(machine.nr_taken(), 0);
}

#[test]
fn foreign_frames_are_refused() {
    let machine = Machine::new(100);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let other = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let handle = other.store(&[1; 500], Gfp::KERNEL).unwrap();
    for pfn in machine.taken().into_iter().chain([Pfn(0), Pfn(u64::MAX), take(&machine)]) {
        assert!(!pool.isolate(pfn));
        pool.put_back(pfn);
    }
    assert_eq!(object_frames(&machine, &other).len(), 1);
    assert_eq!(read(&other, handle), [1; 500]);
}
