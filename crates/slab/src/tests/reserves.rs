//! Pools when their source is unreliable: at every point of filling, in bulk, while others wait, on purpose.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use std::sync::Mutex;
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp};

use super::env::{TestEnv, run_on};
use super::{destroy, family, family_with};
use crate::{CacheArgs, ElementSource, FaultInjection, KmemCache, Mempool, SlabConfig, SlabEnv, Slabs};

/// A source that notes every request and fails when told to.
struct Scripted<'s> {
    slabs: &'s Slabs<TestEnv>,
    cache: &'s KmemCache,
    requests: Mutex<Vec<Gfp>>,
    /// Fails requests without this flag.
    needs: Mutex<Gfp>,
    /// Elements it gives before it is empty.
    left: AtomicU32,
    out: AtomicU32,
}

impl<'s> Scripted<'s> {
    fn new(slabs: &'s Slabs<TestEnv>) -> Self {
        let cache = slabs.create("elements", 96, &CacheArgs::default()).unwrap();
        Self {
            slabs,
            cache,
            requests: Mutex::new(Vec::new()),
            needs: Mutex::new(Gfp::empty()),
            left: AtomicU32::new(1_000_000),
            out: AtomicU32::new(0),
        }
    }
    fn requests(&self) -> Vec<Gfp> {
        core::mem::take(&mut self.requests.lock().unwrap())
    }
    fn leave(&self, elements: u32) {
        self.left.store(elements, Ordering::Relaxed);
    }
    fn out(&self) -> usize {
        self.out.load(Ordering::Relaxed) as usize
    }
}

// SAFETY: the elements are objects of a cache.
unsafe impl ElementSource for &Scripted<'_> {
    fn alloc(&self, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.requests.lock().unwrap().push(gfp);
        let none = AllocError::NoMemory { order: kmem_gfp::Order::ZERO, gfp };
        if !gfp.contains(*self.needs.lock().unwrap()) {
            return Err(none);
        }
        let take = |left: u32| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| none)?;
        self.out.fetch_add(1, Ordering::Relaxed);
        self.slabs.alloc(self.cache, gfp)
    }
    unsafe fn free(&self, element: NonNull<u8>) {
        self.out.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: given up by the caller.
        unsafe { self.slabs.free(self.cache, element).unwrap() };
    }
}

type Pool<'a, 's> = Mempool<'a, TestEnv, &'a Scripted<'s>>;

fn pool<'a, 's>(source: &'a Scripted<'s>, min_nr: usize) -> Pool<'a, 's> {
    let pool = Mempool::new(source.slabs, min_nr, source, Gfp::KERNEL).unwrap();
    source.requests();
    pool
}

fn free(pool: &Pool<'_, '_>, element: NonNull<u8>) {
    // SAFETY: tests free what they got from the pool, once.
    unsafe { pool.free(element) };
}

/// An element that may go to another thread.
struct Element(NonNull<u8>);

// SAFETY: plain memory that its holder owns.
unsafe impl Send for Element {}

const ADDED: Gfp = Gfp::NOMEMALLOC.union(Gfp::NORETRY).union(Gfp::NOWARN);

#[test]
fn a_pool_that_cannot_be_filled_keeps_nothing() {
    // MP-01, P-01, P-04
    let slabs = family(1);
    let source = Scripted::new(&slabs);
    for min_nr in [0, 1, 2, 7, 100, 600] {
        let pool = pool(&source, min_nr);
        assert_eq!((pool.min_nr(), pool.available(), source.out()), (min_nr, min_nr.max(1), min_nr.max(1)));
        drop(pool);
        assert_eq!(source.out(), 0);
    }
    for fails_at in 0..7 {
        source.leave(fails_at);
        let failed = Mempool::new(&slabs, 7, &source, Gfp::KERNEL).map(drop);
        assert!(matches!(failed, Err(AllocError::NoMemory { .. })));
        assert_eq!(source.out(), 0, "what had been obtained is given back");
    }
    destroy(&slabs, source.cache);
}

