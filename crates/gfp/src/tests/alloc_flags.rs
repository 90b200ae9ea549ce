//! Allocation flags: derivation, reserves, depths.

use proptest::prelude::*;

use crate::{
    Gfp, MigrateType, Order, TaskFlags, Watermark, ZoneKind,
    alloc_flags::{AllocFlags, CpusetEntry, CpusetRule, DefragMode, NodeMask, Reserve, depth::ZoneLevels},
};

const NONE: TaskFlags = TaskFlags::empty();

fn order(order: u32) -> Order {
    Order::new(order).unwrap()
}

fn slow(gfp: Gfp) -> AllocFlags {
    AllocFlags::slow_path(gfp, Order::ZERO, MigrateType::Unmovable, NONE, DefragMode::Off)
}

#[test]
fn shared_bits_have_one_value() {
    assert_eq!(AllocFlags::MIN_RESERVE.bits(), Gfp::HIGH.bits()); // G-06
    assert_eq!(AllocFlags::KSWAPD.bits(), Gfp::KSWAPD_RECLAIM.bits()); // G-11
}

#[test]
fn the_mark_is_an_index_of_two_bits() {
    // G-65
    for mark in Watermark::ALL {
        let flags = AllocFlags::all().with_watermark(mark);
        assert_eq!(flags.watermark(), mark);
        assert_eq!(flags.bits() & 3, mark as u32);
        assert_eq!(flags.difference(AllocFlags::WMARK_MASK), AllocFlags::all().difference(AllocFlags::WMARK_MASK));
    }
    let reserves = AllocFlags::NON_BLOCK | AllocFlags::MIN_RESERVE | AllocFlags::HIGHATOMIC | AllocFlags::OOM;
    assert_eq!(AllocFlags::RESERVES, reserves);
}

#[test]
fn cpusets_limit_only_the_fast_path() {
    // G-59
    use CpusetEntry::{CheckEachZone, Off, TaskNodes};
    assert_eq!(CpusetEntry::with_cpusets(NodeMask::Unspecified, NONE), TaskNodes);
    assert_eq!(CpusetEntry::with_cpusets(NodeMask::Given, NONE), CheckEachZone);
    for interrupt in [TaskFlags::IN_SOFTIRQ, TaskFlags::IN_IRQ, TaskFlags::IN_NMI] {
        assert_eq!(CpusetEntry::with_cpusets(NodeMask::Unspecified, interrupt), CheckEachZone);
    }
    assert_eq!(Off.fast_gfp(Gfp::KERNEL), Gfp::KERNEL);
    assert_eq!(TaskNodes.fast_gfp(Gfp::KERNEL), Gfp::USER);
    assert_eq!(CheckEachZone.fast_gfp(Gfp::KERNEL), Gfp::USER);
    // G-60: the slow path is derived from the caller's own flags, whatever the fast path implied.
    assert_eq!(slow(Gfp::KERNEL), AllocFlags::CPUSET | AllocFlags::KSWAPD);
}

#[test]
fn the_fast_path_uses_no_reserve() {
    // G-66
    let every = Gfp::all().difference(Gfp::ZONE_AND_MOBILITY | Gfp::ACCOUNT | Gfp::COMP | Gfp::ZEROTAGS);
    for gfp in super::subsets(every.difference(Gfp::WRITE | Gfp::NO_OBJ_EXT | Gfp::CONSTRAINT_MASK | Gfp::ZERO)) {
        for (migrate_type, cma) in [
            (MigrateType::Unmovable, AllocFlags::empty()),
            (MigrateType::Movable, AllocFlags::CMA),
            (MigrateType::Reclaimable, AllocFlags::empty()),
        ] {
            let kswapd = if gfp.wakes_kswapd() { AllocFlags::KSWAPD } else { AllocFlags::empty() };
            let fast = AllocFlags::fast_path(gfp, migrate_type, CpusetEntry::Off, AllocFlags::empty());
            assert_eq!(fast, AllocFlags::WMARK_LOW | kswapd | cma);
        }
    }
    let fast = |cpuset, nofragment| AllocFlags::fast_path(Gfp::ATOMIC, MigrateType::Unmovable, cpuset, nofragment);
    let base = AllocFlags::WMARK_LOW | AllocFlags::KSWAPD;
    assert_eq!(fast(CpusetEntry::CheckEachZone, AllocFlags::empty()), base | AllocFlags::CPUSET);
    assert_eq!(fast(CpusetEntry::TaskNodes, AllocFlags::NOFRAGMENT), base | AllocFlags::NOFRAGMENT);
    assert_eq!(fast(CpusetEntry::Off, AllocFlags::all()), base | AllocFlags::NOFRAGMENT, "no other bit gets in");
}

