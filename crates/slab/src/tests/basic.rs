//! Allocation and free, one CPU and several, from the hot path down to the page source.

use std::vec::Vec;

use kmem_gfp::Gfp;

use super::env::{TestEnv, run_on};
use crate::{CacheArgs, ObjectError, SlabEnv, Slabs};

fn family(nr_cpus: u32) -> Slabs<TestEnv> {
    let slabs = Slabs::new(TestEnv::new(nr_cpus, 1024));
    slabs.init().unwrap();
    slabs
}

#[test]
fn objects_come_and_go() {
    let slabs = family(2);
    let before = slabs.env().pages().in_use();
    let cache = slabs.create("things", 72, &CacheArgs::default()).unwrap();
    let mut objects = Vec::new();
    for round in 0..500_usize {
        let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
        // SAFETY: an object of 72 bytes, ours.
        unsafe { object.write_bytes(round as u8, 72) };
        objects.push((object, round as u8));
    }
    let mut addresses: Vec<_> = objects.iter().map(|(object, _)| object.addr().get()).collect();
    addresses.sort_unstable();
    assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] >= 72));
    for (object, fill) in objects {
        // SAFETY: ours since `alloc`.
        unsafe {
            assert!((0..72).all(|at| object.add(at).read() == fill));
            slabs.free(cache, object).unwrap();
        }
    }
    // SAFETY: no user is left.
    unsafe { slabs.destroy(cache).unwrap() };
    slabs.shrink_all();
    assert_eq!(slabs.env().pages().in_use(), before);
}

#[test]
fn an_object_freed_on_another_cpu_comes_back() {
    let slabs = family(2);
    let cache = slabs.create("things", 256, &CacheArgs::default()).unwrap();
    for _ in 0..300 {
        run_on(Some(0));
        let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
        run_on(Some(1));
        // SAFETY: ours.
        unsafe { slabs.free_any(object).unwrap() };
    }
    run_on(None);
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    // SAFETY: ours.
    unsafe { slabs.free(cache, object).unwrap() };
    run_on(Some(0));
    assert!(!slabs.shrink(cache));
    // SAFETY: no user is left.
    unsafe { slabs.destroy(cache).unwrap() };
}

#[test]
fn misuse_is_an_error_and_leaks() {
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let other = slabs.create("others", 128, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    let address = object.addr().get();
    // SAFETY: deliberately wrong; the calls must notice.
    unsafe {
        assert_eq!(slabs.free(other, object), Err(ObjectError::WrongCache { address }));
        let inside = object.add(8);
        assert!(matches!(slabs.free(cache, inside), Ok(()) | Err(ObjectError::NotAnObject { .. })));
    }
    let outside = slabs.env().frame(1000);
    // SAFETY: as above.
    unsafe { assert!(matches!(slabs.free_any(outside), Err(ObjectError::NotSlab { .. }))) };
}

#[cfg(debug_assertions)]
#[test]
fn sleeping_where_it_is_forbidden_is_caught_whatever_is_at_hand() {
    use core::sync::atomic::Ordering;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::{destroy, give, take};

    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let warm = take(&slabs, cache, 4);
    give(&slabs, cache, warm);
    slabs.env().context().atomic.store(true, Ordering::Relaxed);
    let caught = |f: &mut dyn FnMut(Gfp)| {
        f(Gfp::NOWAIT);
        f(Gfp::ATOMIC);
        assert!(catch_unwind(AssertUnwindSafe(|| f(Gfp::KERNEL))).is_err());
    };
    let mut objects = [None; 3];
    let mut free = |object| give(&slabs, cache, [object]);
    caught(&mut |gfp| free(slabs.alloc(cache, gfp).unwrap()));
    caught(&mut |gfp| free(slabs.zalloc(cache, gfp).unwrap()));
    caught(&mut |gfp| free(slabs.alloc_node(cache, gfp, Some(kmem_gfp::NodeId(0))).unwrap()));
    caught(&mut |gfp| {
        slabs.alloc_bulk(cache, gfp, &mut objects).unwrap();
        objects.into_iter().flatten().for_each(&mut free);
    });
    slabs.env().context().atomic.store(false, Ordering::Relaxed);
    destroy(&slabs, cache);
}
