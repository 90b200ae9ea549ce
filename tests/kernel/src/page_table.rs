//! [`KernelSpace`]: the page tables of vmalloc's window. Step 9 of a port.
//!
//! ```text
//! pml4 [402] ─▶ pdpt ─▶ directory ─▶ 2 MiB, or table ─▶ 4 KiB        each table a frame of the page allocator
//! ```
//!
//! Tables are never taken away, so a walk needs no lock: an empty entry becomes a table once, by compare-and-swap. Leaf
//! entries belong to whoever owns their range (a promise of the trait).

use core::ops::Range;

use kmem_gfp::{PAGE_SIZE, Pfn};
use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_vmalloc::{AddressSpace, CpuSet, Granule, MapError, Prot, Run, TableSource};

use crate::ipi;
use crate::platform::kmem;

/// The window: 256 GiB in the upper half.
pub(crate) const WINDOW: Range<usize> = 0xffff_c900_0000_0000..0xffff_c940_0000_0000;

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const WRITE_THROUGH: u64 = 1 << 3;
const NO_CACHE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const MIB_2: usize = 2 << 20;
const GRANULES: [Granule; 2] = [Granule::BASE, Granule::MIB_2];

/// The window's page tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelSpace;

unsafe extern "C" {
    static boot_pml4: [u64; 512];
}

/// The entry of `table` for `at`, `level` 0 being the one that maps pages.
#[inline(always)]
fn entry(table: u64, at: usize, level: u32) -> &'static AtomicU64 {
    let index = at >> (12 + 9 * level) & 511;
    let table = core::ptr::with_exposed_provenance::<AtomicU64>(table as usize);
    // SAFETY: a table of 512 entries, mapped one to one and never taken away.
    unsafe { &*table.add(index) }
}

fn root() -> u64 {
    (&raw const boot_pml4).expose_provenance() as u64
}

/// The table below an entry; `None` if there is none.
#[inline(always)]
fn below(value: u64) -> Option<u64> {
    (value & (PRESENT | LARGE) == PRESENT).then_some(value & ADDRESS)
}

/// The table below an entry, made if there is none.
#[inline]
fn make_below(entry: &AtomicU64, at: usize, tables: &mut dyn TableSource) -> Result<u64, MapError> {
    let value = entry.load(Ordering::Acquire);
    if let Some(table) = below(value) {
        return Ok(table);
    }
    if value != 0 {
        return Err(MapError::Occupied { address: at });
    }
    let table = tables.table().map_err(MapError::NoTable)?;
    let new = (table.0 << 12) | PRESENT | WRITE;
    // Release: whoever finds the table finds it zeroed.
    match entry.compare_exchange(0, new, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(table.0 << 12),
        Err(theirs) => {
            // SAFETY: ours, and nobody has seen it.
            let _ = unsafe { kmem().free_page(table) };
            below(theirs).ok_or(MapError::Occupied { address: at })
        }
    }
}

/// The table that maps the 2 MiB around `at`, and the directory's entry for them.
#[inline]
fn directory_entry(at: usize, tables: &mut dyn TableSource) -> Result<&'static AtomicU64, MapError> {
    let pdpt = make_below(entry(root(), at, 3), at, tables)?;
    let directory = make_below(entry(pdpt, at, 2), at, tables)?;
    Ok(entry(directory, at, 1))
}

/// The directory's entry for `at`, if there is a directory.
#[inline]
fn find_directory_entry(at: usize) -> Option<&'static AtomicU64> {
    let pdpt = below(entry(root(), at, 3).load(Ordering::Acquire))?;
    let directory = below(entry(pdpt, at, 2).load(Ordering::Acquire))?;
    Some(entry(directory, at, 1))
}

fn bits(prot: Prot) -> u64 {
    let mut bits = 0;
    if prot.intersects(Prot::READ | Prot::WRITE | Prot::EXECUTE) {
        bits |= PRESENT;
    }
    if prot.contains(Prot::WRITE) {
        bits |= WRITE;
    }
    if !prot.contains(Prot::EXECUTE) {
        bits |= NO_EXECUTE;
    }
    // Write combining needs the page attribute table; without it such memory is not cached.
    if prot.intersects(Prot::UNCACHED | Prot::WRITE_COMBINE) {
        bits |= NO_CACHE | WRITE_THROUGH;
    }
    bits
}

/// A piece of a range inside one table: its first address and its entries.
#[inline(always)]
fn pages_in_table(at: usize, left: usize) -> usize {
    (512 - (at >> 12 & 511)).min(left)
}

// SAFETY: 1. Each entry is written with its frame and protection, and nobody else writes it until it is unmapped. 2. `unmap`
// clears the entries; `flush` makes every CPU forget them, by invalidation on this one and a message that the others have
// answered when it returns. 3. The window is part of the one address space there is.
unsafe impl AddressSpace for KernelSpace {
    fn granules(&self) -> &[Granule] {
        &GRANULES
    }

