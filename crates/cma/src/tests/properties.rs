//! Areas against an oracle, with tenants that come, go, move and are pinned at random.

use proptest::prelude::*;
use std::vec::Vec;

use kmem_gfp::{Pfn, PfnRange};

use super::declare::declare;
use super::toy::{Frame, Toy, range};
use crate::{AreaSpec, Cma, CmaError, Place};

#[derive(Clone, Debug)]
enum Step {
    /// A tenant moves in near this frame.
    Enter(u64),
    /// The tenant at or above this frame leaves.
    Leave(u64),
    /// Somebody who does not move arrives.
    Settle(u64),
    /// The tenant at or above this frame is pinned for a while, or the pins go.
    Pin(u64),
    Unpin,
    Alloc {
        nr_pages: u64,
        align_order: u32,
    },
    /// An allocation is released, all of it or its first part.
    Release {
        which: usize,
        part: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let frame = 0_u64..4096;
    prop::collection::vec(
        prop_oneof![
            6 => frame.clone().prop_map(Step::Enter),
            3 => frame.clone().prop_map(Step::Leave),
            1 => frame.clone().prop_map(Step::Settle),
            1 => frame.prop_map(Step::Pin),
            1 => Just(Step::Unpin),
            4 => (1_u64..900, 0_u32..10).prop_map(|(nr_pages, align_order)| Step::Alloc { nr_pages, align_order }),
            3 => (0_usize..8, any::<bool>()).prop_map(|(which, part)| Step::Release { which, part }),
        ],
        1..80,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    // M-02, M-04, M-11, M-14, M-15, M-19..M-21
    #[test]
    fn a_request_fails_only_without_a_place_and_lent_memory_is_movable(order_per_bit in 0_u32..5, steps in steps()) {
        let toy = Toy::new(8);
        let cma = Cma::new(&toy);
        let spec = AreaSpec::new("a", 2048).place(Place::Fixed(Pfn(1024))).granularity(order_per_bit);
        let area = declare(&cma, &spec).unwrap();
        area.activate();
        let inside = range(1024, 3072);
        let bit = 1 << order_per_bit;
        let mut oracle = std::vec![false; 2048];
        let mut held: Vec<PfnRange> = Vec::new();
        let mut pinned: Vec<(u64, Frame)> = Vec::new();
        let mut name = 0;
        for step in steps {
            let nth_tenant = |from: u64| toy.tenants().into_values().find(|&pfn| pfn >= from);
            match step {
                Step::Enter(at) => {
                    // A stretch of neighbours.
                    for i in 0..64 {
                        name += 1;
                        toy.alloc(Some(name), at + i);
                    }
                }
                Step::Leave(at) => if let Some(pfn) = nth_tenant(at) {
                    toy.put(pfn, Frame::Free);
                },
                Step::Settle(at) => if let Some(pfn) = toy.alloc(None, at) {
                    prop_assert!(!inside.contains(Pfn(pfn)), "nothing unmovable ever lands in an area");
                },
                Step::Pin(at) => if let Some(pfn) = nth_tenant(at) {
                    pinned.push((pfn, toy.frame(pfn)));
                    toy.put(pfn, Frame::Stuck);
                },
                Step::Unpin => pinned.drain(..).for_each(|(pfn, frame)| toy.put(pfn, frame)),
                Step::Alloc { nr_pages, align_order } => {
                    let align = bit.max(1 << align_order);
                    let size = nr_pages.next_multiple_of(bit);
                    let place = |start: u64| {
                        start.is_multiple_of(align)
                            && start + size <= inside.end.0
                            && (start..start + size).all(|pfn| {
                                !oracle[(pfn - 1024) as usize] && !matches!(toy.frame(pfn), Frame::Stuck)
                            })
                    };
                    let expected = (1024..3072).find(|&start| place(start));
                    let before = toy.tenants();
                    match (area.try_alloc(nr_pages, align_order), expected) {
                        (Ok(pages), Some(start)) => {
                            let pages = pages.into_raw();
                            prop_assert_eq!(pages, range(start, start + size), "the first that can be had");
                            oracle[(start - 1024) as usize..(start - 1024 + size) as usize].fill(true);
                            held.push(pages);
                        }
                        (Err(CmaError::NoRoom { .. }), None) => {}
                        (Err(CmaError::Source(_)), Some(start)) => {
                            let outside = toy.count(|frame| frame == Frame::Free) as u64;
                            let free = (start..start + size).filter(|&pfn| toy.frame(pfn) == Frame::Free).count() as u64;
                            prop_assert!(outside - free < size - free, "there was room for what lies there");
                        }
                        (got, expected) => prop_assert!(false, "{:?} instead of {:?}", got, expected),
                    }
                    let after = toy.tenants();
                    prop_assert!(before.keys().eq(after.keys()), "nobody is lost");
                }
                Step::Release { which, part } => if !held.is_empty() {
                    let pages = held.remove(which % held.len());
                    let half = Pfn(pages.start.0 + (pages.len() / 2).next_multiple_of(bit));
                    let (first, rest) = (PfnRange::new(pages.start, half), PfnRange::new(half, pages.end));
                    let released = if part && !first.is_empty() && !rest.is_empty() {
                        held.push(rest);
                        first
                    } else {
                        pages
                    };
                    // SAFETY: ours, unused.
                    unsafe { area.release(released) }.unwrap();
                    released.iter().for_each(|pfn| oracle[(pfn.0 - 1024) as usize] = false);
                },
            }
            let used = oracle.iter().filter(|&&used| used).count() as u64;
            let stats = area.stats();
            prop_assert_eq!((stats.used_pages, stats.available_pages), (used, 2048 - used));
            prop_assert_eq!(toy.count(|frame| frame == Frame::Taken) as u64, used);
            for (at, &used) in oracle.iter().enumerate() {
                prop_assert_eq!(toy.frame(1024 + at as u64) == Frame::Taken, used);
            }
        }
        for pages in held {
            // SAFETY: ours, unused.
            unsafe { area.release(pages) }.unwrap();
        }
        let stats = area.stats();
        prop_assert_eq!((stats.available_pages, stats.max_chunk_pages), (2048, 2048), "release restores everything");
        prop_assert_eq!(toy.count(|frame| frame == Frame::Taken), 0);
    }
}
