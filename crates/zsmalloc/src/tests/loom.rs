//! Models of what may happen at once; see `docs/loom/zsmalloc.md` for the mutations that make each fail.

use std::boxed::Box;
use std::vec::Vec;

use kmem_gfp::{Gfp, MigrateError, MovableOwner, Order, PageAllocator, Pfn};
use loom::thread;

use super::machine::{Machine, run_on};
use crate::{AccessError, Config, Handle, Pool};

type TestPool = Pool<&'static Machine>;

/// Classes 1024 bytes apart; zspages of one frame and four slots for objects of 1024 bytes.
fn model(f: impl Fn(&'static Machine, &'static TestPool) + Send + Sync + 'static) {
    model_with(Config::new(), f);
}

fn model_with(config: Config, f: impl Fn(&'static Machine, &'static TestPool) + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.check(move || {
        // Given back at the end, when the threads that borrow them have been joined.
        let machine: *mut Machine = Box::into_raw(Machine::new(40));
        // SAFETY: just made.
        let machine_ref: &'static Machine = unsafe { &*machine };
        let config = config.with_chain(4).with_granule(1024);
        let pool = Box::into_raw(Box::new(Pool::new(machine_ref, config, Gfp::KERNEL).unwrap()));
        run_on(Some(0));
        // SAFETY: just made.
        f(machine_ref, unsafe { &*pool });
        // SAFETY: made above, and nobody uses it any more: `f` joins its threads.
        drop(unsafe { Box::from_raw(pool) });
        assert_eq!(machine_ref.nr_taken(), 0, "frames are conserved");
        // SAFETY: as above.
        drop(unsafe { Box::from_raw(machine) });
    });
}

/// A thread on a CPU, or on none.
fn spawn_on<T: 'static>(cpu: Option<u32>, f: impl FnOnce() -> T + 'static) -> thread::JoinHandle<T> {
    thread::spawn(move || {
        run_on(cpu);
        f()
    })
}

/// Gives the second CPU its part and its state.
fn use_second_cpu(pool: &TestPool) -> Handle {
    run_on(Some(1));
    let handle = store(pool, 9);
    run_on(Some(0));
    handle
}

fn store(pool: &TestPool, byte: u8) -> Handle {
    pool.store(&[byte; 1024], Gfp::KERNEL).unwrap()
}

fn holds(pool: &TestPool, handle: Handle, byte: u8) {
    let guard = pool.read(handle, &mut []).unwrap();
    assert!(guard.iter().all(|&found| found == byte), "{} instead of {byte}", guard[0]);
    thread::yield_now();
    assert!(guard.iter().all(|&found| found == byte), "{} instead of {byte}", guard[0]);
}

/// Two zspages of a frame each: the first with one object, the second (the current one) with one.
fn two_sparse(pool: &TestPool) -> (Handle, Handle) {
    let first: Vec<_> = (1..=4).map(|byte| store(pool, byte)).collect();
    let second = store(pool, 5);
    for &handle in &first[1..] {
        pool.free(handle).unwrap();
    }
    (first[0], second)
}

fn object_frame(machine: &Machine, pool: &TestPool) -> Pfn {
    machine.taken().into_iter().find(|&pfn| pool.isolate(pfn)).unwrap()
}

fn give(machine: &Machine, pfn: Pfn) {
    // SAFETY: the caller owns the frame.
    unsafe { machine.free_pages(pfn, Order::ZERO) }.unwrap();
}

#[test]
fn a_reader_sees_its_object_through_compaction() {
    // ZS-45, ZS-23
    model(|_, pool| {
        let (one, two) = two_sparse(pool);
        let reader = spawn_on(Some(1), move || holds(pool, one, 1));
        let freed = pool.compact();
        reader.join().unwrap();
        holds(pool, one, 1);
        holds(pool, two, 5);
        assert_eq!(pool.total_pages(), 2 - freed);
    });
}

#[test]
fn a_write_is_not_lost_in_a_migration() {
    model(|machine, pool| {
        let handle = store(pool, 1);
        let frame = object_frame(machine, pool);
        let writer = spawn_on(Some(1), move || pool.write(handle, &[2; 1024]));
        let target = machine.alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        let moved = pool.migrate(frame, target).is_ok();
        if !moved {
            pool.put_back(frame);
        }
        give(machine, if moved { frame } else { target });
        writer.join().unwrap().unwrap();
        holds(pool, handle, 2);
    });
}

