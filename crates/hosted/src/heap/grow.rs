//! Growing: the heap starts with a part of its memory, and hands the rest to the page allocator when it is needed.
//!
//! ```text
//! address space   │ first 256 MiB │ 256 MiB │ 512 MiB │ 1 GiB ...      all reserved at the start
//! page allocator    from start    ─▶ when a request has failed
//! ```
//!
//! The page allocator writes a few words for each pageblock that it is given; a heap as large as its host would start in
//! milliseconds instead of a fraction of one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kmem_buddy::{MemoryMap, Region, ZoneLimits};
use kmem_gfp::{PAGE_SIZE, Pfn, PfnRange};

use super::env::{BUDDY, host};
use crate::ram::Mapping;
use crate::thread::relax;

/// What the heap starts with.
const FIRST_FRAMES: u64 = (256 << 20) / PAGE_SIZE as u64;

/// Frames that the page allocator has been given, from the first on.
static GIVEN: AtomicU64 = AtomicU64::new(0);
/// Whether somebody is giving it more.
static GROWING: AtomicBool = AtomicBool::new(false);

/// Makes the page allocator, with the first part of `frames`.
pub(super) fn start(frames: PfnRange) -> Option<()> {
    let first = frames.len().min(FIRST_FRAMES);
    let regions = [Region::new(PfnRange::with_len(frames.start, first)?)];
    let map = map_of(&regions);
    let metadata = Mapping::sparse("page metadata", BUDDY.metadata_layout(&map).ok()?.size()).ok()?;
    // SAFETY: fresh memory of the size asked for, page-aligned, kept for ever; the frames are the heap's alone.
    unsafe { BUDDY.init(&map, metadata.leak()) }.ok()?;
    GIVEN.store(first, Ordering::Release);
    Some(())
}

const fn map_of<'a>(regions: &'a [Region]) -> MemoryMap<'a> {
    MemoryMap { regions, reserved: &[], limits: ZoneLimits::NONE, nr_nodes: 1, hotplug: &[] }
}

/// How many frames the page allocator has been given. Asked before a request, for [`since`].
pub(super) fn given() -> u64 {
    GIVEN.load(Ordering::Acquire)
}

/// The end of the frames that the page allocator has been given.
pub(super) fn end() -> Pfn {
    Pfn(host().ram.plan().span().start.0.saturating_add(given()))
}

/// After a request has failed: gives the page allocator as much again as it has, if there is more. `true` if it has more
/// than it had `before` the request.
#[cold]
pub(super) fn since(before: u64) -> bool {
    let Some(all) = host().ram.plan().ranges().first().map(|range| range.frames) else { return false };
    while given() == before && before < all.len() {
        if GROWING.swap(true, Ordering::Acquire) {
            relax();
            continue;
        }
        let grown = given() != before || grow(all, before).is_some();
        GROWING.store(false, Ordering::Release);
        if !grown {
            return false;
        }
    }
    given() != before
}

/// Gives the page allocator the next part of `all`, of which it has the first `given` frames.
fn grow(all: PfnRange, given: u64) -> Option<()> {
    let start = Pfn(all.start.0 + given);
    let more = given.min(all.len() - given);
    let regions = [Region::new(PfnRange::with_len(start, more)?)];
    let map = map_of(&regions);
    let metadata = Mapping::sparse("page metadata", BUDDY.region_layout(&map).ok()?.size()).ok()?;
    // SAFETY: as in `start`; these frames have not been given before.
    unsafe { BUDDY.add_region(&map, metadata.start()) }.ok()?;
    metadata.leak();
    GIVEN.store(given + more, Ordering::Release);
    Some(())
}

/// Keeps the heap from growing until [`allow`], across a fork.
pub(super) fn forbid() {
    while GROWING.swap(true, Ordering::Acquire) {
        relax();
    }
}

/// Ends what [`forbid`] began.
pub(super) fn allow() {
    GROWING.store(false, Ordering::Release);
}
