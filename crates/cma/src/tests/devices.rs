//! Coherent memory and streaming maps by what devices reach.

use std::ptr::NonNull;
use std::vec;

use kmem_gfp::{AllocError, Gfp, PAGE_SIZE, TaskFlags};
use std::sync::atomic::Ordering;

use super::rig::{PIECES, Rig};
use crate::{Dma, DmaDevice, DmaError};

fn address(piece: usize) -> u64 {
    PIECES[piece] * PAGE_SIZE as u64
}

#[test]
fn each_device_gets_memory_that_it_reaches_from_the_highest_zone_that_may_do() {
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    for (bits, piece) in [(64, 2), (40, 2), (33, 1), (32, 1), (31, 1), (30, 0), (26, 0), (24, 0)] {
        let device = DmaDevice::with_bits(bits);
        let buffer = dma.alloc_coherent(&device, 3 * PAGE_SIZE, Gfp::KERNEL).unwrap();
        assert_eq!(buffer.bus_address(), address(piece), "{bits} bits");
        assert_eq!(buffer.len(), 3 * PAGE_SIZE);
        assert_eq!(rig.pages.in_use(), 3, "the others were given back");
    }
    assert_eq!(rig.pages.in_use(), 0);
    let few = dma.alloc_coherent(&DmaDevice::with_bits(20), 100, Gfp::KERNEL).unwrap_err();
    assert_eq!(few, DmaError::Unreachable { mask: 0xf_ffff });
    assert_eq!(rig.pages.in_use(), 0);
    // The caller's zone bits do not count, and a zone far below the reach is left alone.
    rig.pages.asked.lock().unwrap().clear();
    drop(dma.alloc_coherent(&DmaDevice::with_bits(64), 100, Gfp::KERNEL | Gfp::DMA).unwrap());
    assert_eq!(rig.pages.asked.lock().unwrap()[..], [Gfp::KERNEL | Gfp::ZERO]);
}

#[test]
fn limits_are_kept_on_the_bus_not_in_memory() {
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    rig.bus.shift.store(1 << 32, Ordering::Relaxed);
    let far = DmaDevice::with_bits(32);
    assert!(dma.alloc_coherent(&far, 100, Gfp::KERNEL).is_err(), "what lies below 4 GiB is above on the bus");
    let buffer = dma.alloc_coherent(&DmaDevice::with_bits(33), 100, Gfp::KERNEL).unwrap();
    assert_eq!(buffer.bus_address(), address(1) + (1 << 32));
    drop(buffer);
    assert_eq!(rig.pages.in_use(), 0);
    rig.bus.shift.store(0, Ordering::Relaxed);
    let limits = DmaDevice::with_bits(64).align(16 << 10).boundary(32 << 10).max_segment(24 << 10);
    let _odd = dma.alloc_coherent(&DmaDevice::with_bits(64), 1, Gfp::KERNEL).unwrap();
    for len in [1, 5000, 20_000, 24 << 10] {
        let buffer = dma.alloc_coherent(&limits, len, Gfp::KERNEL).unwrap();
        let bus = buffer.bus_address();
        assert_eq!((bus % (16 << 10), bus >> 15), (0, (bus + len as u64 - 1) >> 15));
        assert_eq!(rig.pages.in_use(), 1 + len.div_ceil(PAGE_SIZE), "no more than whole pages are kept");
    }
    let long = DmaError::TooLong { len: 24577, max: 24 << 10 };
    assert_eq!(dma.alloc_coherent(&limits, 24577, Gfp::KERNEL).unwrap_err(), long);
    assert_eq!(dma.alloc_coherent(&limits, 0, Gfp::KERNEL).unwrap_err(), DmaError::Empty);
    let odd = DmaDevice::with_bits(64).boundary(3000);
    assert_eq!(dma.alloc_coherent(&odd, 1, Gfp::KERNEL).unwrap_err(), DmaError::BadLimit(3000));
}

#[test]
fn large_buffers_come_from_an_area_if_the_device_reaches_it_and_the_caller_may_sleep() {
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    *rig.corner.piece.lock().unwrap() = Some(PIECES[1]);
    let area = address(1) + 32 * PAGE_SIZE as u64;
    let device = DmaDevice::with_bits(64);
    let large = dma.alloc_coherent(&device, 20 * PAGE_SIZE, Gfp::KERNEL).unwrap();
    assert_eq!(large.bus_address(), area);
    assert_eq!((rig.pages.in_use(), rig.in_use()), (0, 1));
    let mut bytes = [1; 64];
    assert!(large.read(20 * PAGE_SIZE - 64, &mut bytes) && bytes == [0; 64], "zeroed");
    assert!(!large.read(20 * PAGE_SIZE - 63, &mut bytes) && !large.read(usize::MAX, &mut bytes));
    drop(large);
    let small = dma.alloc_coherent(&device, PAGE_SIZE, Gfp::KERNEL).unwrap();
    assert_eq!(small.bus_address(), address(2), "a page is to be had anywhere");
    drop(small);
    let atomic = dma.alloc_coherent(&device, 2 * PAGE_SIZE, Gfp::ATOMIC).unwrap();
    assert_eq!(atomic.bus_address(), address(2), "areas want to sleep");
    drop(atomic);
    rig.context.flags.store(TaskFlags::ATOMIC.bits(), Ordering::Relaxed);
    assert_eq!(dma.alloc_coherent(&device, 2 * PAGE_SIZE, Gfp::KERNEL).unwrap().bus_address(), address(2));
    rig.context.flags.store(0, Ordering::Relaxed);
    let short = dma.alloc_coherent(&DmaDevice::with_bits(24), 2 * PAGE_SIZE, Gfp::KERNEL).unwrap();
    assert_eq!(short.bus_address(), address(0), "beyond its reach");
    assert!(rig.corner.used.lock().unwrap().is_empty());
    drop(short);
    assert_eq!(rig.in_use(), 0);
}

