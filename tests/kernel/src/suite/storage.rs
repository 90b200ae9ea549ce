//! The disk: what the host wrote is read, and what is written the host checks (`xtask/src/boot_disk.rs`).

use alloc::vec;
use core::ptr::NonNull;
use core::slice;

use kmem::{Gfp, Order};

use super::random::mix;
use crate::disk::{self, Disk, REACH};
use crate::platform::kmem;
use crate::vm::vmalloc;

super::tests![the_disk_is_read_and_written_with_buffers_of_every_kind];

const SECTOR: usize = 512;
const WORDS: usize = SECTOR / 8;
/// The image's sectors; the kernel writes the upper half.
const SECTORS: usize = 8192;
const WRITTEN: u64 = 0x6b6d_656d;

fn read_and_check(disk: &mut Disk, sector: usize, buffer: &mut [u8]) {
    disk.read_blocks(sector, buffer).expect("the disk reads");
    for (i, word) in (sector * WORDS..).zip(buffer.chunks_exact(8)) {
        assert_eq!(u64::from_le_bytes(word.try_into().expect("eight bytes")), mix(i as u64), "word {i}");
    }
}

fn write(disk: &mut Disk, sector: usize, buffer: &mut [u8]) {
    for (i, word) in (sector * WORDS..).zip(buffer.chunks_exact_mut(8)) {
        word.copy_from_slice(&mix(i as u64 ^ WRITTEN).to_le_bytes());
    }
    disk.write_blocks(sector, buffer).expect("the disk writes");
}

fn bytes<'a>(memory: NonNull<u8>, len: usize) -> &'a mut [u8] {
    // SAFETY: the test's own memory of that size, initialised, used as one slice at a time.
    unsafe { slice::from_raw_parts_mut(memory.as_ptr(), len) }
}

fn the_disk_is_read_and_written_with_buffers_of_every_kind() {
    let mut disk = disk::find().expect("a virtio disk");
    assert_eq!(disk.capacity() as usize, SECTORS);
    let half = SECTORS / 2;

    // Memory that the device reaches where it is: kmalloc (below 4 GiB), pages of DMA32, a contiguous area.
    let mut small = vec![0; 8 * SECTOR];
    for sector in (0..512).step_by(8) {
        read_and_check(&mut disk, sector, &mut small);
        write(&mut disk, half + sector, &mut small);
    }
    let order = Order::new(7).expect("an order");
    let pages = kmem().alloc_pages(Gfp::KERNEL | Gfp::DMA32 | Gfp::ZERO, order).expect("memory");
    let large = bytes(kmem().page_address(pages).expect("mapped"), order.size_bytes());
    assert!(kmem().dma_layer().reaches(&REACH, NonNull::from(&mut *large)).is_some());
    for sector in (512..1536).step_by(large.len() / SECTOR) {
        read_and_check(&mut disk, sector, large);
        write(&mut disk, half + sector, large);
    }

    let area = kmem().cma_layer().area("devices").expect("declared at boot");
    let block = kmem().dma_layer().alloc_coherent_raw(&REACH, 256 * SECTOR, Gfp::KERNEL).expect("memory");
    assert!(area.ranges().any(|range| range.contains(block.frames.start)), "{block:?} is not the area's");
    let contiguous = bytes(block.address, block.len);
    assert_eq!(kmem().dma_layer().reaches(&REACH, NonNull::from(&mut *contiguous)), Some(block.bus));
    for sector in (1536..2560).step_by(256) {
        read_and_check(&mut disk, sector, contiguous);
        write(&mut disk, half + sector, contiguous);
    }

    // Memory that it does not: virtually contiguous, and this stack.
    let window = vmalloc().vzalloc(64 * SECTOR).expect("memory");
    let buffer = bytes(window, 64 * SECTOR);
    assert!(kmem().dma_layer().reaches(&REACH, NonNull::from(&mut *buffer)).is_none(), "bounced");
    for sector in (2560..3584).step_by(64) {
        read_and_check(&mut disk, sector, buffer);
        write(&mut disk, half + sector, buffer);
    }
    let mut local = [0; SECTOR];
    assert!(kmem().dma_layer().reaches(&REACH, NonNull::from(&mut local[..])).is_none(), "bounced");
    for sector in 3584..half {
        read_and_check(&mut disk, sector, &mut local);
        write(&mut disk, half + sector, &mut local);
    }
    disk.flush().expect("the disk flushes");
    drop(disk);
    // SAFETY: ours.
    unsafe {
        kmem().free_pages(pages, order).expect("ours");
        kmem().dma_free_coherent(block).expect("ours");
        vmalloc().vfree(window.as_ptr()).expect("ours");
    }
}
