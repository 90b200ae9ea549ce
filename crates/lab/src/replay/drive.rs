//! A whole replay: reading, parsing and executing, each on its own thread.

use super::execute::Executor;
use super::integrity::IntegrityCounts;
use super::sample::Sample;
use crate::LabError;
use crate::program::{CacheBook, CacheSpec, Census, Level, LinuxFigures, Op, OpKind, Program};
use crate::target::{CacheUsage, ReplayTarget, ZoneFree};
use crate::trace::{Chunk, Input, LineKind, Progress, TraceError, Why};
use serde::Serialize;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

/// Operations between two grace periods: what a kernel does in some milliseconds.
pub(crate) const GRACE: usize = 512;
/// Operations kept for the rounds that follow a replay.
const KEEP: usize = 4 << 20;
/// Chunks and batches that may wait for the next thread.
const AHEAD: usize = 4;

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
    /// Pages of slabs.
    pub slab_pages: u64,
    /// Allocated pages, slabs included.
    pub total_pages: u64,
    /// Bytes of kmallocs that are too large for a slab.
    pub large_kmalloc_bytes: u64,
    /// Pages that the trace asked for as pages.
    pub page_requests: u64,
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
    /// All operations, if they are few enough to be kept.
    pub ops: Option<Vec<Op>>,
    /// The caches that they name.
    pub specs: Vec<CacheSpec>,
}

/// What the parser sends.
enum Batch {
    Ops(Vec<Op>, Vec<CacheSpec>),
    Failed(TraceError),
    Over(Box<Program>),
}

/// Replays a trace. `watch` sees how far reading has come and may show it; `look` sees the machine after the last event, before
/// everything is freed.
///
/// # Errors
/// [`LabError`] if the trace cannot be read or the machine cannot be set up.
pub fn replay<T: ReplayTarget>(
    input: &Input,
    level: Level,
    order: Order,
    book: CacheBook,
    target: &T,
    watch: impl Fn(&Progress) + Send,
    look: impl FnOnce(&T),
) -> Result<Outcome, LabError> {
    let (chunks, progress) = input.open()?;
    let name = chunks.name().to_owned();
    let start = Instant::now();
    let before = target.in_use();
    let free_before = target.free_blocks();
    let run = Executor::new(target);
    let (chunk_tx, chunk_rx) = sync_channel(AHEAD);
    let (batch_tx, batch_rx) = sync_channel(AHEAD);
    let mut kept = Some(Vec::new());

    let program = std::thread::scope(|threads| {
        threads.spawn(move || chunks.into_iter().try_for_each(|chunk| chunk_tx.send(chunk)));
        threads.spawn(move || parse(&name, level, book, &chunk_rx, &batch_tx, || watch(&progress)));
        match order {
            Order::Trace => in_order(&run, &batch_rx, &mut kept),
            Order::Parallel => in_parallel(&run, &batch_rx, &mut kept),
        }
    });
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
    let at = |pick: fn((u64, u64)) -> u64, slab_pages: u64, total_pages: u64| Peak {
        live_bytes: pick(live_bytes),
        live_objects: pick(live_objects),
        slab_pages,
        total_pages,
        large_kmalloc_bytes: pick(large),
        page_requests: pick(pages),
    };
    let end = at(|l| l.0, usage.slab_pages, usage.total_pages);
    let peak =
        at(|l| l.1, run.slab_pages.get().1.max(usage.slab_pages), run.total_pages.get().1.max(usage.total_pages));
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
        failed: run.failed.load(Ordering::Relaxed),
        integrity,
        caches,
        free_before,
        free_after,
        samples: run.samples.into_vec(),
        wall_s,
        ops: kept,
        specs,
    })
}

fn parse(
    name: &str,
    level: Level,
    book: CacheBook,
    chunks: &Receiver<Result<Chunk, TraceError>>,
    out: &SyncSender<Batch>,
    watch: impl Fn(),
) {
    let mut program = Program::new(level, book);
    for chunk in chunks {
        let fed = chunk.and_then(|chunk| feed(name, &mut program, &chunk));
        let batch = match fed {
            Err(e) => Batch::Failed(e),
            Ok(()) => {
                let mut ops = Vec::with_capacity(8192);
                program.drain(&mut ops, false);
                Batch::Ops(ops, program.caches().all().to_vec())
            }
        };
        let failed = matches!(batch, Batch::Failed(_));
        if out.send(batch).is_err() || failed {
            return;
        }
        watch();
    }
    if program.census().events == 0 {
        let _ = out.send(Batch::Failed(TraceError { name: name.into(), line: 1, why: Why::Empty }));
        return;
    }
    let mut ops = Vec::new();
    program.finish(&mut ops);
    // A send fails only if the replay has been given up.
    let _ = out.send(Batch::Ops(ops, program.caches().all().to_vec()));
    let _ = out.send(Batch::Over(Box::new(program)));
}

