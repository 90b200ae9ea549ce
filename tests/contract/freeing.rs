//! F01..F03, F06: what may be freed with what.

use core::ptr;
use core::ptr::NonNull;

use kmem::{CacheArgs, FreeError, Gfp, KfreeError, ObjectError, Order, Pfn, RcuHead};
use kmem_tests::{Kmem, machine};

const KERNEL: Gfp = Gfp::KERNEL;

#[test]
fn f01_kfree_takes_what_kmalloc_gave() {
    let kmem = machine().kmem();
    for size in [0, 1, 8, 100, 8192, 8193, 1 << 20] {
        let block = kmem.kmalloc(size, KERNEL).unwrap();
        // SAFETY: ours, freed once.
        assert_eq!(unsafe { kmem.kfree(block.as_ptr()) }, Ok(()));
    }
}

#[test]
fn f02_objects_of_caches_go_back_by_kmem_cache_free_or_kfree() {
    let kmem = machine().kmem();
    let cache = kmem.kmem_cache_create("f02", 72, &CacheArgs::default()).unwrap();
    for _ in 0..200 {
        let [one, other] = [(); 2].map(|()| kmem.kmem_cache_alloc(cache, KERNEL).unwrap());
        // SAFETY: ours, freed once each.
        unsafe {
            kmem.kmem_cache_free(cache, one).unwrap();
            kmem.kfree(other.as_ptr()).unwrap();
        }
    }
    // SAFETY: nobody uses it any more; and nothing is left in it.
    unsafe { kmem.kmem_cache_destroy(cache) }.unwrap();
}

#[repr(C)]
struct Node {
    value: u64,
    rcu: RcuHead,
}

#[test]
fn f03_bulk_and_rcu_forms_take_the_same() {
    let machine = machine();
    let kmem = machine.kmem();
    let cache = kmem.kmem_cache_create("f03", size_of::<Node>(), &CacheArgs::default()).unwrap();
    let mixed: Vec<_> = [16, 300, 20_000].iter().map(|size| kmem.kmalloc(*size, KERNEL).unwrap().as_ptr()).collect();
    let readable: Vec<_> = (0..100)
        .map(|value| {
            let node = kmem.kmem_cache_alloc(cache, KERNEL).unwrap().cast::<Node>();
            // SAFETY: room for a `Node`, ours.
            unsafe { node.write(Node { value, rcu: RcuHead::new() }) };
            node
        })
        .collect();
    let mut objects = [None; 64];
    kmem.kmem_cache_alloc_bulk(cache, KERNEL, &mut objects).unwrap();
    let large = kmem.kmalloc(100_000, KERNEL).unwrap();
    // SAFETY: ours, freed once each; readers only look at `value`, and only before their section ends.
    unsafe {
        kmem.kmem_cache_free_bulk(cache, &mut objects).unwrap();
        kmem.kfree_bulk(&mixed).unwrap();
        let reading = machine.rcu_read_lock();
        for node in &readable {
            let head = NonNull::new_unchecked(&raw mut (*node.as_ptr()).rcu);
            kmem.kfree_rcu(node.as_ptr().cast(), head).unwrap();
        }
        kmem.kfree_rcu(large.as_ptr(), large.cast()).unwrap();
        for (value, node) in (0..).zip(&readable) {
            assert_eq!((&raw const (*node.as_ptr()).value).read(), value, "still there for this reader");
        }
        drop(reading);
        kmem.kfree_rcu_mightsleep(kmem.kmalloc(50, KERNEL).unwrap().as_ptr()).unwrap();
        kmem.kfree_rcu_barrier();
        kmem.kmem_cache_destroy(cache).unwrap();
    }
    assert_eq!(kmem.kmalloc_layer().large_pages(), 0, "the barrier waits for large blocks too");
}

/// Frees an address that must be refused.
fn refused(kmem: Kmem, address: *mut u8) -> KfreeError {
    // SAFETY: not a block that may be freed so: refusing it is what is tested.
    unsafe { kmem.kfree(address) }.unwrap_err()
}

#[test]
fn f06_every_other_pairing_is_a_caught_error_and_null_is_nothing() {
    let machine = kmem_hosted::Machine::builder()
        .cpus(1)
        .ram_bytes(64 << 20)
        .pages(kmem_buddy::BuddyOptions { check_free: true, ..kmem_buddy::BuddyOptions::new() })
        .reports(kmem_hosted::Reports::Capture)
        .boot()
        .unwrap();
    let kmem = machine.kmem();
    // SAFETY: null is nothing.
    assert_eq!(unsafe { kmem.kfree(ptr::null_mut()) }, Ok(()));

    // Memory that is not this machine's.
    let mut local = 5_u64;
    assert!(matches!(refused(kmem, (&raw mut local).cast()), KfreeError::NotMemory { .. }));
    // Pages from the page allocator, by kfree.
    let page = kmem.alloc_page(KERNEL).unwrap();
    let address = kmem.page_address(page).unwrap();
    assert!(matches!(refused(kmem, address.as_ptr()), KfreeError::NotAllocated { .. }));
    // An address inside a large block.
    let large = kmem.kmalloc(50_000, KERNEL).unwrap();
    assert!(matches!(refused(kmem, large.as_ptr().wrapping_add(4096)), KfreeError::InsideBlock { .. }));
    // An object to a cache that is not its own.
    let cache = kmem.kmem_cache_create("f06", 40, &CacheArgs::default()).unwrap();
    let block = kmem.kmalloc(40, KERNEL).unwrap();
    // SAFETY: refused, which is what is tested.
    let error = unsafe { kmem.kmem_cache_free(cache, block) }.unwrap_err();
    assert!(matches!(error, ObjectError::WrongCache { .. }), "{error}");
    // A large block, and a page, to a cache.
    for address in [large, address] {
        // SAFETY: refused, which is what is tested.
        let error = unsafe { kmem.kmem_cache_free(cache, address) }.unwrap_err();
        assert!(matches!(error, ObjectError::NotSlab { .. }), "{error}");
    }
    // A large block freed twice.
    // SAFETY: ours; the second is refused.
    unsafe { kmem.kfree(large.as_ptr()) }.unwrap();
    assert!(matches!(refused(kmem, large.as_ptr()), KfreeError::NotAllocated { .. }));
    // Pages: with the wrong order, twice, and frames that are nobody's.
    let two = Order::new(2).unwrap();
    let pages = kmem.alloc_pages(KERNEL, two).unwrap();
    // SAFETY: refused, which is what is tested, but for the one that is right.
    unsafe {
        assert!(matches!(kmem.free_pages(pages, Order::new(1).unwrap()), Err(FreeError::WrongOrder { .. })));
        kmem.free_pages(pages, two).unwrap();
        assert!(matches!(kmem.free_pages(pages, two), Err(FreeError::AlreadyFree(_))));
        assert_eq!(kmem.free_pages(Pfn(1 << 40), two), Err(FreeError::Foreign(Pfn(1 << 40))));
    }
    // Everything still works, and what was refused is still there to be freed properly.
    // SAFETY: ours, freed once.
    unsafe {
        kmem.free_page(page).unwrap();
        kmem.kmem_cache_destroy(cache).unwrap();
    }
}
