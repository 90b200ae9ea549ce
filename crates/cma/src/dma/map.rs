//! Streaming maps: a buffer of the caller's that a device has for a while.
//!
//! ```text
//!             the CPU's                          the device's
//! &[u8]      ── map_to_device ──▶   DmaMapping ── unmap, drop ──▶  &[u8]      may be read all the while
//! &mut [u8]  ── map_from_device ─▶  DmaMapping ── unmap ────────▶  &mut [u8]  cannot be touched in between
//!                                       │ ▲
//!                                 for_cpu │ drop of the view
//!                                       ▼ │
//!                                      &[u8]
//! ```
//! A buffer that the device cannot use where it is (beyond its mask, across its boundary, not in the direct map) is copied to
//! one that it can: a bounce buffer, copied back when the device has written.

use core::fmt;
use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use kmem_gfp::{FrameTable, Gfp, PAGE_SIZE, PfnRange};

use crate::{Dma, DmaDevice, DmaDirection, DmaEnv, DmaError};

/// A streaming map that is ended by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawMapping {
    /// The caller's buffer.
    pub buffer: NonNull<[u8]>,
    /// Where the device finds it, or its copy.
    pub bus: u64,
    /// Who writes.
    pub direction: DmaDirection,
    /// The copy's frames, if the device cannot use the buffer itself.
    pub bounce: Option<PfnRange>,
}

impl<E: DmaEnv> Dma<E> {
    /// Where `device` finds a buffer; `None` if it cannot use it where it is.
    pub fn reaches(&self, device: &DmaDevice, buffer: NonNull<[u8]>) -> Option<u64> {
        let start = buffer.cast::<u8>().addr().get();
        let last = start.checked_add(buffer.len().checked_sub(1)?)?;
        let frames = self.env.frames();
        let (first_frame, last_frame) = (frames.frame_of(start)?, frames.frame_of(last)?);
        // Neighbours in the direct map that are neighbours in memory as well.
        if last_frame.checked_sub(first_frame)? != (last / PAGE_SIZE - start / PAGE_SIZE) as u64 {
            return None;
        }
        let physical = first_frame.address()?.checked_add((start % PAGE_SIZE) as u64)?;
        let bus = self.env.bus().to_bus(physical)?;
        device.fits(bus, buffer.len()).ok()?;
        Some(bus)
    }

    /// Hands `buffer` to the device until [`unmap_raw`](Self::unmap_raw). Contexts: those that `gfp` allows, with which a bounce
    /// buffer is allocated if need be.
    ///
    /// # Errors
    /// [`DmaError`], if there is no memory for a bounce buffer, or the device takes no buffer of this length.
    ///
    /// # Safety
    /// The buffer stays valid until it is unmapped. If the device writes, nobody else accesses it until then; else nobody
    /// writes it.
    #[doc(alias = "dma_map_single")]
    pub unsafe fn map_raw(
        &self,
        device: &DmaDevice,
        buffer: NonNull<[u8]>,
        direction: DmaDirection,
        gfp: Gfp,
    ) -> Result<RawMapping, DmaError> {
        device.admits(buffer.len())?;
        if let Some(bus) = self.reaches(device, buffer) {
            self.env.bus().sync_for_device(buffer.cast(), buffer.len(), direction);
            return Ok(RawMapping { buffer, bus, direction, bounce: None });
        }
        let (frames, bus) = self.take_frames(device, buffer.len(), gfp)?;
        let mapping = RawMapping { buffer, bus, direction, bounce: Some(frames) };
        let Some(copy) = self.env.frames().address_of(frames.start) else {
            // SAFETY: taken above, and nobody has seen them.
            let given = unsafe { self.give_frames(frames) };
            debug_assert!(given.is_ok(), "{given:?}");
            return Err(DmaError::NotMapped);
        };
        // Also if the device only writes: it may write less than it was given.
        // SAFETY: as many bytes, ours, and the buffer may be read (the caller's promise).
        unsafe { copy.copy_from_nonoverlapping(buffer.cast(), buffer.len()) };
        self.env.bus().sync_for_device(copy, buffer.len(), direction);
        Ok(mapping)
    }

