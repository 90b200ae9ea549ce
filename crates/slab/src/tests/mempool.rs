//! Mempools.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp};

use super::env::{TestEnv, run_on};
use super::family;
use crate::{CacheArgs, CacheElements, ElementSource, FaultInjection, Mempool, SlabEnv, Slabs};

/// A source of fixed addresses that runs dry.
#[derive(Debug)]
struct Numbered {
    left: AtomicUsize,
    taken: AtomicUsize,
    flags: std::sync::Mutex<Vec<Gfp>>,
}

impl Numbered {
    fn new(left: usize) -> Self {
        Self { left: AtomicUsize::new(left), taken: AtomicUsize::new(0), flags: std::sync::Mutex::default() }
    }
}

// SAFETY: every address is given once; the test does not use the memory behind.
unsafe impl ElementSource for &Numbered {
    fn alloc(&self, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.flags.lock().unwrap().push(gfp);
        let none = AllocError::NoMemory { order: kmem_gfp::Order::ZERO, gfp };
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).map_err(|_| none)?;
        let number = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(NonNull::new(core::ptr::without_provenance_mut(number * 64)).unwrap())
    }
    unsafe fn free(&self, _element: NonNull<u8>) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }
}

fn pool<'s>(slabs: &'s Slabs<TestEnv>, min_nr: usize, source: &'s Numbered) -> Mempool<'s, TestEnv, &'s Numbered> {
    Mempool::new(slabs, min_nr, source, Gfp::KERNEL).unwrap()
}

#[test]
fn the_reserve_is_allocated_at_once_or_not_at_all() {
    // MP-01
    let slabs = family(1);
    let source = Numbered::new(10);
    assert_eq!(pool(&slabs, 4, &source).available(), 4);
    assert_eq!(source.left.load(Ordering::Relaxed), 10, "dropping frees the reserve");
    assert_eq!(pool(&slabs, 0, &source).available(), 1);
    assert!(Mempool::new(&slabs, 11, &source, Gfp::KERNEL).is_err());
    assert_eq!(source.left.load(Ordering::Relaxed), 10, "nothing is kept");
}

#[test]
fn the_reserve_comes_last_and_last_in_first_out() {
    // MP-02, MP-03
    let slabs = family(1);
    let source = Numbered::new(7);
    let pool = pool(&slabs, 4, &source);
    source.flags.lock().unwrap().clear();
    let from_source: Vec<_> = (0..3).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    assert_eq!(pool.available(), 4);
    let extra = Gfp::NOMEMALLOC | Gfp::NORETRY | Gfp::NOWARN;
    assert_eq!(
        source.flags.lock().unwrap()[0],
        (Gfp::KERNEL | extra) - Gfp::DIRECT_RECLAIM - Gfp::IO,
        "gently at first"
    );
    let reserve: Vec<_> = (0..4).map(|_| pool.alloc(Gfp::KERNEL).unwrap().addr().get() / 64).collect();
    assert_eq!(reserve, [4, 3, 2, 1]);
    source.flags.lock().unwrap().clear();
    assert!(matches!(pool.alloc(Gfp::NOWAIT), Err(AllocError::NoMemory { .. })), "only who may sleep waits");
    assert_eq!(pool.alloc(Gfp::KERNEL | Gfp::ZERO), Err(AllocError::BadFlags(Gfp::ZERO)));
    // SAFETY: from the pool.
    unsafe { pool.free(from_source[0]) };
    assert_eq!((pool.available(), source.left.load(Ordering::Relaxed)), (1, 0), "the reserve is refilled first");
}

#[test]
fn frees_fill_the_reserve_and_then_the_source() {
    // MP-04
    let slabs = family(1);
    let source = Numbered::new(6);
    let pool = pool(&slabs, 2, &source);
    let elements: Vec<_> = (0..6).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    for (element, expected) in elements.into_iter().zip([(1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (2, 4)]) {
        // SAFETY: from the pool.
        unsafe { pool.free(element) };
        assert_eq!((pool.available(), source.left.load(Ordering::Relaxed)), expected);
    }
}

#[test]
fn whoever_may_sleep_waits_for_a_free() {
    // MP-02, MP-12
    let slabs = family(2);
    let source = Numbered::new(1);
    let pool = pool(&slabs, 1, &source);
    let only = pool.alloc_box(Gfp::KERNEL).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            run_on(Some(1));
            pool.alloc(Gfp::KERNEL).unwrap().addr()
        });
        std::thread::sleep(core::time::Duration::from_millis(10));
        assert!(!waiter.is_finished());
        let address = *only;
        drop(only);
        assert_eq!(waiter.join().unwrap(), address.addr());
    });
}

