//! Verdicts, retry behaviour, any-context requests.

use std::string::ToString;

use crate::{
    AllocError, CompactPriority, FreeError, Gfp, MigrateType, NodeId, Order, PageAllocator, Pfn, TaskFlags, ZoneKind,
    verdict::{
        Advice, GfpError, Interface, OomEligibility, Retry, Verdict, check_sleep, judge, may_reclaim,
        nolock::{self, Conditions, Refusal},
    },
};

const NONE: TaskFlags = TaskFlags::empty();

fn advice(gfp: Gfp, task: TaskFlags) -> Advice {
    judge(gfp, Interface::Pages, task).unwrap().advice
}

#[test]
fn ordinary_requests_are_legal_without_remark() {
    for gfp in [Gfp::KERNEL, Gfp::USER, Gfp::HIGHUSER_MOVABLE, Gfp::TRANSHUGE, Gfp::KERNEL | Gfp::NOFAIL] {
        assert_eq!(judge(gfp, Interface::Pages, NONE), Ok(Verdict { gfp, advice: Advice::empty() }));
    }
}

#[test]
fn two_zones_are_a_bug() {
    // G-53, G-92
    for gfp in super::subsets(Gfp::DMA | Gfp::DMA32 | Gfp::HIGHMEM | Gfp::MOVABLE) {
        let nr_zones = [Gfp::DMA, Gfp::DMA32, Gfp::HIGHMEM].iter().filter(|&&zone| gfp.contains(zone)).count();
        let verdict = judge(gfp, Interface::Pages, NONE);
        assert_eq!(verdict.is_err(), nr_zones > 1, "{gfp}");
        if nr_zones > 1 {
            assert_eq!(verdict, Err(GfpError::ZoneConflict { gfp }));
        }
    }
}

#[test]
fn movable_and_reclaimable_is_a_bug() {
    // G-56, G-93
    let gfp = Gfp::KERNEL | Gfp::MOVABLE | Gfp::RECLAIMABLE;
    assert_eq!(judge(gfp, Interface::Pages, NONE), Err(GfpError::MobilityConflict { gfp }));
}

#[test]
fn nofail_without_direct_reclaim_is_warned_of_and_can_fail() {
    // G-89, G-94
    let gfp = Gfp::NOWAIT | Gfp::NOFAIL;
    assert_eq!(advice(gfp, NONE), Advice::NOFAIL_CANNOT_WAIT);
    assert!(Advice::WARNINGS.contains(advice(gfp, NONE)));
    assert_eq!(Retry::of(gfp, Order::ZERO, true), Retry::Never);
}

#[test]
fn nofail_inside_reclaim_is_warned_of() {
    // G-89
    assert_eq!(advice(Gfp::KERNEL | Gfp::NOFAIL, TaskFlags::MEMALLOC), Advice::NOFAIL_IN_RECLAIM);
}

#[test]
fn nofail_of_a_higher_order_loops_without_a_warning() {
    // G-90
    for n in 2..=10 {
        let gfp = Gfp::KERNEL | Gfp::NOFAIL;
        assert_eq!(Retry::of(gfp, Order::new(n).unwrap(), true), Retry::Forever);
    }
    assert_eq!(advice(Gfp::KERNEL | Gfp::NOFAIL, NONE), Advice::empty(), "the order is no matter for a verdict");
}

#[test]
fn nomemalloc_wins_over_memalloc() {
    // G-95
    let gfp = Gfp::KERNEL | Gfp::MEMALLOC | Gfp::NOMEMALLOC;
    assert_eq!(advice(gfp, NONE), Advice::MEMALLOC_OVERRIDDEN);
    assert!(!crate::alloc_flags::Reserve::decide(gfp, NONE).is_granted());
}

#[test]
fn nofail_on_one_node_is_legal_and_kills_nothing() {
    // G-21, G-96
    let gfp = Gfp::KERNEL | Gfp::NOFAIL | Gfp::THISNODE;
    assert_eq!(advice(gfp, NONE), Advice::NOFAIL_ON_ONE_NODE);
    assert_eq!(Retry::of(gfp, Order::ZERO, true), Retry::Forever);
    assert_eq!(OomEligibility::of(gfp, Order::ZERO, ZoneKind::Normal, true), OomEligibility::NoKill);
}