/// Feeds a chunk to a program.
///
/// # Errors
/// [`TraceError`] at the first line that cannot be read.
pub(crate) fn feed(name: &str, program: &mut Program, chunk: &Chunk) -> Result<(), TraceError> {
    for (number, line) in chunk.lines() {
        let why = match LineKind::of(line) {
            LineKind::Event(event) => match program.event(&event) {
                Ok(()) => continue,
                Err(fault) => Why::Field {
                    event: String::from_utf8_lossy(event.event).into_owned(),
                    fault,
                    line: crate::trace::excerpt(line),
                },
            },
            LineKind::Skip => continue,
            LineKind::Lost(events) => {
                program.lost(events);
                continue;
            }
            LineKind::Malformed if program.census().events == 0 => Why::NotATrace(crate::trace::excerpt(line)),
            LineKind::Malformed => Why::NotAnEvent(crate::trace::excerpt(line)),
        };
        return Err(TraceError { name: name.into(), line: number, why });
    }
    Ok(())
}

fn keep(kept: &mut Option<Vec<Op>>, ops: Vec<Op>) {
    if let Some(all) = kept {
        if all.len() + ops.len() > KEEP {
            *kept = None;
        } else {
            all.extend(ops.into_iter().filter(|op| !matches!(op.kind, OpKind::Mark(_))));
        }
    }
}

fn in_order<T: ReplayTarget>(
    run: &Executor<'_, T>,
    batches: &Receiver<Batch>,
    kept: &mut Option<Vec<Op>>,
) -> Result<Box<Program>, TraceError> {
    let cpus = run.target.shape().cpus.max(1);
    let mut known = 0;
    loop {
        let (ops, specs) = match batches.recv() {
            Ok(Batch::Ops(ops, specs)) => (ops, specs),
            Ok(Batch::Failed(e)) => return Err(e),
            Ok(Batch::Over(program)) => return Ok(program),
            Err(_) => return Err(gone()),
        };
        if specs.len() != known {
            known = specs.len();
            run.know(&specs);
        }
        for grace in ops.chunks(GRACE) {
            for same in grace.chunk_by(|a, b| a.cpu == b.cpu) {
                let cpu = same.first().map_or(0, |op| u32::from(op.cpu)) % cpus;
                let fine = run.target.on_cpu(cpu, || same.iter().all(|op| run.run(op)));
                if !fine {
                    run.stop.store(true, Ordering::Relaxed);
                    return drain(batches);
                }
            }
            run.target.quiesce();
        }
        keep(kept, ops);
    }
}

fn in_parallel<T: ReplayTarget>(
    run: &Executor<'_, T>,
    batches: &Receiver<Batch>,
    kept: &mut Option<Vec<Op>>,
) -> Result<Box<Program>, TraceError> {
    let cpus = run.target.shape().cpus.max(1);
    std::thread::scope(|threads| {
        let lanes: Vec<SyncSender<Vec<Op>>> = (0..cpus)
            .map(|cpu| {
                let (tx, rx) = sync_channel::<Vec<Op>>(AHEAD);
                threads.spawn(move || {
                    run.target.on_cpu(cpu, || {
                        for ops in rx {
                            for grace in ops.chunks(GRACE) {
                                if !grace.iter().all(|op| run.run(op)) {
                                    run.stop.store(true, Ordering::Relaxed);
                                    return;
                                }
                                run.target.quiescent();
                            }
                        }
                    });
                });
                tx
            })
            .collect();
        let mut known = 0;
        loop {
            let (ops, specs) = match batches.recv() {
                Ok(Batch::Ops(ops, specs)) => (ops, specs),
                Ok(Batch::Over(program)) => return Ok(program),
                Ok(Batch::Failed(e)) => {
                    // Whoever waits, waits for nothing.
                    run.stop.store(true, Ordering::Relaxed);
                    return Err(e);
                }
                Err(_) => return Err(gone()),
            };
            if specs.len() != known {
                known = specs.len();
                run.know(&specs);
            }
            let mut shares: Vec<Vec<Op>> = (0..cpus).map(|_| Vec::new()).collect();
            for op in &ops {
                if let OpKind::Mark(mark) = &op.kind {
                    // Taken when the operations before it are on their way, not when they are done.
                    run.sample(mark);
                } else if let Some(share) = shares.get_mut((u32::from(op.cpu) % cpus) as usize) {
                    share.push(op.clone());
                }
            }
            // A batch is sent to every CPU before the next is sent to any: a CPU that waits, waits for an earlier operation,
            // which is in its CPU's lane already.
            for (lane, share) in lanes.iter().zip(shares) {
                if !share.is_empty() && lane.send(share).is_err() {
                    run.stop.store(true, Ordering::Relaxed);
                    return drain(batches);
                }
            }
            keep(kept, ops);
        }
    })
}

/// Lets the parser run to its end, whose program nobody will look at.
fn drain(batches: &Receiver<Batch>) -> Result<Box<Program>, TraceError> {
    loop {
        match batches.recv() {
            Ok(Batch::Ops(..)) => {}
            Ok(Batch::Failed(e)) => return Err(e),
            Ok(Batch::Over(program)) => return Ok(program),
            Err(_) => return Err(gone()),
        }
    }
}

fn gone() -> TraceError {
    TraceError { name: "the trace".into(), line: 0, why: Why::Io(std::io::Error::other("its reader stopped")) }
}
