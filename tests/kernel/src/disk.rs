//! A virtio disk: the crate `virtio-drivers` as it is, over memory from kmem. Step 12 of a port.
//!
//! | the driver wants | gets |
//! | --- | --- |
//! | queues that the device sees | frames below 4 GiB, zeroed |
//! | a buffer in the direct map | its own address |
//! | a buffer in vmalloc's window (a thread's stack), or above 4 GiB | a bounce buffer below 4 GiB |
//! | the device's registers | `ioremap` |

use core::ptr::NonNull;

use kmem_gfp::{Gfp, PAGE_SIZE, Pfn, PfnRange};
use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_vmalloc::Prot;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Command, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::pci::Ports;
use crate::platform::kmem;
use crate::vm::vmalloc;

/// Memory that a device with 32 address bits reaches.
const FOR_DEVICES: Gfp = Gfp::KERNEL.union(Gfp::DMA32).union(Gfp::ZERO);
const REACH: u64 = 4 << 30;

/// Bounce buffers used so far.
pub(crate) static BOUNCES: AtomicU64 = AtomicU64::new(0);

/// The disk.
pub(crate) type Disk = VirtIOBlk<PageDma, PciTransport>;

/// Memory for the driver, from the page allocator.
#[derive(Debug)]
pub(crate) struct PageDma;

fn frames_at(paddr: PhysAddr, bytes: usize) -> PfnRange {
    let first = paddr / PAGE_SIZE as u64;
    PfnRange::new(Pfn(first), Pfn(first + bytes.div_ceil(PAGE_SIZE) as u64))
}

/// Contiguous frames below 4 GiB; zero without memory.
fn take(bytes: usize) -> (PhysAddr, NonNull<u8>) {
    let taken = kmem().alloc_pages_exact(bytes, FOR_DEVICES).ok();
    let found = taken.and_then(|frames| Some((frames.start.address()?, kmem().page_address(frames.start)?)));
    found.unwrap_or((0, NonNull::dangling()))
}

/// Where a device finds a buffer, if it can reach all of it in one piece.
fn reachable(buffer: NonNull<[u8]>) -> Option<PhysAddr> {
    let start = buffer.cast::<u8>().addr().get();
    kmem().virt_to_pfn(buffer.cast::<u8>().as_ptr())?;
    (start as u64 + buffer.len() as u64 <= REACH).then_some(start as u64)
}

// SAFETY: frames belong to the driver until given back, zeroed and contiguous; registers are mapped where nothing else is.
unsafe impl Hal for PageDma {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        take(pages * PAGE_SIZE)
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _vaddr: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: given by `dma_alloc`, and the driver is done with it.
        let freed = unsafe { kmem().free_range(frames_at(paddr, pages * PAGE_SIZE)) };
        i32::from(freed.is_err())
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        // SAFETY: registers of a device, by the caller's promise.
        unsafe { vmalloc().ioremap(paddr, size, Prot::DEVICE) }.expect("addresses for registers")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        if let Some(address) = reachable(buffer) {
            return address;
        }
        BOUNCES.fetch_add(1, Ordering::Relaxed);
        let (address, bounce) = take(buffer.len());
        assert!(address != 0, "memory for a bounce buffer");
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the bounce buffer has as many bytes, and the buffer is the caller's.
            unsafe { bounce.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        }
        address
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if reachable(buffer).is_some() {
            return;
        }
        let frames = frames_at(paddr, buffer.len());
        if let Some(bounce) = kmem().page_address(frames.start)
            && direction != BufferDirection::DriverToDevice
        {
            // SAFETY: the bounce buffer has as many bytes, and the buffer is the caller's.
            unsafe { buffer.cast::<u8>().copy_from_nonoverlapping(bounce, buffer.len()) };
        }
        // SAFETY: taken by `share` for this buffer; the device is done with it.
        let freed = unsafe { kmem().free_range(frames) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}

/// The first virtio disk, if there is one.
pub(crate) fn find() -> Option<Disk> {
    let mut root = PciRoot::new(Ports);
    let (function, _) = root.enumerate_bus(0).find(|(_, info)| virtio_device_type(info) == Some(DeviceType::Block))?;
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
    let transport = PciTransport::new::<PageDma, _>(&mut root, function).ok()?;
    VirtIOBlk::new(transport).ok()
}