#[test]
fn the_source_is_asked_gently_then_the_reserve_then_the_source_in_earnest() {
    // MP-02, MP-03, P-01, P-02
    let slabs = family(1);
    let source = Scripted::new(&slabs);
    let pool = pool(&source, 1);
    let ordinary = pool.alloc(Gfp::KERNEL).unwrap();
    let gentle = (Gfp::KERNEL | ADDED).difference(Gfp::DIRECT_RECLAIM | Gfp::IO);
    assert_eq!(source.requests(), [gentle]);
    assert_eq!(pool.available(), 1, "the reserve comes second");
    *source.needs.lock().unwrap() = Gfp::DIRECT_RECLAIM;
    let reserved = pool.alloc(Gfp::KERNEL).unwrap();
    assert_eq!(source.requests(), [gentle]);
    assert_eq!(pool.available(), 0);
    let earnest = pool.alloc(Gfp::KERNEL).unwrap();
    assert_eq!(source.requests(), [gentle, Gfp::KERNEL | ADDED]);
    assert!(pool.alloc(Gfp::ATOMIC).is_err());
    assert_eq!(source.requests(), [Gfp::ATOMIC | ADDED], "who may not sleep has no stronger attempt");
    for element in [ordinary, reserved, earnest] {
        free(&pool, element);
    }
}

#[test]
fn elements_that_pass_between_threads_are_never_lost_to_a_waiter() {
    // MP-02, MP-04, MP-12, P-02..P-04
    for min_nr in [0, 1, 3] {
        let slabs = family(2);
        let source = Scripted::new(&slabs);
        let pool = pool(&source, min_nr);
        source.leave(0);
        let (send, receive) = std::sync::mpsc::channel::<Element>();
        std::thread::scope(|scope| {
            let pool = &pool;
            scope.spawn(move || {
                run_on(Some(1));
                for Element(element) in receive {
                    free(pool, element);
                }
            });
            for _ in 0..200 {
                // With every element on its way to the other thread, this waits for one.
                send.send(Element(pool.alloc(Gfp::KERNEL).unwrap())).unwrap();
            }
            drop(send);
        });
        assert_eq!((pool.available(), source.out()), (min_nr.max(1), min_nr.max(1)));
    }
}

#[test]
fn bulk_takes_from_the_reserve_all_that_is_missing_or_nothing() {
    // MP-05, P-06
    let slabs = family(1);
    let source = Scripted::new(&slabs);
    let pool = pool(&source, 4);
    let kept = pool.alloc_preallocated().unwrap();
    // One from the source, three of the reserve.
    source.leave(1);
    let mut four = [None; 4];
    pool.alloc_bulk(Gfp::KERNEL, &mut four).unwrap();
    assert!(four.iter().all(Option::is_some));
    assert_eq!(pool.available(), 0);
    // Two missing, one in reserve: the reserve is left alone and the source asked again.
    free(&pool, kept);
    source.leave(100);
    *source.needs.lock().unwrap() = Gfp::DIRECT_RECLAIM;
    let mut two = [None; 2];
    pool.alloc_bulk(Gfp::KERNEL, &mut two).unwrap();
    assert_eq!(pool.available(), 1);
    assert_eq!(source.requests().last(), Some(&(Gfp::KERNEL | ADDED)));
    // Places that are filled already stay as they are.
    let before = two[0];
    let taken_out = two[1].take();
    pool.alloc_bulk(Gfp::KERNEL, &mut two).unwrap();
    assert_eq!(two[0], before);
    assert_eq!(pool.available(), 0, "one was missing, and the reserve had one");
    let all: Vec<_> = four.into_iter().chain(two).chain([taken_out]).flatten().collect();
    assert_eq!(all.len(), 7);
    // SAFETY: from the pool.
    let absorbed = unsafe { pool.free_bulk(&all) };
    assert_eq!(absorbed, 4, "the leading ones, as far as the reserve had room");
    for &element in &all[absorbed..] {
        free(&pool, element);
    }
    assert_eq!(source.out(), 4);
}

#[test]
fn bulk_requests_that_could_wait_for_ever_are_refused() {
    // MP-05, P-06
    let slabs = family(1);
    let source = Scripted::new(&slabs);
    let pool = pool(&source, 2);
    let mut three = [None; 3];
    assert_eq!(pool.alloc_bulk(Gfp::KERNEL, &mut three), Err(AllocError::TooLarge { size_bytes: 3 }));
    assert_eq!(pool.alloc_bulk(Gfp::ATOMIC, &mut three[..2]), Err(AllocError::BadFlags(Gfp::ATOMIC)));
    assert_eq!((three, source.requests()), ([None; 3], Vec::new()));
}

