//! [`HostSpace`]: the vmalloc window of a machine, as addresses of the host at which its frames appear a second time.
//!
//! ```text
//! direct map   │ f0 │ f1 │ f2 │ f3 │ f4 │ ...          one mapping of the memory file
//!                 ╲    ╱          ╱
//! window       │ f2 │ f0 │ f1 │ -- │ f3 │ -- │ ...     a mapping of the host for each run of neighbours; `--` faults
//!
//! page tables  what the machine says: 512 entries in a frame, frames from the page source        `space/tables.rs`
//! mirror       what the host has mapped, a word a page: the machine's translation cache          `space/mirror.rs`
//! ```
//!
//! Mapping fills the page tables and lets the host follow. Unmapping does the same, so that a freed area faults at once; or
//! else, with [`lingering_translations`](crate::MachineBuilder::lingering_translations), the host's mappings stay as they
//! are until the flush, as the translations that a CPU has cached would.
//!
//! **Locking:** page tables are read without a lock; they and the mirror are written under the mirror's lock. Interrupts
//! do not come here: vmalloc maps and unmaps in task context only.

mod mappings;
mod mirror;
mod tables;

use core::fmt;
use core::ops::Range;

use kmem_gfp::{PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange};
use kmem_sync::SpinLock;
use kmem_vmalloc::{AddressSpace, CpuSet, Granule, MapError, Prot, Run, TableSource};

use crate::HostCpu;
use crate::ram::{self, Ram};

use mirror::Mirror;
use tables::{Entry, Tables};

pub(crate) use mappings::default_budget;

/// How a machine's window stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpaceStats {
    /// Mappings of the host that the window consists of, its unmapped parts included.
    pub host_mappings: usize,
    /// How many the windows of all machines in the process together may have: above that this machine maps nothing more.
    pub host_mapping_budget: usize,
    /// Unmapped pages that can be reached still, because nothing was flushed since.
    pub lingering_pages: u64,
    /// Frames that hold page tables.
    pub table_frames: u64,
}

/// A machine's window and what is mapped there. Lives as long as the machine.
pub(crate) struct Space {
    cpu: HostCpu,
    ram: &'static Ram,
    base: usize,
    nr_pages: u64,
    lingering: bool,
    tables: Tables,
    mirror: SpinLock<Mirror>,
}

impl Space {
    /// Reserves a window of `bytes` (whole pages) for the frames of `ram`, which has a file.
    ///
    /// # Errors
    /// What the host refused.
    pub(crate) fn new(
        cpu: HostCpu,
        ram: &'static Ram,
        bytes: usize,
        budget: usize,
        lingering: bool,
    ) -> Result<Self, ram::MapError> {
        let nr_pages = (bytes >> PAGE_SHIFT) as u64;
        let mirror = Mirror::reserve(ram, nr_pages, budget)?;
        let (base, tables) = (mirror.base(), Tables::new(ram, nr_pages)?);
        Ok(Self { cpu, ram, base, nr_pages, lingering, tables, mirror: SpinLock::new(mirror) })
    }

    /// The addresses.
    pub(crate) fn window(&self) -> Range<usize> {
        self.base..self.address(self.nr_pages)
    }

    /// How it stands.
    pub(crate) fn stats(&self) -> SpaceStats {
        let table_frames = self.tables.frames();
        self.mirror.with(&self.cpu, |mirror| SpaceStats {
            host_mappings: mirror.mappings(),
            host_mapping_budget: mirror.budget(),
            lingering_pages: mirror.stale_pages(),
            table_frames,
        })
    }

    fn address(&self, page: u64) -> usize {
        self.base.saturating_add((page as usize) << PAGE_SHIFT)
    }

    /// The pages of a range of addresses, if it lies in the window.
    fn pages(&self, at: usize, size_bytes: usize) -> Option<Range<u64>> {
        let from = (at.checked_sub(self.base)? >> PAGE_SHIFT) as u64;
        let to = from.checked_add(size_bytes.div_ceil(PAGE_SIZE) as u64)?;
        (to <= self.nr_pages).then_some(from..to)
    }

