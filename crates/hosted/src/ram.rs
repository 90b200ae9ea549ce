//! The machine's memory: pages of the host behind chosen frame numbers.
//!
//! ```text
//! direct map    base ─▶ │ DMA │ DMA32 │ hole │ Normal │ Movable │     one span of addresses, 4 MiB aligned;
//!                         private pages or a memory file behind the ranges, nothing behind the holes
//! frame words   words ─▶ │ 24 bytes for every frame of the span │     backed page by page as they are written
//! metadata      ─▶ whatever the page allocator asks for
//! ```
//!
//! Mapping is all that happens at boot. Host memory is taken when a page is first touched, so a machine of any size
//! starts at once.

use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use kmem_gfp::{FlatFrameTable, FrameTable, FrameWords, PAGE_SIZE, Pfn, PfnRange};

use crate::plan::MemoryPlan;
use crate::sys::{self, Access, Advice};

/// The alignment of the direct map: the largest block, so that blocks are as aligned in memory as their frame numbers.
const BASE_ALIGN: usize = 4 << 20;
/// Pages that the host is asked about at once: 16 MiB.
pub(crate) const LOOK: usize = 4096;
/// What the host says of pages that it has not backed.
static NONE_RESIDENT: [u8; LOOK] = [0; LOOK];
/// Ranges of at least this many pages are zeroed with a look at which pages were ever touched.
const LOOK_PAGES: u64 = 64;
/// Runs of at least this many untouched pages are left to the host to zero.
const LEAVE_PAGES: usize = 16;

/// What is behind the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RamBacking {
    /// Private anonymous memory. After `fork` parent and child have copies of their own.
    #[default]
    Private,
    /// A file in memory, so that frames can be mapped a second time: by vmalloc, and through
    /// [`Machine::ram_file`](crate::Machine::ram_file). Parent and child of a `fork` would share it and corrupt each other, so
    /// the child does not have the direct map: touching it is a fault there.
    Memfd,
}

/// Memory that could not be had from the host.
#[derive(Debug, thiserror::Error)]
#[error("the host refuses {bytes} bytes for {purpose}")]
pub struct MapError {
    /// What for.
    pub purpose: &'static str,
    /// How much, in bytes.
    pub bytes: usize,
    /// What the host said.
    pub source: io::Error,
}

/// A mapping that ends with its owner.
///
/// # Invariants
/// `start` begins a mapping of `len` bytes that belongs to this value alone.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; access to the memory is the business of those who are given the address.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed private memory that is touched sparsely.
    pub(crate) fn sparse(purpose: &'static str, bytes: usize) -> Result<Self, MapError> {
        // An empty mapping is an error for the host.
        let len = bytes.max(1).next_multiple_of(sys::HOST_PAGE);
        let refused = |source| MapError { purpose, bytes, source };
        let start = sys::map_anonymous(len, Access::ReadWrite).map_err(refused)?;
        // INVARIANT: just mapped.
        let mapping = Self { start, len };
        // SAFETY: our own mapping, and this advice keeps contents. Hosts without huge pages refuse it; so be it.
        let _ = unsafe { sys::advise(start, len, Advice::SmallPages) };
        Ok(mapping)
    }

    /// Address space with nothing behind it, aligned to `align` (a power of two).
    pub(crate) fn reserve(purpose: &'static str, bytes: usize, align: usize) -> Result<Self, MapError> {
        let refused = |source| MapError { purpose, bytes, source };
        let start = sys::reserve(bytes, align).map_err(refused)?;
        // INVARIANT: just mapped.
        Ok(Self { start, len: bytes })
    }

    /// The first byte.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Keeps the mapping for ever.
    pub(crate) fn leak(self) -> NonNull<u8> {
        core::mem::ManuallyDrop::new(self).start
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: ours (type invariant); whoever was given the address is gone, or the owner would not drop this.
        unsafe { sys::unmap(self.start, self.len) };
    }
}

