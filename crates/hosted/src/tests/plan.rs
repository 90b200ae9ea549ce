//! Layout of physical memory.

use proptest::prelude::*;

use crate::{MAX_NODES, MIN_RAM_BYTES, MemoryPlan, PlanError, ZoneSplit};
use kmem_gfp::{PAGE_SIZE, Pfn, ZoneKind};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn a_small_machine_has_every_zone_at_its_addresses() {
    let plan = MemoryPlan::new(512 * MIB, 1, ZoneSplit::every_zone(512 * MIB)).unwrap();
    let text: Vec<_> = plan.ranges().iter().map(|range| range.to_string()).collect();
    assert_eq!(
        text,
        [
            "node 0 DMA      pfns 0x1..0x1000 (15 MiB)",
            "node 0 DMA32    pfns 0x1000..0x9000 (128 MiB)",
            "node 0 Normal   pfns 0x100000..0x113000 (304 MiB)",
            "node 0 Movable  pfns 0x113000..0x117000 (64 MiB)",
        ]
    );
    assert_eq!(plan.span().start, Pfn(0));
}

#[test]
fn normal_memory_alone_starts_at_4_gib() {
    let plan = MemoryPlan::new(GIB, 1, ZoneSplit::NORMAL_ONLY).unwrap();
    assert_eq!(plan.ranges().len(), 1);
    assert_eq!(plan.span().start, Pfn(0x10_0000));
    assert_eq!(plan.nr_frames(), GIB / PAGE_SIZE as u64);
}

#[test]
fn misfits_name_the_value() {
    let none = ZoneSplit::NORMAL_ONLY;
    assert_eq!(MemoryPlan::new(GIB, 0, none).unwrap_err(), PlanError::Nodes(0));
    assert_eq!(MemoryPlan::new(GIB, MAX_NODES + 1, none).unwrap_err(), PlanError::Nodes(MAX_NODES + 1));
    let small = PlanError::RamBytes { ram_bytes: MIN_RAM_BYTES, nodes: 2 };
    assert_eq!(MemoryPlan::new(MIN_RAM_BYTES, 2, none).unwrap_err(), small);
    let split = ZoneSplit { dma_bytes: 32 * MIB, ..none };
    assert_eq!(MemoryPlan::new(GIB, 1, split).unwrap_err(), PlanError::Split { split, ram_bytes: GIB });
    let split = ZoneSplit { movable_bytes: 2 * GIB, ..none };
    assert_eq!(MemoryPlan::new(GIB, 1, split).unwrap_err(), PlanError::Split { split, ram_bytes: GIB });
}

proptest! {
    #[test]
    fn every_plan_holds_what_was_asked_for(blocks in 1_u64..(1 << 18), nodes in 1..=8_u32, extra in 0..4 * MIB) {
        let ram = blocks * 4 * MIB + extra;
        let Ok(plan) = MemoryPlan::new(ram, nodes, ZoneSplit::every_zone(ram)) else {
            // Node 0 has all memory below 4 GiB, so many nodes of little memory do not fit.
            prop_assert!(nodes > 1 || blocks == 0);
            return Ok(());
        };
        let lost = if plan.ranges()[0].zone == ZoneKind::Dma { 1 } else { 0 };
        prop_assert_eq!(plan.nr_frames() + lost, blocks * 1024);
        for pair in plan.ranges().windows(2) {
            prop_assert!(pair[0].frames.end <= pair[1].frames.start);
        }
        for range in plan.ranges() {
            prop_assert!(range.frames.end.0 % 1024 == 0, "{range}");
            let end = range.frames.end.0 * PAGE_SIZE as u64;
            match range.zone {
                ZoneKind::Dma => prop_assert!(end <= 16 * MIB),
                ZoneKind::Dma32 => prop_assert!(end <= 4 * GIB),
                _ => prop_assert!(range.frames.start.0 >= 0x10_0000),
            }
        }
    }
}
