//! The slow path: every branch, with a reclaimer that follows a script.

use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::vec::Vec;

use kmem_gfp::{
    AllocError, CompactOutcome, CompactPriority, Gfp, NodeId, OomOutcome, Order, Pfn, TaskFlags, Watermark, ZoneKind,
};

use super::rig::{Call, Env, Rig, cached, o, range};
use crate::{Buddy, BuddyOptions, Event, MemoryMap, Region};

const ANY: Gfp = Gfp::MEMALLOC.union(Gfp::NOWARN);
const KERNEL: Gfp = Gfp::KERNEL.union(Gfp::NOWARN);

/// A machine of 8 MiB x `pageblocks` / 4 with nothing free, and what was taken.
fn exhausted(pageblocks: u64) -> (Rig, Vec<Pfn>) {
    with_options(pageblocks, cached())
}

fn with_options(pageblocks: u64, options: BuddyOptions) -> (Rig, Vec<Pfn>) {
    let regions = [Region::new(range(0, pageblocks * 512))];
    let rig = Rig::build(Env::new(1), options, &MemoryMap { regions: &regions, ..MemoryMap::default() });
    rig.set_page_sets_enabled(NodeId(0), ZoneKind::Normal, false);
    let mut taken: Vec<Pfn> = core::iter::from_fn(|| rig.get(ANY, 0)).collect();
    taken.sort();
    rig.env().script.calls.lock().unwrap().clear();
    (rig, taken)
}

/// A handle that closures of the script can keep.
fn handle(rig: &Rig) -> &'static Buddy<Env> {
    // SAFETY: each test keeps its rig until its last call.
    unsafe { &*core::ptr::from_ref::<Buddy<Env>>(rig) }
}

fn free(buddy: &Buddy<Env>, pages: &[Pfn]) {
    for &pfn in pages {
        // SAFETY: frames of tests have no memory.
        unsafe { buddy.free_pages(pfn, Order::ZERO) }.unwrap();
    }
}

/// Lets each reclaim free the next `each` pages of `pages`.
fn reclaim_frees(rig: &Rig, pages: &[Pfn], each: usize) {
    let (buddy, pages, mut next) = (handle(rig), pages.to_vec(), 0);
    *rig.env().script.on_reclaim.lock().unwrap() = Some(Box::new(move |_| {
        let part = &pages[next.min(pages.len())..(next + each).min(pages.len())];
        next += each;
        free(buddy, part);
        part.len()
    }));
}

fn reclaims(rig: &Rig) -> usize {
    rig.env().script.count(|call| matches!(call, Call::Reclaim(_)))
}

fn compactions(rig: &Rig) -> Vec<CompactPriority> {
    let calls = rig.env().script.calls.lock().unwrap();
    calls.iter().filter_map(|call| if let Call::Compact(_, priority) = call { Some(*priority) } else { None }).collect()
}

fn wakes(rig: &Rig) -> usize {
    rig.env().script.count(|call| matches!(call, Call::Wake(..)))
}

fn ooms(rig: &Rig) -> usize {
    rig.env().script.count(|call| *call == Call::Oom)
}

fn fails(rig: &Rig, gfp: Gfp, order: u32) {
    let got = rig.alloc_pages(gfp, o(order), None);
    assert_eq!(got, Err(AllocError::NoMemory { order: o(order), gfp }));
}

#[test]
fn a_request_that_may_not_sleep_only_wakes_background_reclaim() {
    let (rig, _) = exhausted(16);
    // B-90 (4): no DIRECT_RECLAIM; B-90 (1), B-100: the order is told.
    fails(&rig, Gfp::NOWAIT, 2);
    assert_eq!(reclaims(&rig), 0);
    assert!(wakes(&rig) >= 1);
    assert!(rig.env().script.count(|call| *call == Call::Wake(0, o(2))) >= 1);
    rig.env().script.calls.lock().unwrap().clear();
    fails(&rig, KERNEL - Gfp::RECLAIM, 0);
    assert_eq!(rig.env().script.count(|_| true), 0, "nobody is woken");
}

