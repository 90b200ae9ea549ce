//! H01..H07: how hard the allocator tries, with a reclaimer that follows a script.

use kmem_gfp::{AllocError, Gfp, Order};
use kmem_hosted::{TaskFlags, in_context};
use kmem_tests::{Kmem, Script, exhaust, free_all, short_machine};

const OPTIMISTIC: Gfp = Gfp::KERNEL.difference(Gfp::RECLAIM);

/// A machine without a page left for ordinary requests; the script has all pages.
fn exhausted() -> (&'static Script, Kmem) {
    let script = Script::new();
    let kmem = short_machine(script).kmem();
    script.hoard(exhaust(kmem, OPTIMISTIC));
    script.take_heard();
    (script, kmem)
}

/// As [`exhausted`], and the reserves are gone as well.
fn drained() -> (&'static Script, Kmem) {
    let (script, kmem) = exhausted();
    drain(script, kmem);
    (script, kmem)
}

/// Gives the script every page that is left, reserves included.
fn drain(script: &Script, kmem: Kmem) {
    let _every_reserve = kmem.noreclaim_scope();
    script.hoard(exhaust(kmem, Gfp::KERNEL));
    script.take_heard();
}

fn finish(script: &Script, kmem: Kmem) {
    // SAFETY: the hoard's pages are the test's.
    unsafe { free_all(kmem, script.take_hoard()) };
}

#[test]
fn h01_without_reclaim_flags_nothing_is_freed_and_kswapd_sleeps_on() {
    let (script, kmem) = exhausted();
    script.rounds(&[100]);
    assert!(matches!(kmem.alloc_page(OPTIMISTIC | Gfp::NOWARN), Err(AllocError::NoMemory { .. })));
    let heard = script.take_heard();
    assert_eq!((heard.wakes, heard.reclaims.len(), heard.compactions, heard.ooms), (0, 0, 0, 0));
    finish(script, kmem);
}

#[test]
fn h02_without_direct_reclaim_kswapd_is_woken_below_the_low_watermark() {
    let script = Script::new();
    let kmem = short_machine(script).kmem();
    let mut pages = Vec::new();
    // Above the low watermark nobody is woken.
    pages.extend((0..64).map(|_| kmem.alloc_page(Gfp::NOWAIT).unwrap()));
    assert_eq!(script.take_heard().wakes, 0);
    while script.take_heard().wakes == 0 {
        pages.push(kmem.alloc_page(Gfp::NOWAIT).unwrap());
    }
    pages.push(kmem.alloc_page(Gfp::NOWAIT).unwrap());
    pages.extend(exhaust(kmem, Gfp::NOWAIT));
    let same = Gfp::KERNEL.difference(Gfp::DIRECT_RECLAIM) | Gfp::NOWARN;
    assert!(kmem.alloc_page(same).is_err());
    let heard = script.take_heard();
    assert!(heard.wakes > 0);
    assert_eq!((heard.reclaims.len(), heard.ooms), (0, 0), "frees nothing itself");
    // SAFETY: allocated above.
    unsafe { free_all(kmem, pages) };
}

#[test]
fn h03_high_priority_without_direct_reclaim_uses_part_of_the_reserves() {
    let (script, kmem) = exhausted();
    assert!(kmem.alloc_page(Gfp::NOWAIT).is_err());
    let gfp = (Gfp::KERNEL | Gfp::HIGH).difference(Gfp::DIRECT_RECLAIM);
    let reserve = in_context(TaskFlags::IN_SOFTIRQ, || exhaust(kmem, gfp));
    assert!(!reserve.is_empty());
    let heard = script.take_heard();
    assert!(heard.wakes > 0);
    assert!(heard.reclaims.is_empty());
    script.hoard(reserve);
    finish(script, kmem);
}

