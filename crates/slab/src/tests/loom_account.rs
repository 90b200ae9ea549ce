//! Models of charges: payers against the end of their slab, and two who make them at once.

use core::num::NonZeroU32;
use core::ptr::NonNull;
use std::sync::Arc;

use kmem_gfp::Gfp;
use loom::thread;

use super::env::run_on;
use super::ledger::{Ledger, OVERHEAD};
use super::with_flags;
use crate::{KmemCache, SlabConfig, SlabEnv, SlabFlags, Slabs};

const CONFIG: SlabConfig = SlabConfig {
    max_order: 0,
    max_sheaf_capacity: 0,
    grow_orders: false,
    randomize: false,
    merge: false,
    ..SlabConfig::DEFAULT
};
/// Two objects in a slab of one page.
const SIZE: usize = 2048;
const COST: i64 = SIZE as i64 + OVERHEAD;

/// An object on its way to another thread.
#[derive(Clone, Copy)]
struct Sent(NonNull<u8>);
// SAFETY: each object is handed over once.
unsafe impl Send for Sent {}

fn family(flags: SlabFlags) -> Arc<Slabs<Ledger>> {
    let slabs = Slabs::with_config(Ledger::new(2, 128), CONFIG);
    slabs.init().unwrap();
    // Every slab that becomes empty leaves.
    slabs.create("things", SIZE, &with_flags(flags)).unwrap().set_min_partial(0);
    slabs.env().pays(1);
    Arc::new(slabs)
}

fn cache(slabs: &Slabs<Ledger>) -> &KmemCache {
    slabs.find_cache("things").unwrap()
}

fn payer(slabs: &Slabs<Ledger>, object: NonNull<u8>) -> u32 {
    // SAFETY: models ask about objects that they hold.
    unsafe { slabs.payer_of(object) }.map_or(0, NonZeroU32::get)
}

fn free(slabs: &Slabs<Ledger>, object: NonNull<u8>) {
    // SAFETY: held by the caller.
    unsafe { slabs.free(cache(slabs), object).unwrap() };
}

/// Nothing is charged, and no page is missing.
fn finish(slabs: &Slabs<Ledger>) {
    run_on(Some(0));
    assert_eq!(slabs.env().charged(1), 0);
    // SAFETY: every thread has finished.
    unsafe { slabs.destroy(cache(slabs)).unwrap() };
    slabs.shrink_all();
    assert_eq!(slabs.env().env.pages().in_use() as u64, slabs.stats().metadata_pages);
}

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(2));
    builder.max_branches = 50_000;
    builder.check(model);
}

#[test]
fn a_charge_meets_the_end_of_its_slab() {
    // A-11, SL-88
    explore(|| {
        let slabs = family(SlabFlags::ACCOUNT);
        let first = Sent(slabs.alloc(cache(&slabs), Gfp::KERNEL).unwrap());
        let other = {
            let slabs = slabs.clone();
            thread::spawn(move || {
                run_on(Some(1));
                let Sent(first) = { first };
                assert_eq!(payer(&slabs, first), 1);
                free(&slabs, first);
            })
        };
        let second = slabs.alloc(cache(&slabs), Gfp::KERNEL).unwrap();
        assert_eq!(payer(&slabs, second), 1);
        other.join().unwrap();
        assert_eq!(slabs.env().charged(1), COST);
        free(&slabs, second);
        finish(&slabs);
    });
}

#[test]
fn two_who_note_the_first_payers_of_a_slab_share_one_vector() {
    // SL-116
    explore(|| {
        let slabs = family(SlabFlags::empty());
        let things = cache(&slabs);
        // The first slab brings the tree's nodes; the vector of the second is what the two make.
        let warm = [(); 2].map(|()| slabs.alloc(things, Gfp::KERNEL_ACCOUNT).unwrap());
        let [mine, other] = [(); 2].map(|()| Sent(slabs.alloc(things, Gfp::KERNEL).unwrap()));
        let thread = {
            let slabs = slabs.clone();
            thread::spawn(move || {
                run_on(Some(1));
                let Sent(object) = { other };
                // SAFETY: ours.
                unsafe { slabs.charge_later(object, Gfp::KERNEL).unwrap() };
                assert_eq!(payer(&slabs, object), 1);
            })
        };
        // SAFETY: ours.
        unsafe { slabs.charge_later(mine.0, Gfp::KERNEL).unwrap() };
        assert_eq!(payer(&slabs, mine.0), 1);
        thread.join().unwrap();
        assert_eq!(slabs.env().charged(1), 4 * COST);
        warm.into_iter().for_each(|object| free(&slabs, object));
        free(&slabs, other.0);
        free(&slabs, mine.0);
        finish(&slabs);
    });
}
