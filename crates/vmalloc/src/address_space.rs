//! The seam to the machine's page tables: map, unmap, protect, flush.
//!
//! ```text
//! vmalloc ── map(at, runs, prot, largest, tables) ──▶ AddressSpace ── tables.table() ──▶ page source, in vmalloc's scope
//!         ── unmap(at, size)                             entries gone, translations may linger
//!         ── flush(range, cpus)                          translations gone
//! ```
//!
//! The granularities a machine can map with ([`Granule`]) are data, not types: smallest first, as
//! [`AddressSpace::granules`] lists them.

use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;

use kmem_gfp::{AllocError, PAGE_SHIFT, Pfn, PfnRange};

/// Neighbouring frames, packed into one word: what an area's memory consists of.
///
/// # Invariants
/// The low 24 bits hold the number of frames, at least 1; the high 40 bits the first frame.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Run(u64);

const RUN_LEN_BITS: u32 = 24;

impl Run {
    /// The most frames that one run holds (64 GiB less one page).
    pub const MAX_PAGES: u64 = (1 << RUN_LEN_BITS) - 1;

    /// The run of `nr_pages` frames from `first`; `None` if it is empty, longer than [`MAX_PAGES`](Self::MAX_PAGES), or
    /// beyond the 52 bits of a physical address.
    #[inline(always)]
    pub const fn new(first: Pfn, nr_pages: u64) -> Option<Self> {
        if nr_pages == 0 || nr_pages > Self::MAX_PAGES || first.0 >> (64 - RUN_LEN_BITS) != 0 {
            return None;
        }
        // INVARIANT: checked above.
        Some(Self((first.0 << RUN_LEN_BITS) | nr_pages))
    }

    /// One frame. Bits above the 52 of a physical address are lost.
    #[inline(always)]
    pub(crate) const fn page(pfn: Pfn) -> Self {
        // INVARIANT: one frame.
        Self((pfn.0 << RUN_LEN_BITS) | 1)
    }

    /// The first frame.
    #[inline(always)]
    pub const fn first(self) -> Pfn {
        Pfn(self.0 >> RUN_LEN_BITS)
    }

    /// How many frames.
    #[inline(always)]
    pub const fn nr_pages(self) -> u64 {
        self.0 & Self::MAX_PAGES
    }

    /// The frames.
    #[inline(always)]
    pub const fn range(self) -> PfnRange {
        PfnRange::new(self.first(), Pfn(self.first().0 + self.nr_pages()))
    }

    /// This run and the one right behind it as one, if they are neighbours and fit.
    #[inline(always)]
    pub const fn joined(self, next: Self) -> Option<Self> {
        if self.first().0 + self.nr_pages() != next.first().0 {
            return None;
        }
        Self::new(self.first(), self.nr_pages() + next.nr_pages())
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Run({:#x} + {})", self.first().0, self.nr_pages())
    }
}

bitflags::bitflags! {
    /// What a mapping permits, and how it is cached.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Prot: u16 {
        /// May be read.
        const READ = 1 << 0;
        /// May be written.
        const WRITE = 1 << 1;
        /// May be executed.
        const EXECUTE = 1 << 2;
        /// Writes are combined (frame buffers).
        const WRITE_COMBINE = 1 << 3;
        /// Not cached (device registers).
        const UNCACHED = 1 << 4;
    }
}

impl Prot {
    /// Ordinary kernel memory (`PAGE_KERNEL`).
    #[doc(alias = "PAGE_KERNEL")]
    pub const KERNEL: Self = Self::READ.union(Self::WRITE);
    /// Kernel memory that is only read (`PAGE_KERNEL_RO`).
    #[doc(alias = "PAGE_KERNEL_RO")]
    pub const KERNEL_RO: Self = Self::READ;
    /// Kernel memory that is also executed (`PAGE_KERNEL_EXEC`).
    #[doc(alias = "PAGE_KERNEL_EXEC")]
    pub const KERNEL_EXEC: Self = Self::KERNEL.union(Self::EXECUTE);
    /// Device registers.
    pub const DEVICE: Self = Self::KERNEL.union(Self::UNCACHED);
}

/// A size that one page-table entry can map: log2 of its bytes.
///
/// # Invariants
/// At least [`PAGE_SHIFT`], below 48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Granule(u8);

impl Granule {
    /// A page.
    pub const BASE: Self = Self(PAGE_SHIFT as u8);
    /// 2 MiB, the second level of x86-64, AArch64 and RISC-V.
    #[doc(alias = "PMD_SIZE")]
    pub const MIB_2: Self = Self(21);
    /// 1 GiB, the third level.
    #[doc(alias = "PUD_SIZE")]
    pub const GIB_1: Self = Self(30);

