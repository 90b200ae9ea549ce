//! Rows of the contract, by their names, on real hardware's terms. Those that need a machine of their own (limits of groups,
//! several nodes) are in `tests/contract` alone.

use alloc::vec::Vec;
use core::ptr;
use core::ptr::NonNull;

use kmem::kmalloc::natural_align;
use kmem::{
    AllocError, CacheArgs, DestroyError, FreeError, Gfp, KMALLOC_MAX_SIZE, KMALLOC_MINALIGN, KfreeError, KreallocError,
    ObjectError, Order, PAGE_SIZE, Pfn, RcuHead, ZERO_SIZE_PTR,
};
use kmem_gfp::size::{array_size, array3_size, size_add};
use kmem_gfp::verdict::{GfpError, check_sleep};
use kmem_gfp::{AllocContext, TaskFlags};
use kmem_sync::{Cpu, Pinned};
use kmem_vmalloc::VfreeError;

use super::tools::{OPTIMISTIC, check, exhaust, fill, is_zero};
use crate::context::{self, KernelContext};
use crate::cpu::KernelCpu;
use crate::memory::GIVEN;
use crate::platform::{fail_page_request, kmem};
use crate::vm::vmalloc;

const KERNEL: Gfp = Gfp::KERNEL;

super::tests![
    k01_kmalloc_serves_small_objects_and_kzalloc_zeroes_them,
    k02_array_forms_fail_cleanly_when_the_product_overflows,
    k03_size_arithmetic_saturates,
    k04_one_byte_more_than_the_largest_size_is_an_error,
    k05_addresses_are_aligned_as_their_sizes_promise,
    k06_krealloc_keeps_contents_and_on_failure_the_old_block,
    c01_a_usercopy_window_is_enforced,
    c02_objects_come_singly_zeroed_and_in_bulk,
    c03_destroy_with_objects_left_counts_them_and_loses_nothing,
    p01_alloc_pages_and_relatives_give_pages_of_every_order,
    v01_vmalloc_gives_contiguous_addresses_over_any_frames,
    v02_kvmalloc_is_kmalloc_where_that_succeeds_and_vmalloc_where_it_does_not,
    f01_kfree_takes_what_kmalloc_gave,
    f02_objects_of_caches_go_back_by_kmem_cache_free_or_kfree,
    f03_bulk_and_rcu_forms_take_the_same,
    f04_vfree_takes_any_address_of_an_area_once,
    f05_kvfree_takes_what_kvmalloc_gave_and_anything_else,
    f06_every_other_pairing_is_a_caught_error,
    g01_a_context_that_must_not_sleep_must_not_ask_with_gfp_kernel,
    g03_reports_can_be_silenced_and_are_rate_limited,
    g04_gfp_atomic_digs_into_part_of_the_reserves,
    g08_dma_memory_lies_below_the_limit_of_the_hardware,
];

/// Gives a block of kmalloc back.
#[track_caller]
pub(super) fn kfree(block: NonNull<u8>) {
    // SAFETY: callers own the block and use it no more.
    unsafe { kmem().kfree(block.as_ptr()) }.expect("the block is ours");
}

fn k01_kmalloc_serves_small_objects_and_kzalloc_zeroes_them() {
    for size in 1..=1000 {
        let block = kmem().kmalloc(size, KERNEL).expect("memory");
        // SAFETY: of that size and ours.
        unsafe { block.write_bytes(0xff, size) };
        kfree(block);
        let block = kmem().kzalloc(size, KERNEL).expect("memory");
        assert!(is_zero(block, size), "{size}");
        kfree(block);
    }
    assert_eq!(kmem().kmalloc(0, KERNEL), Ok(ZERO_SIZE_PTR));
}

