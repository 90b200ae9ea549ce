//! Pools of small blocks.

use std::collections::BTreeMap;
use std::string::ToString;
use std::sync::atomic::Ordering;
use std::vec::Vec;

use kmem_gfp::{Gfp, PAGE_SIZE};
use proptest::prelude::*;

use super::rig::Rig;
use crate::{Dma, DmaDevice, DmaPool, PoolBlock, PoolError, PoolSpec};

const CARD: DmaDevice = DmaDevice::with_bits(32);

#[test]
fn blocks_are_aligned_and_cross_no_boundary() {
    // MP-08
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    for (size, align, boundary, bytes, per_chunk) in [
        (1, 0, 0, 16, 256),
        (100, 64, 0, 128, 32),
        (24, 8, 64, 24, 128),
        (5000, 16, 0, 5008, 1),
        (48, 1, 1 << 20, 48, 85),
    ] {
        let pool = DmaPool::new(&dma, &CARD, &PoolSpec::new("p", size).align(align).boundary(boundary)).unwrap();
        assert_eq!(pool.block_bytes(), bytes);
        let blocks: Vec<_> = (0..per_chunk + 1).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
        let mut addresses: Vec<_> = blocks.iter().map(|block| block.bus_address()).collect();
        assert!(addresses[..per_chunk].is_sorted(), "a new chunk is used from below");
        addresses.sort_unstable();
        assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] >= bytes as u64));
        for block in &blocks {
            let bus = block.bus_address();
            assert!(bus.is_multiple_of(align.max(1) as u64) && bus + bytes as u64 <= 1 << 32);
            let within = (bytes.max(PAGE_SIZE)).min(if boundary == 0 { usize::MAX } else { boundary }) as u64;
            if within <= PAGE_SIZE as u64 {
                assert_eq!(bus / within, (bus + bytes as u64 - 1) / within);
            }
        }
        assert_eq!(pool.info().pages, 2);
        assert_eq!(pool.info().total as usize, 2 * per_chunk);
    }
    assert_eq!(rig.in_use(), 0, "all chunks go with their pools");
}

#[test]
fn what_makes_no_sense_is_refused() {
    // MP-08
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    for (size, align, boundary) in [(0, 8, 0), (usize::MAX, 8, 0), (64, 24, 0), (64, 8, 32), (64, 8, 100)] {
        let refused = DmaPool::new(&dma, &CARD, &PoolSpec::new("p", size).align(align).boundary(boundary)).unwrap_err();
        assert_eq!(refused, PoolError::BadSpec { size, align, boundary });
    }
    let narrow = CARD.max_segment(2048);
    assert!(matches!(DmaPool::new(&dma, &narrow, &PoolSpec::new("p", 64)), Err(PoolError::Dma(_))));
}

#[test]
fn the_block_freed_last_is_handed_out_first_and_zeroed_on_request() {
    // MP-09
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    let pool = DmaPool::new(&dma, &CARD, &PoolSpec::new("p", 100)).unwrap();
    let blocks: Vec<_> = (0..5).map(|_| pool.alloc_raw(Gfp::KERNEL).unwrap()).collect();
    for block in &blocks {
        // SAFETY: ours.
        unsafe {
            block.address.write_bytes(0xff, 100);
            pool.free_raw(*block).unwrap();
        }
    }
    for expected in blocks.iter().rev() {
        let block = pool.alloc_raw(Gfp::ATOMIC | Gfp::ZERO).unwrap();
        assert_eq!(block, *expected);
        // SAFETY: ours, so many bytes.
        let bytes = unsafe { core::slice::from_raw_parts(block.address.as_ptr(), pool.block_bytes()) };
        assert!(bytes.iter().all(|&byte| byte == 0), "the rounded size");
    }
    assert_eq!(pool.info().pages, 1);
    for block in blocks {
        // SAFETY: ours, unused.
        unsafe { pool.free_raw(block) }.unwrap();
    }
    assert_eq!(rig.in_use(), 1, "kept until the pool goes");
}

#[test]
fn strange_blocks_and_blocks_that_are_free_are_refused() {
    // MP-10
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    let pool = DmaPool::new(&dma, &CARD, &PoolSpec::new("p", 64)).unwrap();
    let other = DmaPool::new(&dma, &CARD, &PoolSpec::new("q", 64)).unwrap();
    let block = pool.alloc_raw(Gfp::KERNEL).unwrap();
    let physical = block.physical;
    // SAFETY: refused, all of them.
    unsafe {
        assert_eq!(other.free_raw(block), Err(PoolError::Foreign { physical }));
        let inside = PoolBlock { address: block.address.add(8), physical: physical + 8, ..block };
        assert_eq!(pool.free_raw(inside), Err(PoolError::Foreign { physical: physical + 8 }));
        let nowhere = PoolBlock { physical: 0, ..block };
        assert_eq!(pool.free_raw(nowhere), Err(PoolError::Foreign { physical: 0 }));
        pool.free_raw(block).unwrap();
        assert_eq!(pool.free_raw(block), Err(PoolError::AlreadyFree { physical }));
        // A block whose contents look like a free one's is freed all the same.
        let block = pool.alloc_raw(Gfp::KERNEL).unwrap();
        block.address.cast::<u64>().add(1).write(physical.rotate_left(32) ^ 0x646d_6170_6f6f_6c21);
        pool.free_raw(block).unwrap();
    }
    assert_eq!(pool.info().active, 0);
}

