//! The instruction suite: how many instructions an operation costs, counted by callgrind.
//!
//! ```text
//! bench  ──starts──▶  valgrind --tool=callgrind bench instructions-of CASE N     counts a
//!                     valgrind --tool=callgrind bench instructions-of CASE 2N    counts b
//!                     (b - a) / N: start-up, warm-up and exit cancel
//! ```
//! Counts do not depend on how busy the machine is. Beside them stand Linux's own, from `data/linux-costs.md`.

mod area_cases;
mod cases;
mod kmem_instructions;

use std::{
    hint::black_box,
    process::{Command, ExitCode},
    str::FromStr,
    sync::OnceLock,
};

use crate::{
    cli::Options,
    measure::{Length, Role, Row, Sample, Subject, Unit},
};

/// The first argument of a counted process.
pub(crate) const CHILD: &str = "instructions-of";

const COUNT: u64 = 20_000;

/// The operations compared; each names the row of the Linux table that it stands beside.
pub(crate) const OPERATIONS: [(&str, &str); 5] = [
    ("kmalloc(64) + kfree", "through GlobalAlloc for peers; goal: at most 50"),
    ("cache alloc + free", "goal: at most 36"),
    ("page of order 0, pair", "goal: at most 40"),
    ("page of order 9, pair", "no goal"),
    ("bulk of 32 objects, per object", "allocated and freed by one call each; goal: at most 8"),
];

/// Those of the vmalloc suite. Linux's include its page tables; ours fill none.
pub(crate) const AREA_OPERATIONS: [(&str, &str); 4] = [
    ("vmalloc(4 KiB) + vfree", "10 live areas; goal: at most 250"),
    ("vmalloc(4 KiB) + vfree, 1,000,000 live", "goal: at most 1.3 times as many as with 10"),
    ("vmalloc(64 KiB) + vfree", "10 live areas"),
    ("vmalloc(1 MiB) + vfree", "10 live areas"),
];

const LINUX: &str = include_str!("../../data/linux-costs.md");

/// One way to perform an operation: which one, by whom, and the loop that does it so many times.
pub(crate) struct Case {
    pub(crate) operation: &'static str,
    pub(crate) subject: &'static str,
    pub(crate) role: Role,
    /// Divides the count: how many objects one turn of the loop handles.
    pub(crate) per_turn: u64,
    pub(crate) run: fn(u64),
}

fn all_cases() -> Vec<Case> {
    let mut all = kmem_instructions::cases();
    all.extend(cases::cases());
    all.extend(area_cases::cases());
    all
}

/// Why nothing can be counted, if nothing can.
pub(crate) fn missing() -> Option<String> {
    let works = Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success());
    (!works).then(|| "instructions are not counted: `valgrind` is not installed".to_owned())
}

/// All rows of the suite.
pub(crate) fn rows(_options: &Options) -> Vec<Row> {
    rows_of(&OPERATIONS)
}

/// The rows of the vmalloc suite.
pub(crate) fn area_rows() -> Vec<Row> {
    if missing().is_some() { Vec::new() } else { rows_of(&AREA_OPERATIONS) }
}

fn rows_of(operations: &[(&str, &str)]) -> Vec<Row> {
    operations
        .iter()
        .map(|(operation, parameters)| {
            let mut subjects: Vec<Subject> = all_cases()
                .into_iter()
                .filter(|case| case.operation == *operation)
                .map(|case| Subject {
                    name: case.subject.to_owned(),
                    role: case.role,
                    prepare: Box::new(move || {
                        let figure = count(&case)?;
                        Some(Box::new(move |_| Sample::Value(figure)))
                    }),
                })
                .collect();
            for (column, name) in ["Linux 7.2, lean", "Linux 7.2, Debian"].iter().enumerate() {
                if let Some(figure) = linux(operation, column) {
                    subjects.push(Subject {
                        name: (*name).to_owned(),
                        role: Role::Peer,
                        prepare: Box::new(move || Some(Box::new(move |_| Sample::Value(figure)))),
                    });
                }
            }
            Row {
                name: (*operation).to_owned(),
                parameters: (*parameters).to_owned(),
                unit: Unit::Instructions,
                length: Length::Once,
                threads: 1,
                subjects,
            }
        })
        .collect()
}

fn linux(operation: &str, column: usize) -> Option<f64> {
    let line = LINUX.lines().find(|line| line.starts_with(&format!("| {operation} |")))?;
    line.split('|').nth(2 + column)?.trim().parse().ok()
}

fn count(case: &Case) -> Option<f64> {
    static EMPTY_LOOP: OnceLock<Option<f64>> = OnceLock::new();
    let empty = EMPTY_LOOP.get_or_init(|| per_turn(&EMPTY));
    Some((per_turn(case)? - (*empty)?) / case.per_turn as f64)
}

fn per_turn(case: &Case) -> Option<f64> {
    let single = collected(case, COUNT)?;
    let double = collected(case, 2 * COUNT)?;
    Some(double.checked_sub(single)? as f64 / COUNT as f64)
}

/// What every counted loop does beside its operation: it counts, and passes a pointer through memory.
const EMPTY: Case = Case {
    operation: "nothing",
    subject: "the loop",
    role: Role::Floor,
    per_turn: 1,
    run: |count| {
        for turn in 0..count {
            black_box(turn);
        }
    },
};

fn collected(case: &Case, count: u64) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .args([CHILD, case.operation, case.subject, &count.to_string()])
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let figure = collected_in(&text).filter(|_| output.status.success());
    if figure.is_none() {
        eprintln!(
            "bench: {} of {} was not counted: {}",
            case.operation,
            case.subject,
            text.lines().last().unwrap_or("callgrind said nothing")
        );
    }
    figure
}

fn collected_in(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("Collected :"))?;
    u64::from_str(line.rsplit(' ').find(|word| !word.is_empty())?).ok()
}

/// The counted process itself.
pub(crate) fn child(arguments: &[String]) -> ExitCode {
    let [operation, subject, count] = arguments else {
        return ExitCode::from(2);
    };
    let case =
        all_cases().into_iter().chain([EMPTY]).find(|case| case.operation == operation && case.subject == subject);
    match (case, count.parse()) {
        (Some(case), Ok(count)) => {
            (case.run)(count);
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(2),
    }
}

#[cfg(test)]
mod tests {
    use super::{AREA_OPERATIONS, OPERATIONS, collected_in, linux};

    #[test]
    fn every_operation_has_its_linux_row() {
        for (operation, _) in OPERATIONS {
            assert!(linux(operation, 0).is_some() && linux(operation, 1).is_some(), "{operation}");
        }
        for (operation, _) in AREA_OPERATIONS.iter().filter(|(name, _)| !name.contains("live")) {
            assert!(linux(operation, 0).is_some() && linux(operation, 1).is_some(), "{operation}");
        }
        assert_eq!(linux("bulk of 32 objects, per object", 0), Some(49.3));
    }

    #[test]
    fn the_total_is_read_from_callgrinds_last_words() {
        assert_eq!(collected_in("==7== Events    : Ir\n==7== Collected : 236418\n"), Some(236_418));
        assert_eq!(collected_in("valgrind: no such file"), None);
    }
}
