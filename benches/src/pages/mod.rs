//! The page suite: allocators of page frames.
//!
//! ```text
//! Workload x peer  ->  subject        workloads.rs   what is done
//!                                     peers.rs       crates from the registry
//!                                     plugin.rs      LLFree, from a shared library
//!                                     kmem_pages.rs  ours
//! ```

mod kmem_pages;
pub(crate) mod peers;
mod plugin;
mod workloads;

use crate::{
    cli::Options,
    measure::{Length, Role, Row, Subject, Unit},
};
use workloads::Workload;

/// An allocator of page frames, as the workloads see it.
///
/// A frame is whatever the allocator calls it, an address or a number. Every subject frees exactly what it allocated.
pub(crate) trait Pages: Send + Sync + Sized + 'static {
    /// Manages `frames` frames of 4 KiB for `cpus` processors; `None` if it cannot.
    fn new(frames: usize, cpus: usize) -> Option<Self>;
    /// A block of `1 << order` frames for the thread that runs as `cpu`.
    fn alloc(&self, cpu: usize, order: u32) -> Option<usize>;
    /// Takes a block back.
    fn free(&self, cpu: usize, frame: usize, order: u32);
}

/// All rows of the suite.
pub(crate) fn rows(options: &Options) -> Vec<Row> {
    const MIB: usize = 1 << 20;
    let mut workloads = Vec::new();
    for order in [0, 9] {
        for threads in [1, 2] {
            workloads.push(Workload::Pair { order, threads });
        }
    }
    for bytes in [64 * MIB, 256 * MIB, 1024 * MIB, 4096 * MIB] {
        workloads.push(Workload::Bulk { bytes, threads: 1 });
    }
    workloads.push(Workload::Bulk { bytes: 1024 * MIB, threads: 2 });
    workloads.push(Workload::Mixed);
    workloads.push(Workload::Handoff);
    workloads.push(Workload::HugeLeft);
    workloads
        .into_iter()
        .map(|workload| Row {
            name: workload.name(),
            parameters: workload.parameters(),
            unit: match workload {
                Workload::HugeLeft => Unit::Ratio,
                _ => Unit::Nanoseconds,
            },
            length: match workload {
                Workload::Pair { threads: 2, .. } | Workload::Handoff => Length::Calibrated(16),
                Workload::Pair { .. } | Workload::Mixed => Length::Calibrated(4),
                Workload::Bulk { .. } => Length::Fixed,
                Workload::HugeLeft => Length::Once,
            },
            threads: workload.threads(),
            subjects: subjects(workload, options.seed),
        })
        .collect()
}

fn subjects(workload: Workload, seed: u64) -> Vec<Subject> {
    let mut all = kmem_pages::subjects(workload, seed);
    all.extend(peers::subjects(workload, seed));
    all.extend(plugin::subjects(workload, seed));
    all
}

/// A subject that runs `workload` on a `P`.
pub(crate) fn subject<P: Pages>(name: &str, role: Role, workload: Workload, seed: u64) -> Subject {
    Subject {
        name: name.to_owned(),
        role,
        prepare: Box::new(move || {
            let pages = P::new(workload.bytes() / 4096, workload.threads())?;
            Some(workloads::start(pages, workload, seed))
        }),
    }
}

/// Says what cannot take part and why.
pub(crate) fn missing() -> Option<String> {
    plugin::missing()
}