#[test]
fn a_block_written_while_free_is_reported_or_ends_the_list() {
    // MP-10
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    let pool = DmaPool::new(&dma, &CARD, &PoolSpec::new("rx", 64).poison()).unwrap();
    let block = pool.alloc_raw(Gfp::KERNEL).unwrap();
    // SAFETY: ours, then a stale pointer into memory that stays mapped.
    unsafe {
        assert_eq!(block.address.add(40).read(), 0xa9);
        pool.free_raw(block).unwrap();
        assert_eq!(block.address.add(40).read(), 0xa7);
        block.address.add(40).write(1);
    }
    assert_eq!(pool.alloc_raw(Gfp::KERNEL), Ok(block));
    assert_eq!(rig.reports(), [std::format!("dma_pool rx: {:#x} was written while free", block.physical)]);
    // SAFETY: as above.
    unsafe {
        pool.free_raw(block).unwrap();
        block.address.cast::<u64>().write(0x1234);
    }
    assert_eq!(pool.alloc_raw(Gfp::KERNEL), Ok(block));
    let lost = pool.alloc_raw(Gfp::KERNEL).unwrap_err();
    assert_eq!(lost, PoolError::Corrupt { physical: 0x1234 });
    let fresh = pool.alloc_raw(Gfp::KERNEL).unwrap();
    assert_ne!(fresh.physical >> 12, block.physical >> 12, "a new chunk");
    // SAFETY: ours, unused.
    unsafe {
        pool.free_raw(block).unwrap();
        pool.free_raw(fresh).unwrap();
    }
}

#[test]
fn a_pool_that_goes_with_blocks_in_use_says_so_and_leaves_the_memory() {
    // MP-10
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    let pool = DmaPool::new(&dma, &CARD, &PoolSpec::new("busy", 64)).unwrap();
    let block = pool.alloc(Gfp::KERNEL).unwrap().into_raw();
    drop(pool);
    assert_eq!(rig.reports(), ["dma_pool_destroy busy: 1 blocks busy, memory kept"]);
    assert_eq!(rig.in_use(), 1);
    // SAFETY: still mapped.
    unsafe { block.address.write(1) };
}

#[test]
fn the_figures_are_a_line_of_the_devices_pools_file() {
    // MP-10
    let rig = Rig::new();
    let dma = Dma::new(&rig);
    let pool = DmaPool::new(&dma, &CARD, &PoolSpec::new("ehci_qtd", 96).align(32)).unwrap();
    let _block = pool.alloc(Gfp::KERNEL).unwrap();
    assert_eq!(crate::PoolInfo::HEADER, "poolinfo - 0.1");
    assert_eq!(pool.info().to_string(), "ehci_qtd            1   42   96  1");
}

#[test]
fn whichever_request_fails_nothing_is_lost() {
    for fail_at in 1..4 {
        let rig = Rig::new();
        let dma = Dma::new(&rig);
        let pool = DmaPool::new(&dma, &DmaDevice::with_bits(24), &PoolSpec::new("p", 2000)).unwrap();
        rig.pages.fail_at.store(fail_at, Ordering::Relaxed);
        let got: Vec<_> = (0..6).filter_map(|_| pool.alloc(Gfp::KERNEL).ok()).collect();
        assert_eq!(got.len() as u64, pool.info().active);
        assert!(got.len() >= 5);
        drop(got);
        drop(pool);
        assert_eq!(rig.in_use(), 0);
    }
    let rig = Rig::new();
    rig.bus.refuses.store(true, Ordering::Relaxed);
    let dma = Dma::new(&rig);
    let pool = DmaPool::new(&dma, &CARD, &PoolSpec::new("p", 64)).unwrap();
    assert!(matches!(pool.alloc(Gfp::KERNEL), Err(PoolError::Dma(crate::DmaError::NotMapped))));
    assert_eq!(rig.in_use(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    // MP-08, MP-09
    #[test]
    fn no_two_blocks_share_a_byte(
        size in 1_usize..600, align in 0_u32..7, steps in prop::collection::vec(any::<(bool, usize)>(), 1..300),
    ) {
        let rig = Rig::new();
        let dma = Dma::new(&rig);
        let pool = DmaPool::new(&dma, &CARD, &PoolSpec::new("p", size).align(1 << align)).unwrap();
        let mut held: BTreeMap<u64, (PoolBlock, u8)> = BTreeMap::new();
        for (nth, (alloc, which)) in steps.into_iter().enumerate() {
            let byte = nth as u8;
            if alloc {
                let block = pool.alloc_raw(Gfp::KERNEL).unwrap();
                // SAFETY: ours.
                unsafe { block.address.write_bytes(byte, size) };
                let end = block.bus + pool.block_bytes() as u64;
                prop_assert!(held.range(..end).next_back().is_none_or(|(bus, _)| bus + pool.block_bytes() as u64 <= block.bus));
                held.insert(block.bus, (block, byte));
            } else if let Some(bus) = held.keys().nth(which % held.len().max(1)).copied() {
                let (block, byte) = held.remove(&bus).unwrap();
                // SAFETY: ours, so many bytes; then unused.
                unsafe {
                    let bytes = core::slice::from_raw_parts(block.address.as_ptr(), size);
                    prop_assert!(bytes.iter().all(|&found| found == byte));
                    pool.free_raw(block).unwrap();
                }
            }
            prop_assert_eq!(pool.info().active, held.len() as u64);
        }
        for (block, _) in held.into_values() {
            // SAFETY: ours, unused.
            unsafe { pool.free_raw(block) }.unwrap();
        }
        drop(pool);
        prop_assert_eq!(rig.in_use(), 0);
    }
}
