//! The counted loops of the peers.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
};

use super::Case;
use crate::{
    caches::{self, Cache},
    measure::Role,
    objects::peers::rusty_alloc,
    pages::{self, Pages},
};

/// Every counted loop that is not ours.
pub(crate) fn cases() -> Vec<Case> {
    let case = |operation, subject, run| Case {
        operation,
        subject,
        role: match subject {
            name if str::starts_with(name, "floor") => Role::Floor,
            name if name.ends_with("no lock") => Role::Unshared,
            _ => Role::Peer,
        },
        per_turn: 1,
        run,
    };
    vec![
        case("kmalloc(64) + kfree", "glibc", |count| objects(&System, count)),
        case("kmalloc(64) + kfree", "rusty_alloc", |count| objects(rusty_alloc(), count)),
        case("kmalloc(64) + kfree", "mimalloc", |count| objects(&mimalloc::MiMalloc, count)),
        case("cache alloc + free", "slab, no lock", items::<caches::peers::BareSlab>),
        case("cache alloc + free", "slab, spin lock", items::<caches::peers::SpinSlab>),
        case("cache alloc + free", "sharded-slab", items::<caches::peers::Sharded>),
        case("cache alloc + free", "floor: thread_local Vec", items::<caches::peers::LocalVec>),
        case("page of order 0, pair", "frame-alloc Depot", frames::<pages::peers::DepotPages, 0>),
        case("page of order 0, pair", "bitmap-allocator, no lock", frames::<pages::peers::BitmapPages, 0>),
        case("page of order 0, pair", "floor: per-CPU array", frames::<pages::peers::Array, 0>),
        case("page of order 9, pair", "frame-alloc Depot", frames::<pages::peers::DepotPages, 9>),
        case("page of order 9, pair", "bitmap-allocator, no lock", frames::<pages::peers::BitmapPages, 9>),
    ]
}

/// Pairs of 64 bytes.
pub(crate) fn objects<A: GlobalAlloc>(allocator: &A, count: u64) {
    let layout = Layout::new::<[u64; 8]>();
    for _ in 0..count {
        // SAFETY: the layout is not empty; each block is freed once, with its own layout.
        unsafe {
            let block = black_box(allocator.alloc(layout));
            allocator.dealloc(block, layout);
        }
    }
}

/// Pairs from a typed cache.
pub(crate) fn items<C: Cache>(count: u64) {
    let cache = C::new();
    for id in 0..count {
        cache.free(black_box(cache.alloc(id)));
    }
}

/// Pairs of page blocks.
pub(crate) fn frames<P: Pages, const ORDER: u32>(count: u64) {
    let Some(pages) = P::new(1 << 14, 1) else {
        return;
    };
    for _ in 0..count {
        if let Some(frame) = pages.alloc(0, ORDER) {
            pages.free(0, black_box(frame), ORDER);
        }
    }
}
