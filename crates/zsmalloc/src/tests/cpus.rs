//! Several CPUs: whose zspages are whose, and what becomes of objects that are freed elsewhere.

use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::vec::Vec;

use kmem_gfp::{Gfp, MovableOwner};

use super::machine::{CPUS, Machine, run_on};
use super::objects::{bytes, read};
use crate::shard::OUTBOX;
use crate::{AccessError, Config, Handle, Pool};

fn fill(pool: &Pool<&Machine>, nr: usize, len: usize) -> Vec<(usize, Handle)> {
    (0..nr).map(|i| (i, pool.store(&bytes(i, len), Gfp::KERNEL).unwrap())).collect()
}

#[test]
fn an_object_freed_on_another_cpu_is_dead_at_once_and_gone_when_settled() {
    let machine = Machine::new(500);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let objects = fill(&pool, 20, 3000);
    let frames = pool.total_pages();
    run_on(Some(1));
    let mine = pool.store(&[1; 3000], Gfp::KERNEL).unwrap();
    for (_, handle) in &objects {
        assert_eq!(pool.free(*handle), Ok(()));
        assert_eq!(pool.free(*handle), Err(AccessError::Stale(*handle)));
        assert_eq!(pool.read(*handle, &mut [0; 4096]).unwrap_err(), AccessError::Stale(*handle));
    }
    assert!(pool.total_pages() >= frames);
    assert_eq!((pool.nr_objects(), read(&pool, mine)), (1, [1; 3000].to_vec()));
    pool.free(mine).unwrap();
    assert_eq!(pool.total_pages(), 0);
    run_on(Some(0));
}

#[test]
fn a_full_outbox_settles_itself() {
    let machine = Machine::new(2000);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let objects = fill(&pool, 10 * OUTBOX, 4096);
    run_on(Some(1));
    let _ = pool.store(&[1], Gfp::KERNEL).unwrap();
    for (nr, (_, handle)) in objects.iter().enumerate() {
        pool.free(*handle).unwrap();
        let left = 1 + objects.len() - (nr + 1) / OUTBOX * OUTBOX;
        assert_eq!(pool.total_pages(), left as u64);
    }
    run_on(Some(0));
}

#[test]
fn an_object_freed_elsewhere_under_a_reader_stays_until_it_leaves() {
    let machine = Machine::new(500);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let objects = fill(&pool, 3, 1000);
    let guard = pool.read_parts(objects[1].1).unwrap();
    run_on(Some(1));
    let _ = pool.store(&[1], Gfp::KERNEL).unwrap();
    pool.free(objects[1].1).unwrap();
    pool.settle_frees();
    run_on(Some(0));
    let again = pool.store(&bytes(9, 1000), Gfp::KERNEL).unwrap();
    assert_eq!(guard.parts().0, bytes(1, 1000));
    drop(guard);
    assert_eq!((pool.nr_objects(), read(&pool, again)), (4, bytes(9, 1000)));
}

#[test]
fn a_pool_dropped_with_outstanding_frees_gives_everything_back() {
    let machine = Machine::new(500);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let objects = fill(&pool, 20, 3000);
    run_on(Some(2));
    let _ = pool.store(&[1; 100], Gfp::KERNEL).unwrap();
    objects[..7].iter().for_each(|(_, handle)| pool.free(*handle).unwrap());
    drop(pool);
    assert_eq!((machine.nr_taken(), machine.reports().len()), (0, 2), "13 of one class, 1 of another");
    run_on(Some(0));
}

