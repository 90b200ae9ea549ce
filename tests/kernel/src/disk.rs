//! A virtio disk: the crate `virtio-drivers` as it is, over kmem's adapter. Step 12 of a port.
//!
//! | the driver wants | gets |
//! | --- | --- |
//! | queues that the device sees | frames of the contiguous area `devices`, or else of DMA32, zeroed |
//! | a buffer in the direct map below 4 GiB | its own address |
//! | a buffer in vmalloc's window (a thread's stack), or above 4 GiB | a bounce buffer below 4 GiB |
//! | the device's registers | `ioremap` |

use core::ptr::NonNull;

use kmem::{DmaDevice, DmaSide};
use kmem_cma::Dma;
use kmem_cma::adapter::{DmaHolder, VirtioHal};
use kmem_vmalloc::Prot;
use virtio_drivers::device::blk::VirtIOBlk;
use virtio_drivers::transport::DeviceType;
use virtio_drivers::transport::pci::bus::{Command, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, virtio_device_type};

use crate::pci::Ports;
use crate::platform::{Machine, kmem};
use crate::vm::vmalloc;

/// What the disk reaches: 32 address bits, as an old device would.
pub(crate) const REACH: DmaDevice = DmaDevice::with_bits(32);

/// Where the adapter finds this machine.
#[derive(Debug)]
pub(crate) struct DiskMemory;

// SAFETY: registers are mapped where nothing else is.
unsafe impl DmaHolder for DiskMemory {
    type Env = DmaSide<Machine>;

    fn dma() -> &'static Dma<DmaSide<Machine>> {
        kmem().dma_layer()
    }

    fn device() -> DmaDevice {
        REACH
    }

    unsafe fn mmio(physical: u64, len: usize) -> NonNull<u8> {
        // SAFETY: registers of a device, by the caller's promise.
        unsafe { vmalloc().ioremap(physical, len, Prot::DEVICE) }.expect("addresses for registers")
    }
}

/// Memory for the driver.
type DiskHal = VirtioHal<DiskMemory>;

/// The disk.
pub(crate) type Disk = VirtIOBlk<DiskHal, PciTransport>;

/// The first virtio disk, if there is one.
pub(crate) fn find() -> Option<Disk> {
    let mut root = PciRoot::new(Ports);
    let (function, _) = root.enumerate_bus(0).find(|(_, info)| virtio_device_type(info) == Some(DeviceType::Block))?;
    root.set_command(function, Command::MEMORY_SPACE | Command::BUS_MASTER);
    let transport = PciTransport::new::<DiskHal, _>(&mut root, function).ok()?;
    VirtIOBlk::new(transport).ok()
}