    /// Makes what the device wrote visible in the buffer. Any context.
    ///
    /// # Safety
    /// The map is live and the device does not use it at the moment.
    #[doc(alias = "dma_sync_single_for_cpu")]
    pub unsafe fn sync_for_cpu(&self, mapping: &RawMapping) {
        let (buffer, len) = (mapping.buffer.cast::<u8>(), mapping.buffer.len());
        match self.copy_of(mapping) {
            None => self.env.bus().sync_for_cpu(buffer, len, mapping.direction),
            Some(copy) => {
                self.env.bus().sync_for_cpu(copy, len, mapping.direction);
                if mapping.direction.device_writes() {
                    // SAFETY: as many bytes; nobody else accesses either (the caller's promise).
                    unsafe { buffer.copy_from_nonoverlapping(copy, len) };
                }
            }
        }
    }

    /// Makes what the CPU wrote into the buffer visible to the device. Any context.
    ///
    /// # Safety
    /// As for [`sync_for_cpu`](Self::sync_for_cpu).
    #[doc(alias = "dma_sync_single_for_device")]
    pub unsafe fn sync_for_device(&self, mapping: &RawMapping) {
        let (buffer, len) = (mapping.buffer.cast::<u8>(), mapping.buffer.len());
        let seen = match self.copy_of(mapping) {
            None => buffer,
            Some(copy) => {
                // SAFETY: as many bytes; nobody else accesses either (the caller's promise).
                unsafe { copy.copy_from_nonoverlapping(buffer, len) };
                copy
            }
        };
        self.env.bus().sync_for_device(seen, len, mapping.direction);
    }

    /// Ends a map: the buffer is the caller's again, with what the device wrote. Contexts: as for freeing coherent memory.
    ///
    /// # Errors
    /// [`DmaError`] if the bounce buffer was not taken back; the map has ended nevertheless.
    ///
    /// # Safety
    /// The map is live, is not used again, and the device is done with it.
    #[doc(alias = "dma_unmap_single")]
    pub unsafe fn unmap_raw(&self, mapping: RawMapping) -> Result<(), DmaError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.sync_for_cpu(&mapping);
            mapping.bounce.map_or(Ok(()), |frames| self.give_frames(frames))
        }
    }

    fn copy_of(&self, mapping: &RawMapping) -> Option<NonNull<u8>> {
        self.env.frames().address_of(mapping.bounce?.start)
    }

    /// Lets `device` read `buffer`, which nobody writes as long as the map lives.
    ///
    /// ```compile_fail,E0506
    /// # use kmem_cma::{Dma, DmaDevice, DmaEnv};
    /// # use kmem_gfp::Gfp;
    /// fn send<E: DmaEnv>(dma: &Dma<E>, card: &DmaDevice) {
    ///     let mut packet = [1_u8; 64];
    ///     let mapping = dma.map_to_device(card, &packet, Gfp::KERNEL).unwrap();
    ///     packet[0] = 2; // the card may be reading it
    ///     drop(mapping);
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of [`map_raw`](Self::map_raw).
    pub fn map_to_device<'b>(
        &self,
        device: &DmaDevice,
        buffer: &'b [u8],
        gfp: Gfp,
    ) -> Result<DmaMapping<'_, E, &'b [u8]>, DmaError> {
        // SAFETY: borrowed for as long as the map lives, so that nobody writes it.
        let raw = unsafe { self.map_raw(device, NonNull::from(buffer), DmaDirection::ToDevice, gfp)? };
        // INVARIANT: just made.
        Ok(DmaMapping { dma: self, raw, buffer: PhantomData })
    }

    /// Lets `device` write `buffer`, which nobody touches as long as the map lives.
    ///
    /// ```compile_fail,E0502
    /// # use kmem_cma::{Dma, DmaDevice, DmaEnv};
    /// # use kmem_gfp::Gfp;
    /// fn receive<E: DmaEnv>(dma: &Dma<E>, card: &DmaDevice) -> u8 {
    ///     let mut packet = [0_u8; 64];
    ///     let mapping = dma.map_from_device(card, &mut packet, Gfp::KERNEL).unwrap();
    ///     let early = packet[0]; // the card may be writing it
    ///     drop(mapping);
    ///     early
    /// }
    /// ```
    ///
    /// # Errors
    /// Those of [`map_raw`](Self::map_raw).
    pub fn map_from_device<'b>(
        &self,
        device: &DmaDevice,
        buffer: &'b mut [u8],
        gfp: Gfp,
    ) -> Result<DmaMapping<'_, E, &'b mut [u8]>, DmaError> {
        self.map_mut(device, buffer, DmaDirection::FromDevice, gfp)
    }

    /// Lets `device` read and write `buffer`, which nobody touches as long as the map lives.
    ///
    /// # Errors
    /// Those of [`map_raw`](Self::map_raw).
    pub fn map_both<'b>(
        &self,
        device: &DmaDevice,
        buffer: &'b mut [u8],
        gfp: Gfp,
    ) -> Result<DmaMapping<'_, E, &'b mut [u8]>, DmaError> {
        self.map_mut(device, buffer, DmaDirection::Both, gfp)
    }

    fn map_mut<'b>(
        &self,
        device: &DmaDevice,
        buffer: &'b mut [u8],
        direction: DmaDirection,
        gfp: Gfp,
    ) -> Result<DmaMapping<'_, E, &'b mut [u8]>, DmaError> {
        // SAFETY: borrowed for as long as the map lives, so that nobody else accesses it.
        let raw = unsafe { self.map_raw(device, NonNull::from(buffer), direction, gfp)? };
        // INVARIANT: just made.
        Ok(DmaMapping { dma: self, raw, buffer: PhantomData })
    }
}

