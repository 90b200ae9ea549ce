//! What may be copied to and from user space.

use kmem_gfp::Gfp;

use super::{family, give, with_flags};
use crate::{CacheArgs, SlabFlags, UsercopyError};

#[test]
fn c01_copies_keep_to_the_window() {
    // UC-01, UC-03, C01
    let slabs = family(1);
    for flags in [SlabFlags::empty(), SlabFlags::DEBUG_DEFAULT] {
        let args = CacheArgs { useroffset: 16, usersize: 32, ..with_flags(flags | SlabFlags::NO_MERGE) };
        let cache = slabs.create(if flags.is_empty() { "copied" } else { "checked" }, 100, &args).unwrap();
        for _ in 0..10 {
            let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
            let at = |offset: usize| object.addr().get() + offset;
            for (offset, len) in [(16, 32), (16, 1), (47, 1), (20, 10), (0, 0), (99, 0)] {
                assert_eq!(slabs.check_usercopy(at(offset), len), Ok(()), "{offset}+{len}");
            }
            for (offset, len) in [(15, 1), (48, 1), (16, 33), (0, 100), (15, 5), (40, 9)] {
                let outside = UsercopyError::OutsideWindow { offset, len };
                assert_eq!(slabs.check_usercopy(at(offset), len), Err(outside), "{offset}+{len}");
            }
            if cache.is_debug() {
                assert!(slabs.check_usercopy(at(0) - 1, 1).is_err(), "left red zone");
            }
        }
        assert!(slabs.env().reported("SLUB object 'copied' (offset 15, size 1)!").is_some());
    }
}

#[test]
fn without_a_window_nothing_is_copied() {
    // UC-03
    let slabs = family(1);
    let cache = slabs.create("private", 64, &CacheArgs::default()).unwrap();
    let object = slabs.alloc(cache, Gfp::KERNEL).unwrap();
    assert!(slabs.check_usercopy(object.addr().get(), 1).is_err());
    assert_eq!(slabs.check_usercopy(object.addr().get(), 0), Ok(()));
    give(&slabs, cache, [object]);
}

#[test]
fn what_is_no_range_is_refused() {
    // UC-01, UC-02
    let slabs = family(1);
    let bad =
        |address, len| assert_eq!(slabs.check_usercopy(address, len), Err(UsercopyError::BadRange { address, len }));
    bad(0, 1);
    bad(16, 1);
    bad(usize::MAX - 3, 100);
    bad(0x1000, 1 << 31);
    let outside = slabs.env().frame(2000).addr().get();
    assert_eq!(slabs.check_usercopy(outside, 8), Err(UsercopyError::NotSlab { address: outside }));
}
