//! G01..G05, H01..H07 of the contract with memory really short.

use core::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kmem::reclaim::{ReclaimEvent, ShrinkControl, ShrinkCount, ShrinkScan, Shrinker, ShrinkerSlot};
use kmem_gfp::{AllocError, Gfp, NodeId, Order, Watermark, ZoneKind};
use kmem_hosted::{Machine, ReclaimOptions, TaskFlags, in_context};
use kmem_tests::{exhaust, free_all};

use crate::rig::{fill_with_cache, machine, mark, quiet, vmstat};

const OPTIMISTIC: Gfp = Gfp::KERNEL.difference(Gfp::RECLAIM);

fn count(machine: &Machine, event: ReclaimEvent) -> u64 {
    machine.mm().unwrap().engine().stats().get(event)
}

fn kills(machine: &Machine) -> u64 {
    machine.mm().unwrap().killer().victims().count()
}

#[test]
fn g01_kernel_succeeds_where_memory_is_full_of_cache() {
    let machine = machine(16, quiet());
    let file = fill_with_cache(machine);
    let before = file.stats().evictions;
    let kmem = machine.kmem();
    let pages: Vec<_> = (0..1000).map(|_| kmem.alloc_page(Gfp::KERNEL).unwrap()).collect();
    assert!(file.stats().evictions >= before + 900, "room was made");
    // SAFETY: allocated above.
    unsafe { free_all(kmem, pages) };
}

#[test]
fn g02_nowait_fails_without_reclaim_while_kernel_succeeds() {
    let machine = machine(16, quiet());
    let file = fill_with_cache(machine);
    let kmem = machine.kmem();
    let taken = exhaust(kmem, Gfp::NOWAIT);
    let evicted = file.stats().evictions;
    assert!(matches!(kmem.alloc_page(Gfp::NOWAIT), Err(AllocError::NoMemory { .. })));
    assert_eq!(file.stats().evictions, evicted, "it frees nothing");
    let page = kmem.alloc_page(Gfp::KERNEL).unwrap();
    assert!(file.stats().evictions > evicted, "but this does");
    // SAFETY: allocated above.
    unsafe {
        free_all(kmem, taken);
        free_all(kmem, vec![page]);
    }
}

#[test]
fn g03_a_failure_is_reported_unless_nowarn_says_otherwise() {
    let machine = machine(16, quiet());
    fill_with_cache(machine);
    let kmem = machine.kmem();
    let taken = exhaust(kmem, Gfp::NOWAIT);
    machine.take_reports();
    assert!(kmem.alloc_page(Gfp::NOWAIT).is_err());
    assert_eq!(machine.take_reports(), "", "NOWAIT has a fallback");
    assert!(kmem.alloc_page(Gfp::NOWAIT.difference(Gfp::NOWARN)).is_err());
    let report = machine.take_reports();
    assert!(report.contains("page allocation failure"), "{report}");
    // SAFETY: allocated above.
    unsafe { free_all(kmem, taken) };
}

#[test]
fn g04_h03_atomic_reaches_exactly_its_depth_of_the_reserve() {
    let machine = machine(16, quiet());
    // Types that mix would raise the marks for a while.
    machine.kmem().pages().set_watermark_boost_factor(0).unwrap();
    fill_with_cache(machine);
    let kmem = machine.kmem();
    let free = || kmem.pages().free_page_count();
    let min = mark(kmem, Watermark::Min);
    // What a CPU lays by beside the page that it wanted would blur the marks.
    kmem.pages().set_page_sets_enabled(NodeId(0), ZoneKind::Normal, false);
    let ordinary = exhaust(kmem, Gfp::NOWAIT);
    assert_eq!(free(), min, "ordinary requests stop at the min mark");
    let reserve = in_context(TaskFlags::IN_SOFTIRQ, || exhaust(kmem, Gfp::ATOMIC));
    // Half of it for high priority, a quarter of the rest for those who cannot wait.
    let half = min - min / 2;
    assert_eq!(free(), half - half / 4);
    assert_eq!(reserve.len() as u64, min - (half - half / 4));
    assert!(in_context(TaskFlags::IN_SOFTIRQ, || kmem.alloc_page(Gfp::ATOMIC | Gfp::NOWARN)).is_err());
    // SAFETY: allocated above.
    unsafe {
        free_all(kmem, ordinary);
        free_all(kmem, reserve);
    }
}

/// A filesystem's cache, which may only be entered where the request allows it.
#[derive(Default)]
struct Dentries {
    entered: AtomicU64,
}