/// A buffer that a device has; the caller's again on drop.
///
/// Telling the device the address is what makes a map dangerous: whoever does sees to it that the device is done before the
/// map ends, and that a map that the device uses is never forgotten.
///
/// # Invariants
/// `raw` is a live map of `dma`, of a buffer borrowed as `B`.
#[must_use = "dropping a `DmaMapping` ends it"]
pub struct DmaMapping<'d, E: DmaEnv, B> {
    dma: &'d Dma<E>,
    raw: RawMapping,
    buffer: PhantomData<B>,
}

// SAFETY: the buffer is bytes, tied to no thread; shared access tells addresses.
unsafe impl<E: DmaEnv + Sync, B: Send> Send for DmaMapping<'_, E, B> {}
// SAFETY: as above.
unsafe impl<E: DmaEnv + Sync, B: Sync> Sync for DmaMapping<'_, E, B> {}

impl<E: DmaEnv, B> fmt::Debug for DmaMapping<'_, E, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(f)
    }
}

impl<E: DmaEnv, B> DmaMapping<'_, E, B> {
    /// Where the device finds the buffer, or its copy.
    pub fn bus_address(&self) -> u64 {
        self.raw.bus
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.raw.buffer.len()
    }

    /// Never: a map of no bytes is refused.
    pub fn is_empty(&self) -> bool {
        self.raw.buffer.is_empty()
    }

    /// Whether the device has a copy.
    pub fn is_bounced(&self) -> bool {
        self.raw.bounce.is_some()
    }

    /// What is in the buffer, while the device does not use it: it has said that it is done with this turn. The device may have
    /// it again once the view is dropped.
    pub fn for_cpu(&mut self) -> CpuView<'_, E> {
        // SAFETY: live (type invariant).
        unsafe { self.dma.sync_for_cpu(&self.raw) };
        CpuView { dma: self.dma, raw: &self.raw }
    }

    fn end(&mut self) {
        // SAFETY: live (type invariant), and nobody uses it again.
        let ended = unsafe { self.dma.unmap_raw(self.raw) };
        debug_assert!(ended.is_ok(), "{ended:?}");
    }
}

impl<'b, E: DmaEnv> DmaMapping<'_, E, &'b mut [u8]> {
    /// Ends the map; the buffer has what the device wrote.
    pub fn unmap(self) -> &'b mut [u8] {
        let mut this = ManuallyDrop::new(self);
        this.end();
        // SAFETY: borrowed exclusively for `'b`, and the map has ended.
        unsafe { &mut *this.raw.buffer.as_ptr() }
    }
}

impl<E: DmaEnv, B> Drop for DmaMapping<'_, E, B> {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the device has written so far: see [`DmaMapping::for_cpu`].
#[derive(Debug)]
pub struct CpuView<'m, E: DmaEnv> {
    dma: &'m Dma<E>,
    raw: &'m RawMapping,
}

impl<E: DmaEnv> Deref for CpuView<'_, E> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a buffer that the map borrows; the device does not use it while the view lives.
        unsafe { self.raw.buffer.as_ref() }
    }
}

impl<E: DmaEnv> Drop for CpuView<'_, E> {
    fn drop(&mut self) {
        // The buffer has not changed, and a bounce buffer has what it has: only caches are to be seen to.
        let seen = self.dma.copy_of(self.raw).unwrap_or(self.raw.buffer.cast());
        self.dma.env.bus().sync_for_device(seen, self.raw.buffer.len(), self.raw.direction);
    }
}
