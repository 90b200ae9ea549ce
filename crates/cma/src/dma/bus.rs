//! The way from memory to devices, supplied by the platform.

use core::ptr::NonNull;

use kmem_gfp::PfnRange;

/// Who writes and who reads a mapped buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DmaDirection {
    /// The device reads.
    ToDevice,
    /// The device writes.
    FromDevice,
    /// The device does both.
    Both,
}

impl DmaDirection {
    /// Whether the device writes.
    pub const fn device_writes(self) -> bool {
        !matches!(self, Self::ToDevice)
    }
}

/// What a machine's bus does to addresses, and to caches.
///
/// The defaults describe a machine whose devices use physical addresses and see what CPUs see.
///
/// # Safety
/// 1. [`to_bus`](Self::to_bus) gives the address at which devices find the physical address, for as long as a device may use it;
///    [`to_physical`](Self::to_physical) inverts it; addresses next to one another stay so within a block of the page allocator or of an area.
/// 2. [`map_coherent`](Self::map_coherent) gives an address at which the frames are mapped one after the other, writable, and at
///    which devices and CPUs see one another's writes.
pub unsafe trait DmaBus: Sync {
    /// The device's address of a physical address; `None` if no device sees it.
    fn to_bus(&self, physical: u64) -> Option<u64> {
        Some(physical)
    }

    /// The physical address that devices find at `bus`: what [`to_bus`](Self::to_bus) was given. A platform that changes the one
    /// changes the other.
    fn to_physical(&self, bus: u64) -> Option<u64> {
        Some(bus)
    }

    /// A coherent mapping of frames that the direct map has at `direct`; `None` if there is none to be had. Machines whose devices
    /// do not look into caches map the frames uncached.
    ///
    /// # Safety
    /// The caller owns the frames and uses them through the result alone.
    unsafe fn map_coherent(&self, frames: PfnRange, direct: NonNull<u8>) -> Option<NonNull<u8>> {
        let _ = frames;
        Some(direct)
    }

    /// Ends what [`map_coherent`](Self::map_coherent) made.
    ///
    /// # Safety
    /// `address` is what it gave for `frames`, and nobody uses it any more.
    unsafe fn unmap_coherent(&self, frames: PfnRange, address: NonNull<u8>) {
        let _ = (frames, address);
    }

    /// Before the device uses `len` bytes: writes caches back. Any context.
    fn sync_for_device(&self, address: NonNull<u8>, len: usize, direction: DmaDirection) {
        let _ = (address, len, direction);
    }

    /// Before the CPU uses `len` bytes that the device had: drops what caches hold of them. Any context.
    fn sync_for_cpu(&self, address: NonNull<u8>, len: usize, direction: DmaDirection) {
        let _ = (address, len, direction);
    }
}

/// A bus that changes nothing: devices use physical addresses and look into caches.
#[derive(Clone, Copy, Debug, Default)]
pub struct PhysicalBus;

// SAFETY: (1) the identity; (2) the direct map.
unsafe impl DmaBus for PhysicalBus {}
