//! Density: bytes stored per byte held, at the three stages of the recorded workload.
//!
//! Pools and buddies say what they hold; for general allocators it is the growth of the process's dirty memory, all blobs
//! written in full. Each subject runs in a fresh process of its own, because memory that a neighbour left behind cannot be
//! told apart. The last column is what rounding up to 16 bytes alone would leave: the bound of a pool.

use std::process::ExitCode;

use super::{
    stores::{Store, Visitor, visit_all},
    workloads::{LZ4, ZSTD, half, sizes},
};
use crate::{
    measure::{Length, Role, Row, Sample, Subject, Unit},
    memory,
};

/// The first argument of such a process.
pub(crate) const CHILD: &str = "zsmalloc-density-of";

const STAGES: [&str; 3] = ["filled", "half freed", "compacted"];

/// The rows: two compressors, three stages.
pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (compressor, raw) in [("lz4", LZ4), ("zstd", ZSTD)] {
        for (stage, name) in STAGES.iter().enumerate() {
            let mut names = Names(Vec::new());
            visit_all(&mut names);
            let mut subjects: Vec<Subject> = names
                .0
                .into_iter()
                .map(|(subject, role)| Subject {
                    name: subject.clone(),
                    role,
                    prepare: Box::new(move || {
                        let share = ask(&subject, compressor, stage)?;
                        Some(Box::new(move |_| Sample::Value(share)))
                    }),
                })
                .collect();
            subjects.push(Subject {
                name: "bound".to_owned(),
                role: Role::Floor,
                prepare: Box::new(move || {
                    let share = bound(raw);
                    Some(Box::new(move |_| Sample::Value(share)))
                }),
            });
            rows.push(Row {
                name: format!("density, {compressor}, {name}"),
                parameters: format!("bytes stored over bytes held; the recorded sizes ({compressor}), {name}"),
                unit: Unit::Ratio,
                length: Length::Once,
                threads: 1,
                subjects,
            });
        }
    }
    rows
}

fn bound(raw: &[u8]) -> f64 {
    let sizes = sizes(raw);
    sizes.iter().sum::<usize>() as f64 / sizes.iter().map(|size| size.next_multiple_of(16)).sum::<usize>() as f64
}

struct Names(Vec<(String, Role)>);

impl Visitor for Names {
    fn visit<S: Store>(&mut self, name: &str, role: Role, _make: fn() -> Option<S>) {
        self.0.push((name.to_owned(), role));
    }
}

fn ask(subject: &str, compressor: &str, stage: usize) -> Option<f64> {
    let program = std::env::current_exe().ok()?;
    let output = std::process::Command::new(program).args([CHILD, subject, compressor]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        eprintln!("bench: {subject} gave no figures: {}", String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    text.split_whitespace().nth(stage)?.parse().ok()
}

/// The process itself: runs one subject through the stages and prints the share at each that it has.
pub(crate) fn child(arguments: &[String]) -> ExitCode {
    let [subject, compressor] = arguments else {
        return ExitCode::from(2);
    };
    memory::forbid_huge_pages();
    let mut probe = Probe { subject, sizes: sizes(if compressor == "zstd" { ZSTD } else { LZ4 }), shares: Vec::new() };
    visit_all(&mut probe);
    if probe.shares.is_empty() {
        return ExitCode::FAILURE;
    }
    probe.shares.iter().for_each(|share| println!("{share}"));
    ExitCode::SUCCESS
}

struct Probe<'a> {
    subject: &'a str,
    sizes: Vec<usize>,
    shares: Vec<f64>,
}

impl Visitor for Probe<'_> {
    fn visit<S: Store>(&mut self, name: &str, _role: Role, make: fn() -> Option<S>) {
        if name != self.subject {
            return;
        }
        let Some(store) = make() else { return };
        // The list of blobs is the harness's own: in place, and touched, before the first look.
        let mut names: Vec<Option<S::Name>> = vec![None; self.sizes.len()];
        let page = [0x5a; 4096];
        let before = memory::dirty_bytes().unwrap_or(0);
        let held = || store.held().or_else(|| Some((memory::dirty_bytes()? - before).max(1) as u64));
        let share = |bytes: usize| held().map(|held| bytes as f64 / held as f64);
        let mut bytes = 0;
        for (name, &size) in names.iter_mut().zip(&self.sizes) {
            if size != 0 {
                *name = store.put(&page[..size]);
                bytes += size;
            }
        }
        self.shares.extend(share(bytes));
        let mut is_freed = half();
        for (name, &size) in names.iter_mut().zip(&self.sizes) {
            if is_freed()
                && let Some(name) = name.take()
            {
                // SAFETY: it was live, and its name is gone.
                unsafe { store.drop_blob(name, size) };
                bytes -= size;
            }
        }
        self.shares.extend(share(bytes));
        if store.compact() {
            self.shares.extend(share(bytes));
        }
    }
}
