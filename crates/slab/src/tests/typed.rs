//! Typed caches and owned objects.

use core::cell::Cell;
use std::rc::Rc;
use std::vec::Vec;

use kmem_gfp::Gfp;

use super::env::TestEnv;
use super::{family, with_flags};
use crate::{Cache, CacheArgs, CacheBox, SlabEnv, SlabFlags};

struct Counted(Rc<Cell<usize>>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn c01_boxes_own_their_objects() {
    // C01, F02
    let slabs = family(1);
    let dropped = Rc::new(Cell::new(0));
    let cache = Cache::<Counted, TestEnv>::new(&slabs, "counted").unwrap();
    let boxes: Vec<_> = (0..100).map(|_| cache.alloc(Counted(dropped.clone()), Gfp::KERNEL).unwrap()).collect();
    drop(boxes);
    assert_eq!(dropped.get(), 100);
    let inner = CacheBox::into_inner(cache.alloc(Counted(dropped.clone()), Gfp::KERNEL).unwrap());
    assert_eq!(dropped.get(), 100);
    drop(inner);
    let raw = CacheBox::into_raw(cache.alloc(Counted(dropped.clone()), Gfp::KERNEL).unwrap());
    // SAFETY: from `into_raw` just above.
    drop(unsafe { CacheBox::from_raw(&cache, raw) });
    assert_eq!(dropped.get(), 102);
    drop(cache);
    assert!(slabs.find_cache("counted").is_none(), "destroyed with its last user");
}

#[test]
fn a_leaked_box_leaks_its_cache() {
    let slabs = family(1);
    let cache = Cache::<u64, TestEnv>::new(&slabs, "leaky").unwrap();
    core::mem::forget(cache.alloc(7, Gfp::KERNEL).unwrap());
    drop(cache);
    assert!(slabs.find_cache("leaky").is_some());
}

#[test]
fn alignment_and_size_are_the_types() {
    #[repr(align(64))]
    #[derive(Debug, Clone, Copy, PartialEq)]
    struct Line([u8; 65]);
    let slabs = family(1);
    let cache = Cache::<Line, TestEnv>::new(&slabs, "lines").unwrap();
    let boxes: Vec<_> = (0..40).map(|fill| cache.alloc(Line([fill; 65]), Gfp::KERNEL).unwrap()).collect();
    for (fill, line) in boxes.iter().enumerate() {
        assert_eq!(core::ptr::from_ref(&**line).addr() % 64, 0);
        assert_eq!(line.0, [fill as u8; 65]);
    }
    let empty = Cache::<(), TestEnv>::with_args(&slabs, "empty", &CacheArgs::default()).unwrap();
    let _unit = empty.alloc((), Gfp::KERNEL).unwrap();
}

#[test]
fn values_are_made_only_when_there_is_room() {
    let slabs = family(1);
    let cache = Cache::<[u64; 64], TestEnv>::new(&slabs, "wide").unwrap();
    slabs.env().pages().exhausted.store(true, core::sync::atomic::Ordering::Relaxed);
    let mut made = false;
    let result = cache.alloc_with(Gfp::KERNEL | Gfp::NOWARN, || {
        made = true;
        [0; 64]
    });
    assert!(result.is_err() && !made);
    drop(result);
    slabs.env().pages().exhausted.store(false, core::sync::atomic::Ordering::Relaxed);
    let mut uninit = cache.alloc_uninit(Gfp::KERNEL | Gfp::ZERO).unwrap();
    uninit.memory().write([3; 64]);
    // SAFETY: written just above.
    let mut full = unsafe { uninit.assume_init() };
    full[5] += 1;
    assert_eq!((full[4], full[5]), (3, 4));
    drop(cache.alloc_uninit(Gfp::KERNEL).unwrap());
    assert_eq!(*cache.alloc_uninit(Gfp::KERNEL).unwrap().write([9; 64]), [9; 64]);
}

#[test]
fn debug_caches_work_with_boxes() {
    let slabs = family(1);
    let cache =
        Cache::<[u8; 40], TestEnv>::with_args(&slabs, "checked", &with_flags(SlabFlags::DEBUG_DEFAULT)).unwrap();
    for _ in 0..100 {
        let value = cache.alloc([1; 40], Gfp::KERNEL).unwrap();
        assert_eq!(*value, [1; 40]);
    }
    assert_eq!(slabs.validate(cache.raw()), Some(0));
    assert!(slabs.env().reports().is_empty());
}

#[test]
fn boxes_cross_threads() {
    let slabs = family(2);
    let cache = Cache::<u64, TestEnv>::new(&slabs, "numbers").unwrap();
    std::thread::scope(|scope| {
        let boxes: Vec<_> = (0..500).map(|value| cache.alloc(value, Gfp::KERNEL).unwrap()).collect();
        scope.spawn(|| {
            super::env::run_on(Some(1));
            let sum: u64 = boxes.iter().map(|value| **value).sum();
            assert_eq!(sum, 500 * 499 / 2);
            drop(boxes);
        });
    });
}