impl Shrinker for Dentries {
    fn count_objects(&self, _control: &ShrinkControl<'_>) -> ShrinkCount {
        self.entered.fetch_add(1, Ordering::Relaxed);
        ShrinkCount::Objects(100_000)
    }
    fn scan_objects(&self, control: &ShrinkControl<'_>, nr: u64) -> ShrinkScan {
        assert!(control.gfp.contains(Gfp::FS));
        ShrinkScan::Scanned { freed: 0, scanned: nr }
    }
}

#[test]
fn g05_nofs_inside_a_scope_never_enters_a_filesystems_shrinker() {
    let machine = machine(16, quiet());
    fill_with_cache(machine);
    let kmem = machine.kmem();
    let dentries = Dentries::default();
    let slot = ShrinkerSlot::new("dentries", &dentries).needing(Gfp::FS);
    let engine = machine.mm().unwrap().engine();
    let entered = || dentries.entered.load(Ordering::Relaxed);
    engine
        .with_shrinker(&slot, || {
            let mut pages = Vec::new();
            {
                let _scope = kmem.nofs_scope();
                let before = count(machine, ReclaimEvent::StealDirect);
                pages.extend((0..500).map(|_| kmem.alloc_page(Gfp::KERNEL).unwrap()));
                assert!(count(machine, ReclaimEvent::StealDirect) > before, "it did reclaim");
                {
                    let _inner = kmem.noio_scope();
                    pages.extend((0..500).map(|_| kmem.alloc_page(Gfp::KERNEL).unwrap()));
                }
                pages.extend((0..500).map(|_| kmem.alloc_page(Gfp::KERNEL).unwrap()));
            }
            assert_eq!(entered(), 0);
            pages.extend((0..500).map(|_| kmem.alloc_page(Gfp::NOFS).unwrap()));
            assert_eq!(entered(), 0, "the flag says the same as the scope");
            pages.extend((0..500).map(|_| kmem.alloc_page(Gfp::KERNEL).unwrap()));
            assert!(entered() > 0, "outside of it");
            // SAFETY: allocated above.
            unsafe { free_all(kmem, pages) };
        })
        .unwrap();
}

#[test]
fn h01_without_reclaim_flags_nothing_is_freed_and_kswapd_sleeps_on() {
    let machine = machine(16, ReclaimOptions::default());
    // Nothing is below its mark yet.
    let kmem = machine.kmem();
    let taken = exhaust(kmem, OPTIMISTIC);
    assert!(matches!(kmem.alloc_page(OPTIMISTIC | Gfp::NOWARN), Err(AllocError::NoMemory { .. })));
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(count(machine, ReclaimEvent::PageOutRun), 0);
    assert_eq!(count(machine, ReclaimEvent::StealDirect), 0);
    // SAFETY: allocated above.
    unsafe { free_all(kmem, taken) };
}

