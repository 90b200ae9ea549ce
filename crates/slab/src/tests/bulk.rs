//! Many objects at once.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;
use std::collections::HashSet;
use std::vec;
use std::vec::Vec;

use kmem_gfp::Gfp;

use super::env::run_on;
use super::{BARE, destroy, family, family_with, give, take, with_flags};
use crate::flush::Refused;
use crate::{BulkFreeError, CacheArgs, ObjectError, SlabEnv, SlabFlags};

fn distinct(objects: &[Option<NonNull<u8>>]) -> usize {
    objects.iter().flatten().collect::<HashSet<_>>().len()
}

#[test]
fn c02_bulk_gives_all_or_nothing() {
    // SL-58, SL-86, C02, F03
    let slabs = family(1);
    for flags in [SlabFlags::empty(), SlabFlags::NOLEAKTRACE, SlabFlags::DEBUG_DEFAULT] {
        let cache = slabs.create("things", 200, &with_flags(flags | SlabFlags::NO_MERGE)).unwrap();
        for count in [1, 7, 32, 60, 61, 500] {
            let mut objects = vec![None; count];
            slabs.alloc_bulk(cache, Gfp::KERNEL | Gfp::ZERO, &mut objects).unwrap();
            assert_eq!(distinct(&objects), count);
            for object in objects.iter().flatten() {
                // SAFETY: ours, 200 bytes.
                unsafe {
                    assert!((0..200).all(|at| object.add(at).read() == 0));
                    object.write_bytes(0xee, 200);
                }
            }
            // SAFETY: ours.
            unsafe { slabs.free_bulk(cache, &mut objects).unwrap() };
        }
        slabs.alloc_bulk(cache, Gfp::KERNEL, &mut []).unwrap();
        slabs.env().pages().exhausted.store(true, Ordering::Relaxed);
        let before = slabs.cache_stats(cache).total_objects;
        let mut objects = vec![None; before as usize + 1];
        assert!(slabs.alloc_bulk(cache, Gfp::KERNEL, &mut objects).is_err());
        assert_eq!(distinct(&objects), 0);
        objects.pop();
        slabs.alloc_bulk(cache, Gfp::KERNEL, &mut objects).unwrap();
        assert_eq!(distinct(&objects), before as usize, "everything obtained had been freed again");
        slabs.env().pages().exhausted.store(false, Ordering::Relaxed);
        // SAFETY: ours.
        unsafe { slabs.free_bulk(cache, &mut objects).unwrap() };
        destroy(&slabs, cache);
    }
}

#[test]
fn bulk_frees_find_each_objects_cache() {
    // SL-87
    let slabs = family(1);
    let small = slabs.create("small", 64, &CacheArgs::default()).unwrap();
    let large = slabs.create("large", 512, &CacheArgs::default()).unwrap();
    let mut objects: Vec<Option<NonNull<u8>>> = Vec::new();
    for _ in 0..50 {
        objects.extend(take(&slabs, small, 2).into_iter().map(Some));
        objects.push(Some(slabs.alloc(large, Gfp::KERNEL).unwrap()));
        objects.push(None);
    }
    // SAFETY: ours.
    unsafe { slabs.free_bulk_any(&mut objects).unwrap() };
    destroy(&slabs, small);
    destroy(&slabs, large);
}

#[test]
fn runs_of_one_slab_go_back_in_one_update() {
    // SL-87
    let slabs = family_with(1, BARE);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let objects = take(&slabs, cache, 128);
    let mixed: Vec<*mut u8> = (0..64).flat_map(|at| [objects[at].as_ptr(), objects[64 + at].as_ptr()]).collect();
    // SAFETY: ours.
    let refused = unsafe { slabs.put_objects(cache, &mixed, crate::backend::Locking::Wait) };
    assert_eq!(refused, Refused::default());
    assert_eq!(slabs.cache_stats(cache).objects, 0);
    destroy(&slabs, cache);
}

#[test]
fn what_a_bulk_free_refuses_is_counted() {
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let other = slabs.create("others", 128, &CacheArgs::default()).unwrap();
    let wrong = slabs.alloc(other, Gfp::KERNEL).unwrap();
    let mut objects: Vec<_> = take(&slabs, cache, 10).into_iter().map(Some).collect();
    objects[4] = Some(wrong);
    let address = wrong.addr().get();
    // SAFETY: one is deliberately wrong.
    let error = unsafe { slabs.free_bulk(cache, &mut objects) };
    assert_eq!(error, Err(BulkFreeError { refused: 1, first: ObjectError::WrongCache { address } }));
    let outside = slabs.env().frame(2000);
    // SAFETY: as above.
    let error = unsafe { slabs.free_bulk_any(&mut [Some(wrong), Some(outside)]) };
    assert_eq!(error, Err(BulkFreeError { refused: 1, first: ObjectError::NotSlab { address: outside.addr().get() } }));
}

#[test]
fn bulk_works_on_a_thread_without_a_cpu() {
    let slabs = family(2);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    run_on(None);
    let mut objects = [None; 100];
    slabs.alloc_bulk(cache, Gfp::KERNEL, &mut objects).unwrap();
    // SAFETY: ours.
    unsafe { slabs.free_bulk(cache, &mut objects).unwrap() };
    let single = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    give(&slabs, cache, [single]);
    run_on(Some(0));
    destroy(&slabs, cache);
}
