//! [`DmaPool`]: small blocks of coherent memory.
//!
//! ```text
//! chunk  [ block | block | block |  | block | block | .. ]      frames; no block crosses a boundary
//!           │ free: [ physical address of the next free block | mark ] in its first two words
//! words of each of its frames: owner = the pool's number, state = where the frame is mapped, links = the next chunk
//! ```
//! A block is named by its physical address, so that freeing finds chunk, place and pool by the frame's words. Freed blocks carry a mark
//! made of their address: whoever frees one that has it is made to look through the free list.

use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, FrameTable, FrameWords, Gfp, OwnerTag, PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange};
use kmem_sync::IrqLock;
use kmem_sync::atomic::Ordering;

use crate::dma::pool_free::PoolError;
use crate::spec::Name;
use crate::{Dma, DmaDevice, DmaEnv, DmaError, NAME_MAX};

/// Ends the list of free blocks, and the list of chunks.
pub(crate) const END: u64 = u64::MAX;
/// What freed blocks are filled with.
pub(crate) const FREED: u8 = 0xa7;
/// What blocks are filled with when handed out.
const ALLOCATED: u8 = 0xa9;
/// What marks of free blocks are mixed with.
const MARK: u64 = 0x646d_6170_6f6f_6c21;
/// The least size of a block: two words.
pub(crate) const MIN_BYTES: usize = 16;

/// What a pool is to be.
#[derive(Clone, Copy, Debug)]
pub struct PoolSpec<'a> {
    name: &'a str,
    size: usize,
    align: usize,
    boundary: usize,
    poison: bool,
}

impl<'a> PoolSpec<'a> {
    /// Blocks of `size` bytes, raised to two words.
    pub const fn new(name: &'a str, size: usize) -> Self {
        Self { name, size, align: 1, boundary: 0, poison: false }
    }

    /// Blocks begin at multiples of `align`, a power of two; 0 stands for 1.
    pub const fn align(mut self, align: usize) -> Self {
        self.align = align;
        self
    }

    /// No block crosses a multiple of `boundary`, a power of two not below the size; 0: none but the chunk's end.
    pub const fn boundary(mut self, boundary: usize) -> Self {
        self.boundary = boundary;
        self
    }

    /// Freed blocks are filled with a pattern and looked at when they are handed out again.
    pub const fn poison(mut self) -> Self {
        self.poison = true;
        self
    }
}

/// How blocks lie in a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) size: usize,
    pub(crate) chunk: usize,
    pub(crate) boundary: usize,
}

impl Shape {
    fn new(spec: &PoolSpec<'_>) -> Result<Self, PoolError> {
        let bad = PoolError::BadSpec { size: spec.size, align: spec.align, boundary: spec.boundary };
        let align = spec.align.max(1);
        if spec.size == 0 || spec.size > i32::MAX as usize || !align.is_power_of_two() || spec.name.len() > NAME_MAX {
            return Err(bad);
        }
        let size = spec.size.max(MIN_BYTES).checked_next_multiple_of(align.max(8)).ok_or(bad)?;
        let chunk = size.max(PAGE_SIZE);
        let boundary = match spec.boundary {
            0 => chunk,
            boundary if boundary < size || !boundary.is_power_of_two() => return Err(bad),
            boundary => boundary.min(chunk),
        };
        Ok(Self { size, chunk, boundary })
    }

    /// Where blocks begin.
    pub(crate) fn offsets(self) -> impl Iterator<Item = usize> {
        let fit = move |at: usize| {
            let start = at % self.boundary;
            let at = if start + self.size > self.boundary { at - start + self.boundary } else { at };
            (at + self.size <= self.chunk).then_some(at)
        };
        core::iter::successors(fit(0), move |&at| fit(at + self.size))
    }

    /// Whether a block begins there.
    pub(crate) fn is_block(self, offset: usize) -> bool {
        let start = offset % self.boundary;
        start.is_multiple_of(self.size) && start + self.size <= self.boundary && offset + self.size <= self.chunk
    }
}

