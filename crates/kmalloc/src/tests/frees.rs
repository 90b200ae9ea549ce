//! Giving back: everything that may be freed, and what becomes of everything else.

use core::ptr;
use std::string::ToString;
use std::vec::Vec;

use kmem_gfp::{FreeError, Gfp, OwnerTag, PAGE_SIZE, PageAllocator};
use kmem_slab::{CacheArgs, ObjectError};
use kmem_sync::GracePeriod;
use kmem_sync::atomic::Ordering;

use super::machine::{usable, with_kmalloc};
use crate::{KBox, KfreeError};

const KERNEL: Gfp = Gfp::KERNEL;

#[test]
fn garbage_is_named_and_nothing_changes() {
    // KM-16, SL-84
    with_kmalloc(|kmalloc, env| {
        let free = |ptr: *mut u8| {
            let (pages, owners) = (env.pages.in_use(), env.owners());
            // SAFETY: not a block of ours to free, which is what is tested: nothing may happen.
            let error = unsafe { kmalloc.kfree(ptr) }.unwrap_err();
            assert_eq!((env.pages.in_use(), env.owners()), (pages, owners));
            assert_eq!(
                usable(kmalloc, ptr).is_err(),
                !matches!(error, KfreeError::Object(ObjectError::DoubleFree { .. }))
            );
            error
        };
        let mut local = 0_u64;
        let address = (&raw mut local).addr();
        assert_eq!(free((&raw mut local).cast()), KfreeError::NotMemory { address });
        assert_eq!(free(ptr::without_provenance_mut(17)), KfreeError::NotMemory { address: 17 });
        assert!(matches!(free(ptr::without_provenance_mut(usize::MAX)), KfreeError::NotMemory { .. }));

        // A page straight from the page allocator, and one that is free.
        use kmem_gfp::FrameTable;
        use kmem_slab::SlabEnv;
        let pfn = env.pages.alloc_pages(KERNEL, kmem_gfp::Order::ZERO, None).unwrap();
        let page = env.frames().address_of(pfn).unwrap();
        assert_eq!(free(page.as_ptr()), KfreeError::NotAllocated { address: page.addr().get(), pfn });
        env.words_of(pfn).owner.store(OwnerTag::Vmalloc as u64, Ordering::Relaxed);
        let (address, owner) = (page.addr().get(), OwnerTag::Vmalloc);
        assert_eq!(free(page.as_ptr()), KfreeError::OtherOwner { address, pfn, owner });
        env.words_of(pfn).owner.store(0, Ordering::Relaxed);
        // SAFETY: allocated above.
        unsafe { env.pages.free_pages(pfn, kmem_gfp::Order::ZERO) }.unwrap();
        assert_eq!(free(page.as_ptr()), KfreeError::NotAllocated { address, pfn });

        // Inside a large block: in its first page, in a later one.
        let large = kmalloc.kmalloc(100_000, KERNEL).unwrap().as_ptr();
        let start = large.addr();
        for offset in [1, 8, PAGE_SIZE, 17 * PAGE_SIZE + 5, 32 * PAGE_SIZE - 1] {
            let error = free(large.wrapping_add(offset));
            assert_eq!(error, KfreeError::InsideBlock { address: start + offset, start });
            assert!(error.to_string().contains("inside the large block"));
        }
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree(large) }.unwrap();
        assert!(matches!(free(large), KfreeError::NotAllocated { .. }), "a large double free");
    });
}

#[test]
fn a_page_allocator_that_refuses_leaves_the_block_as_it_was() {
    with_kmalloc(|kmalloc, env| {
        let large = kmalloc.kmalloc(100_000, KERNEL).unwrap().as_ptr();
        env.pages.refuse_frees(true);
        // SAFETY: allocated above; it is refused.
        let error = unsafe { kmalloc.kfree(large) }.unwrap_err();
        assert!(matches!(error, KfreeError::Pages(FreeError::Reserved(_))));
        assert_eq!(usable(kmalloc, large), Ok(128 << 10));
        assert_eq!(kmalloc.large_pages(), 32);
        env.pages.refuse_frees(false);
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree(large) }.unwrap();
    });
}