#[test]
fn h02_without_direct_reclaim_kswapd_is_woken_and_frees() {
    let machine = machine(16, ReclaimOptions { flusher: false, ..ReclaimOptions::default() });
    // Types that mix would raise the marks for a while.
    machine.kmem().pages().set_watermark_boost_factor(0).unwrap();
    let kmem = machine.kmem();
    let pages = kmem.pages().free_page_count() - 2 * mark(kmem, Watermark::High);
    let file = machine.file_pages(pages).unwrap();
    for index in 0..pages {
        let used = file.with_page(index, kmem_hosted::Access::Read, Gfp::NOWAIT | Gfp::MOVABLE, |_| {});
        assert!(used.is_ok(), "{used:?} at {index} of {pages}, {} free", kmem.pages().free_page_count());
    }
    assert_eq!(count(machine, ReclaimEvent::PageOutRun), 0, "above the low mark nobody is woken");
    let mut taken = Vec::new();
    while count(machine, ReclaimEvent::StealKswapd) == 0 {
        match kmem.alloc_page(Gfp::NOWAIT) {
            Ok(page) => taken.push(page),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert_eq!(count(machine, ReclaimEvent::StealDirect), 0, "it frees nothing itself");
    assert!(file.stats().evictions > 0);
    // SAFETY: allocated above.
    unsafe { free_all(kmem, taken) };
}

#[test]
fn h04_small_orders_practically_do_not_fail() {
    let machine = machine(32, ReclaimOptions { swap_bytes: 64 << 20, ..ReclaimOptions::default() });
    fill_with_cache(machine);
    let kmem = machine.kmem();
    let mut blocks = Vec::new();
    for round in 0..400 {
        let order = Order::new(round % 4).unwrap();
        blocks.push((kmem.alloc_pages(Gfp::KERNEL, order).unwrap(), order));
    }
    assert!(count(machine, ReclaimEvent::StealDirect) + count(machine, ReclaimEvent::StealKswapd) > 0);
    for (pages, order) in blocks {
        // SAFETY: allocated above.
        unsafe { kmem.free_pages(pages, order) }.unwrap();
    }
}

/// A machine that is full of a task's memory which has nowhere to go; the task can be killed.
fn full_of_a_task() -> (&'static Machine, kmem_hosted::Task) {
    let machine = machine(16, quiet());
    let task = machine.task("hog").unwrap();
    let pages = machine.kmem().pages().free_page_count();
    let memory = task.anonymous_pages(pages).unwrap();
    task.run(|| {
        for index in 0..pages {
            let gfp = crate::rig::USER | Gfp::NORETRY | Gfp::NOWARN;
            if memory.with_page(index, kmem_hosted::Access::Write, gfp, |page| page.fill(1)).is_err() {
                return;
            }
        }
    });
    (machine, task)
}

#[test]
fn h05_noretry_gives_up_before_anything_is_killed() {
    let (machine, task) = full_of_a_task();
    let kmem = machine.kmem();
    let taken = exhaust(kmem, Gfp::KERNEL | Gfp::NORETRY);
    assert!(kmem.alloc_page(Gfp::KERNEL | Gfp::NORETRY | Gfp::NOWARN).is_err());
    assert!(!task.is_killed());
    assert_eq!(kills(machine), 0);
    // The same without the flag has the task killed, and takes its memory when it is gone.
    let killed = std::thread::spawn(move || {
        while !task.is_killed() {
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(task);
    });
    let page = kmem.alloc_page(Gfp::KERNEL).unwrap();
    killed.join().unwrap();
    let report = machine.take_reports();
    assert!(report.contains("Killed process") && report.contains("hog"), "{report}");
    // SAFETY: allocated above.
    unsafe {
        free_all(kmem, taken);
        free_all(kmem, vec![page]);
    }
    assert_eq!(kills(machine), 0, "the victim has exited");
}

#[test]
fn h06_retry_mayfail_fails_without_a_kill_when_nothing_can_be_freed() {
    let (machine, task) = full_of_a_task();
    let kmem = machine.kmem();
    let gfp = Gfp::KERNEL | Gfp::RETRY_MAYFAIL | Gfp::NOWARN;
    let taken = exhaust(kmem, gfp);
    let stalls = || vmstat(machine, "allocstall_movable ") + vmstat(machine, "allocstall_normal ");
    let before = stalls();
    assert!(kmem.alloc_page(gfp).is_err());
    assert!(stalls() > before, "it tried");
    assert!(!task.is_killed());
    // SAFETY: allocated above.
    unsafe { free_all(kmem, taken) };
    // With something to reclaim it succeeds.
    drop(task);
    fill_with_cache(machine);
    let page = kmem.alloc_page(gfp).unwrap();
    // SAFETY: allocated above.
    unsafe { free_all(kmem, vec![page]) };
}

#[test]
fn h07_nofail_waits_and_succeeds_when_someone_frees() {
    let machine = machine(16, quiet());
    let kmem = machine.kmem();
    let mut taken = exhaust(kmem, OPTIMISTIC);
    {
        let _every_reserve = kmem.noreclaim_scope();
        taken.extend(exhaust(kmem, Gfp::KERNEL));
    }
    let waiting = std::thread::spawn(move || kmem.alloc_page(Gfp::KERNEL | Gfp::NOFAIL));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!waiting.is_finished(), "there is nothing to be had");
    // SAFETY: allocated above.
    unsafe { free_all(kmem, taken) };
    let page = waiting.join().unwrap().unwrap();
    // SAFETY: allocated by the thread.
    unsafe { free_all(kmem, vec![page]) };
}

#[test]
fn h04_a_dying_task_may_fail_and_uses_the_victims_reserve() {
    let machine = machine(16, quiet());
    let kmem = machine.kmem();
    let taken = exhaust(kmem, OPTIMISTIC);
    let victims = in_context(TaskFlags::OOM_VICTIM | TaskFlags::FATAL_SIGNAL, || exhaust(kmem, Gfp::KERNEL));
    assert!(!victims.is_empty(), "it gets at reserves that others do not");
    assert!(kmem.pages().free_page_count() > 0, "and not at all of them");
    // SAFETY: allocated above.
    unsafe {
        free_all(kmem, taken);
        free_all(kmem, victims);
    }
}
