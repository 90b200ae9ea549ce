//! `kvrealloc`: in place, into vmalloc, never back; and what is left when it fails.

use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_kmalloc::{KfreeError, ZERO_SIZE_PTR};
use kmem_vmalloc::VmallocError;

use super::toys::Toys;
use crate::{KvfreeError, Kvmalloc, KvmallocError, KvreallocError};

const KERNEL: Gfp = Gfp::KERNEL;

fn kvmalloc() -> Kvmalloc<Toys> {
    Kvmalloc::new(Toys::new(64))
}

fn bytes<'a>(memory: *const u8, len: usize) -> &'a [u8] {
    // SAFETY: the tests pass memory in use that has been written.
    unsafe { core::slice::from_raw_parts(memory, len) }
}

// KV-08
#[test]
fn a_block_that_kmalloc_cannot_grow_moves_to_vmalloc_with_all_its_usable_bytes() {
    let kv = kvmalloc();
    let toys = kv.env();
    let block = kv.kvmalloc(100, KERNEL).unwrap().as_ptr();
    // SAFETY: ours, of a 128-byte class.
    unsafe {
        block.write_bytes(0x11, 128);
        let in_place = kv.kvrealloc(block, 120, KERNEL).unwrap().unwrap();
        assert_eq!(in_place.as_ptr(), block);
        toys.asked();
        toys.objects.faults.fail(0..1);
        let grown = kv.kvrealloc(block, 2 * PAGE_SIZE, KERNEL).unwrap().unwrap().as_ptr();
        assert!(kv.is_vmalloc_addr(grown));
        assert_eq!(bytes(grown, 128), [0x11; 128]);
        let (objects, areas) = toys.asked();
        let weak = (KERNEL | Gfp::NOWARN).difference(Gfp::DIRECT_RECLAIM);
        assert_eq!((objects.len(), objects[0].gfp), (1, weak), "the try of krealloc is the only one");
        assert_eq!((areas.len(), areas[0].gfp, areas[0].huge), (1, KERNEL, true));
        assert_eq!(toys.in_use(), (0, 1));
        // Never back, however small.
        let small = kv.kvrealloc(grown, 10, KERNEL).unwrap().unwrap().as_ptr();
        assert_eq!((small, kv.is_vmalloc_addr(small)), (grown, true));
        assert_eq!(toys.asked().0, []);
        assert_eq!(kv.kvrealloc(small, 0, KERNEL), Ok(None), "as vrealloc: nothing is left");
    }
    assert_eq!(toys.in_use(), (0, 0));
}

// KV-08
#[test]
fn no_bytes_leave_what_the_owner_leaves() {
    let kv = kvmalloc();
    let block = kv.kvmalloc(100, KERNEL).unwrap().as_ptr();
    // SAFETY: ours; null and the pointer to no bytes allocate.
    unsafe {
        assert_eq!(kv.kvrealloc(block, 0, KERNEL), Ok(Some(ZERO_SIZE_PTR)), "as krealloc");
        for nothing in [core::ptr::null_mut(), ZERO_SIZE_PTR.as_ptr()] {
            let block = kv.kvrealloc(nothing, 100, KERNEL).unwrap().unwrap();
            kv.kvfree(block.as_ptr()).unwrap();
            kv.env().objects.faults.fail(0..1);
            let area = kv.kvrealloc(nothing, 2 * PAGE_SIZE, KERNEL).unwrap().unwrap();
            assert!(kv.is_vmalloc_addr(area.as_ptr()));
            kv.kvfree(area.as_ptr()).unwrap();
        }
    }
    assert_eq!(kv.env().in_use(), (0, 0));
}

