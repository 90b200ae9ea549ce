//! What the page allocators are asked to do.

use std::{
    hint::black_box,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::Pages;
use crate::{
    measure::{Run, Sample},
    random::Random,
    ring::{BATCH, Ring},
    threads,
};

/// A workload with its parameters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Workload {
    /// Allocate a block and free it at once.
    Pair { order: u32, threads: usize },
    /// Allocate every frame, free them all in random order; the figure is for one frame's way out and back.
    Bulk { bytes: usize, threads: usize },
    /// Random orders 0..=9 around a fill of 80 %; the figure is for one call.
    Mixed,
    /// One thread allocates, another frees; the figure is for one frame.
    Handoff,
    /// How much of the free memory is in free blocks of order 9 after long random use of single frames.
    HugeLeft,
}

impl Workload {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Pair { order, threads: 1 } => format!("pair of order {order}"),
            Self::Pair { order, threads } => format!("pair of order {order}, {threads} threads"),
            Self::Bulk { bytes, threads: 1 } => format!("all of {} MiB", bytes >> 20),
            Self::Bulk { bytes, threads } => {
                format!("all of {} MiB, {threads} threads", bytes >> 20)
            }
            Self::Mixed => "mixed orders".to_owned(),
            Self::Handoff => "one allocates, another frees".to_owned(),
            Self::HugeLeft => "huge blocks left".to_owned(),
        }
    }

    pub(crate) fn parameters(self) -> String {
        let mib = self.bytes() >> 20;
        match self {
            Self::Pair { .. } => format!("per pair; {mib} MiB"),
            Self::Bulk { .. } => "per frame; freed in random order".to_owned(),
            Self::Mixed => format!("per call; orders 0..=9 evenly, {mib} MiB 80 % full"),
            Self::Handoff => format!("per frame; order 0, batches of {BATCH}, {mib} MiB"),
            Self::HugeLeft => format!(
                "of free memory in order-9 blocks; {mib} MiB filled, half of it freed at random, then every live frame \
                 replaced {CHURN} times at random"
            ),
        }
    }

    /// Memory under management.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Bulk { bytes, .. } => bytes,
            Self::Pair { .. } | Self::Handoff => 512 << 20,
            Self::Mixed => 1 << 30,
            Self::HugeLeft => 256 << 20,
        }
    }

    /// Threads that use the allocator.
    pub(crate) fn threads(self) -> usize {
        match self {
            Self::Pair { threads, .. } | Self::Bulk { threads, .. } => threads,
            Self::Handoff => 2,
            Self::Mixed | Self::HugeLeft => 1,
        }
    }
}

/// Sets the workload up on `pages`.
pub(crate) fn start<P: Pages>(pages: P, workload: Workload, seed: u64) -> Run {
    match workload {
        Workload::Pair { order, threads: 1 } => {
            Box::new(move |count| Sample::Time { elapsed: pairs(&pages, 0, order, count), operations: count })
        }
        Workload::Pair { order, threads } => Box::new(move |count| {
            let each = count / threads as u64;
            let spans = threads::gang(threads, 2, |cpu, phase| {
                pairs(&pages, cpu, order, if phase == 0 { each / 8 } else { each });
            });
            Sample::Time { elapsed: spans[1], operations: each * threads as u64 }
        }),
        Workload::Bulk { bytes, threads } => bulk(pages, bytes / 4096, threads, seed),
        Workload::Mixed => mixed(pages, workload.bytes() / 4096, seed),
        Workload::Handoff => Box::new(move |count| handoff(&pages, count)),
        Workload::HugeLeft => Box::new(move |_| Sample::Value(huge_left(&pages, seed))),
    }
}

fn pairs<P: Pages>(pages: &P, cpu: usize, order: u32, count: u64) -> Duration {
    let start = Instant::now();
    for _ in 0..count {
        let frame = pages.alloc(cpu, order).expect("memory is nearly empty");
        pages.free(cpu, black_box(frame), order);
    }
    start.elapsed()
}

