//! What blocks are like: where they come from, how they are aligned, what they hold.

use core::ptr;
use std::string::{String, ToString};
use std::vec::Vec;

use kmem_gfp::{AllocError, Gfp, NodeId, Order, OwnerTag, PAGE_SIZE};
use kmem_slab::{CacheArgs, SlabFlags};

use super::machine::{TestEnv, slabs, usable, with_config, with_kmalloc};
use crate::{
    KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, Kmalloc, KmallocConfig, MinAlign, PartitionToken, SizeClass,
    ZERO_SIZE_PTR, is_zero_or_null, natural_align,
};

const KERNEL: Gfp = Gfp::KERNEL;

fn cache_name(kmalloc: &Kmalloc<'_, &TestEnv>, block: *mut u8) -> String {
    kmalloc.slabs().cache_of(ptr::NonNull::new(block).unwrap()).unwrap().name().to_string()
}

#[test]
fn each_size_comes_from_the_cache_of_its_class() {
    with_kmalloc(|kmalloc, _| {
        for (size, name) in [
            (1, "kmalloc-8"),
            (64, "kmalloc-64"),
            (65, "kmalloc-96"),
            (129, "kmalloc-192"),
            (193, "kmalloc-256"),
            (1025, "kmalloc-2k"),
            (8192, "kmalloc-8k"),
        ] {
            // KM-01
            let block = kmalloc.kmalloc(size, KERNEL).unwrap();
            assert_eq!(cache_name(kmalloc, block.as_ptr()), name);
            // SAFETY: just allocated.
            unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
        }
    });
}

#[test]
fn flags_choose_the_family_as_far_as_it_exists() {
    // KM-04
    let names = |config: KmallocConfig| {
        let mut names = Vec::new();
        with_config(config, |kmalloc, _| {
            for gfp in [
                KERNEL | Gfp::DMA | Gfp::RECLAIMABLE,
                KERNEL | Gfp::RECLAIMABLE | Gfp::ACCOUNT,
                Gfp::KERNEL_ACCOUNT,
                KERNEL,
            ] {
                let block = kmalloc.kmalloc(100, gfp).unwrap();
                names.push(cache_name(kmalloc, block.as_ptr()));
                // SAFETY: just allocated.
                unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
            }
        });
        names
    };
    let all = KmallocConfig { dma: true, cgroup: true, ..KmallocConfig::default() };
    assert_eq!(names(all), ["dma-kmalloc-128", "kmalloc-rcl-128", "kmalloc-cg-128", "kmalloc-128"]);
    let few = KmallocConfig::default();
    assert_eq!(names(few), ["kmalloc-rcl-128", "kmalloc-rcl-128", "kmalloc-128", "kmalloc-128"]);
}

#[test]
fn partitions_take_normal_requests_by_token() {
    // KM-05
    with_config(KmallocConfig { partitions: true, cgroup: true, ..KmallocConfig::default() }, |kmalloc, _| {
        let mut names = Vec::new();
        for site in 0..200 {
            let block = kmalloc.kmalloc_partitioned(64, KERNEL, PartitionToken::new(site)).unwrap();
            names.push(cache_name(kmalloc, block.as_ptr()));
            let again = kmalloc.kmalloc_partitioned(64, KERNEL, PartitionToken::new(site)).unwrap();
            assert_eq!(names.last(), Some(&cache_name(kmalloc, again.as_ptr())), "a token keeps its partition");
            // SAFETY: just allocated.
            unsafe { kmalloc.kfree_bulk(&[block.as_ptr(), again.as_ptr()]) }.unwrap();
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), PartitionToken::PARTITIONS);
        assert_eq!(names.first().map(String::as_str), Some("kmalloc-64"));
        assert_eq!(names.last().map(String::as_str), Some("kmalloc-part-15-64"));
        let accounted = kmalloc.kmalloc_partitioned(64, Gfp::KERNEL_ACCOUNT, PartitionToken::new(3)).unwrap();
        assert_eq!(cache_name(kmalloc, accounted.as_ptr()), "kmalloc-cg-64", "other kinds are not partitioned");
        // SAFETY: just allocated.
        unsafe { kmalloc.kfree(accounted.as_ptr()) }.unwrap();
    });
}