#[test]
fn kfree_takes_objects_of_any_cache() {
    // SL-83
    with_kmalloc(|kmalloc, _| {
        let cache = kmalloc.slabs().create("thing", 56, &CacheArgs::default()).unwrap();
        let objects: Vec<_> = (0..100).map(|_| kmalloc.slabs().alloc(cache, KERNEL).unwrap().as_ptr()).collect();
        assert_eq!(usable(kmalloc, objects[0]), Ok(56));
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree_bulk(&objects) }.unwrap();
        // SAFETY: nobody uses the cache.
        unsafe { kmalloc.slabs().destroy(cache) }.unwrap();
    });
}

#[test]
fn bulk_takes_a_mixture_and_counts_what_it_refuses() {
    // SL-87
    with_kmalloc(|kmalloc, env| {
        let before = env.pages.in_use();
        let mut local = 0_u64;
        let mut blocks: Vec<*mut u8> = Vec::new();
        for size in [8, 8, 100, 100, 5000, 9000, 1 << 20, 0] {
            blocks.push(kmalloc.kmalloc(size, KERNEL).unwrap().as_ptr());
        }
        blocks.push(ptr::null_mut());
        blocks.insert(3, (&raw mut local).cast());
        blocks.push(blocks[7]);
        // SAFETY: allocated above, but for the one that is no block and the one that comes twice.
        let error = unsafe { kmalloc.kfree_bulk(&blocks) }.unwrap_err();
        assert_eq!(error.refused, 2);
        assert_eq!(error.first, KfreeError::NotMemory { address: (&raw const local).addr() });
        assert_eq!(kmalloc.large_pages(), 0);
        assert!(env.pages.in_use() < before + 20);
    });
}

#[test]
fn sensitive_free_wipes_the_whole_block_first() {
    // KM-17
    with_kmalloc(|kmalloc, _| {
        let block = kmalloc.kmalloc(100, KERNEL).unwrap();
        // SAFETY: the block has 128 bytes.
        unsafe { block.write_bytes(0x77, 128) };
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree_sensitive(block.as_ptr()) }.unwrap();
        let again = kmalloc.kmalloc(100, KERNEL).unwrap();
        assert_eq!(again, block, "last in, first out");
        // SAFETY: ours again; what the allocator itself wrote into it lies in its middle word.
        let left = (0..128).filter(|at| unsafe { again.add(*at).read() } == 0x77).count();
        assert_eq!(left, 0);
        // SAFETY: allocated above.
        unsafe {
            assert_eq!(kmalloc.kfree_sensitive(ptr::null_mut()), Ok(()));
            kmalloc.kfree(again.as_ptr()).unwrap();
        }
    });
}

/// The head of a block that has one at its start.
fn head(block: *mut u8) -> ptr::NonNull<kmem_slab::RcuHead> {
    ptr::NonNull::new(block.cast()).unwrap_or(ptr::NonNull::dangling())
}

