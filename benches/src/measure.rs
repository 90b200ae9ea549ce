//! Rows, subjects and how they take turns.
//!
//! ```text
//! row      subject A   subject B   subject C
//! round 1     1           2           3          each box is one short run of a few milliseconds
//! round 2     6           4           5          (the order rotates: nobody always follows the same neighbour)
//! ```

use std::time::{Duration, Instant};

use crate::cli::Options;

/// What one run of a subject yields.
pub(crate) enum Sample {
    /// So many operations took so long.
    Time { elapsed: Duration, operations: u64 },
    /// A figure that is no time: a ratio, a count.
    Value(f64),
}

/// One run; the argument is how many operations to do where the row is [`Length::Calibrated`].
pub(crate) type Run = Box<dyn FnMut(u64) -> Sample>;

/// What a subject is to the comparison.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Ours.
    Kmem,
    /// Somebody else's allocator, safe to share between threads as ours is.
    Peer,
    /// A peer without the lock that sharing it would need: shown, but not the one to beat.
    Unshared,
    /// Not an allocator: the least that the operation can cost.
    Floor,
}

/// One allocator in one row.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Builds the state; `None` if the subject cannot take part in this row.
    pub(crate) prepare: Box<dyn FnOnce() -> Option<Run>>,
}

/// How the length of a run is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Length {
    /// The harness chooses the number of operations so that a run takes about this many milliseconds.
    Calibrated(u64),
    /// The workload itself says how much there is to do.
    Fixed,
    /// Deterministic: one run is enough.
    Once,
}

/// What the figures of a row count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unit {
    /// Nanoseconds per operation.
    Nanoseconds,
    /// Microseconds per operation.
    Microseconds,
    /// A share of one; more is better.
    Ratio,
    /// Instructions per operation.
    Instructions,
}

impl Unit {
    /// As the tables print it.
    pub(crate) fn symbol(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Microseconds => "µs",
            Self::Ratio => "share",
            Self::Instructions => "instr.",
        }
    }

    /// Whether a larger figure is the better one.
    pub(crate) fn more_is_better(self) -> bool {
        self == Self::Ratio
    }
}

/// A workload with its parameters and everyone who runs it.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) parameters: String,
    pub(crate) unit: Unit,
    pub(crate) length: Length,
    /// How many threads work at once.
    pub(crate) threads: usize,
    pub(crate) subjects: Vec<Subject>,
}

/// The figures of one subject, best first.
pub(crate) struct Figures {
    pub(crate) subject: String,
    pub(crate) role: Role,
    pub(crate) runs: Vec<f64>,
}

impl Figures {
    /// The best run.
    pub(crate) fn best(&self) -> f64 {
        self.runs.first().copied().unwrap_or(f64::NAN)
    }

    /// The middle run.
    pub(crate) fn median(&self) -> f64 {
        self.runs.get(self.runs.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

/// A measured row.
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) parameters: String,
    pub(crate) unit: Unit,
    pub(crate) threads: usize,
    pub(crate) figures: Vec<Figures>,
}

impl Measured {
    /// The figure to judge a subject by: its best run; with several threads the median, because the best run is one
    /// in which the system left a thread aside and nobody contended.
    pub(crate) fn verdict(&self, figures: &Figures) -> f64 {
        if self.threads > 1 { figures.median() } else { figures.best() }
    }
}

struct Entrant {
    name: String,
    role: Role,
    run: Run,
    operations: u64,
    spent: Duration,
    runs: Vec<f64>,
}

/// Runs a row: every subject in turn, round after round, until the rounds or the subject's share of time are used up.
pub(crate) fn run(row: Row, options: &Options) -> Measured {
    let Row { name, parameters, unit, length, threads, subjects } = row;
    let mut entrants: Vec<Entrant> = subjects
        .into_iter()
        .filter(|subject| options.wants_subject(&subject.name))
        .filter_map(|subject| {
            let run = (subject.prepare)()?;
            Some(Entrant {
                name: subject.name,
                role: subject.role,
                run,
                operations: 1,
                spent: Duration::ZERO,
                runs: Vec::new(),
            })
        })
        .collect();

    let shorten = if options.quick { 4 } else { 1 };
    if let Length::Calibrated(milliseconds) = length {
        let target = Duration::from_millis(milliseconds) / shorten;
        for entrant in &mut entrants {
            entrant.operations = calibrate(&mut entrant.run, target);
        }
    }
    let budget = Duration::from_millis(3000) / (shorten * shorten);
    let rounds = if length == Length::Once { 1 } else { options.rounds };
    let count = entrants.len();
    for round in 0..rounds as usize {
        for turn in 0..count {
            let entrant = &mut entrants[(turn + round) % count];
            // Slow subjects still run three times: a single run would show nothing but the moment.
            if entrant.spent > budget && entrant.runs.len() >= 3 {
                continue;
            }
            let began = Instant::now();
            let sample = (entrant.run)(entrant.operations);
            entrant.spent += began.elapsed();
            entrant.runs.push(figure(sample, unit));
        }
    }
    let figures = entrants
        .into_iter()
        .map(|mut entrant| {
            entrant.runs.sort_by(f64::total_cmp);
            if unit.more_is_better() {
                entrant.runs.reverse();
            }
            Figures { subject: entrant.name, role: entrant.role, runs: entrant.runs }
        })
        .collect();
    Measured { name, parameters, unit, threads, figures }
}

fn figure(sample: Sample, unit: Unit) -> f64 {
    match sample {
        Sample::Value(value) => value,
        Sample::Time { elapsed, operations } => {
            let scale = if unit == Unit::Microseconds { 1e6 } else { 1e9 };
            elapsed.as_secs_f64() * scale / operations.max(1) as f64
        }
    }
}

/// Finds how many operations fill `target`, which also warms the subject up.
fn calibrate(run: &mut Run, target: Duration) -> u64 {
    let mut operations = 64_u64;
    loop {
        let Sample::Time { elapsed, .. } = run(operations) else {
            return operations;
        };
        if elapsed >= target || operations > 1 << 32 {
            let scale = target.as_secs_f64() / elapsed.as_secs_f64().max(1e-9);
            return ((operations as f64 * scale) as u64).max(64);
        }
        operations *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::{Length, Role, Row, Sample, Subject, Unit, run};
    use std::{cell::RefCell, rc::Rc, time::Duration};

    #[test]
    fn subjects_take_turns_in_rotating_order() {
        let order = Rc::new(RefCell::new(String::new()));
        let subject = |name: &str| {
            let (order, letter) = (order.clone(), name.to_owned());
            Subject {
                name: name.to_owned(),
                role: Role::Peer,
                prepare: Box::new(move || {
                    Some(Box::new(move |_| {
                        order.borrow_mut().push_str(&letter);
                        Sample::Time { elapsed: Duration::from_nanos(30), operations: 10 }
                    }))
                }),
            }
        };
        let row = Row {
            name: "turns".into(),
            parameters: String::new(),
            unit: Unit::Nanoseconds,
            length: Length::Fixed,
            threads: 1,
            subjects: vec![subject("a"), subject("b"), subject("c")],
        };
        let options = crate::cli::parse(&["--rounds".into(), "3".into()]).unwrap().unwrap();
        let measured = run(row, &options);
        assert_eq!(order.borrow().as_str(), "abcbcacab");
        assert!(measured.figures.iter().all(|figures| (figures.best() - 3.0).abs() < 1e-6 && figures.runs.len() == 3));
    }
}