/// What the lock guards.
pub(crate) struct Inner {
    /// The first free block's physical address, or [`END`].
    pub(crate) free: u64,
    /// The newest chunk's first frame, or [`END`].
    pub(crate) chunks: u64,
    pub(crate) nr_chunks: u64,
    pub(crate) nr_blocks: u64,
    pub(crate) nr_active: u64,
}

/// Small blocks of coherent memory for one device. Freed blocks are handed out last in, first out; chunks are kept until the pool
/// goes.
pub struct DmaPool<'a, E: DmaEnv> {
    pub(crate) dma: &'a Dma<E>,
    device: DmaDevice,
    name: Name,
    /// In the frames' owner words.
    pub(crate) tag: u64,
    pub(crate) shape: Shape,
    pub(crate) poison: bool,
    pub(crate) inner: IrqLock<Inner>,
}

impl<E: DmaEnv> fmt::Debug for DmaPool<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaPool").field("name", &self.name()).field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// A block that is freed by hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolBlock {
    /// Where the CPU finds it.
    pub address: NonNull<u8>,
    /// Where the device finds it.
    pub bus: u64,
    /// Its physical address: what names it.
    pub physical: u64,
}

/// The figures of a pool; printed as a line of a device's `pools` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolInfo<'p> {
    /// Its name.
    pub name: &'p str,
    /// Blocks handed out.
    pub active: u64,
    /// Blocks there are.
    pub total: u64,
    /// Bytes of a block.
    pub size: usize,
    /// Chunks.
    pub pages: u64,
}

impl PoolInfo<'_> {
    /// The first line of a `pools` file.
    pub const HEADER: &'static str = "poolinfo - 0.1";
}

impl fmt::Display for PoolInfo<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<16} {:4} {:4} {:4} {:2}", self.name, self.active, self.total, self.size, self.pages)
    }
}

