//! The counted loops of the vmalloc suite, ours and the peers'.

use super::Case;
use crate::{
    areas::{
        Areas, kmem_areas, pairs,
        peers::{Filled, FirstFit, Ranges, Tree},
    },
    measure::Role,
};

/// Every counted loop of areas.
pub(crate) fn cases() -> Vec<Case> {
    let case = |operation, subject, run| Case {
        operation,
        subject,
        role: if str::starts_with(subject, "kmem") { Role::Kmem } else { Role::Peer },
        per_turn: 1,
        run,
    };
    let small = "vmalloc(4 KiB) + vfree";
    let many = "vmalloc(4 KiB) + vfree, 1,000,000 live";
    vec![
        case(small, "kmem", run::<kmem_areas::Memory, 1, 10>),
        case(small, "kmem, addresses only", run::<kmem_areas::Addresses, 1, 10>),
        case(small, "range-alloc", run::<Filled<Ranges>, 1, 10>),
        case(small, "vm-allocator", run::<Filled<Tree>, 1, 10>),
        case(small, "BTreeMap, first fit", run::<Filled<FirstFit>, 1, 10>),
        case(many, "kmem", run::<kmem_areas::Memory, 1, 1_000_000>),
        case(many, "kmem, addresses only", run::<kmem_areas::Addresses, 1, 1_000_000>),
        case(many, "range-alloc", run::<Filled<Ranges>, 1, 1_000_000>),
        case(many, "BTreeMap, first fit", run::<Filled<FirstFit>, 1, 1_000_000>),
        case("vmalloc(64 KiB) + vfree", "kmem", run::<kmem_areas::Memory, 16, 10>),
        case("vmalloc(1 MiB) + vfree", "kmem", run::<kmem_areas::Memory, 256, 10>),
    ]
}

fn run<A: Areas, const PAGES: usize, const LIVE: usize>(count: u64) {
    pairs(&mut A::new(LIVE, false), PAGES, count);
}