// KV-08, KV-09
#[test]
fn on_total_failure_the_old_memory_is_intact() {
    let kv = kvmalloc();
    let toys = kv.env();
    let block = kv.kvmalloc(100, KERNEL).unwrap().as_ptr();
    // SAFETY: ours; calls that fail leave it so.
    unsafe {
        block.write_bytes(0x22, 128);
        toys.objects.faults.fail(0..10);
        toys.areas.faults.fail(0..10);
        assert!(matches!(
            kv.kvrealloc(block, 2 * PAGE_SIZE, KERNEL),
            Err(KvreallocError::Alloc(KvmallocError::Neither { .. }))
        ));
        // KV-09: to a page or less there is no second chance.
        let calls = toys.areas.faults.calls();
        assert!(matches!(
            kv.kvrealloc(block, PAGE_SIZE, KERNEL),
            Err(KvreallocError::Alloc(KvmallocError::Kmalloc(_)))
        ));
        assert_eq!(toys.areas.faults.calls(), calls, "vmalloc has not been asked");
        assert_eq!(bytes(block, 128), [0x22; 128]);
        assert_eq!(toys.in_use(), (1, 0));
        // The same for an area.
        toys.areas.faults.none();
        let area = kv.kvrealloc(block, 2 * PAGE_SIZE, KERNEL).unwrap().unwrap().as_ptr();
        toys.areas.faults.fail(0..10);
        let failed = kv.kvrealloc(area, 4 * PAGE_SIZE, KERNEL);
        assert_eq!(failed, Err(KvreallocError::Vmalloc(VmallocError::NoSpace { nr_pages: 4 })));
        assert_eq!(bytes(area, 128), [0x22; 128]);
        kv.kvfree(area).unwrap();
    }
    assert_eq!(toys.in_use(), (0, 0));
}

// KV-10
#[test]
fn with_zero_from_the_first_call_on_growth_is_zero() {
    let kv = kvmalloc();
    let toys = kv.env();
    let zero = KERNEL | Gfp::ZERO;
    let mut memory = kv.kvmalloc(100, zero).unwrap().as_ptr();
    // SAFETY: ours, always as long as it was last asked for.
    unsafe {
        memory.write_bytes(0x33, 100);
        for (size, fails) in [(110, false), (1000, false), (3000, false), (2 * PAGE_SIZE, true), (5 * PAGE_SIZE, false)]
        {
            toys.objects.faults.fail(0..usize::from(fails));
            memory = kv.kvrealloc(memory, size, zero).unwrap().unwrap().as_ptr();
            assert_eq!(bytes(memory, 100), [0x33; 100]);
            assert!(bytes(memory, size)[100..].iter().all(|byte| *byte == 0), "{size}");
        }
        kv.kvfree(memory).unwrap();
    }
    assert_eq!(toys.in_use(), (0, 0));
}

#[test]
fn what_is_no_memory_is_refused_and_nothing_is_made_for_it() {
    let kv = kvmalloc();
    let toys = kv.env();
    let mut local = 0_u64;
    let address = (&raw mut local).addr();
    // SAFETY: refused.
    let refused = unsafe { kv.kvrealloc((&raw mut local).cast(), 100, KERNEL) };
    assert_eq!(refused, Err(KvreallocError::Free(KvfreeError::Kmalloc(KfreeError::NotMemory { address }))));
    let block = kv.kvmalloc(100, KERNEL).unwrap().as_ptr();
    // SAFETY: refused; then ours, freed once.
    unsafe {
        assert!(kv.kvrealloc_array(block, usize::MAX, 2, KERNEL).is_err());
        assert!(kv.kvrealloc_node_align(block, 100, 3, KERNEL, None).is_err());
        let array = kv.kvrealloc_array(block, 100, 10, KERNEL).unwrap().unwrap();
        kv.kvfree(array.as_ptr()).unwrap();
    }
    assert_eq!(toys.in_use(), (0, 0));
}

#[test]
fn a_block_moves_for_its_alignment() {
    let kv = kvmalloc();
    // SAFETY: ours throughout.
    unsafe {
        let mut memory = kv.kvmalloc(24, KERNEL).unwrap().as_ptr();
        for align in [16, 64, 1024, 2 * PAGE_SIZE] {
            memory.write_bytes(align as u8, 24);
            memory = kv.kvrealloc_node_align(memory, 24, align, KERNEL, None).unwrap().unwrap().as_ptr();
            assert!(memory.addr().is_multiple_of(align));
            assert_eq!(bytes(memory, 24), [align as u8; 24]);
        }
        kv.kvfree(memory).unwrap();
    }
    assert_eq!(kv.env().in_use(), (0, 0));
}
