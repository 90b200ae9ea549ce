//! Storing, reading, writing, freeing.

use core::num::NonZeroU64;
use std::string::{String, ToString};
use std::vec::Vec;

use kmem_gfp::Gfp;

use super::machine::Machine;
use crate::{AccessError, Config, CreateError, Handle, Pool, Shrinker, StoreError};

pub(super) fn bytes(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seed.wrapping_mul(31) ^ i.wrapping_mul(7) ^ (i >> 8)) as u8).collect()
}

pub(super) fn read(pool: &Pool<&Machine>, handle: Handle) -> Vec<u8> {
    let mut buffer = [0; 4096];
    pool.read(handle, &mut buffer).unwrap().to_vec()
}

#[test]
fn every_length_comes_back() {
    // P03, ZS-10, ZS-14, ZS-22: borrowed in one frame, assembled over two.
    let machine = Machine::new(3000);
    for chain in [4, 8, 12, 16] {
        let pool = Pool::new(&*machine, Config::new().with_chain(chain), Gfp::KERNEL).unwrap();
        let handles: Vec<_> = (1..=4096).map(|len| pool.store(&bytes(len, len), Gfp::KERNEL).unwrap()).collect();
        let (mut borrowed, mut copied) = (0, 0);
        for (handle, len) in handles.iter().zip(1..) {
            assert_eq!(pool.len_of(*handle), Ok(len));
            let mut buffer = [0; 4096];
            let guard = pool.read(*handle, &mut buffer).unwrap();
            assert_eq!(*guard, *bytes(len, len));
            if guard.is_borrowed() {
                borrowed += 1
            } else {
                copied += 1
            }
            drop(guard);
            // ZS-24: one piece, or two for an object that spans.
            let guard = pool.read_parts(*handle).unwrap();
            assert_eq!([guard.parts().0, guard.parts().1].concat(), bytes(len, len));
        }
        assert!(borrowed > 1000 && copied > 500, "{borrowed} {copied}");
        for handle in handles {
            pool.free(handle).unwrap();
        }
        assert_eq!((pool.total_pages(), pool.nr_objects()), (0, 0));
        pool.destroy().unwrap();
    }
    assert_eq!(machine.nr_taken(), 0);
}

#[test]
fn lengths_out_of_range_are_refused() {
    let machine = Machine::new(100);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    // ZS-10
    assert_eq!(pool.store(&[], Gfp::KERNEL), Err(StoreError::Empty));
    assert_eq!(pool.store(&[0; 4097], Gfp::KERNEL), Err(StoreError::TooLarge { len: 4097 }));
    let bad = Pool::new(&*machine, Config::new().with_chain(3), Gfp::KERNEL).err();
    assert_eq!(bad, Some(CreateError::BadConfig { chain: 3, granule: 16 }));
}

#[test]
fn a_freed_handle_is_caught_wherever_it_is_used() {
    // ZS-11, ZS-13: a handle is checked, so a stale one is an error and not damage.
    let machine = Machine::new(100);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let handle = pool.store(b"some bytes", Gfp::KERNEL).unwrap();
    let kept = pool.store(b"other bytes", Gfp::KERNEL).unwrap();
    pool.free(handle).unwrap();
    for _ in 0..1000 {
        assert_eq!(pool.free(handle), Err(AccessError::Stale(handle)));
        assert_eq!(pool.read(handle, &mut []).err(), Some(AccessError::Stale(handle)));
        assert_eq!(pool.write(handle, b"some bytes"), Err(AccessError::Stale(handle)));
        assert_eq!(pool.len_of(handle), Err(AccessError::Stale(handle)));
        let next = pool.store(b"some bytes", Gfp::KERNEL).unwrap();
        assert_ne!(next, handle, "the entry is used again, the handle is another");
        pool.free(next).unwrap();
    }
    assert_eq!(read(&pool, kept), b"other bytes");
}

#[test]
fn a_handle_of_another_pool_or_of_none_is_caught() {
    let machine = Machine::new(100);
    let (one, two) = (
        Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap(),
        Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap(),
    );
    let handle = one.store(b"one", Gfp::KERNEL).unwrap();
    let _ = two.store(b"two", Gfp::KERNEL).unwrap();
    assert_eq!(two.free(handle), Err(AccessError::Foreign(handle)));
    assert_eq!(two.read(handle, &mut []).err(), Some(AccessError::Foreign(handle)));
    assert_eq!(Handle::from_bits(handle.to_bits()), handle);
    let mut seed = 1_u64;
    for _ in 0..100_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        for bits in
            [seed, handle.to_bits().get() ^ (1 << (seed >> 58)), handle.to_bits().get() & !0x7fff_ffff | seed >> 33]
        {
            let Some(bits) = NonZeroU64::new(bits).filter(|&bits| bits != handle.to_bits()) else { continue };
            assert!(matches!(
                one.len_of(Handle::from_bits(bits)),
                Err(AccessError::Foreign(_) | AccessError::Stale(_))
            ));
        }
    }
}