#[test]
fn compaction_packs_what_all_cpus_hold() {
    // ZS-31: as dense as if one CPU had stored everything.
    let machine = Machine::new(3000);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let mut objects = Vec::new();
    for i in 0..1000 {
        run_on(Some(i as u32 % CPUS));
        objects.push((i, pool.store(&bytes(i, 2600), Gfp::KERNEL).unwrap()));
    }
    let (freed, kept): (Vec<_>, Vec<_>) = objects.into_iter().partition(|(i, _)| i * 7 % 11 % 2 == 0);
    for (i, handle) in freed {
        run_on(Some((i / 3) as u32 % CPUS));
        pool.free(handle).unwrap();
    }
    let promised = pool.freeable_pages();
    pool.settle_frees();
    assert!(promised <= pool.freeable_pages());
    pool.compact();
    assert!(pool.freeable_pages() <= 1);
    // What has been packed is everybody's: the holes left are used by whoever comes.
    let frames = pool.total_pages();
    run_on(Some(3));
    let more = pool.store(&bytes(1000, 2600), Gfp::KERNEL).unwrap();
    assert!(pool.total_pages() <= frames + 1);
    for (i, handle) in kept.into_iter().chain([(1000, more)]) {
        assert_eq!(read(&pool, handle), bytes(i, 2600));
        run_on(Some(i as u32 % CPUS));
        pool.free(handle).unwrap();
    }
    pool.settle_frees();
    assert_eq!(pool.total_pages(), 0);
    run_on(Some(0));
    pool.destroy().unwrap();
    assert_eq!(machine.nr_taken(), 0);
}

#[test]
fn objects_travel_from_cpu_to_cpu() {
    let machine = Machine::new(6000);
    let pool = Pool::new(&*machine, Config::new().with_moves_per_free(1), Gfp::KERNEL).unwrap();
    let start = Barrier::new(3);
    std::thread::scope(|scope| {
        let (mut ends, mut inputs) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let (to, from) = channel::<(usize, Handle)>();
            ends.push(to);
            inputs.push(from);
        }
        ends.rotate_left(1);
        for (id, (to, from)) in ends.into_iter().zip(inputs).enumerate() {
            let (pool, start) = (&pool, &start);
            scope.spawn(move || {
                run_on(Some(id as u32));
                start.wait();
                let mut buffer = [0; 4096];
                for step in 0..6_000 {
                    let len = 1 + (step * 2741 + id * 77) % 4096;
                    to.send((len, pool.store(&bytes(len, len), Gfp::KERNEL).unwrap())).unwrap();
                    if step % 500 == 499 {
                        pool.compact();
                    }
                    while let Ok((len, handle)) = from.try_recv() {
                        assert_eq!(*pool.read(handle, &mut buffer).unwrap(), *bytes(len, len));
                        pool.free(handle).unwrap();
                    }
                }
                drop(to);
                for (len, handle) in from {
                    assert_eq!(*pool.read(handle, &mut buffer).unwrap(), *bytes(len, len));
                    pool.free(handle).unwrap();
                }
            });
        }
        scope.spawn(|| {
            run_on(Some(3));
            for round in 0..300 {
                for frame in machine.taken().into_iter().skip(round % 7).step_by(7) {
                    if pool.isolate(frame) {
                        pool.put_back(frame);
                    }
                }
            }
        });
    });
    assert_eq!(pool.nr_objects(), 0);
    assert_eq!(pool.total_pages(), 0);
    pool.destroy().unwrap();
    assert_eq!(machine.nr_taken(), 0);
    assert!(machine.reports().is_empty(), "{:?}", machine.reports());
}

#[test]
fn two_threads_free_one_object_once() {
    let machine = Machine::new(500);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let start = Barrier::new(2);
    for round in 0..200 {
        let handle = pool.store(&bytes(round, 700), Gfp::KERNEL).unwrap();
        let freed: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|id| {
                    let (pool, start) = (&pool, &start);
                    scope.spawn(move || {
                        run_on(Some(id));
                        let _ = pool.store(&[7; 10], Gfp::KERNEL).map(|handle| pool.free(handle));
                        start.wait();
                        usize::from(pool.free(handle).is_ok())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(freed, 1);
    }
    assert_eq!((pool.nr_objects(), pool.total_pages()), (0, 0));
}
