//! V01, V02, F04, F05: memory that is contiguous in addresses only, and memory that may be.

use kmem::kvmalloc::KVMALLOC_FALLBACK_MAX;
use kmem::{
    AllocError, Gfp, KMALLOC_MAX_SIZE, KvmallocError, NodeId, Order, PAGE_SIZE, Pfn, VmRequest, VmallocError,
    ZERO_SIZE_PTR,
};
use kmem_tests::{Kmem, machine};

const KERNEL: Gfp = Gfp::KERNEL;

/// Whether memory holds nothing but zeroes.
fn is_zero(memory: *const u8, len: usize) -> bool {
    // SAFETY: the tests pass memory in use that was zeroed or written.
    unsafe { core::slice::from_raw_parts(memory, len) }.iter().all(|byte| *byte == 0)
}

/// Takes memory until what is free is single pages, half of it all. Gives what it has taken.
fn fragment(kmem: Kmem) -> Vec<(Pfn, Order)> {
    let pages: Vec<Pfn> = kmem_tests::exhaust(kmem, KERNEL | Gfp::NORETRY);
    let (keep, give): (Vec<Pfn>, Vec<Pfn>) = pages.into_iter().partition(|pfn| pfn.0 % 2 == 0);
    for pfn in give {
        // SAFETY: ours, freed once.
        unsafe { kmem.free_page(pfn) }.unwrap();
    }
    kmem.pages().drain_all_pages();
    let mut kept: Vec<(Pfn, Order)> = keep.into_iter().map(|pfn| (pfn, Order::ZERO)).collect();
    // The reserve that the watermarks kept is in one piece still.
    for order in (1..=10).rev().filter_map(Order::new) {
        let blocks = core::iter::from_fn(|| kmem.alloc_pages(Gfp::NOWAIT, order).ok());
        kept.extend(blocks.map(|pfn| (pfn, order)));
    }
    kept
}

/// Gives it back.
fn restore(kmem: Kmem, kept: Vec<(Pfn, Order)>) {
    for (pfn, order) in kept {
        // SAFETY: from `fragment`, freed once.
        unsafe { kmem.free_pages(pfn, order) }.unwrap();
    }
}

#[test]
fn v01_vmalloc_gives_contiguous_addresses_over_frames_that_need_not_be() {
    let kmem = machine().kmem();
    let keep = fragment(kmem);
    assert!(kmem.kmalloc(64 << 10, KERNEL | Gfp::NORETRY | Gfp::NOWARN).is_err(), "no 16 neighbours are free");
    let len = 64 << 10;
    let memory = kmem.vmalloc(len).unwrap().as_ptr();
    assert!(kmem.is_vmalloc_addr(memory) && memory.addr().is_multiple_of(PAGE_SIZE));
    // SAFETY: ours, `len` bytes.
    unsafe {
        (0..len).for_each(|i| memory.add(i).write((i / 7) as u8));
        assert!((0..len).all(|i| memory.add(i).read() == (i / 7) as u8));
    }
    let frames: Vec<Pfn> =
        (0..len).step_by(PAGE_SIZE).map(|at| kmem.vmalloc_to_pfn(memory.wrapping_add(at)).unwrap()).collect();
    assert!(frames.windows(2).all(|pair| pair[0].0 + 1 != pair[1].0), "{frames:?}");
    // The same bytes through the direct map.
    for (page, pfn) in frames.iter().enumerate() {
        let direct = kmem.page_address(*pfn).unwrap();
        // SAFETY: the area's own frame.
        assert_eq!(unsafe { direct.read() }, (page * PAGE_SIZE / 7) as u8);
    }
    let zeroed = kmem.vzalloc(len).unwrap();
    assert!(is_zero(zeroed.as_ptr(), len));
    // SAFETY: ours, freed once.
    unsafe {
        kmem.vfree(memory).unwrap();
        kmem.vfree(zeroed.as_ptr()).unwrap();
    }
    restore(kmem, keep);
}

