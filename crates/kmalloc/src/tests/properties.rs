//! Random programs against a plain oracle, with contents; and every page allocation failing in turn.

use core::ptr::NonNull;
use std::vec::Vec;

use kmem_gfp::{Gfp, NodeId};
use proptest::prelude::*;

use super::machine::{TestEnv, slabs, usable, with_config};
use crate::{KMALLOC_MAX_SIZE, Kmalloc, KmallocConfig, ZERO_SIZE_PTR};

#[derive(Clone, Debug)]
enum Op {
    Alloc { size: usize, zero: bool, accounted: bool, node: Option<u32> },
    Realloc { nth: usize, size: usize, zero: bool },
    Free { nth: usize },
    FreeRcu { nth: usize },
    FreeBulk { count: usize },
    Reap,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        1 => Just(0_usize),
        8 => 1..=300_usize,
        4 => 300..=8200_usize,
        2 => 8193..=200_000_usize,
        1 => (3_usize << 20)..=KMALLOC_MAX_SIZE + 2,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let node = prop_oneof![3 => Just(None), 1 => (0..2_u32).prop_map(Some)];
    prop_oneof![
        6 => (size(), any::<bool>(), any::<bool>(), node)
            .prop_map(|(size, zero, accounted, node)| Op::Alloc { size, zero, accounted, node }),
        4 => (any::<usize>(), size(), any::<bool>()).prop_map(|(nth, size, zero)| Op::Realloc { nth, size, zero }),
        4 => any::<usize>().prop_map(|nth| Op::Free { nth }),
        1 => any::<usize>().prop_map(|nth| Op::FreeRcu { nth }),
        1 => (1..6_usize).prop_map(|count| Op::FreeBulk { count }),
        1 => Just(Op::Reap),
    ]
}

/// A block as the oracle knows it: its address, the bytes asked for, and what they hold.
struct Live {
    block: NonNull<u8>,
    size: usize,
    seed: u8,
}

impl Live {
    fn byte(seed: u8, at: usize) -> u8 {
        (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8).wrapping_add(seed)
    }

    fn fill(block: NonNull<u8>, size: usize, seed: u8) -> Self {
        for at in (0..size).step_by(Self::step(size)) {
            // SAFETY: the block has `size` bytes.
            unsafe { block.add(at).write(Self::byte(seed, at)) };
        }
        Self { block, size, seed }
    }

    /// Larger blocks are sampled.
    fn step(size: usize) -> usize {
        match size {
            0..=512 => 1,
            513..=16384 => 13,
            _ => 509,
        }
    }

    fn check(&self, len: usize) {
        for at in (0..self.size.min(len)).step_by(Self::step(self.size)) {
            // SAFETY: the block has these bytes, and `fill` wrote them.
            assert_eq!(unsafe { self.block.add(at).read() }, Self::byte(self.seed, at), "byte {at} of {}", self.size);
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.block.addr().get(), other.block.addr().get());
        self.size > 0 && other.size > 0 && a < b + other.size && b < a + self.size
    }
}

