//! The compaction daemon, and compaction by hand.

use std::sync::atomic::Ordering;

use kmem_gfp::{Gfp, NodeId, Pfn, ZoneKind};

use super::compaction::{BLOCKS, normal, rig_of, scatter};
use super::rig::{Rig, cached, o};
use crate::{BuddyOptions, Event, Kcompactd, TuneError};

fn whole(rig: &Rig) -> u64 {
    normal(rig).free_pages_in_whole_blocks() / 512
}

fn scattered(options: BuddyOptions) -> Rig {
    let rig = rig_of(BLOCKS, options);
    scatter(&rig, 0..BLOCKS, 8);
    rig.set_compaction_proactiveness(0).unwrap();
    rig
}

#[test]
fn it_makes_a_block_of_the_order_it_was_woken_for() {
    let rig = scattered(cached());
    let daemon = Kcompactd::new(NodeId(0));
    assert_eq!(daemon.poll(&rig, 0), None, "nobody asked");
    assert_eq!(rig.event(Event::CompactDaemonWake), 0);
    daemon.wake(o(4), ZoneKind::Dma);
    daemon.wake(o(9), ZoneKind::Normal);
    daemon.wake(o(2), ZoneKind::Dma);
    assert!(daemon.is_wanted());
    // C-19: not while background reclaim works.
    rig.env().busy_nodes.store(1, Ordering::Relaxed);
    assert_eq!(daemon.poll(&rig, 0), Some(500));
    assert_eq!((whole(&rig), daemon.is_wanted()), (0, true));
    rig.env().busy_nodes.store(0, Ordering::Relaxed);
    assert_eq!(daemon.poll(&rig, 500), None);
    assert_eq!((whole(&rig), daemon.is_wanted()), (1, false));
    assert_eq!(rig.tenants().check().len() as u64, BLOCKS * 64);
    // C-26
    assert_eq!(rig.event(Event::CompactDaemonWake), 1);
    assert_eq!(rig.event(Event::CompactDaemonMigrateScanned), rig.event(Event::CompactMigrateScanned));
    assert_eq!(rig.event(Event::CompactDaemonFreeScanned), rig.event(Event::CompactFreeScanned));
    assert!(rig.event(Event::CompactDaemonFreeScanned) > 0);
    // One is there: C-09
    daemon.wake(o(9), ZoneKind::Normal);
    daemon.poll(&rig, 1000);
    assert_eq!(whole(&rig), 1);
    assert_eq!(daemon.node(), NodeId(0));
    let modes = rig.tenants().modes.lock().unwrap();
    assert!(modes.iter().all(|&mode| mode <= kmem_gfp::MigrateMode::SyncLight), "C-19");
}

#[test]
fn it_leaves_zones_alone_where_it_failed() {
    let rig = scattered(cached());
    (0..BLOCKS).for_each(|block| rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 3), o(0)).unwrap());
    let daemon = Kcompactd::new(NodeId(0));
    let poll = || {
        let before = rig.event(Event::CompactMigrateScanned);
        daemon.wake(o(9), ZoneKind::Normal);
        daemon.poll(&rig, 0);
        rig.event(Event::CompactMigrateScanned) - before
    };
    // C-19, C-15
    assert!(poll() > 0);
    assert_eq!(poll(), 0);
    assert!(poll() > 0, "the second one considered is let through");
    assert_eq!([poll(), poll(), poll()], [0, 0, 0]);
}

#[test]
fn a_machine_that_keeps_types_apart_wants_whole_pageblocks() {
    let rig = scattered(BuddyOptions { defrag_mode: true, ..cached() });
    let daemon = Kcompactd::new(NodeId(0));
    daemon.wake(o(0), ZoneKind::Normal);
    daemon.poll(&rig, 0);
    // C-22, N-01
    let high = normal(&rig).watermark(kmem_gfp::Watermark::High);
    assert!(high > 0 && whole(&rig) * 512 >= high && (whole(&rig) - 1) * 512 < high, "{} {high}", whole(&rig));
}

#[test]
fn it_looks_after_its_node_by_itself() {
    let rig = scattered(cached());
    let daemon = Kcompactd::new(NodeId(0));
    // C-21
    let out_of_range = TuneError::OutOfRange { value: 101, least: 0, most: 100 };
    assert_eq!(rig.set_compaction_proactiveness(101), Err(out_of_range));
    rig.set_compaction_proactiveness(20).unwrap();
    assert_eq!(rig.fragmentation_score(NodeId(0)), 99, "weighted by present / (present + 1)");
    assert_eq!(rig.state().unwrap().score_marks(), (80, 90));
    // C-20: not while background reclaim works.
    rig.env().busy_nodes.store(1, Ordering::Relaxed);
    assert_eq!(daemon.poll(&rig, 1000), Some(1500));
    assert_eq!(whole(&rig), 0);
    rig.env().busy_nodes.store(0, Ordering::Relaxed);
    assert_eq!(daemon.poll(&rig, 1200), Some(1500), "not yet");
    assert_eq!(daemon.poll(&rig, 1500), Some(2000));
    // Down to the low mark and no further.
    let score = rig.fragmentation_score(NodeId(0));
    assert!((70..=80).contains(&score), "{score}");
    let made = whole(&rig);
    assert_eq!(daemon.poll(&rig, 2000), Some(2500), "below the high mark nothing is done");
    assert_eq!(whole(&rig), made);
    assert_eq!(rig.tenants().check().len() as u64, BLOCKS * 64);
    // In vain: 32 seconds.
    let rig = scattered(cached());
    (0..BLOCKS).for_each(|block| rig.alloc_pages_at(Gfp::KERNEL, Pfn(block * 512 + 3), o(0)).unwrap());
    rig.set_compaction_proactiveness(100).unwrap();
    assert_eq!(rig.state().unwrap().score_marks(), (0, 0));
    assert_eq!(Kcompactd::new(NodeId(0)).poll(&rig, 0), Some(32_000));
}

#[test]
fn by_hand_everything_is_compacted_whoever_failed_before() {
    let rig = scattered(cached());
    // C-21
    for value in [0, 2] {
        let error = TuneError::OutOfRange { value, least: 1, most: 1 };
        assert_eq!(rig.compact_memory(value as u32), Err(error));
    }
    assert_eq!(whole(&rig), 0);
    (0..6).for_each(|_| normal(&rig).progress.failed(o(1)));
    rig.compact_memory(1).unwrap();
    // An eighth of memory is in use.
    assert!(whole(&rig) >= BLOCKS - BLOCKS / 8 - 2, "{}", whole(&rig));
    assert_eq!(rig.tenants().check().len() as u64, BLOCKS * 64);
    assert_eq!(rig.set_extfrag_threshold(1001), Err(TuneError::OutOfRange { value: 1001, least: 0, most: 1000 }));
    rig.compact_node(NodeId(7));
}