#[test]
fn direct_reclaim_serves_and_marks_its_task() {
    let (rig, taken) = exhausted(16);
    reclaim_frees(&rig, &taken, 600);
    // B-93; the task was marked (R-07's rule for whoever reclaims) and is no more.
    assert!(rig.get(KERNEL, 0).is_some());
    assert_eq!(reclaims(&rig), 1);
    let inside = rig.env().script.flags_inside.load(Ordering::Relaxed);
    assert!(TaskFlags::from_bits_retain(inside).contains(TaskFlags::MEMALLOC));
    assert_eq!(rig.env().context.flags.load(Ordering::Relaxed), 0);
    assert_eq!(rig.event(Event::AllocStallNormal), 1);
}

#[test]
fn what_reclaim_frees_is_drained_out_of_the_sets() {
    let regions = [Region::new(range(0, 64 * 512))];
    let rig = Rig::build(Env::new(2), cached(), &MemoryMap { regions: &regions, ..MemoryMap::default() });
    let taken: Vec<Pfn> = core::iter::from_fn(|| rig.get(ANY, 0)).collect();
    rig.set_min_free_kbytes(0).unwrap();
    let (buddy, page) = (handle(&rig), taken[5]);
    *rig.env().script.on_reclaim.lock().unwrap() = Some(Box::new(move |_| {
        // Another CPU's set.
        super::rig::run_on(Some(1));
        for pfn in page.0..page.0 + 1 {
            free(buddy, &[Pfn(pfn)]);
        }
        super::rig::run_on(Some(0));
        1
    }));
    rig.set_watermark_scale_factor(1).unwrap();
    // B-93: drained, and looked at once more; the marks are so low that one page... is still not enough.
    let _ = rig.get(KERNEL | Gfp::NORETRY, 0);
    assert!(rig.event(Event::DrainAllPages) >= 1);
}

#[test]
fn noretry_makes_one_light_round() {
    let (rig, _) = exhausted(16);
    // B-91 (10), G-86
    fails(&rig, KERNEL | Gfp::NORETRY, 0);
    assert_eq!((reclaims(&rig), ooms(&rig)), (1, 0));
    rig.env().script.calls.lock().unwrap().clear();
    rig.env().script.can_compact.store(true, Ordering::Relaxed);
    // B-88, B-91 (9): for a high unmovable order compaction comes first, and the priority stays the lightest.
    fails(&rig, KERNEL | Gfp::NORETRY, 2);
    assert_eq!(compactions(&rig), [CompactPriority::Async, CompactPriority::Async]);
    assert_eq!(reclaims(&rig), 1);
    let first = rig.env().script.calls.lock().unwrap().iter().position(|call| matches!(call, Call::Compact(..)));
    let reclaim = rig.env().script.calls.lock().unwrap().iter().position(|call| matches!(call, Call::Reclaim(_)));
    assert!(first < reclaim);
    rig.env().script.calls.lock().unwrap().clear();
    fails(&rig, KERNEL | Gfp::NORETRY | Gfp::THISNODE, 2);
    assert_eq!((compactions(&rig).len(), reclaims(&rig)), (1, 0));
}

#[test]
fn a_default_request_reclaims_sixteen_times_in_vain_and_then_asks_for_a_victim() {
    let (rig, _) = exhausted(16);
    rig.env().script.reclaimable.store(1 << 20, Ordering::Relaxed);
    fails(&rig, KERNEL, 0);
    // B-98: retries while something is reclaimable, until the counter exceeds 16; B-92 (17), (19)
    assert_eq!((reclaims(&rig), ooms(&rig)), (17, 1));
    assert_eq!(rig.env().context.yields.load(Ordering::Relaxed), 16);
    rig.env().script.calls.lock().unwrap().clear();
    rig.env().script.reclaimable.store(0, Ordering::Relaxed);
    fails(&rig, KERNEL, 0);
    assert_eq!((reclaims(&rig), ooms(&rig)), (1, 1), "nothing is reclaimable: no retry");
}

