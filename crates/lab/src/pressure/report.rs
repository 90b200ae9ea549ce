//! The figures: text, JSON, a page of plots.

use super::latency::Quantiles;
use crate::report::{Chart, Series, Shape, Unit, grouped};
use serde::Serialize;
use std::fmt::Write as _;

const STYLE: &str = include_str!("../report/page.css");
const SCRIPT: &str = include_str!("../report/page.js");

/// The machine at a moment, in pages and counts since the start.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Sample {
    /// Seconds since the start.
    pub second: f64,
    /// Free pages.
    pub free: u64,
    /// File-like pages in memory.
    pub file: u64,
    /// Anonymous pages in memory.
    pub anon: u64,
    /// Places of swap that are taken.
    pub swapped: u64,
    /// Pages reclaimed so far.
    pub reclaimed: u64,
    /// File-like pages that came back so far.
    pub refaults: u64,
    /// Time in which somebody was stalled so far, in microseconds.
    pub stalled_us: u64,
    /// Tasks killed so far.
    pub kills: u64,
}

/// Times of calls by kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Latencies {
    /// `alloc_pages` with `GFP_KERNEL`.
    pub page_kernel: Quantiles,
    /// `alloc_page` with `GFP_ATOMIC` in an interrupt.
    pub page_atomic: Quantiles,
    /// kmalloc and cache objects.
    pub kmalloc: Quantiles,
    /// A use of a page with contents: found, or brought in.
    pub page_with_contents: Quantiles,
}

/// Whether nothing was lost.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Reckoning {
    /// Pages whose bytes were checked at the end; each use of a page has checked it as well.
    pub pages_checked: u64,
    /// Of these, pages that could not be read.
    pub lost: u64,
    /// Pages, blocks and objects with wrong bytes, and frees that were refused.
    pub damaged: u64,
    /// Pages that no counter knows of after everything was given back.
    pub pages_missing: u64,
    /// Pages still on the page lists or in stores then.
    pub listed_left: u64,
    /// Pages still charged to memory cgroups then.
    pub charges_left: u64,
    /// Places of swap still taken then.
    pub swap_left: u64,
    /// Objects that the shrinker has given back.
    pub objects_shrunk: u64,
    /// Lines of reports that speak of a bug.
    pub reports: u64,
}

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PressureReport {
    /// CPUs with a worker each.
    pub cpus: u32,
    /// Memory of the machine.
    pub ram_bytes: u64,
    /// How long it ran.
    pub seconds: f64,
    /// Steps of all workers.
    pub steps: u64,
    /// Pages that background reclaim freed.
    pub reclaimed_by_kswapd: u64,
    /// Pages that requests and charges freed themselves.
    pub reclaimed_directly: u64,
    /// Both, for each second and CPU.
    pub reclaimed_per_second_and_cpu: f64,
    /// File-like pages that came back.
    pub refaults_file: u64,
    /// Anonymous pages that came back, the hogs' left out.
    pub refaults_anon: u64,
    /// Pages that reclaim took, the hogs' left out.
    pub evictions: u64,
    /// Pages written to their file or to swap, the hogs' left out.
    pub writebacks: u64,
    /// Tasks killed.
    pub oom_kills: u64,
    /// `/proc/pressure/memory` at the end.
    pub pressure: String,
    /// Times of calls.
    pub latencies: Latencies,
    /// The machine over time.
    pub samples: Vec<Sample>,
    /// Whether nothing was lost.
    pub reckoning: Reckoning,
}

