//! What a run leaves: Markdown tables on standard output and, if asked for, all figures as JSON.

use std::{fmt::Write as _, io::Write as _};

use serde_json::{Value, json};

use crate::{
    cli::{Options, Suite},
    measure::{Figures, Measured, Role, Unit},
};

/// Collects suites as they finish.
pub(crate) struct Report {
    quick: bool,
    json: Option<String>,
    suites: Vec<Value>,
    settings: Value,
}

impl Report {
    /// Prints the heading: machine, seed, rounds.
    pub(crate) fn new(options: &Options) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let model = processor();
        let settings = json!({
            "processor": model, "cpus": cpus, "seed": options.seed, "rounds": options.rounds, "quick": options.quick,
        });
        if !options.list && options.json.as_deref() != Some("-") {
            println!(
                "{model}, {cpus} CPUs; seed {:#x}, {} rounds{}. Each cell: best run (median).",
                options.seed,
                options.rounds,
                if options.quick { ", quick" } else { "" },
            );
        }
        Self { quick: options.quick, json: options.json.clone(), suites: Vec::new(), settings }
    }

    /// Prints the tables of one suite and keeps its figures.
    pub(crate) fn suite(&mut self, suite: Suite, rows: Vec<Measured>) {
        if self.json.as_deref() != Some("-") {
            print!("{}", table(suite, &rows));
            let _ = std::io::stdout().flush();
        }
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| {
                let subjects: Vec<Value> = row
                    .figures
                    .iter()
                    .map(|figures| {
                        json!({
                            "subject": figures.subject, "role": role(figures.role), "best": figures.best(),
                            "median": figures.median(), "runs": figures.runs,
                        })
                    })
                    .collect();
                json!({
                    "name": row.name, "parameters": row.parameters, "unit": row.unit.symbol(), "threads": row.threads, "subjects": subjects,
                })
            })
            .collect();
        self.suites.push(json!({ "suite": suite.name(), "rows": rows }));
    }

    /// Writes the JSON file.
    pub(crate) fn finish(self) -> Result<(), String> {
        let Some(path) = self.json else { return Ok(()) };
        let text = json!({ "settings": self.settings, "suites": self.suites }).to_string();
        if path == "-" {
            println!("{text}");
            return Ok(());
        }
        if self.quick {
            eprintln!("bench: these are the figures of a quick run");
        }
        std::fs::write(&path, text).map_err(|error| format!("cannot write {path}: {error}"))
    }
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Kmem => "kmem",
        Role::Peer => "peer",
        Role::Unshared => "unshared",
        Role::Floor => "floor",
    }
}

/// One table: a line per row, a column per subject, kmem's standing against the best peer in between.
fn table(suite: Suite, rows: &[Measured]) -> String {
    let mut names: Vec<(&str, Role)> = Vec::new();
    for figures in rows.iter().flat_map(|row| &row.figures) {
        if !names.iter().any(|(name, _)| *name == figures.subject) {
            names.push((&figures.subject, figures.role));
        }
    }
    names.sort_by_key(|(_, role)| *role as u8);
    let kmem = names.iter().filter(|(_, role)| *role == Role::Kmem).count();

    let mut out = format!("\n## {}\n\n| workload | unit |", suite.name());
    for (index, (name, _)) in names.iter().enumerate() {
        if index == kmem && kmem > 0 {
            out.push_str(" kmem / best peer |");
        }
        let _ = write!(out, " {name} |");
    }
    out.push_str("\n| --- | --- |");
    out.push_str(&" ---: |".repeat(names.len() + usize::from(kmem > 0 && kmem < names.len())));
    out.push('\n');
    for row in rows {
        let best = best_peer(row);
        let _ = write!(out, "| {} | {} |", row.name, row.unit.symbol());
        for (index, (name, _)) in names.iter().enumerate() {
            if index == kmem && kmem > 0 {
                let _ = write!(out, " {} |", standing(row, best));
            }
            let figures = row.figures.iter().find(|figures| figures.subject == *name);
            let text = figures.map_or("-".to_owned(), |figures| cell(figures, row.unit));
            let bold = best.is_some_and(|best| best.subject == *name);
            let mark = if bold { "**" } else { "" };
            let _ = write!(out, " {mark}{text}{mark} |");
        }
        out.push('\n');
    }
    out.push('\n');
    for row in rows {
        let _ = writeln!(out, "- {}: {}.", row.name, row.parameters);
    }
    out
}

fn best_peer(row: &Measured) -> Option<&Figures> {
    let peers = row.figures.iter().filter(|figures| figures.role == Role::Peer && !figures.runs.is_empty());
    let order = |a: &&Figures, b: &&Figures| row.verdict(a).total_cmp(&row.verdict(b));
    if row.unit.more_is_better() { peers.max_by(order) } else { peers.min_by(order) }
}

fn standing(row: &Measured, best: Option<&Figures>) -> String {
    let ours = row.figures.iter().find(|figures| figures.role == Role::Kmem);
    match (ours, best) {
        (Some(ours), Some(best)) if row.verdict(best) > 0.0 => {
            format!("{:.2}", row.verdict(ours) / row.verdict(best))
        }
        _ => "-".to_owned(),
    }
}

fn cell(figures: &Figures, unit: Unit) -> String {
    let number = |value: f64| match value {
        _ if unit == Unit::Ratio => format!("{value:.2}"),
        small if small < 10.0 => format!("{small:.1}"),
        large => format!("{large:.0}"),
    };
    if figures.runs.len() == 1 {
        number(figures.best())
    } else {
        format!("{} ({})", number(figures.best()), number(figures.median()))
    }
}

fn processor() -> String {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::table;
    use crate::{
        cli::Suite,
        measure::{Figures, Measured, Role, Unit},
    };

    #[test]
    fn kmem_stands_first_and_beside_the_best_peer() {
        let figures =
            |subject: &str, role, best: f64| Figures { subject: subject.into(), role, runs: vec![best, best * 2.0] };
        let rows = [Measured {
            name: "pair".into(),
            parameters: "per pair".into(),
            unit: Unit::Nanoseconds,
            threads: 1,
            figures: vec![
                figures("slow", Role::Peer, 40.0),
                figures("kmem", Role::Kmem, 4.0),
                figures("fast", Role::Peer, 16.0),
            ],
        }];
        let text = table(Suite::Pages, &rows);
        assert!(text.contains("| workload | unit | kmem | kmem / best peer | slow | fast |"), "{text}");
        assert!(text.contains("| pair | ns | 4.0 (8.0) | 0.25 | 40 (80) | **16 (32)** |"), "{text}");
    }
}