fn run(kmalloc: &Kmalloc<'_, &TestEnv>, ops: &[Op]) {
    let mut live: Vec<Live> = Vec::new();
    let mut seed = 0_u8;
    let gfp = |zero: bool, accounted: bool| {
        let mut gfp = Gfp::KERNEL | Gfp::NOWARN;
        gfp.set(Gfp::ZERO, zero);
        gfp.set(Gfp::ACCOUNT, accounted);
        gfp
    };
    let zeroed = |block: NonNull<u8>, size: usize| {
        // SAFETY: the block has `size` bytes, zeroed.
        (0..size).step_by(Live::step(size)).all(|at| unsafe { block.add(at).read() } == 0)
    };
    for op in ops {
        seed = seed.wrapping_add(17);
        match *op {
            Op::Alloc { size, zero, accounted, node } => {
                let got = kmalloc.kmalloc_node(size, gfp(zero, accounted), node.map(NodeId));
                assert!(size <= KMALLOC_MAX_SIZE || got.is_err());
                let Ok(block) = got else { continue };
                assert_eq!(block == ZERO_SIZE_PTR, size == 0);
                assert!(usable(kmalloc, block.as_ptr()).unwrap() >= size);
                assert_eq!(usable(kmalloc, block.as_ptr()), Ok(kmalloc.kmalloc_size_roundup(size)));
                assert!(!zero || zeroed(block, size));
                let new = Live::fill(block, size, seed);
                assert!(!live.iter().any(|old| old.overlaps(&new)), "no two blocks overlap");
                live.push(new);
            }
            Op::Realloc { nth, size, zero } if !live.is_empty() => {
                let nth = nth % live.len();
                // SAFETY: the block is the oracle's; the result replaces it.
                let got = unsafe { kmalloc.krealloc(live[nth].block.as_ptr(), size, gfp(zero, false)) };
                let Ok(block) = got else {
                    live[nth].check(usize::MAX);
                    continue;
                };
                let old = live.swap_remove(nth);
                let moved = Live { block, size: old.size.min(size), seed: old.seed };
                if Live::step(old.size) == Live::step(moved.size) {
                    moved.check(size);
                }
                let new = Live::fill(block, size, seed);
                assert!(!live.iter().any(|old| old.overlaps(&new)), "no two blocks overlap");
                live.push(new);
            }
            Op::Free { nth } if !live.is_empty() => {
                let old = live.swap_remove(nth % live.len());
                old.check(usize::MAX);
                // SAFETY: the block is the oracle's.
                unsafe { kmalloc.kfree(old.block.as_ptr()) }.unwrap();
            }
            Op::FreeRcu { nth } if !live.is_empty() => {
                let old = live.swap_remove(nth % live.len());
                old.check(usize::MAX);
                // SAFETY: the block is the oracle's, and nobody reads it. A head needs 16 bytes.
                unsafe {
                    if usable(kmalloc, old.block.as_ptr()).unwrap() >= 16 {
                        kmalloc.kfree_rcu(old.block.as_ptr(), old.block.cast()).unwrap();
                    } else {
                        kmalloc.kfree_rcu_mightsleep(old.block.as_ptr()).unwrap();
                    }
                }
            }
            Op::FreeBulk { count } => {
                let from = live.len().saturating_sub(count);
                let blocks: Vec<_> = live.drain(from..).map(|old| old.block.as_ptr()).collect();
                // SAFETY: the blocks are the oracle's.
                unsafe { kmalloc.kfree_bulk(&blocks) }.unwrap();
            }
            Op::Reap => {
                kmalloc.reap();
            }
            _ => {}
        }
    }
    for old in live {
        old.check(usize::MAX);
        // SAFETY: the block is the oracle's.
        unsafe { kmalloc.kfree(old.block.as_ptr()) }.unwrap();
    }
    kmalloc.kfree_rcu_barrier();
    assert_eq!(kmalloc.large_pages(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn blocks_keep_their_contents_and_everything_comes_back(
        ops in proptest::collection::vec(op(), 1..120),
        cgroup in any::<bool>(),
    ) {
        with_config(KmallocConfig { cgroup, ..KmallocConfig::default() }, |kmalloc, env| {
            kmalloc.slabs().shrink_all();
            let start = env.pages.in_use();
            run(kmalloc, &ops);
            kmalloc.slabs().shrink_all();
            // Sheaves that the program needed stay with their caches; everything else is back.
            let metadata = kmalloc.slabs().stats().metadata_pages;
            let slabs = kmalloc.slabs().stats().slab_pages();
            assert_eq!(env.pages.in_use() as u64, metadata + slabs, "{start} pages at the start");
        });
    }
}

#[test]
fn each_page_allocation_may_fail_and_nothing_is_lost() {
    let mut ops = Vec::new();
    for round in 0..3 {
        for size in [8, 96, 700, 5000, 8192, 9000, 300_000] {
            ops.push(Op::Alloc { size: size + round, zero: round == 1, accounted: round == 2, node: None });
        }
        for nth in 0..4 {
            ops.push(Op::Realloc { nth: nth * 3, size: 12_000 * (nth + 1), zero: round == 0 });
        }
        ops.push(Op::FreeRcu { nth: 2 });
        ops.push(Op::Free { nth: 5 });
    }
    for n in 0.. {
        let env = TestEnv::new(4096, 2);
        let slabs = slabs(&env);
        let kmalloc = Kmalloc::new(&slabs, KmallocConfig::default()).unwrap();
        env.pages.fail_nth(Some(n));
        run(&kmalloc, &ops);
        let reached = env.pages.calls() > n;
        env.pages.fail_nth(None);
        slabs.shrink_all();
        let stats = slabs.stats();
        assert_eq!(env.pages.in_use() as u64, stats.metadata_pages + stats.slab_pages(), "after failure {n}");
        if !reached {
            assert!(n > 10, "the program allocates pages");
            break;
        }
    }
}