#[test]
fn h04_gfp_kernel_practically_does_not_fail_for_small_orders() {
    let (script, kmem) = drained();
    // Reclaim that gives a little each time, out of order: enough for any order that is not costly, in the end.
    let mut got = Vec::new();
    for order in [0, 0, 1, 2, 3] {
        let order = Order::new(order).unwrap();
        script.rounds(&[8; 4000]);
        let pages = kmem.alloc_pages(Gfp::KERNEL, order).unwrap();
        assert!(!script.take_heard().reclaims.is_empty(), "{order} needed reclaim");
        got.push((pages, order));
        drain(script, kmem);
    }
    // With nothing to reclaim the last resort is asked, and what it frees is enough.
    script.forget_rounds();
    script.last_resort(64);
    let page = kmem.alloc_page(Gfp::KERNEL).unwrap();
    let heard = script.take_heard();
    assert!(heard.ooms > 0 && heard.reclaims.len() > 1);
    got.push((page, Order::ZERO));
    // Callers must check all the same: an OOM victim may fail.
    drain(script, kmem);
    let victim = in_context(TaskFlags::OOM_VICTIM, || kmem.alloc_page(Gfp::KERNEL | Gfp::NOWARN));
    assert!(victim.is_err());
    for (pages, order) in got {
        // SAFETY: allocated above.
        unsafe { kmem.free_pages(pages, order) }.unwrap();
    }
    finish(script, kmem);
}

#[test]
fn h05_noretry_fails_after_one_round_of_reclaim_without_the_oom_killer() {
    let (script, kmem) = drained();
    script.hollow_rounds(100);
    assert!(kmem.alloc_page(Gfp::KERNEL | Gfp::NORETRY | Gfp::NOWARN).is_err());
    let heard = script.take_heard();
    assert_eq!((heard.reclaims.len(), heard.ooms), (1, 0));
    // One round that frees something is enough.
    script.forget_rounds();
    script.rounds(&[4096]);
    script.hoard(vec![kmem.alloc_page(Gfp::KERNEL | Gfp::NORETRY).unwrap()]);
    assert_eq!(script.take_heard().reclaims.len(), 1);
    finish(script, kmem);
}

#[test]
fn h06_retry_mayfail_goes_on_while_reclaim_progresses_and_then_fails() {
    let (script, kmem) = drained();
    let gfp = Gfp::KERNEL | Gfp::RETRY_MAYFAIL | Gfp::NOWARN;
    script.hollow_rounds(5);
    assert!(kmem.alloc_page(gfp).is_err());
    let heard = script.take_heard();
    assert!(heard.reclaims.len() > 5, "{} rounds", heard.reclaims.len());
    assert_eq!(heard.ooms, 0, "and no OOM killer");
    script.hollow_rounds(3);
    script.rounds(&[4096]);
    script.hoard(vec![kmem.alloc_page(gfp).unwrap()]);
    assert!(script.take_heard().reclaims.len() >= 4);
    finish(script, kmem);
}

#[test]
fn h07_nofail_loops_until_it_succeeds() {
    let (script, kmem) = drained();
    // Twenty rounds in which nothing at all can be reclaimed, and a last resort that finds no victim.
    script.rounds(&[0; 20]);
    script.rounds(&[64]);
    let page = kmem.alloc_page(Gfp::KERNEL | Gfp::NOFAIL).unwrap();
    let heard = script.take_heard();
    assert!(heard.reclaims.len() >= 20, "{} rounds", heard.reclaims.len());
    script.hoard(vec![page]);
    finish(script, kmem);
}

#[test]
fn without_a_reclaimer_requests_without_fs_fail_instead_of_waiting() {
    let kmem = kmem_tests::machine().kmem();
    let taken = exhaust(kmem, OPTIMISTIC);
    for gfp in [Gfp::NOFS, Gfp::NOIO, Gfp::KERNEL] {
        let refused = kmem.alloc_pages(gfp | Gfp::NOWARN, Order::ZERO);
        assert!(matches!(refused, Err(AllocError::NoMemory { .. })), "{gfp}: {refused:?}");
    }
    // SAFETY: the pages are the test's.
    unsafe { free_all(kmem, taken) };
}