#[test]
fn a_minimum_alignment_leaves_the_classes_that_keep_it() {
    // KM-02
    let config = KmallocConfig { min_align: MinAlign::new(64).unwrap(), ..KmallocConfig::default() };
    with_config(config, |kmalloc, _| {
        for (size, name) in [(1, "kmalloc-64"), (64, "kmalloc-64"), (65, "kmalloc-128"), (130, "kmalloc-192")] {
            let block = kmalloc.kmalloc(size, KERNEL).unwrap();
            assert_eq!(cache_name(kmalloc, block.as_ptr()), name);
            assert_eq!(block.addr().get() % 64, 0);
            assert_eq!(usable(kmalloc, block.as_ptr()), Ok(kmalloc.kmalloc_size_roundup(size)));
            // SAFETY: just allocated.
            unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
        }
    });
}

fn check_alignment(kmalloc: &Kmalloc<'_, &TestEnv>, but: usize) {
    let mut sizes: Vec<usize> = (1..=300).collect();
    sizes.extend([511, 512, 1000, 1024, 4096, 6144, 8192, 8193, 12288, 16384, 65536, 1 << 20]);
    sizes.retain(|size| *size != but);
    for size in sizes {
        let blocks: Vec<_> = (0..3).map(|_| kmalloc.kmalloc(size, KERNEL).unwrap()).collect();
        for block in &blocks {
            let align = if size > KMALLOC_MAX_CACHE_SIZE {
                Order::for_size(size).unwrap().size_bytes()
            } else {
                natural_align(size).max(8)
            };
            assert_eq!(block.addr().get() % align, 0, "{size}");
        }
        for block in blocks {
            // SAFETY: just allocated.
            unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
        }
    }
}

#[test]
fn every_address_has_the_alignment_that_its_size_promises() {
    // KM-07
    with_kmalloc(|kmalloc, _| check_alignment(kmalloc, 0));
}

#[test]
fn red_zones_do_not_spoil_the_alignment() {
    // KM-07
    let config = KmallocConfig { flags: SlabFlags::RED_ZONE | SlabFlags::STORE_USER, ..KmallocConfig::default() };
    // The largest class is aligned to a page there, which is as far as a cache's alignment goes.
    with_config(config, |kmalloc, _| check_alignment(kmalloc, 8192));
}

#[test]
fn zero_bytes_get_the_zero_size_pointer() {
    // KM-08
    with_kmalloc(|kmalloc, env| {
        let calls = env.pages.calls();
        let block = kmalloc.kmalloc(0, KERNEL).unwrap();
        assert_eq!(block, ZERO_SIZE_PTR);
        assert_eq!(block.addr().get(), 16);
        assert_eq!(kmalloc.kcalloc(0, 8, KERNEL), Ok(ZERO_SIZE_PTR));
        assert_eq!(kmalloc.kmalloc_array(7, 0, KERNEL), Ok(ZERO_SIZE_PTR));
        assert_eq!(kmalloc.kmalloc_node(0, KERNEL, Some(NodeId(1))), Ok(ZERO_SIZE_PTR));
        assert_eq!(usable(kmalloc, block.as_ptr()), Ok(0));
        // SAFETY: neither is a block.
        unsafe {
            assert_eq!(kmalloc.kfree(block.as_ptr()), Ok(()));
            assert_eq!(kmalloc.kfree(ptr::null_mut()), Ok(()));
            assert_eq!(kmalloc.kfree_sensitive(block.as_ptr()), Ok(()));
            assert_eq!(kmalloc.kfree_rcu(block.as_ptr(), block.cast()), Ok(()));
        }
        assert!(is_zero_or_null(0) && is_zero_or_null(16) && !is_zero_or_null(17));
        assert_eq!(env.pages.calls(), calls);
    });
}

#[test]
fn large_blocks_are_whole_page_blocks() {
    // KM-09
    with_kmalloc(|kmalloc, env| {
        let before = env.pages.in_use();
        for size in [8193, 16384, 16385, 100_000, KMALLOC_MAX_SIZE] {
            let order = Order::for_size(size).unwrap();
            let block = kmalloc.kmalloc(size, KERNEL).unwrap();
            assert_eq!(env.pages.in_use() - before, order.nr_pages());
            assert_eq!(kmalloc.large_pages(), order.nr_pages());
            assert_eq!(usable(kmalloc, block.as_ptr()), Ok(order.size_bytes()));
            let marked = env.owners().into_iter().filter(|(_, owner)| OwnerTag::of(*owner) == OwnerTag::LargeKmalloc);
            assert_eq!(marked.count(), 1);
            // SAFETY: just allocated.
            unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
            assert_eq!(env.pages.in_use(), before);
            assert_eq!(kmalloc.large_pages(), 0);
        }
    });
}

