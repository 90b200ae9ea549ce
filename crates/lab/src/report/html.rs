//! The page of plots: one file that needs nothing else.

use super::chart::{Chart, Series, Shape, Unit, escape};
use super::number::{bytes, grouped, percent};
use super::summary::{CacheRow, Report, area_rows};
use crate::program::Level;
use crate::replay::{Sample, unusable_index};
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const CACHES: usize = 24;

/// The whole page.
#[must_use]
pub fn html(r: &Report) -> String {
    let events: Vec<f64> = r.samples.iter().map(|s| s.mark.event as f64).collect();
    let phases: Vec<(f64, String)> =
        r.samples.iter().filter_map(|s| s.mark.phase.clone().map(|p| (s.mark.event as f64, p))).collect();
    let charts = charts(r);
    let mut body = String::new();
    for chart in &charts {
        body.push_str(&chart.figure(&events, &phases));
    }
    let data: serde_json::Map<String, serde_json::Value> = charts.iter().map(|c| (c.id.to_owned(), c.data())).collect();
    // `<` would end the script early.
    let data = serde_json::json!({ "events": events, "charts": data }).to_string().replace('<', "\\u003c");
    let title = escape(&r.trace.name);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
<title>kmem replay: {title}</title><style>{STYLE}</style></head>\n<body><main>\n{head}{tiles}{body}{areas}{caches}{events}\
<footer>Written by <code>cargo lab</code>. Figures of Linux come from the trace itself; what is counted stands in <code>crates/lab/README.md</code>.</footer>\n\
</main>\n<script type=\"application/json\" id=\"data\">{data}</script>\n<script>{SCRIPT}</script>\n</body></html>\n",
        head = head(r),
        tiles = tiles(r),
        areas = areas_card(r),
        caches = caches(r),
        events = events_card(r),
    )
}

fn head(r: &Report) -> String {
    let level = match r.level {
        Level::Objects => "objects only",
        Level::Pages => "pages only",
        Level::All => "objects and pages",
    };
    format!(
        "<header><div><h1>{}</h1><p class=\"soft\">{} events of {} CPU{} ({level}), replayed on kmem: {} CPUs, {}</p></div>\
<button id=\"theme\" type=\"button\">Dark</button></header>\n",
        escape(&r.trace.name),
        grouped(r.trace.events),
        r.trace.cpus,
        if r.trace.cpus == 1 { "" } else { "s" },
        r.machine.cpus,
        bytes(r.machine.ram_bytes),
    )
}

fn tiles(r: &Report) -> String {
    let mut out = String::from("<section class=\"tiles\">");
    let mut tile = |label: &str, value: String, class: &str, more: String| {
        let _ = write!(
            out,
            "<div class=\"tile\"><span>{}</span><b class=\"{class}\">{}</b><span>{}</span></div>",
            escape(label),
            escape(&value),
            escape(&more)
        );
    };
    let linux = &r.linux.figures;
    if r.level != Level::Pages {
        let mut pages = |label: &str, here: u64, there: u64| {
            let (class, more) = match (r.has_linux(), here.cmp(&there)) {
                (false, _) => ("", "pages".into()),
                (true, std::cmp::Ordering::Greater) => ("bad", format!("Linux {}", grouped(there))),
                (true, _) => ("good", format!("Linux {}", grouped(there))),
            };
            tile(label, grouped(here), class, more);
        };
        pages("Slab pages, peak", r.peak.slab_pages, linux.slab_pages_peak);
        pages("Slab pages, end", r.end.slab_pages, linux.slab_pages_end);
        if let (Some(here), there) = r.efficiency() {
            let more = there.map_or("at the end".into(), |t| format!("Linux {}", percent(t)));
            tile("Bytes asked / held", percent(here), "", more);
        }
        tile("Bytes live, peak", bytes(r.peak.live_bytes), "", format!("{} objects", grouped(r.peak.live_objects)));
    } else {
        tile("Pages in use, peak", grouped(r.peak.total_pages), "", format!("end {}", grouped(r.end.total_pages)));
    }
    if let Some(c) = &r.time.calls {
        let (alloc, free) =
            if c.allocs > 0 { (c.ns_per_alloc, c.ns_per_free) } else { (c.ns_per_page_alloc, c.ns_per_page_free) };
        tile("Allocation / free", format!("{alloc:.0} / {free:.0} ns"), "", "the calls alone".into());
    }
    let i = &r.integrity;
    let (value, class) = if i.is_clean() { ("ok", "good") } else { ("broken", "bad") };
    let more = format!("{} overlaps, {} corrupt, {} leaked", i.overlaps, i.corrupt, i.leaked);
    tile("Integrity", value.into(), class, more);
    out.push_str("</section>\n");
    out
}

fn series(name: impl Into<String>, colour: usize, samples: &[Sample], value: impl Fn(&Sample) -> f64) -> Series {
    Series { name: name.into(), colour, values: samples.iter().map(value).collect() }
}