#[test]
fn a_free_leaves_an_isolated_frame_to_its_mover() {
    model(|machine, pool| {
        // Not the current zspage, or it would not end with its object.
        let (one, two) = two_sparse(pool);
        let frame = object_frame(machine, pool);
        let freer = spawn_on(Some(1), move || pool.free(one).unwrap());
        let target = machine.alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        let result = pool.migrate(frame, target);
        assert_ne!(result, Err(MigrateError::Permanent(frame)), "it was isolated");
        let moved = result.is_ok();
        if !moved {
            pool.put_back(frame);
        }
        give(machine, if moved { frame } else { target });
        freer.join().unwrap();
        holds(pool, two, 5);
        assert_eq!(pool.total_pages(), 1);
    });
}

#[test]
fn a_free_finds_an_object_that_moves() {
    model(|_, pool| {
        let (one, two) = two_sparse(pool);
        let freer = spawn_on(Some(1), move || pool.free(one).unwrap());
        pool.compact();
        freer.join().unwrap();
        holds(pool, two, 5);
        assert_eq!((pool.nr_objects(), pool.total_pages()), (1, 1));
        pool.free(two).unwrap();
        assert_eq!(pool.total_pages(), 0);
    });
}

#[test]
fn a_write_finds_an_object_that_moves() {
    model(|_, pool| {
        let (one, two) = two_sparse(pool);
        let writer = spawn_on(Some(1), move || pool.write(one, &[2; 1024]).unwrap());
        pool.compact();
        writer.join().unwrap();
        holds(pool, one, 2);
        holds(pool, two, 5);
    });
}

#[test]
fn a_store_does_not_use_a_zspage_that_ends() {
    model(|_, pool| {
        let (one, two) = two_sparse(pool);
        // Fills the current zspage: the next store takes the one that is about to end, or a new one.
        let others: Vec<_> = (6..=8).map(|byte| store(pool, byte)).collect();
        let freer = spawn_on(Some(1), move || pool.free(one).unwrap());
        let three = store(pool, 3);
        freer.join().unwrap();
        holds(pool, two, 5);
        holds(pool, three, 3);
        assert_eq!((pool.total_pages(), pool.nr_objects()), (2, 5));
        for handle in others.into_iter().chain([two, three]) {
            pool.free(handle).unwrap();
        }
        assert_eq!(pool.total_pages(), 0);
    });
}

#[test]
fn an_object_freed_under_a_reader_stays_until_it_leaves() {
    model(|_, pool| {
        let (one, two) = two_sparse(pool);
        // Keeps the frame, so that the slot is used again.
        let six = store(pool, 6);
        let reader = spawn_on(Some(1), move || match pool.read(two, &mut []) {
            Ok(guard) => {
                assert!(guard.iter().all(|&byte| byte == 5));
                thread::yield_now();
                assert!(guard.iter().all(|&byte| byte == 5), "{} instead of 5", guard[0]);
            }
            Err(error) => assert_eq!(error, AccessError::Stale(two)),
        });
        pool.free(two).unwrap();
        let three = store(pool, 3);
        reader.join().unwrap();
        holds(pool, one, 1);
        holds(pool, three, 3);
        holds(pool, six, 6);
        for handle in [one, three, six] {
            pool.free(handle).unwrap();
        }
        assert_eq!((pool.nr_objects(), pool.total_pages()), (0, 0));
    });
}

#[test]
fn two_compactions_lose_nothing() {
    // ZS-33: the second is turned away, or comes after the first.
    model(|_, pool| {
        let (one, two) = two_sparse(pool);
        let other = spawn_on(Some(1), move || pool.compact());
        let freed = pool.compact() + other.join().unwrap();
        assert_eq!((freed, pool.pages_compacted(), pool.total_pages()), (1, 1, 1));
        holds(pool, one, 1);
        holds(pool, two, 5);
        for handle in [one, two] {
            pool.free(handle).unwrap();
        }
        assert_eq!((pool.compact(), pool.nr_objects(), pool.total_pages()), (0, 0, 0));
    });
}

#[test]
fn an_object_freed_on_two_cpus_is_freed_once() {
    model(|_, pool| {
        let nine = use_second_cpu(pool);
        let one = store(pool, 1);
        let other = spawn_on(Some(1), move || pool.free(one).is_ok());
        let freed = pool.free(one).is_ok();
        assert!(freed != other.join().unwrap(), "freed once");
        let two = store(pool, 2);
        holds(pool, two, 2);
        assert_eq!(pool.nr_objects(), 2);
        for handle in [two, nine] {
            pool.free(handle).unwrap();
        }
        pool.settle_frees();
        assert_eq!((pool.nr_objects(), pool.total_pages()), (0, 0));
    });
}

