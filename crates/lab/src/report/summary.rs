//! The figures of one replay, as they stand in the JSON file.

use crate::proc::Snapshots;
use crate::program::{Level, LinuxFigures};
use crate::replay::{AreaFigures, IntegrityCounts, Order, Outcome, Peak, SameRequests, Sample, Times};
use crate::target::{MachineShape, ZoneFree};
use serde::Serialize;
use std::collections::BTreeMap;

/// Facts about the trace.
#[derive(Clone, Debug, Serialize)]
pub struct TraceFacts {
    /// Its name.
    pub name: String,
    /// Events.
    pub events: u64,
    /// CPUs on which they happened.
    pub cpus: u64,
    /// Events by name.
    pub by_type: BTreeMap<String, u64>,
    /// Events by CPU.
    pub by_cpu: BTreeMap<u32, u64>,
    /// Events that the recorder says it lost.
    pub lost: u64,
}

/// Events that were not replayed, by reason. With the replayed ones they add up to all events.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Skipped {
    /// Frees of something older than the trace.
    pub unmatched_free: u64,
    /// Events whose names are not known.
    pub unknown_event: u64,
    /// Requests to allocators that are not part of the replay.
    pub unsupported: u64,
    /// Requests that failed in Linux.
    pub failed_in_trace: u64,
    /// Linux's own metadata.
    pub metadata: u64,
    /// Events that tell a second time what another told.
    pub duplicate: u64,
    /// Events of the level that was not chosen.
    pub other_level: u64,
    /// Events about Linux's state and activity.
    pub bookkeeping: u64,
    /// Names of unknown events, with counts.
    pub unknown_names: BTreeMap<String, u64>,
    /// Pages that unmatched frees gave back.
    pub unmatched_pages: u64,
}

/// Linux's side.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LinuxSide {
    /// The figures; see the crate's README for what is counted.
    #[serde(flatten)]
    pub figures: LinuxFigures,
    /// Pages of all slabs at the end, from `/proc/slabinfo`, memory older than the trace included.
    pub slabinfo_pages_end: Option<u64>,
}

/// Speed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timing {
    /// Seconds for reading, parsing, replaying and checking.
    pub wall_s: f64,
    /// Events in such a second.
    pub events_per_s: f64,
    /// The allocator's calls alone; absent if the trace is too long to be kept for the round that measures them.
    #[serde(flatten)]
    pub calls: Option<Times>,
}

/// One cache, here and in Linux, after the last event: for the same requests.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CacheRow {
    /// Its name.
    pub name: String,
    /// Bytes from one object to the next, here.
    pub object_bytes: u32,
    /// Objects in use or parked, here.
    pub active_objects: u64,
    /// Pages here, of `slab_pages`; `None` if there is no such cache.
    pub pages: Option<u64>,
    /// Pages in Linux, of its `slab_pages`.
    pub linux_pages: u64,
    /// Pages here for all requests.
    pub all_pages: u64,
    /// Pages of Linux's slabs, from `/proc/slabinfo`, memory older than the trace included.
    pub linux_slabinfo_pages: Option<u64>,
}

/// Everything about one replay.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Facts about the trace.
    pub trace: TraceFacts,
    /// What was replayed.
    pub level: Level,
    /// In which order.
    pub order: Order,
    /// Events that became operations.
    pub replayed: u64,
    /// Events that did not.
    pub skipped: Skipped,
    /// Requests that failed here and not in Linux.
    pub failed_allocations: u64,
    /// What was found wrong.
    pub integrity: IntegrityCounts,
    /// The most of everything.
    pub peak: Peak,
    /// The state after the last event.
    pub end: Peak,
    /// Linux's side.
    pub linux: LinuxSide,
    /// Ranges of addresses for vmalloc, here and in Linux; absent if the trace has none.
    pub vmalloc: Option<AreaFigures>,
    /// The second machine: which requests `slab_pages` are for; absent if they are for all.
    pub same_requests: Option<SameRequests>,
    /// Speed.
    pub time: Timing,
    /// The machine.
    pub machine: MachineShape,
    /// Caches, the biggest first.
    pub caches: Vec<CacheRow>,
    /// Free blocks before the first event.
    pub free_blocks_before: Vec<ZoneFree>,
    /// Free blocks after the last event.
    pub free_blocks_after: Vec<ZoneFree>,
    /// Linux's free blocks after the last event, from `/proc/buddyinfo`.
    pub linux_free_blocks_after: Vec<ZoneFree>,
    /// Looks at the machine over time; they are in the page of plots.
    #[serde(skip)]
    pub samples: Vec<Sample>,
}

