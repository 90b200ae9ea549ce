//! Density: how many bytes the system gives for each byte that is live.
//!
//! Each subject runs in a fresh process of its own, because memory that a neighbour left behind cannot be told apart. The
//! figure is live bytes over the growth of the process's dirty memory, all objects written in full, after each object
//! has been replaced [`CHURN`] times on average. Huge pages are off: their rounding would drown everything else.

use std::{alloc::GlobalAlloc, process::ExitCode};

use super::{
    Visitor, visit_all,
    workloads::{LOG_LIVE, LOG_UNIFORM, Live, Sizes, UNIFORM, UNIFORM_LIVE},
};
use crate::{
    cli::Options,
    measure::{Length, Role, Row, Sample, Subject, Unit},
    memory,
};

/// The first argument of such a process.
pub(crate) const CHILD: &str = "density-of";

const CHURN: usize = 20;

const CASES: [(&str, Sizes, usize); 2] =
    [("density, uniform sizes", UNIFORM, UNIFORM_LIVE), ("density, log-uniform sizes", LOG_UNIFORM, LOG_LIVE)];

/// The rows, one per way of drawing sizes.
pub(crate) fn rows(options: &Options) -> Vec<Row> {
    CASES
        .iter()
        .map(|(name, sizes, live)| {
            let mut names = Names(Vec::new());
            visit_all(&mut names);
            let seed = options.seed;
            Row {
                name: (*name).to_owned(),
                parameters: format!(
                    "live bytes over bytes held; {}, {live} live, each replaced {CHURN} times",
                    match sizes {
                        Sizes::Uniform(low, high) => format!("{low}..={high} B"),
                        Sizes::LogUniform(low, high) => format!("2^{low}..=2^{high} B"),
                    }
                ),
                unit: Unit::Ratio,
                length: Length::Once,
                threads: 1,
                subjects: names
                    .0
                    .into_iter()
                    .map(|(subject, role)| Subject {
                        name: subject.clone(),
                        role,
                        prepare: Box::new(move || {
                            let share = ask(&subject, name, seed)?;
                            Some(Box::new(move |_| Sample::Value(share)))
                        }),
                    })
                    .collect(),
            }
        })
        .collect()
}

struct Names(Vec<(String, Role)>);

impl Visitor for Names {
    fn visit<A: GlobalAlloc + Sync>(&mut self, name: &str, role: Role, _allocator: &'static A) {
        self.0.push((name.to_owned(), role));
    }
}

fn ask(subject: &str, case: &str, seed: u64) -> Option<f64> {
    let program = std::env::current_exe().ok()?;
    let output = std::process::Command::new(program).args([CHILD, subject, case, &seed.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let share = text.trim().parse().ok();
    if share.is_none() {
        eprintln!("bench: {case} of {subject} gave no figure: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    share
}

/// The process itself: measures one subject and prints the share.
pub(crate) fn child(arguments: &[String]) -> ExitCode {
    let [subject, case, seed] = arguments else {
        return ExitCode::from(2);
    };
    let (Some((_, sizes, live)), Ok(seed)) = (CASES.iter().find(|(name, ..)| name == case), seed.parse()) else {
        return ExitCode::from(2);
    };
    memory::forbid_huge_pages();
    let mut probe = Probe { subject, sizes: *sizes, live: *live, seed, share: None };
    visit_all(&mut probe);
    match probe.share {
        Some(share) => {
            println!("{share}");
            ExitCode::SUCCESS
        }
        None => ExitCode::FAILURE,
    }
}

struct Probe<'a> {
    subject: &'a str,
    sizes: Sizes,
    live: usize,
    seed: u64,
    share: Option<f64>,
}

impl Visitor for Probe<'_> {
    fn visit<A: GlobalAlloc + Sync>(&mut self, name: &str, _role: Role, allocator: &'static A) {
        if name != self.subject {
            return;
        }
        // The list of objects is the harness's own: in place, and touched, before the first look.
        let mut set = Live::empty(allocator, self.sizes, self.live, self.seed);
        let Some(before) = memory::dirty_bytes() else {
            return;
        };
        set.populate(self.live);
        set.replace((self.live * CHURN) as u64);
        for object in set.objects() {
            object.fill();
        }
        let Some(after) = memory::dirty_bytes() else {
            return;
        };
        let bytes: usize = set.objects().iter().map(|object| object.size()).sum();
        self.share = Some(bytes as f64 / (after - before).max(1) as f64);
    }
}
