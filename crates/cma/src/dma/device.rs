//! What a device can do with addresses, and why it gets no memory.

use kmem_gfp::{AllocError, FreeError};

use crate::ReleaseError;

/// A device's limits.
///
/// ```
/// use kmem_cma::DmaDevice;
///
/// let card = DmaDevice::with_bits(32).boundary(64 << 10).max_segment(1 << 20);
/// assert!(card.fits(0xffff_0000, 0x1_0000).is_ok());
/// assert!(card.fits(0xffff_f000, 0x2000).is_err(), "beyond 4 GiB");
/// assert!(card.fits(0x1_8000, 0x1_0000).is_err(), "across a multiple of 64 KiB");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaDevice {
    mask: u64,
    boundary: u64,
    max_segment_bytes: usize,
    align_bytes: u64,
}

impl DmaDevice {
    /// A device with `bits` address bits and no other limit; 64 or more: any address.
    #[doc(alias = "DMA_BIT_MASK")]
    pub const fn with_bits(bits: u32) -> Self {
        Self::with_mask(if bits >= 64 { u64::MAX } else { (1 << bits) - 1 })
    }

    /// A device that reaches bus addresses up to `mask`.
    #[doc(alias("dma_set_mask", "dma_set_coherent_mask"))]
    pub const fn with_mask(mask: u64) -> Self {
        Self { mask, boundary: 0, max_segment_bytes: usize::MAX, align_bytes: 1 }
    }

    /// No buffer crosses a multiple of `bytes`, a power of two; 0: any may.
    #[doc(alias = "dma_set_seg_boundary")]
    pub const fn boundary(mut self, bytes: u64) -> Self {
        self.boundary = bytes;
        self
    }

    /// No buffer is longer than `bytes`.
    #[doc(alias = "dma_set_max_seg_size")]
    pub const fn max_segment(mut self, bytes: usize) -> Self {
        self.max_segment_bytes = bytes;
        self
    }

    /// Buffers begin at multiples of `bytes`, a power of two.
    #[doc(alias = "dma_set_min_align_mask")]
    pub const fn align(mut self, bytes: u64) -> Self {
        self.align_bytes = bytes;
        self
    }

    pub(crate) const fn has_boundary(&self) -> bool {
        self.boundary != 0
    }

    /// The highest bus address that it reaches.
    pub const fn mask(&self) -> u64 {
        self.mask
    }

    /// What buffers begin at multiples of, in bytes.
    pub const fn align_bytes(&self) -> u64 {
        self.align_bytes
    }

    /// Whether limits make sense and some buffer of `len` bytes fits them.
    ///
    /// # Errors
    /// What is wrong.
    pub fn admits(&self, len: usize) -> Result<(), DmaError> {
        if len == 0 {
            return Err(DmaError::Empty);
        }
        if !self.align_bytes.is_power_of_two() {
            return Err(DmaError::BadLimit(self.align_bytes));
        }
        if self.boundary != 0 && !self.boundary.is_power_of_two() {
            return Err(DmaError::BadLimit(self.boundary));
        }
        if len > self.max_segment_bytes || (self.boundary != 0 && len as u64 > self.boundary) {
            let boundary = if self.boundary == 0 { usize::MAX } else { self.boundary as usize };
            return Err(DmaError::TooLong { len, max: self.max_segment_bytes.min(boundary) });
        }
        Ok(())
    }

    /// Whether the device can use `len` bytes at a bus address.
    ///
    /// # Errors
    /// What is wrong.
    pub fn fits(&self, bus: u64, len: usize) -> Result<(), DmaError> {
        self.admits(len)?;
        let unreachable = DmaError::Unreachable { mask: self.mask };
        let last = bus.checked_add(len as u64 - 1).filter(|&last| last <= self.mask).ok_or(unreachable)?;
        if !bus.is_multiple_of(self.align_bytes) || (self.boundary != 0 && bus / self.boundary != last / self.boundary)
        {
            return Err(unreachable);
        }
        Ok(())
    }
}

/// Why a device got no memory, or it was not taken back. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// No bytes.
    #[error("a buffer needs at least one byte")]
    Empty,
    /// An alignment or a boundary that is no power of two.
    #[error("{0} is not a power of two")]
    BadLimit(u64),
    /// Longer than the device takes in one piece.
    #[error("{len} bytes are more than the {max} that the device takes in one piece")]
    TooLong {
        /// Bytes asked for.
        len: usize,
        /// The most that it takes.
        max: usize,
    },
    /// There is memory, but not where the device reaches it, or not within its alignment and boundary.
    #[error("no memory that a device with mask {mask:#x} can use")]
    Unreachable {
        /// The device's mask.
        mask: u64,
    },
    /// There is no mapping through which the CPU and the device see one another's writes.
    #[error("the frames cannot be mapped for the CPU")]
    NotMapped,
    /// No memory.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The page allocator did not take frames back.
    #[error(transparent)]
    Free(#[from] FreeError),
    /// The area did not take frames back.
    #[error(transparent)]
    Release(ReleaseError),
}