#[test]
fn owned_memory_can_be_kept_by_hand() {
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    let mut buffer = dma.alloc_coherent(&DmaDevice::with_bits(32), 100, Gfp::KERNEL).unwrap();
    assert!(buffer.write(96, &[1, 2, 3, 4]) && !buffer.write(97, &[0; 4]) && !buffer.is_empty());
    // SAFETY: inside of the buffer.
    assert_eq!(unsafe { buffer.as_ptr().add(99).read() }, 4);
    let raw = buffer.into_raw();
    assert_eq!((raw.len, raw.frames.len(), rig.pages.in_use()), (100, 1, 1));
    // SAFETY: ours, unused.
    unsafe { dma.free_coherent_raw(raw) }.unwrap();
    // SAFETY: refused.
    assert!(matches!(unsafe { dma.free_coherent_raw(raw) }, Err(DmaError::Free(_))));
    rig.bus.refuses.store(true, Ordering::Relaxed);
    assert_eq!(dma.alloc_coherent(&DmaDevice::with_bits(32), 100, Gfp::KERNEL).unwrap_err(), DmaError::NotMapped);
    assert_eq!(rig.in_use(), 0);
}

#[test]
fn a_buffer_that_the_device_reaches_is_mapped_where_it_is() {
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    let buffer = rig.buffer(1, 6000);
    buffer.fill(7);
    let before = rig.in_use();
    let mut mapping = dma.map_both(&DmaDevice::with_bits(32), &mut buffer[100..5000], Gfp::ATOMIC).unwrap();
    assert!(!mapping.is_bounced() && rig.in_use() == before);
    assert_eq!((mapping.bus_address() % PAGE_SIZE as u64, mapping.len()), (100, 4900));
    assert_eq!(mapping.for_cpu()[4899], 7);
    let back = mapping.unmap();
    back[0] = 1;
    let log = rig.bus.log.lock().unwrap();
    assert_eq!(log[..], [("device", 4900), ("cpu", 4900), ("device", 4900), ("cpu", 4900)]);
}

#[test]
fn a_buffer_that_the_device_does_not_reach_is_copied() {
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    let card = DmaDevice::with_bits(32);
    let mut anywhere = vec![5_u8; 5000];
    let distant = rig.buffer(2, 3000);
    let before = rig.in_use();
    // Beyond the mask, or not in the direct map at all.
    for buffer in [&mut anywhere[..], distant] {
        buffer.fill(5);
        let len = buffer.len();
        let mut mapping = dma.map_from_device(&card, buffer, Gfp::ATOMIC).unwrap();
        assert!(mapping.is_bounced() && mapping.bus_address() < 1 << 32);
        assert_eq!(rig.in_use(), before + len.div_ceil(PAGE_SIZE));
        let device = rig.device(mapping.bus_address());
        // The device writes less than it was given.
        // SAFETY: the bounce buffer.
        unsafe { device.write_bytes(9, 10) };
        assert_eq!(mapping.for_cpu()[..11], [9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 5]);
        // SAFETY: the bounce buffer.
        unsafe { device.add(10).write_bytes(8, 1) };
        let back = mapping.unmap();
        assert_eq!(back[9..12], [9, 8, 5], "the rest is as it was");
        assert_eq!(rig.in_use(), before);
    }
    let sent = dma.map_to_device(&card, &anywhere, Gfp::ATOMIC).unwrap();
    // SAFETY: the bounce buffer.
    unsafe {
        assert_eq!(rig.device(sent.bus_address()).add(11).read(), 5);
        rig.device(sent.bus_address()).write_bytes(0, 100);
    }
    assert_eq!(anywhere[0], 9, "may be read meanwhile");
    drop(sent);
    assert_eq!(anywhere[0], 9, "a device that only reads does not change it");
    // Across a boundary that the device cannot cross.
    let near = rig.buffer(1, 2 * PAGE_SIZE);
    let narrow = DmaDevice::with_bits(32).boundary(PAGE_SIZE as u64);
    let across = dma.map_to_device(&narrow, &near[4000..4200], Gfp::ATOMIC).unwrap();
    assert!(across.is_bounced());
    assert!(!dma.map_to_device(&narrow, &near[3000..4096], Gfp::ATOMIC).unwrap().is_bounced());
    assert!(dma.map_to_device(&narrow, near, Gfp::ATOMIC).is_err(), "longer than a boundary allows");
}

#[test]
fn whichever_request_fails_nothing_is_lost() {
    for fail_at in 1..4 {
        let rig = Rig::new();
        let dma = Dma::new(&rig);
        rig.pages.fail_at.store(fail_at, Ordering::Relaxed);
        let device = DmaDevice::with_bits(24);
        let mut bytes = [0; 100];
        let coherent = dma.alloc_coherent(&device, 9000, Gfp::KERNEL).map(drop);
        let mapped = dma.map_from_device(&device, &mut bytes, Gfp::ATOMIC).map(drop);
        for result in [coherent, mapped] {
            assert!(matches!(result, Ok(()) | Err(DmaError::Alloc(AllocError::NoMemory { .. }))), "{result:?}");
        }
        assert_eq!(rig.in_use(), 0);
    }
}

impl Rig {
    /// What a device sees at a bus address.
    fn device(&self, bus: u64) -> NonNull<u8> {
        use kmem_gfp::{FrameTable, Pfn};
        let page = self.frames.address_of(Pfn::containing(bus)).unwrap();
        // SAFETY: inside of the page.
        unsafe { page.add(bus as usize % PAGE_SIZE) }
    }
}
