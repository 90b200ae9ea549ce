//! Nodes: order of preference, and the conditions of the freelist pass.

use std::sync::atomic::Ordering;
use std::vec::Vec;

use kmem_gfp::alloc_flags::AllocFlags;
use kmem_gfp::{AllocError, Gfp, NodeId, PageAllocator, Pfn, ZoneKind};

use super::rig::{Env, Rig, cached, checked, o, range};
use crate::{BuddyOptions, Event, MemoryMap, Region, ZoneLimits};

const KERNEL: Gfp = Gfp::KERNEL.union(Gfp::NOWARN).union(Gfp::NORETRY);
const ANY: Gfp = Gfp::MEMALLOC.union(Gfp::NOWARN);

/// `nodes` nodes of 32 pageblocks each.
fn machine(nodes: u64, env: Env, options: BuddyOptions) -> Rig {
    let regions: Vec<Region> = (0..nodes)
        .map(|node| Region::new(range(node * 32 * 512, (node + 1) * 32 * 512)).on_node(NodeId(node as u32)))
        .collect();
    Rig::build(env, options, &MemoryMap { regions: &regions, ..MemoryMap::default() })
}

fn order_of(rig: &Rig, node: u32) -> Vec<u32> {
    let mut nodes: Vec<u32> = rig.state().unwrap().zonelist(NodeId(node)).map(|zone| zone.node().0).collect();
    nodes.dedup();
    nodes
}

fn exhaust(rig: &Rig, node: u32) {
    while rig.alloc_pages(ANY | Gfp::THISNODE, o(4), Some(NodeId(node))).is_ok() {}
}

#[test]
fn nodes_are_tried_nearest_first() {
    let mut env = Env::new(1);
    env.distances = [[10, 30, 20, 20], [30, 10, 20, 40], [20, 20, 10, 20], [20, 40, 20, 10]].map(Vec::from).into();
    let rig = machine(4, env, checked());
    // B-60: itself, then by distance; nodes below the starting one and nodes with CPUs cost one more.
    assert_eq!(order_of(&rig, 0), [0, 2, 3, 1]);
    assert_eq!(order_of(&rig, 1), [1, 2, 0, 3]);
    assert_eq!(order_of(&rig, 3)[0], 3);
    // Equal ones take turns in being first: node 2 has three at the same distance.
    let mut env = Env::new(1);
    env.cpuless_nodes = 1 << 2;
    let rig = machine(3, env, checked());
    assert_eq!(order_of(&rig, 0), [0, 2, 1], "memory-only nodes are preferred");
}

#[test]
fn equal_nodes_share_the_load() {
    let rig = machine(4, Env::new(1), checked());
    let seconds: Vec<u32> = (0..3).map(|node| order_of(&rig, node)[1]).collect();
    // B-60: round robin
    assert!(seconds.windows(2).any(|pair| pair[0] != pair[1]), "{seconds:?}");
    assert!(rig.zones().all(|zone| zone.boost_pages() == 0));
}

#[test]
fn the_highest_zone_of_a_node_is_tried_first() {
    let rig = Rig::pc((1 << 20) + 64 * 512);
    let kinds: Vec<ZoneKind> = rig.state().unwrap().zonelist(NodeId(0)).map(|zone| zone.kind()).collect();
    assert_eq!(kinds, [ZoneKind::Movable, ZoneKind::Normal, ZoneKind::Dma32, ZoneKind::Dma]);
    let zone_of = |pfn: Pfn| ZoneLimits::X86_64.zone_of(pfn);
    assert_eq!(zone_of(rig.get(Gfp::KERNEL, 0).unwrap()), ZoneKind::Normal);
    assert_eq!(zone_of(rig.get(Gfp::KERNEL | Gfp::DMA32, 0).unwrap()), ZoneKind::Dma32);
    assert_eq!(zone_of(rig.get(Gfp::KERNEL | Gfp::DMA, 0).unwrap()), ZoneKind::Dma);
    // G-66, B-62, B-66: avoiding fragmentation prefers the next zone to mixing types, until that is full as well.
    let normal = rig.zone(NodeId(0), ZoneKind::Normal).unwrap();
    for block in 0..64 {
        let _ = rig.alloc_pages_at(Gfp::KERNEL, Pfn((1 << 20) + block * 512), o(9));
    }
    for block in 20..50 {
        let start = (1 << 20) + block * 512;
        // SAFETY: frames of tests have no memory.
        unsafe { rig.free_range(range(start, start + 256)) }.unwrap();
    }
    assert!(normal.watermark_ok(o(5), kmem_gfp::Watermark::High, ZoneKind::Normal, AllocFlags::empty()));
    assert_eq!(zone_of(rig.get(Gfp::KERNEL | Gfp::RECLAIMABLE, 5).unwrap()), ZoneKind::Dma32);
    let dma32 = rig.zone(NodeId(0), ZoneKind::Dma32).unwrap();
    let dma = rig.zone(NodeId(0), ZoneKind::Dma).unwrap();
    for zone in [dma32, dma] {
        while zone.free_pages() > 2000 {
            let low = if zone.kind() == ZoneKind::Dma { Gfp::DMA } else { Gfp::DMA32 };
            if rig.get(ANY | low, 9).is_none() {
                break;
            }
        }
    }
    assert_eq!(zone_of(rig.get(Gfp::KERNEL | Gfp::RECLAIMABLE, 5).unwrap()), ZoneKind::Normal);
}

