//! The suite of compressed objects: the same blobs in a pool of ours, in general allocators and in a buddy.
//!
//! ```text
//! Workload x store  ->  subject     workloads.rs    what is done, timed
//!                                   density.rs      bytes stored per byte held, each in a fresh process
//!                                   stores.rs       a pool, an allocator, a buddy: put a blob, drop it
//! ```
//! Sizes are those of 102,912 real pages as a kernel's zram compressed them (`crates/zsmalloc/data`).

pub(crate) mod density;
mod stores;
mod workloads;

use crate::{
    cli::Options,
    measure::{Length, Role, Row, Unit},
};
use stores::{Store, Visitor, visit_all};
use workloads::Workload;

/// All rows of the suite.
pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let mut rows = density::rows();
    rows.extend(Workload::ALL.into_iter().map(|workload| {
        let mut timed = Timed { workload, seed: options.seed, subjects: Vec::new() };
        visit_all(&mut timed);
        Row {
            name: workload.name().to_owned(),
            parameters: workload.parameters().to_owned(),
            unit: Unit::Nanoseconds,
            length: if workload.is_fixed() { Length::Fixed } else { Length::Calibrated(10) },
            threads: workload.threads(),
            subjects: timed.subjects,
        }
    }));
    rows
}

struct Timed {
    workload: Workload,
    seed: u64,
    subjects: Vec<crate::measure::Subject>,
}

impl Visitor for Timed {
    fn visit<S: Store>(&mut self, name: &str, role: Role, make: fn() -> Option<S>) {
        let (workload, seed) = (self.workload, self.seed);
        self.subjects.push(crate::measure::Subject {
            name: name.to_owned(),
            role,
            prepare: Box::new(move || workloads::start(make, workload, seed)),
        });
    }
}