#[test]
fn progress_starts_the_count_anew() {
    let (rig, taken) = exhausted(16);
    let marks = taken.len();
    assert!(marks > 0);
    let rounds = Arc::new(AtomicUsize::new(0));
    let seen = rounds.clone();
    let (buddy, pages) = (handle(&rig), taken.clone());
    *rig.env().script.on_reclaim.lock().unwrap() = Some(Box::new(move |_| {
        let n = seen.fetch_add(1, Ordering::Relaxed);
        if n == 40 {
            free(buddy, &pages[..2000]);
        }
        1
    }));
    rig.env().script.reclaimable.store(1 << 20, Ordering::Relaxed);
    // B-98: each round frees something, so far more than 16 are made; B-97: the counters are this request's.
    assert!(rig.get(KERNEL, 0).is_some());
    assert_eq!(rounds.load(Ordering::Relaxed), 41);
    assert_eq!(ooms(&rig), 0);
}

#[test]
fn a_victim_makes_room_and_the_request_goes_on() {
    let (rig, taken) = exhausted(16);
    let buddy = handle(&rig);
    let killed = Arc::new(AtomicU32::new(0));
    let count = killed.clone();
    *rig.env().script.on_oom.lock().unwrap() = Some(Box::new(move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == 2 {
            free(buddy, &taken[..1000]);
        }
        OomOutcome::Progress
    }));
    // B-92 (19)
    assert!(rig.get(KERNEL, 0).is_some());
    assert_eq!(killed.load(Ordering::Relaxed), 3);
}

#[test]
fn costly_orders_fail_after_one_full_round() {
    let (rig, _) = exhausted(16);
    rig.env().script.reclaimable.store(1 << 20, Ordering::Relaxed);
    // B-91 (11), G-85: and RETRY_MAYFAIL does not help where compaction is impossible.
    for gfp in [KERNEL, KERNEL | Gfp::RETRY_MAYFAIL] {
        rig.env().script.calls.lock().unwrap().clear();
        fails(&rig, gfp, 4);
        assert_eq!((reclaims(&rig), ooms(&rig)), (1, 0));
    }
    rig.env().script.can_compact.store(true, Ordering::Relaxed);
    rig.env().script.calls.lock().unwrap().clear();
    fails(&rig, KERNEL, 4);
    assert_eq!(compactions(&rig), [CompactPriority::Async, CompactPriority::SyncLight]);
    assert_eq!((reclaims(&rig), ooms(&rig)), (1, 0));
    // A NOIO request never compacts, so it does not compact first.
    rig.env().script.calls.lock().unwrap().clear();
    fails(&rig, Gfp::NOIO | Gfp::NOWARN, 4);
    assert_eq!((compactions(&rig).len(), reclaims(&rig)), (0, 1));
}

#[test]
fn retry_mayfail_goes_on_with_costly_orders_but_never_kills() {
    let (rig, _) = exhausted(16);
    let script = &rig.env().script;
    script.can_compact.store(true, Ordering::Relaxed);
    *script.on_reclaim.lock().unwrap() = Some(Box::new(|_| 1));
    *script.on_compact.lock().unwrap() = Some(Box::new(|_| CompactOutcome::Success));
    // B-99: a costly order gets a quarter of 16 successes at one priority, and SYNC_LIGHT is the last one.
    fails(&rig, KERNEL | Gfp::RETRY_MAYFAIL, 4);
    let tried = compactions(&rig);
    assert_eq!(tried[0], CompactPriority::Async);
    assert!(tried[1..].iter().all(|&priority| priority == CompactPriority::SyncLight));
    assert_eq!(tried.len(), 1 + 5);
    assert_eq!(ooms(&rig), 0);
    assert_eq!(rig.event(Event::CompactStall), rig.event(Event::CompactFail));
}

#[test]
fn compaction_gets_more_thorough_step_by_step() {
    let (rig, _) = exhausted(16);
    let script = &rig.env().script;
    script.can_compact.store(true, Ordering::Relaxed);
    *script.on_reclaim.lock().unwrap() = Some(Box::new(|_| 1));
    *script.on_compact.lock().unwrap() = Some(Box::new(|_| CompactOutcome::Complete));
    // B-99, order 2: ASYNC first, then SYNC_LIGHT, then SYNC_FULL, then no more.
    fails(&rig, KERNEL, 2);
    let mut tried = compactions(&rig);
    tried.dedup();
    assert_eq!(tried, [CompactPriority::Async, CompactPriority::SyncLight, CompactPriority::SyncFull]);
    assert_eq!(ooms(&rig), 1);
    // A fatal signal ends it.
    rig.env().context.flags.store(TaskFlags::FATAL_SIGNAL.bits(), Ordering::Relaxed);
    rig.env().script.calls.lock().unwrap().clear();
    fails(&rig, KERNEL, 2);
    assert!(!compactions(&rig).contains(&CompactPriority::SyncFull));
}

