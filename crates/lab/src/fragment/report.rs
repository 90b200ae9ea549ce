//! The outcome: tables, JSON, a page of plots.

use super::replay::Packing;
use super::scenario::{Outcome, Round};
use crate::report::{Chart, Series, Shape, Unit, escape, grouped, percent};
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use std::fmt::Write as _;

const STYLE: &str = include_str!("../report/page.css");
const SCRIPT: &str = include_str!("../report/page.js");

/// Everything about one trace.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FragmentReport {
    /// The trace.
    pub name: String,
    /// Its page events.
    pub events: u64,
    /// The share of the pages asked for that can move.
    pub movable_share: f64,
    /// Huge frames of the machine on which the events were replayed from empty.
    pub huge_frames: u64,
    /// The events on an empty machine, by allocator.
    pub from_empty: Vec<Packing>,
    /// The events on a machine on which the frames are in use that Linux had in use when the trace began; empty if that is not known.
    pub from_linux: Vec<Packing>,
    /// Free huge frames in Linux's buddyinfo when the trace began and ended, if known.
    pub linux_huge: (Option<u64>, Option<u64>),
    /// CPUs of the fragmented machine.
    pub cpus: u32,
    /// Its memory, in bytes.
    pub ram_bytes: u64,
    /// What could be had of it, by the way in which it was thinned out.
    pub outcomes: Vec<Outcome>,
    /// Who was left out, and why.
    pub notices: Vec<String>,
}

impl FragmentReport {
    /// Whether no page lost its contents.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.outcomes.iter().all(|outcome| outcome.broken == 0)
    }

    /// The tables for a terminal.
    #[must_use]
    pub fn tables(&self) -> String {
        let mut out = format!(
            "{}: {} page events; {} of the pages asked for can move\n\n",
            self.name,
            grouped(self.events),
            percent(self.movable_share)
        );
        for (title, rows) in
            [("from an empty machine", &self.from_empty), ("from the frames that Linux had in use", &self.from_linux)]
        {
            if !rows.is_empty() {
                let linux = if rows == &self.from_linux { self.linux_huge } else { (None, None) };
                let _ = writeln!(out, " free huge frames (2 MiB), {title}\n\n{}", packings(rows, linux));
            }
        }
        let mib = self.ram_bytes >> 20;
        let _ = writeln!(
            out,
            " {mib} MiB, {} CPUs, filled to 9/10 with this mix and thinned out to half\n\n{}",
            self.cpus,
            self.asked()
        );
        for notice in &self.notices {
            let _ = writeln!(out, " {notice}");
        }
        out
    }

    fn asked(&self) -> String {
        let head = ["freed by", "asked for", "", "had", "possible", "", "pages moved", "ms", "moved/s"];
        let mut table = plain(&head);
        for outcome in &self.outcomes {
            let [b2, b4] = outcome.before;
            let [d2, d4] = outcome.direct;
            let [a2, a4] = outcome.after;
            let rows: [(&str, &str, Round); 8] = [
                ("2 MiB", "at once", b2),
                ("4 MiB", "at once", b4),
                ("2 MiB", "compacting on the way", d2),
                ("4 MiB", "compacting on the way", d4),
                ("", "compact_memory, huge frames", outcome.compaction),
                ("2 MiB", "after that", a2),
                ("4 MiB", "after that", a4),
                ("CMA buffer", "1/16 of the memory", outcome.cma),
            ];
            for (nth, (what, how, round)) in rows.into_iter().enumerate() {
                let way = if nth == 0 { outcome.way.name() } else { "" };
                let speed = if round.moved == 0 {
                    String::new()
                } else {
                    grouped(round.moved * 1_000_000 / round.micros.max(1))
                };
                table.add_row([
                    way.to_owned(),
                    what.to_owned(),
                    how.to_owned(),
                    grouped(round.got),
                    grouped(round.possible),
                    percent(round.success()),
                    grouped(round.moved),
                    format!("{:.1}", round.micros as f64 / 1000.0),
                    speed,
                ]);
            }
        }
        shown(table, 3)
    }
}

fn plain(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head.iter().copied());
    table
}

/// The text of a table whose first `left` columns are words.
fn shown(mut table: Table, left: usize) -> String {
    for column in table.column_iter_mut().skip(left) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut out = String::new();
    for line in table.to_string().lines() {
        let _ = writeln!(out, " {}", line.trim_end());
    }
    out
}

fn packings(rows: &[Packing], linux: (Option<u64>, Option<u64>)) -> String {
    let mut table = plain(&["", "before", "least", "after", "2 MiB had", "pages in use", "refused"]);
    for row in rows {
        table.add_row([
            row.name.to_owned(),
            grouped(row.free_before),
            grouped(row.free_least),
            grouped(row.free_after),
            grouped(row.obtained),
            grouped(row.used_pages),
            grouped(row.failed),
        ]);
    }
    if let (Some(before), Some(after)) = linux {
        let none = String::new;
        table.add_row(["Linux, buddyinfo".to_owned(), grouped(before), none(), grouped(after), none(), none(), none()]);
    }
    shown(table, 1)
}

/// The page: a plot for each trace, the tables below.
#[must_use]
pub(crate) fn html(reports: &[FragmentReport]) -> String {
    let mut figures = String::new();
    for (nth, report) in reports.iter().enumerate() {
        let id = format!("fragment{nth}");
        let series = |colour: usize, name: &str, pick: fn(&Outcome) -> [Round; 2]| Series {
            name: name.to_owned(),
            colour,
            values: report.outcomes.iter().flat_map(|outcome| pick(outcome).map(|round| round.success())).collect(),
        };
        let places: Vec<f64> = (0..2 * report.outcomes.len()).map(|place| place as f64).collect();
        let title = format!("{}: blocks had, of those possible", report.name);
        let chart = Chart {
            id: &id,
            title: &title,
            about: "From left to right: freed by random, by age, by owner; for each 2 MiB, then 4 MiB.",
            unit: Unit::Share,
            shape: Shape::Lines { fill_first: false },
            series: vec![
                series(0, "at once", |outcome| outcome.before),
                series(1, "compacting on the way", |outcome| outcome.direct),
                series(2, "after compact_memory", |outcome| outcome.after),
            ],
        };
        figures.push_str(&chart.figure_over(&places, &[], "requests"));
        let _ = writeln!(figures, "<pre>{}</pre>", escape(&report.tables()));
    }
    let data = serde_json::json!({ "events": [], "charts": {} }).to_string();
    let title = reports.iter().map(|report| escape(&report.name)).collect::<Vec<_>>().join(", ");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
<title>kmem fragment: {title}</title><style>{STYLE}</style></head>\n<body><main>\n<header><div><h1>Fragmentation</h1>\
<p class=\"soft\">{title}</p></div><button id=\"theme\" type=\"button\">Dark</button></header>\n{figures}\
<footer>Written by <code>cargo lab fragment</code>.</footer>\n</main>\n\
<script type=\"application/json\" id=\"data\">{data}</script>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )
}