fn k02_array_forms_fail_cleanly_when_the_product_overflows() {
    let overflow = Err(AllocError::TooLarge { size_bytes: usize::MAX });
    let quiet = KERNEL | Gfp::NOWARN;
    for (count, size) in [(usize::MAX, 2), (2, usize::MAX), (1 << 33, 1 << 33), (usize::MAX / 8 + 1, 8)] {
        assert_eq!(kmem().kmalloc_array(count, size, quiet), overflow);
        assert_eq!(kmem().kcalloc(count, size, quiet), overflow);
    }
    let block = kmem().kcalloc(10, 12, KERNEL).expect("memory");
    assert!(is_zero(block, 120));
    kfree(block);
}

fn k03_size_arithmetic_saturates() {
    let sizes =
        [array_size(usize::MAX, 2), array3_size(1 << 30, 1 << 30, 1 << 30), size_add(array_size(usize::MAX, 2), 100)];
    for size_bytes in sizes {
        assert_eq!(size_bytes, usize::MAX);
        assert_eq!(kmem().kmalloc(size_bytes, KERNEL | Gfp::NOWARN), Err(AllocError::TooLarge { size_bytes }));
    }
}

fn k04_one_byte_more_than_the_largest_size_is_an_error() {
    let largest = kmem().kmalloc(KMALLOC_MAX_SIZE, KERNEL).expect("memory");
    fill(largest, KMALLOC_MAX_SIZE, 4);
    check(largest, KMALLOC_MAX_SIZE, 4);
    kfree(largest);
    let size_bytes = KMALLOC_MAX_SIZE + 1;
    assert_eq!(kmem().kmalloc(size_bytes, KERNEL | Gfp::NOWARN), Err(AllocError::TooLarge { size_bytes }));
}

fn k05_addresses_are_aligned_as_their_sizes_promise() {
    for size in (1..600).chain([1000, 1024, 3000, 4096, 6144, 8192, 8200, 65_536, 100_000, 1 << 20]) {
        let blocks = [(); 3].map(|()| kmem().kmalloc(size, KERNEL).expect("memory"));
        for block in blocks {
            assert_eq!(block.addr().get() % natural_align(size).max(KMALLOC_MINALIGN), 0, "{size}");
            kfree(block);
        }
    }
}

fn k06_krealloc_keeps_contents_and_on_failure_the_old_block() {
    let mut size = 10;
    let mut block = kmem().kmalloc(size, KERNEL).expect("memory");
    let all_are = |block: NonNull<u8>, len: usize| {
        // SAFETY: ours, of at least that size.
        (0..len).all(|at| unsafe { block.add(at).read() } == 0x42)
    };
    // SAFETY: `block` is ours and has `size` bytes throughout; each result replaces it.
    unsafe {
        block.write_bytes(0x42, size);
        for new in [11, 40, 33, 500, 9000, 40_000, 1 << 20, 100, 64] {
            block = kmem().krealloc(block.as_ptr(), new, KERNEL).expect("memory");
            assert!(all_are(block, size.min(new)), "{size} to {new}");
            block.write_bytes(0x42, new);
            size = new;
        }
        let overflow = kmem().krealloc_array(block.as_ptr(), usize::MAX, 8, KERNEL | Gfp::NOWARN);
        assert_eq!(overflow, Err(KreallocError::Alloc(AllocError::TooLarge { size_bytes: usize::MAX })));
        {
            let _alone = Pinned::new(&KernelCpu);
            fail_page_request(1);
            let failed = kmem().krealloc(block.as_ptr(), 3 << 20, Gfp::NOWAIT);
            fail_page_request(0);
            assert!(failed.is_err());
        }
        assert!(all_are(block, size), "valid and unchanged");
        kmem().kfree(block.as_ptr()).expect("ours");
    }
}

