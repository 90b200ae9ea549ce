//! The free map against a plain list of pages.

use core::ptr::NonNull;
use std::boxed::Box;
use std::vec::Vec;

use proptest::prelude::*;

use crate::free_map::FreeMap;
use crate::meta::Spares;

fn stock(spares: &mut Spares, nr: usize) {
    #[repr(align(4096))]
    struct Page(#[expect(dead_code, reason = "room")] [u8; 4096]);
    for _ in 0..nr {
        let page = NonNull::from(Box::leak(Box::new(Page([0; 4096])))).cast();
        // SAFETY: leaked, used by nobody else.
        unsafe { spares.push(page) };
    }
}

fn map(nr_pages: u64) -> (FreeMap, Spares) {
    let mut spares = Spares::new();
    stock(&mut spares, 16);
    (FreeMap::new(nr_pages, &mut spares).unwrap(), spares)
}

fn first_of(free: &[bool], lo: u64, hi: u64, need: u64) -> Option<u64> {
    let hi = hi.min(free.len() as u64);
    (lo..hi).find(|&at| at + need <= hi && free[at as usize..(at + need) as usize].iter().all(|&free| free))
}

fn last_of(free: &[bool], lo: u64, hi: u64, need: u64) -> Option<u64> {
    let hi = hi.min(free.len() as u64);
    (lo..hi).rev().find(|&at| at + need <= hi && free[at as usize..(at + need) as usize].iter().all(|&free| free))
}

#[test]
fn a_fresh_map_is_one_free_run() {
    // VM-01
    for nr_pages in [1, 63, 64, 8191, 8192, 8193, 1 << 19, (1 << 19) + 77, 1 << 33, (1 << 36) - 1, 1 << 36] {
        let (map, _) = map(nr_pages);
        assert_eq!(map.longest(), nr_pages);
        assert_eq!(map.first_fit(0, nr_pages, nr_pages), Some(0));
        assert_eq!(map.last_fit(0, nr_pages, 1), Some(nr_pages - 1));
        assert_eq!(map.first_fit(0, u64::MAX, nr_pages + 1), None);
    }
}

#[test]
fn ranges_across_every_level_come_and_go() {
    let nr_pages = 1_u64 << 26;
    let (mut map, mut spares) = map(nr_pages);
    for (lo, hi) in [(0, 1), (63, 65), (8190, 8195), ((1 << 19) - 3, (1 << 19) + 9), (5, (1 << 25) + 4), (0, nr_pages)]
    {
        let missing = map.missing(lo, hi);
        stock(&mut spares, missing);
        let before = spares.len();
        map.take(lo, hi, &mut spares);
        assert_eq!(before - spares.len(), missing, "what was counted is what is used");
        assert_eq!(map.first_fit(lo, hi, 1), None);
        assert_eq!(map.longest(), lo.max(nr_pages - hi));
        map.free(lo, hi);
        assert_eq!(map.longest(), nr_pages);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Take { lo: u64, len: u64 },
    Free { nth: usize },
    First { lo: u64, len: u64, need: u64 },
    Last { lo: u64, len: u64, need: u64 },
}

fn op(nr_pages: u64) -> impl Strategy<Value = Op> {
    let len = prop_oneof![1_u64..5, 1_u64..200, 1_u64..9000];
    let need = prop_oneof![1_u64..5, 1_u64..200, 1_u64..9000];
    prop_oneof![
        3 => (0..nr_pages, len.clone()).prop_map(|(lo, len)| Op::Take { lo, len }),
        2 => any::<usize>().prop_map(|nth| Op::Free { nth }),
        2 => (0..nr_pages, 1..2 * nr_pages, need.clone()).prop_map(|(lo, len, need)| Op::First { lo, len, need }),
        1 => (0..nr_pages, 1..2 * nr_pages, need).prop_map(|(lo, len, need)| Op::Last { lo, len, need }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn agrees_with_a_list_of_pages(nr_pages in 1_u64..20_000, ops in proptest::collection::vec(op(20_000), 1..80)) {
        // VM-02
        let (mut map, mut spares) = map(nr_pages);
        let mut free = std::vec![true; nr_pages as usize];
        let mut taken: Vec<(u64, u64)> = Vec::new();
        for op in ops {
            match op {
                Op::Take { lo, len } => {
                    // The free run at or after `lo`, cut to `len`.
                    let Some(lo) = first_of(&free, lo.min(nr_pages), nr_pages, 1) else { continue };
                    let run = free[lo as usize..].iter().take_while(|&&free| free).count() as u64;
                    let hi = lo + len.min(run);
                    let missing = map.missing(lo, hi);
                    stock(&mut spares, missing);
                    map.take(lo, hi, &mut spares);
                    free[lo as usize..hi as usize].fill(false);
                    taken.push((lo, hi));
                }
                Op::Free { nth } if !taken.is_empty() => {
                    let (lo, hi) = taken.swap_remove(nth % taken.len());
                    map.free(lo, hi);
                    free[lo as usize..hi as usize].fill(true);
                }
                Op::Free { .. } => prop_assert_eq!(map.longest(), nr_pages),
                Op::First { lo, len, need } => {
                    prop_assert_eq!(map.first_fit(lo, lo + len, need), first_of(&free, lo, lo + len, need));
                }
                Op::Last { lo, len, need } => {
                    prop_assert_eq!(map.last_fit(lo, lo + len, need), last_of(&free, lo, lo + len, need));
                }
            }
            let longest = free.split(|&free| !free).map(<[bool]>::len).max().unwrap_or(0);
            prop_assert_eq!(map.longest(), longest as u64);
        }
    }
}
