//! `vrealloc`.

use core::sync::atomic::Ordering;

use kmem_gfp::{Gfp, NodeId, PAGE_SIZE, PageAllocator};

use super::machine::Machine;
use crate::{VmFlags, VmRequest, Vmalloc, VmallocError};

fn resize(vmalloc: &Vmalloc<&Machine>, at: usize, size: usize, gfp: Gfp) -> Result<Option<usize>, VmallocError> {
    // SAFETY: tests use what they are given.
    unsafe { vmalloc.vrealloc(at as *mut u8, size, gfp) }.map(|memory| memory.map(|memory| memory.addr().get()))
}

#[test]
fn the_first_byte_survives_every_step() {
    // VM-42, VM-43, VM-44, TS-15
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let mut at = resize(&vmalloc, 0, PAGE_SIZE, Gfp::KERNEL).unwrap().unwrap();
    machine.store(at, 0xa5);
    for size in [4 * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE / 2, PAGE_SIZE] {
        at = resize(&vmalloc, at, size, Gfp::KERNEL).unwrap().unwrap();
        assert_eq!(machine.load(at), 0xa5);
        assert_eq!(vmalloc.find_vm_area(at as *const u8).unwrap().requested_size, size);
    }
    assert_eq!(resize(&vmalloc, at, 0, Gfp::KERNEL), Ok(None));
    assert_eq!(machine.nr_mapped(), 0);
}

#[test]
fn shrinking_keeps_the_address_and_frees_whole_pages() {
    // VM-43
    let machine = Machine::new(64);
    machine.frames.lock().unwrap().scattered = true;
    let vmalloc = machine.window(1000);
    let at = resize(&vmalloc, 0, 10 * PAGE_SIZE, Gfp::KERNEL).unwrap().unwrap();
    let before = machine.in_use();
    assert_eq!(resize(&vmalloc, at, 3 * PAGE_SIZE - 1, Gfp::KERNEL), Ok(Some(at)));
    assert_eq!((machine.in_use(), machine.nr_mapped()), (before - 7, 3));
    assert_eq!(vmalloc.find_vm_area(at as *const u8).unwrap().range.len(), 11 * PAGE_SIZE, "the range stays reserved");
    assert_eq!(vmalloc.stats().used_bytes, 3 * PAGE_SIZE as u64);
    assert_eq!(machine.flushes(), [at + 3 * PAGE_SIZE..at + 10 * PAGE_SIZE], "before the frames are free");
    // Growing inside the pages that are left.
    assert_eq!(resize(&vmalloc, at, 3 * PAGE_SIZE, Gfp::KERNEL), Ok(Some(at)));
    let moved = resize(&vmalloc, at, 4 * PAGE_SIZE, Gfp::KERNEL).unwrap().unwrap();
    assert_ne!(moved, at);
    // SAFETY: not used any more.
    unsafe { vmalloc.vfree(moved as *mut u8) }.unwrap();
    drop(vmalloc);
    assert_eq!(machine.in_use_but_tables(), 0);
}

#[test]
fn pages_stay_where_they_may_not_be_freed() {
    // VM-43
    let machine = Machine::new(4096);
    let vmalloc = machine.window(8192);
    let shrink = |at: usize, gfp| {
        let before = machine.in_use();
        assert_eq!(resize(&vmalloc, at, 1, gfp), Ok(Some(at)));
        before - machine.in_use()
    };
    for gfp in [Gfp::NOFS, Gfp::NOIO, Gfp::NOWAIT] {
        assert_eq!(shrink(resize(&vmalloc, 0, 4 * PAGE_SIZE, gfp).unwrap().unwrap(), gfp), 0, "{gfp}");
    }
    assert_eq!(shrink(vmalloc.vmalloc_user(4 * PAGE_SIZE).unwrap().addr().get(), Gfp::KERNEL), 0);
    assert_eq!(shrink(vmalloc.vmalloc_exec(4 * PAGE_SIZE, None).unwrap().addr().get(), Gfp::KERNEL), 0);
    assert_eq!(shrink(vmalloc.vmalloc_huge(2 << 20, Gfp::KERNEL).unwrap().addr().get(), Gfp::KERNEL), 0);
    assert_eq!(shrink(vmalloc.vmalloc(4 * PAGE_SIZE).unwrap().addr().get(), Gfp::KERNEL), 3);
}

