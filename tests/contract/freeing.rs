//! F01..F06: what may be freed with what.

use core::ptr;
use core::ptr::NonNull;

use kmem::{
    CacheArgs, FreeError, Gfp, KfreeError, KvfreeError, ObjectError, Order, Pfn, Prot, RcuHead, VfreeError, VmFlags,
};
use kmem_tests::{Kmem, machine};

const KERNEL: Gfp = Gfp::KERNEL;

#[test]
fn f01_kfree_and_kvfree_take_what_kmalloc_gave() {
    let kmem = machine().kmem();
    for size in [0, 1, 8, 100, 8192, 8193, 1 << 20] {
        let [block, other] = [(); 2].map(|()| kmem.kmalloc(size, KERNEL).unwrap());
        // SAFETY: ours, freed once each.
        unsafe {
            assert_eq!(kmem.kfree(block.as_ptr()), Ok(()));
            assert_eq!(kmem.kvfree(other.as_ptr()), Ok(()));
        }
    }
}

#[test]
fn f02_objects_of_caches_go_back_by_kmem_cache_free_kfree_or_kvfree() {
    let kmem = machine().kmem();
    let cache = kmem.kmem_cache_create("f02", 72, &CacheArgs::default()).unwrap();
    for _ in 0..200 {
        let [one, other, third] = [(); 3].map(|()| kmem.kmem_cache_alloc(cache, KERNEL).unwrap());
        // SAFETY: ours, freed once each.
        unsafe {
            kmem.kmem_cache_free(cache, one).unwrap();
            kmem.kfree(other.as_ptr()).unwrap();
            kmem.kvfree(third.as_ptr()).unwrap();
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
        // The same for what kvmalloc gave, from either.
        let nodes = [64, 6 << 20].map(|bytes| kmem.kvmalloc(bytes, KERNEL).unwrap().cast::<Node>());
        for node in nodes {
            node.write(Node { value: 77, rcu: RcuHead::new() });
            kmem::kvfree_rcu!(kmem, node, Node, rcu).unwrap();
            assert_eq!((&raw const (*node.as_ptr()).value).read(), 77, "still there for this reader");
        }
        for (value, node) in (0..).zip(&readable) {
            assert_eq!((&raw const (*node.as_ptr()).value).read(), value, "still there for this reader");
        }
        drop(reading);
        kmem.kfree_rcu_mightsleep(kmem.kmalloc(50, KERNEL).unwrap().as_ptr()).unwrap();
        kmem.kvfree_rcu_mightsleep(kmem.kvmalloc(5 << 20, KERNEL).unwrap().as_ptr()).unwrap();
        kmem.kvfree_rcu_barrier();
        kmem.kmem_cache_destroy(cache).unwrap();
    }
    assert_eq!(kmem.kmalloc_layer().large_pages(), 0, "the barrier waits for large blocks too");
    assert_eq!(kmem.vmallocinfo().to_string().matches(" vmalloc").count(), 0, "and for areas");
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
    // vmalloc memory by kfree, what kmalloc and the page allocator gave by vfree, and what is nobody's or free already by
    // kvfree.
    let area = kmem.vmalloc(3 * 4096).unwrap();
    let mapping = kmem.alloc_page(KERNEL).unwrap();
    // SAFETY: the page is ours and stays it; refused, which is what is tested, but for those that are right.
    unsafe {
        let mapped = kmem.vmap(&[mapping], VmFlags::empty(), Prot::KERNEL).unwrap();
        assert!(matches!(refused(kmem, area.as_ptr()), KfreeError::NotMemory { .. }));
        assert_eq!(kmem.vfree(block.as_ptr()), Err(VfreeError::Foreign(block.addr().get())));
        assert_eq!(kmem.vfree(address.as_ptr()), Err(VfreeError::Foreign(address.addr().get())));
        assert!(matches!(kmem.vunmap(area.as_ptr()), Err(VfreeError::WrongKind { .. })));
        assert!(matches!(kmem.vfree(area.as_ptr().add(8)), Err(VfreeError::Misaligned(_))));
        let error = kmem.kvfree(address.as_ptr()).unwrap_err();
        assert!(matches!(error, KvfreeError::Kmalloc(KfreeError::NotAllocated { .. })), "{error}");
        kmem.vunmap(mapped.as_ptr()).unwrap();
        kmem.free_page(mapping).unwrap();
        kmem.kvfree(area.as_ptr()).unwrap();
        assert_eq!(kmem.kvfree(area.as_ptr()), Err(VfreeError::AlreadyFree(area.addr().get()).into()));
        assert_eq!(kmem.kvfree(ptr::null_mut()), Ok(()));
        assert_eq!(kmem.vfree(ptr::null_mut()), Ok(()));
        kmem.kvfree(block.as_ptr()).unwrap();
    }
    // Everything still works, and what was refused is still there to be freed properly.
    // SAFETY: ours, freed once.
    unsafe {
        kmem.free_page(page).unwrap();
        kmem.kmem_cache_destroy(cache).unwrap();
    }
}