fn charts(r: &Report) -> Vec<Chart<'static>> {
    let s = &r.samples;
    let mut out = Vec::new();
    if r.level != Level::Pages {
        out.push(Chart {
            id: "live",
            title: "Live bytes, and what is held for them",
            about: "Bytes asked for by all live objects, and the memory of the slabs they stand in. The distance between the two is what the allocator spends.",
            unit: Unit::Bytes,
            shape: Shape::Lines { fill_first: true },
            series: vec![
                series("bytes live", 0, s, |s| s.live_bytes as f64),
                series("bytes held by kmem's slabs", 1, s, |s| (s.slab_pages * 4096) as f64),
            ],
        });
        let mut slabs = vec![series("kmem", 1, s, |s| s.slab_pages as f64)];
        if r.has_linux() {
            slabs.push(series("Linux", 2, s, |s| s.mark.linux_slab_pages as f64));
        }
        out.push(Chart {
            id: "slabs",
            title: "Slab pages",
            about: "Pages held by slabs at each moment, for all requests. Of Linux's slabs from before the trace, only the bytes that the trace's objects occupy are counted.",
            unit: Unit::Pages,
            shape: Shape::Lines { fill_first: false },
            series: slabs,
        });
    }
    out.push(Chart {
        id: "used",
        title: "Pages in use",
        about: "All pages that the replay holds, slabs included.",
        unit: Unit::Pages,
        shape: Shape::Lines { fill_first: true },
        series: vec![series("pages", 3, s, |s| s.total_pages as f64)],
    });
    if r.vmalloc.is_some() {
        out.push(Chart {
            id: "lazy",
            title: "Pages of addresses freed lazily",
            about: "Pages of areas that are freed and unmapped, and wait for the flush after which their addresses are handed out again.",
            unit: Unit::Pages,
            shape: Shape::Lines { fill_first: false },
            series: vec![
                series("kmem", 1, s, |s| s.lazy_pages as f64),
                series("Linux", 2, s, |s| s.mark.linux_lazy_pages as f64),
            ],
        });
    }
    let orders = s.iter().map(|s| s.free_blocks.len()).max().unwrap_or(0);
    out.push(Chart {
        id: "orders",
        title: "Free blocks by order",
        about: "How many free blocks of each order the page allocator has, all zones together. A block of order n is 2ⁿ pages of 4 KiB.",
        unit: Unit::Blocks,
        shape: Shape::Heat,
        series: (0..orders)
            .map(|o| series(format!("order {o}"), 0, s, |s| s.free_blocks.get(o).copied().unwrap_or(0) as f64))
            .collect(),
    });
    out.push(Chart {
        id: "fragmentation",
        title: "External fragmentation",
        about: "The share of free memory that a request of the order cannot use, because it lies in smaller blocks (the kernel's unusable index).",
        unit: Unit::Share,
        shape: Shape::Lines { fill_first: false },
        series: [(3usize, 3usize), (6, 4), (9, 1), (10, 5)]
            .into_iter()
            .filter(|(o, _)| *o < orders.max(1))
            .map(|(o, colour)| series(format!("order {o}"), colour, s, |s| unusable_index(&s.free_blocks, o)))
            .collect(),
    });
    out
}

fn caches(r: &Report) -> String {
    if r.level == Level::Pages || r.caches.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<section class=\"card\"><h2>The biggest caches, at the end, for the same requests</h2><table><tr><th>cache</th><th>bytes per object</th><th>objects in use or parked</th><th>kmem pages</th><th>Linux pages</th></tr>",
    );
    for row in r.caches.iter().take(CACHES) {
        let CacheRow { name, object_bytes, active_objects, pages, linux_pages, .. } = row;
        let class = match pages {
            Some(p) if *linux_pages > 0 && p < linux_pages => "less",
            Some(p) if *linux_pages > 0 && p > linux_pages => "more",
            _ => "",
        };
        let _ = write!(
            out,
            "<tr><td>{}</td><td>{object_bytes}</td><td>{}</td><td class=\"{class}\">{}</td><td>{}</td></tr>",
            escape(name),
            grouped(*active_objects),
            pages.map_or("–".into(), grouped),
            grouped(*linux_pages)
        );
    }
    out.push_str("</table></section>\n");
    out
}

fn areas_card(r: &Report) -> String {
    let Some(a) = &r.vmalloc else { return String::new() };
    let mut out = String::from(
        "<section class=\"card\"><h2>Addresses of vmalloc</h2><table><tr><th></th><th>kmem</th><th>Linux</th></tr>",
    );
    for (name, here, there) in area_rows(a) {
        let show = |n: Option<u64>| n.map_or("–".into(), grouped);
        let _ = write!(out, "<tr><td>{name}</td><td>{}</td><td>{}</td></tr>", show(here), show(there));
    }
    out.push_str("</table></section>\n");
    out
}

fn events_card(r: &Report) -> String {
    let mut out = String::from("<section class=\"card\"><h2>Events</h2><table><tr><th>event</th><th>count</th></tr>");
    let mut types: Vec<_> = r.trace.by_type.iter().collect();
    types.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    for (name, n) in types.iter().take(40) {
        let _ = write!(out, "<tr><td>{}</td><td>{}</td></tr>", escape(name), grouped(**n));
    }
    let s = &r.skipped;
    let _ = write!(
        out,
        "</table><p class=\"soft\" style=\"margin-top:10px\">{} replayed; {} frees of older memory, {} for other allocators, {} failed in Linux, {} Linux's own metadata, {} told twice, {} of the other level, {} about Linux's state, {} unknown.</p></section>",
        grouped(r.replayed),
        grouped(s.unmatched_free),
        grouped(s.unsupported),
        grouped(s.failed_in_trace),
        grouped(s.metadata),
        grouped(s.duplicate),
        grouped(s.other_level),
        grouped(s.bookkeeping),
        grouped(s.unknown_event)
    );
    out.push('\n');
    out
}
