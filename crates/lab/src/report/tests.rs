//! Reports of a replay of the sample on the model.

use super::*;
use crate::model::{Fault, Model};
use crate::proc::Snapshots;
use crate::program::{CacheBook, Level};
use crate::replay::{Order, Plan, replay, time};
use crate::target::ReplayTarget;
use crate::trace::Input;

fn report(input: &Input, level: Level) -> Report {
    let fresh = || Model::new(2, 40 << 20, Fault::None).unwrap();
    let model = fresh();
    let plan = Plan { trace: input.open().unwrap(), level, order: Order::Trace, book: CacheBook::default() };
    let outcome = replay(plan, &model, None, |_| {}, |_| {}).unwrap();
    let times = time(&fresh(), &outcome.ops, &outcome.specs).unwrap();
    Report::new(input.name(), (level, Order::Trace), model.shape(), outcome, Some(times), &Snapshots::default())
}

fn sample() -> Input {
    Input::Bundled("<sample> & more", include_bytes!("../../data/sample/boot-20k.txt.zst"))
}

#[test]
fn json_has_the_promised_fields() {
    let json = serde_json::to_value(report(&sample(), Level::All)).unwrap();
    for path in [
        "trace/events",
        "trace/cpus",
        "trace/by_type/kmalloc",
        "replayed",
        "skipped/unmatched_free",
        "skipped/unknown_event",
        "skipped/unsupported",
        "failed_allocations",
        "integrity/overlaps",
        "integrity/corrupt",
        "integrity/double_free",
        "integrity/leaked",
        "peak/live_bytes",
        "peak/live_objects",
        "peak/slab_pages",
        "peak/total_pages",
        "end/live_bytes",
        "end/live_objects",
        "end/slab_pages",
        "end/total_pages",
        "linux/slab_pages_peak",
        "linux/slab_pages_end",
        "time/wall_s",
        "time/ns_per_alloc",
        "time/ns_per_free",
        "machine/cpus",
        "machine/ram_bytes",
    ] {
        let value = json.pointer(&format!("/{path}"));
        assert!(value.is_some_and(serde_json::Value::is_number), "{path}: {value:?}");
    }
    let sum: u64 = [
        "unmatched_free",
        "unknown_event",
        "unsupported",
        "failed_in_trace",
        "metadata",
        "duplicate",
        "other_level",
        "bookkeeping",
    ]
    .iter()
    .filter_map(|k| json["skipped"][k].as_u64())
    .sum();
    assert_eq!(sum + json["replayed"].as_u64().unwrap(), 20_000);
}

#[test]
fn the_page_stands_alone() {
    for level in [Level::All, Level::Pages] {
        let page = html(&report(&sample(), level));
        for word in ["http://", "https://", "src=", "@import", "url("] {
            let found = page.replace("http://www.w3.org/2000/svg", "").find(word);
            assert_eq!(found, None, "{word}");
        }
        assert!(page.contains("&lt;sample&gt; &amp; more") && !page.contains("<sample>"));
        let balanced =
            |tag: &str| page.matches(&format!("<{tag}")).count() == page.matches(&format!("</{tag}>")).count();
        assert!(["svg", "figure", "section", "table", "script", "main"].into_iter().all(balanced));
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}

#[test]
fn the_terminal_shows_the_comparison_and_the_verdict() {
    let text = terminal(&report(&sample(), Level::All));
    for part in [
        "slab pages, peak",
        "kmalloc-64",
        "integrity: ok; 0 overlaps",
        "node 0 Normal",
        "20,000 events",
        "per allocation",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    assert!(text.lines().all(|l| l.chars().count() <= 110), "{text}");
}

#[test]
fn a_trace_of_one_event_has_a_report() {
    let one = Input::Bundled("one", b" a-1 [000] ..... 1.0: kfree: call_site=f ptr=0\n");
    let r = report(&one, Level::Objects);
    assert!(terminal(&r).contains("1 event on 1 CPU"));
    assert!(html(&r).contains("</html>"));
}
