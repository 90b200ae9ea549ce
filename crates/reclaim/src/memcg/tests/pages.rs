//! Payers of pages.

use core::ptr::NonNull;
use core::sync::atomic::Ordering;

use kmem_gfp::{Gfp, Order, Pfn};

use super::rig::{Table, run_on, table};
use crate::GroupId;
use crate::memcg::{PagePayers, Wait};

fn payers(first: u64, nr: u64) -> PagePayers {
    let layout = PagePayers::layout(nr).unwrap();
    // SAFETY: the layout has a size.
    let memory = NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
    // SAFETY: just allocated with that layout, and leaked.
    unsafe { PagePayers::new(memory, Pfn(first), nr) }
}

fn order(order: u32) -> Order {
    Order::new(order).unwrap()
}

fn with_task() -> (Table, GroupId) {
    let memcg = table(2, 4);
    let g = memcg.create(GroupId::ROOT).unwrap();
    memcg.env().group.store(g.0.into(), Ordering::Relaxed);
    (memcg, g)
}

#[test]
fn a_page_is_charged_after_its_allocation_and_uncharged_by_its_free() {
    //
    let (memcg, g) = with_task();
    let payers = payers(1000, 64);
    payers.charge(memcg, Gfp::KERNEL, Pfn(1000), order(0)).unwrap();
    assert_eq!(payers.get(Pfn(1000)), None, "only with ACCOUNT");
    payers.charge(memcg, Gfp::KERNEL_ACCOUNT, Pfn(1008), order(3)).unwrap();
    assert_eq!(payers.get(Pfn(1008)).map(|payer| payer.group()), Some(g));
    memcg.drain_stocks();
    assert_eq!(memcg.usage(g), 8, "2^order pages");
    payers.uncharge(memcg, Pfn(1008), order(3));
    payers.uncharge(memcg, Pfn(1008), order(3));
    payers.uncharge(memcg, Pfn(1000), order(0));
    memcg.drain_stocks();
    assert_eq!(memcg.usage(g), 0, "once, and nobody for the page that nobody paid for");
}

#[test]
fn the_parts_of_a_split_block_uncharge_themselves() {
    //
    let (memcg, g) = with_task();
    let payers = payers(0, 64);
    payers.charge(memcg, Gfp::KERNEL_ACCOUNT, Pfn(16), order(4)).unwrap();
    payers.split(Pfn(16), order(4), order(2));
    memcg.remove(g).unwrap();
    for part in [28, 16, 24, 20] {
        assert!(!memcg.is_free(g));
        payers.uncharge(memcg, Pfn(part), order(2));
    }
    memcg.drain_stocks();
    assert_eq!(memcg.usage(GroupId::ROOT), 0);
    assert!(memcg.is_free(g), "each part held its share of references");
}

#[test]
fn a_refused_charge_leaves_no_payer() {
    //
    let (memcg, g) = with_task();
    let payers = payers(0, 8);
    memcg.set_max(g, 3, Wait::No).unwrap();
    let refused = payers.charge(memcg, Gfp::NOWAIT | Gfp::ACCOUNT, Pfn(0), order(2)).unwrap_err();
    assert_eq!((refused.group, refused.pages), (g, 4));
    assert_eq!((payers.get(Pfn(0)), memcg.usage(g)), (None, 0));
    assert!(memcg.env().context.reports.lock().unwrap().is_empty(), "without a report");
}

#[test]
fn a_frame_outside_the_span_stays_uncharged() {
    let (memcg, g) = with_task();
    let payers = PagePayers::empty();
    run_on(Some(1));
    payers.charge(memcg, Gfp::KERNEL_ACCOUNT, Pfn(5), order(0)).unwrap();
    payers.uncharge(memcg, Pfn(5), order(0));
    memcg.drain_stocks();
    assert_eq!(memcg.usage(g), 0);
    assert_eq!(PagePayers::layout(u64::MAX), None);
}