#[test]
fn a_request_stays_on_its_node_if_it_says_so() {
    let rig = machine(2, Env::new(1), cached());
    let on = |pfn: Pfn| rig.node_of(pfn);
    assert_eq!(rig.nr_nodes(), 2);
    // B-61
    assert_eq!(on(rig.alloc_pages(KERNEL, o(0), Some(NodeId(1))).unwrap()), NodeId(1));
    assert_eq!(on(rig.alloc_pages(KERNEL, o(0), None).unwrap()), NodeId(0));
    rig.env().context.node.store(1, Ordering::Relaxed);
    assert_eq!(on(rig.alloc_pages(KERNEL, o(4), None).unwrap()), NodeId(1));
    rig.env().context.node.store(0, Ordering::Relaxed);
    assert_eq!(rig.alloc_pages(KERNEL, o(0), Some(NodeId(2))), Err(AllocError::NoSuchNode(NodeId(2))));
    exhaust(&rig, 1);
    assert!(rig.alloc_pages(KERNEL | Gfp::THISNODE, o(4), Some(NodeId(1))).is_err());
    assert_eq!(on(rig.alloc_pages(KERNEL, o(4), Some(NodeId(1))).unwrap()), NodeId(0));
    // D-10
    let stats = |node| rig.zone_stats(rig.zone(NodeId(node), ZoneKind::Normal).unwrap());
    assert!(stats(0).numa_miss >= 1 && stats(1).numa_foreign >= 1);
    assert!(stats(1).numa_other >= 1 && stats(0).numa_local >= 1);
    assert_eq!(stats(0).numa_hit + stats(0).numa_miss, stats(0).allocated_calls);
    assert_eq!(stats(1).numa_local + stats(1).numa_other, stats(1).allocated_calls);
}

#[test]
fn nodes_whose_background_reclaim_runs_are_passed_over_at_first() {
    let rig = machine(2, Env::new(1), checked());
    rig.env().busy_nodes.store(1, Ordering::Relaxed);
    // B-63
    assert_eq!(rig.node_of(rig.get(KERNEL, 4).unwrap()), NodeId(1));
    rig.env().busy_nodes.store(3, Ordering::Relaxed);
    assert_eq!(rig.node_of(rig.get(KERNEL, 4).unwrap()), NodeId(0));
}

#[test]
fn cpusets_and_dirty_limits_pass_nodes_over() {
    let rig = machine(2, Env::new(1), BuddyOptions { cpusets: true, ..checked() });
    rig.env().denied_nodes.store(1, Ordering::Relaxed);
    // B-62, B-68: the verdict is the environment's.
    assert_eq!(rig.node_of(rig.get(KERNEL, 4).unwrap()), NodeId(1));
    exhaust(&rig, 1);
    assert_eq!(rig.get(KERNEL, 4), None);
    // An urgent request ignores it in the slow path (G-68).
    assert!(rig.get(Gfp::ATOMIC | Gfp::NOWARN, 4).is_some());
    let rig = machine(2, Env::new(1), checked());
    rig.env().dirty_nodes.store(1, Ordering::Relaxed);
    assert_eq!(rig.node_of(rig.get(KERNEL | Gfp::WRITE, 4).unwrap()), NodeId(1));
    assert_eq!(rig.node_of(rig.get(KERNEL, 4).unwrap()), NodeId(0));
    // The slow path does not care.
    exhaust(&rig, 1);
    assert_eq!(rig.node_of(rig.get(KERNEL | Gfp::WRITE, 4).unwrap()), NodeId(0));
}

#[test]
fn a_node_is_reclaimed_from_before_a_far_one_is_used() {
    let options = BuddyOptions { node_reclaim: true, ..checked() };
    let rig = machine(2, Env::new(1), options);
    exhaust(&rig, 0);
    // B-65, B-67
    assert_eq!(rig.node_of(rig.get(KERNEL, 4).unwrap()), NodeId(1));
    assert!(rig.env().node_reclaims.load(Ordering::Relaxed) >= 1);
    assert!(rig.event(Event::ZoneReclaimFailed) >= 1);
    rig.env().node_reclaim_frees.store(true, Ordering::Relaxed);
    let _ = rig.get(KERNEL, 4);
    assert!(rig.event(Event::ZoneReclaimSuccess) >= 1);
    // Never for whoever may not sleep.
    let asked = rig.env().node_reclaims.load(Ordering::Relaxed);
    assert!(rig.get(Gfp::NOWAIT, 4).is_some());
    assert_eq!(rig.env().node_reclaims.load(Ordering::Relaxed), asked);
    // ... nor beyond the distance.
    let mut env = Env::new(1);
    env.distances = [[10, 31], [31, 10]].map(Vec::from).into();
    let rig = machine(2, env, options);
    exhaust(&rig, 1);
    let asked = rig.env().node_reclaims.load(Ordering::Relaxed);
    exhaust(&rig, 0);
    assert!(rig.alloc_pages(KERNEL, o(4), Some(NodeId(0))).is_err());
    assert!(rig.env().node_reclaims.load(Ordering::Relaxed) > asked);
}

#[test]
fn each_cpu_prefers_its_own_node() {
    let mut env = Env::new(2);
    env.nodes_of_cpus = Vec::from([0, 1]);
    let rig = machine(2, env, cached());
    assert_eq!(rig.node_of(rig.get(Gfp::KERNEL, 0).unwrap()), NodeId(0));
    super::rig::run_on(Some(1));
    rig.env().context.node.store(1, Ordering::Relaxed);
    assert_eq!(rig.node_of(rig.get(Gfp::KERNEL, 0).unwrap()), NodeId(1));
    assert_eq!(rig.node_of(rig.get(Gfp::KERNEL, 0).unwrap()), NodeId(1));
    super::rig::run_on(Some(0));
}
