//! Any-context calls.

use kmem_gfp::{AllocError, Gfp};
use std::vec::Vec;

use super::{destroy, family, give, take, with_flags};
use crate::backend::Locking;
use crate::{CacheArgs, SlabEnv, SlabFlags};

#[test]
fn any_context_calls_take_no_flags_that_could_wait() {
    // SL-90
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    assert_eq!(slabs.alloc_nolock(cache, Gfp::KERNEL, None), Err(AllocError::BadFlags(Gfp::KERNEL)));
    let object = slabs.alloc_nolock(cache, Gfp::ZERO | Gfp::ACCOUNT, None).unwrap();
    // SAFETY: ours, 64 bytes.
    assert!((0..64).all(|at| unsafe { object.add(at).read() } == 0));
    // SAFETY: ours.
    unsafe { slabs.free_nolock(object).unwrap() };
    destroy(&slabs, cache);
}

#[test]
fn a_lock_that_is_taken_is_an_answer() {
    // SL-56, SL-90, SL-91
    let slabs = family(1);
    for flags in [SlabFlags::NOLEAKTRACE, SlabFlags::DEBUG_DEFAULT] {
        let cache = slabs.create("bare", 512, &with_flags(flags)).unwrap();
        let objects = take(&slabs, cache, 9);
        let node = cache.node(0).unwrap();
        node.with(slabs.env().cpu(), Locking::Wait, |_| {
            assert!(slabs.alloc_nolock(cache, Gfp::empty(), None).is_err());
            for object in &objects {
                // SAFETY: ours. The slabs cannot be reached: the objects wait.
                unsafe { slabs.free_nolock(*object).unwrap() };
            }
        });
        assert!(slabs.cache_stats(cache).objects > 0);
        assert!(!slabs.shrink(cache), "the next slow call frees what waits");
        destroy(&slabs, cache);
    }
}

#[test]
fn objects_from_any_context_are_ordinary_objects() {
    // SL-91: they may be freed by anybody.
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let objects: Vec<_> = (0..200).map(|_| slabs.alloc_nolock(cache, Gfp::empty(), None).unwrap()).collect();
    give(&slabs, cache, objects[..100].iter().copied());
    for object in &objects[100..] {
        // SAFETY: ours.
        unsafe { slabs.free_nolock(*object).unwrap() };
    }
    let outside = slabs.env().frame(2000);
    // SAFETY: refused.
    assert!(unsafe { slabs.free_nolock(outside) }.is_err());
    destroy(&slabs, cache);
}

#[test]
fn an_interrupt_may_call_in_the_middle_of_everything() {
    // SL-56, TS-09: from inside the local section, and from inside the barn's and the list's locks.
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let handler = || {
        if let Ok(object) = slabs.alloc_nolock(cache, Gfp::empty(), None) {
            // SAFETY: ours.
            unsafe { slabs.free_nolock(object).unwrap() };
        }
    };
    let node = cache.node(0).unwrap();
    let objects = take(&slabs, cache, 70);
    cache.slots.try_with(slabs.env().cpu(), |_, _| handler()).unwrap();
    node.with(slabs.env().cpu(), Locking::Wait, |_| handler()).unwrap();
    cache.slots.try_with(slabs.env().cpu(), |_, _| node.with(slabs.env().cpu(), Locking::Wait, |_| handler())).unwrap();
    give(&slabs, cache, objects);
    destroy(&slabs, cache);
}