#[test]
fn sleeping_flags_in_atomic_context_are_a_bug_found_at_entry() {
    // G-97, G-101, and G-102: the check looks at no memory, so it is the same when memory abounds
    let states = TaskFlags::ATOMIC | TaskFlags::IN_INTERRUPT | TaskFlags::MEMALLOC | TaskFlags::REALTIME;
    for task in super::task_subsets(states) {
        for gfp in super::subsets(Gfp::KERNEL | Gfp::HIGH) {
            let atomic = task.intersects(TaskFlags::ATOMIC | TaskFlags::IN_INTERRUPT);
            let bug = gfp.contains(Gfp::DIRECT_RECLAIM) && atomic && !task.contains(TaskFlags::MEMALLOC);
            let expected = if bug { Err(GfpError::SleepInAtomic { gfp, task }) } else { Ok(()) };
            assert_eq!(check_sleep(gfp, task), expected);
            assert_eq!(judge(gfp, Interface::Pages, task).map(|_| ()), expected);
        }
    }
}

#[test]
fn a_task_that_reclaims_does_not_reclaim_again() {
    // S-05
    assert!(may_reclaim(Gfp::KERNEL, NONE));
    assert!(!may_reclaim(Gfp::KERNEL, TaskFlags::MEMALLOC));
    assert!(!may_reclaim(Gfp::NOWAIT, NONE));
    assert_eq!(check_sleep(Gfp::KERNEL, TaskFlags::MEMALLOC | TaskFlags::ATOMIC), Ok(()));
}

#[test]
fn exact_page_counts_are_neither_compound_nor_high() {
    // G-62, G-98
    let verdict = judge(Gfp::HIGHUSER | Gfp::COMP, Interface::Exact, NONE);
    assert_eq!(verdict, Ok(Verdict { gfp: Gfp::USER, advice: Advice::DROPPED }));
    assert_eq!(judge(Gfp::USER, Interface::Exact, NONE), Ok(Verdict { gfp: Gfp::USER, advice: Advice::empty() }));
}

#[test]
fn a_compound_range_must_be_a_power_of_two() {
    // G-98
    let gfp = Gfp::KERNEL | Gfp::COMP;
    let range = |nr_pages| judge(gfp, Interface::ContigRange { nr_pages }, NONE);
    assert_eq!(range(512), Ok(Verdict { gfp, advice: Advice::empty() }));
    for nr_pages in [0, 3, 513] {
        assert_eq!(range(nr_pages), Err(GfpError::CompoundRange { gfp, nr_pages }));
    }
}

#[test]
fn a_contiguous_range_ignores_placement_and_refuses_what_it_does_not_know() {
    // B-108
    let interface = Interface::ContigRange { nr_pages: 3 };
    let honoured = Gfp::KERNEL | Gfp::RETRY_MAYFAIL | Gfp::NOWARN | Gfp::ZERO | Gfp::ZEROTAGS;
    let ignored = Gfp::DMA | Gfp::DMA32 | Gfp::MOVABLE | Gfp::WRITE | Gfp::HARDWALL | Gfp::THISNODE;
    assert_eq!(judge(honoured | ignored, interface, NONE).unwrap().gfp, honoured);
    for refused in [Gfp::NOFAIL, Gfp::NORETRY, Gfp::ACCOUNT, Gfp::HIGH, Gfp::MEMALLOC, Gfp::NOMEMALLOC] {
        let gfp = Gfp::KERNEL | refused;
        assert_eq!(judge(gfp, interface, NONE), Err(GfpError::Refused { gfp, refused, interface }));
    }
}

#[test]
fn an_address_is_never_in_high_memory() {
    // G-61, G-100
    let verdict = judge(Gfp::HIGHUSER, Interface::Address, NONE).unwrap();
    assert_eq!(verdict, Verdict { gfp: Gfp::USER, advice: Advice::DROPPED_HIGHMEM });
    assert!(!Advice::WARNINGS.intersects(verdict.advice), "silently");
}

#[test]
fn slab_strips_what_it_cannot_honour_and_goes_on() {
    // G-43
    let unknown = Gfp::from_bits_retain(1 << 30);
    let verdict = judge(Gfp::KERNEL | Gfp::DMA | Gfp::DMA32 | Gfp::HIGHMEM | unknown, Interface::Slab, NONE);
    assert_eq!(verdict, Ok(Verdict { gfp: Gfp::KERNEL | Gfp::DMA, advice: Advice::DROPPED }));
}

