//! The page allocator.

use alloc::vec::Vec;
use core::cell::RefCell;

use kmem::{Gfp, Kmem, Order, Pfn};

use super::super::random::Random;
use super::meter::{Table, both, each, opaque};
use crate::platform::{Machine, kmem};

/// The machine: its address is known to the compiler, once somebody has asked whether it is there.
type K = &'static Kmem<Machine>;

#[inline(always)]
fn alloc(k: K, gfp: Gfp, order: Order) -> Pfn {
    match k.alloc_pages(gfp, order) {
        Ok(page) => page,
        Err(_) => none(),
    }
}

#[cold]
fn none() -> ! {
    // PANIC: a count without memory means nothing.
    panic!("no memory")
}

#[inline(always)]
fn free(k: K, page: Pfn, order: Order) {
    // SAFETY: the measurement's own.
    let _ = unsafe { k.free_pages(page, order) };
}

fn order(n: u32) -> Order {
    Order::new(n).unwrap_or(Order::ZERO)
}

#[inline(always)]
fn pair(k: K, gfp: Gfp, order: Order) -> u64 {
    each(1000, |_| free(k, Pfn(opaque(alloc(k, gfp, order).0 as usize) as u64), order))
}

/// Many blocks, then many frees in the order given.
#[inline(never)]
fn many(k: K, n: usize, order: Order, indices: impl Iterator<Item = usize> + Clone) -> (u64, u64) {
    let pages = RefCell::new(alloc::vec![Pfn(0); n]);
    both(
        n,
        || {
            for slot in pages.borrow_mut().iter_mut() {
                *slot = alloc(k, Gfp::KERNEL, order);
            }
        },
        || {
            let pages = pages.borrow();
            for i in indices.clone() {
                free(k, pages[i], order);
            }
        },
    )
}

fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut random = Random::new(seed);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, random.below(i + 1));
    }
    order
}

pub(super) fn measure(table: &mut Table) {
    let k = kmem();
    table.section("page allocator");
    table.row("alloc_pages(0)+__free_pages", pair(k, Gfp::KERNEL, Order::ZERO), 5360);
    for (name, n, linux) in [
        ("alloc_pages(1)+__free_pages", 1, 6280),
        ("alloc_pages(2)+__free_pages", 2, 6440),
        ("alloc_pages(3)+__free_pages", 3, 6790),
        ("alloc_pages(4)+__free_pages", 4, 10_150),
        ("alloc_pages(9)+__free_pages", 9, 62_050),
        ("alloc_pages(10)+__free_pages", 10, 123_070),
    ] {
        table.row(name, pair(k, Gfp::KERNEL, order(opaque(n as usize) as u32)), linux);
    }
    table.row("alloc_pages(0, ZERO)+__free_pages", pair(k, Gfp::KERNEL | Gfp::ZERO, Order::ZERO), 10_610);
    table.row("alloc_pages(0, GFP_HIGHUSER_MOVABLE)+free", pair(k, Gfp::HIGHUSER_MOVABLE, Order::ZERO), 5310);
    table.row("alloc_pages(0, GFP_ATOMIC)+free", pair(k, Gfp::ATOMIC, Order::ZERO), 5360);

    let (taken, freed) = many(k, 1000, Order::ZERO, 0..1000);
    table.row("batch 1000: alloc_pages(0)", taken, 3040);
    table.row("batch 1000: __free_pages(0), FIFO", freed, 2350);
    let indices = shuffled(1000, 1);
    let (taken, freed) = many(k, 1000, Order::ZERO, indices.iter().copied());
    table.row("batch 1000: alloc_pages(0) (after random)", taken, 3040);
    table.row("batch 1000: __free_pages(0), random order", freed, 2370);
    let indices = shuffled(10_000, 2);
    let (taken, freed) = many(k, 10_000, Order::ZERO, indices.iter().copied());
    table.row("batch 10000: alloc_pages(0)", taken, 3040);
    table.row("batch 10000: __free_pages(0), random order", freed, 2360);
    let indices = shuffled(61_440, 3);
    let (taken, freed) = many(k, 61_440, Order::ZERO, indices.iter().copied());
    table.row("batch 61440: alloc_pages(0) (after random)", taken, 3840);
    table.row("batch 61440: __free_pages(0), random order", freed, 3600);
    let (taken, freed) = many(k, 61_440, Order::ZERO, 0..61_440);
    table.row("batch 61440: alloc_pages(0)", taken, 3680);
    table.row("batch 61440: __free_pages(0), FIFO", freed, 3800);
    let (taken, freed) = many(k, 1000, order(2), 0..1000);
    table.row("batch 1000: alloc_pages(2)", taken, 4140);
    table.row("batch 1000: __free_pages(2), FIFO", freed, 4090);
    let (taken, freed) = many(k, 50, order(9), 0..50);
    table.row("batch 50: alloc_pages(9)", taken, 4640);
    table.row("batch 50: __free_pages(9), FIFO", freed, 60_710);

    let pages = RefCell::new([None; 512]);
    let (taken, freed) = both(
        512,
        || {
            let got = k.alloc_pages_bulk(Gfp::KERNEL, &mut *pages.borrow_mut());
            assert_eq!(got, 512);
        },
        || {
            for page in pages.borrow_mut().iter_mut().filter_map(Option::take) {
                free(k, page, Order::ZERO);
            }
        },
    );
    table.row("alloc_pages_bulk(512), per page", taken, 753);
    table.row("512 x __free_page after bulk, per page", freed, 2370);
    let (_, freed) = both(
        512,
        || {
            k.alloc_pages_bulk(Gfp::KERNEL, &mut *pages.borrow_mut());
        },
        || {
            // SAFETY: the measurement's own.
            let _ = unsafe { k.free_pages_bulk(&mut *pages.borrow_mut()) };
        },
    );
    table.row("free_pages_bulk(512), per page", freed, 0);
}
