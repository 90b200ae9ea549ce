//! H01..H07: how hard the allocator tries, with a reclaimer that follows a script. Each test takes all memory and gives it
//! back before it looks at what it saw.

use kmem::{Gfp, Order};
use kmem_gfp::TaskFlags;

use super::tools::{OPTIMISTIC, exhaust};
use crate::context;
use crate::page_list::PageList;
use crate::platform::kmem;
use crate::reclaim::{self, Heard};

super::tests![
    h01_without_reclaim_flags_nothing_is_freed,
    h02_without_direct_reclaim_background_reclaim_is_woken,
    h03_high_priority_uses_part_of_the_reserves,
    h04_gfp_kernel_practically_does_not_fail_for_small_orders,
    h05_noretry_fails_after_one_round_of_reclaim,
    h06_retry_mayfail_goes_on_while_reclaim_progresses,
    h07_nofail_loops_until_it_succeeds,
    everything_else_survives_a_machine_without_a_free_page,
];

/// Every page that ordinary requests get, and with `reserves` the others as well.
fn take_all(reserves: bool) -> PageList {
    let mut all = exhaust(OPTIMISTIC);
    if reserves {
        let _scope = kmem().noreclaim_scope();
        all.append(exhaust(Gfp::KERNEL));
    }
    all
}

/// Asks for a block while nothing is free and the script plays, frees everything, and says what happened.
fn under_pressure(
    reserves: bool,
    rounds: usize,
    per_round: usize,
    last_resort: usize,
    gfp: Gfp,
    order: u32,
) -> (bool, Heard) {
    let order = Order::new(order).expect("an order");
    let hoard = take_all(reserves);
    reclaim::play(hoard, rounds, per_round, last_resort);
    let got = kmem().alloc_pages(gfp | Gfp::NOWARN, order);
    let mut heard = reclaim::stop();
    core::mem::replace(&mut heard.hoard, PageList::new()).free();
    if let Ok(page) = got {
        // SAFETY: ours.
        unsafe { kmem().free_pages(page, order) }.expect("ours");
    }
    (got.is_ok(), heard)
}

fn h01_without_reclaim_flags_nothing_is_freed() {
    let (got, heard) = under_pressure(false, 100, 100, 100, OPTIMISTIC, 0);
    assert!(!got);
    assert_eq!((heard.wakes, heard.rounds, heard.ooms), (0, 0, 0));
}

fn h02_without_direct_reclaim_background_reclaim_is_woken() {
    let gfp = Gfp::KERNEL.difference(Gfp::DIRECT_RECLAIM);
    let (got, heard) = under_pressure(false, 100, 100, 100, gfp, 0);
    assert!(!got);
    assert!(heard.wakes > 0);
    assert_eq!((heard.rounds, heard.ooms), (0, 0));
}

fn h03_high_priority_uses_part_of_the_reserves() {
    let gfp = (Gfp::KERNEL | Gfp::HIGH).difference(Gfp::DIRECT_RECLAIM);
    let (got, heard) = context::with_flags(TaskFlags::IN_SOFTIRQ, || under_pressure(false, 0, 0, 0, gfp, 0));
    assert!(got, "from the reserves");
    assert_eq!((heard.rounds, heard.ooms), (0, 0));
}

fn h04_gfp_kernel_practically_does_not_fail_for_small_orders() {
    for order in 0..4 {
        let (got, heard) = under_pressure(true, 100_000, 64, 0, Gfp::KERNEL, order);
        assert!(got, "order {order}: {heard:?}");
        assert!(heard.rounds > 0);
    }
    let (got, heard) = under_pressure(true, 0, 0, 256, Gfp::KERNEL, 0);
    assert!(got && heard.ooms > 0, "the last resort: {heard:?}");
}

fn h05_noretry_fails_after_one_round_of_reclaim() {
    let (got, heard) = under_pressure(true, 0, 0, 4096, Gfp::KERNEL | Gfp::NORETRY, 0);
    assert!(!got);
    assert_eq!((heard.rounds, heard.ooms), (1, 0));
    let (got, heard) = under_pressure(true, 1, 4096, 0, Gfp::KERNEL | Gfp::NORETRY, 0);
    assert!(got && heard.rounds == 1, "{heard:?}");
}

fn h06_retry_mayfail_goes_on_while_reclaim_progresses() {
    let (got, heard) = under_pressure(true, 0, 0, 4096, Gfp::KERNEL | Gfp::RETRY_MAYFAIL, 0);
    assert!(!got && heard.rounds > 1 && heard.ooms == 0, "{heard:?}");
}

fn h07_nofail_loops_until_it_succeeds() {
    let (got, heard) = under_pressure(true, 100_000, 16, 0, Gfp::KERNEL | Gfp::NOFAIL, 0);
    assert!(got, "{heard:?}");
}

fn everything_else_survives_a_machine_without_a_free_page() {
    let mut hoard = take_all(true);
    let small = kmem().kmalloc(3000, Gfp::KERNEL | Gfp::NOWARN);
    let large = kmem().kmalloc(1 << 20, Gfp::KERNEL | Gfp::NOWARN);
    let area = crate::vm::vmalloc().alloc(&kmem_vmalloc::VmRequest::new(1 << 20, Gfp::KERNEL | Gfp::NOWARN));
    // What is freed is there for the next request.
    if let Some(page) = hoard.pop() {
        // SAFETY: ours.
        unsafe { kmem().free_page(page) }.expect("ours");
    }
    let one = kmem().alloc_page(OPTIMISTIC | Gfp::NOWARN).or_else(|_| {
        let _scope = kmem().noreclaim_scope();
        kmem().alloc_page(Gfp::KERNEL | Gfp::NOWARN)
    });
    if let Ok(page) = one {
        hoard.push(page);
    }
    hoard.free();
    if let Ok(block) = small {
        super::contract::kfree(block);
    }
    assert!(large.is_err() && area.is_err());
    assert!(one.is_ok());
}
