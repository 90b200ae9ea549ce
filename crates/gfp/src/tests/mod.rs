//! Unit and property tests: small domains whole, the rest against plain models.

mod alloc_flags;
mod flags;
mod scope;
mod select;
mod size;
mod verdict;

use core::cell::Cell;

use std::{string::String, vec::Vec};

use crate::{AllocContext, Gfp, TaskFlags};

/// A task whose flags a test sets, and whose reports it reads.
#[derive(Default)]
struct Task {
    flags: Cell<TaskFlags>,
    reports: Cell<Vec<String>>,
}

impl Task {
    fn with(flags: TaskFlags) -> Self {
        Self { flags: Cell::new(flags), ..Self::default() }
    }
}

impl AllocContext for Task {
    fn task_flags(&self) -> TaskFlags {
        self.flags.get()
    }

    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags {
        let before = self.flags.get();
        self.flags.set(before.union(set).difference(clear));
        before
    }

    fn report(&self, line: core::fmt::Arguments<'_>) {
        let mut reports = self.reports.take();
        reports.push(std::format!("{line}"));
        self.reports.set(reports);
    }
}

/// Every combination of the single flags in `of`.
fn subsets(of: Gfp) -> impl Iterator<Item = Gfp> {
    let bits: Vec<Gfp> = of.iter().collect();
    (0..1_u32 << bits.len()).map(move |choice| {
        bits.iter().enumerate().filter(|(i, _)| choice & (1 << i) != 0).map(|(_, &bit)| bit).collect()
    })
}

/// Every combination of the single task flags in `of`.
fn task_subsets(of: TaskFlags) -> impl Iterator<Item = TaskFlags> {
    let bits: Vec<TaskFlags> =
        (0..32).map(|i| TaskFlags::from_bits_retain(1 << i)).filter(|&bit| of.contains(bit)).collect();
    (0..1_u32 << bits.len()).map(move |choice| {
        bits.iter().enumerate().filter(|(i, _)| choice & (1 << i) != 0).map(|(_, &bit)| bit).collect()
    })
}
