//! Machines of more memory than can be booted at once: the page allocator is given the rest when it runs short.
//!
//! The page allocator writes a few words for each pageblock at boot, which the host has to back with pages. For the first
//! [`AT_ONCE`] of memory that takes a millisecond or two; the rest is added in steps, by the first request that finds
//! its zones below their marks.

use std::sync::{Mutex, PoisonError};

use kmem::PageSource;
use kmem_buddy::{MemoryMap, Region, ZoneLimits};
use kmem_gfp::{NodeId, PAGE_SIZE, PfnRange};

use crate::HostCpu;
use crate::host::Host;
use crate::ram::Mapping;

/// What a machine boots with, in frames: 16 GiB.
const AT_ONCE: u64 = (16 << 30) / PAGE_SIZE as u64;
/// What is added in one step, in frames: 8 GiB.
const STEP: u64 = (8 << 30) / PAGE_SIZE as u64;

/// Divides `regions`: what the machine boots with, of every region its first part, and the rest in steps.
pub(crate) fn divide(regions: Vec<Region>) -> (Vec<Region>, Vec<Region>) {
    let share = AT_ONCE / (regions.len() as u64).max(1);
    let mut rest = Vec::new();
    let first = regions
        .into_iter()
        .map(|region| {
            let PfnRange { start, end } = region.range;
            // Whole steps from the end, so that the first part ends at a block's boundary.
            let mut cut = end;
            while cut.0 - start.0 > share.max(STEP) {
                let lower = kmem_gfp::Pfn(cut.0 - STEP);
                rest.push(Region { range: PfnRange::new(lower, cut), ..region });
                cut = lower;
            }
            Region { range: PfnRange::new(start, cut), ..region }
        })
        .collect();
    (first, rest)
}

/// The memory that a machine's page allocator has not been given yet.
pub(crate) struct Rest {
    pages: &'static PageSource<Host<HostCpu>>,
    limits: ZoneLimits,
    /// What is left, and the books of what has been added.
    left: Mutex<(Vec<Region>, Vec<Mapping>)>,
}

impl Rest {
    pub(crate) fn new(pages: &'static PageSource<Host<HostCpu>>, limits: ZoneLimits, left: Vec<Region>) -> Self {
        Self { pages, limits, left: Mutex::new((left, Vec::new())) }
    }

    /// Adds a step, of `node` if there is one; returns how many pages it had. Zero if nothing is left, the host refuses
    /// memory, or another thread is at it.
    #[cold]
    pub(crate) fn add(&self, node: NodeId) -> usize {
        let mut left = match self.left.try_lock() {
            Ok(left) => left,
            Err(std::sync::TryLockError::Poisoned(left)) => left.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return 0,
        };
        let (regions, books) = &mut *left;
        let at = regions.iter().rposition(|region| region.node == node).or(regions.len().checked_sub(1));
        let Some(region) = at.map(|at| regions.swap_remove(at)) else { return 0 };
        let map = MemoryMap { regions: &[region], limits: self.limits, ..MemoryMap::default() };
        let added = self.pages.region_layout(&map).ok().and_then(|layout| {
            let metadata = Mapping::sparse("page metadata", layout.size()).ok()?;
            // SAFETY: fresh memory of the size asked for, page-aligned, kept as long as the machine; the frames are the
            // machine's and have not been given before.
            unsafe { self.pages.add_region(&map, metadata.start()) }.ok()?;
            books.push(metadata);
            Some(region.range.len() as usize)
        });
        if added.is_none() {
            regions.push(region);
        }
        added.unwrap_or(0)
    }

    /// Frames that are left.
    pub(crate) fn frames(&self) -> u64 {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.0.iter().map(|region| region.range.len()).sum()
    }
}
