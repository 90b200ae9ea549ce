//! Objects: bytes, rests, payer vectors.

use std::vec::Vec;

use kmem_gfp::Gfp;
use kmem_sync::atomic::{AtomicU32, Ordering};

use super::rig::{run_on, table};
use crate::GroupId;
use crate::memcg::{OBJECT_OVERHEAD_BYTES, ObjectPayers, Wait};

const ROOT: GroupId = GroupId::ROOT;

#[test]
fn an_object_costs_its_size_and_a_pointer_and_pages_are_charged_whole() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.charge(g, Gfp::empty(), 1).unwrap();
    let size = 4096 / 4 - OBJECT_OVERHEAD_BYTES;
    let payers: Vec<_> = (0..4).map(|_| memcg.charge_object_to(g, Gfp::empty(), size).unwrap().unwrap()).collect();
    assert_eq!(memcg.usage(g), 2, "four objects fill a page exactly");
    let fifth = memcg.charge_object_to(g, Gfp::empty(), 1).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 3, "the next page");
    memcg.uncharge_object(fifth, 1);
    payers.into_iter().for_each(|payer| memcg.uncharge_object(payer, size));
    memcg.drain_stocks();
    assert_eq!(memcg.usage(g), 1);
}

#[test]
fn an_object_larger_than_a_page_is_charged_in_pages_and_its_rest_kept() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    let payer = memcg.charge_object_to(g, Gfp::empty(), 10_000).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 3);
    let small = memcg.charge_object_to(g, Gfp::empty(), 12_288 - 10_000 - 2 * OBJECT_OVERHEAD_BYTES).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 3, "the rest of the third page");
    memcg.uncharge_object(payer, 10_000);
    memcg.uncharge_object(small, 12_288 - 10_000 - 2 * OBJECT_OVERHEAD_BYTES);
    memcg.drain_stocks();
    assert_eq!(memcg.usage(g), 0);
}

#[test]
fn a_cpu_keeps_bytes_of_five_groups_and_the_rest_stays_with_the_group() {
    //
    let memcg = table(1, 16);
    let groups: Vec<_> = (0..6).map(|_| memcg.create(ROOT).unwrap()).collect();
    let payers: Vec<_> =
        groups.iter().map(|&g| memcg.charge_object_to(g, Gfp::empty(), 92).unwrap().unwrap()).collect();
    let state = memcg.state().unwrap();
    let rests =
        |_: ()| groups.iter().filter(|&&g| state.slot(g).unwrap().rest_bytes.load(Ordering::Relaxed) > 0).count();
    assert_eq!(rests(()), 1, "the sixth pushed one out");
    assert_eq!(state.slot(groups[0]).unwrap().rest_bytes.load(Ordering::Relaxed), 3996);
    memcg.charge_object_to(groups[0], Gfp::empty(), 92).unwrap();
    assert_eq!(memcg.usage(groups[0]), 1, "the rest serves the next object");
    memcg.uncharge_object(payers[0], 92);
    payers.iter().for_each(|&payer| memcg.uncharge_object(payer, 92));
    memcg.drain_stocks();
    assert!(groups.iter().all(|&g| memcg.usage(g) == 0));
}

#[test]
fn objects_freed_on_another_cpu_add_up_to_pages() {
    //
    let memcg = table(2, 4);
    let g = memcg.create(ROOT).unwrap();
    let payers: Vec<_> = (0..100).map(|_| memcg.charge_object_to(g, Gfp::KERNEL, 200).unwrap().unwrap()).collect();
    run_on(Some(1));
    payers.into_iter().for_each(|payer| memcg.uncharge_object(payer, 200));
    memcg.drain_stocks();
    assert_eq!(memcg.usage(g), 0);
}

#[test]
fn objects_outlive_their_group() {
    //
    let memcg = table(2, 4);
    let a = memcg.create(ROOT).unwrap();
    let b = memcg.create(a).unwrap();
    let payers: Vec<_> = (0..50).map(|_| memcg.charge_object_to(b, Gfp::KERNEL, 300).unwrap().unwrap()).collect();
    memcg.remove(b).unwrap();
    assert_eq!(memcg.usage(a), 4, "50 objects of 308 bytes");
    for payer in payers {
        assert!(!memcg.is_free(b));
        memcg.uncharge_object(payer, 300);
    }
    memcg.drain_stocks();
    assert_eq!(memcg.usage(a), 0);
    assert!(memcg.is_free(b), "with the last byte the last page");
}

fn vector(len: usize) -> &'static [AtomicU32] {
    std::boxed::Box::leak((0..len).map(|_| AtomicU32::new(0)).collect())
}

#[test]
fn without_a_payer_vector_an_object_is_handed_out_uncharged() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.env().group.store(g.0.into(), core::sync::atomic::Ordering::Relaxed);
    memcg.attach(Gfp::KERNEL, 100, None, 0).unwrap();
    assert_eq!(memcg.usage(g), 0);
    memcg.detach(100, None, 0);
    let payers = Some(ObjectPayers(vector(4)));
    memcg.attach(Gfp::KERNEL, 100, payers, 2).unwrap();
    assert_eq!(memcg.usage(g), 64);
    memcg.detach(100, payers, 1);
    memcg.detach(100, payers, 2);
    memcg.detach(100, payers, 2);
    memcg.drain_stocks();
    assert_eq!(memcg.usage(g), 0, "only the object that had a payer, and once");
}

#[test]
fn a_bulk_request_is_charged_whole_or_not_at_all() {
    // A-12; failure injected at every object
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.env().group.store(g.0.into(), core::sync::atomic::Ordering::Relaxed);
    let words = vector(16);
    let indices: Vec<usize> = (0..16).collect();
    let size = 2048 - OBJECT_OVERHEAD_BYTES;
    for pages in 0..8 {
        memcg.set_max(g, pages, Wait::No).unwrap();
        memcg.attach_bulk(Gfp::NOWAIT, size, Some(ObjectPayers(words)), &indices).unwrap_err();
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        memcg.drain_stocks();
        assert_eq!(memcg.usage(g), 0, "room for {pages} pages");
    }
    memcg.set_max(g, 8, Wait::No).unwrap();
    memcg.attach_bulk(Gfp::NOWAIT, size, Some(ObjectPayers(words)), &indices).unwrap();
    assert_eq!(memcg.usage(g), 8);
}

#[test]
fn a_refused_object_changes_nothing() {
    //
    let memcg = table(1, 4);
    let g = memcg.create(ROOT).unwrap();
    memcg.set_max(g, 1, Wait::No).unwrap();
    let first = memcg.charge_object_to(g, Gfp::NOWAIT, 4000).unwrap().unwrap();
    memcg.charge_object_to(g, Gfp::NOWAIT, 4000).unwrap_err();
    memcg.uncharge_object(first, 4000);
    memcg.charge_object_to(g, Gfp::NOWAIT, 4000).unwrap().unwrap();
    assert_eq!(memcg.usage(g), 1);
}
