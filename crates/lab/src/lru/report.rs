//! The outcome: a table, JSON, a page of plots.

use crate::report::{Chart, Series, Shape, Unit, escape, grouped, percent};
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use std::fmt::Write as _;

const STYLE: &str = include_str!("../report/page.css");
const SCRIPT: &str = include_str!("../report/page.js");

/// Misses at one memory size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SizeRow {
    /// Frames.
    pub frames: u32,
    /// kmem's generations.
    pub generations: u64,
    /// kmem's classic lists.
    pub classic: u64,
    /// The least recently used page goes.
    pub lru: u64,
    /// CLOCK.
    pub clock: u64,
    /// Belady's optimum.
    pub optimum: u64,
}

impl SizeRow {
    /// Each way with its misses.
    fn columns(&self) -> [(&'static str, u64); 5] {
        [
            ("generations", self.generations),
            ("classic", self.classic),
            ("LRU", self.lru),
            ("CLOCK", self.clock),
            ("optimum", self.optimum),
        ]
    }
}

/// Misses on one trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LruReport {
    /// The trace.
    pub name: String,
    /// References in it.
    pub references: u64,
    /// Pages in it.
    pub pages: u32,
    /// By memory size, upwards.
    pub sizes: Vec<SizeRow>,
}

impl LruReport {
    /// Misses in a hundred references.
    fn ratio(&self, misses: u64) -> f64 {
        misses as f64 / (self.references.max(1)) as f64
    }

    /// The table for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        let head = ["frames", "generations", "classic", "LRU", "CLOCK", "optimum", "gens/classic", "gens/optimum"];
        table.load_style(comfy_table::presets::NOTHING).set_header(head);
        for row in &self.sizes {
            let mut cells = vec![grouped(row.frames.into())];
            cells.extend(row.columns().map(|(_, misses)| percent(self.ratio(misses))));
            for other in [row.classic, row.optimum] {
                cells.push(format!("{:.3}", row.generations as f64 / other.max(1) as f64));
            }
            table.add_row(cells);
        }
        for column in table.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let (references, pages) = (grouped(self.references), grouped(self.pages.into()));
        let mut out = format!("{}: {references} references to {pages} pages; misses in references\n\n", self.name);
        for line in table.to_string().lines() {
            let _ = writeln!(out, " {}", line.trim_end());
        }
        out
    }
}

/// The page of plots: a plot for each trace.
#[must_use]
pub(crate) fn html(reports: &[LruReport]) -> String {
    let (mut figures, mut charts) = (String::new(), serde_json::Map::new());
    let mut places: Vec<f64> = Vec::new();
    for (nth, report) in reports.iter().enumerate() {
        let id = format!("lru{nth}");
        let frames: Vec<f64> = report.sizes.iter().map(|row| row.frames.into()).collect();
        let series = |at: usize| -> Option<Series> {
            let name = report.sizes.first()?.columns().get(at)?.0.to_owned();
            let values = report.sizes.iter().map(|row| row.columns().get(at).map_or(0.0, |c| report.ratio(c.1)));
            Some(Series { name, colour: at, values: values.collect() })
        };
        let chart = Chart {
            id: &id,
            title: &report.name,
            about: "References that miss, by the size of memory in frames. The optimum knows the future.",
            unit: Unit::Share,
            shape: Shape::Lines { fill_first: false },
            series: (0..5).filter_map(series).collect(),
        };
        figures.push_str(&chart.figure_over(&frames, &[], "frames"));
        // The cross hair knows one row of places; it serves a page with one trace.
        if reports.len() == 1 {
            charts.insert(id.clone(), chart.data());
            places = frames;
        }
    }
    let data = serde_json::json!({ "events": places, "charts": charts }).to_string().replace('<', "\\u003c");
    let title = reports.iter().map(|report| escape(&report.name)).collect::<Vec<_>>().join(", ");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
<title>kmem lru: {title}</title><style>{STYLE}</style></head>\n<body><main>\n<header><div><h1>Page replacement</h1>\
<p class=\"soft\">{title}</p></div><button id=\"theme\" type=\"button\">Dark</button></header>\n{figures}\
<footer>Written by <code>cargo lab lru</code>.</footer>\n</main>\n\
<script type=\"application/json\" id=\"data\">{data}</script>\n<script>{SCRIPT}</script>\n</body></html>\n"
    )
}