#[test]
fn a_spanning_object_needs_room() {
    let machine = Machine::new(100);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let handles: Vec<_> = (0..4).map(|i| pool.store(&bytes(i, 3000), Gfp::KERNEL).unwrap()).collect();
    let mut short = [0; 2999];
    assert!(pool.read(handles[0], &mut []).unwrap().is_borrowed());
    let error = pool.read(handles[1], &mut short).err();
    assert_eq!(error, Some(AccessError::BufferTooSmall { needed: 3000, given: 2999 }));
    // Nothing is held after the error.
    pool.write(handles[1], &bytes(9, 3000)).unwrap();
    assert_eq!(read(&pool, handles[1]), bytes(9, 3000));
}

#[test]
fn writes_stay_in_their_class_and_keep_away_from_readers() {
    let machine = Machine::new(100);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let handle = pool.store(&bytes(1, 1000), Gfp::KERNEL).unwrap();
    pool.write(handle, &bytes(2, 999)).unwrap();
    assert_eq!((read(&pool, handle), pool.stats().bytes_stored), (bytes(2, 999), 999));
    assert_eq!(pool.write(handle, &bytes(2, 3000)), Err(AccessError::WrongClass { len: 3000, old: 999 }));
    assert_eq!(pool.write(handle, &[]), Err(AccessError::WrongClass { len: 0, old: 999 }));
    let guard = pool.read(handle, &mut []).unwrap();
    // ZS-23: a reader excludes writers, of the same object as of its neighbours.
    assert_eq!(pool.write(handle, &bytes(3, 999)), Err(AccessError::Busy));
    assert_eq!(*guard, *bytes(2, 999));
    drop(guard);
    pool.write(handle, &bytes(3, 999)).unwrap();
    assert_eq!(read(&pool, handle), bytes(3, 999));
}

#[test]
fn memory_freed_under_a_reader_is_kept_until_it_leaves() {
    let machine = Machine::new(100);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    for len in [100, 2000, 4096] {
        let handle = pool.store(&bytes(1, len), Gfp::KERNEL).unwrap();
        let neighbour = pool.store(&bytes(2, len), Gfp::KERNEL).unwrap();
        let guard = pool.read(handle, &mut []).unwrap();
        let second = pool.read(handle, &mut []).unwrap();
        pool.free(handle).unwrap();
        pool.free(neighbour).unwrap();
        let others: Vec<_> = (0..10).map(|i| pool.store(&bytes(i, len), Gfp::KERNEL).unwrap()).collect();
        assert_eq!(*guard, *bytes(1, len));
        drop(second);
        assert_eq!(*guard, *bytes(1, len));
        drop(guard);
        for handle in others {
            pool.free(handle).unwrap();
        }
        assert_eq!((pool.nr_objects(), pool.total_pages()), (0, 0));
    }
    pool.destroy().unwrap();
    assert_eq!(machine.nr_taken(), 0);
}

#[test]
fn frames_come_and_go_one_by_one() {
    let machine = Machine::new(100);
    let pool = Pool::new(&*machine, Config::new().with_chain(8), Gfp::KERNEL).unwrap();
    // 3632 bytes: nine in eight frames. The first needs one, each further one another.
    let handles: Vec<_> = (0..9)
        .map(|i| {
            let handle = pool.store(&bytes(i, 3632), Gfp::KERNEL).unwrap();
            assert_eq!(pool.total_pages(), (3632 * (i as u64 + 1)).div_ceil(4096));
            handle
        })
        .collect();
    // The third frame holds the ends of two objects: freeing both gives it back from the middle of the zspage.
    pool.free(handles[2]).unwrap();
    assert_eq!(pool.total_pages(), 8);
    pool.free(handles[3]).unwrap();
    assert_eq!(pool.total_pages(), 7);
    for i in [0, 1, 4, 5, 6, 7, 8] {
        assert_eq!(read(&pool, handles[i]), bytes(i, 3632));
    }
    // ZS-12: holes that have their frames are filled first; here none has, so a frame comes back.
    let again = pool.store(&bytes(9, 3632), Gfp::KERNEL).unwrap();
    assert_eq!((pool.total_pages(), read(&pool, again)), (8, bytes(9, 3632)));
}