    /// The granule of `1 << shift` bytes; `None` below a page or above 2^47.
    pub const fn new(shift: u32) -> Option<Self> {
        if shift < PAGE_SHIFT || shift >= 48 { None } else { Some(Self(shift as u8)) }
    }

    /// log2 of its bytes.
    #[inline(always)]
    pub const fn shift(self) -> u32 {
        self.0 as u32
    }

    /// log2 of its pages.
    #[inline(always)]
    pub const fn order(self) -> u32 {
        self.0 as u32 - PAGE_SHIFT
    }

    /// Pages in it.
    #[inline(always)]
    pub const fn nr_pages(self) -> u64 {
        1 << self.order()
    }

    /// Bytes in it.
    #[inline(always)]
    pub const fn size_bytes(self) -> usize {
        1 << self.0
    }
}

/// Which CPUs may hold translations of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuSet<'a> {
    /// Every one.
    All,
    /// CPU `i` if bit `i % 64` of word `i / 64` is set.
    Mask(&'a [u64]),
}

impl CpuSet<'_> {
    /// Whether `cpu` is in the set.
    pub fn contains(&self, cpu: u32) -> bool {
        match self {
            Self::All => true,
            Self::Mask(words) => words.get(cpu as usize / 64).is_some_and(|word| word >> (cpu % 64) & 1 != 0),
        }
    }
}

/// Why a mapping was not made, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No memory for a page table.
    #[error("no page table: {0}")]
    NoTable(AllocError),
    /// Something is mapped at the address already: a bug in whoever shares the window.
    #[error("{address:#x} is mapped already")]
    Occupied {
        /// The address.
        address: usize,
    },
    /// The address space takes no further mappings (a host's limit).
    #[error("the address space takes no further mapping at {address:#x}")]
    Refused {
        /// The address.
        address: usize,
    },
    /// The address space consists of more pieces than the host of the machine keeps apart.
    #[error("mapping at {address:#x} would make {mappings} mappings of the host; {budget} are the most")]
    TooManyMappings {
        /// The address.
        address: usize,
        /// How many there would be.
        mappings: usize,
        /// How many there may be.
        budget: usize,
    },
    /// Nothing is mapped where protection was to be changed.
    #[error("{address:#x} is not mapped")]
    NotMapped {
        /// The address.
        address: usize,
    },
}

/// Where an [`AddressSpace`] takes memory for page tables from: the page source, under the scope that the caller's flags
/// call for.
pub trait TableSource {
    /// One zeroed frame. It belongs to the address space from here on.
    ///
    /// # Errors
    /// Those of the page source.
    fn table(&mut self) -> Result<Pfn, AllocError>;
}

/// A kernel address range with page tables, as the machine has it.
///
/// Calls never overlap for one address: vmalloc owns the window and hands each range to one caller at a time. Calls for
/// neighbouring ranges do run at the same time on different CPUs.
///
/// # Safety
/// Implementors promise:
/// 1. After a successful [`map`](Self::map) page `i` of the range is frame `i` of the runs, with the protection asked for,
///    until it is unmapped.
/// 2. After [`unmap`](Self::unmap) and then [`flush`](Self::flush) of a range, no CPU of the set reaches the frames that
///    were mapped there through these addresses.
/// 3. [`read`](Self::read), [`copy`](Self::copy) and [`zero`](Self::zero) access what is mapped at the addresses. The
///    defaults use the addresses as pointers, which is right wherever the window is part of the running address space.
pub unsafe trait AddressSpace {
    /// The sizes that one entry can map, smallest (a page) first.
    fn granules(&self) -> &[Granule];

    /// Maps `runs`, one after the other, from address `at` on, each piece with the largest granule that is not above
    /// `largest` and that the alignment of address and frame allows. On failure any part of the range may be mapped; the
    /// caller unmaps it.
    ///
    /// Contexts: the caller's; `tables` may sleep if the caller may.
    ///
    /// # Safety
    /// The range is the caller's and nothing is mapped there.
    ///
    /// # Errors
    /// A [`MapError`].
    unsafe fn map(
        &self,
        at: usize,
        runs: &[Run],
        prot: Prot,
        largest: Granule,
        tables: &mut dyn TableSource,
    ) -> Result<(), MapError>;

    /// Removes whatever is mapped in the range. Translations may linger until [`flush`](Self::flush). Cannot fail: a large
    /// entry always lies inside the range as a whole. Task context.
    ///
    /// # Safety
    /// The range is the caller's and nothing uses the memory behind it.
    unsafe fn unmap(&self, at: usize, size_bytes: usize);

    /// Changes what the mapped range permits. Task context.
    ///
    /// # Safety
    /// The range is the caller's.
    ///
    /// # Errors
    /// [`MapError::NotMapped`], or [`MapError::NoTable`] when a large entry has to be split.
    unsafe fn protect(
        &self,
        at: usize,
        size_bytes: usize,
        prot: Prot,
        tables: &mut dyn TableSource,
    ) -> Result<(), MapError>;

