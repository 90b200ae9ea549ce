//! C01..C03 and P01: caches, and pages straight from the page allocator.

use kmem::{CacheArgs, DestroyError, Gfp, Order};
use kmem_gfp::{NodeId, PAGE_SIZE};
use kmem_slab::UsercopyError;
use kmem_tests::machine;

const KERNEL: Gfp = Gfp::KERNEL;

#[test]
fn c01_a_cache_for_one_kind_whose_usercopy_window_is_enforced() {
    let kmem = machine().kmem();
    let cache = kmem.kmem_cache_create_usercopy("task", 200, &CacheArgs::default(), 32, 64).unwrap();
    let task = kmem.kmem_cache_alloc(cache, KERNEL).unwrap();
    let at = |offset: usize| task.as_ptr().wrapping_add(offset);
    assert_eq!(kmem.check_object_size(at(32), 64), Ok(()));
    assert_eq!(kmem.check_object_size(at(40), 8), Ok(()));
    for (offset, len) in [(0, 8), (31, 2), (32, 65), (96, 1), (150, 10)] {
        let refused = kmem.check_object_size(at(offset), len);
        assert_eq!(refused, Err(UsercopyError::OutsideWindow { offset, len }));
    }
    // SAFETY: ours; then nobody uses the cache.
    unsafe {
        kmem.kmem_cache_free(cache, task).unwrap();
        kmem.kmem_cache_destroy(cache).unwrap();
    }
    let plain = kmem.kmem_cache_create("plain", 120, &CacheArgs::default()).unwrap();
    let object = kmem.kmem_cache_alloc(plain, KERNEL).unwrap();
    assert!(kmem.check_object_size(object.as_ptr(), 1).is_err(), "no window, no copy");
    // SAFETY: ours; then nobody uses the cache.
    unsafe {
        kmem.kmem_cache_free(plain, object).unwrap();
        kmem.kmem_cache_destroy(plain).unwrap();
    }
}

#[test]
fn c02_objects_come_singly_zeroed_from_a_node_and_in_bulk() {
    let kmem = machine().kmem();
    let cache = kmem.kmem_cache_create("inode", 600, &CacheArgs::default()).unwrap();
    let mut first = [None; 5];
    kmem.kmem_cache_alloc_bulk(cache, KERNEL, &mut first).unwrap();
    // SAFETY: ours, freed once.
    unsafe { kmem.kmem_cache_free_bulk(cache, &mut first) }.unwrap();
    let single = kmem.kmem_cache_alloc(cache, KERNEL).unwrap();
    let zeroed = kmem.kmem_cache_zalloc(cache, KERNEL).unwrap();
    let near = kmem.kmem_cache_alloc_node(cache, KERNEL, Some(NodeId(0))).unwrap();
    let mut many = [None; 100];
    kmem.kmem_cache_alloc_bulk(cache, KERNEL, &mut many).unwrap();
    let mut all: Vec<_> = many.iter().map(|object| object.unwrap()).chain([single, zeroed, near]).collect();
    // SAFETY: 600 bytes each, ours; each is freed once, then nobody uses the cache.
    unsafe {
        assert!((0..600).all(|at| zeroed.add(at).read() == 0));
        for (tag, object) in all.iter().enumerate() {
            object.write_bytes(tag as u8, 600);
        }
        for (tag, object) in all.iter().enumerate() {
            assert!((0..600).all(|at| object.add(at).read() == tag as u8), "objects do not overlap");
        }
        all.truncate(100);
        kmem.kmem_cache_free_bulk(cache, &mut many).unwrap();
        for object in [single, zeroed, near] {
            kmem.kmem_cache_free(cache, object).unwrap();
        }
        kmem.kmem_cache_destroy(cache).unwrap();
    }
}

#[test]
fn c03_destroy_with_objects_left_counts_them_and_loses_nothing() {
    let machine = machine();
    let kmem = machine.kmem();
    let cache = kmem.kmem_cache_create("dentry", 192, &CacheArgs::default()).unwrap();
    let objects: Vec<_> = (0..50).map(|_| kmem.kmem_cache_alloc(cache, KERNEL).unwrap()).collect();
    // SAFETY: if it fails nothing changes, which is what is tested.
    let error = unsafe { kmem.kmem_cache_destroy(cache) }.unwrap_err();
    let DestroyError::ObjectsRemain { live, .. } = error else { panic!("{error}") };
    assert_eq!(live, 50);
    assert!(machine.take_reports().contains("dentry"), "each object left is reported");
    // SAFETY: ours, freed once; then nobody uses the cache.
    unsafe {
        let more = kmem.kmem_cache_alloc(cache, KERNEL).unwrap();
        kmem.kmem_cache_free(cache, more).unwrap();
        for object in objects {
            kmem.kmem_cache_free(cache, object).unwrap();
        }
        kmem.kmem_cache_destroy(cache).unwrap();
    }
}

#[test]
fn p01_alloc_pages_and_relatives_give_pages_of_every_order() {
    let kmem = machine().kmem();
    for order in Order::all() {
        let pages = kmem.alloc_pages(KERNEL, order).unwrap();
        assert!(pages.is_aligned(order));
        let address = kmem.page_address(pages).unwrap();
        assert_eq!(kmem.virt_to_pfn(address.as_ptr()), Some(pages));
        // SAFETY: ours, of that size, freed once.
        unsafe {
            address.write_bytes(order.get() as u8, order.size_bytes());
            kmem.free_pages(pages, order).unwrap();
        }
    }
    let page = kmem.get_zeroed_page(KERNEL).unwrap();
    // SAFETY: ours, freed once.
    unsafe {
        assert!((0..PAGE_SIZE).all(|at| page.add(at).read() == 0));
        kmem.free_pages_at(page.as_ptr(), Order::ZERO).unwrap();
        assert_eq!(kmem.free_pages_at(core::ptr::null_mut(), Order::ZERO), Ok(()));
    }
    let mut many = [None; 300];
    assert_eq!(kmem.alloc_pages_bulk(KERNEL, &mut many), 300);
    let mut seen: Vec<_> = many.iter().flatten().copied().collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 300);
    let exact = kmem.alloc_pages_exact(5 * PAGE_SIZE + 1, KERNEL).unwrap();
    assert_eq!(exact.len(), 6);
    // SAFETY: ours, each page freed once.
    unsafe {
        kmem.free_pages_bulk(&mut many).unwrap();
        kmem.free_range(exact).unwrap();
    }
    let owned = kmem.alloc_owned(KERNEL, Order::new(4).unwrap()).unwrap();
    assert_eq!(owned.range().len(), 16);
}