/// The memory of one machine.
#[derive(Debug)]
pub(crate) struct Ram {
    plan: MemoryPlan,
    /// The span of addresses behind `table`.
    _direct: Mapping,
    /// The frame words, which `table` points to.
    _words: Mapping,
    table: FlatFrameTable,
    file: Option<OwnedFd>,
}

impl Ram {
    /// Maps what `plan` lays out.
    pub(crate) fn map(plan: MemoryPlan, backing: RamBacking) -> Result<Self, MapError> {
        let span = plan.span();
        let overflow = |purpose| MapError { purpose, bytes: usize::MAX, source: io::ErrorKind::OutOfMemory.into() };
        let bytes = usize::try_from(span.len()).ok().and_then(|frames| frames.checked_mul(PAGE_SIZE));
        let bytes = bytes.ok_or_else(|| overflow("the direct map"))?;
        let refused = |source| MapError { purpose: "the direct map", bytes, source };
        let direct = Mapping::reserve("the direct map", bytes, BASE_ALIGN)?;
        let start = direct.start();
        let file = match backing {
            RamBacking::Private => None,
            RamBacking::Memfd => Some(sys::memory_file(bytes as u64).map_err(refused)?),
        };
        for range in plan.ranges() {
            let len = range.frames.len() as usize * PAGE_SIZE;
            let offset = (range.frames.start.0 - span.start.0) as usize * PAGE_SIZE;
            let refused = |source| MapError { purpose: "memory", bytes: len, source };
            // SAFETY: the plan's ranges lie inside its span, so the part lies inside the mapping just made; it is empty.
            unsafe {
                let at = start.add(offset);
                match &file {
                    None => sys::commit_private(at, len),
                    Some(file) => sys::commit_shared(at, len, file.as_raw_fd(), offset as u64)
                        .and_then(|()| sys::advise(at, len, Advice::NotForChildren)),
                }
            }
            .map_err(refused)?;
        }
        let words_size = FlatFrameTable::words_size(span.len()).ok_or_else(|| overflow("frame words"))?;
        let words = Mapping::sparse("frame words", words_size)?;
        let base = start.as_ptr().expose_provenance();
        // SAFETY: (1) the mapping holds all words, zeroed, page-aligned, as long as this value; (2) frames that allocators
        // hand out are the plan's, which are mapped at their distance from the span's start.
        let table = unsafe { FlatFrameTable::new(words.start().cast::<FrameWords>(), base, span.start, span.len()) };
        Ok(Self { plan, _direct: direct, _words: words, table, file })
    }

    /// Frame numbers, words and addresses.
    #[inline(always)]
    pub(crate) fn table(&self) -> &FlatFrameTable {
        &self.table
    }

    /// Where which memory is.
    pub(crate) fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// The file behind the memory, if it is one.
    pub(crate) fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Whether all frames of `range` are memory.
    pub(crate) fn holds(&self, range: PfnRange) -> bool {
        self.plan.ranges().iter().any(|own| own.frames.intersection(&range) == range)
    }

    fn bytes_of(&self, range: PfnRange) -> Option<(NonNull<u8>, usize)> {
        (self.holds(range) && !range.is_empty()).then_some(())?;
        Some((self.table.address_of(range.start)?, range.len() as usize * PAGE_SIZE))
    }

    /// Zeroes the frames of `range`, which lie in one of the plan's ranges. Large ranges are zeroed without touching pages
    /// that the host has not backed yet.
    ///
    /// # Safety
    /// The caller owns the frames.
    #[inline]
    pub(crate) unsafe fn zero(&self, range: PfnRange) {
        let Some(start) = self.table.address_of(range.start) else { return };
        if range.len() < LOOK_PAGES {
            // SAFETY: owned by the caller and mapped.
            unsafe { start.write_bytes(0, range.len() as usize * PAGE_SIZE) };
        } else {
            // SAFETY: as above, and this is how the memory was mapped.
            unsafe { zero_sparse(start, range.len() as usize, self.discarding()) };
        }
    }