    /// Makes the CPUs forget translations for the range. Task context; interrupts are on.
    fn flush(&self, range: Range<usize>, cpus: CpuSet<'_>);

    /// The frame mapped at an address; `None` if there is none. Any context.
    fn translate(&self, at: usize) -> Option<Pfn>;

    /// Copies `len` mapped bytes from `at` to `to`.
    ///
    /// # Safety
    /// The range is mapped readable for as long as this runs; `to` has room.
    unsafe fn read(&self, at: usize, to: NonNull<u8>, len: usize) {
        let from = core::ptr::with_exposed_provenance::<u8>(at);
        // SAFETY: mapped and readable, and there is room, by the caller's promise.
        unsafe { core::ptr::copy_nonoverlapping(from, to.as_ptr(), len) };
    }

    /// Copies `len` bytes from one mapped range to another.
    ///
    /// # Safety
    /// Both ranges are mapped, `to` writable, and do not overlap.
    unsafe fn copy(&self, from: usize, to: usize, len: usize) {
        let from = core::ptr::with_exposed_provenance::<u8>(from);
        let to = core::ptr::with_exposed_provenance_mut::<u8>(to);
        // SAFETY: mapped and disjoint by the caller's promise.
        unsafe { core::ptr::copy_nonoverlapping(from, to, len) };
    }

    /// Clears `len` mapped bytes.
    ///
    /// # Safety
    /// The range is mapped writable and the caller's.
    unsafe fn zero(&self, at: usize, len: usize) {
        let to = core::ptr::with_exposed_provenance_mut::<u8>(at);
        // SAFETY: mapped and writable by the caller's promise.
        unsafe { core::ptr::write_bytes(to, 0, len) };
    }

    /// Gives frames their ordinary permissions in the direct map back, before they are freed
    /// ([`VmFlags::FLUSH_RESET_PERMS`](crate::VmFlags::FLUSH_RESET_PERMS)). The default has nothing to reset.
    fn reset_direct_map(&self, runs: &[Run]) {
        let _ = runs;
    }
}

// SAFETY: forwards to an implementation that keeps the promises.
unsafe impl<S: AddressSpace> AddressSpace for &S {
    fn granules(&self) -> &[Granule] {
        (**self).granules()
    }
    #[inline(always)]
    unsafe fn map(
        &self,
        at: usize,
        runs: &[Run],
        prot: Prot,
        largest: Granule,
        tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).map(at, runs, prot, largest, tables) }
    }
    #[inline(always)]
    unsafe fn unmap(&self, at: usize, size_bytes: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).unmap(at, size_bytes) }
    }
    unsafe fn protect(
        &self,
        at: usize,
        size_bytes: usize,
        prot: Prot,
        tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).protect(at, size_bytes, prot, tables) }
    }
    fn flush(&self, range: Range<usize>, cpus: CpuSet<'_>) {
        (**self).flush(range, cpus);
    }
    fn translate(&self, at: usize) -> Option<Pfn> {
        (**self).translate(at)
    }
    unsafe fn read(&self, at: usize, to: NonNull<u8>, len: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).read(at, to, len) }
    }
    unsafe fn copy(&self, from: usize, to: usize, len: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).copy(from, to, len) }
    }
    unsafe fn zero(&self, at: usize, len: usize) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).zero(at, len) }
    }
    fn reset_direct_map(&self, runs: &[Run]) {
        (**self).reset_direct_map(runs);
    }
}

/// An address space that maps nothing: for windows whose addresses are only numbers (guest addresses, simulations), and
/// for measuring vmalloc by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMapping;

// SAFETY: nothing is ever reachable through the addresses (1, 2); nothing is accessed (3).
unsafe impl AddressSpace for NoMapping {
    fn granules(&self) -> &[Granule] {
        &[Granule::BASE]
    }
    #[inline(always)]
    unsafe fn map(
        &self,
        _at: usize,
        _runs: &[Run],
        _prot: Prot,
        _largest: Granule,
        _tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        Ok(())
    }
    #[inline(always)]
    unsafe fn unmap(&self, _at: usize, _size_bytes: usize) {}
    unsafe fn protect(
        &self,
        _at: usize,
        _size_bytes: usize,
        _prot: Prot,
        _tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        Ok(())
    }
    fn flush(&self, _range: Range<usize>, _cpus: CpuSet<'_>) {}
    fn translate(&self, _at: usize) -> Option<Pfn> {
        None
    }
    unsafe fn read(&self, _at: usize, to: NonNull<u8>, len: usize) {
        // SAFETY: there is room by the caller's promise.
        unsafe { to.write_bytes(0, len) };
    }
    unsafe fn copy(&self, _from: usize, _to: usize, _len: usize) {}
    unsafe fn zero(&self, _at: usize, _len: usize) {}
}