    unsafe fn map(
        &self,
        at: usize,
        runs: &[Run],
        prot: Prot,
        largest: Granule,
        tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        let bits = bits(prot);
        let mut at = at;
        // The table that maps the 2 MiB around `at`, kept from run to run.
        let mut leaf: Option<u64> = None;
        for run in runs {
            let mut frame = run.first().0;
            let mut left = run.nr_pages() as usize;
            while left > 0 {
                let table = match leaf.filter(|_| !at.is_multiple_of(MIB_2)) {
                    Some(table) => table,
                    None => {
                        let slot = directory_entry(at, tables)?;
                        let large = largest >= Granule::MIB_2
                            && at.is_multiple_of(MIB_2)
                            && frame.is_multiple_of(512)
                            && left >= 512;
                        if large && slot.load(Ordering::Acquire) == 0 {
                            slot.store(frame << 12 | bits | LARGE, Ordering::Release);
                            at += MIB_2;
                            frame += 512;
                            left -= 512;
                            leaf = None;
                            continue;
                        }
                        make_below(slot, at, tables)?
                    }
                };
                leaf = Some(table);
                let nr = pages_in_table(at, left);
                let mut value = frame << 12 | bits;
                let first: *const AtomicU64 = entry(table, at, 0);
                for i in 0..nr {
                    // SAFETY: `nr` entries from `at`'s on are in the table.
                    let slot = unsafe { &*first.add(i) };
                    if slot.load(Ordering::Relaxed) != 0 {
                        return Err(MapError::Occupied { address: at + i * PAGE_SIZE });
                    }
                    slot.store(value, Ordering::Relaxed);
                    value += PAGE_SIZE as u64;
                }
                at += nr * PAGE_SIZE;
                frame += nr as u64;
                left -= nr;
            }
        }
        Ok(())
    }

    unsafe fn unmap(&self, at: usize, size_bytes: usize) {
        let mut at = at;
        let mut left = size_bytes / PAGE_SIZE;
        while left > 0 {
            let nr = pages_in_table(at, left);
            if let Some(slot) = find_directory_entry(at) {
                let value = slot.load(Ordering::Acquire);
                if let Some(table) = below(value) {
                    let first: *const AtomicU64 = entry(table, at, 0);
                    for i in 0..nr {
                        // SAFETY: `nr` entries from `at`'s on are in the table.
                        unsafe { (*first.add(i)).store(0, Ordering::Relaxed) };
                    }
                } else if value & LARGE != 0 {
                    slot.store(0, Ordering::Release);
                }
            }
            at = at.wrapping_add(nr * PAGE_SIZE);
            left -= nr;
        }
    }

    unsafe fn protect(
        &self,
        at: usize,
        size_bytes: usize,
        prot: Prot,
        tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        let bits = bits(prot);
        let mut at = at;
        let mut left = size_bytes / PAGE_SIZE;
        while left > 0 {
            let nr = pages_in_table(at, left);
            let slot = find_directory_entry(at).ok_or(MapError::NotMapped { address: at })?;
            let value = slot.load(Ordering::Acquire);
            if value & LARGE != 0 && nr == 512 {
                slot.store(value & ADDRESS | bits | LARGE, Ordering::Release);
            } else {
                let table = match below(value) {
                    Some(table) => table,
                    None if value & LARGE != 0 => split(slot, value, tables)?,
                    None => return Err(MapError::NotMapped { address: at }),
                };
                for page in (at..).step_by(PAGE_SIZE).take(nr) {
                    let slot = entry(table, page, 0);
                    let value = slot.load(Ordering::Relaxed);
                    if value & ADDRESS == 0 {
                        return Err(MapError::NotMapped { address: page });
                    }
                    slot.store(value & ADDRESS | bits, Ordering::Relaxed);
                }
            }
            at = at.wrapping_add(nr * PAGE_SIZE);
            left -= nr;
        }
        Ok(())
    }

    fn flush(&self, range: Range<usize>, _cpus: CpuSet<'_>) {
        ipi::flush(range);
    }

    fn translate(&self, at: usize) -> Option<Pfn> {
        let value = find_directory_entry(at)?.load(Ordering::Acquire);
        if value & LARGE != 0 {
            return Some(Pfn((value & ADDRESS) >> 12 | (at >> 12 & 511) as u64));
        }
        let value = entry(below(value)?, at, 0).load(Ordering::Acquire);
        (value & PRESENT != 0).then_some(Pfn((value & ADDRESS) >> 12))
    }
}

/// Makes a table of 512 pages out of an entry for 2 MiB.
fn split(slot: &AtomicU64, value: u64, tables: &mut dyn TableSource) -> Result<u64, MapError> {
    let table = tables.table().map_err(MapError::NoTable)?.0 << 12;
    let pages = value & !LARGE;
    for i in 0..512 {
        entry(table, (i as usize) << 12, 0).store(pages + (i << 12), Ordering::Relaxed);
    }
    slot.store(table | PRESENT | WRITE, Ordering::Release);
    Ok(table)
}