#[test]
fn flags_that_no_block_can_honour_are_left_out_and_reported() {
    // SL-76
    with_kmalloc(|kmalloc, env| {
        let large = kmalloc.kmalloc(20_000, KERNEL | Gfp::HIGHMEM).unwrap();
        let report = env.take_reports().join("");
        assert!(report.contains("HIGHMEM") && report.contains("Fix your code"), "{report}");
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree(large.as_ptr()) }.unwrap();
    });
}

#[test]
fn one_byte_more_than_the_largest_is_an_error_reported_once() {
    // KM-09, KM-10
    with_kmalloc(|kmalloc, env| {
        let calls = env.pages.calls();
        for size_bytes in [KMALLOC_MAX_SIZE + 1, usize::MAX - 1, usize::MAX] {
            let too_large = Err(AllocError::TooLarge { size_bytes });
            assert_eq!(kmalloc.kmalloc(size_bytes, KERNEL | Gfp::NOWARN), too_large);
            assert!(env.take_reports().is_empty());
        }
        let size_bytes = KMALLOC_MAX_SIZE + 1;
        assert_eq!(kmalloc.kmalloc(size_bytes, KERNEL | Gfp::NOFAIL), Err(AllocError::TooLarge { size_bytes }));
        assert_eq!(env.take_reports().len(), 1);
        assert!(kmalloc.kmalloc(size_bytes, KERNEL).is_err());
        assert!(env.take_reports().is_empty(), "said once");
        assert_eq!(env.pages.calls(), calls, "the page allocator is not even asked");
    });
}

#[test]
fn exhaustion_is_an_error_and_nofail_is_not() {
    // KM-10
    with_kmalloc(|kmalloc, env| {
        env.pages.exhaust(true);
        let quiet = KERNEL | Gfp::NOWARN;
        assert!(matches!(kmalloc.kmalloc(100_000, quiet), Err(AllocError::NoMemory { .. })));
        let mut live = Vec::new();
        let error = loop {
            match kmalloc.kmalloc(512, quiet) {
                Ok(block) => live.push(block.as_ptr()),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, AllocError::NoMemory { .. }), "{error}");
        live.push(kmalloc.kmalloc(512, quiet | Gfp::NOFAIL).unwrap().as_ptr());
        live.push(kmalloc.kmalloc(100_000, quiet | Gfp::NOFAIL).unwrap().as_ptr());
        env.pages.exhaust(false);
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree_bulk(&live) }.unwrap();
    });
}

#[test]
fn array_forms_refuse_products_that_overflow() {
    // KM-11, KM-12
    with_kmalloc(|kmalloc, env| {
        let calls = env.pages.calls();
        let overflow = Err(AllocError::TooLarge { size_bytes: usize::MAX });
        let quiet = KERNEL | Gfp::NOWARN;
        assert_eq!(kmalloc.kmalloc_array(usize::MAX / 2, 3, quiet), overflow);
        assert_eq!(kmalloc.kcalloc(1 << 40, 1 << 30, quiet), overflow);
        assert_eq!(kmalloc.kcalloc_node(1 << 40, 1 << 30, quiet, None), overflow);
        assert_eq!(
            kmalloc.kmalloc_objs::<u64>(usize::MAX / 4, quiet),
            Err(AllocError::TooLarge { size_bytes: usize::MAX })
        );
        assert_eq!(env.pages.calls(), calls);
        let block = kmalloc.kmalloc_array(10, 10, KERNEL).unwrap();
        assert_eq!(usable(kmalloc, block.as_ptr()), Ok(128));
        // SAFETY: just allocated.
        unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
    });
}

fn bytes<'a>(block: ptr::NonNull<u8>, len: usize) -> &'a [u8] {
    // SAFETY: the test owns a block of at least `len` initialised bytes for as long as it looks at them.
    unsafe { core::slice::from_raw_parts(block.as_ptr(), len) }
}