    fn map(&self, at: usize, runs: &[Run], prot: Prot, source: &mut dyn TableSource) -> Result<(), MapError> {
        let refused = MapError::Refused { address: at };
        let nr_pages: u64 = runs.iter().map(|run| run.nr_pages()).sum();
        let pages = self.pages(at, (nr_pages as usize).saturating_mul(PAGE_SIZE)).ok_or(refused)?;
        if !runs.iter().all(|run| self.ram.holds(run.range())) {
            // What is not in the memory file cannot be mapped from it.
            return Err(refused);
        }
        // Before the lock: this may sleep.
        self.tables.provide(pages.clone(), &self.cpu, source)?;
        self.mirror.with(&self.cpu, |mirror| {
            if let Some(page) = pages.clone().find(|&page| self.tables.get(page) != Entry::NONE) {
                return Err(MapError::Occupied { address: self.address(page) });
            }
            if pages.clone().any(|page| mirror.get(page) == Entry::LOST) {
                return Err(refused);
            }
            mirror.changing(pages.clone(), &self.tables, self.lingering, |mirror| {
                let frames = runs.iter().flat_map(|run| run.range().iter());
                for (page, pfn) in pages.clone().zip(frames) {
                    self.tables.set(page, Entry::new(pfn, prot));
                }
                // A translation that lingers does so: getting rid of it is what a flush is for.
                let mapped =
                    mirror.follow(
                        pages.clone(),
                        false,
                        |page, now| {
                            if now == Entry::NONE { self.tables.get(page) } else { now }
                        },
                    );
                mapped.map_err(|refusal| {
                    pages.clone().for_each(|page| self.tables.set(page, Entry::NONE));
                    mirror.forget(pages.clone());
                    refusal.at(at)
                })
            })
        })
    }

    /// Lets one mapped page lead to another frame from here on, for whoever reads it in one step. Its old frame is out of reach
    /// then, lingering translations or not.
    ///
    /// # Errors
    /// A [`MapError`]; the page leads where it led.
    fn repoint(&self, at: usize, to: Pfn) -> Result<(), MapError> {
        let pages = self.pages(at, 1).ok_or(MapError::NotMapped { address: at })?;
        if !self.ram.holds(PfnRange::new(to, Pfn(to.0.saturating_add(1)))) {
            return Err(MapError::Refused { address: at });
        }
        self.mirror.with(&self.cpu, |mirror| {
            let old = self.tables.get(pages.start);
            if old.frame().is_none() {
                return Err(MapError::NotMapped { address: at });
            }
            mirror.changing(pages.clone(), &self.tables, self.lingering, |mirror| {
                let new = old.with_frame(to);
                if let Err(refusal) = mirror.follow(pages.clone(), false, |_, _| new) {
                    // What the host took away without giving anything for it comes back.
                    mirror.settle(pages.clone(), |_| old);
                    return Err(refusal.at(at));
                }
                self.tables.set(pages.start, new);
                Ok(())
            })
        })
    }

    fn unmap(&self, at: usize, size_bytes: usize) {
        let Some(pages) = self.pages(at, size_bytes) else { return };
        self.mirror.with(&self.cpu, |mirror| {
            mirror.changing(pages.clone(), &self.tables, self.lingering, |mirror| {
                pages.clone().for_each(|page| self.tables.set(page, Entry::NONE));
                if !self.lingering {
                    mirror.forget(pages.clone());
                }
            });
        });
    }

    fn protect(&self, at: usize, size_bytes: usize, prot: Prot) -> Result<(), MapError> {
        let pages = self.pages(at, size_bytes).ok_or(MapError::NotMapped { address: at })?;
        self.mirror.with(&self.cpu, |mirror| {
            if let Some(page) = pages.clone().find(|&page| self.tables.get(page) == Entry::NONE) {
                return Err(MapError::NotMapped { address: self.address(page) });
            }
            mirror.changing(pages.clone(), &self.tables, self.lingering, |mirror| {
                let changed = |page| self.tables.get(page).with_prot(prot);
                // A change of protection is always followed by a flush, so the host follows at once.
                mirror.follow(pages.clone(), false, |page, _| changed(page)).map_err(|refusal| {
                    // Pages that have changed already change back; that needs no further mapping.
                    let _ = mirror.follow(pages.clone(), true, |page, _| self.tables.get(page));
                    refusal.at(at)
                })?;
                pages.clone().for_each(|page| self.tables.set(page, changed(page)));
                Ok(())
            })
        })
    }

