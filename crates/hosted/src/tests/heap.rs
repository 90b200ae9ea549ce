//! The global heap, called directly: the test program itself keeps its own allocator.

use std::alloc::{GlobalAlloc, Layout};

use proptest::prelude::*;

use crate::HostedAlloc;

static HEAP: HostedAlloc = HostedAlloc::new();

/// A live block and what is in it.
struct Block {
    start: *mut u8,
    layout: Layout,
    seed: u8,
}

impl Block {
    fn new(layout: Layout, zeroed: bool, seed: u8) -> Self {
        // SAFETY: the size is not zero.
        let start = unsafe { if zeroed { HEAP.alloc_zeroed(layout) } else { HEAP.alloc(layout) } };
        assert!(!start.is_null());
        assert_eq!(start.addr() % layout.align(), 0);
        if zeroed {
            // SAFETY: ours, initialised by the heap.
            assert!(unsafe { std::slice::from_raw_parts(start, layout.size()) }.iter().all(|&byte| byte == 0));
        }
        let block = Self { start, layout, seed };
        block.fill();
        block
    }

    fn fill(&self) {
        // SAFETY: ours.
        unsafe { self.start.write_bytes(self.seed, self.layout.size()) };
    }

    fn check(&self, len: usize) {
        // SAFETY: ours, filled.
        let bytes = unsafe { std::slice::from_raw_parts(self.start, len) };
        assert!(bytes.iter().all(|&byte| byte == self.seed), "{:?}", self.layout);
    }

    fn resize(&mut self, size: usize) {
        // SAFETY: ours; the size is not zero and small.
        self.start = unsafe { HEAP.realloc(self.start, self.layout, size) };
        assert!(!self.start.is_null());
        assert_eq!(self.start.addr() % self.layout.align(), 0);
        self.check(size.min(self.layout.size()));
        self.layout = Layout::from_size_align(size, self.layout.align()).unwrap();
        self.fill();
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.start.addr()..self.start.addr() + self.layout.size()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.check(self.layout.size());
        // SAFETY: ours, used no more.
        unsafe { HEAP.dealloc(self.start, self.layout) };
    }
}

// SAFETY: a block is reached through its owner only.
unsafe impl Send for Block {}

#[derive(Clone, Debug)]
enum Op {
    Alloc { size: usize, align: u32, zeroed: bool },
    Resize { nth: usize, size: usize },
    Free { nth: usize },
}

/// Sizes around every boundary: classes, pages, medium classes, the largest block of the page allocator.
fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 1_usize..=1100,
        4 => (0_u32..=23, 0_usize..3).prop_map(|(shift, off)| (1_usize << shift) + off),
        3 => 1_usize..=70_000,
        1 => 1_usize..=(5 << 20),
    ]
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (sizes(), 0_u32..=14, any::<bool>()).prop_map(|(size, align, zeroed)| Op::Alloc { size, align, zeroed }),
        3 => (any::<usize>(), sizes()).prop_map(|(nth, size)| Op::Resize { nth, size }),
        3 => any::<usize>().prop_map(|nth| Op::Free { nth }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn blocks_are_aligned_disjoint_and_keep_what_is_in_them(ops in proptest::collection::vec(ops(), 1..60)) {
        let mut live: Vec<Block> = Vec::new();
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Alloc { size, align, zeroed } => {
                    live.push(Block::new(Layout::from_size_align(size, 1 << align).unwrap(), zeroed, step as u8));
                }
                Op::Resize { nth, size } if !live.is_empty() => {
                    let nth = nth % live.len();
                    live[nth].resize(size);
                }
                Op::Free { nth } if !live.is_empty() => {
                    live.swap_remove(nth % live.len());
                }
                _ => {}
            }
            let mut ranges: Vec<_> = live.iter().map(Block::range).collect();
            ranges.sort_by_key(|range| range.start);
            for pair in ranges.windows(2) {
                prop_assert!(pair[0].end <= pair[1].start, "{pair:?} overlap");
            }
        }
    }
}

#[test]
fn blocks_travel_between_threads_that_come_and_go() {
    for round in 0..10_usize {
        let blocks: Vec<Block> = std::thread::spawn(move || {
            (1..200).map(|n| Block::new(Layout::from_size_align(n * 13 + round, 8).unwrap(), false, n as u8)).collect()
        })
        .join()
        .unwrap();
        std::thread::spawn(move || drop(blocks)).join().unwrap();
    }
}

#[test]
fn shortage_is_null_and_errno_stays() {
    // SAFETY: the location is this thread's own.
    unsafe { *libc::__errno_location() = 99 };
    let huge = Layout::from_size_align(1 << 50, 8).unwrap();
    // SAFETY: the size is not zero.
    assert!(unsafe { HEAP.alloc(huge) }.is_null());
    let mut block = Block::new(Layout::from_size_align(100, 8).unwrap(), false, 1);
    // SAFETY: the block stays ours when it cannot be resized.
    assert!(unsafe { HEAP.realloc(block.start, block.layout, 1 << 50) }.is_null());
    block.check(100);
    block.resize(6 << 20);
    drop(block);
    // SAFETY: as above.
    assert_eq!(unsafe { *libc::__errno_location() }, 99);
}