fn c01_a_usercopy_window_is_enforced() {
    let cache = kmem().kmem_cache_create_usercopy("task", 200, &CacheArgs::default(), 32, 64).expect("a cache");
    let task = kmem().kmem_cache_alloc(cache, KERNEL).expect("memory");
    let at = |offset: usize| task.as_ptr().wrapping_add(offset);
    assert_eq!(kmem().check_object_size(at(32), 64), Ok(()));
    for (offset, len) in [(0, 8), (31, 2), (32, 65), (96, 1), (150, 10)] {
        assert!(kmem().check_object_size(at(offset), len).is_err());
    }
    // SAFETY: ours; then nobody uses the cache.
    unsafe {
        kmem().kmem_cache_free(cache, task).expect("ours");
        kmem().kmem_cache_destroy(cache).expect("empty");
    }
}

fn c02_objects_come_singly_zeroed_and_in_bulk() {
    let cache = kmem().kmem_cache_create("inode", 600, &CacheArgs::default()).expect("a cache");
    let single = kmem().kmem_cache_alloc(cache, KERNEL).expect("memory");
    let zeroed = kmem().kmem_cache_zalloc(cache, KERNEL).expect("memory");
    assert!(is_zero(zeroed, 600));
    let mut many = [None; 100];
    kmem().kmem_cache_alloc_bulk(cache, KERNEL, &mut many).expect("memory");
    let all: Vec<_> = many.iter().flatten().copied().chain([single, zeroed]).collect();
    assert_eq!(all.len(), 102);
    for (tag, &object) in (0..).zip(&all) {
        fill(object, 600, tag);
    }
    for (tag, &object) in (0..).zip(&all) {
        check(object, 600, tag);
    }
    // SAFETY: ours, freed once; then nobody uses the cache.
    unsafe {
        kmem().kmem_cache_free_bulk(cache, &mut many).expect("ours");
        kmem().kmem_cache_free(cache, single).expect("ours");
        kmem().kmem_cache_free(cache, zeroed).expect("ours");
        kmem().kmem_cache_destroy(cache).expect("empty");
    }
}

fn c03_destroy_with_objects_left_counts_them_and_loses_nothing() {
    let cache = kmem().kmem_cache_create("dentry", 192, &CacheArgs::default()).expect("a cache");
    let objects: Vec<_> = (0..50).map(|_| kmem().kmem_cache_alloc(cache, KERNEL).expect("memory")).collect();
    // SAFETY: if it fails nothing changes, which is what is tested.
    let (error, report) =
        context::capture(|| unsafe { kmem().kmem_cache_destroy(cache) }.expect_err("objects are left"));
    let DestroyError::ObjectsRemain { live, .. } = error else { panic!("{error}") };
    assert_eq!(live, 50);
    assert!(report.text().contains("dentry"), "{}", report.text());
    // SAFETY: ours, freed once; then nobody uses the cache.
    unsafe {
        for object in objects {
            kmem().kmem_cache_free(cache, object).expect("ours");
        }
        kmem().kmem_cache_destroy(cache).expect("empty");
    }
}

fn p01_alloc_pages_and_relatives_give_pages_of_every_order() {
    for order in Order::all() {
        let pages = kmem().alloc_pages(KERNEL, order).expect("memory");
        assert!(pages.is_aligned(order));
        let address = kmem().page_address(pages).expect("mapped");
        assert_eq!(kmem().virt_to_pfn(address.as_ptr()), Some(pages));
        fill(address, order.size_bytes(), 7);
        check(address, order.size_bytes(), 7);
        // SAFETY: ours, freed once.
        unsafe { kmem().free_pages(pages, order) }.expect("ours");
    }
    let page = kmem().get_zeroed_page(KERNEL).expect("memory");
    assert!(is_zero(page, PAGE_SIZE));
    let mut many = [None; 300];
    assert_eq!(kmem().alloc_pages_bulk(KERNEL, &mut many), 300);
    let mut seen: Vec<_> = many.iter().flatten().copied().collect();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 300);
    let exact = kmem().alloc_pages_exact(5 * PAGE_SIZE + 1, KERNEL).expect("memory");
    assert_eq!(exact.len(), 6);
    // SAFETY: ours, each page freed once.
    unsafe {
        kmem().free_pages_at(page.as_ptr(), Order::ZERO).expect("ours");
        kmem().free_pages_bulk(&mut many).expect("ours");
        kmem().free_range(exact).expect("ours");
    }
}