    fn flush(&self, range: Range<usize>) {
        if !self.lingering {
            return;
        }
        let Some(pages) = self.pages(range.start, range.end.saturating_sub(range.start)) else { return };
        self.mirror.with(&self.cpu, |mirror| {
            let stale = mirror.stale_range();
            let pages = pages.start.max(stale.start)..pages.end.min(stale.end);
            if pages.is_empty() {
                return;
            }
            mirror.changing(pages.clone(), &self.tables, true, |mirror| {
                mirror.settle(pages.clone(), |page| self.tables.get(page));
            });
        });
    }

    fn translate(&self, at: usize) -> Option<Pfn> {
        let page = self.pages(at, 1)?.start;
        self.tables.get(page).frame()
    }
}

/// The address space that a machine's vmalloc works on: a window of the host's addresses, or none. A copy is a handle to
/// the same.
///
/// # Invariants
/// The window is this machine's alone, and nobody but this type maps anything there.
#[derive(Clone, Copy)]
pub struct HostSpace(Option<&'static Space>);

impl fmt::Debug for HostSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HostSpace").field(&self.window()).finish()
    }
}

/// The sizes of an entry. The host maps 4 KiB pages; 2 MiB in one piece is one mapping of its all the same.
const GRANULES: [Granule; 2] = [Granule::BASE, Granule::MIB_2];

impl HostSpace {
    /// No window: every mapping is refused.
    pub(crate) const NONE: Self = Self(None);

    pub(crate) const fn new(space: &'static Space) -> Self {
        Self(Some(space))
    }

    /// Where the window is; `None` if the machine has none.
    pub fn window(&self) -> Option<Range<usize>> {
        self.0.map(Space::window)
    }

    /// Lets one mapped page lead to another frame from here on.
    pub(crate) fn repoint(&self, at: usize, to: Pfn) -> Result<(), MapError> {
        self.0.map_or(Err(MapError::NotMapped { address: at }), |space| space.repoint(at, to))
    }

    /// How it stands; all zero without a window.
    pub fn stats(&self) -> SpaceStats {
        self.0.map(Space::stats).unwrap_or_default()
    }
}

// SAFETY: (1) mapping puts the frames of the runs behind the addresses, in order, or fails; nobody else maps in the window
// (type invariant). (2) Unmapping, or in a lingering space the flush, puts inaccessible addresses there, for all CPUs: the
// host's threads share one address space. (3) Addresses of the window are addresses of this process.
unsafe impl AddressSpace for HostSpace {
    fn granules(&self) -> &[Granule] {
        &GRANULES
    }
    unsafe fn map(
        &self,
        at: usize,
        runs: &[Run],
        prot: Prot,
        _largest: Granule,
        tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        match self.0 {
            Some(space) => space.map(at, runs, prot, tables),
            None => Err(MapError::Refused { address: at }),
        }
    }
    unsafe fn unmap(&self, at: usize, size_bytes: usize) {
        if let Some(space) = self.0 {
            space.unmap(at, size_bytes);
        }
    }
    unsafe fn protect(
        &self,
        at: usize,
        size_bytes: usize,
        prot: Prot,
        _tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        self.0.map_or(Err(MapError::NotMapped { address: at }), |space| space.protect(at, size_bytes, prot))
    }
    fn flush(&self, range: Range<usize>, _cpus: CpuSet<'_>) {
        if let Some(space) = self.0 {
            space.flush(range);
        }
    }
    fn translate(&self, at: usize) -> Option<Pfn> {
        self.0?.translate(at)
    }
}