#[test]
fn an_any_context_request_names_at_most_the_account() {
    // G-99, G-103
    let implied = Gfp::NOWARN | Gfp::ZERO | Gfp::NOMEMALLOC | Gfp::COMP;
    assert_eq!(nolock::request(Gfp::empty()), Ok(implied));
    assert_eq!(nolock::request(Gfp::ACCOUNT), Ok(implied | Gfp::ACCOUNT));
    assert!(!implied.allows_spinning(), "no reclaim bits: G-63");
    for refused in Gfp::all().difference(Gfp::ACCOUNT).iter() {
        let gfp = Gfp::ACCOUNT | refused;
        let error = GfpError::Refused { gfp, refused, interface: Interface::NoLock };
        assert_eq!(judge(gfp, Interface::NoLock, TaskFlags::IN_NMI), Err(error));
    }
    assert!(judge(Gfp::ACCOUNT, Interface::NoLock, TaskFlags::all()).is_ok(), "in any context");
}

/// A page source that offers no any-context form of its own.
struct Empty;

// SAFETY: hands out nothing.
unsafe impl PageAllocator for Empty {
    fn alloc_pages(&self, _gfp: Gfp, _order: Order, _node: Option<NodeId>) -> Result<Pfn, AllocError> {
        Err(AllocError::NotReady)
    }
    unsafe fn free_pages(&self, pfn: Pfn, _order: Order) -> Result<(), FreeError> {
        Err(FreeError::Foreign(pfn))
    }
}

#[test]
fn an_any_context_failure_does_not_say_why() {
    // G-106: one error for shortage and contention
    let error = Empty.alloc_pages_nolock(Gfp::ACCOUNT, Order::ZERO, None);
    assert_eq!(error, Err(AllocError::NoMemory { order: Order::ZERO, gfp: Gfp::ACCOUNT }));
}

#[test]
fn some_machines_refuse_any_context_requests_outright() {
    // G-105, over every combination of conditions and interrupts
    for bits in 0..16_u32 {
        let has = |bit: u32| bits & (1 << bit) != 0;
        let conditions =
            Conditions { realtime_kernel: has(0), empty_locks: has(1), order_is_cached: has(2), initialised: has(3) };
        for task in super::task_subsets(TaskFlags::IN_INTERRUPT | TaskFlags::ATOMIC) {
            let nmi = task.contains(TaskFlags::IN_NMI);
            let expected = [
                (has(0) && (nmi || task.contains(TaskFlags::IN_IRQ)), Refusal::RealTimeInterrupt),
                (has(1) && nmi, Refusal::SingleCpuNmi),
                (!has(2), Refusal::OrderNotCached),
                (!has(3), Refusal::StillInitialising),
            ];
            let expected = expected.iter().find(|(refused, _)| *refused).map(|(_, refusal)| *refusal);
            assert_eq!(conditions.refusal(task), expected);
        }
    }
}

#[test]
fn the_modifiers_exclude_one_another_and_need_direct_reclaim() {
    // G-83
    for gfp in super::subsets(Gfp::RETRY_MODIFIERS | Gfp::DIRECT_RECLAIM) {
        let nr = gfp.intersection(Gfp::RETRY_MODIFIERS).bits().count_ones();
        assert_eq!(advice(gfp, NONE).contains(Advice::RETRY_CONFLICT), nr > 1, "{gfp}");
        if !gfp.allows_blocking() {
            assert_eq!(Retry::of(gfp, Order::ZERO, true), Retry::Never);
            assert_eq!(advice(gfp, NONE).is_empty(), nr == 0, "{gfp}");
        }
    }
}

