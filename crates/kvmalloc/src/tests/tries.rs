//! Who is asked, with what, and whose answer is final.

use std::vec;

use kmem_gfp::{AllocError, Gfp, NodeId, Order, PAGE_SIZE};
use kmem_kmalloc::ZERO_SIZE_PTR;
use kmem_vmalloc::VmallocError;

use super::toys::{Asked, LARGEST_BLOCK, Toys};
use crate::{KVMALLOC_FALLBACK_MAX, Kvmalloc, KvmallocError};

const KERNEL: Gfp = Gfp::KERNEL;

fn kvmalloc() -> Kvmalloc<Toys> {
    Kvmalloc::new(Toys::new(64))
}

fn asked(size: usize, gfp: Gfp) -> Asked {
    Asked { size, align: 1, gfp, node: None, huge: false }
}

// KV-01
#[test]
fn up_to_a_page_the_word_of_kmalloc_is_final() {
    let kv = kvmalloc();
    let toys = kv.env();
    assert_eq!(kv.kvmalloc(0, KERNEL), Ok(ZERO_SIZE_PTR));
    let page = kv.kvmalloc(PAGE_SIZE, KERNEL).unwrap();
    toys.objects.faults.fail(0..100);
    let error = AllocError::NoMemory { order: Order::ZERO, gfp: KERNEL };
    for size in [1, 100, PAGE_SIZE] {
        assert_eq!(kv.kvmalloc(size, KERNEL), Err(KvmallocError::Kmalloc(error)));
    }
    // V02, KV-02: at or below a page no-fail is kmalloc's to keep.
    let kept = kv.kvmalloc(PAGE_SIZE, KERNEL | Gfp::NOFAIL).unwrap();
    let (objects, areas) = toys.asked();
    assert_eq!(areas, []);
    assert_eq!(objects.last(), Some(&asked(PAGE_SIZE, KERNEL | Gfp::NOFAIL)), "flags are untouched");
    // SAFETY: ours, freed once.
    unsafe {
        kv.kvfree(page.as_ptr()).unwrap();
        kv.kvfree(kept.as_ptr()).unwrap();
    }
    assert_eq!(toys.in_use(), (0, 0));
}

// KV-01, KV-02
#[test]
fn above_a_page_kmalloc_is_tried_first_and_not_hard() {
    let kv = kvmalloc();
    let toys = kv.env();
    let block = kv.kvmalloc(2 * PAGE_SIZE, KERNEL).unwrap();
    assert!(!kv.is_vmalloc_addr(block.as_ptr()), "it succeeded, so that is it");
    let weak = (KERNEL | Gfp::NOWARN).difference(Gfp::DIRECT_RECLAIM);
    assert_eq!(toys.asked(), (vec![asked(2 * PAGE_SIZE, weak)], vec![]));
    // SAFETY: ours, freed once.
    unsafe { kv.kvfree(block.as_ptr()) }.unwrap();
}

// KV-04, KV-05
#[test]
fn vmalloc_is_asked_with_the_flags_as_they_are_and_large_entries_if_it_may_block() {
    let kv = kvmalloc();
    let toys = kv.env();
    let flags =
        [KERNEL, KERNEL | Gfp::NOFAIL, Gfp::NOWAIT, Gfp::ATOMIC, KERNEL | Gfp::NORETRY, KERNEL | Gfp::RETRY_MAYFAIL];
    for gfp in flags {
        toys.objects.faults.fail(0..1);
        let memory = kv.kvmalloc(3 * PAGE_SIZE, gfp).unwrap();
        assert!(kv.is_vmalloc_addr(memory.as_ptr()), "non-blocking requests fall back as well");
        let (_, areas) = toys.asked();
        let huge = gfp.allows_blocking();
        assert_eq!(areas, [Asked { huge, ..asked(3 * PAGE_SIZE, gfp) }], "{gfp}");
        // SAFETY: ours, freed once.
        unsafe { kv.kvfree(memory.as_ptr()) }.unwrap();
    }
    // No-fail comes from this stage.
    toys.objects.faults.fail(0..1);
    toys.areas.faults.fail(0..1);
    let memory = kv.kvmalloc(3 * PAGE_SIZE, KERNEL | Gfp::NOFAIL).unwrap();
    // SAFETY: ours, freed once.
    unsafe { kv.kvfree(memory.as_ptr()) }.unwrap();
    assert_eq!(toys.in_use(), (0, 0));
}

#[test]
fn what_kmalloc_can_never_give_comes_from_vmalloc_and_both_reasons_are_named() {
    let kv = kvmalloc();
    let memory = kv.kvmalloc(LARGEST_BLOCK + 1, KERNEL).unwrap();
    assert!(kv.is_vmalloc_addr(memory.as_ptr()));
    // SAFETY: ours, freed once.
    unsafe { kv.kvfree(memory.as_ptr()) }.unwrap();
    let size_bytes = 65 * PAGE_SIZE;
    let error = KvmallocError::Neither {
        size_bytes,
        kmalloc: AllocError::TooLarge { size_bytes },
        vmalloc: VmallocError::NoSpace { nr_pages: 65 },
    };
    assert_eq!(kv.kvmalloc(size_bytes, KERNEL), Err(error));
}