#[test]
fn zeroing_forms_clear_the_whole_block_even_a_reused_one() {
    // KM-11, SL-80
    with_kmalloc(|kmalloc, _| {
        for size in [1, 60, 100, 5000, 8192, 20_000] {
            let usable = kmalloc.kmalloc_size_roundup(size);
            let dirty = kmalloc.kmalloc(size, KERNEL).unwrap();
            // SAFETY: the block has that many bytes.
            unsafe { dirty.write_bytes(0xa5, usable) };
            // SAFETY: allocated above.
            unsafe { kmalloc.kfree(dirty.as_ptr()) }.unwrap();
            for form in 0..3 {
                let block = match form {
                    0 => kmalloc.kzalloc(size, KERNEL),
                    1 => kmalloc.kcalloc(1, size, KERNEL),
                    _ => kmalloc.kzalloc_node(size, KERNEL, None),
                };
                let block = block.unwrap();
                assert!(bytes(block, usable).iter().all(|byte| *byte == 0), "{size}");
                // SAFETY: the block has that many bytes.
                unsafe { block.write_bytes(0x5a, usable) };
                // SAFETY: allocated above.
                unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
            }
        }
    });
}

#[test]
fn typed_forms_take_size_and_alignment_from_the_type() {
    // KM-13
    #[repr(C, align(64))]
    struct Line([u8; 100]);
    #[repr(C)]
    struct Ring {
        head: u32,
        slots: [u64; 0],
    }
    with_kmalloc(|kmalloc, _| {
        let line = kmalloc.kzalloc_obj::<Line>(KERNEL).unwrap();
        assert_eq!(line.addr().get() % 64, 0);
        // SAFETY: zeroed, and all-zero bytes are a `Line`.
        assert_eq!(unsafe { line.as_ref() }.0, [0; 100]);
        let numbers = kmalloc.kmalloc_objs::<u32>(25, KERNEL).unwrap();
        assert_eq!(usable(kmalloc, numbers.as_ptr().cast()), Ok(128));
        let ring = kmalloc.kzalloc_flex::<Ring, u64>(10, KERNEL).unwrap();
        assert_eq!(usable(kmalloc, ring.as_ptr().cast()), Ok(96), "8 + 10 * 8");
        // SAFETY: zeroed, and all-zero bytes are a `Ring`.
        assert_eq!(unsafe { ring.as_ref() }.head, 0);
        assert!(kmalloc.kmalloc_flex::<Ring, u64>(usize::MAX / 8, KERNEL | Gfp::NOWARN).is_err());
        let frees = [line.as_ptr().cast(), numbers.as_ptr().cast(), ring.as_ptr().cast()];
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree_bulk(&frees) }.unwrap();
        let _ = core::mem::offset_of!(Ring, slots);
    });
}

#[test]
fn node_forms_prefer_the_node_and_keep_to_it_when_told() {
    // KM-27
    with_kmalloc(|kmalloc, env| {
        let node_of = |block: ptr::NonNull<u8>| {
            use kmem_gfp::{FrameTable, PageAllocator};
            use kmem_slab::SlabEnv;
            env.pages.node_of(env.frames().frame_of(block.addr().get()).unwrap())
        };
        for size in [100, 40_000] {
            for node in [NodeId(0), NodeId(1)] {
                let block = kmalloc.kmalloc_node(size, KERNEL, Some(node)).unwrap();
                assert_eq!(node_of(block), node);
                // SAFETY: just allocated.
                unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
            }
        }
        // Half of 16 MiB is node 1's: blocks of 4 MiB run out, and only then come from the other node.
        let large = |gfp| kmalloc.kmalloc_node(KMALLOC_MAX_SIZE, gfp | Gfp::NOWARN, Some(NodeId(1)));
        let mut live: Vec<_> = core::iter::from_fn(|| large(KERNEL | Gfp::THISNODE).ok()).collect();
        assert!(live.iter().all(|block| node_of(*block) == NodeId(1)));
        let elsewhere = large(KERNEL).unwrap();
        assert_eq!(node_of(elsewhere), NodeId(0));
        live.push(elsewhere);
        for block in live {
            // SAFETY: allocated above.
            unsafe { kmalloc.kfree(block.as_ptr()) }.unwrap();
        }
    });
}

