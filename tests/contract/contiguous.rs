//! P02: contiguous areas; what G07 and G08 say about them and about devices.

use kmem::{AreaSpec, CmaError, DmaDevice, DmaError, Gfp, MigrateType, Order, PAGE_SIZE, PoolSpec, ReleaseError};
use kmem_hosted::{TaskFlags, in_context};
use kmem_tests::{exhaust, free_all, machine};

#[test]
fn p02_contiguous_areas_are_lent_to_movable_pages_while_unused() {
    let kmem = machine().kmem();
    let area = kmem.cma_declare_contiguous(&AreaSpec::new("camera", 32 << 8)).unwrap();
    let lent = area.ranges().next().unwrap();
    assert_eq!(lent.len(), 32 << 8);
    // Larger than any block, aligned, and released on drop.
    let frames = kmem.cma_alloc(area, 16 << 8, 10).unwrap();
    assert!(frames.range().len() == 16 << 8 && frames.range().start.is_aligned(Order::MAX));
    assert!(matches!(kmem.cma_alloc(area, 24 << 8, 0), Err(CmaError::NoRoom { .. })));
    let refused = in_context(TaskFlags::ATOMIC, || area.alloc(1, 0).map(drop));
    assert_eq!(refused, Err(CmaError::MustNotSleep));
    drop(frames);
    // By hand.
    let raw = kmem.cma_alloc(area, 100, 0).unwrap().into_raw();
    // SAFETY: ours, unused; the second is refused.
    unsafe {
        kmem.cma_release(raw).unwrap();
        assert_eq!(kmem.cma_release(raw), Err(ReleaseError::NotAllocated(raw.start)));
    }
    // Lent to movable pages and to no others.
    let unmovable = exhaust(kmem, Gfp::USER.difference(Gfp::RECLAIM));
    assert!(unmovable.iter().all(|pfn| !lent.contains(*pfn)));
    let movable = exhaust(kmem, Gfp::HIGHUSER_MOVABLE.difference(Gfp::RECLAIM));
    assert!(movable.iter().filter(|pfn| lent.contains(**pfn)).count() as u64 > lent.len() / 2);
    // Nobody says how these would move, so they are in the way, and nothing is lost over it.
    assert!(area.try_alloc(16 << 8, 0).is_err());
    // SAFETY: allocated above.
    unsafe {
        free_all(kmem, movable);
        free_all(kmem, unmovable);
    }
    assert!(kmem.cma_alloc(area, 32 << 8, 0).is_ok());
    assert!(kmem.cma_declare_contiguous(&AreaSpec::new("huge", 1 << 20)).is_err());
}

#[test]
fn g07_movable_user_pages_may_come_from_areas_and_others_may_not() {
    let kmem = machine().kmem();
    let area = kmem.cma_declare_contiguous(&AreaSpec::new("a", 16 << 8)).unwrap();
    let lent = area.ranges().next().unwrap();
    for (gfp, may) in [(Gfp::USER, false), (Gfp::HIGHUSER, false), (Gfp::HIGHUSER_MOVABLE, true)] {
        let pages = exhaust(kmem, gfp.difference(Gfp::RECLAIM));
        assert_eq!(pages.iter().any(|pfn| lent.contains(*pfn)), may, "{gfp}");
        // SAFETY: allocated above.
        unsafe { free_all(kmem, pages) };
    }
    assert_eq!(kmem.pages().pageblock_type(lent.start), Some(MigrateType::Cma));
}

#[test]
fn g08_memory_by_a_devices_mask_lies_where_the_device_reaches_it() {
    let kmem = machine().kmem();
    for bits in [24, 26, 30, 32, 36, 64] {
        let device = DmaDevice::with_bits(bits);
        for len in [1, PAGE_SIZE, 5 * PAGE_SIZE, 1 << 20] {
            let mut buffer = kmem.dma_alloc_coherent(&device, len, Gfp::KERNEL).unwrap();
            assert!(buffer.bus_address() + (len as u64 - 1) <= device.mask(), "{bits} bits");
            let mut last = [1];
            assert!(buffer.read(len - 1, &mut last) && last == [0], "zeroed");
            assert!(buffer.write(0, &[1]));
        }
        let pool = kmem.dma_pool_create(&device, &PoolSpec::new("blocks", 96).align(32)).unwrap();
        let block = pool.alloc(Gfp::ATOMIC).unwrap();
        assert!(block.bus_address() + 95 <= device.mask() && block.bus_address().is_multiple_of(32));
    }
    let blind = DmaDevice::with_bits(12);
    let refused = kmem.dma_alloc_coherent(&blind, 100, Gfp::KERNEL).map(drop);
    assert!(matches!(refused, Err(DmaError::Unreachable { .. })), "{refused:?}");
    let raw = kmem.dma_alloc_coherent(&DmaDevice::with_bits(32), 100, Gfp::KERNEL).unwrap().into_raw();
    // SAFETY: ours, unused.
    unsafe { kmem.dma_free_coherent(raw) }.unwrap();
}
