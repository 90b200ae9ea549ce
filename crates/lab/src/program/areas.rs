//! Virtual areas of a trace: their addresses, and what Linux's counters say of those that are freed lazily.
//!
//! The pages behind an area have events of their own. What is replayed here is the range of addresses: taking it, giving it
//! back, and the calls that ask for a flush. A purge that Linux made because too many pages had been freed lazily is Linux's
//! own affair; kmem makes its own.

use super::census::Fate;
use super::feed::Program;
use super::op::{OpKind, Ref};
use super::tables::{KeyMap, Slots};
use serde::Serialize;

const PAGE: u64 = 4096;

/// What the trace says of Linux's areas.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct LinuxAreas {
    /// Areas allocated in the trace that live: at most.
    pub areas_peak: u64,
    /// The same at the end.
    pub areas_end: u64,
    /// Pages of these areas, guard pages included: at most.
    pub pages_peak: u64,
    /// The same at the end.
    pub pages_end: u64,
    /// Pages freed and not yet flushed: at most.
    pub lazy_pages_peak: u64,
    /// The same at the end. Linux tells them when an area is freed; a purge takes them all.
    pub lazy_pages_end: u64,
    /// Above so many of them Linux purges.
    pub lazy_limit: u64,
    /// Purges that found something.
    pub purges: u64,
    /// Purges that found nothing.
    pub empty_purges: u64,
    /// Areas that were purged.
    pub purged_areas: u64,
}

/// Live areas by address, and Linux's figures.
#[derive(Debug, Default)]
pub(super) struct Areas {
    live: KeyMap<(Ref, u64)>,
    slots: Slots,
    pub(super) linux: LinuxAreas,
}

impl Areas {
    fn gone(&mut self, start: u64) -> Option<Ref> {
        let (area, pages) = self.live.remove(&start)?;
        self.slots.retire(area);
        self.linux.areas_end = self.live.len() as u64;
        self.linux.pages_end = self.linux.pages_end.saturating_sub(pages);
        Some(area)
    }

    fn born(&mut self, start: u64, pages: u64) -> Ref {
        let area = self.slots.take(false);
        self.live.insert(start, (area, pages));
        let linux = &mut self.linux;
        linux.areas_end = self.live.len() as u64;
        linux.areas_peak = linux.areas_peak.max(linux.areas_end);
        linux.pages_end += pages;
        linux.pages_peak = linux.pages_peak.max(linux.pages_end);
        area
    }
}

impl Program {
    pub(super) fn area_alloc(&mut self, start: u64, size: u64, align: u64, failed: bool) -> Fate {
        if failed {
            return Fate::FailedInTrace;
        }
        if size == 0 || !size.is_multiple_of(PAGE) || !align.is_power_of_two() {
            return Fate::Unsupported;
        }
        if !self.has_pages() {
            return Fate::OtherLevel;
        }
        if let Some(area) = self.areas.gone(start) {
            // Its free was lost.
            self.census.reused_live += 1;
            self.push(OpKind::AreaFree { area });
        }
        let pages = size / PAGE;
        let area = self.areas.born(start, pages);
        self.push(OpKind::AreaAlloc { area, pages, align });
        Fate::Replayed
    }

    pub(super) fn area_free(&mut self, start: u64, lazy_pages: u64, lazy_limit: u64) -> Fate {
        if !self.has_pages() {
            return Fate::OtherLevel;
        }
        let linux = &mut self.areas.linux;
        linux.lazy_pages_end = lazy_pages;
        linux.lazy_pages_peak = linux.lazy_pages_peak.max(lazy_pages);
        linux.lazy_limit = lazy_limit;
        match self.areas.gone(start) {
            Some(area) => {
                self.push(OpKind::AreaFree { area });
                Fate::Replayed
            }
            None => Fate::UnmatchedFree,
        }
    }

    pub(super) fn area_purge(&mut self, purged: u64) -> Fate {
        if !self.has_pages() {
            return Fate::OtherLevel;
        }
        let linux = &mut self.areas.linux;
        let due = linux.lazy_pages_end > linux.lazy_limit;
        linux.lazy_pages_end = 0;
        linux.purged_areas += purged;
        if purged > 0 {
            linux.purges += 1;
        } else {
            linux.empty_purges += 1;
        }
        if due {
            return Fate::Bookkeeping;
        }
        // Nothing was due: somebody asked for it.
        self.push(OpKind::UnmapAliases);
        Fate::Replayed
    }
}