#[test]
fn kmalloc_caches_allow_usercopy_of_the_whole_class() {
    // KM-06, UC-01..UC-04
    use kmem_slab::UsercopyError;
    with_kmalloc(|kmalloc, _| {
        let block = kmalloc.kmalloc(90, KERNEL).unwrap().as_ptr();
        assert_eq!(kmalloc.check_object_size(block, 96), Ok(()));
        assert_eq!(kmalloc.check_object_size(block.wrapping_add(90), 6), Ok(()));
        let beyond = kmalloc.check_object_size(block.wrapping_add(90), 7);
        assert_eq!(beyond, Err(UsercopyError::OutsideWindow { offset: 90, len: 7 }));
        assert_eq!(kmalloc.check_object_size(ptr::null(), 0), Ok(()), "length zero always passes");
        for (address, len) in [(0, 1), (16, 8), (usize::MAX, 2), (block.addr(), 1 << 31), (block.addr(), usize::MAX)] {
            let range = kmalloc.check_object_size(ptr::without_provenance(address), len);
            assert_eq!(range, Err(UsercopyError::BadRange { address, len }));
        }
        let large = kmalloc.kmalloc(20_000, KERNEL).unwrap().as_ptr();
        assert_eq!(kmalloc.check_object_size(large.wrapping_add(3 * PAGE_SIZE), 5 * PAGE_SIZE), Ok(()));
        let beyond = kmalloc.check_object_size(large.wrapping_add(3 * PAGE_SIZE), 5 * PAGE_SIZE + 1);
        assert_eq!(beyond, Err(UsercopyError::OutsideWindow { offset: 3 * PAGE_SIZE, len: 5 * PAGE_SIZE + 1 }));
        assert_eq!(kmalloc.check_object_size((&raw const large).cast(), 8), Ok(()), "other memory is not judged");
        // SAFETY: allocated above.
        unsafe { kmalloc.kfree_bulk(&[block, large]) }.unwrap();
    });
}

#[test]
fn creation_that_fails_leaves_nothing_behind() {
    let config = KmallocConfig { dma: true, cgroup: true, partitions: true, ..KmallocConfig::default() };
    for n in 0.. {
        let env = TestEnv::new(4096, 1);
        let slabs = slabs(&env);
        env.pages.fail_nth(Some(n));
        let created = Kmalloc::new(&slabs, config.clone());
        let calls = env.pages.calls();
        env.pages.fail_nth(None);
        match created {
            Ok(_) if calls <= n => break,
            Ok(_) => {}
            Err(_) => {
                let mut left = Vec::new();
                slabs.for_each_cache(|cache| left.push(cache.name().to_string()));
                assert!(left.is_empty(), "{left:?} after failure {n}");
                assert!(Kmalloc::new(&slabs, config.clone()).is_ok());
            }
        }
    }
}

#[test]
fn every_class_exists_once() {
    with_kmalloc(|kmalloc, _| {
        let mut names = Vec::new();
        kmalloc.slabs().for_each_cache(|cache| names.push(cache.name().to_string()));
        for class in SizeClass::ALL {
            let name = std::format!("kmalloc-{}", class.name());
            assert_eq!(names.iter().filter(|other| **other == name).count(), 1, "{name}");
        }
    });
}

#[test]
fn classes_take_in_no_other_cache() {
    // SL-44
    for cgroup in [false, true] {
        with_config(KmallocConfig { cgroup, ..KmallocConfig::default() }, |kmalloc, _| {
            let args = CacheArgs { align: 64, ..CacheArgs::default() };
            let fitting = kmalloc.slabs().create("fits-64", 64, &args).unwrap();
            assert!(!core::ptr::eq(fitting, kmalloc.cache(SizeClass::for_size(64).unwrap(), KERNEL)));
        });
    }
}

#[test]
fn everything_freed_and_destroyed_is_everything_back() {
    let env = TestEnv::new(4096, 2);
    let slabs = slabs(&env);
    let config = KmallocConfig { dma: true, cgroup: true, partitions: true, ..KmallocConfig::default() };
    let kmalloc = Kmalloc::new(&slabs, config).unwrap();
    let blocks: Vec<_> = (0..300).map(|n| kmalloc.kmalloc(n * 53, KERNEL).unwrap().as_ptr()).collect();
    // SAFETY: allocated above.
    unsafe { kmalloc.kfree_bulk(&blocks) }.unwrap();
    kmalloc.destroy().unwrap();
    drop(slabs);
    assert_eq!(env.pages.in_use(), 0);
    assert!(env.owners().is_empty());
}

#[test]
fn destroying_with_a_block_in_use_leaves_the_block_valid() {
    let env = TestEnv::new(4096, 1);
    let slabs = slabs(&env);
    let kmalloc = Kmalloc::new(&slabs, KmallocConfig::default()).unwrap();
    let block = kmalloc.kmalloc(100, KERNEL).unwrap();
    // SAFETY: ours, of that size.
    unsafe { block.write_bytes(7, 100) };
    assert!(kmalloc.destroy().is_err());
    assert_eq!(bytes(block, 100), [7; 100]);
    // SAFETY: allocated above.
    unsafe { slabs.free_any(block) }.unwrap();
}