#[test]
fn skipped_compaction_is_tried_again_only_if_reclaim_could_let_it_run() {
    let (rig, _) = exhausted(16);
    let script = &rig.env().script;
    script.can_compact.store(true, Ordering::Relaxed);
    let rounds = Arc::new(AtomicUsize::new(0));
    let count = rounds.clone();
    *script.on_reclaim.lock().unwrap() = Some(Box::new(move |script: &super::rig::Script| {
        if count.fetch_add(1, Ordering::Relaxed) == 5 {
            script.reclaimable.store(0, Ordering::Relaxed);
        }
        1
    }));
    *script.on_compact.lock().unwrap() = Some(Box::new(|_| CompactOutcome::Skipped));
    script.reclaimable.store(1000, Ordering::Relaxed);
    // B-99 (skipped): as long as free and reclaimable pages would do; a skipped compaction is no stall (B-94).
    fails(&rig, KERNEL, 1);
    assert!(rounds.load(Ordering::Relaxed) >= 6);
    assert_eq!(rig.event(Event::CompactStall), 0);
    // B-94: order 0 never compacts.
    script.calls.lock().unwrap().clear();
    fails(&rig, KERNEL, 0);
    assert_eq!(compactions(&rig), []);
}

#[test]
fn a_successful_compaction_serves_the_request() {
    let (rig, taken) = exhausted(16);
    let buddy = handle(&rig);
    rig.env().script.can_compact.store(true, Ordering::Relaxed);
    *rig.env().script.on_compact.lock().unwrap() = Some(Box::new(move |_| {
        free(buddy, &taken[..1024]);
        CompactOutcome::Success
    }));
    assert!(rig.get(KERNEL, 4).is_some());
    assert_eq!((rig.event(Event::CompactSuccess), reclaims(&rig)), (1, 0));
}

#[test]
fn nofail_waits_until_there_is_memory() {
    let (rig, taken) = exhausted(16);
    let buddy = handle(&rig);
    let rounds = Arc::new(AtomicUsize::new(0));
    let count = rounds.clone();
    *rig.env().script.on_reclaim.lock().unwrap() = Some(Box::new(move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == 100 {
            free(buddy, &taken[..1000]);
            return 1000;
        }
        0
    }));
    // B-95, G-88: no victim, no progress, and still it goes on, yielding.
    assert!(rig.get(KERNEL | Gfp::NOFAIL, 0).is_some());
    assert_eq!(rounds.load(Ordering::Relaxed), 101);
}

#[test]
fn nofail_may_use_half_of_the_reserve_and_in_the_end_all_of_it() {
    let (rig, taken) = exhausted(16);
    let zone = rig.zone(NodeId(0), ZoneKind::Normal).unwrap();
    let min = zone.watermark(Watermark::Min) as usize;
    free(&rig, &taken[..min - 10]);
    fails(&rig, KERNEL | Gfp::NORETRY, 0);
    assert!(rig.get(KERNEL | Gfp::NOFAIL, 0).is_some());
    // Below half of min only the OOM step helps: it looks without marks.
    while zone.free_pages() > 5 {
        rig.get(ANY, 0).unwrap();
    }
    *rig.env().script.on_oom.lock().unwrap() = Some(Box::new(|_| OomOutcome::Progress));
    assert!(rig.get(KERNEL | Gfp::NOFAIL, 0).is_some());
}

#[test]
fn nofail_without_waiting_fails_and_says_so_once() {
    let (rig, _) = exhausted(16);
    // B-87, G-89
    for _ in 0..2 {
        fails(&rig, Gfp::NOWAIT | Gfp::NOFAIL, 0);
    }
    let reports = rig.env().context.reports.lock().unwrap();
    assert_eq!(reports.iter().filter(|line| line.contains("cannot wait")).count(), 1);
}

