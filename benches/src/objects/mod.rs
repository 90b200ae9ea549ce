//! The object suite: general allocators through `GlobalAlloc`.
//!
//! ```text
//! Workload x allocator  ->  subject     workloads.rs     what is done, timed
//!                                       density.rs       bytes held per byte live, each in a fresh process
//!                                       peers.rs         everybody else, and how to visit them all
//!                                       kmem_objects.rs  ours
//! ```

pub(crate) mod density;
pub(crate) mod kmem_objects;
pub(crate) mod peers;
mod workloads;

use std::alloc::GlobalAlloc;

use crate::{
    cli::Options,
    measure::{Length, Role, Row, Subject, Unit},
};
use workloads::Workload;

/// Somebody who wants to see every allocator, each with its own type.
pub(crate) trait Visitor {
    /// Called once per allocator.
    fn visit<A: GlobalAlloc + Sync>(&mut self, name: &str, role: Role, allocator: &'static A);
}

/// Shows every allocator to `visitor`: ours, then the peers.
pub(crate) fn visit_all(visitor: &mut impl Visitor) {
    kmem_objects::visit(visitor);
    peers::visit(visitor);
}

/// All rows of the suite.
pub(crate) fn rows(options: &Options) -> Vec<Row> {
    let mut rows: Vec<Row> = Workload::ALL
        .into_iter()
        .map(|workload| {
            let mut timed = Timed { workload, seed: options.seed, subjects: Vec::new() };
            visit_all(&mut timed);
            Row {
                name: workload.name().to_owned(),
                parameters: workload.parameters(),
                unit: match workload {
                    Workload::Grow => Unit::Microseconds,
                    _ => Unit::Nanoseconds,
                },
                length: match workload {
                    // Eight threads start in each run of larson; the run must be long beside that.
                    Workload::Larson => Length::Calibrated(40),
                    Workload::Handoff => Length::Calibrated(16),
                    _ => Length::Calibrated(4),
                },
                threads: match workload {
                    Workload::Larson | Workload::Handoff => 2,
                    _ => 1,
                },
                subjects: timed.subjects,
            }
        })
        .collect();
    rows.extend(density::rows(options));
    rows
}

struct Timed {
    workload: Workload,
    seed: u64,
    subjects: Vec<Subject>,
}

impl Visitor for Timed {
    fn visit<A: GlobalAlloc + Sync>(&mut self, name: &str, role: Role, allocator: &'static A) {
        let (workload, seed) = (self.workload, self.seed);
        self.subjects.push(Subject {
            name: name.to_owned(),
            role,
            prepare: Box::new(move || Some(workloads::start(allocator, workload, seed))),
        });
    }
}