#[test]
fn v01_every_form_of_vmalloc_is_there() {
    let kmem = machine().kmem();
    let len = 3 * PAGE_SIZE;
    let all = [
        kmem.vmalloc(len),
        kmem.vzalloc(len),
        kmem.vmalloc_gfp(len, Gfp::NOWAIT),
        kmem.vmalloc_node(len, NodeId(0)),
        kmem.vzalloc_node(len, NodeId(0)),
        kmem.vmalloc_32(len),
        kmem.vmalloc_user(len),
        kmem.vmalloc_32_user(len),
        kmem.vmalloc_huge(4 << 20, KERNEL),
        kmem.vmalloc_array(3, PAGE_SIZE, KERNEL),
        kmem.vcalloc(3, PAGE_SIZE),
    ]
    .map(|memory| memory.unwrap().as_ptr());
    let info = kmem.vmallocinfo().to_string();
    assert_eq!(info.lines().count(), all.len());
    assert!(info.contains("virtually.rs:"), "the caller is this file: {info}");
    assert_eq!(kmem.find_vm_area(all[0]).unwrap().requested_size, len);
    assert_eq!(kmem.vmalloc_array(usize::MAX, 2, KERNEL), Err(VmallocError::TooLarge { size_bytes: usize::MAX }));
    // SAFETY: ours; each result replaces what it was made from.
    unsafe {
        all[0].write_bytes(7, len);
        let grown = kmem.vrealloc(all[0], 10 * PAGE_SIZE, KERNEL).unwrap().unwrap();
        assert_eq!(grown.add(len - 1).read(), 7);
        assert_eq!(kmem.vrealloc(grown.as_ptr(), 0, KERNEL), Ok(None));
        all[1..].iter().for_each(|memory| kmem.vfree(*memory).unwrap());
        kmem.vfree_atomic(kmem.vmalloc(10).unwrap().as_ptr()).unwrap();
    }
    let frames = [kmem.alloc_page(KERNEL).unwrap(), kmem.alloc_page(KERNEL).unwrap()];
    // SAFETY: our frames; the mappings end before they go.
    unsafe {
        let mapping = kmem.vm_map_ram(&frames, None).unwrap();
        mapping.write_bytes(9, 2 * PAGE_SIZE);
        assert_eq!(kmem.page_address(frames[1]).unwrap().read(), 9);
        kmem.vm_unmap_ram(mapping.as_ptr(), 2).unwrap();
        frames.into_iter().for_each(|frame| kmem.free_page(frame).unwrap());
    }
    drop(kmem.vm_area(&VmRequest::new(100, KERNEL)).unwrap());
    kmem.vm_unmap_aliases();
    kmem.vmalloc_shrinker().scan_objects();
    assert_eq!((kmem.vmalloc_stats().used_bytes, kmem.vmalloc_shrinker().count_objects()), (0, 0));
}

#[test]
fn v02_kvmalloc_tries_kmalloc_first_and_vmalloc_if_that_fails() {
    let kmem = machine().kmem();
    let small = kmem.kvmalloc(100, KERNEL).unwrap();
    let middle = kmem.kvzalloc(20_000, KERNEL).unwrap();
    let large = kmem.kvzalloc(KMALLOC_MAX_SIZE + 1, KERNEL).unwrap();
    assert!(!kmem.is_vmalloc_addr(small.as_ptr()) && !kmem.is_vmalloc_addr(middle.as_ptr()));
    assert!(kmem.is_vmalloc_addr(large.as_ptr()), "kmalloc has no block of that size");
    assert!(is_zero(middle.as_ptr(), 20_000) && is_zero(large.as_ptr(), KMALLOC_MAX_SIZE + 1));
    assert_eq!(kmem.kvmalloc(0, KERNEL), Ok(ZERO_SIZE_PTR));
    // SAFETY: ours, freed once.
    unsafe { [small, middle, large].iter().for_each(|memory| kmem.kvfree(memory.as_ptr()).unwrap()) };

    // Without neighbours kmalloc has no block of 16 pages: the memory is discontiguous.
    let keep = fragment(kmem);
    let [one, node, array, zeroed] = [
        kmem.kvmalloc(64 << 10, KERNEL),
        kmem.kvmalloc_node(64 << 10, KERNEL, Some(NodeId(0))),
        kmem.kvmalloc_array(1 << 10, 64, KERNEL),
        kmem.kvcalloc(1 << 10, 64, KERNEL),
    ]
    .map(|memory| memory.unwrap().as_ptr());
    assert!([one, node, array, zeroed].iter().all(|memory| kmem.is_vmalloc_addr(*memory)));
    assert!(is_zero(zeroed, 64 << 10));
    // SAFETY: ours, freed once.
    unsafe {
        [one, node, array, zeroed].iter().for_each(|memory| kmem.kvfree(*memory).unwrap());
    }
    restore(kmem, keep);
}