#[test]
fn rcu_frees_wait_for_the_grace_period_and_the_barrier_for_them() {
    // RC-01, RC-04, RC-08, RC-12
    with_kmalloc(|kmalloc, env| {
        let before = env.pages.in_use();
        let large: Vec<_> = (0..3).map(|_| kmalloc.kmalloc(20_000, KERNEL).unwrap().as_ptr()).collect();
        let small: Vec<_> = (0..5).map(|_| kmalloc.kmalloc(100, KERNEL).unwrap().as_ptr()).collect();
        // SAFETY: allocated above; nobody reads them.
        unsafe {
            kmalloc.kfree_rcu(large[0], head(large[0])).unwrap();
            kmalloc.kfree_rcu(small[0], head(small[0])).unwrap();
            let error = kmalloc.kfree_rcu(large[0], head(large[0])).unwrap_err();
            assert!(matches!(error, KfreeError::NotAllocated { .. }), "handed in twice: {error}");
            assert!(kmalloc.kfree(large[0]).is_err(), "no longer the caller's");
        }
        assert_eq!(kmalloc.reap(), 0);
        assert_eq!(kmalloc.large_pages(), 24, "waiting");
        env.grace.synchronize();
        // SAFETY: as above. The free behind it collects the block whose time has come.
        unsafe { kmalloc.kfree_rcu(large[1], head(large[1])) }.unwrap();
        assert_eq!(kmalloc.large_pages(), 16);
        // SAFETY: as above.
        unsafe { kmalloc.kfree_rcu(large[2], head(large[2])) }.unwrap();
        for object in &small[1..] {
            // SAFETY: as above.
            unsafe { kmalloc.kfree_rcu(*object, head(*object)) }.unwrap();
        }
        kmalloc.kfree_rcu_barrier();
        assert_eq!(kmalloc.large_pages(), 0);
        assert_eq!(kmalloc.reap(), 0);
        assert!(env.pages.in_use() < before + 8);
        // SAFETY: null is nothing; a local is no block.
        unsafe {
            assert_eq!(kmalloc.kfree_rcu(ptr::null_mut(), head(ptr::null_mut())), Ok(()));
            let local = (&raw const before).cast_mut().cast();
            assert!(matches!(kmalloc.kfree_rcu(local, head(local)), Err(KfreeError::NotMemory { .. })));
        }
    });
}

#[test]
fn the_macro_finds_the_head_by_its_field() {
    // RC-01
    #[repr(C)]
    struct Route {
        target: [u8; 4000],
        rcu: kmem_slab::RcuHead,
    }
    with_kmalloc(|kmalloc, env| {
        let route = kmalloc.kmalloc_obj::<Route>(KERNEL).unwrap();
        // SAFETY: room for a route, ours; given up, and nobody reads it.
        unsafe {
            (&raw mut (*route.as_ptr()).target).write([3; 4000]);
            crate::kfree_rcu!(kmalloc, route, Route, rcu).unwrap();
            assert_eq!((&raw const (*route.as_ptr()).target).read(), [3; 4000], "as it was, for readers");
        }
        env.grace.synchronize();
        kmalloc.kfree_rcu_barrier();
    });
}

#[test]
fn the_waiting_form_needs_no_head() {
    // RC-02
    with_kmalloc(|kmalloc, _| {
        for size in [100, 20_000] {
            let block = kmalloc.kmalloc(size, KERNEL).unwrap().as_ptr();
            // SAFETY: allocated above.
            unsafe { kmalloc.kfree_rcu_mightsleep(block) }.unwrap();
        }
        // SAFETY: null is nothing.
        assert_eq!(unsafe { kmalloc.kfree_rcu_mightsleep(ptr::null_mut()) }, Ok(()));
        kmalloc.kfree_rcu_barrier();
        assert_eq!(kmalloc.large_pages(), 0);
    });
}

#[test]
fn a_box_gives_its_block_back() {
    with_kmalloc(|kmalloc, env| {
        let mut owned = KBox::new(kmalloc, [7_u64; 1000], KERNEL).unwrap();
        owned[3] = 8;
        assert_eq!(owned.iter().sum::<u64>(), 7001);
        let raw = owned.into_raw();
        // SAFETY: from `into_raw`.
        let owned = unsafe { KBox::from_raw(kmalloc, raw) };
        assert_eq!(owned.into_inner()[3], 8);
        let empty = KBox::new(kmalloc, (), KERNEL).unwrap();
        drop(empty);
        let big = KBox::new(kmalloc, [0_u8; 30_000], KERNEL).unwrap();
        assert_eq!(kmalloc.large_pages(), 8);
        drop(big);
        assert_eq!(kmalloc.large_pages(), 0);
        env.pages.exhaust(true);
        assert!(KBox::new(kmalloc, [0_u8; 30_000], KERNEL | Gfp::NOWARN).is_err());
    });
}