#[test]
fn each_kind_of_request_retries_in_its_way() {
    let orders = |gfp, can_compact| {
        let kinds: std::vec::Vec<_> = Order::all().map(|order| Retry::of(gfp, order, can_compact)).collect();
        let (small, costly) = kinds.split_at(4);
        assert!(small.iter().all(|kind| *kind == small[0]) && costly.iter().all(|kind| *kind == costly[0]));
        (small[0], costly[0])
    };
    for can_compact in [false, true] {
        assert_eq!(orders(Gfp::KERNEL, can_compact), (Retry::UntilOom, Retry::FullRound)); // G-84, G-85
        assert_eq!(orders(Gfp::KERNEL | Gfp::NORETRY, can_compact), (Retry::LightRound, Retry::LightRound)); // G-86, G-16
        assert_eq!(orders(Gfp::KERNEL | Gfp::NOFAIL, can_compact), (Retry::Forever, Retry::Forever)); // G-88, G-15
        assert_eq!(orders(Gfp::ATOMIC, can_compact), (Retry::Never, Retry::Never));
    }
    let hard = Gfp::RETRY_MAYFAIL; // G-14, G-87
    assert_eq!(orders(Gfp::KERNEL | hard, true), (Retry::WhileProgress, Retry::WhileProgress));
    assert_eq!(orders(Gfp::KERNEL | hard, false), (Retry::WhileProgress, Retry::FullRound));
    assert_eq!(orders(Gfp::NOIO | hard, true), (Retry::WhileProgress, Retry::FullRound), "NOIO never compacts");
    assert!(Retry::UntilOom.practically_succeeds() && Retry::Forever.practically_succeeds());
    assert!(!Retry::WhileProgress.practically_succeeds() && !Retry::FullRound.practically_succeeds());
}

#[test]
fn only_default_requests_that_killing_can_help_kill() {
    // G-08, G-84..G-87
    use OomEligibility::{Kill, NeverReached, NoKill, PretendProgress};
    let oom = |gfp, order, ceiling| OomEligibility::of(gfp, order, ceiling, true);
    let normal = |gfp| oom(gfp, Order::COSTLY, ZoneKind::Normal);
    assert_eq!(normal(Gfp::KERNEL), Kill);
    assert_eq!(normal(Gfp::KERNEL | Gfp::NOFAIL), Kill);
    assert_eq!(normal(Gfp::NOFS), PretendProgress);
    assert_eq!(normal(Gfp::NOWAIT), NeverReached);
    assert_eq!(normal(Gfp::KERNEL | Gfp::NORETRY), NeverReached);
    assert_eq!(normal(Gfp::KERNEL | Gfp::RETRY_MAYFAIL), NoKill);
    assert_eq!(normal(Gfp::KERNEL | Gfp::THISNODE), NoKill);
    assert_eq!(oom(Gfp::KERNEL, Order::PAGEBLOCK, ZoneKind::Normal), NeverReached);
    assert_eq!(oom(Gfp::KERNEL | Gfp::RETRY_MAYFAIL, Order::PAGEBLOCK, ZoneKind::Normal), NoKill);
    assert_eq!(oom(Gfp::KERNEL, Order::ZERO, ZoneKind::Dma), NoKill);
    assert_eq!(oom(Gfp::KERNEL, Order::ZERO, ZoneKind::Dma32), NoKill);
    assert_eq!(oom(Gfp::KERNEL, Order::ZERO, ZoneKind::Movable), Kill);
}

#[test]
fn compaction_alone_comes_first_for_costly_and_unmovable_blocks() {
    // G-64, G-86
    for order in Order::all() {
        for migrate_type in MigrateType::PCP {
            let first = |gfp: Gfp, can_compact| gfp.compacts_first(order, migrate_type, can_compact);
            let suits = order.get() > 3 || (order.get() > 0 && migrate_type != MigrateType::Movable);
            assert_eq!(first(Gfp::KERNEL, true), suits);
            assert!(!first(Gfp::KERNEL, false) && !first(Gfp::NOIO, true) && !first(Gfp::NOWAIT | Gfp::IO, true));
            let priority = Gfp::KERNEL.initial_priority(order, migrate_type, true);
            assert_eq!(priority, if suits { CompactPriority::Async } else { CompactPriority::SyncLight });
        }
    }
}

#[test]
fn errors_name_what_was_asked() {
    let error = judge(Gfp::KERNEL, Interface::Pages, TaskFlags::IN_IRQ).unwrap_err();
    assert_eq!(error.to_string(), "GFP_KERNEL may sleep, but the context must not: TaskFlags(IN_IRQ)");
    assert_eq!(AllocError::from(error), AllocError::BadFlags(Gfp::KERNEL));
    let error = judge(Gfp::KERNEL | Gfp::NOFAIL, Interface::ContigRange { nr_pages: 4 }, NONE).unwrap_err();
    assert!(error.to_string().contains("does not take __GFP_NOFAIL"), "{error}");
    assert_eq!(error.gfp(), Gfp::KERNEL | Gfp::NOFAIL);
}
