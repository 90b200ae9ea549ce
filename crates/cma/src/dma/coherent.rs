//! [`Dma`]: coherent memory, by hand.

use core::fmt;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, AllocError, ExactPages, FrameTable, Gfp, Order, PAGE_SHIFT, PAGE_SIZE, PfnRange};
use kmem_sync::atomic::AtomicU64;
use kmem_sync::const_fn;

use crate::dma::device::{DmaDevice, DmaError};
use crate::dma::env::{Contiguous, DmaEnv};
use crate::{DmaBuffer, ReleaseError};

/// Devices' memory of a machine. `const`-made; holds nothing but its environment.
pub struct Dma<E> {
    pub(crate) env: E,
    /// Pools made so far.
    pub(crate) pools: AtomicU64,
}

impl<E> fmt::Debug for Dma<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dma").finish_non_exhaustive()
    }
}

/// Coherent memory that is freed by hand: what a C driver keeps as `cpu_addr`, `dma_handle` and `size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coherent {
    /// Where the CPU finds it.
    pub address: NonNull<u8>,
    /// Where the device finds it.
    pub bus: u64,
    /// Its frames: whole pages, of which `len` bytes were asked for.
    pub frames: PfnRange,
    /// Bytes.
    pub len: usize,
}

impl<E> Dma<E> {
    const_fn! {
        /// Devices' memory over `env`.
        pub fn new(env: E) -> Self {
            Self { env, pools: AtomicU64::new(1) }
        }
    }

    /// The environment.
    pub fn env(&self) -> &E {
        &self.env
    }
}

