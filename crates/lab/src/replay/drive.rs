//! A whole replay: reading, parsing and executing, each on its own thread.

use super::execute::Executor;
use super::integrity::IntegrityCounts;
use super::lanes::{self, Aside};
use super::parse::parse;
use super::sample::Sample;
use super::strict::SameRequests;
use crate::LabError;
use crate::program::{CacheBook, CacheSpec, Census, Level, LinuxAreas, LinuxFigures, Op, Program};
use crate::target::{AreaUsage, CacheUsage, ReplayTarget, Usage, ZoneFree};
use crate::trace::{Progress, Trace, TraceError};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

/// Operations between two grace periods: what a kernel does in some milliseconds.
pub(crate) const GRACE: usize = 512;
/// Operations kept for the rounds that follow a replay.
const KEEP: usize = 4 << 20;
/// Chunks and batches that may wait for the next thread.
pub(crate) const AHEAD: usize = 4;

/// In which order operations of different CPUs run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// As in the trace: one thread that moves from CPU to CPU.
    #[default]
    Trace,
    /// Each CPU on a thread of its own; a free on another CPU waits for its allocation.
    Parallel,
}

/// A number now or at most.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Peak {
    /// Bytes asked for, of all live objects in slabs.
    pub live_bytes: u64,
    /// Live objects in slabs.
    pub live_objects: u64,
    /// Pages of slabs, for the requests that Linux's `slab_pages` are for: those of the second machine if there are any, of all
    /// requests otherwise.
    pub slab_pages: u64,
    /// Pages of slabs for all requests.
    pub all_slab_pages: u64,
    /// Allocated pages, slabs included.
    pub total_pages: u64,
    /// Bytes of kmallocs that are too large for a slab.
    pub large_kmalloc_bytes: u64,
    /// Pages that the trace asked for as pages.
    pub page_requests: u64,
    /// Pages that hold the object allocator's own descriptions: in `total_pages`, in no count of slab pages.
    pub metadata_pages: u64,
}

/// Ranges of addresses for vmalloc.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct AreaFigures {
    /// Live areas: at most.
    pub areas_peak: u64,
    /// The same at the end.
    pub areas_end: u64,
    /// Pages of these, guard pages included: at most.
    pub pages_peak: u64,
    /// The same at the end.
    pub pages_end: u64,
    /// Pages freed and not yet flushed: at most.
    pub lazy_pages_peak: u64,
    /// The machine's own counters at the end.
    #[serde(flatten)]
    pub end: AreaUsage,
    /// What Linux did with the same requests.
    pub linux: LinuxAreas,
}

/// What came of a replay.
#[derive(Debug)]
pub struct Outcome {
    /// What became of every event.
    pub census: Census,
    /// Linux's side.
    pub linux: LinuxFigures,
    /// Linux's slab pages by cache, at the end.
    pub linux_caches: Vec<(CacheSpec, u64)>,
    /// The most of everything.
    pub peak: Peak,
    /// The state after the last event.
    pub end: Peak,
    /// Ranges of addresses, here and in Linux; absent if the trace has none.
    pub areas: Option<AreaFigures>,
    /// Requests that failed here and not in Linux.
    pub failed: u64,
    /// What was found wrong.
    pub integrity: IntegrityCounts,
    /// Caches after the last event.
    pub caches: Vec<CacheUsage>,
    /// Free blocks before the first event.
    pub free_before: Vec<ZoneFree>,
    /// Free blocks after the last event.
    pub free_after: Vec<ZoneFree>,
    /// Looks at the machine over time.
    pub samples: Vec<Sample>,
    /// Seconds from the first byte to the last operation.
    pub wall_s: f64,
    /// The second machine: only requests that Linux served from slabs that the trace shows being made, if there are any.
    pub same: Option<SameRequests>,
    /// The second machine's caches after the last event.
    pub same_caches: Option<Vec<CacheUsage>>,
    /// All operations, if they are few enough to be kept.
    pub ops: Kept,
    /// The caches that they name.
    pub specs: Vec<CacheSpec>,
}

/// Some operations, and the caches as far as they are known.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) ops: Vec<Op>,
    pub(crate) specs: Vec<CacheSpec>,
}

/// What the parser sends.
pub(crate) enum Batch {
    Ops(Arc<Step>),
    Failed(TraceError),
    Over(Box<Program>),
}

/// The operations of a replay, for the rounds that follow it; none if there are too many.
#[derive(Debug, Default)]
pub struct Kept {
    steps: Vec<Arc<Step>>,
    count: usize,
}

impl Kept {
    pub(crate) fn push(&mut self, step: &Arc<Step>) {
        self.count += step.ops.len();
        if self.count > KEEP {
            self.steps = Vec::new();
        } else {
            self.steps.push(Arc::clone(step));
        }
    }

    /// True if there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Op> {
        self.steps.iter().flat_map(|s| &s.ops)
    }
}

