//! Allocation and freeing of blocks of every order.

use std::vec::Vec;

use kmem_gfp::{FreeError, Gfp, Pfn};

use super::rig::{Rig, o};

#[test]
fn every_frame_is_handed_out_once_and_comes_back() {
    let rig = Rig::small(16 * 512);
    let before = rig.all_free();
    assert_eq!(before, 16 * 512);
    let mut pages: Vec<Pfn> = core::iter::from_fn(|| rig.get(Gfp::ATOMIC | Gfp::MEMALLOC, 0)).collect();
    assert_eq!(pages.len() as u64, before);
    pages.sort();
    pages.dedup();
    assert_eq!(pages.len() as u64, before);
    for pfn in pages {
        rig.put(pfn, 0);
    }
    assert_eq!(rig.all_free(), before);
    // B-04: everything has merged again.
    for _ in 0..8 {
        let pfn = rig.get(Gfp::ATOMIC | Gfp::MEMALLOC, 10).unwrap();
        assert!(pfn.is_aligned(o(10)));
    }
}

#[test]
fn blocks_of_every_order_are_aligned_and_apart() {
    for order in 0..=10 {
        let rig = Rig::small(16 * 512);
        let blocks: Vec<Pfn> = core::iter::from_fn(|| rig.get(Gfp::ATOMIC | Gfp::MEMALLOC, order)).collect();
        assert_eq!(blocks.len(), (16 * 512) >> order, "order {order}");
        let mut sorted = blocks.clone();
        sorted.sort();
        for pair in sorted.windows(2) {
            assert!(pair[1].0 - pair[0].0 >= 1 << order);
        }
        for pfn in blocks {
            assert!(pfn.is_aligned(o(order)));
            rig.put(pfn, order);
        }
        assert_eq!(rig.all_free(), 16 * 512, "order {order}");
    }
}

#[test]
fn misuse_is_told_apart_and_changes_nothing() {
    let rig = Rig::checked(4 * 512);
    let block = rig.get(Gfp::KERNEL, 2).unwrap();
    let page = rig.get(Gfp::KERNEL, 0).unwrap();
    let free = rig.zones().map(|zone| zone.free_pages()).sum::<u64>();
    assert_eq!(rig.try_put(Pfn(1 << 30), 0), Err(FreeError::Foreign(Pfn(1 << 30))));
    assert_eq!(rig.try_put(Pfn(block.0 + 1), 1), Err(FreeError::Misaligned { pfn: Pfn(block.0 + 1), order: o(1) }));
    let wrong = |given| Err(FreeError::WrongOrder { pfn: block, allocated: o(2), given: o(given) });
    assert_eq!(rig.try_put(block, 1), wrong(1));
    assert_eq!(rig.try_put(block, 0), wrong(0));
    assert_eq!(rig.try_put(Pfn(block.0 + 1), 0), wrong(0));
    assert_eq!(rig.zones().map(|zone| zone.free_pages()).sum::<u64>(), free);
    rig.put(page, 0);
    // B-20
    assert_eq!(rig.try_put(page, 0), Err(FreeError::AlreadyFree(page)));
    rig.put(block, 2);
    assert_eq!(rig.try_put(block, 2), Err(FreeError::AlreadyFree(block)));
    assert_eq!(rig.all_free(), 4 * 512);
}