impl<E: DmaEnv> Dma<E> {
    /// Zeroed memory of `len` bytes that `device` reaches and that it and the CPU use at the same time; freed on drop.
    ///
    /// More than a page comes from a contiguous area if the flags allow to sleep and there is one; else from the page allocator,
    /// from the highest zone that may do. Begins at a multiple of a page, and of its size rounded up to a power of two if it is from the
    /// page allocator. Zone bits of `gfp` do not count. Contexts: those that `gfp` allows.
    ///
    /// # Errors
    /// [`DmaError`].
    #[doc(alias("dma_alloc_coherent", "dma_alloc_attrs"))]
    pub fn alloc_coherent(&self, device: &DmaDevice, len: usize, gfp: Gfp) -> Result<DmaBuffer<'_, E>, DmaError> {
        let block = self.alloc_coherent_raw(device, len, gfp)?;
        // SAFETY: just handed out to us.
        Ok(unsafe { DmaBuffer::from_raw(self, block) })
    }

    /// As [`alloc_coherent`](Self::alloc_coherent), to be [freed](Self::free_coherent_raw) by hand.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn alloc_coherent_raw(&self, device: &DmaDevice, len: usize, gfp: Gfp) -> Result<Coherent, DmaError> {
        let (frames, bus) = self.take_frames(device, len, gfp)?;
        let mapped = self.env.frames().address_of(frames.start).and_then(|direct| {
            // SAFETY: ours, and not used otherwise.
            unsafe { self.env.bus().map_coherent(frames, direct) }
        });
        match mapped {
            Some(address) => Ok(Coherent { address, bus, frames, len }),
            None => {
                // SAFETY: taken above, and nobody has seen them.
                let given = unsafe { self.give_frames(frames) };
                debug_assert!(given.is_ok(), "{given:?}");
                Err(DmaError::NotMapped)
            }
        }
    }

    /// Takes back what [`alloc_coherent_raw`](Self::alloc_coherent_raw) gave. Contexts: those of the page allocator's
    /// [`free_range`](ExactPages::free_range) and of [`CmaArea::release`](crate::CmaArea::release).
    ///
    /// # Errors
    /// [`DmaError`]; nothing has changed.
    ///
    /// # Safety
    /// The caller owns the memory; neither the CPU nor the device uses it any more.
    #[doc(alias("dma_free_coherent", "dma_free_attrs"))]
    pub unsafe fn free_coherent_raw(&self, block: Coherent) -> Result<(), DmaError> {
        // SAFETY: the caller's promise.
        unsafe {
            self.env.bus().unmap_coherent(block.frames, block.address);
            self.give_frames(block.frames)
        }
    }

    /// The bus address of frames that `device` can use for `len` bytes.
    fn suits(&self, device: &DmaDevice, frames: PfnRange, len: usize) -> Result<u64, DmaError> {
        let unreachable = DmaError::Unreachable { mask: device.mask() };
        let physical = frames.start.address().ok_or(unreachable)?;
        let bus = self.env.bus().to_bus(physical).ok_or(unreachable)?;
        device.fits(bus, len)?;
        Ok(bus)
    }

    /// Zeroed frames for `len` bytes, and where the device finds them.
    pub(crate) fn take_frames(&self, device: &DmaDevice, len: usize, gfp: Gfp) -> Result<(PfnRange, u64), DmaError> {
        device.admits(len)?;
        let nr_pages = len.div_ceil(PAGE_SIZE);
        let align_order = device.align_bytes().max(1).ilog2().saturating_sub(PAGE_SHIFT);
        let may_sleep = gfp.allows_blocking() && self.env.context().task_flags().may_sleep();
        if nr_pages > 1 && may_sleep {
            // A buffer that must not cross a boundary is aligned to its size; another one is so up to 1 MiB.
            let natural = nr_pages.checked_next_power_of_two().map_or(0, usize::ilog2);
            let natural = if device.has_boundary() { natural } else { natural.min(8) };
            let taken = self.env.contiguous().take(nr_pages as u64, align_order.max(natural));
            if let Some(frames) = taken {
                match self.suits(device, frames, len) {
                    Ok(bus) => {
                        // SAFETY: just taken.
                        unsafe { self.env.zero_frames(frames) };
                        return Ok((frames, bus));
                    }
                    Err(_) => {
                        // SAFETY: just taken, and nobody has seen them.
                        let given = unsafe { self.env.contiguous().give(frames) };
                        debug_assert!(given.is_ok(), "{given:?}");
                    }
                }
            }
        }
        let plain = gfp.difference(Gfp::DMA | Gfp::DMA32 | Gfp::HIGHMEM | Gfp::MOVABLE | Gfp::COMP) | Gfp::ZERO;
        let mut failed = DmaError::Unreachable { mask: device.mask() };
        for (zone, most) in [(Gfp::empty(), u64::MAX), (Gfp::DMA32, (1 << 33) - 1), (Gfp::DMA, (1 << 32) - 1)] {
            // A zone far above the device's reach is not worth a try, nor one far below.
            let worth = match zone {
                Gfp::DMA32 => device.mask() >= (1 << 24) && device.mask() <= most,
                Gfp::DMA => device.mask() <= most,
                _ => device.mask() >= (1 << 32),
            };
            if !worth {
                continue;
            }
            match self.pages_for(plain | zone, nr_pages, align_order) {
                Ok(frames) => match self.suits(device, frames, len) {
                    Ok(bus) => return Ok((frames, bus)),
                    Err(error) => {
                        failed = error;
                        // SAFETY: just taken, and nobody has seen them.
                        let freed = unsafe { self.env.pages().free_range(frames) };
                        debug_assert!(freed.is_ok(), "{freed:?}");
                    }
                },
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }

    /// Frames of the page allocator, aligned.
    fn pages_for(&self, gfp: Gfp, nr_pages: usize, align_order: u32) -> Result<PfnRange, AllocError> {
        let pages = self.env.pages();
        let align = 1_usize.checked_shl(align_order).filter(|_| align_order <= Order::MAX.get());
        let align = align.ok_or(AllocError::BadAlign(PAGE_SIZE))?;
        let all = pages.alloc_pages_exact(gfp, nr_pages.max(align), None)?;
        let Some(needed) = PfnRange::with_len(all.start, nr_pages as u64) else { return Ok(all) };
        let rest = PfnRange::new(needed.end, all.end);
        if !rest.is_empty() {
            // SAFETY: just taken, and nobody has seen them.
            let freed = unsafe { pages.free_range(rest) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
        Ok(needed)
    }

    /// Gives frames back to wherever they are from.
    ///
    /// # Safety
    /// The caller owns them and nobody uses them any more.
    pub(crate) unsafe fn give_frames(&self, frames: PfnRange) -> Result<(), DmaError> {
        // SAFETY: the caller's promise.
        match unsafe { self.env.contiguous().give(frames) } {
            Ok(()) => Ok(()),
            Err(ReleaseError::Foreign(_)) => {
                // SAFETY: the caller's promise.
                unsafe { self.env.pages().free_range(frames) }.map_err(DmaError::Free)
            }
            Err(error) => Err(DmaError::Release(error)),
        }
    }
}
