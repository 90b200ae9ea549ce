//! The fault injector's rules.

use kmem_gfp::{AllocError, Gfp};

use super::{family, give};
use crate::{CacheArgs, FaultInjection, Slabs};

fn failures(slabs: &Slabs<super::env::TestEnv>, cache: &crate::KmemCache, gfp: Gfp, calls: usize) -> usize {
    let mut failed = 0;
    for _ in 0..calls {
        match slabs.alloc(cache, gfp) {
            Ok(object) => give(slabs, cache, [object]),
            Err(error) => {
                assert_eq!(error, AllocError::Injected);
                failed += 1;
            }
        }
    }
    failed
}

const ALWAYS: FaultInjection = FaultInjection { probability: 100, times: None, ..FaultInjection::OFF };

#[test]
fn requests_that_may_sleep_or_must_not_fail_are_spared() {
    // DB-32
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    assert_eq!(failures(&slabs, cache, Gfp::ATOMIC, 10), 0);
    slabs.set_fault_injection(ALWAYS);
    assert_eq!(failures(&slabs, cache, Gfp::KERNEL, 10), 0, "blocking requests are ignored by default");
    assert_eq!(failures(&slabs, cache, Gfp::ATOMIC, 10), 10);
    assert_eq!(failures(&slabs, cache, Gfp::ATOMIC | Gfp::NOFAIL, 10), 0);
    assert!(slabs.alloc_nolock(cache, Gfp::empty(), None).is_ok(), "any-context requests are exempt");
    assert_eq!(slabs.injected_failures(), 10);
    slabs.set_fault_injection(FaultInjection { ignore_blocking: false, ..ALWAYS });
    assert_eq!(failures(&slabs, cache, Gfp::KERNEL, 10), 10);
    let mut objects = [None; 4];
    assert_eq!(slabs.alloc_bulk(cache, Gfp::KERNEL, &mut objects), Err(AllocError::Injected));
    let new = slabs.create("new", 128, &CacheArgs::default()).unwrap();
    assert_eq!(failures(&slabs, new, Gfp::KERNEL, 3), 3, "caches made later as well");
    slabs.set_fault_injection(FaultInjection::OFF);
    assert_eq!(failures(&slabs, cache, Gfp::ATOMIC, 10), 0);
}

#[test]
fn the_filter_limits_injection_to_marked_caches() {
    // DB-32, DB-14
    let slabs = family(1);
    let marked = slabs.create("marked", 64, &CacheArgs::default()).unwrap();
    let other = slabs.create("other", 128, &CacheArgs::default()).unwrap();
    assert!(slabs.set_failslab(marked, true));
    slabs.set_fault_injection(FaultInjection { cache_filter: true, ..ALWAYS });
    assert_eq!(failures(&slabs, marked, Gfp::ATOMIC, 5), 5);
    assert_eq!(failures(&slabs, other, Gfp::ATOMIC, 5), 0);
    slabs.create("alias", 128, &CacheArgs::default()).unwrap();
    assert!(!slabs.set_failslab(other, true), "not on shared caches");
}

#[test]
fn the_decision_has_the_references_order() {
    // DB-33
    let slabs = family(1);
    let cache = slabs.create("things", 64, &CacheArgs::default()).unwrap();
    slabs.set_fault_injection(FaultInjection { times: Some(3), ..ALWAYS });
    assert_eq!(failures(&slabs, cache, Gfp::ATOMIC, 10), 3);
    slabs.set_fault_injection(FaultInjection { interval: 4, ..ALWAYS });
    assert_eq!(failures(&slabs, cache, Gfp::ATOMIC, 20), 5);
    slabs.set_fault_injection(FaultInjection { space: 200, ..ALWAYS });
    assert_eq!(failures(&slabs, cache, Gfp::ATOMIC, 10), 7, "64 bytes a call while more than that are left");
    slabs.set_fault_injection(FaultInjection { probability: 30, ..ALWAYS });
    let failed = failures(&slabs, cache, Gfp::ATOMIC, 1000);
    assert!((200..400).contains(&failed), "{failed}");
    slabs.set_fault_injection(FaultInjection::nth(3));
    assert_eq!(failures(&slabs, cache, Gfp::KERNEL, 2), 0);
    assert_eq!(failures(&slabs, cache, Gfp::KERNEL, 1), 1);
    assert_eq!(failures(&slabs, cache, Gfp::KERNEL, 10), 0);
    let rule = FaultInjection { interval: 2, probability: 50, space: 100, times: None, ..FaultInjection::OFF };
    assert_eq!(FaultInjection::parse("2,50,100,-1"), Some(rule));
    assert_eq!(FaultInjection::parse("1,0,0,1"), Some(FaultInjection::OFF));
    assert_eq!(FaultInjection::parse("1,2,3"), None);
    assert_eq!(FaultInjection::parse("1,2,3,4,5"), None);
}