#[test]
fn bytes_given_up_are_cleared_if_anybody_asks_for_it() {
    // VM-43, VM-44
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    for (gfp, clears, expected) in
        [(Gfp::KERNEL, false, 7), (Gfp::KERNEL | Gfp::ZERO, false, 0), (Gfp::KERNEL, true, 0)]
    {
        machine.clears.store(clears, Ordering::Relaxed);
        let at = resize(&vmalloc, 0, 2 * PAGE_SIZE, Gfp::KERNEL).unwrap().unwrap();
        (0..2 * PAGE_SIZE).for_each(|i| machine.store(at + i, 7));
        resize(&vmalloc, at, 100, gfp).unwrap();
        assert_eq!(machine.load(at + 99), 7);
        assert!((100..PAGE_SIZE).all(|i| machine.load(at + i) == expected));
        // Growing in place clears nothing.
        machine.store(at + 200, 9);
        resize(&vmalloc, at, 300, Gfp::KERNEL | Gfp::ZERO).unwrap();
        assert_eq!(machine.load(at + 200), 9);
        resize(&vmalloc, at, 0, gfp).unwrap();
    }
}

#[test]
fn what_cannot_be_resized_is_left_alone() {
    // VM-42
    let machine = Machine::new(64);
    let vmalloc = machine.window(1000);
    let at = resize(&vmalloc, 0, 2 * PAGE_SIZE, Gfp::KERNEL).unwrap().unwrap();
    for wrong in [at + PAGE_SIZE, at + 500 * PAGE_SIZE, 4096, at + 8] {
        assert!(matches!(resize(&vmalloc, wrong, 100, Gfp::KERNEL), Err(VmallocError::BadAddress(_))), "{wrong:#x}");
    }
    let align = 1 << 30;
    // SAFETY: refused.
    let refused = unsafe { vmalloc.vrealloc_node_align((at) as *mut u8, 100, align << 11, Gfp::KERNEL, None) };
    assert_eq!(refused, Err(VmallocError::BadAlign(align << 11)));
    let sparse = vmalloc.get_vm_area(100, 1, VmFlags::SPARSE, None, Gfp::KERNEL).unwrap().addr().get();
    assert!(matches!(resize(&vmalloc, sparse, 100, Gfp::KERNEL), Err(VmallocError::BadAddress(_))));
    // Failing to grow leaves the old memory as it was.
    machine.store(at, 3);
    assert!(resize(&vmalloc, at, 63 * PAGE_SIZE, Gfp::KERNEL).is_err());
    assert_eq!(machine.load(at), 3);
    assert_eq!(vmalloc.find_vm_area(at as *const u8).unwrap().requested_size, 2 * PAGE_SIZE);
}

#[test]
fn this_node_only_forces_a_move() {
    // VM-44
    let mut machine = Machine::new(64);
    machine.nr_nodes = 2;
    let vmalloc = machine.window(1000);
    let memory = vmalloc.alloc(&VmRequest::new(2 * PAGE_SIZE, Gfp::KERNEL)).unwrap();
    let home = machine.node_of(vmalloc.vmalloc_to_pfn(memory.as_ptr()).unwrap());
    let gfp = Gfp::KERNEL | Gfp::THISNODE;
    for (node, moves) in [(home, false), (NodeId(1 - home.0), true)] {
        // SAFETY: not used.
        let now = unsafe { vmalloc.vrealloc_node_align(memory.as_ptr(), PAGE_SIZE + 1, 1, gfp, Some(node)) };
        assert_eq!(now.unwrap().unwrap() != memory, moves);
    }
}
