//! NUMA: nodes asked for, nodes preferred, objects freed far from home.

use kmem_gfp::{AllocError, Gfp, NodeId, PageAllocator};

use super::env::{TestEnv, run_on};
use super::{destroy, give, take};
use crate::slab::Slab;
use crate::{CacheArgs, SlabConfig, SlabEnv, Slabs};

/// Four CPUs on two nodes.
fn family() -> Slabs<TestEnv> {
    let slabs = Slabs::with_config(TestEnv::with_nodes(4, 1024, 2), SlabConfig::DEFAULT);
    slabs.init().unwrap();
    slabs
}

fn node_of(slabs: &Slabs<TestEnv>, object: core::ptr::NonNull<u8>) -> NodeId {
    let (_, slab) = Slab::find(slabs.env().frames(), object).unwrap();
    slabs.env().pages().node_of(slab.pfn)
}

#[test]
fn allocations_come_from_the_local_node() {
    // SL-57, SL-74
    let slabs = family();
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    for (cpu, node) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        run_on(Some(cpu));
        let objects = take(&slabs, cache, 10);
        assert!(objects.iter().all(|object| node_of(&slabs, *object) == NodeId(node)));
        give(&slabs, cache, objects);
    }
    run_on(Some(0));
    destroy(&slabs, cache);
}

#[test]
fn a_node_asked_for_is_the_node_given() {
    // SL-57
    let slabs = family();
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    for _ in 0..50 {
        for node in [0, 1] {
            let object = slabs.alloc_node(cache, Gfp::KERNEL, Some(NodeId(node))).unwrap();
            assert_eq!(node_of(&slabs, object), NodeId(node));
            give(&slabs, cache, [object]);
        }
    }
    let any = slabs.alloc_node(cache, Gfp::KERNEL, None).unwrap();
    assert_eq!(slabs.alloc_node(cache, Gfp::KERNEL, Some(NodeId(2))), Err(AllocError::NoSuchNode(NodeId(2))));
    give(&slabs, cache, [any]);
}

#[test]
fn objects_of_other_nodes_bypass_the_sheaves() {
    // SL-57, SL-58
    let slabs = family();
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    let far = slabs.alloc_node(cache, Gfp::KERNEL, Some(NodeId(1))).unwrap();
    let near = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    give(&slabs, cache, [far, near]);
    let again = take(&slabs, cache, 60);
    assert!(again.iter().all(|object| node_of(&slabs, *object) == NodeId(0)), "no far object on a near CPU");
    let mut mixed: std::vec::Vec<_> = again.into_iter().map(Some).collect();
    for _ in 0..20 {
        mixed.push(Some(slabs.alloc_node(cache, Gfp::KERNEL, Some(NodeId(1))).unwrap()));
    }
    // SAFETY: ours.
    unsafe { slabs.free_bulk(cache, &mut mixed).unwrap() };
    let again = take(&slabs, cache, 60);
    assert!(again.iter().all(|object| node_of(&slabs, *object) == NodeId(0)));
    give(&slabs, cache, again);
    destroy(&slabs, cache);
}

#[test]
fn a_hint_falls_back_and_a_demand_does_not() {
    // SL-74, KM-27
    let slabs = family();
    let cache = slabs.create("large", 4096, &CacheArgs::default()).unwrap();
    let mut objects = std::vec::Vec::new();
    while let Ok(object) = slabs.alloc_node(cache, Gfp::KERNEL | Gfp::THISNODE | Gfp::NOWARN, Some(NodeId(1))) {
        assert_eq!(node_of(&slabs, object), NodeId(1));
        objects.push(object);
    }
    let elsewhere = slabs.alloc_node(cache, Gfp::KERNEL, Some(NodeId(1))).unwrap();
    assert_eq!(node_of(&slabs, elsewhere), NodeId(0));
    give(&slabs, cache, objects);
    give(&slabs, cache, [elsewhere]);
    destroy(&slabs, cache);
}

#[test]
fn nodes_with_plenty_lend_partial_slabs() {
    // SL-74: more than the minimum of partial slabs, and the dice.
    let slabs = Slabs::with_config(TestEnv::with_nodes(2, 1024, 2), super::BARE);
    slabs.init().unwrap();
    let cache = slabs.create("things", 512, &CacheArgs::default()).unwrap();
    run_on(Some(1));
    let objects = take(&slabs, cache, 160);
    give(&slabs, cache, objects.iter().copied().step_by(8));
    run_on(Some(0));
    assert!(slabs.set_remote_node_defrag_ratio(cache, 100));
    let borrowed = take(&slabs, cache, 40);
    assert!(borrowed.iter().any(|object| node_of(&slabs, *object) == NodeId(1)));
    assert!(slabs.set_remote_node_defrag_ratio(cache, 0));
    let own = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    assert_eq!(node_of(&slabs, own), NodeId(0));
    run_on(Some(1));
}

#[test]
fn typed_boxes_keep_to_their_nodes() {
    let slabs = family();
    let cache = crate::Cache::<[u64; 8], TestEnv>::new(&slabs, "typed").unwrap();
    run_on(Some(2));
    let far = cache.alloc([1; 8], Gfp::KERNEL).unwrap();
    run_on(Some(0));
    drop(far);
    let near = cache.alloc([2; 8], Gfp::KERNEL).unwrap();
    assert_eq!(node_of(&slabs, core::ptr::NonNull::from(&*near).cast()), NodeId(0));
}