// KV-03
#[test]
fn above_int_max_nobody_is_asked_and_that_is_said_once() {
    let kv = kvmalloc();
    let toys = kv.env();
    let too_large = |size_bytes| Err(KvmallocError::TooLarge { size_bytes });
    let size = KVMALLOC_FALLBACK_MAX + 1;
    assert_eq!(kv.kvmalloc(size, KERNEL | Gfp::NOWARN), too_large(size));
    assert_eq!(toys.reports().len(), 0);
    for gfp in [KERNEL, KERNEL | Gfp::NOFAIL, KERNEL] {
        assert_eq!(kv.kvmalloc(size, gfp), too_large(size), "no-fail is no help");
    }
    assert_eq!(toys.reports().len(), 1);
    assert_eq!(toys.asked().1, []);
    // One byte less is vmalloc's to refuse.
    assert!(matches!(kv.kvmalloc(KVMALLOC_FALLBACK_MAX, KERNEL), Err(KvmallocError::Neither { .. })));
}

// KV-06
#[test]
fn arrays_that_overflow_fail_without_asking_anybody() {
    let kv = kvmalloc();
    let toys = kv.env();
    let overflow = Err(KvmallocError::TooLarge { size_bytes: usize::MAX });
    let half = usize::MAX / 2;
    assert_eq!(kv.kvmalloc_array(half, 3, KERNEL), overflow);
    assert_eq!(kv.kvcalloc(half, 3, KERNEL), overflow);
    assert_eq!(kv.kvmalloc_array_node(half, 3, KERNEL, None), overflow);
    assert_eq!(kv.kvcalloc_node(half, 3, KERNEL, None), overflow);
    assert_eq!(kv.kvmalloc_objs::<u64>(half, KERNEL).map(|p| p.cast()), overflow);
    assert_eq!(kv.kvmalloc_flex::<u64, u64>(half, KERNEL).map(|p| p.cast()), overflow);
    assert_eq!(toys.asked(), (vec![], vec![]));
    assert_eq!(toys.reports().len(), 0);
}

// KV-06, KV-10
#[test]
fn the_zeroing_forms_zero_from_either() {
    let kv = kvmalloc();
    let toys = kv.env();
    for (first, pages) in [(0..0, 0), (0..100, 1)] {
        toys.objects.faults.fail(first);
        let node = Some(NodeId(0));
        let bytes = 2 * PAGE_SIZE;
        let all = [
            kv.kvzalloc(bytes, KERNEL),
            kv.kvzalloc_node(bytes, KERNEL, node),
            kv.kvcalloc(bytes / 16, 16, KERNEL),
            kv.kvcalloc_node(bytes / 16, 16, KERNEL, node),
            kv.kvzalloc_objs::<u128>(bytes / 16, KERNEL).map(|p| p.cast()),
            kv.kvzalloc_obj::<[u8; 2 * PAGE_SIZE]>(KERNEL).map(|p| p.cast()),
            kv.kvzalloc_flex::<u64, u8>(bytes - 8, KERNEL).map(|p| p.cast()),
        ];
        for memory in all {
            let memory = memory.unwrap();
            assert_eq!(kv.is_vmalloc_addr(memory.as_ptr()), pages == 1);
            // SAFETY: ours, initialised by being zeroed; freed once.
            unsafe {
                let bytes = core::slice::from_raw_parts(memory.as_ptr(), bytes);
                assert!(bytes.iter().all(|byte| *byte == 0));
                kv.kvfree(memory.as_ptr()).unwrap();
            }
        }
    }
    assert_eq!(toys.in_use(), (0, 0));
}

#[test]
fn nodes_and_alignments_reach_both() {
    let kv = kvmalloc();
    let toys = kv.env();
    let node = Some(NodeId(3));
    toys.objects.faults.fail(0..1);
    let memory = kv.kvmalloc_node_align(5 * PAGE_SIZE / 4, 2 * PAGE_SIZE, KERNEL, node).unwrap();
    assert!(memory.addr().get().is_multiple_of(2 * PAGE_SIZE));
    let (objects, areas) = toys.asked();
    assert_eq!((objects[0].size, objects[0].node), (2 * PAGE_SIZE, node), "a size that kmalloc aligns");
    assert_eq!((areas[0].size, areas[0].align, areas[0].node), (5 * PAGE_SIZE / 4, 2 * PAGE_SIZE, node));
    // A page's worth that is to be aligned to more has somewhere to fall back to.
    toys.objects.faults.fail(0..1);
    let small = kv.kvmalloc_node_align(64, 4 * PAGE_SIZE, KERNEL, None).unwrap();
    assert!(kv.is_vmalloc_addr(small.as_ptr()) && small.addr().get().is_multiple_of(4 * PAGE_SIZE));
    assert!(matches!(
        kv.kvmalloc_node_align(64, 48, KERNEL, None),
        Err(KvmallocError::Kmalloc(AllocError::BadAlign(48)))
    ));
    // SAFETY: ours, freed once.
    unsafe {
        kv.kvfree(memory.as_ptr()).unwrap();
        kv.kvfree(small.as_ptr()).unwrap();
    }
    #[repr(align(256))]
    struct Wide(#[expect(dead_code, reason = "only its size")] [u8; 256]);
    let wide = kv.kvmalloc_objs::<Wide>(3, KERNEL).unwrap();
    assert!(wide.is_aligned());
    let one = kv.kvmalloc_obj::<Wide>(KERNEL).unwrap();
    assert!(one.is_aligned());
    let flex = kv.kvmalloc_flex::<Wide, u8>(10, KERNEL).unwrap();
    assert!(flex.is_aligned());
    // SAFETY: ours, freed once.
    unsafe {
        kv.kvfree(wide.as_ptr().cast()).unwrap();
        kv.kvfree(one.as_ptr().cast()).unwrap();
        kv.kvfree(flex.as_ptr().cast()).unwrap();
    }
    assert_eq!(toys.in_use(), (0, 0));
}
