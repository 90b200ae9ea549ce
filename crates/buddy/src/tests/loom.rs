//! Models of lines, hints, types, per-CPU sets and the gate. Run with `cargo xtask loom --crate buddy`.
//!
//! Frames have shadow cells that whoever owns them writes, so two owners at a time, or a hand-over without ordering, are
//! errors.

use std::sync::Arc;
use std::vec::Vec;

use kmem_gfp::{Gfp, MigrateType, Pfn};
use kmem_sync::atomic::Ordering;
use loom::cell::UnsafeCell;
use loom::thread;

use super::rig::{Rig, o, range, run_on};
use crate::line::{Line, WORDS};

const ANY: Gfp = Gfp::MEMALLOC.union(Gfp::NOWARN);

pub(super) fn model(f: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 200_000;
    if builder.preemption_bound.is_none() {
        builder.preemption_bound = Some(2);
    }
    builder.check(f);
}

/// Cells that stand for the memory of frames.
pub(super) struct Shadows(Vec<UnsafeCell<u32>>);

// SAFETY: loom checks the accesses.
unsafe impl Sync for Shadows {}
// SAFETY: as above.
unsafe impl Send for Shadows {}

impl Shadows {
    pub(super) fn new(nr: usize) -> Self {
        Self((0..nr).map(|_| UnsafeCell::new(0)).collect())
    }

    /// Uses a frame as its owner does.
    pub(super) fn touch(&self, frame: usize) {
        // SAFETY: loom checks that we are alone.
        self.0[frame].with_mut(|cell| unsafe { *cell += 1 });
    }
}

#[test]
fn a_frame_changes_hands_with_everything_its_owner_did() {
    model(|| {
        let line = Arc::new(Line::new([1, 0, 0, 0, 0, 0, 0, 0]));
        let shadows = Arc::new(Shadows::new(1));
        let user = |line: Arc<Line>, shadows: Arc<Shadows>| {
            move || {
                if line.take_runs(0, 1, |_, _| ()) == 1 {
                    shadows.touch(0);
                    line.put_bits(0, 1).unwrap();
                }
            }
        };
        let other = thread::spawn(user(line.clone(), shadows.clone()));
        user(line.clone(), shadows.clone())();
        other.join().unwrap();
        assert_eq!(line.count(), 1);
    });
}

#[test]
fn a_block_of_words_and_single_frames_never_overlap() {
    model(|| {
        let line = Arc::new(Line::new([u64::MAX, u64::MAX, 0, 0, 0, 0, 0, 0]));
        let single = thread::spawn({
            let line = line.clone();
            move || line.take_at(100, 0)
        });
        let block = line.take_words(7);
        let single = single.join().unwrap();
        let taken = if block.is_some() { 128 } else { 0 } + u32::from(single);
        assert!(block.is_none() || !single);
        // Whoever had to give way gave everything back.
        assert_eq!(line.count(), 128 - taken);
    });
}

#[test]
fn a_pair_that_is_in_the_way_of_another_is_given_back() {
    model(|| {
        let line = Arc::new(Line::new([u64::MAX; WORDS]));
        let other = thread::spawn({
            let line = line.clone();
            move || line.take_at(448, 6)
        });
        let whole = line.take_at(0, 9);
        let word = other.join().unwrap();
        assert!(whole != word);
        assert_eq!(line.count(), if whole { 0 } else { 448 });
    });
}

/// Two pageblocks, CPUs 0 and 1, without per-CPU sets.
pub(super) fn bare() -> Arc<Rig> {
    let rig = Rig::with_cpus(2 * 512, 2);
    rig.set_page_sets_enabled(kmem_gfp::NodeId(0), kmem_gfp::ZoneKind::Normal, false);
    Arc::new(rig)
}

#[test]
fn a_free_and_a_take_in_one_pageblock_keep_its_hint() {
    model(|| {
        let rig = bare();
        for block in 0..2 {
            rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(9)).unwrap();
        }
        rig.split_page(Pfn(0), o(9)).unwrap();
        // One frame is free; one thread takes it while the other frees its neighbour's neighbour.
        rig.put(Pfn(2), 0);
        let other = thread::spawn({
            let rig = rig.clone();
            move || {
                run_on(Some(1));
                rig.put(Pfn(4), 0);
            }
        });
        run_on(Some(0));
        let first = rig.get(ANY, 0).unwrap();
        other.join().unwrap();
        let left = if first == Pfn(2) { Pfn(4) } else { Pfn(2) };
        assert_eq!(rig.get(ANY, 0), Some(left), "the frame is free and must be found");
        assert_eq!(rig.free_page_count(), 0);
    });
}