    /// Gives the host back what it keeps behind `range`, which reads as zero afterwards.
    ///
    /// # Safety
    /// The caller owns the frames; their contents are of no value.
    pub(crate) unsafe fn discard(&self, range: PfnRange) -> io::Result<()> {
        let Some((start, len)) = self.bytes_of(range) else { return Err(io::ErrorKind::InvalidInput.into()) };
        // SAFETY: mapped, owned by the caller, without value.
        unsafe { sys::advise(start, len, self.discarding()) }
    }

    /// The advice that gives memory back, so that it reads as zero.
    fn discarding(&self) -> Advice {
        if self.file.is_some() { Advice::Remove } else { Advice::Discard }
    }

    /// How many pages of `range` the host keeps in memory.
    pub(crate) fn resident(&self, range: PfnRange) -> u64 {
        let Some((start, len)) = self.bytes_of(range) else { return 0 };
        let mut pages = [0; LOOK];
        let mut resident = 0;
        let mut left = len / PAGE_SIZE;
        let mut at = start;
        while left > 0 {
            let nr = left.min(pages.len());
            let Some(pages) = pages.get_mut(..nr) else { break };
            if sys::residency(at, pages).is_err() {
                break;
            }
            // Comparing first: most of a large machine is untouched.
            if Some(&*pages) != NONE_RESIDENT.get(..nr) {
                resident += pages.iter().filter(|page| **page & 1 != 0).count() as u64;
            }
            left -= nr;
            // SAFETY: at most the end of the range.
            at = unsafe { at.add(nr * PAGE_SIZE) };
        }
        resident
    }

    /// Notes for each page of `range`, [`LOOK`] at the most, whether the host keeps it in memory; `false` if it keeps none,
    /// or does not say.
    pub(crate) fn look(&self, range: PfnRange, resident: &mut [bool]) -> bool {
        let Some((start, len)) = self.bytes_of(range) else { return false };
        let mut pages = [0; LOOK];
        let Some(pages) = pages.get_mut(..len / PAGE_SIZE) else { return false };
        if sys::residency(start, pages).is_err() || Some(&*pages) == NONE_RESIDENT.get(..pages.len()) {
            return false;
        }
        for (resident, page) in resident.iter_mut().zip(pages) {
            *resident = *page & 1 != 0;
        }
        true
    }

    /// How many pages the host keeps in memory for all frames below `end` together.
    pub(crate) fn resident_below(&self, end: Pfn) -> u64 {
        let below = PfnRange::new(Pfn(0), end);
        self.plan.ranges().iter().map(|range| self.resident(range.frames.intersection(&below))).sum()
    }
}

/// Zeroes `nr` pages from `start` on: resident ones by writing, long runs of others by leaving them to the host.
///
/// # Safety
/// The pages are mapped and the caller's, and `discarding` is the advice that makes them read as zero.
#[cold]
unsafe fn zero_sparse(start: NonNull<u8>, nr: usize, discarding: Advice) {
    let mut pages = [0; 1024];
    let mut done = 0;
    while done < nr {
        let count = (nr - done).min(pages.len());
        // SAFETY: inside the caller's pages.
        let chunk = unsafe { start.add(done * PAGE_SIZE) };
        let known = pages.get_mut(..count).and_then(|pages| sys::residency(chunk, pages).is_ok().then_some(&*pages));
        let Some(known) = known else {
            // SAFETY: the caller's pages; nothing is known about them.
            unsafe { chunk.write_bytes(0, count * PAGE_SIZE) };
            done += count;
            continue;
        };
        let mut at = 0;
        for run in known.chunk_by(|a, b| a & 1 == b & 1) {
            let untouched = run.first().is_some_and(|page| page & 1 == 0) && run.len() >= LEAVE_PAGES;
            // SAFETY: `at + run.len() <= count`, so the run lies inside the caller's pages. Discarding also covers pages
            // that the host has swapped out.
            unsafe {
                let at = chunk.add(at * PAGE_SIZE);
                let len = run.len() * PAGE_SIZE;
                if !untouched || sys::advise(at, len, discarding).is_err() {
                    at.write_bytes(0, len);
                }
            }
            at += run.len();
        }
        done += count;
    }
}