#[test]
fn mixing_is_avoided_where_a_lower_zone_can_take_over() {
    // G-66
    for zone in ZoneKind::ALL {
        assert_eq!(AllocFlags::nofragment(zone, true, DefragMode::On), AllocFlags::NOFRAGMENT);
        assert_eq!(AllocFlags::nofragment(zone, false, DefragMode::On), AllocFlags::NOFRAGMENT);
        assert_eq!(AllocFlags::nofragment(zone, false, DefragMode::Off), AllocFlags::empty());
        let avoids = AllocFlags::nofragment(zone, true, DefragMode::Off) == AllocFlags::NOFRAGMENT;
        assert_eq!(avoids, zone == ZoneKind::Normal);
    }
}

#[test]
fn the_slow_path_starts_at_the_min_mark_within_the_cpuset() {
    // G-67
    assert_eq!(slow(Gfp::KERNEL), AllocFlags::CPUSET | AllocFlags::KSWAPD);
    assert_eq!(slow(Gfp::KERNEL).watermark(), Watermark::Min);
    assert_eq!(slow(Gfp::KERNEL | Gfp::HIGH), AllocFlags::CPUSET | AllocFlags::KSWAPD | AllocFlags::MIN_RESERVE);
    assert_eq!(slow(Gfp::DIRECT_RECLAIM), AllocFlags::CPUSET);
    let movable = AllocFlags::slow_path(Gfp::HIGHUSER_MOVABLE, Order::ZERO, MigrateType::Movable, NONE, DefragMode::On);
    assert_eq!(movable, AllocFlags::CPUSET | AllocFlags::KSWAPD | AllocFlags::CMA | AllocFlags::NOFRAGMENT);
}

#[test]
fn callers_that_cannot_sleep_get_what_waiting_would_have_brought() {
    // G-68
    use AllocFlags as A;
    assert_eq!(slow(Gfp::NOWAIT), A::CPUSET | A::KSWAPD | A::NON_BLOCK);
    assert_eq!(slow(Gfp::NOWAIT | Gfp::NOMEMALLOC), A::CPUSET | A::KSWAPD);
    assert_eq!(slow(Gfp::ATOMIC), A::KSWAPD | A::MIN_RESERVE | A::NON_BLOCK);
    let ordered = |gfp, n| A::slow_path(gfp, order(n), MigrateType::Unmovable, NONE, DefragMode::Off);
    for n in 1..=10 {
        assert_eq!(ordered(Gfp::ATOMIC, n), A::KSWAPD | A::MIN_RESERVE | A::NON_BLOCK | A::HIGHATOMIC);
        assert_eq!(ordered(Gfp::NOWAIT, n), A::CPUSET | A::KSWAPD | A::NON_BLOCK);
        // HIGH drops the cpuset whether or not reserves are forbidden.
        assert_eq!(ordered(Gfp::ATOMIC | Gfp::NOMEMALLOC, n), A::KSWAPD | A::MIN_RESERVE);
        assert!(!ordered(Gfp::KERNEL | Gfp::HIGH, n).contains(A::HIGHATOMIC));
    }
}

#[test]
fn realtime_tasks_that_may_sleep_get_the_min_reserve() {
    // G-69
    let realtime = |gfp, task| {
        AllocFlags::slow_path(gfp, Order::ZERO, MigrateType::Unmovable, TaskFlags::REALTIME | task, DefragMode::Off)
            .contains(AllocFlags::MIN_RESERVE)
    };
    assert!(realtime(Gfp::KERNEL, NONE));
    assert!(!realtime(Gfp::NOWAIT, NONE));
    for interrupt in [TaskFlags::IN_SOFTIRQ, TaskFlags::IN_IRQ, TaskFlags::IN_NMI] {
        assert!(!realtime(Gfp::KERNEL, interrupt), "the interrupted task's policy says nothing");
    }
}