/// What to replay, and how.
#[derive(Debug)]
pub struct Plan {
    /// The trace.
    pub trace: Trace,
    /// Which of its requests.
    pub level: Level,
    /// In which order.
    pub order: Order,
    /// What is known of its caches.
    pub book: CacheBook,
}

/// Replays a trace on `target`, and the objects that Linux put into slabs that the trace shows being made on `second`, too. `watch`
/// sees how far reading has come and may show it; `look` sees the machine after the last event, before everything is freed.
///
/// # Errors
/// [`LabError`] if the trace cannot be read or a machine cannot be set up.
pub fn replay<T: ReplayTarget>(
    plan: Plan,
    target: &T,
    second: Option<&T>,
    watch: impl Fn(&Progress) + Send,
    look: impl FnOnce(&T),
) -> Result<Outcome, LabError> {
    let Plan { trace: Trace { name, chunks, progress, .. }, level, order, book } = plan;
    let start = Instant::now();
    let before = target.in_use();
    let free_before = target.free_blocks();
    let run = Executor::new(target);
    let (program, kept, same) = std::thread::scope(|threads| {
        // All channels end with this closure, also if it unwinds: then every thread ends, too.
        let (chunk_tx, chunk_rx) = sync_channel(AHEAD);
        let (batch_tx, batch_rx) = sync_channel(AHEAD);
        let mut aside = Aside { kept: Kept::default(), second: None };
        let mut chunks = chunks;
        threads.spawn(move || chunks.try_for_each(|chunk| chunk_tx.send(chunk)));
        threads.spawn(move || parse(&name, level, book, &chunk_rx, &batch_tx, || watch(&progress)));
        let second = second.map(|target| {
            let (tx, rx) = sync_channel(AHEAD);
            aside.second = Some(tx);
            threads.spawn(move || lanes::second(target, &rx))
        });
        let program = match order {
            Order::Trace => lanes::in_order(&run, &batch_rx, &mut aside),
            Order::Parallel => lanes::in_parallel(&run, &batch_rx, &mut aside),
        };
        aside.second = None;
        (program, aside.kept, second.map(|s| s.join().unwrap_or(Err(LabError::Stopped))))
    });
    let (same, same_caches) = same.transpose()?.filter(|(s, _)| s.objects > 0).unzip();
    let stopped = run.stop.load(Ordering::Relaxed);
    let program = match program {
        Err(e) => return Err(e.into()),
        Ok(program) if !stopped => program,
        Ok(_) => return Err(run.fault().map_or(LabError::Stopped, LabError::Target)),
    };
    target.quiesce();

    let usage = run.usage();
    let (live_bytes, live_objects, large) = (run.live_bytes.get(), run.live_objects.get(), run.large_bytes.get());
    let pages = run.live_pages.get();
    let at = |pick: fn((u64, u64)) -> u64, same: Option<u64>, usage: Usage| Peak {
        live_bytes: pick(live_bytes),
        live_objects: pick(live_objects),
        slab_pages: same.unwrap_or(usage.slab_pages),
        all_slab_pages: usage.slab_pages,
        total_pages: usage.total_pages,
        metadata_pages: usage.metadata_pages,
        large_kmalloc_bytes: pick(large),
        page_requests: pick(pages),
    };
    let end = at(|l| l.0, same.map(|s: SameRequests| s.slab_pages_end), usage);
    let most = Usage {
        slab_pages: run.slab_pages.get().1.max(usage.slab_pages),
        total_pages: run.total_pages.get().1.max(usage.total_pages),
        metadata_pages: run.metadata_pages.get().1.max(usage.metadata_pages),
    };
    let peak = at(|l| l.1, same.map(|s| s.slab_pages_peak), most);
    let linux_areas = program.linux_areas();
    let areas = (linux_areas != LinuxAreas::default()).then(|| AreaFigures {
        areas_peak: run.live_areas.get().1,
        areas_end: run.live_areas.get().0,
        pages_peak: run.area_pages.get().1,
        pages_end: run.area_pages.get().0,
        lazy_pages_peak: run.lazy_pages.get().1,
        end: target.areas(),
        linux: linux_areas,
    });
    let (caches, free_after) = (target.caches(), target.free_blocks());
    let wall_s = start.elapsed().as_secs_f64();
    look(target);

    target.on_cpu(0, || run.free_all());
    target.quiesce();
    let leaked = target.in_use().saturating_sub(before);
    let integrity = IntegrityCounts { leaked, ..run.integrity.counts() };
    let by_cache = program.linux().by_cache();
    let specs = program.caches().all().to_vec();
    Ok(Outcome {
        linux: program.linux_figures(),
        linux_caches: specs.iter().cloned().zip(by_cache.iter().copied()).filter(|(_, pages)| *pages > 0).collect(),
        census: program.census().clone(),
        peak,
        end,
        areas,
        failed: run.failed.load(Ordering::Relaxed),
        integrity,
        caches,
        free_before,
        free_after,
        samples: run.samples.into_vec(),
        wall_s,
        same,
        same_caches,
        ops: kept,
        specs,
    })
}