#[test]
fn a_pageblock_that_changes_its_type_keeps_its_counts() {
    model(|| {
        let rig = bare();
        rig.alloc_pages_at(Gfp::KERNEL, Pfn(0), o(9)).unwrap();
        rig.split_page(Pfn(0), o(9)).unwrap();
        rig.put(Pfn(1), 0);
        let other = thread::spawn({
            let rig = rig.clone();
            move || {
                run_on(Some(1));
                rig.put(Pfn(7), 0);
            }
        });
        run_on(Some(0));
        let block = rig.state().unwrap().block_of(Pfn(0)).unwrap();
        assert!(block.change_type(MigrateType::Movable, MigrateType::HighAtomic));
        other.join().unwrap();
        let zone = rig.zones().next().unwrap();
        // The count follows the line, and unmovable requests find nothing here.
        assert_eq!(zone.free_of(MigrateType::HighAtomic), 2);
        assert_eq!(rig.pageblock_type(Pfn(0)), Some(MigrateType::HighAtomic));
    });
}

#[test]
fn an_isolated_pageblock_hands_out_nothing_that_its_isolator_has_counted() {
    model(|| {
        let rig = bare();
        for block in 0..2 {
            rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(9)).unwrap();
        }
        rig.split_page(Pfn(0), o(9)).unwrap();
        rig.put(Pfn(3), 0);
        let other = thread::spawn({
            let rig = rig.clone();
            move || {
                run_on(Some(1));
                rig.get(ANY | Gfp::MOVABLE, 0)
            }
        });
        run_on(Some(0));
        rig.set_pageblock_isolated(Pfn(0), true);
        let taken = other.join().unwrap();
        let zone = rig.zones().next().unwrap();
        assert_eq!(zone.free_of(MigrateType::Isolate), u64::from(taken.is_none()));
        assert_eq!(zone.free_pages(), 0);
    });
}

/// Four pageblocks, of which the first CPU's set holds `pages`; its stacks are open.
pub(super) fn with_set(pages: usize) -> Arc<Rig> {
    let rig = Rig::with_cpus(4 * 512, 2);
    rig.set_min_free_kbytes(0).unwrap();
    let taken: Vec<Pfn> = (0..pages).map(|_| rig.get(Gfp::KERNEL, 0).unwrap()).collect();
    for pfn in taken {
        rig.put(pfn, 0);
    }
    assert!(!rig.zones().next().unwrap().pressed.load(Ordering::SeqCst));
    Arc::new(rig)
}

#[test]
fn a_drain_and_the_fast_paths_of_its_cpu_share_no_page() {
    model(|| {
        let rig = with_set(2);
        let owner = thread::spawn({
            let rig = rig.clone();
            move || {
                run_on(Some(0));
                let pfn = rig.get(Gfp::KERNEL, 0).unwrap();
                rig.put(pfn, 0);
                pfn
            }
        });
        run_on(Some(1));
        rig.drain_all_pages();
        let _ = owner.join().unwrap();
        assert_eq!(rig.all_free(), 4 * 512);
        assert_eq!(rig.event(crate::Event::BadFree), 0);
    });
}

#[test]
fn two_cpus_that_refill_share_no_page() {
    model(|| {
        let rig = bare();
        for block in 0..2 {
            rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512), o(9)).unwrap();
        }
        // SAFETY: frames of tests have no memory.
        unsafe { rig.free_range(range(0, 2)) }.unwrap();
        let other = thread::spawn({
            let rig = rig.clone();
            move || {
                run_on(Some(1));
                rig.get(ANY, 0)
            }
        });
        run_on(Some(0));
        let (ours, theirs) = (rig.get(ANY, 0), other.join().unwrap());
        assert!(ours.is_some() && theirs.is_some());
        assert_ne!(ours, theirs);
    });
}

#[test]
fn an_any_context_request_disturbs_nobody() {
    model(|| {
        let rig = with_set(1);
        let other = thread::spawn({
            let rig = rig.clone();
            move || {
                run_on(None);
                let pfn = rig.alloc_pages_nolock(Gfp::empty(), o(0), None).ok()?;
                // SAFETY: frames of tests have no memory.
                unsafe { rig.free_pages_nolock(pfn, o(0)) }.unwrap();
                Some(pfn)
            }
        });
        run_on(Some(0));
        let pfn = rig.get(Gfp::KERNEL, 0).unwrap();
        assert!(other.join().unwrap().is_some());
        rig.put(pfn, 0);
        assert_eq!(rig.all_free(), 4 * 512);
    });
}

#[test]
fn sets_are_open_exactly_while_memory_is_not_short() {
    model(|| {
        let rig = with_set(0);
        fn change(rig: &Rig, pages: i64) {
            let zone = rig.zones().next().unwrap();
            rig.account(rig.state().unwrap(), zone, pages);
        }
        let down = thread::spawn({
            let rig = rig.clone();
            move || change(&rig, -1600)
        });
        change(&rig, 1600);
        down.join().unwrap();
        let zone = rig.zones().next().unwrap();
        assert!(!zone.pressed.load(Ordering::SeqCst), "the shortage is over, and that was noticed");
        change(&rig, -1600);
        assert!(zone.pressed.load(Ordering::SeqCst));
    });
}
