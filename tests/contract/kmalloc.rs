//! K01..K06: kmalloc and its sizes.

use kmem::kmalloc::natural_align;
use kmem::{AllocError, Gfp, KMALLOC_MAX_SIZE, KMALLOC_MINALIGN, KreallocError, ZERO_SIZE_PTR, struct_size};
use kmem_gfp::size::{array_size, array3_size, size_add};
use kmem_tests::machine;

const KERNEL: Gfp = Gfp::KERNEL;

#[test]
fn k01_kmalloc_serves_small_objects_and_kzalloc_zeroes_them() {
    let kmem = machine().kmem();
    for size in 1..=1000 {
        let block = kmem.kmalloc(size, KERNEL).unwrap();
        // SAFETY: of that size, ours, freed once.
        unsafe {
            block.write_bytes(0xff, size);
            kmem.kfree(block.as_ptr()).unwrap();
            let block = kmem.kzalloc(size, KERNEL).unwrap();
            assert!((0..size).all(|at| block.add(at).read() == 0));
            kmem.kfree(block.as_ptr()).unwrap();
        }
    }
    assert_eq!(kmem.kmalloc(0, KERNEL), Ok(ZERO_SIZE_PTR));
}

#[test]
fn k02_array_forms_fail_cleanly_when_the_product_overflows() {
    let kmem = machine().kmem();
    let overflow = Err(AllocError::TooLarge { size_bytes: usize::MAX });
    let quiet = KERNEL | Gfp::NOWARN;
    for (count, size) in [(usize::MAX, 2), (2, usize::MAX), (1 << 33, 1 << 33), (usize::MAX / 8 + 1, 8)] {
        assert_eq!(kmem.kmalloc_array(count, size, quiet), overflow);
        assert_eq!(kmem.kcalloc(count, size, quiet), overflow);
    }
    let block = kmem.kcalloc(10, 12, KERNEL).unwrap();
    // SAFETY: 120 zeroed bytes of ours, freed once.
    unsafe {
        assert!((0..120).all(|at| block.add(at).read() == 0));
        kmem.kfree(block.as_ptr()).unwrap();
    }
}

#[test]
fn k03_size_arithmetic_saturates_so_that_overflow_can_only_fail() {
    #[repr(C)]
    struct Packet {
        len: u32,
        payload: [u16; 0],
    }
    let kmem = machine().kmem();
    assert_eq!(struct_size!(Packet, payload, 10), 4 + 20);
    let saturated = [
        struct_size!(Packet, payload, usize::MAX / 2),
        array_size(usize::MAX, 2),
        array3_size(1 << 30, 1 << 30, 1 << 30),
        size_add(array_size(usize::MAX, 2), 100),
    ];
    for size_bytes in saturated {
        assert_eq!(size_bytes, usize::MAX);
        assert_eq!(kmem.kmalloc(size_bytes, KERNEL | Gfp::NOWARN), Err(AllocError::TooLarge { size_bytes }));
    }
    let packet = kmem.kmalloc(struct_size!(Packet, payload, 10), KERNEL).unwrap();
    // SAFETY: ours, freed once.
    unsafe { kmem.kfree(packet.as_ptr()) }.unwrap();
    let _ = core::mem::offset_of!(Packet, len);
}

#[test]
fn k04_one_byte_more_than_the_documented_largest_size_is_an_error() {
    let kmem = machine().kmem();
    assert_eq!(KMALLOC_MAX_SIZE, 4 << 20);
    let largest = kmem.kmalloc(KMALLOC_MAX_SIZE, KERNEL).unwrap();
    // SAFETY: ours, of that size, freed once.
    unsafe {
        largest.write_bytes(1, KMALLOC_MAX_SIZE);
        kmem.kfree(largest.as_ptr()).unwrap();
    }
    let size_bytes = KMALLOC_MAX_SIZE + 1;
    assert_eq!(kmem.kmalloc(size_bytes, KERNEL | Gfp::NOWARN), Err(AllocError::TooLarge { size_bytes }));
}

#[test]
fn k05_addresses_are_aligned_as_their_sizes_promise() {
    let kmem = machine().kmem();
    for size in (1..600).chain([1000, 1024, 3000, 4096, 6144, 8192, 8200, 65_536, 100_000, 1 << 20]) {
        let blocks = [(); 3].map(|()| kmem.kmalloc(size, KERNEL).unwrap());
        for block in blocks {
            assert_eq!(block.addr().get() % natural_align(size).max(KMALLOC_MINALIGN), 0, "{size}");
            // SAFETY: ours, freed once.
            unsafe { kmem.kfree(block.as_ptr()) }.unwrap();
        }
    }
}

#[test]
fn k06_krealloc_keeps_contents_and_on_failure_the_old_block() {
    let machine = machine();
    let kmem = machine.kmem();
    let mut size = 10;
    let mut block = kmem.kmalloc(size, KERNEL).unwrap();
    // SAFETY: `block` is ours and has `size` bytes throughout; each result replaces it.
    unsafe {
        block.write_bytes(0x42, size);
        for new in [11, 40, 33, 500, 9000, 40_000, 1 << 20, 100, 64] {
            block = kmem.krealloc(block.as_ptr(), new, KERNEL).unwrap();
            let kept = size.min(new);
            assert!((0..kept).all(|at| block.add(at).read() == 0x42), "{size} to {new}");
            block.write_bytes(0x42, new);
            size = new;
        }
        let overflow = kmem.krealloc_array(block.as_ptr(), usize::MAX, 8, KERNEL | Gfp::NOWARN);
        assert_eq!(overflow, Err(KreallocError::Alloc(AllocError::TooLarge { size_bytes: usize::MAX })));
        machine.fail_page_request(1);
        let failed = kmem.krealloc(block.as_ptr(), 3 << 20, Gfp::NOWAIT);
        assert!(failed.is_err());
        assert!((0..size).all(|at| block.add(at).read() == 0x42), "valid and unchanged");
        block = kmem.krealloc_array(block.as_ptr(), 100, 8, KERNEL).unwrap();
        assert!((0..size).all(|at| block.add(at).read() == 0x42));
        kmem.kfree(block.as_ptr()).unwrap();
    }
}