#[test]
fn a_failed_resize_changes_nothing() {
    // MP-06, P-05
    let slabs = family(1);
    let source = Scripted::new(&slabs);
    let pool = pool(&source, 10);
    pool.resize(3, Gfp::KERNEL).unwrap();
    assert_eq!((pool.min_nr(), pool.available(), source.out()), (3, 3, 3));
    source.leave(2);
    pool.resize(700, Gfp::KERNEL).unwrap();
    assert_eq!((pool.min_nr(), pool.available()), (700, 5), "content with less");
    slabs.env().pages().exhausted.store(true, Ordering::Relaxed);
    assert!(matches!(pool.resize(1 << 18, Gfp::KERNEL), Err(AllocError::NoMemory { .. })));
    assert!(matches!(pool.resize(usize::MAX, Gfp::KERNEL), Err(AllocError::TooLarge { .. })));
    assert_eq!(pool.resize(0, Gfp::KERNEL), Err(AllocError::TooLarge { size_bytes: 0 }));
    assert_eq!((pool.min_nr(), pool.available()), (700, 5));
    slabs.env().pages().exhausted.store(false, Ordering::Relaxed);
    source.leave(1000);
    pool.resize(700, Gfp::KERNEL).unwrap();
    assert_eq!(pool.available(), 700);
}

#[test]
fn a_pool_that_goes_away_leaves_elements_outside_to_their_owners() {
    // MP-07
    let slabs = family(1);
    let pages = slabs.env().pages().in_use();
    let source = Scripted::new(&slabs);
    let pool = pool(&source, 600);
    let outside = pool.alloc_preallocated().unwrap();
    drop(pool);
    assert_eq!(source.out(), 1);
    // SAFETY: the element outlives its pool and belongs to the test.
    unsafe { (&source).free(outside) };
    destroy(&slabs, source.cache);
    slabs.shrink_all();
    assert_eq!(slabs.env().pages().in_use(), pages);
}

#[test]
fn injected_faults_make_use_of_the_reserve() {
    // DB-34
    let slabs = family(1);
    let source = Scripted::new(&slabs);
    let pool = pool(&source, 3);
    pool.set_fault_injection(FaultInjection { probability: 100, times: None, ..FaultInjection::OFF });
    for gfp in [Gfp::KERNEL, Gfp::ATOMIC, Gfp::NOWAIT] {
        let element = pool.alloc(gfp).unwrap();
        assert_eq!(source.requests(), [], "the source was passed over");
        assert_eq!(pool.available(), 2);
        free(&pool, element);
    }
    let reserve: Vec<_> = core::iter::from_fn(|| pool.alloc_preallocated()).collect();
    assert_eq!(pool.alloc(Gfp::NOWAIT), Err(AllocError::Injected));
    let element = pool.alloc(Gfp::KERNEL).unwrap();
    assert_eq!(source.requests(), [Gfp::KERNEL | ADDED], "the second attempt is real");
    pool.set_fault_injection(FaultInjection::OFF);
    for element in reserve {
        free(&pool, element);
    }
    free(&pool, element);
    // Bulk has a point of its own.
    let mut three = [None; 3];
    pool.set_bulk_fault_injection(FaultInjection::nth(1));
    pool.alloc_bulk(Gfp::KERNEL, &mut three).unwrap();
    assert_eq!(source.requests(), [], "the whole first pass was skipped");
    assert_eq!(pool.available(), 0);
    // With the reserve short, the second pass asks the source.
    pool.set_bulk_fault_injection(FaultInjection::nth(1));
    let mut one = [None; 1];
    pool.alloc_bulk(Gfp::KERNEL, &mut one).unwrap();
    assert_eq!(source.requests(), [Gfp::KERNEL | ADDED]);
    for element in three.into_iter().chain(one).flatten() {
        free(&pool, element);
    }
    assert_eq!(pool.available(), 3);
}

#[test]
fn a_pool_works_where_the_family_has_no_sheaves() {
    // MP-01, MP-04
    let slabs = family_with(1, SlabConfig { max_sheaf_capacity: 0, ..SlabConfig::DEFAULT });
    let source = Scripted::new(&slabs);
    let pool = pool(&source, 20);
    let elements: Vec<_> = (0..40).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    for element in elements {
        free(&pool, element);
    }
    assert_eq!(pool.available(), 20);
    drop(pool);
    assert_eq!(source.out(), 0);
    destroy(&slabs, source.cache);
}
