//! Alignment, layout, orders, sheaf sizes: pure arithmetic against the reference's tables.

use crate::cache::default_min_partial;
use crate::layout::{ObjectLayout, alignment, sheaf_capacity};
use crate::order::{SlabOrders, min_objects, objects};
use crate::{CreateError, SlabConfig, SlabFlags};

const REFERENCE: SlabConfig = SlabConfig { grow_orders: false, ..SlabConfig::DEFAULT };

fn order_and_objects(stride: usize, nr_cpus: u32) -> (u32, usize) {
    let orders = SlabOrders::new(stride, nr_cpus, &REFERENCE).unwrap();
    (orders.preferred.get(), objects(orders.preferred, stride))
}

#[test]
fn orders_are_the_references() {
    // SL-32, SL-33, SL-36
    assert_eq!([1, 2, 4, 8, 16, 64].map(min_objects), [8, 12, 16, 20, 24, 32]);
    let table = [
        (8, [(0, 512), (0, 512), (0, 512), (0, 512), (0, 512)]),
        (64, [(0, 64), (0, 64), (0, 64), (0, 64), (0, 64)]),
        (96, [(0, 42), (0, 42), (0, 42), (0, 42), (0, 42)]),
        (192, [(0, 21), (0, 21), (0, 21), (1, 42), (1, 42)]),
        (200, [(0, 20), (0, 20), (0, 20), (1, 40), (1, 40)]),
        (256, [(0, 16), (0, 16), (1, 32), (1, 32), (1, 32)]),
        (512, [(0, 8), (1, 16), (2, 32), (2, 32), (2, 32)]),
        (700, [(1, 11), (2, 23), (2, 23), (3, 46), (3, 46)]),
        (1024, [(1, 8), (2, 16), (3, 32), (3, 32), (3, 32)]),
        (2048, [(2, 8), (3, 16), (3, 16), (3, 16), (3, 16)]),
        (4096, [(3, 8), (3, 8), (3, 8), (3, 8), (3, 8)]),
        (8192, [(3, 4), (3, 4), (3, 4), (3, 4), (3, 4)]),
        (33000, [(4, 1), (4, 1), (4, 1), (4, 1), (4, 1)]),
    ];
    for (stride, expected) in table {
        assert_eq!([1, 4, 8, 16, 64].map(|cpus| order_and_objects(stride, cpus)), expected, "stride {stride}");
    }
}

#[test]
fn no_slab_has_more_objects_than_its_count_can_say() {
    // SL-34: the order is one below what 32767 objects would need.
    let config = SlabConfig { min_order: 7, max_order: 8, ..REFERENCE };
    let orders = SlabOrders::new(8, 1, &config).unwrap();
    assert_eq!(orders.preferred.get(), 5);
    assert!(objects(orders.preferred, 8) <= 32767);
}

#[test]
fn raising_the_minimum_order_lifts_the_maximum() {
    // SL-103
    let config = SlabConfig { min_order: 4, max_order: 1, ..REFERENCE };
    assert_eq!(SlabOrders::new(64, 1, &config).unwrap().preferred.get(), 4);
    let config = SlabConfig { min_objects: 64, ..REFERENCE };
    assert_eq!(SlabOrders::new(256, 1, &config).unwrap().preferred.get(), 2);
}

#[test]
fn objects_above_the_largest_block_have_no_order() {
    // SL-33
    assert!(matches!(SlabOrders::new((4 << 20) + 8, 1, &REFERENCE), Err(CreateError::BadSize(_))));
    assert_eq!(SlabOrders::new(4 << 20, 1, &REFERENCE).unwrap().preferred.get(), 10);
}

#[test]
fn small_caches_get_smaller_slabs_that_waste_no_more() {
    for stride in (8..9000).step_by(8) {
        for cpus in [1, 2, 4, 16, 64] {
            let orders = SlabOrders::new(stride, cpus, &SlabConfig::DEFAULT).unwrap();
            let waste = |order: kmem_gfp::Order| (order.size_bytes() % stride) as f64 / order.size_bytes() as f64;
            let mut last = 0;
            for pages in 0..200 {
                let order = orders.for_size(pages);
                assert!(waste(order) <= waste(orders.preferred), "stride {stride}: {order}");
                assert!(order >= orders.minimum && order <= orders.preferred);
                assert!(order.get() >= last, "orders only grow");
                last = order.get();
            }
            assert_eq!(orders.for_size(1000), orders.preferred);
        }
    }
}

