//! A replay's outcome as tables of text.

use super::number::{bytes, grouped, percent, ratio};
use super::summary::{Report, area_rows};
use crate::program::Level;
use crate::replay::Order;
use crate::target::ZoneFree;
use comfy_table::{CellAlignment, Table};
use std::fmt::Write as _;

/// Caches that are listed.
const CACHES: usize = 16;

/// The whole outcome, ready to print.
#[must_use]
pub fn terminal(r: &Report) -> String {
    let mut out = String::new();
    header(&mut out, r);
    out.push_str(&comparison(r));
    areas(&mut out, r);
    caches(&mut out, r);
    buddyinfo(&mut out, r);
    events(&mut out, r);
    integrity(&mut out, r);
    out
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head.iter().copied());
    table
}

/// The table as text: first column to the left, numbers to the right, a line under the head.
fn text(mut table: Table) -> String {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let text = table.to_string();
    let width = text.lines().map(|l| l.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (number, line) in text.lines().enumerate() {
        let _ = writeln!(out, " {}", line.trim_end());
        if number == 0 {
            let _ = writeln!(out, "  {}", "─".repeat(width.saturating_sub(2)));
        }
    }
    out
}

fn header(out: &mut String, r: &Report) {
    let level = match r.level {
        Level::Objects => "objects only",
        Level::Pages => "pages only",
        Level::All => "objects and pages",
    };
    let order = match r.order {
        Order::Trace => "in trace order",
        Order::Parallel => "all CPUs at once",
    };
    let plural = |n: u64, what: &str| if n == 1 { format!("1 {what}") } else { format!("{} {what}s", grouped(n)) };
    let _ = writeln!(
        out,
        "{}: {} on {}, replayed ({level}, {order}) on {}, {}",
        r.trace.name,
        plural(r.trace.events, "event"),
        plural(r.trace.cpus, "CPU"),
        plural(u64::from(r.machine.cpus), "CPU"),
        bytes(r.machine.ram_bytes),
    );
    out.push('\n');
}

fn comparison(r: &Report) -> String {
    let mut t = table(&["", "kmem", "Linux", "kmem/Linux"]);
    let linux = &r.linux.figures;
    let mut pages = |name: &str, here: u64, there: u64| {
        if r.has_linux() {
            t.add_row([name.into(), grouped(here), grouped(there), ratio(here, there)]);
        } else {
            t.add_row([name.into(), grouped(here), "–".into(), String::new()]);
        }
    };
    if r.level != Level::Pages {
        pages("slab pages, peak", r.peak.slab_pages, linux.slab_pages_peak);
        pages("slab pages, end", r.end.slab_pages, linux.slab_pages_end);
        if r.same_requests.is_some() {
            pages("  for all requests, peak", r.peak.all_slab_pages, linux.all_slab_pages_peak);
            pages("  for all requests, end", r.end.all_slab_pages, linux.all_slab_pages_end);
        }
        let (here, there) = r.efficiency();
        let show = |e: Option<f64>| e.map_or("–".into(), percent);
        let quotient = here.zip(there).map_or(String::new(), |(a, b)| format!("{:.3}", a / b));
        t.add_row(["bytes asked / held, end".into(), show(here), show(there), quotient]);
        t.add_row(["bytes live, peak".into(), bytes(r.peak.live_bytes), String::new(), String::new()]);
        t.add_row(["bytes live, end".into(), bytes(r.end.live_bytes), String::new(), String::new()]);
        t.add_row(["objects live, end".into(), grouped(r.end.live_objects), String::new(), String::new()]);
        t.add_row(["large kmallocs, end".into(), bytes(r.end.large_kmalloc_bytes), String::new(), String::new()]);
    }
    if r.peak.metadata_pages > 0 {
        t.add_row(["kmem's own pages, end".into(), grouped(r.end.metadata_pages), String::new(), String::new()]);
    }
    t.add_row(["pages in use, peak".into(), grouped(r.peak.total_pages), String::new(), String::new()]);
    t.add_row(["pages in use, end".into(), grouped(r.end.total_pages), String::new(), String::new()]);
    let mut out = text(t);
    let _ = write!(
        out,
        "\n  {:.2} s for reading, replaying and checking, {:.2} million events/s",
        r.time.wall_s,
        r.time.events_per_s / 1e6
    );
    if let Some(calls) = &r.time.calls {
        let mut pair = |what: &str, alloc: f64, free: f64| {
            let _ = write!(out, "\n  the calls alone, {what:8} {alloc:.1} ns per allocation, {free:.1} ns per free");
        };
        if calls.allocs > 0 {
            pair("objects:", calls.ns_per_alloc, calls.ns_per_free);
        }
        if calls.ns_per_page_alloc > 0.0 {
            pair("pages:", calls.ns_per_page_alloc, calls.ns_per_page_free);
        }
    }
    out.push_str("\n\n");
    out
}

fn areas(out: &mut String, r: &Report) {
    let Some(a) = &r.vmalloc else { return };
    let mut t = table(&["vmalloc's addresses", "kmem", "Linux"]);
    for (name, here, there) in area_rows(a) {
        t.add_row([name.to_owned(), here.map_or("–".into(), grouped), there.map_or("–".into(), grouped)]);
    }
    out.push_str(&text(t));
    out.push('\n');
}

fn caches(out: &mut String, r: &Report) {
    if r.caches.is_empty() || r.level == Level::Pages {
        return;
    }
    let slabinfo = r.linux.slabinfo_pages_end.is_some();
    let mut head = vec!["cache, at the end", "bytes", "active", "kmem pages", "Linux pages"];
    if slabinfo {
        head.push("in slabinfo");
    }
    let mut t = table(&head);
    for row in r.caches.iter().take(CACHES) {
        let mut cells = vec![
            row.name.clone(),
            row.object_bytes.to_string(),
            grouped(row.active_objects),
            row.pages.map_or("–".into(), grouped),
            grouped(row.linux_pages),
        ];
        if slabinfo {
            cells.push(row.linux_slabinfo_pages.map_or("–".into(), grouped));
        }
        t.add_row(cells);
    }
    if r.caches.len() > CACHES {
        let rest = r.caches.iter().skip(CACHES);
        let (here, there) = rest.fold((0, 0), |(a, b), row| (a + row.pages.unwrap_or(0), b + row.linux_pages));
        let others = format!("{} others", r.caches.len() - CACHES);
        let mut cells = vec![others, String::new(), String::new(), grouped(here), grouped(there)];
        if slabinfo {
            cells.push(String::new());
        }
        t.add_row(cells);
    }
    out.push_str(&text(t));
    out.push('\n');
}

fn buddyinfo(out: &mut String, r: &Report) {
    let mut head = vec!["free blocks, at the end".to_owned()];
    head.extend((0..=10).map(|o| o.to_string()));
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    let mut t = table(&head);
    let mut add = |who: &str, zones: &[ZoneFree]| {
        for zone in zones {
            let mut cells = vec![format!("{who}  node {} {}", zone.node, zone.zone)];
            cells.extend(zone.blocks.iter().map(u64::to_string));
            t.add_row(cells);
        }
    };
    add("kmem ", &r.free_blocks_after);
    add("Linux", &r.linux_free_blocks_after);
    out.push_str(&text(t));
    out.push('\n');
}

fn events(out: &mut String, r: &Report) {
    let s = &r.skipped;
    let reasons = [
        ("failed in Linux, too", s.failed_in_trace),
        ("Linux's own metadata", s.metadata),
        ("told twice", s.duplicate),
        ("of the other level", s.other_level),
        ("about Linux's state", s.bookkeeping),
        ("frees of older memory", s.unmatched_free),
        ("for other allocators", s.unsupported),
        ("unknown", s.unknown_event),
    ];
    let list: Vec<String> =
        reasons.iter().filter(|(_, n)| *n > 0).map(|(why, n)| format!("{} {why}", grouped(*n))).collect();
    let _ = write!(out, "  events: {} replayed", grouped(r.replayed));
    for (n, item) in list.iter().enumerate() {
        let _ = write!(out, "{}{item}", if n % 4 == 3 { ",\n          " } else { ", " });
    }
    out.push('\n');
    for (name, n) in s.unknown_names.iter().take(8) {
        let _ = writeln!(out, "          unknown: {name} ({})", grouped(*n));
    }
    if r.trace.lost > 0 {
        let _ = writeln!(out, "          the recorder lost {} events: frees may be missing", grouped(r.trace.lost));
    }
}

fn integrity(out: &mut String, r: &Report) {
    let i = &r.integrity;
    if r.failed_allocations > 0 {
        let _ = writeln!(out, "  {} allocations failed that Linux could serve", grouped(r.failed_allocations));
    }
    let checked = bytes(i.checked_bytes);
    let _ = writeln!(
        out,
        "  integrity: {}; {} overlaps, {} corrupt, {} double frees, {} leaked; {checked} filled and checked",
        if i.is_clean() { "ok" } else { "BROKEN" },
        i.overlaps,
        i.corrupt,
        i.double_free,
        i.leaked,
    );
    if i.refused_free > 0 {
        let _ = writeln!(out, "             {} frees refused", i.refused_free);
    }
}
