//! Every page request fails in turn: each call either works or leaves everything as it was.

use kmem_gfp::Gfp;
use std::vec::Vec;

use super::{family, with_flags};
use crate::{CacheArgs, SlabEnv, SlabFlags};

/// A scenario that may fail anywhere; it frees what it got.
fn scenario(slabs: &crate::Slabs<super::env::TestEnv>) -> Result<(), ()> {
    let mut outcome = Ok(());
    for (name, size, flags) in [
        ("plain", 200, SlabFlags::empty()),
        ("typesafe", 700, SlabFlags::TYPESAFE_BY_RCU),
        ("checked", 64, SlabFlags::DEBUG_DEFAULT),
        ("wide", 4096, SlabFlags::empty()),
    ] {
        let Ok(cache) = slabs.create(name, size, &with_flags(flags | SlabFlags::NO_MERGE)) else {
            outcome = Err(());
            continue;
        };
        let mut objects = Vec::new();
        for _ in 0..30 {
            match slabs.alloc(cache, Gfp::KERNEL | Gfp::NOWARN) {
                Ok(object) => objects.push(object),
                Err(_) => outcome = Err(()),
            }
        }
        let mut bulk = [None; 80];
        match slabs.alloc_bulk(cache, Gfp::KERNEL | Gfp::NOWARN, &mut bulk) {
            Ok(()) => objects.extend(bulk.iter().flatten()),
            Err(_) => {
                assert_eq!(bulk, [None; 80]);
                outcome = Err(());
            }
        }
        match slabs.prefill(cache, Gfp::KERNEL | Gfp::NOWARN, 70) {
            Ok(mut sheaf) => objects.extend(sheaf.alloc(Gfp::empty())),
            Err(_) => outcome = Err(()),
        }
        for object in objects {
            // SAFETY: ours.
            unsafe { slabs.free(cache, object).unwrap() };
        }
        // SAFETY: nobody uses the cache any more.
        unsafe { slabs.destroy(cache).unwrap() };
    }
    outcome
}

#[test]
fn failing_the_nth_page_request_loses_nothing() {
    for n in 0.. {
        let slabs = family(1);
        let start = slabs.env().pages().in_use();
        slabs.env().pages().fail_in(n);
        let outcome = scenario(&slabs);
        let fired = slabs.env().pages().fail_in_left() < 0;
        slabs.env().pages().fail_in(-1);
        slabs.shrink_all();
        assert_eq!(slabs.env().pages().in_use(), start, "request {n} failed: {outcome:?}");
        assert_eq!(slabs.stats().slab_pages(), 0);
        if !fired {
            assert!(n > 20, "only {n} requests");
            return;
        }
    }
}

#[test]
fn failing_from_the_nth_page_request_on_loses_nothing() {
    for n in (0..60).step_by(3) {
        let slabs = family(1);
        let start = slabs.env().pages().in_use();
        slabs.env().pages().fail_from(n);
        let _ = scenario(&slabs);
        slabs.env().pages().fail_from(-1);
        slabs.shrink_all();
        assert_eq!(slabs.env().pages().in_use(), start, "failing from {n} on");
        assert!(slabs.create("again", 64, &CacheArgs::default()).is_ok());
    }
}
