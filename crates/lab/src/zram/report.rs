//! The outcome: a text for a terminal, a page with plots.

use super::{ClassRow, ZramReport};
use crate::report::{Chart, Series, Shape, Unit, escape, grouped, percent};
use comfy_table::{CellAlignment, Table};
use std::fmt::Write as _;

const STYLE: &str = include_str!("../report/page.css");
const SCRIPT: &str = include_str!("../report/page.js");
/// Rows of the histogram.
const BANDS: usize = 16;
const BAR: usize = 40;

/// Classes joined into bands of 256 bytes.
fn bands(classes: &[ClassRow]) -> [ClassRow; BANDS] {
    let mut bands = std::array::from_fn(|nth| ClassRow {
        size: (nth + 1) * 4096 / BANDS,
        frames_per_zspage: 0,
        objects: 0,
        bytes_stored: 0,
        frames: 0,
    });
    for class in classes {
        if let Some(band) = bands.get_mut((class.size - 1) * BANDS / 4096) {
            band.objects += class.objects;
            band.bytes_stored += class.bytes_stored;
            band.frames += class.frames;
        }
    }
    bands
}

fn lines(table: &mut Table, out: &mut String) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for line in table.to_string().lines() {
        let _ = writeln!(out, " {}", line.trim_end());
    }
}

impl ZramReport {
    /// The report for a terminal.
    #[must_use]
    pub fn text(&self, all_classes: bool) -> String {
        let with_linux = self.stages.iter().any(|stage| stage.linux.is_some());
        let mut out = format!("{}: {} pages of 4 KiB, {}\n\n", self.source, grouped(self.pages), self.algorithm);
        out.push_str("mm_stat: orig_data_size compr_data_size mem_used_total mem_limit mem_used_max same_pages pages_compacted huge_pages huge_pages_since\n");
        for stage in &self.stages {
            let _ = write!(out, "  {:<16} kmem   {}", stage.name, stage.mm_stat);
            if let Some(line) = &stage.linux_mm_stat {
                let _ = write!(out, "  {:<16} Linux  {line}", "");
            }
        }
        out.push('\n');
        let mut table = Table::new();
        let mut head = vec!["", "objects", "bytes stored", "bytes held", "density", "with metadata"];
        if with_linux {
            head.extend(["Linux holds", "Linux density"]);
        }
        table.load_style(comfy_table::presets::NOTHING).set_header(head);
        for stage in &self.stages {
            let mut cells = vec![stage.name.to_owned()];
            cells.extend([stage.objects, stage.bytes_stored, stage.bytes_held].map(grouped));
            cells.extend([stage.density(), stage.density_with_metadata()].map(|density| format!("{density:.4}")));
            if let Some(linux) = stage.linux {
                let density = linux.bytes_stored as f64 / linux.bytes_held.max(1) as f64;
                cells.extend([grouped(linux.bytes_held), format!("{density:.4}")]);
            }
            table.add_row(cells);
        }
        lines(&mut table, &mut out);
        let _ = writeln!(out, "\nobjects by class, filled");
        let bands = bands(&self.classes);
        let most = bands.iter().map(|band| band.objects).max().unwrap_or(0).max(1);
        let mut from = 1;
        for band in bands {
            let length = (band.objects as usize * BAR).div_ceil(most as usize);
            let bar = "█".repeat(length);
            let share = band.bytes_stored as f64 / (band.frames.max(1) * 4096) as f64;
            let (objects, frames) = (grouped(band.objects), grouped(band.frames));
            let full = if band.frames == 0 { "–".to_owned() } else { percent(share) };
            let _ =
                writeln!(out, "  {from:>4}..{:<4} {objects:>8} objects {frames:>7} frames {full:>7}  {bar}", band.size);
            from = band.size + 1;
        }
        if all_classes {
            let _ = write!(out, "\n{}", self.class_table);
        }
        let s = &self.speed;
        let rate = |ns: f64| if ns > 0.0 { 4096.0 / ns * 1e9 / f64::from(1 << 20) } else { 0.0 };
        let _ = writeln!(
            out,
            "\nstore {:.2} µs a page ({:.0} MiB/s), load {:.2} µs ({:.0} MiB/s), discard {:.2} µs; compaction gave {} frames back in {:.0} ms",
            s.store_ns / 1e3,
            rate(s.store_ns),
            s.load_ns / 1e3,
            rate(s.load_ns),
            s.discard_ns / 1e3,
            grouped(self.frames_compacted),
            s.compact_s * 1e3
        );
        if with_linux {
            out.push_str("(without compressing: the sizes are Linux's)\n");
        }
        let _ = writeln!(out, "verified {} pages, {} damaged", grouped(self.verified), grouped(self.damaged));
        out
    }
}

/// The page of plots: bytes by class, density by stage.
#[must_use]
pub(super) fn html(report: &ZramReport) -> String {
    let sizes: Vec<f64> = report.classes.iter().map(|class| class.size as f64).collect();
    let series = |name: &str, colour, value: fn(&ClassRow) -> f64| Series {
        name: name.to_owned(),
        colour,
        values: report.classes.iter().map(value).collect(),
    };
    let chart = Chart {
        id: "classes",
        title: "Bytes by size class",
        about: "Bytes of frames and of the objects in them, for each class of the filled device.",
        unit: Unit::Bytes,
        shape: Shape::Lines { fill_first: false },
        series: vec![
            series("held", 0, |class| (class.frames * 4096) as f64),
            series("stored", 1, |class| class.bytes_stored as f64),
        ],
    };
    let figure = chart.figure_over(&sizes, &[], "bytes of a slot");
    let data = serde_json::json!({ "events": sizes, "charts": { "classes": chart.data() } }).to_string();
    let data = data.replace('<', "\\u003c");
    let mut rows = String::new();
    for stage in &report.stages {
        let linux = stage.linux.map_or_else(
            || "–".to_owned(),
            |linux| format!("{:.4}", linux.bytes_stored as f64 / linux.bytes_held.max(1) as f64),
        );
        let _ = write!(
            rows,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.4}</td><td>{:.4}</td><td>{linux}</td></tr>",
            stage.name,
            grouped(stage.bytes_stored),
            grouped(stage.bytes_held),
            stage.density(),
            stage.density_with_metadata()
        );
    }
    let title = escape(&report.source);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
<title>kmem zram: {title}</title><style>{STYLE}</style></head>\n<body><main>\n<header><div><h1>Compressed memory</h1>\
<p class=\"soft\">{title}, {} pages, {}</p></div><button id=\"theme\" type=\"button\">Dark</button></header>\n\
<table><thead><tr><th></th><th>bytes stored</th><th>bytes held</th><th>density</th><th>with metadata</th><th>Linux</th></tr></thead>\
<tbody>{rows}</tbody></table>\n{figure}\
<footer>Written by <code>cargo lab zram</code>.</footer>\n</main>\n\
<script type=\"application/json\" id=\"data\">{data}</script>\n<script>{SCRIPT}</script>\n</body></html>\n",
        grouped(report.pages),
        report.algorithm
    )
}