fn v01_vmalloc_gives_contiguous_addresses_over_any_frames() {
    for size in [1, 4096, 4097, 65_536, 1 << 20, 5 << 20] {
        let area = vmalloc().vzalloc(size).expect("memory");
        assert!(is_zero(area, size.min(70_000)));
        fill(area, size, size as u64);
        check(area, size, size as u64);
        // What the addresses show is what the frames hold.
        for at in (0..size).step_by(PAGE_SIZE) {
            let pfn = vmalloc().vmalloc_to_pfn(area.as_ptr().wrapping_add(at)).expect("mapped");
            assert!(GIVEN.get().expect("the map").is_free_memory(pfn));
            let direct = kmem().page_address(pfn).expect("mapped twice");
            // SAFETY: both are ours.
            unsafe { assert_eq!(direct.read(), area.add(at).read()) };
        }
        // SAFETY: ours, freed once.
        unsafe { vmalloc().vfree(area.as_ptr()) }.expect("ours");
    }
}

/// Gives back what kvmalloc or anything else gave.
fn kvfree(block: NonNull<u8>) {
    // SAFETY: callers own the block and use it no more.
    unsafe { kmem().kvfree(block.as_ptr()) }.expect("ours");
}

fn v02_kvmalloc_is_kmalloc_where_that_succeeds_and_vmalloc_where_it_does_not() {
    let is_area = |block: NonNull<u8>| vmalloc().is_vmalloc_addr(block.as_ptr());
    for (size, area) in [(100, false), (20_000, false), (KMALLOC_MAX_SIZE + 1, true)] {
        let block = kmem().kvzalloc(size, KERNEL).expect("memory");
        assert_eq!(is_area(block), area, "{size}");
        assert!(is_zero(block, size.min(30_000)));
        fill(block, size, 21);
        check(block, size, 21);
        kvfree(block);
    }
    // No block of that order is to be had: the pages are, one by one.
    let _alone = kmem().nofs_scope();
    fail_page_request(1);
    let block = kmem().kvmalloc(1 << 20, KERNEL | Gfp::NOWARN).expect("memory");
    fail_page_request(0);
    assert!(is_area(block));
    kvfree(block);
}

fn f05_kvfree_takes_what_kvmalloc_gave_and_anything_else() {
    let cache = kmem().kmem_cache_create("f05", 72, &CacheArgs::default()).expect("a cache");
    kvfree(kmem().kmem_cache_alloc(cache, KERNEL).expect("memory"));
    kvfree(kmem().kmalloc(100, KERNEL).expect("memory"));
    kvfree(vmalloc().vmalloc(100).expect("memory"));
    kvfree(kmem().kvmalloc(10_000, KERNEL).expect("memory"));
    // SAFETY: nobody uses it any more.
    unsafe { kmem().kmem_cache_destroy(cache) }.expect("empty");
}

fn f01_kfree_takes_what_kmalloc_gave() {
    for size in [0, 1, 8, 100, 8192, 8193, 1 << 20] {
        kfree(kmem().kmalloc(size, KERNEL).expect("memory"));
    }
}

fn f02_objects_of_caches_go_back_by_kmem_cache_free_or_kfree() {
    let cache = kmem().kmem_cache_create("f02", 72, &CacheArgs::default()).expect("a cache");
    for _ in 0..200 {
        let [one, other] = [(); 2].map(|()| kmem().kmem_cache_alloc(cache, KERNEL).expect("memory"));
        // SAFETY: ours, freed once.
        unsafe { kmem().kmem_cache_free(cache, one) }.expect("ours");
        kfree(other);
    }
    // SAFETY: nobody uses it any more.
    unsafe { kmem().kmem_cache_destroy(cache) }.expect("empty");
}

