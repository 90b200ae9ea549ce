//! Small machines, and what must hold on each.

use super::replay::pack;
use super::report::html;
use super::sequence::{Mix, PageEvent, Sequence};
use super::subjects;
use super::{Way, measure};
use crate::bundled;
use crate::trace::TraceGfp;

const MOVABLE: TraceGfp = TraceGfp::MOVABLE.union(TraceGfp::HIGHMEM);

fn sample() -> Sequence {
    Sequence::read(&bundled::SAMPLE).unwrap()
}

#[test]
fn a_sequence_has_every_block_freed_at_most_once() {
    let sequence = sample();
    let mut live = std::collections::HashMap::new();
    for event in &sequence.events {
        match *event {
            PageEvent::Alloc { slot, order, .. } => assert_eq!(live.insert(slot, 1_u32 << order), None),
            PageEvent::Free { slot, order, last, .. } => {
                let left = live.get_mut(&slot).unwrap();
                *left -= 1 << order;
                assert_eq!(*left == 0, last);
                if last {
                    live.remove(&slot);
                }
            }
        }
    }
    assert!(sequence.peak_pages() > 100 && !sequence.events.is_empty());
}

#[test]
fn every_allocator_packs_the_sample() {
    let sequence = sample();
    let (subjects, _) = subjects::all(16384, 1);
    assert!(subjects.len() >= 2);
    let pages = |events: &[PageEvent]| -> i64 {
        let change = |event: &PageEvent| match *event {
            PageEvent::Alloc { order, .. } => 1 << order,
            PageEvent::Free { order, .. } => -(1_i64 << order),
        };
        events.iter().map(change).sum()
    };
    for mut subject in subjects {
        let packing = pack(&mut *subject, &sequence, 16384, None);
        assert_eq!((packing.failed, packing.used_pages as i64), (0, pages(&sequence.events)), "{}", packing.name);
        assert!(packing.free_after <= packing.free_before && packing.obtained <= packing.free_after, "{packing:?}");
        assert!(packing.obtained > 20, "{packing:?}");
    }
}

#[test]
fn a_replay_can_begin_with_given_frames_in_use() {
    // Every second frame of the first quarter.
    let in_use: Vec<bool> = (0..8192).map(|frame| frame < 2048 && frame % 2 == 0).collect();
    let block = |slot, order| PageEvent::Alloc { cpu: 0, slot, order, gfp: MOVABLE };
    let part = |slot, offset, last| PageEvent::Free { cpu: 0, slot, offset, order: 0, last };
    let sequence = Sequence {
        name: "by hand".into(),
        cpus: 1,
        events: vec![block(0, 0), block(1, 1), part(1, 0, false), part(1, 1, true)],
        ..Sequence::default()
    };
    for mut subject in subjects::all(8192, 1).0 {
        let packing = pack(&mut *subject, &sequence, 8192, Some(&in_use));
        assert_eq!(packing.failed, 0);
        // kmem has a few frames for its own books.
        assert!((1025..1025 + 32).contains(&packing.used_pages), "{packing:?}");
        assert!(packing.free_before >= 11 && packing.free_after + 1 >= packing.free_before, "{packing:?}");
    }
}

#[test]
fn compaction_helps_and_breaks_nothing() {
    let report = measure(&sample(), Some(2), 64 << 20, 3).unwrap();
    assert!(report.is_sound());
    for outcome in &report.outcomes {
        let [two, _] = outcome.before;
        assert!(outcome.after[0].got >= two.got && outcome.direct[0].got >= two.got, "{outcome:?}");
        assert!(outcome.used_pages <= 16384 / 2 + 512, "{outcome:?}");
    }
    let text = report.tables();
    assert!(Way::ALL.iter().all(|way| text.contains(way.name())) && text.contains("frame-alloc"), "{text}");
    let page = html(&[report]);
    assert!(page.contains("<svg") && !page.contains("src=") && !page.contains("href="));
}

#[test]
fn the_mix_is_that_of_the_trace() {
    let mix = Mix::of(&sample());
    assert!((0..100).all(|random| mix.pick(random).is_some()));
    assert!((0.0..=1.0).contains(&mix.movable_share()));
    assert_eq!(Mix::default().pick(7), None);
}
