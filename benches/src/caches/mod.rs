//! The cache suite: objects of one type, 64 bytes, of which the maker writes the first word.
//!
//! ```text
//! Workload x Cache  ->  subject     peers.rs        slab, sharded-slab, object-pool, Box on rusty_alloc, two floors
//!                                   kmem_caches.rs  ours
//! ```

pub(crate) mod kmem_caches;
pub(crate) mod peers;

use std::{hint::black_box, mem::MaybeUninit, time::Instant};

use crate::{
    cli::Options,
    measure::{Length, Role, Row, Run, Sample, Subject, Unit},
    threads,
};

/// What the caches hold: one word that its maker sets, and room that it leaves alone.
pub(crate) struct Item {
    pub(crate) id: u64,
    _room: MaybeUninit<[u64; 7]>,
}

impl Item {
    /// An item with this id.
    #[inline(always)]
    pub(crate) fn new(id: u64) -> Self {
        Self { id, _room: MaybeUninit::uninit() }
    }
}

/// A cache of [`Item`]s, as the workloads see it.
pub(crate) trait Cache: Send + Sync + Sized + 'static {
    /// Owns one item.
    type Handle;
    /// An empty cache for two threads and a few hundred items.
    fn new() -> Self;
    /// Makes an item.
    fn alloc(&self, id: u64) -> Self::Handle;
    /// Takes it back.
    fn free(&self, item: Self::Handle);
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Workload {
    Pair { threads: usize },
    Batch,
}

const BATCH: usize = 32;

/// All rows of the suite.
pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let _ = options;
    [
        ("pair", Workload::Pair { threads: 1 }),
        ("pair, 2 threads", Workload::Pair { threads: 2 }),
        ("batches of 32", Workload::Batch),
    ]
    .into_iter()
    .map(|(name, workload)| {
        let mut subjects = kmem_caches::subjects(workload);
        subjects.extend(peers::subjects(workload));
        Row {
            name: name.to_owned(),
            parameters: match workload {
                Workload::Pair { .. } => "per pair; 64 B, one word written".to_owned(),
                Workload::Batch => {
                    format!("per pair; {BATCH} made, then taken back in the same order")
                }
            },
            unit: Unit::Nanoseconds,
            length: Length::Calibrated(match workload {
                Workload::Pair { threads: 2 } => 16,
                _ => 4,
            }),
            threads: match workload {
                Workload::Pair { threads } => threads,
                Workload::Batch => 1,
            },
            subjects,
        }
    })
    .collect()
}

/// A subject that runs `workload` on a `C`.
pub(crate) fn subject<C: Cache>(name: &str, role: Role, workload: Workload) -> Subject {
    Subject { name: name.to_owned(), role, prepare: Box::new(move || Some(start(C::new(), workload))) }
}

fn start<C: Cache>(cache: C, workload: Workload) -> Run {
    match workload {
        Workload::Pair { threads: 1 } => Box::new(move |count| {
            let start = Instant::now();
            pairs(&cache, count);
            Sample::Time { elapsed: start.elapsed(), operations: count }
        }),
        Workload::Pair { threads } => Box::new(move |count| {
            let each = count / threads as u64;
            let spans = threads::gang(threads, 2, |_, phase| {
                pairs(&cache, if phase == 0 { each / 8 } else { each });
            });
            Sample::Time { elapsed: spans[1], operations: each * threads as u64 }
        }),
        Workload::Batch => Box::new(move |count| {
            let batches = count / BATCH as u64 + 1;
            let mut held = Vec::with_capacity(BATCH);
            let start = Instant::now();
            for batch in 0..batches {
                held.extend((0..BATCH).map(|_| cache.alloc(batch)));
                for item in held.drain(..) {
                    cache.free(item);
                }
            }
            Sample::Time { elapsed: start.elapsed(), operations: batches * BATCH as u64 }
        }),
    }
}

fn pairs<C: Cache>(cache: &C, count: u64) {
    for id in 0..count {
        cache.free(black_box(cache.alloc(id)));
    }
}