#[test]
fn sheaves_fill_their_memory() {
    // SL-36, SL-52
    let limit = SlabConfig::DEFAULT.max_sheaf_capacity;
    let real = [8, 64, 200, 256, 512, 1023, 1024, 2048, 4095, 4096, 8192, 33000]
        .map(|stride| sheaf_capacity(stride, 0, limit));
    assert_eq!(real, [60, 60, 60, 28, 28, 28, 12, 12, 12, 4, 4, 4]);
    assert_eq!(sheaf_capacity(64, 10, limit), 60, "a smaller wish is ignored");
    assert_eq!(sheaf_capacity(64, 100, limit), 124, "a larger one wins");
    // SL-108: a machine with very little memory has none.
    assert_eq!(sheaf_capacity(64, 100, 0), 0);
}

#[test]
fn min_partial_is_half_the_bit_length() {
    // SL-36, SL-37
    let strides = [8, 64, 1024, 2048, 4096, 8192, 33000, 1 << 20, 4 << 20];
    assert_eq!(strides.map(default_min_partial), [5, 5, 5, 5, 6, 6, 7, 10, 10]);
}

#[test]
fn alignment_follows_the_cache_line_rule() {
    // SL-10, SL-25, SL-105
    let line = SlabFlags::HWCACHE_ALIGN;
    assert_eq!([33, 100, 32, 17, 16, 9, 8].map(|size| alignment(line, 0, size).unwrap()), [64, 64, 32, 32, 16, 16, 8]);
    assert_eq!(alignment(line, 128, 10).unwrap(), 128, "the larger of both");
    assert_eq!(alignment(SlabFlags::empty(), 0, 100).unwrap(), 8);
    assert_eq!(alignment(SlabFlags::empty(), 1, 100).unwrap(), 8);
    // SL-03: the reference does not check this.
    assert_eq!(alignment(SlabFlags::empty(), 24, 100), Err(CreateError::BadAlign(24)));
    assert_eq!(alignment(SlabFlags::empty(), 8192, 100), Err(CreateError::BadAlign(8192)));
}

#[test]
fn the_free_pointer_lies_in_the_middle_or_behind() {
    // SL-26, SL-28
    let plain = ObjectLayout::new(100, 8, SlabFlags::empty(), false, None);
    assert_eq!((plain.inuse, plain.stride, plain.free_offset), (104, 104, 48));
    let tiny = ObjectLayout::new(8, 8, SlabFlags::empty(), false, None);
    assert_eq!((tiny.stride, tiny.free_offset), (8, 0));
    let typesafe = ObjectLayout::new(100, 8, SlabFlags::TYPESAFE_BY_RCU, false, None);
    assert_eq!((typesafe.inuse, typesafe.stride, typesafe.free_offset), (104, 112, 104));
    let constructed = ObjectLayout::new(64, 64, SlabFlags::empty(), true, None);
    assert_eq!((constructed.stride, constructed.free_offset), (128, 64));
    let poisoned = ObjectLayout::new(64, 8, SlabFlags::POISON, false, None);
    assert_eq!((poisoned.stride, poisoned.free_offset), (72, 64));
    // SL-27: overlaid, unless poison moves it out.
    let overlaid = ObjectLayout::new(64, 8, SlabFlags::TYPESAFE_BY_RCU, false, Some(16));
    assert_eq!((overlaid.stride, overlaid.free_offset), (64, 16));
    let moved = ObjectLayout::new(64, 8, SlabFlags::TYPESAFE_BY_RCU | SlabFlags::POISON, false, Some(16));
    assert_eq!(moved.free_offset, 64);
}

#[test]
fn debug_options_enlarge_objects_as_the_reference_says() {
    // SL-29
    let all = SlabFlags::DEBUG_DEFAULT;
    assert_eq!(ObjectLayout::new(64, 64, all | SlabFlags::KMALLOC, false, None).stride, 256);
    let layout = ObjectLayout::new(200, 8, all, false, None);
    assert_eq!((layout.stride, layout.left_pad), (296, 8));
}
