//! Size classes, kinds, rounding: whole domains against plain arithmetic.

use kmem_gfp::{Gfp, Order};

use crate::class::size_roundup;
use crate::{
    KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, KmallocKind, MinAlign, PartitionToken, SizeClass, natural_align,
};

const SIZES: [usize; 13] = [8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192];

#[test]
fn the_smallest_class_that_fits_serves_every_size() {
    // KM-01
    assert_eq!(SizeClass::ALL.map(SizeClass::size_bytes), SIZES);
    for size in 1..=KMALLOC_MAX_CACHE_SIZE {
        let expected = SIZES.into_iter().find(|class| *class >= size);
        assert_eq!(SizeClass::for_size(size).map(SizeClass::size_bytes), expected, "{size}");
    }
    assert_eq!(SizeClass::for_size(0), None);
    assert_eq!(SizeClass::for_size(KMALLOC_MAX_CACHE_SIZE + 1), None);
    assert_eq!(SizeClass::for_size(usize::MAX), None);
}

#[test]
fn class_numbers_are_96_192_and_powers_of_two() {
    // KM-03
    for class in SizeClass::ALL {
        let expected = match class.index() {
            1 => 96,
            2 => 192,
            n => 1 << n,
        };
        assert_eq!(class.size_bytes(), expected);
        assert!(class.index() < SizeClass::TABLE_LEN);
    }
    // The class of a constant size is a constant.
    const SIXTY_FOUR: Option<SizeClass> = SizeClass::for_size(64);
    assert_eq!(SIXTY_FOUR.map(SizeClass::index), Some(6));
    let bit_lengths = (193..=8192_usize).map(|size| (size - 1).ilog2() + 1);
    for (size, bits) in (193..).zip(bit_lengths) {
        assert_eq!(SizeClass::for_size(size).map(SizeClass::index), Some(bits as usize));
    }
}

#[test]
fn a_minimum_alignment_removes_classes() {
    // KM-02
    let left = |min: usize| {
        let min = MinAlign::new(min).unwrap();
        let mut sizes = SizeClass::ALL.map(|class| class.with_min_align(min).size_bytes()).to_vec();
        sizes.dedup();
        sizes
    };
    assert_eq!(left(1), SIZES);
    assert_eq!(left(16), SIZES[1..]);
    assert_eq!(left(32), SIZES[2..]);
    assert_eq!(left(64), [64, 128, 192, 256, 512, 1024, 2048, 4096, 8192]);
    assert_eq!(left(128), [128, 256, 512, 1024, 2048, 4096, 8192]);
    assert_eq!(left(256), [256, 512, 1024, 2048, 4096, 8192]);
    assert_eq!(MinAlign::new(512), None);
    assert_eq!(MinAlign::new(24), None);
    assert_eq!(MinAlign::new(0), None);
    // An alignment of 64 sends 65..=96 to 128; one of 128 sends 129..=192 to 256.
    let served =
        |size, min| SizeClass::for_size(size).unwrap().with_min_align(MinAlign::new(min).unwrap()).size_bytes();
    assert_eq!(served(65, 64), 128);
    assert_eq!(served(1, 64), 64);
    assert_eq!(served(129, 64), 192);
    assert_eq!(served(129, 128), 256);
}

#[test]
fn classes_are_aligned_to_their_largest_power_of_two_divisor() {
    // KM-07
    for size in 1..=KMALLOC_MAX_CACHE_SIZE {
        let class = SizeClass::for_size(size).unwrap();
        assert!(class.align() >= natural_align(size), "{size}");
        assert!(class.align() >= 8);
    }
    assert_eq!(SizeClass::for_size(96).map(SizeClass::align), Some(32));
    assert_eq!(SizeClass::for_size(192).map(SizeClass::align), Some(64));
}

#[test]
fn roundup_is_the_class_then_the_page_block_then_nothing() {
    // KM-14
    let round = |size| size_roundup(size, MinAlign::SMALLEST);
    assert_eq!(round(0), 0);
    assert_eq!(round(1), 8);
    assert_eq!(round(65), 96);
    assert_eq!(round(8192), 8192);
    assert_eq!(round(8193), 16 << 10);
    assert_eq!(round((1 << 20) + 1), 2 << 20);
    assert_eq!(round(KMALLOC_MAX_SIZE), KMALLOC_MAX_SIZE);
    assert_eq!(round(KMALLOC_MAX_SIZE + 1), KMALLOC_MAX_SIZE + 1);
    assert_eq!(round(usize::MAX), usize::MAX);
    for size in (1..=KMALLOC_MAX_SIZE).step_by(997) {
        assert!(round(size) >= size);
        assert!(size <= 8192 || round(size) == Order::for_size(size).unwrap().size_bytes());
    }
    assert_eq!(size_roundup(100, MinAlign::new(64).unwrap()), 128);
}

#[test]
fn dma_goes_before_reclaimable_before_accounted() {
    // KM-04
    let (dma, rcl, cg) = (Gfp::DMA, Gfp::RECLAIMABLE, Gfp::ACCOUNT);
    assert_eq!(KmallocKind::of(Gfp::KERNEL), KmallocKind::Normal);
    assert_eq!(KmallocKind::of(Gfp::ATOMIC | Gfp::ZERO), KmallocKind::Normal);
    assert_eq!(KmallocKind::of(Gfp::KERNEL | dma | rcl | cg), KmallocKind::Dma);
    assert_eq!(KmallocKind::of(Gfp::KERNEL | rcl | cg), KmallocKind::Reclaimable);
    assert_eq!(KmallocKind::of(Gfp::KERNEL_ACCOUNT), KmallocKind::Cgroup);
    assert_eq!(KmallocKind::ALL.map(KmallocKind::index), [0, 1, 2, 3]);
}

#[test]
fn tokens_spread_over_the_partitions_and_depend_on_the_seed() {
    // KM-05
    let mut hit = [0_u32; PartitionToken::PARTITIONS];
    for site in 0..1600_u64 {
        hit[PartitionToken::new(site).partition(0x1234)] += 1;
    }
    assert!(hit.into_iter().all(|n| n > 50), "{hit:?}");
    let moved = (0..100).filter(|&site| {
        PartitionToken::new(site).partition(1) != PartitionToken::new(site).partition(0xdead_beef_0bad_cafe)
    });
    assert!(moved.count() > 50);
    assert_eq!(PartitionToken::of_type::<u32>(), PartitionToken::of_type::<u32>());
    assert_ne!(PartitionToken::of_type::<u32>(), PartitionToken::of_type::<[u32]>());
    let (here, there) = (PartitionToken::of_caller(), PartitionToken::of_caller());
    assert_ne!(here, there);
}
