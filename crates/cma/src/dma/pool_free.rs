//! Freeing blocks of a pool, and what can be wrong about it.

use kmem_gfp::PAGE_SHIFT;

use crate::dma::pool::{END, FREED, Inner};
use crate::{DmaEnv, DmaError, DmaPool, PoolBlock};

/// Why a pool gave no block, or took none back. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// No such pool can be: no size, an alignment or a boundary that is no power of two, or a boundary below the size.
    #[error("no pool has blocks of {size} bytes aligned to {align} within {boundary}")]
    BadSpec {
        /// Bytes of a block.
        size: usize,
        /// The alignment.
        align: usize,
        /// The boundary.
        boundary: usize,
    },
    /// No chunk could be had.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// The address is no block of this pool.
    #[error("{physical:#x} is no block of this pool")]
    Foreign {
        /// Its physical address.
        physical: u64,
    },
    /// The block is free already.
    #[error("{physical:#x} is free already")]
    AlreadyFree {
        /// Its physical address.
        physical: u64,
    },
    /// A free block was written, so that the list of free blocks ends nowhere; the pool goes on without those.
    #[error("the free list of the pool led to {physical:#x}")]
    Corrupt {
        /// Where it led.
        physical: u64,
    },
}

impl<E: DmaEnv> DmaPool<'_, E> {
    /// Takes back a block of [`alloc_raw`](Self::alloc_raw). Any context but NMI; some instructions.
    ///
    /// # Errors
    /// [`PoolError::Foreign`], [`PoolError::AlreadyFree`].
    ///
    /// # Safety
    /// The caller owns the block; neither the CPU nor the device uses it any more.
    #[doc(alias = "dma_pool_free")]
    pub unsafe fn free_raw(&self, block: PoolBlock) -> Result<(), PoolError> {
        let physical = block.physical;
        let foreign = PoolError::Foreign { physical };
        let address = self.address_of(physical).filter(|&address| address == block.address).ok_or(foreign)?;
        let nr_frames = (self.shape.chunk as u64).div_ceil(1 << PAGE_SHIFT).next_power_of_two();
        let start = ((physical >> PAGE_SHIFT) / nr_frames * nr_frames) << PAGE_SHIFT;
        if !self.shape.is_block((physical - start) as usize) {
            return Err(foreign);
        }
        let link = address.cast::<u64>();
        self.inner.with(self.dma.env.cpu(), |inner| {
            // SAFETY: a block of this pool, two words at least and aligned to them.
            let marked = unsafe { link.add(1).read_volatile() } == Self::mark(physical);
            if marked && self.is_free(inner, physical) {
                return Err(PoolError::AlreadyFree { physical });
            }
            if self.poison {
                // SAFETY: the caller's, who gives it up.
                unsafe { address.write_bytes(FREED, self.shape.size) };
            }
            // SAFETY: as above.
            unsafe {
                link.write_volatile(inner.free);
                link.add(1).write_volatile(Self::mark(physical));
            }
            inner.free = physical;
            inner.nr_active = inner.nr_active.saturating_sub(1);
            Ok(())
        })
    }

    /// Whether a block is on the list of free ones.
    fn is_free(&self, inner: &Inner, physical: u64) -> bool {
        let mut at = inner.free;
        for _ in 0..inner.nr_blocks {
            if at == physical || at == END {
                break;
            }
            let Some(address) = self.address_of(at) else { break };
            // SAFETY: a block of this pool.
            at = unsafe { address.cast::<u64>().read_volatile() };
        }
        at == physical
    }
}
