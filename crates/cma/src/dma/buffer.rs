//! [`DmaBuffer`]: owned coherent memory.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use crate::{Coherent, Dma, DmaEnv};

/// Coherent memory, freed on drop.
///
/// The device may write at any time, so there are no references to its bytes: they are read and written one by one, volatile.
/// Telling a device the address is what makes it dangerous: whoever does sees to it that the device is done before the
/// buffer goes.
///
/// # Invariants
/// `block` was handed out by `dma` and belongs to this value alone.
#[must_use = "dropping a `DmaBuffer` frees the memory"]
pub struct DmaBuffer<'a, E: DmaEnv> {
    dma: &'a Dma<E>,
    block: Coherent,
}

// SAFETY: the memory is tied to no thread, and shared access only reads.
unsafe impl<E: DmaEnv + Sync> Send for DmaBuffer<'_, E> {}
// SAFETY: as above.
unsafe impl<E: DmaEnv + Sync> Sync for DmaBuffer<'_, E> {}

impl<E: DmaEnv> fmt::Debug for DmaBuffer<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.block.fmt(f)
    }
}

impl<'a, E: DmaEnv> DmaBuffer<'a, E> {
    /// Where the device finds it.
    pub fn bus_address(&self) -> u64 {
        self.block.bus
    }

    /// Where the CPU finds it.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.block.address
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.block.len
    }

    /// Never: there is no buffer of no bytes.
    pub fn is_empty(&self) -> bool {
        self.block.len == 0
    }

    /// Copies bytes from `offset` on out of the buffer; `false` if they are not all inside, and then none.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        let inside = offset.checked_add(to.len()).is_some_and(|end| end <= self.block.len);
        if inside {
            for (nth, byte) in to.iter_mut().enumerate() {
                // SAFETY: inside of memory of ours; the device may write it, so volatile.
                *byte = unsafe { self.block.address.add(offset + nth).read_volatile() };
            }
        }
        inside
    }

    /// Copies bytes into the buffer from `offset` on; `false` if they do not fit, and then none.
    pub fn write(&mut self, offset: usize, from: &[u8]) -> bool {
        let inside = offset.checked_add(from.len()).is_some_and(|end| end <= self.block.len);
        if inside {
            for (nth, &byte) in from.iter().enumerate() {
                // SAFETY: inside of memory of ours; the device may read it, so volatile.
                unsafe { self.block.address.add(offset + nth).write_volatile(byte) };
            }
        }
        inside
    }

    /// Gives up ownership: the caller frees by hand, or never.
    pub fn into_raw(self) -> Coherent {
        ManuallyDrop::new(self).block
    }

    /// Takes ownership, as [`into_raw`](Self::into_raw) left it.
    ///
    /// # Safety
    /// `dma` handed out `block`, and the caller owns it.
    pub unsafe fn from_raw(dma: &'a Dma<E>, block: Coherent) -> Self {
        // INVARIANT: the caller's promise.
        Self { dma, block }
    }
}

impl<E: DmaEnv> Drop for DmaBuffer<'_, E> {
    fn drop(&mut self) {
        // SAFETY: ours (type invariant), and we are the last user.
        let freed = unsafe { self.dma.free_coherent_raw(self.block) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}