fn bulk<P: Pages>(pages: P, frames: usize, threads: usize, seed: u64) -> Run {
    let share = frames / threads;
    let held: Vec<Mutex<(Vec<usize>, Random)>> = (0..threads)
        .map(|cpu| {
            let mut list = Vec::with_capacity(share);
            // Touch the list itself now, so that no run pays for its page faults.
            list.resize(share, 1);
            Mutex::new((list, Random::new(seed, cpu as u64)))
        })
        .collect();
    Box::new(move |_| {
        let step = |cpu: usize, phase: usize| {
            let mut guard = held[cpu].lock().expect("no panics");
            let (list, random) = &mut *guard;
            match phase {
                0 => list.clear(),
                1 => {
                    while list.len() < share
                        && let Some(frame) = pages.alloc(cpu, 0)
                    {
                        list.push(frame);
                    }
                }
                2 => random.shuffle(list),
                _ => {
                    for frame in list.iter() {
                        pages.free(cpu, *frame, 0);
                    }
                }
            }
        };
        let elapsed = if threads == 1 {
            let timed = |phase| {
                let start = Instant::now();
                step(0, phase);
                start.elapsed()
            };
            timed(0);
            let out = timed(1);
            timed(2);
            out + timed(3)
        } else {
            let spans = threads::gang(threads, 4, step);
            spans[1] + spans[3]
        };
        let moved: usize = held.iter().map(|list| list.lock().expect("no panics").0.len()).sum();
        assert!(moved * 100 >= frames * 97, "only {moved} of {frames} frames could be allocated");
        Sample::Time { elapsed, operations: moved as u64 }
    })
}

fn mixed<P: Pages>(pages: P, frames: usize, seed: u64) -> Run {
    let mut random = Random::new(seed, 0);
    let mut live: Vec<(usize, u32)> = Vec::with_capacity(1 << 16);
    let mut filled = 0;
    let target = frames / 10 * 8;
    Box::new(move |count| {
        let start = Instant::now();
        for _ in 0..count {
            if filled < target {
                let order = random.below(10) as u32;
                if let Some(frame) = pages.alloc(0, order) {
                    live.push((frame, order));
                    filled += 1 << order;
                    continue;
                }
            }
            let (frame, order) = live.swap_remove(random.below(live.len()));
            pages.free(0, frame, order);
            filled -= 1 << order;
        }
        Sample::Time { elapsed: start.elapsed(), operations: count }
    })
}

fn handoff<P: Pages>(pages: &P, count: u64) -> Sample {
    let batches = (count as usize / BATCH).max(8);
    let ring = Ring::new();
    let spans = threads::gang(2, 2, |cpu, phase| {
        let batches = if phase == 0 { batches / 8 } else { batches };
        for _ in 0..batches {
            if cpu == 0 {
                ring.give(|frames| {
                    for frame in frames {
                        *frame = loop {
                            // The other thread's caches may hold the last frames for a moment.
                            if let Some(frame) = pages.alloc(cpu, 0) {
                                break frame;
                            }
                            std::thread::yield_now();
                        };
                    }
                });
            } else {
                ring.take(|frames| {
                    for frame in frames {
                        pages.free(cpu, *frame, 0);
                    }
                });
            }
        }
    });
    Sample::Time { elapsed: spans[1], operations: (batches * BATCH) as u64 }
}

/// How often each live frame is replaced, on average, before the free huge blocks are counted.
const CHURN: usize = 10;

fn huge_left<P: Pages>(pages: &P, seed: u64) -> f64 {
    let mut random = Random::new(seed, 0);
    let mut live = Vec::new();
    while let Some(frame) = pages.alloc(0, 0) {
        live.push(frame);
    }
    let total = live.len();
    random.shuffle(&mut live);
    for frame in live.drain(total / 2..) {
        pages.free(0, frame, 0);
    }
    for _ in 0..live.len() * CHURN {
        let victim = random.below(live.len());
        pages.free(0, live[victim], 0);
        live[victim] = pages.alloc(0, 0).expect("half of the memory is free");
    }
    let mut huge = Vec::new();
    while let Some(frame) = pages.alloc(0, 9) {
        huge.push(frame);
    }
    let share = (huge.len() * 512) as f64 / (total - live.len()) as f64;
    huge.drain(..).for_each(|frame| pages.free(0, frame, 9));
    live.drain(..).for_each(|frame| pages.free(0, frame, 0));
    share
}