#[test]
fn the_reserve_decision_takes_the_first_row_that_matches() {
    // G-70, over every combination of what it depends on
    let states = TaskFlags::MEMALLOC | TaskFlags::OOM_VICTIM | TaskFlags::IN_INTERRUPT;
    for gfp in super::subsets(Gfp::MEMALLOC | Gfp::NOMEMALLOC | Gfp::DIRECT_RECLAIM) {
        for task in super::task_subsets(states) {
            let hard = task.intersects(TaskFlags::IN_IRQ | TaskFlags::IN_NMI); // S-06
            let soft = task.contains(TaskFlags::IN_SOFTIRQ);
            let rows = [
                (gfp.contains(Gfp::NOMEMALLOC), Reserve::None),     // G-19, G-95
                (gfp.contains(Gfp::MEMALLOC), Reserve::Everything), // G-17
                (!hard && soft && task.contains(TaskFlags::MEMALLOC), Reserve::Everything),
                (!hard && !soft && task.contains(TaskFlags::MEMALLOC), Reserve::Everything), // S-05
                (!hard && !soft && task.contains(TaskFlags::OOM_VICTIM), Reserve::OomVictim),
                (true, Reserve::None),
            ];
            let expected = rows.iter().find(|(matches, _)| *matches).unwrap().1;
            assert_eq!(Reserve::decide(gfp, task), expected, "{gfp} {task:?}");
            assert_eq!(expected.is_granted(), expected != Reserve::None);
        }
    }
}

#[test]
fn a_granted_reserve_replaces_the_flags() {
    // G-71
    use AllocFlags as A;
    let before = A::all();
    let kept = A::CMA | A::KSWAPD;
    assert_eq!(before.with_reserve(Reserve::None), before);
    assert_eq!(before.with_reserve(Reserve::Everything), A::NO_WATERMARKS | kept);
    assert_eq!(before.with_reserve(Reserve::OomVictim), A::OOM | kept);
    assert_eq!(slow(Gfp::ATOMIC).with_reserve(Reserve::OomVictim), A::OOM | A::KSWAPD);
}

#[test]
fn pages_from_below_every_mark_are_tagged() {
    // G-72
    assert!(slow(Gfp::KERNEL).with_reserve(Reserve::Everything).tags_pfmemalloc());
    assert!(!slow(Gfp::KERNEL).with_reserve(Reserve::OomVictim).tags_pfmemalloc());
    assert!(!slow(Gfp::ATOMIC).tags_pfmemalloc());
}

#[test]
fn each_request_leaves_its_share_of_a_min_mark_of_1000() {
    let left = |flags: AllocFlags| flags.threshold(1000);
    for gfp in [Gfp::KERNEL, Gfp::NOFS, Gfp::NOIO, Gfp::USER] {
        assert_eq!(left(slow(gfp)), 1000); // G-73
    }
    assert_eq!(left(slow(Gfp::NOWAIT)), 1000); // G-74
    assert_eq!(left(slow(Gfp::KERNEL.difference(Gfp::DIRECT_RECLAIM))), 1000); // G-74
    assert_eq!(left(slow(Gfp::KERNEL | Gfp::HIGH)), 500); // G-75
    let realtime =
        AllocFlags::slow_path(Gfp::KERNEL, Order::ZERO, MigrateType::Unmovable, TaskFlags::REALTIME, DefragMode::Off);
    assert_eq!(left(realtime), 500); // G-75
    for rule in [CpusetRule::Honour, CpusetRule::Ignore] {
        let lap = slow(Gfp::KERNEL | Gfp::NOFAIL).nofail_lap(rule);
        assert_eq!(left(lap), 500); // G-75, G-88
        assert_eq!(lap.contains(AllocFlags::CPUSET), rule == CpusetRule::Honour); // G-88
    }
    for n in 0..=10 {
        let atomic = |gfp| AllocFlags::slow_path(gfp, order(n), MigrateType::Unmovable, NONE, DefragMode::Off);
        assert_eq!(left(atomic(Gfp::ATOMIC)), 375); // G-76
        assert_eq!(left(atomic(Gfp::ATOMIC | Gfp::NOMEMALLOC)), 500); // G-79
    }
    let victim = Reserve::decide(Gfp::KERNEL, TaskFlags::OOM_VICTIM);
    assert_eq!(left(slow(Gfp::KERNEL).with_reserve(victim)), 500); // G-77
    assert_eq!(left(AllocFlags::OOM | AllocFlags::MIN_RESERVE), 250); // G-82
}

#[test]
fn rounding_leaves_the_larger_half() {
    // G-75, G-76
    let left = |flags: AllocFlags| (0..8).map(|mark| flags.threshold(mark)).collect::<std::vec::Vec<_>>();
    assert_eq!(left(AllocFlags::MIN_RESERVE), [0, 1, 1, 2, 2, 3, 3, 4]);
    assert_eq!(left(AllocFlags::MIN_RESERVE | AllocFlags::NON_BLOCK), [0, 1, 1, 2, 2, 3, 3, 3]);
}

fn levels(free: u64) -> ZoneLevels {
    ZoneLevels { free, mark: 1000, ..ZoneLevels::default() }
}