#[test]
fn a_task_in_reclaim_takes_everything_and_never_recurses() {
    let (rig, taken) = exhausted(16);
    free(&rig, &taken[..3]);
    rig.env().context.flags.store(TaskFlags::MEMALLOC.bits(), Ordering::Relaxed);
    // B-90 (3), (5)
    for _ in 0..3 {
        assert!(rig.get(KERNEL, 0).is_some());
    }
    fails(&rig, KERNEL, 0);
    assert_eq!((reclaims(&rig), ooms(&rig)), (0, 0));
    free(&rig, &taken[..3]);
    fails(&rig, KERNEL | Gfp::NOMEMALLOC, 0);
    assert_eq!(reclaims(&rig), 0);
}

#[test]
fn an_oom_victim_uses_half_of_the_reserve_and_does_not_loop() {
    let (rig, taken) = exhausted(16);
    *rig.env().script.on_oom.lock().unwrap() = Some(Box::new(|_| OomOutcome::Progress));
    rig.env().context.flags.store(TaskFlags::OOM_VICTIM.bits(), Ordering::Relaxed);
    // B-92 (18)
    fails(&rig, KERNEL, 0);
    assert_eq!(ooms(&rig), 1);
    let zone = rig.zone(NodeId(0), ZoneKind::Normal).unwrap();
    let min = zone.watermark(Watermark::Min) as usize;
    free(&rig, &taken[..min / 2 + 20]);
    assert!(rig.get(KERNEL, 0).is_some());
    rig.env().context.flags.store(0, Ordering::Relaxed);
    fails(&rig, KERNEL | Gfp::NORETRY, 0);
}

#[test]
fn requests_without_fs_pretend_progress_and_low_zones_do_not_kill() {
    let (rig, taken) = exhausted(16);
    let (buddy, rounds) = (handle(&rig), Arc::new(AtomicUsize::new(0)));
    let count = rounds.clone();
    *rig.env().script.on_reclaim.lock().unwrap() = Some(Box::new(move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == 50 {
            free(buddy, &taken[..1000]);
        }
        0
    }));
    assert!(rig.get(Gfp::NOFS | Gfp::NOWARN, 0).is_some());
    assert_eq!(ooms(&rig), 0);
    assert!(rounds.load(Ordering::Relaxed) >= 50);
    // RETRY_MAYFAIL and THISNODE never kill.
    let (rig, _) = exhausted(16);
    fails(&rig, KERNEL | Gfp::RETRY_MAYFAIL, 0);
    fails(&rig, KERNEL | Gfp::THISNODE, 0);
    assert_eq!(ooms(&rig), 0);
}

#[test]
fn a_change_of_the_marks_meanwhile_starts_over() {
    let (rig, taken) = exhausted(16);
    free(&rig, &taken[..20]);
    let buddy = handle(&rig);
    let rounds = Arc::new(AtomicUsize::new(0));
    let count = rounds.clone();
    *rig.env().script.on_reclaim.lock().unwrap() = Some(Box::new(move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            // Memory appears by lowering the marks.
            buddy.set_min_free_kbytes(0).unwrap();
        }
        0
    }));
    // B-92 (12), (16), B-95
    assert!(rig.get(KERNEL, 0).is_some());
    assert_eq!(rounds.load(Ordering::Relaxed), 1);
}

#[test]
fn the_last_look_is_above_the_high_mark() {
    let (rig, taken) = exhausted(16);
    let buddy = handle(&rig);
    *rig.env().script.on_reclaim.lock().unwrap() = Some(Box::new(|_| 0));
    let zone = rig.zone(NodeId(0), ZoneKind::Normal).unwrap();
    let high = zone.watermark(Watermark::High) as usize;
    // Somebody else frees memory while this request decides that nothing helps: `reclaimable_pages` is asked last.
    free(buddy, &taken[..high + 10]);
    assert!(rig.get(KERNEL, 0).is_some());
    assert_eq!(ooms(&rig), 0);
}