#[repr(C)]
struct Node {
    value: u64,
    rcu: RcuHead,
}

fn f03_bulk_and_rcu_forms_take_the_same() {
    let cache = kmem().kmem_cache_create("f03", size_of::<Node>(), &CacheArgs::default()).expect("a cache");
    let sizes = [16, 300, 20_000];
    let mixed: Vec<_> = sizes.iter().map(|&size| kmem().kmalloc(size, KERNEL).expect("memory").as_ptr()).collect();
    let readable: Vec<_> = (0..100)
        .map(|value| {
            let node = kmem().kmem_cache_alloc(cache, KERNEL).expect("memory").cast::<Node>();
            // SAFETY: room for a `Node`, ours.
            unsafe { node.write(Node { value, rcu: RcuHead::new() }) };
            node
        })
        .collect();
    let large = kmem().kmalloc(100_000, KERNEL).expect("memory");
    // SAFETY: ours, freed once each; readers only look at `value`, and only while they are pinned.
    unsafe {
        kmem().kfree_bulk(&mixed).expect("ours");
        let reading = Pinned::new(&KernelCpu);
        for node in &readable {
            let head = NonNull::new_unchecked(&raw mut (*node.as_ptr()).rcu);
            kmem().kfree_rcu(node.as_ptr().cast(), head).expect("ours");
        }
        kmem().kfree_rcu(large.as_ptr(), large.cast()).expect("ours");
        for (value, node) in (0..).zip(&readable) {
            assert_eq!((&raw const (*node.as_ptr()).value).read(), value, "still there for this reader");
        }
        drop(reading);
        kmem().kfree_rcu_mightsleep(kmem().kmalloc(50, KERNEL).expect("memory").as_ptr()).expect("ours");
        kmem().kfree_rcu_barrier();
        kmem().kmem_cache_destroy(cache).expect("empty");
    }
}

fn f04_vfree_takes_any_address_of_an_area_once() {
    let area = vmalloc().vmalloc(3 * PAGE_SIZE).expect("memory");
    // SAFETY: ours, freed once; the rest is refused.
    unsafe {
        vmalloc().vfree(area.as_ptr()).expect("ours");
        assert!(matches!(vmalloc().vfree(area.as_ptr()), Err(VfreeError::AlreadyFree(_))));
        assert_eq!(vmalloc().vfree(ptr::null_mut()), Ok(()));
    }
}

/// Frees an address that must be refused.
fn refused(address: *mut u8) -> KfreeError {
    // SAFETY: not a block that may be freed so: refusing it is what is tested.
    unsafe { kmem().kfree(address) }.expect_err("not a block")
}

fn f06_every_other_pairing_is_a_caught_error() {
    // SAFETY: null is nothing.
    assert_eq!(unsafe { kmem().kfree(ptr::null_mut()) }, Ok(()));
    // A stack's memory, which is a vmalloc area's.
    let mut local = 5_u64;
    assert!(matches!(refused((&raw mut local).cast()), KfreeError::NotMemory { .. }));
    // Pages from the page allocator, by kfree.
    let page = kmem().alloc_page(KERNEL).expect("memory");
    let address = kmem().page_address(page).expect("mapped");
    assert!(matches!(refused(address.as_ptr()), KfreeError::NotAllocated { .. }));
    // An address inside a large block.
    let large = kmem().kmalloc(50_000, KERNEL).expect("memory");
    assert!(matches!(refused(large.as_ptr().wrapping_add(4096)), KfreeError::InsideBlock { .. }));
    // An object, a large block and a page to a cache that is not theirs.
    let cache = kmem().kmem_cache_create("f06", 40, &CacheArgs::default()).expect("a cache");
    let block = kmem().kmalloc(40, KERNEL).expect("memory");
    // SAFETY: refused, which is what is tested.
    unsafe {
        let error = kmem().kmem_cache_free(cache, block).expect_err("another cache's");
        assert!(matches!(error, ObjectError::WrongCache { .. }), "{error}");
        for address in [large, address] {
            let error = kmem().kmem_cache_free(cache, address).expect_err("no object");
            assert!(matches!(error, ObjectError::NotSlab { .. }), "{error}");
        }
    }
    kfree(block);
    kfree(large);
    assert!(matches!(refused(large.as_ptr()), KfreeError::NotAllocated { .. }));
    let two = Order::new(2).expect("an order");
    // SAFETY: refused, which is what is tested; then ours.
    unsafe {
        let nobodys = Pfn(1 << 40);
        assert_eq!(kmem().free_pages(nobodys, two), Err(FreeError::Foreign(nobodys)));
        let block = kmem().kmalloc(64, KERNEL).expect("memory");
        assert!(vmalloc().vfree(block.as_ptr()).is_err(), "a block to vfree");
        kmem().kfree(block.as_ptr()).expect("ours");
        kmem().free_page(page).expect("ours");
        kmem().kmem_cache_destroy(cache).expect("empty");
    }
}

