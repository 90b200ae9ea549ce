//! Zone ceilings, migratetypes and zonelists: the whole tables.

use crate::{
    Gfp, MigrateType, Order, ZoneKind,
    alloc_flags::MobilityGrouping,
    select::{OptionalZones, Selection, ZoneTable, Zonelist, migrate_type},
    verdict::GfpError,
};

const ALL_ZONES: ZoneTable = ZoneTable::new(OptionalZones::all());

#[test]
fn all_sixteen_zone_combinations_with_every_zone_present() {
    use ZoneKind::{Dma, Dma32, HighMem, Movable, Normal};
    let table = [
        Some(Normal),  // 0x0: G-45
        Some(Dma),     // 0x1: G-46
        Some(HighMem), // 0x2: G-47
        None,          // 0x3: G-53
        Some(Dma32),   // 0x4: G-48
        None,          // 0x5: G-53
        None,          // 0x6: G-53
        None,          // 0x7: G-53
        Some(Normal),  // 0x8: G-49
        Some(Dma),     // 0x9: G-50
        Some(Movable), // 0xa: G-51
        None,          // 0xb: G-53
        Some(Dma32),   // 0xc: G-52
        None,          // 0xd: G-53
        None,          // 0xe: G-53
        None,          // 0xf: G-53
    ];
    for (low_bits, zone) in (0_u32..).zip(table) {
        let gfp = Gfp::from_bits_retain(low_bits);
        for other in [Gfp::empty(), Gfp::KERNEL, Gfp::all().difference(Gfp::from_bits_retain(0xf))] {
            let gfp = gfp | other;
            assert_eq!(ALL_ZONES.ceiling(gfp), zone.ok_or(GfpError::ZoneConflict { gfp }), "{low_bits:#x}");
        }
    }
}

#[test]
fn a_missing_zone_is_replaced_by_normal() {
    // G-54
    for zones in (0..8).map(OptionalZones::from_bits_truncate) {
        let table = ZoneTable::new(zones);
        let or_normal = |zone, present| if zones.contains(present) { Ok(zone) } else { Ok(ZoneKind::Normal) };
        for movable in [Gfp::empty(), Gfp::MOVABLE] {
            assert_eq!(table.ceiling(Gfp::DMA | movable), or_normal(ZoneKind::Dma, OptionalZones::DMA));
            assert_eq!(table.ceiling(Gfp::DMA32 | movable), or_normal(ZoneKind::Dma32, OptionalZones::DMA32));
        }
        assert_eq!(table.ceiling(Gfp::HIGHMEM), or_normal(ZoneKind::HighMem, OptionalZones::HIGHMEM));
        // The MOVABLE zone needs both bits, whether or not there is high memory.
        assert_eq!(table.ceiling(Gfp::MOVABLE), Ok(ZoneKind::Normal));
        assert_eq!(table.ceiling(Gfp::MOVABLE | Gfp::HIGHMEM), Ok(ZoneKind::Movable));
        // Conflicts stay conflicts.
        assert!(table.ceiling(Gfp::DMA | Gfp::DMA32).is_err());
    }
}

#[test]
fn the_ceiling_orders_the_zones_below_it() {
    // G-55
    assert!(ZoneKind::ALL.is_sorted());
    let below = |gfp| {
        let ceiling = ALL_ZONES.ceiling(gfp).unwrap();
        ZoneKind::ALL.iter().rev().filter(|&&zone| zone <= ceiling).count()
    };
    assert_eq!([below(Gfp::DMA), below(Gfp::DMA32), below(Gfp::KERNEL)], [1, 2, 3]);
    assert_eq!([below(Gfp::HIGHUSER), below(Gfp::HIGHUSER_MOVABLE)], [4, 5]);
}

#[test]
fn mobility_selects_the_migratetype() {
    // G-56
    let on = |gfp| migrate_type(gfp, MobilityGrouping::Enabled);
    assert_eq!(on(Gfp::KERNEL), Ok(MigrateType::Unmovable));
    assert_eq!(on(Gfp::HIGHUSER_MOVABLE), Ok(MigrateType::Movable));
    assert_eq!(on(Gfp::KERNEL | Gfp::RECLAIMABLE), Ok(MigrateType::Reclaimable));
    let both = Gfp::MOVABLE | Gfp::RECLAIMABLE;
    assert_eq!(on(both), Err(GfpError::MobilityConflict { gfp: both }));
    for gfp in super::subsets(both) {
        assert_eq!(migrate_type(gfp, MobilityGrouping::Disabled), Ok(MigrateType::Unmovable));
        if let Ok(migrate_type) = on(gfp) {
            assert_eq!(migrate_type as u32, (gfp.bits() & 0x18) >> 3, "the kernel's arithmetic");
        }
    }
}

#[test]
fn thisnode_selects_the_list_without_fallback() {
    // G-57
    assert_eq!(Zonelist::of(Gfp::KERNEL), Zonelist::Fallback);
    assert_eq!(Zonelist::of(Gfp::KERNEL | Gfp::THISNODE), Zonelist::ThisNode);
}

#[test]
fn a_selection_holds_all_three_answers() {
    let select = |gfp| ALL_ZONES.select(gfp, MobilityGrouping::Enabled);
    assert_eq!(
        select(Gfp::HIGHUSER_MOVABLE | Gfp::THISNODE),
        Ok(Selection { ceiling: ZoneKind::Movable, migrate_type: MigrateType::Movable, zonelist: Zonelist::ThisNode })
    );
    assert!(matches!(select(Gfp::DMA | Gfp::HIGHMEM), Err(GfpError::ZoneConflict { .. })));
    assert!(matches!(select(Gfp::MOVABLE | Gfp::RECLAIMABLE), Err(GfpError::MobilityConflict { .. })));
}

#[test]
fn there_is_no_order_above_the_largest() {
    // G-58
    assert_eq!(Order::new(10), Some(Order::MAX));
    assert_eq!(Order::new(11), None);
    assert_eq!(Order::for_size(Order::MAX.size_bytes()), Some(Order::MAX));
    assert_eq!(Order::for_size(Order::MAX.size_bytes() + 1), None);
    assert_eq!(Order::for_size(usize::MAX), None);
}