#[test]
fn a_free_on_another_cpu_finds_an_object_that_moves() {
    // A free with a move: whole compaction makes shared zspages of a CPU's before it moves anything.
    model_with(Config::new().with_moves_per_free(1), |_, pool| {
        let nine = use_second_cpu(pool);
        let first: Vec<_> = (1..=4).map(|byte| store(pool, byte)).collect();
        let second: Vec<_> = (5..=8).map(|byte| store(pool, byte)).collect();
        for handle in [first[0], first[1], second[0]] {
            pool.free(handle).unwrap();
        }
        let (moving, last) = (first[3], second[1]);
        let freer = spawn_on(Some(1), move || pool.free(moving).unwrap());
        // Lets the other thread begin, so that both preemptions are left for the middle.
        thread::yield_now();
        pool.free(last).unwrap();
        freer.join().unwrap();
        assert_eq!(pool.free(moving), Err(AccessError::Stale(moving)), "freed once");
        pool.settle_frees();
        pool.compact();
        // No hole is lost: one more fits beside the three that are left.
        let more = store(pool, 3);
        assert_eq!((pool.nr_objects(), pool.total_pages()), (5, 2));
        for (handle, byte) in [(first[2], 3), (second[2], 7), (second[3], 8), (more, 3), (nine, 9)] {
            holds(pool, handle, byte);
            pool.free(handle).unwrap();
        }
        pool.settle_frees();
        assert_eq!((pool.nr_objects(), pool.total_pages()), (0, 0));
    });
}

#[test]
fn frees_are_settled_while_their_owner_stores() {
    model(|_, pool| {
        let nine = use_second_cpu(pool);
        let one = store(pool, 1);
        let freer = spawn_on(Some(1), move || {
            pool.free(one).unwrap();
            pool.settle_frees();
        });
        let two = store(pool, 2);
        holds(pool, two, 2);
        freer.join().unwrap();
        holds(pool, two, 2);
        assert_eq!((pool.nr_objects(), pool.total_pages()), (2, 2));
        for handle in [two, nine] {
            pool.free(handle).unwrap();
        }
    });
}

#[test]
fn a_store_goes_on_while_compaction_gathers() {
    model(|_, pool| {
        let (one, two) = two_sparse(pool);
        let other = spawn_on(Some(1), move || pool.compact());
        let three = store(pool, 3);
        let freed = other.join().unwrap();
        for (handle, byte) in [(one, 1), (two, 5), (three, 3)] {
            holds(pool, handle, byte);
        }
        assert!(pool.total_pages() <= 3 - freed);
        pool.compact();
        assert_eq!((pool.nr_objects(), pool.total_pages()), (3, 1));
        for handle in [one, two, three] {
            pool.free(handle).unwrap();
        }
    });
}

#[test]
fn a_reader_and_a_free_elsewhere_agree() {
    model(|_, pool| {
        let nine = use_second_cpu(pool);
        let (one, six) = (store(pool, 1), store(pool, 6));
        let reader = spawn_on(None, move || match pool.read(one, &mut []) {
            Ok(guard) => {
                assert!(guard.iter().all(|&byte| byte == 1));
                thread::yield_now();
                assert!(guard.iter().all(|&byte| byte == 1), "{} instead of 1", guard[0]);
            }
            Err(error) => assert_eq!(error, AccessError::Stale(one)),
        });
        // This thread is first on the one CPU and then on the other, so that the slot is used again at once.
        run_on(Some(1));
        pool.free(one).unwrap();
        pool.settle_frees();
        run_on(Some(0));
        let two = store(pool, 2);
        reader.join().unwrap();
        for (handle, byte) in [(two, 2), (six, 6), (nine, 9)] {
            holds(pool, handle, byte);
            pool.free(handle).unwrap();
        }
        pool.settle_frees();
        assert_eq!((pool.nr_objects(), pool.total_pages()), (0, 0));
    });
}

#[test]
fn an_object_being_stored_is_not_moved() {
    model(|machine, pool| {
        let one = store(pool, 1);
        let frame = object_frame(machine, pool);
        let mover = spawn_on(Some(1), move || {
            let target = machine.alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
            let moved = pool.migrate(frame, target).is_ok();
            if !moved {
                pool.put_back(frame);
            }
            give(machine, if moved { frame } else { target });
        });
        let two = store(pool, 2);
        mover.join().unwrap();
        holds(pool, one, 1);
        holds(pool, two, 2);
    });
}