#[test]
fn a_task_in_reclaim_is_not_checked() {
    // G-78
    for (gfp, task) in [(Gfp::KERNEL | Gfp::MEMALLOC, NONE), (Gfp::KERNEL, TaskFlags::MEMALLOC)] {
        let flags = slow(gfp).with_reserve(Reserve::decide(gfp, task));
        assert!(levels(0).passes(order(10), flags));
    }
    assert!(!levels(0).passes(Order::ZERO, slow(Gfp::ATOMIC)));
}

#[test]
fn highatomic_pages_count_for_whoever_cannot_wait() {
    // G-80
    let zone = ZoneLevels { free_highatomic: 200, ..levels(1100) };
    assert!(!zone.passes(Order::ZERO, slow(Gfp::KERNEL)));
    assert!(zone.passes(Order::ZERO, slow(Gfp::NOWAIT)), "the same threshold, yet it passes");
    assert_eq!(slow(Gfp::KERNEL).threshold(1000), slow(Gfp::NOWAIT).threshold(1000));
    for flag in AllocFlags::all().iter() {
        assert_eq!(flag.counts_highatomic(), AllocFlags::RESERVES.contains(flag), "{flag:?}");
    }
}

#[test]
fn contiguous_areas_count_for_movable_requests_only() {
    let zone = ZoneLevels { free_cma: 200, ..levels(1100) };
    assert_eq!(zone.usable(Order::ZERO, AllocFlags::empty()), 900);
    assert_eq!(zone.usable(Order::ZERO, AllocFlags::CMA), 1100);
    assert_eq!(zone.usable(order(3), AllocFlags::CMA), 1093);
}

#[test]
fn priority_at_the_min_mark_ignores_a_boost() {
    // G-81
    let zone = ZoneLevels { boost: 4000, ..levels(600) };
    let high = slow(Gfp::KERNEL | Gfp::HIGH);
    assert!(zone.passes(Order::ZERO, high));
    assert!(!zone.passes(order(1), high), "order 0 only");
    assert!(!zone.passes(Order::ZERO, high.with_watermark(Watermark::Low)), "the min mark only");
    assert!(!zone.passes(Order::ZERO, slow(Gfp::KERNEL)), "with priority only");
    assert!(!ZoneLevels { free: 500, ..zone }.passes(Order::ZERO, high), "the unboosted mark still holds");
}

#[test]
fn the_any_context_request_checks_the_min_mark_and_tries_locks() {
    // G-104
    assert_eq!(AllocFlags::NOLOCK.watermark(), Watermark::Min);
    assert!(AllocFlags::NOLOCK.contains(AllocFlags::TRYLOCK));
    assert!(!AllocFlags::NOLOCK.intersects(AllocFlags::KSWAPD | AllocFlags::RESERVES | AllocFlags::NO_WATERMARKS));
    assert_eq!(AllocFlags::NOLOCK.threshold(1000), 1000);
}

proptest! {
    // I-06: whatever passes for KERNEL passes for HIGH, then for ATOMIC, then without watermarks.
    #[test]
    fn more_priority_never_fails_where_less_passes(
        free in 0_u64..3000, free_highatomic in 0_u64..500, free_cma in 0_u64..500, mark in 0_u64..2000,
        boost in 0_u64..500, lowmem_reserve in 0_u64..500, n in 0_u32..=10,
    ) {
        let zone = ZoneLevels { free, free_highatomic, free_cma, mark, boost, lowmem_reserve };
        let passes = |gfp: Gfp| {
            let flags = AllocFlags::slow_path(gfp, order(n), MigrateType::Unmovable, NONE, DefragMode::Off);
            zone.passes(order(n), flags.with_reserve(Reserve::decide(gfp, NONE)))
        };
        let ladder = [passes(Gfp::KERNEL), passes(Gfp::KERNEL | Gfp::HIGH), passes(Gfp::ATOMIC), passes(Gfp::MEMALLOC)];
        prop_assert!(ladder.is_sorted(), "{ladder:?}");
        prop_assert!(passes(Gfp::NOWAIT) >= passes(Gfp::KERNEL));
    }

    #[test]
    fn extreme_figures_do_not_overflow(free: u64, free_highatomic: u64, free_cma: u64, mark: u64, boost: u64,
        lowmem_reserve: u64, bits in 0_u32..0x1000)
    {
        let zone = ZoneLevels { free, free_highatomic, free_cma, mark, boost, lowmem_reserve };
        let _ = zone.passes(Order::MAX, AllocFlags::from_bits_retain(bits));
    }
}