fn g01_a_context_that_must_not_sleep_must_not_ask_with_gfp_kernel() {
    assert_eq!(check_sleep(Gfp::KERNEL, KernelContext.task_flags()), Ok(()));
    let pin = Pinned::new(&KernelCpu);
    assert!(matches!(check_sleep(Gfp::KERNEL, KernelContext.task_flags()), Err(GfpError::SleepInAtomic { .. })));
    assert_eq!(check_sleep(Gfp::ATOMIC, KernelContext.task_flags()), Ok(()));
    drop(pin);
    let irq = context::with_flags(TaskFlags::IN_IRQ, || KernelContext.task_flags());
    assert!(check_sleep(Gfp::KERNEL, irq).is_err());
    assert!(KernelCpu.nr_cpus() > 0);
}

fn g03_reports_can_be_silenced_and_are_rate_limited() {
    let pages = exhaust(OPTIMISTIC);
    let ((), silent) = context::capture(|| {
        assert!(kmem().alloc_page(OPTIMISTIC | Gfp::NOWARN).is_err());
        assert!(kmem().alloc_page(Gfp::NOWAIT).is_err());
    });
    let failing = Gfp::NOWAIT.difference(Gfp::NOWARN);
    let ((), loud) = context::capture(|| {
        for _ in 0..50 {
            assert!(kmem().alloc_page(failing).is_err());
        }
    });
    pages.free();
    assert_eq!(silent.text(), "");
    let reports = loud.text().matches("allocation failure").count();
    assert!((1..=20).contains(&reports), "{reports} reports: {}", loud.text());
}

fn g04_gfp_atomic_digs_into_part_of_the_reserves() {
    let pages = exhaust(Gfp::NOWAIT);
    let atomic = context::with_flags(TaskFlags::IN_IRQ, || exhaust(Gfp::ATOMIC));
    let scope = kmem().noreclaim_scope();
    let deeper = exhaust(Gfp::KERNEL);
    drop(scope);
    let counts = (atomic.len(), deeper.len());
    for list in [pages, atomic, deeper] {
        list.free();
    }
    assert!(counts.0 > 0, "from what others may not touch");
    assert!(counts.1 > 0, "but only a part of it");
}

fn g08_dma_memory_lies_below_the_limit_of_the_hardware() {
    for (gfp, limit) in [(Gfp::DMA, 16_u64 << 20), (Gfp::KERNEL | Gfp::DMA32, 4 << 30)] {
        for order in [0, 3, 9] {
            let order = Order::new(order).expect("an order");
            let page = kmem().alloc_pages(gfp, order).expect("memory");
            let end = page.address().expect("an address") + order.size_bytes() as u64;
            assert!(end <= limit, "{gfp} gave {page}");
            // SAFETY: ours.
            unsafe { kmem().free_pages(page, order) }.expect("ours");
        }
    }
}