#[test]
fn defrag_mode_keeps_types_apart_until_everything_has_failed() {
    let (rig, taken) = with_options(16, BuddyOptions { defrag_mode: true, ..cached() });
    rig.set_min_free_kbytes(0).unwrap();
    rig.set_pageblock_type(taken[0], kmem_gfp::MigrateType::Movable).unwrap();
    // SAFETY: frames of tests have no memory.
    unsafe { rig.free_range(range(taken[0].0, taken[0].0 + 8)) }.unwrap();
    rig.env().script.can_compact.store(true, Ordering::Relaxed);
    // B-92 (15), B-94: compacts whole pageblocks even for order 0, wakes for them (B-100), then mixes.
    let got = rig.get(KERNEL, 0);
    assert!(got.is_some());
    assert!(rig.env().script.count(|call| matches!(call, Call::Compact(Order::PAGEBLOCK, _))) >= 1);
    assert!(rig.env().script.count(|call| *call == Call::Wake(0, Order::PAGEBLOCK)) >= 1);
    assert_eq!(ooms(&rig), 0);
}

#[test]
fn a_failed_charge_gives_the_page_back_without_a_report() {
    let rig = Rig::small(16 * 512);
    rig.env().may_charge.store(false, Ordering::Relaxed);
    let before = rig.all_free();
    let gfp = Gfp::KERNEL_ACCOUNT;
    // B-96
    assert_eq!(rig.alloc_pages(gfp, o(1), None), Err(AllocError::OverLimit { order: o(1), gfp }));
    assert!(rig.env().context.reports.lock().unwrap().is_empty());
    assert_eq!(rig.all_free(), before);
}

#[test]
fn failures_are_reported_once_in_ten_seconds_unless_silenced() {
    let (rig, _) = exhausted(16);
    let context = &rig.env().context;
    let lines = || context.reports.lock().unwrap().iter().filter(|line| line.contains("allocation failure")).count();
    // B-102
    fails(&rig, Gfp::NOWAIT, 0);
    assert_eq!(lines(), 0);
    fails(&rig, Gfp::ATOMIC, 3);
    assert_eq!(lines(), 1);
    let report = context.reports.lock().unwrap()[0].clone();
    assert!(report.starts_with("page allocation failure: order:3, mode:0x820(GFP_ATOMIC), nodemask="), "{report}");
    context.now.store(9_999, Ordering::Relaxed);
    fails(&rig, Gfp::ATOMIC, 3);
    assert_eq!(lines(), 1);
    context.now.store(10_000, Ordering::Relaxed);
    fails(&rig, Gfp::ATOMIC, 3);
    assert_eq!(lines(), 2);
    // A DMA request on a machine without a DMA zone says nothing.
    context.now.store(100_000, Ordering::Relaxed);
    fails(&rig, Gfp::ATOMIC | Gfp::DMA, 3);
    assert_eq!(lines(), 2);
}

#[test]
fn a_stall_is_reported_after_ten_seconds() {
    let (rig, taken) = exhausted(16);
    let buddy = handle(&rig);
    let rounds = Arc::new(AtomicUsize::new(0));
    let count = rounds.clone();
    *rig.env().script.on_reclaim.lock().unwrap() = Some(Box::new(move |_| {
        buddy.env().context.now.fetch_add(4_000, Ordering::Relaxed);
        if count.fetch_add(1, Ordering::Relaxed) == 4 {
            free(buddy, &taken[..1000]);
        }
        1
    }));
    rig.env().script.reclaimable.store(1 << 20, Ordering::Relaxed);
    assert!(rig.get(Gfp::KERNEL, 0).is_some());
    // B-104
    let reports = rig.env().context.reports.lock().unwrap();
    let stalls: Vec<_> = reports.iter().filter(|line| line.contains("stall for")).collect();
    assert_eq!(stalls.len(), 1);
    assert!(stalls[0].starts_with("page allocation stall for 12 secs: order:0"), "{}", stalls[0]);
}

#[test]
fn scopes_weaken_what_reclaim_is_told() {
    let (rig, taken) = exhausted(16);
    reclaim_frees(&rig, &taken, 1000);
    rig.env().context.flags.store(TaskFlags::NOIO.bits(), Ordering::Relaxed);
    assert!(rig.get(KERNEL, 0).is_some());
    assert_eq!(rig.env().script.count(|call| *call == Call::Reclaim(Gfp::NOIO | Gfp::NOWARN)), 1);
}