impl<'a, E: DmaEnv> DmaPool<'a, E> {
    /// A pool without memory yet.
    ///
    /// # Errors
    /// [`PoolError::BadSpec`], or [`PoolError::Dma`] if the device takes no such blocks.
    #[doc(alias = "dma_pool_create")]
    pub fn new(dma: &'a Dma<E>, device: &DmaDevice, spec: &PoolSpec<'_>) -> Result<Self, PoolError> {
        let shape = Shape::new(spec)?;
        device.admits(shape.chunk)?;
        let number = dma.pools.fetch_add(1, Ordering::Relaxed);
        let inner = Inner { free: END, chunks: END, nr_chunks: 0, nr_blocks: 0, nr_active: 0 };
        Ok(Self {
            dma,
            device: *device,
            name: Name::new(spec.name, number as u32),
            tag: number << 3 | OwnerTag::Other as u64,
            shape,
            poison: spec.poison,
            inner: IrqLock::new(inner),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.shape.size
    }

    /// The figures; a moment's values.
    pub fn info(&self) -> PoolInfo<'_> {
        let name = self.name();
        let size = self.shape.size;
        self.inner.with(self.dma.env.cpu(), |inner| PoolInfo {
            name,
            active: inner.nr_active,
            total: inner.nr_blocks,
            size,
            pages: inner.nr_chunks,
        })
    }

    /// A block, freed on drop. Contexts: those that `gfp` allows; with [`Gfp::ZERO`] it is zeroed.
    ///
    /// # Errors
    /// [`PoolError`].
    pub fn alloc(&self, gfp: Gfp) -> Result<DmaBlock<'_, 'a, E>, PoolError> {
        // INVARIANT: just handed out to us.
        self.alloc_raw(gfp).map(|block| DmaBlock { pool: self, block })
    }

    /// As [`alloc`](Self::alloc), to be [freed](Self::free_raw) by hand.
    ///
    /// # Errors
    /// [`PoolError`].
    #[doc(alias("dma_pool_alloc", "dma_pool_zalloc"))]
    pub fn alloc_raw(&self, gfp: Gfp) -> Result<PoolBlock, PoolError> {
        let mut taken = self.inner.with(self.dma.env.cpu(), |inner| self.pop(inner))?;
        if taken.is_none() {
            let (frames, _) = self.dma.take_frames(&self.device, self.shape.chunk, gfp)?;
            taken = self.adopt(frames)?;
        }
        let (address, physical, intact) = taken.ok_or(PoolError::Corrupt { physical: END })?;
        let bus = self.dma.env.bus().to_bus(physical).ok_or(DmaError::Unreachable { mask: self.device.mask() })?;
        if !intact {
            let context = self.dma.env.context();
            context.report(format_args!("dma_pool {}: {physical:#x} was written while free", self.name()));
        }
        // SAFETY: a block of ours.
        unsafe {
            if gfp.contains(Gfp::ZERO) {
                address.write_bytes(0, self.shape.size);
            } else if self.poison {
                address.write_bytes(ALLOCATED, self.shape.size);
            }
        }
        Ok(PoolBlock { address, bus, physical })
    }

    /// The words of the frame behind a physical address, if the frame is this pool's.
    pub(crate) fn words_of(&self, physical: u64) -> Option<&FrameWords> {
        let words = self.dma.env.frames().words(Pfn::containing(physical))?;
        (words.owner.load(Ordering::Relaxed) == self.tag).then_some(words)
    }

    /// Where a block of this pool is mapped.
    pub(crate) fn address_of(&self, physical: u64) -> Option<NonNull<u8>> {
        let page = self.words_of(physical)?.state.load(Ordering::Relaxed) as usize;
        let address = page.checked_add(physical as usize % PAGE_SIZE)?;
        NonNull::new(core::ptr::with_exposed_provenance_mut(address))
    }

    /// The mark of a free block.
    pub(crate) fn mark(physical: u64) -> u64 {
        physical.rotate_left(32) ^ MARK
    }

    /// Takes the newest free block: where it is, its name, whether nobody has written it.
    fn pop(&self, inner: &mut Inner) -> Result<Option<(NonNull<u8>, u64, bool)>, PoolError> {
        let physical = inner.free;
        if physical == END {
            return Ok(None);
        }
        let Some(address) = self.address_of(physical) else {
            // Somebody has written a free block: what the list held is lost, not handed out twice.
            inner.free = END;
            return Err(PoolError::Corrupt { physical });
        };
        let link = address.cast::<u64>();
        // SAFETY: a free block of ours, two words at least and aligned to them.
        let (next, mark) = unsafe { (link.read_volatile(), link.add(1).read_volatile()) };
        // SAFETY: as above.
        unsafe { link.add(1).write_volatile(0) };
        inner.free = next;
        inner.nr_active += 1;
        let mut intact = mark == Self::mark(physical);
        if self.poison {
            // SAFETY: a free block of ours.
            let rest =
                unsafe { core::slice::from_raw_parts(address.add(MIN_BYTES).as_ptr(), self.shape.size - MIN_BYTES) };
            intact &= rest.iter().all(|&byte| byte == FREED);
        }
        Ok(Some((address, physical, intact)))
    }

    /// Makes a chunk of frames that are ours and takes its first block.
    fn adopt(&self, frames: PfnRange) -> Result<Option<(NonNull<u8>, u64, bool)>, PoolError> {
        let table = self.dma.env.frames();
        let physical = frames.start.address();
        let mapped = table.address_of(frames.start).and_then(|direct| {
            // SAFETY: ours, and not used otherwise.
            unsafe { self.dma.env.bus().map_coherent(frames, direct) }
        });
        let (Some(physical), Some(address)) =
            (physical, mapped.filter(|_| frames.iter().all(|pfn| table.words(pfn).is_some())))
        else {
            // SAFETY: taken by the caller, and nobody has seen them.
            unsafe { self.dma.give_frames(frames) }?;
            return Err(DmaError::NotMapped.into());
        };
        let base = address.as_ptr().expose_provenance();
        for (nth, pfn) in frames.iter().enumerate() {
            if let Some(words) = table.words(pfn) {
                words.state.store((base + nth * PAGE_SIZE) as u64, Ordering::Relaxed);
                words.owner.store(self.tag, Ordering::Relaxed);
            }
        }
        self.inner.with(self.dma.env.cpu(), |inner| {
            if let Some(words) = table.words(frames.start) {
                words.links.store(inner.chunks, Ordering::Relaxed);
            }
            inner.chunks = frames.start.0;
            inner.nr_chunks += 1;
            // The list keeps the order of addresses; what was freed meanwhile comes behind.
            let mut last: Option<NonNull<u64>> = None;
            let rest = core::mem::replace(&mut inner.free, physical);
            for offset in self.shape.offsets() {
                // SAFETY: a block inside of the chunk, ours.
                let link = unsafe { address.add(offset) };
                if self.poison {
                    // SAFETY: as above.
                    unsafe { link.write_bytes(FREED, self.shape.size) };
                }
                let (link, name) = (link.cast::<u64>(), physical + offset as u64);
                // SAFETY: as above; words of the block and of the one before.
                unsafe {
                    link.write_volatile(rest);
                    link.add(1).write_volatile(Self::mark(name));
                    if let Some(last) = last.replace(link) {
                        last.write_volatile(name);
                    }
                }
                inner.nr_blocks += 1;
            }
            self.pop(inner)
        })
    }
}

impl<E: DmaEnv> Drop for DmaPool<'_, E> {
    fn drop(&mut self) {
        let (mut chunk, active) = self.inner.with(self.dma.env.cpu(), |inner| (inner.chunks, inner.nr_active));
        if active > 0 {
            let context = self.dma.env.context();
            context.report(format_args!("dma_pool_destroy {}: {active} blocks busy, memory kept", self.name()));
            return;
        }
        while chunk != END {
            let nr_frames = self.shape.chunk.div_ceil(PAGE_SIZE) as u64;
            let frames = PfnRange::new(Pfn(chunk), Pfn(chunk + nr_frames));
            let Some(words) = self.words_of(chunk << PAGE_SHIFT) else { break };
            let address = self.address_of(chunk << PAGE_SHIFT);
            chunk = words.links.load(Ordering::Relaxed);
            for pfn in frames.iter() {
                if let Some(words) = self.dma.env.frames().words(pfn) {
                    words.links.store(0, Ordering::Relaxed);
                    words.state.store(0, Ordering::Relaxed);
                    words.owner.store(0, Ordering::Relaxed);
                }
            }
            // SAFETY: a chunk of ours without blocks in use.
            let given = unsafe {
                if let Some(address) = address {
                    self.dma.env.bus().unmap_coherent(frames, address);
                }
                self.dma.give_frames(frames)
            };
            debug_assert!(given.is_ok(), "{given:?}");
        }
    }
}

/// An owned block, freed on drop. As it borrows the pool, a pool with such blocks does not go.
///
/// # Invariants
/// `block` was handed out by `pool` and belongs to this value alone.
#[derive(Debug)]
#[must_use = "dropping a `DmaBlock` frees it"]
pub struct DmaBlock<'p, 'a, E: DmaEnv> {
    pool: &'p DmaPool<'a, E>,
    block: PoolBlock,
}

impl<E: DmaEnv> DmaBlock<'_, '_, E> {
    /// Where the device finds it.
    pub fn bus_address(&self) -> u64 {
        self.block.bus
    }

    /// Where the CPU finds it; the device may write it at any time.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.block.address
    }

    /// Gives up ownership: the caller frees by hand, or never.
    pub fn into_raw(self) -> PoolBlock {
        ManuallyDrop::new(self).block
    }
}

impl<E: DmaEnv> Drop for DmaBlock<'_, '_, E> {
    fn drop(&mut self) {
        // SAFETY: ours (type invariant), and we are the last user.
        let freed = unsafe { self.pool.free_raw(self.block) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}