#[test]
fn v02_the_limits_of_kvmalloc_are_errors_that_say_so() {
    let kmem = machine().kmem();
    let overflow = Err(KvmallocError::TooLarge { size_bytes: usize::MAX });
    assert_eq!(kmem.kvmalloc_array(usize::MAX / 4, 8, KERNEL), overflow);
    assert_eq!(kmem.kvcalloc(usize::MAX / 4, 8, KERNEL), overflow);
    let size_bytes = KVMALLOC_FALLBACK_MAX + 1;
    let too_large = Err(KvmallocError::TooLarge { size_bytes });
    assert_eq!(kmem.kvmalloc(size_bytes, KERNEL | Gfp::NOFAIL | Gfp::NOWARN), too_large);
    // More than the machine has: both say why.
    let neither = kmem.kvmalloc(1 << 30, KERNEL | Gfp::NOWARN);
    let kmalloc = AllocError::TooLarge { size_bytes: 1 << 30 };
    assert!(matches!(neither, Err(KvmallocError::Neither { kmalloc: said, .. }) if said == kmalloc), "{neither:?}");
}

#[test]
fn f04_what_vmalloc_gave_goes_back_by_vfree_or_kvfree() {
    let kmem = machine().kmem();
    let free = kmem.vmalloc_stats().used_bytes;
    for size in [1, PAGE_SIZE, PAGE_SIZE + 1, 1 << 20, 5 << 20] {
        let [one, other, third] = [(); 3].map(|()| kmem.vmalloc(size).unwrap().as_ptr());
        // SAFETY: ours, freed once each.
        unsafe {
            kmem.vfree(one).unwrap();
            kmem.kvfree(other).unwrap();
            kmem.kvfree_sensitive(third, size).unwrap();
        }
    }
    assert_eq!(kmem.vmalloc_stats().used_bytes, free);
}

#[test]
fn f05_what_kvmalloc_gave_goes_back_by_kvfree_whoever_had_it() {
    let kmem = machine().kmem();
    for size in [0, 1, 100, PAGE_SIZE, 50_000, KMALLOC_MAX_SIZE, KMALLOC_MAX_SIZE + 1, 9 << 20] {
        let memory = kmem.kvmalloc(size, KERNEL).unwrap().as_ptr();
        assert_eq!(kmem.is_vmalloc_addr(memory), size > KMALLOC_MAX_SIZE);
        // SAFETY: ours; what `kvrealloc` gives replaces it, and is freed once.
        unsafe {
            memory.write_bytes(3, size);
            let grown = kmem.kvrealloc(memory, size + (5 << 20), KERNEL).unwrap().unwrap().as_ptr();
            assert!(kmem.is_vmalloc_addr(grown), "it has grown into vmalloc");
            assert!((0..size).all(|i| grown.add(i).read() == 3));
            let shrunk = kmem.kvrealloc(grown, 10, KERNEL).unwrap().unwrap().as_ptr();
            assert_eq!(shrunk, grown, "and stays there");
            kmem.kvfree(shrunk).unwrap();
        }
    }
    let mut block = kmem.block(100, KERNEL).unwrap();
    block.resize(6 << 20, KERNEL).unwrap();
    assert!(block.is_vmalloc());
    drop(block);
    assert_eq!((kmem.vmalloc_stats().used_bytes, kmem.kmalloc_layer().large_pages()), (0, 0));
}