impl PressureReport {
    /// Whether no byte was lost and every counter adds up.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let r = &self.reckoning;
        r.lost + r.damaged + r.pages_missing + r.listed_left + r.charges_left + r.swap_left + r.reports == 0
    }

    /// The text for a terminal.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        let r = &self.reckoning;
        let n = grouped;
        let _ = writeln!(
            out,
            "\n{} CPUs, {} MiB, {:.1} s, {} steps\n\nreclaimed   {} pages by kswapd, {} by requests: {:.0} a second and CPU\nrefaults    {} file-like, {} anonymous; {} evictions, {} writebacks\nshrinker    {} objects; {} tasks killed",
            self.cpus,
            self.ram_bytes >> 20,
            self.seconds,
            n(self.steps),
            n(self.reclaimed_by_kswapd),
            n(self.reclaimed_directly),
            self.reclaimed_per_second_and_cpu,
            n(self.refaults_file),
            n(self.refaults_anon),
            n(self.evictions),
            n(self.writebacks),
            n(r.objects_shrunk),
            self.oom_kills,
        );
        for line in self.pressure.lines() {
            let _ = writeln!(out, "pressure    {line}");
        }
        let _ = writeln!(
            out,
            "\n{:<26}{:>12}{:>9}{:>12}{:>12}{:>12}",
            "latency", "calls", "failed", "p50 us", "p99 us", "p99.9 us"
        );
        let l = &self.latencies;
        for (name, q) in [
            ("pages, GFP_KERNEL", l.page_kernel),
            ("page, GFP_ATOMIC", l.page_atomic),
            ("kmalloc, cache objects", l.kmalloc),
            ("page with contents", l.page_with_contents),
        ] {
            let us = |ns: u64| format!("{:.1}", ns as f64 / 1000.0);
            let _ = writeln!(
                out,
                "{name:<26}{:>12}{:>9}{:>12}{:>12}{:>12}",
                n(q.calls),
                n(q.failed),
                us(q.p50_ns),
                us(q.p99_ns),
                us(q.p999_ns)
            );
        }
        let _ = writeln!(
            out,
            "\n{}  {} pages checked byte by byte, {} unreadable, {} damaged; left over: {} pages, {} on lists, {} charged, {} of swap",
            if self.is_clean() { "sound" } else { "NOT SOUND" },
            n(r.pages_checked),
            r.lost,
            r.damaged,
            r.pages_missing,
            r.listed_left,
            r.charges_left,
            r.swap_left
        );
        out
    }
}

/// The page of plots.
#[must_use]
pub(super) fn html(report: &PressureReport) -> String {
    let places: Vec<f64> = report.samples.iter().map(|sample| sample.second).collect();
    let series = |name: &str, colour: usize, value: fn(&Sample) -> u64| Series {
        name: name.to_owned(),
        colour,
        values: report.samples.iter().map(|sample| value(sample) as f64).collect(),
    };
    let charts = [
        Chart {
            id: "memory",
            title: "Memory",
            about: "Where the pages of the machine are, over time.",
            unit: Unit::Pages,
            shape: Shape::Stack,
            series: vec![
                series("file-like", 0, |s| s.file),
                series("anonymous", 1, |s| s.anon),
                series("free", 2, |s| s.free),
            ],
        },
        Chart {
            id: "reclaim",
            title: "Reclaim",
            about: "Pages reclaimed, pages that came back, and places of swap taken, since the start.",
            unit: Unit::Pages,
            shape: Shape::Lines { fill_first: false },
            series: vec![
                series("reclaimed", 0, |s| s.reclaimed),
                series("file-like pages back", 1, |s| s.refaults),
                series("swapped", 2, |s| s.swapped),
            ],
        },
    ];
    let mut data = serde_json::Map::new();
    let mut figures = String::new();
    for chart in &charts {
        figures.push_str(&chart.figure_over(&places, &[], "seconds"));
        data.insert(chart.id.to_owned(), chart.data());
    }
    let data = serde_json::json!({ "events": places, "charts": data }).to_string().replace('<', "\\u003c");
    let text = crate::report::escape(&report.text());
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
<title>kmem pressure</title><style>{STYLE}</style></head>\n<body><main>\n<header><div><h1>Under pressure</h1>\
<p class=\"soft\">{} CPUs, {} MiB</p></div><button id=\"theme\" type=\"button\">Dark</button></header>\n{figures}\n<pre>{text}</pre>\n\
<footer>Written by <code>cargo lab pressure</code>.</footer>\n</main>\n\
<script type=\"application/json\" id=\"data\">{data}</script>\n<script>{SCRIPT}</script>\n</body></html>\n",
        report.cpus,
        report.ram_bytes >> 20
    )
}