impl Report {
    /// Puts everything together.
    #[must_use]
    pub fn new(
        name: String,
        (level, order): (Level, Order),
        machine: MachineShape,
        outcome: Outcome,
        times: Option<Times>,
        proc: &Snapshots,
    ) -> Self {
        let c = outcome.census;
        let same = outcome.same_caches.as_deref().unwrap_or(&outcome.caches);
        let caches = rows(same, &outcome.caches, &outcome.linux_caches, proc);
        let figures = outcome.linux;
        let wall_s = outcome.wall_s;
        Self {
            trace: TraceFacts {
                name,
                events: c.events,
                cpus: c.by_cpu.len() as u64,
                by_type: c.by_type,
                by_cpu: c.by_cpu,
                lost: c.lost,
            },
            level,
            order,
            replayed: c.replayed,
            skipped: Skipped {
                unmatched_free: c.unmatched_free,
                unknown_event: c.unknown_event,
                unsupported: c.unsupported,
                failed_in_trace: c.failed_in_trace,
                metadata: c.metadata,
                duplicate: c.duplicate,
                other_level: c.other_level,
                bookkeeping: c.bookkeeping,
                unknown_names: c.unknown_names,
                unmatched_pages: c.unmatched_pages,
            },
            failed_allocations: outcome.failed,
            integrity: outcome.integrity,
            peak: outcome.peak,
            end: outcome.end,
            linux: LinuxSide { figures, slabinfo_pages_end: proc.slab_pages() },
            vmalloc: outcome.areas,
            same_requests: outcome.same,
            time: Timing {
                wall_s,
                events_per_s: if wall_s > 0.0 { c.events as f64 / wall_s } else { 0.0 },
                calls: times,
            },
            machine,
            caches,
            free_blocks_before: outcome.free_before,
            free_blocks_after: outcome.free_after,
            linux_free_blocks_after: proc.free_blocks.clone(),
            samples: outcome.samples,
        }
    }

    /// Bytes asked for over bytes held by slabs at the end, for all requests: here and in Linux.
    #[must_use]
    pub fn efficiency(&self) -> (Option<f64>, Option<f64>) {
        let share = |pages: u64| (pages > 0).then(|| self.end.live_bytes as f64 / (pages * 4096) as f64);
        (share(self.end.all_slab_pages), share(self.linux.figures.all_slab_pages_end).filter(|_| self.has_linux()))
    }

    /// True if Linux's side is known: the trace shows slabs being made, and objects were replayed.
    #[must_use]
    pub const fn has_linux(&self) -> bool {
        self.linux.figures.slab_pages_peak > 0 && !matches!(self.level, Level::Pages)
    }
}

fn rows(
    here: &[crate::target::CacheUsage],
    all: &[crate::target::CacheUsage],
    linux: &[(crate::program::CacheSpec, u64)],
    proc: &Snapshots,
) -> Vec<CacheRow> {
    let mut rows: BTreeMap<&str, CacheRow> = BTreeMap::new();
    for cache in here {
        let row = rows.entry(&cache.name).or_default();
        row.object_bytes = row.object_bytes.max(cache.object_bytes);
        row.active_objects += cache.active_objects;
        row.pages = Some(row.pages.unwrap_or(0) + cache.pages);
    }
    for cache in all {
        rows.entry(&cache.name).or_default().all_pages += cache.pages;
    }
    for (spec, pages) in linux {
        let row = rows.entry(&spec.name).or_default();
        row.linux_pages += pages;
        if row.object_bytes == 0 {
            row.object_bytes = spec.stride;
        }
    }
    let mut rows: Vec<CacheRow> = rows
        .into_iter()
        .map(|(name, row)| CacheRow {
            name: name.to_owned(),
            linux_slabinfo_pages: proc.slabinfo.get(name).map(|s| s.pages),
            ..row
        })
        .filter(|row| row.pages.unwrap_or(0) + row.linux_pages + row.all_pages > 0)
        .collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.pages.unwrap_or(0).max(row.linux_pages)));
    rows
}

/// The figures of areas side by side: what, here, in Linux.
pub(super) fn area_rows(a: &AreaFigures) -> [(&'static str, Option<u64>, Option<u64>); 11] {
    let (end, linux) = (&a.end, &a.linux);
    [
        ("areas, peak", Some(a.areas_peak), Some(linux.areas_peak)),
        ("areas, end", Some(a.areas_end), Some(linux.areas_end)),
        ("pages with guard pages, peak", Some(a.pages_peak), Some(linux.pages_peak)),
        ("pages with guard pages, end", Some(a.pages_end), Some(linux.pages_end)),
        ("freed lazily, pages, peak", Some(a.lazy_pages_peak), Some(linux.lazy_pages_peak)),
        ("freed lazily, pages, end", Some(end.lazy_pages), Some(linux.lazy_pages_end)),
        ("a purge is due above", Some(end.lazy_limit), Some(linux.lazy_limit)),
        ("purges", Some(end.purges), Some(linux.purges + linux.empty_purges)),
        ("purges that found something", Some(end.flushes), Some(linux.purges)),
        ("areas purged", None, Some(linux.purged_areas)),
        ("ranges reused from a pool", Some(end.pool_hits), None),
    ]
}