#[test]
fn stores_fill_the_fullest_zspage_first() {
    // ZS-12, ZS-19
    let machine = Machine::new(200);
    let pool = Pool::new(&*machine, Config::new().with_chain(8), Gfp::KERNEL).unwrap();
    // 1024 bytes: four in one frame.
    let handles: Vec<_> = (0..40).map(|i| pool.store(&bytes(i, 1024), Gfp::KERNEL).unwrap()).collect();
    for i in [0, 1, 2, 4, 5, 8, 12, 13, 14] {
        pool.free(handles[i]).unwrap();
    }
    let rows: Vec<_> = pool.class_stats().filter(|row| row.objects != 0).collect();
    // One of four, twice; two of four, once; three of four, once; six full.
    assert_eq!(rows[0].groups, [0, 0, 0, 2, 0, 0, 1, 0, 1, 0, 0, 6]);
    for _ in 0..3 {
        let _ = pool.store(&bytes(0, 1024), Gfp::KERNEL).unwrap();
    }
    let rows: Vec<_> = pool.class_stats().filter(|row| row.objects != 0).collect();
    assert_eq!(rows[0].groups, [0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 8]);
}

#[test]
fn a_pool_with_objects_is_not_destroyed_but_can_be_dropped() {
    // ZS-35: with a word about what was in it; nothing leaks.
    let machine = Machine::new(100);
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let handle = pool.store(b"left", Gfp::KERNEL).unwrap();
    let (pool, left) = pool.destroy().unwrap_err();
    assert_eq!((left.objects, read(&pool, handle)), (1, b"left".to_vec()));
    drop(pool);
    assert_eq!(machine.nr_taken(), 0);
    assert_eq!(machine.reports().len(), 1);
    assert!(machine.reports()[0].contains("1 objects in 1 zspages of class 32"), "{:?}", machine.reports());
}

#[test]
fn figures_and_the_kernels_table() {
    // ZS-30, ZS-34, ZS-36
    let machine = Machine::new(1000);
    let pool = Pool::new(&*machine, Config::new().with_chain(8), Gfp::KERNEL).unwrap();
    let handles: Vec<_> = (0..90).map(|i| pool.store(&bytes(i, 3600), Gfp::KERNEL).unwrap()).collect();
    let stats = pool.stats();
    assert_eq!((stats.objects, stats.bytes_stored, stats.object_frames), (90, 90 * 3600, 80));
    assert_eq!((stats.zspages, stats.freeable_frames, pool.count_objects()), (10, 0, 0));
    assert!(stats.density() > 0.98 && stats.density_with_metadata() < stats.density());
    assert_eq!(machine.nr_taken() as u64, stats.object_frames + stats.metadata_frames);
    for handle in handles.iter().step_by(3) {
        pool.free(*handle).unwrap();
    }
    let freeable = pool.stats().freeable_frames;
    assert!(freeable > 0 && pool.count_objects() as u64 == freeable);
    let mut table = String::new();
    pool.write_classes(&mut table).unwrap();
    let row = table.lines().find(|line| line.split_whitespace().nth(1) == Some("3632")).unwrap();
    let row: Vec<_> = row.split_whitespace().skip(2).collect();
    assert_eq!(row.len(), 11 + 5);
    assert_eq!(row[6], "10", "six of nine are in use in all ten zspages");
    assert_eq!(row[11..], ["90", "60", &pool.total_pages().to_string(), "8", &freeable.to_string()]);
    let freed = pool.scan_objects(usize::MAX).unwrap();
    assert_eq!(freed as u64, freeable);
    assert_eq!((pool.scan_objects(1), pool.pages_compacted()), (None, freeable));
}

#[test]
fn metadata_keeps_out_of_movable_memory() {
    // ZS-10: the flags that place pages do not apply to metadata.
    let machine = Machine::new(100);
    machine.record_flags();
    let pool = Pool::new(&*machine, Config::new(), Gfp::KERNEL).unwrap();
    let _ = pool.store(&[1; 100], Gfp::HIGHUSER_MOVABLE).unwrap();
    let flags = machine.flags();
    let movable = flags.iter().filter(|gfp| gfp.contains(Gfp::MOVABLE)).count();
    assert_eq!(movable, 1, "one frame for one object: {flags:?}");
    assert!(flags.iter().all(|gfp| gfp.contains(Gfp::MOVABLE) == gfp.contains(Gfp::HIGHMEM)));
}
