//! [`VirtioHal`]: `Hal` of virtio-drivers 0.13 over a [`Dma`].

use core::convert::Infallible;
use core::marker::PhantomData;
use core::ptr::NonNull;

use kmem_gfp::{Gfp, PAGE_SIZE, Pfn, PfnRange};
use virtio_drivers_013::{BufferDirection, Hal, PhysAddr};

use crate::{Coherent, Dma, DmaDevice, DmaDirection, DmaEnv, RawMapping};

/// Where the static functions of [`Hal`] find a machine: usually a type of no size beside the kernel's statics.
///
/// # Safety
/// [`mmio`](Self::mmio) gives a valid mapping of the registers, used by nobody else.
pub unsafe trait DmaHolder: 'static {
    /// The environment of the machine's [`Dma`].
    type Env: DmaEnv + 'static;

    /// Devices' memory of the machine.
    fn dma() -> &'static Dma<Self::Env>;

    /// What the device reaches; by default everything, as a virtio device does. Limits are for devices behind an odd bus.
    fn device() -> DmaDevice {
        DmaDevice::with_bits(64)
    }

    /// The flags that memory is allocated with.
    fn gfp() -> Gfp {
        Gfp::KERNEL
    }

    /// Maps registers of a device.
    ///
    /// # Safety
    /// The addresses are those of a device's registers.
    unsafe fn mmio(physical: u64, len: usize) -> NonNull<u8>;
}

/// The `Hal` of a machine: `VirtIOBlk::<VirtioHal<Machine>, _>::new(transport)`.
///
/// Queues are coherent memory, zeroed, of any number of pages, and never at bus address 0, which `Hal` takes for a failure. Buffers are
/// mapped where they are if the device reaches them, and otherwise copied.
#[derive(Debug)]
pub struct VirtioHal<H>(PhantomData<H>, Infallible);

const fn direction(direction: BufferDirection) -> DmaDirection {
    match direction {
        BufferDirection::DriverToDevice => DmaDirection::ToDevice,
        BufferDirection::DeviceToDriver => DmaDirection::FromDevice,
        BufferDirection::Both => DmaDirection::Both,
    }
}

/// Coherent memory for so many pages that does not begin at bus address 0.
fn take<H: DmaHolder>(pages: usize) -> Option<Coherent> {
    let dma = H::dma();
    let alloc = || dma.alloc_coherent_raw(&H::device(), pages.checked_mul(PAGE_SIZE)?, H::gfp()).ok();
    let first = alloc()?;
    if first.bus != 0 {
        return Some(first);
    }
    // There is one such block; while it is held no other can begin there.
    let second = alloc();
    // SAFETY: allocated above, and nobody has seen it.
    let freed = unsafe { dma.free_coherent_raw(first) };
    debug_assert!(freed.is_ok(), "{freed:?}");
    second
}

// SAFETY: coherent memory is zeroed, page-aligned and belongs to the driver until given back; registers are mapped as the holder
// promises; a shared buffer is the driver's own or a copy of it.
unsafe impl<H: DmaHolder> Hal for VirtioHal<H> {
    fn dma_alloc(pages: usize, _direction: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        take::<H>(pages).map_or((0, NonNull::dangling()), |block| (block.bus, block.address))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, vaddr: NonNull<u8>, pages: usize) -> i32 {
        let dma = H::dma();
        let Some(frames) = dma.frames_of(paddr, pages) else { return -1 };
        let block = Coherent { address: vaddr, bus: paddr, frames, len: pages.saturating_mul(PAGE_SIZE) };
        // SAFETY: given by `dma_alloc`, and the driver is done with it.
        if unsafe { dma.free_coherent_raw(block) }.is_ok() { 0 } else { -1 }
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, size: usize) -> NonNull<u8> {
        // SAFETY: the caller's promise is the same.
        unsafe { H::mmio(paddr, size) }
    }

    unsafe fn share(buffer: NonNull<[u8]>, to: BufferDirection) -> PhysAddr {
        let dma = H::dma();
        // SAFETY: valid and used by nobody else until it is unshared, by the caller's promise.
        match unsafe { dma.map_raw(&H::device(), buffer, direction(to), H::gfp()) } {
            Ok(mapping) => mapping.bus,
            // PANIC: `Hal::share` has no way to refuse, and any address would send the device somewhere.
            Err(error) => panic!("a buffer of {} bytes cannot be shared: {error}", buffer.len()),
        }
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, to: BufferDirection) {
        let dma = H::dma();
        // The device reaches a buffer or not; that has not changed since it was shared.
        let bounce = match dma.reaches(&H::device(), buffer) {
            Some(_) => None,
            None => dma.frames_of(paddr, buffer.len().div_ceil(PAGE_SIZE)),
        };
        let mapping = RawMapping { buffer, bus: paddr, direction: direction(to), bounce };
        // SAFETY: shared before, and the device is done with it.
        let ended = unsafe { dma.unmap_raw(mapping) };
        debug_assert!(ended.is_ok(), "{ended:?}");
    }
}

impl<E: DmaEnv> Dma<E> {
    /// The frames behind a bus address of ours.
    fn frames_of(&self, bus: u64, nr_pages: usize) -> Option<PfnRange> {
        let physical = self.env.bus().to_physical(bus)?;
        PfnRange::with_len(Pfn::containing(physical), nr_pages as u64)
    }
}
