//! The decisions by themselves.

use kmem_gfp::{Gfp, PAGE_SIZE};

use crate::plan::{array_bytes, object_gfp, object_size};
use crate::{KVMALLOC_FALLBACK_MAX, KvmallocError};

// KV-02
#[test]
fn the_first_try_is_weakened_above_a_page_only() {
    for gfp in [Gfp::KERNEL, Gfp::KERNEL | Gfp::NOFAIL | Gfp::ZERO, Gfp::ATOMIC, Gfp::NOWAIT] {
        assert_eq!(object_gfp(0, gfp), gfp);
        assert_eq!(object_gfp(PAGE_SIZE, gfp), gfp);
        let weak = object_gfp(PAGE_SIZE + 1, gfp);
        assert!(weak.contains(Gfp::NOWARN) && !weak.intersects(Gfp::NOFAIL.union(Gfp::DIRECT_RECLAIM)), "{weak}");
        assert_eq!(weak.contains(Gfp::KSWAPD_RECLAIM), gfp.contains(Gfp::KSWAPD_RECLAIM), "waking stays");
        assert_eq!(weak.contains(Gfp::ZERO), gfp.contains(Gfp::ZERO));
    }
    let hard = object_gfp(PAGE_SIZE + 1, Gfp::KERNEL | Gfp::RETRY_MAYFAIL | Gfp::NOFAIL);
    assert_eq!(hard, Gfp::KERNEL | Gfp::RETRY_MAYFAIL | Gfp::NOWARN, "retry-mayfail keeps direct reclaim");
}

#[test]
fn sizes_are_rounded_to_the_alignment_or_refused() {
    assert_eq!(object_size(0, 64), Ok(0));
    assert_eq!(object_size(100, 1), Ok(100));
    assert_eq!(object_size(100, 64), Ok(128));
    assert_eq!(object_size(usize::MAX - 1, 64), Err(KvmallocError::TooLarge { size_bytes: usize::MAX - 1 }));
    assert!(matches!(object_size(1, 3), Err(KvmallocError::Kmalloc(_))));
    assert!(matches!(object_size(1, 0), Err(KvmallocError::Kmalloc(_))));
    assert_eq!(array_bytes(3, 5), Ok(15));
    assert_eq!(array_bytes(usize::MAX, 2), Err(KvmallocError::TooLarge { size_bytes: usize::MAX }));
    assert_eq!(KVMALLOC_FALLBACK_MAX, i32::MAX as usize);
}
