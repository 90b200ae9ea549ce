//! The vmalloc suite: ranges of addresses alone, with page tables that do nothing, while many others live.
//!
//! ```text
//! Workload x Areas  ->  subject     peers.rs       range-alloc, vm-allocator, first fit over a BTreeMap: each behind a spin lock
//!                                   kmem_areas.rs  ours: addresses and frames; addresses only
//! ```
//!
//! Peers hand out numbers, and take back a range that the caller describes; kmem also takes frames, keeps a descriptor that
//! any address leads to, and puts ranges off until a flush.

pub(crate) mod kmem_areas;
pub(crate) mod peers;

use std::{hint::black_box, time::Instant};

use crate::{
    cli::Options,
    instructions,
    measure::{Length, Role, Row, Run, Sample, Subject, Unit},
};

/// An allocator of addresses, as the workloads see it. Pages are without the guard page that each area gets.
pub(crate) trait Areas: Sized + 'static {
    /// A window in which `live` areas of one page live, if `holes` with a page between any two that is free.
    fn new(live: usize, holes: bool) -> Self;
    /// Takes an area.
    fn alloc(&mut self, pages: usize) -> usize;
    /// Gives it back.
    fn free(&mut self, area: usize, pages: usize);
}

/// What one row does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) pages: usize,
    pub(crate) live: usize,
    pub(crate) holes: bool,
}

const WORKLOADS: [(&str, Workload); 8] = [
    ("1 page, 10 live", Workload { pages: 1, live: 10, holes: false }),
    ("1 page, 1,000 live", Workload { pages: 1, live: 1_000, holes: false }),
    ("1 page, 100,000 live", Workload { pages: 1, live: 100_000, holes: false }),
    ("1 page, 1,000,000 live", Workload { pages: 1, live: 1_000_000, holes: false }),
    ("1 page, 10,000 live, holes", Workload { pages: 1, live: 10_000, holes: true }),
    ("1 MiB, 10 live", Workload { pages: 256, live: 10, holes: false }),
    ("1 MiB, 1,000,000 live", Workload { pages: 256, live: 1_000_000, holes: false }),
    ("1 MiB, 10,000 live, holes", Workload { pages: 256, live: 10_000, holes: true }),
];

/// All rows of the suite: times, then instructions.
pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let times = WORKLOADS.into_iter().map(|(name, workload)| {
        let mut subjects = kmem_areas::subjects(workload);
        subjects.extend(peers::subjects(workload));
        Row {
            name: name.to_owned(),
            parameters: "per pair of alloc and free".to_owned(),
            unit: Unit::Nanoseconds,
            length: Length::Calibrated(4),
            threads: 1,
            subjects,
        }
    });
    let _ = options;
    times.chain(instructions::area_rows()).collect()
}

/// A subject that runs `workload` on an `A`.
pub(crate) fn subject<A: Areas>(name: &str, role: Role, workload: Workload) -> Subject {
    Subject { name: name.to_owned(), role, prepare: Box::new(move || Some(start::<A>(workload))) }
}

fn start<A: Areas>(Workload { pages, live, holes }: Workload) -> Run {
    let mut areas = A::new(live, holes);
    Box::new(move |count| {
        let start = Instant::now();
        pairs(&mut areas, pages, count);
        Sample::Time { elapsed: start.elapsed(), operations: count }
    })
}

/// Pairs of areas.
pub(crate) fn pairs<A: Areas>(areas: &mut A, pages: usize, count: u64) {
    for _ in 0..count {
        let area = areas.alloc(black_box(pages));
        areas.free(black_box(area), pages);
    }
}