#[test]
fn bulk_uses_the_reserve_only_for_all_that_is_missing() {
    // MP-05
    let slabs = family(1);
    let source = Numbered::new(8);
    let pool = pool(&slabs, 4, &source);
    let mut elements = [None; 4];
    pool.alloc_bulk(Gfp::KERNEL, &mut elements).unwrap();
    assert_eq!(pool.available(), 4, "the source had enough");
    let mut more = [None; 4];
    pool.alloc_bulk(Gfp::KERNEL, &mut more).unwrap();
    assert_eq!(pool.available(), 0);
    assert_eq!(pool.alloc_bulk(Gfp::KERNEL, &mut [None; 5]), Err(AllocError::TooLarge { size_bytes: 5 }));
    assert!(pool.alloc_bulk(Gfp::NOWAIT, &mut [None; 1]).is_err());
    let given: Vec<_> = elements.iter().chain(&more).flatten().copied().collect();
    // SAFETY: from the pool.
    let taken = unsafe { pool.free_bulk(&given) };
    assert_eq!((taken, pool.available()), (4, 4), "what the reserve takes; the rest stays with the caller");
    for element in &given[taken..] {
        // SAFETY: as above.
        unsafe { pool.free(*element) };
    }
}

#[test]
fn the_reserve_can_be_used_alone_and_resized() {
    // MP-06
    let slabs = family(1);
    let source = Numbered::new(10);
    let pool = pool(&slabs, 2, &source);
    let element = pool.alloc_preallocated().unwrap();
    assert!(pool.alloc_preallocated().is_some());
    assert!(pool.alloc_preallocated().is_none(), "never the source");
    // SAFETY: from the pool.
    unsafe { pool.free(element) };
    pool.resize(5, Gfp::KERNEL).unwrap();
    assert_eq!((pool.min_nr(), pool.available()), (5, 5));
    pool.resize(100, Gfp::KERNEL).unwrap();
    assert_eq!((pool.min_nr(), pool.available()), (100, 9), "filled as far as it goes");
    pool.resize(3, Gfp::KERNEL).unwrap();
    assert_eq!((pool.available(), source.left.load(Ordering::Relaxed)), (3, 6), "extras are freed at once");
    assert!(pool.resize(0, Gfp::KERNEL).is_err());
}

#[test]
fn faults_send_requests_to_the_reserve() {
    // DB-34
    let slabs = family(1);
    let source = Numbered::new(10);
    let pool = pool(&slabs, 2, &source);
    pool.set_fault_injection(FaultInjection::nth(1));
    pool.alloc(Gfp::KERNEL).unwrap();
    assert_eq!(pool.available(), 1, "from the reserve though the source has some");
    pool.alloc(Gfp::KERNEL).unwrap();
    assert_eq!(pool.available(), 1);
    pool.resize(2, Gfp::KERNEL).unwrap();
    pool.set_bulk_fault_injection(FaultInjection::nth(1));
    let mut elements = [None; 2];
    pool.alloc_bulk(Gfp::KERNEL, &mut elements).unwrap();
    assert_eq!(pool.available(), 0, "the first pass skips the source");
}

#[test]
fn pools_stand_on_caches() {
    // MP-01, MP-07: elements still outside are their owner's.
    let slabs = family(1);
    let cache = slabs.create("elements", 200, &CacheArgs::default()).unwrap();
    let pool = Mempool::new(&slabs, 4, CacheElements { slabs: &slabs, cache }, Gfp::KERNEL).unwrap();
    slabs.env().pages().exhausted.store(true, Ordering::Relaxed);
    let mut elements = Vec::new();
    while let Ok(element) = pool.alloc(Gfp::NOWAIT) {
        elements.push(element);
    }
    assert!(elements.len() >= 20, "a slab's objects and the reserve");
    let boxed = {
        // SAFETY: from the pool.
        unsafe { pool.free(elements.pop().unwrap()) };
        pool.alloc_box(Gfp::NOWAIT).unwrap().into_raw()
    };
    elements.push(boxed);
    drop(pool);
    super::give(&slabs, cache, elements);
    super::destroy(&slabs, cache);
}
