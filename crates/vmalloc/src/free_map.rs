//! Which pages of the window are free: a bitmap under a tree of summaries.
//!
//! ```text
//!   Inner   sums  [ 1 | 2 3 | 4 5 6 7 | ... | 64..128 ]      a binary tree in an array: node i has children 2i, 2i+1
//!           children[64] ─▶ Inner or Leaf, or nothing: then that part is free, or taken, as a whole
//!   Leaf    sums  [ 1 | 2 3 | ... | 128..256 ]
//!           words [128] of 64 bits, a set bit is a free page
//! ```
//!
//! A summary says how long the free run at the start, the longest one, and the one at the end of its part are. First
//! fit is one way down: left if the left half has a run that is long enough, else across the middle, else right. Taking or
//! freeing a range recomputes the summaries above it. Both take the same few steps whether ten areas live or a million,
//! neither needs a descriptor for a free range, and freeing never needs memory: the parts at the edges of a range are
//! there since it was taken.
//!
//! **Locking:** every method that changes something takes `&mut self`; the tree's lock is the caller's business.

use core::ptr::NonNull;

use crate::meta::Spares;

mod search;

/// log2 of the pages of a leaf.
const LEAF_BITS: u32 = 13;
const LEAF_PAGES: u64 = 1 << LEAF_BITS;
const LEAF_WORDS: usize = (LEAF_PAGES / 64) as usize;
/// log2 of an inner node's children.
const FAN_BITS: u32 = 6;
const FAN: usize = 1 << FAN_BITS;

/// How the free pages of a part lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    start: u64,
    max: u64,
    end: u64,
}

impl Sum {
    const fn uniform(len: u64, free: bool) -> Self {
        let n = if free { len } else { 0 };
        Self { start: n, max: n, end: n }
    }

    /// The summary of two halves of `half` pages each.
    #[inline(always)]
    fn join(left: Self, right: Self, half: u64) -> Self {
        let across = left.end + right.start;
        let max = if left.max > right.max { left.max } else { right.max };
        Self {
            start: if left.start == half { half + right.start } else { left.start },
            max: if across > max { across } else { max },
            end: if right.end == half { half + left.end } else { right.end },
        }
    }

    #[inline]
    fn of_word(word: u64) -> Self {
        Self {
            start: u64::from(word.trailing_ones()),
            max: u64::from(longest_run(word)),
            end: u64::from(word.leading_ones()),
        }
    }
}

/// The longest run of ones. `runs[k]` has a bit wherever a run of `1 << k` ones ends; the answer is built from its binary
/// digits, highest first.
fn longest_run(word: u64) -> u32 {
    if word == u64::MAX {
        return 64;
    }
    let mut runs = [word, 0, 0, 0, 0, 0];
    for k in 1..6 {
        runs[k] = runs[k - 1] & (runs[k - 1] << (1 << (k - 1)));
    }
    let (mut ends, mut len) = (0_u64, 0_u32);
    for k in (0..6).rev() {
        let longer = if len == 0 { runs[k] } else { runs[k] & (ends << (1 << k)) };
        if longer != 0 {
            ends = longer;
            len += 1 << k;
        }
    }
    len
}

/// A summary in a leaf, where nothing is longer than [`LEAF_PAGES`].
#[derive(Clone, Copy)]
#[repr(C)]
struct SmallSum {
    start: u16,
    max: u16,
    end: u16,
}

impl From<Sum> for SmallSum {
    #[inline(always)]
    fn from(sum: Sum) -> Self {
        Self { start: sum.start as u16, max: sum.max as u16, end: sum.end as u16 }
    }
}

impl From<SmallSum> for Sum {
    #[inline(always)]
    fn from(sum: SmallSum) -> Self {
        Self { start: u64::from(sum.start), max: u64::from(sum.max), end: u64::from(sum.end) }
    }
}

#[repr(C)]
struct Leaf {
    words: [u64; LEAF_WORDS],
    sums: [SmallSum; 2 * LEAF_WORDS],
}

#[repr(C)]
struct Inner {
    sums: [Sum; 2 * FAN],
    children: [Option<NonNull<u8>>; FAN],
}

/// What a block for a node of this tree must hold.
pub(crate) const NODE_SIZE: usize =
    if size_of::<Leaf>() > size_of::<Inner>() { size_of::<Leaf>() } else { size_of::<Inner>() };

impl Leaf {
    fn new(free: bool) -> Self {
        let mut sums = [SmallSum::from(Sum::uniform(0, false)); 2 * LEAF_WORDS];
        let mut len = LEAF_PAGES;
        let mut first = 1;
        while first < 2 * LEAF_WORDS {
            sums[first..2 * first].fill(Sum::uniform(len, free).into());
            first *= 2;
            len /= 2;
        }
        Self { words: [if free { u64::MAX } else { 0 }; LEAF_WORDS], sums }
    }

    /// Marks `lo..hi` of the leaf and returns its new summary.
    fn mark(&mut self, lo: u64, hi: u64, free: bool) -> Sum {
        let (first, last) = ((lo / 64) as usize, ((hi - 1) / 64) as usize);
        for w in first..=last {
            let from = if w == first { lo % 64 } else { 0 };
            let to = if w == last { (hi - 1) % 64 + 1 } else { 64 };
            let mask = (u64::MAX >> (64 - (to - from))) << from;
            let word = &mut self.words[w % LEAF_WORDS];
            debug_assert_eq!(*word & mask, if free { 0 } else { mask }, "taken twice or freed twice");
            *word = if free { *word | mask } else { *word & !mask };
            self.sums[LEAF_WORDS + w % LEAF_WORDS] = Sum::of_word(*word).into();
        }
        let (mut l, mut r, mut half) = ((LEAF_WORDS + first) / 2, (LEAF_WORDS + last) / 2, 64);
        while l > 0 {
            let mut i = l;
            loop {
                let at = i % LEAF_WORDS;
                self.sums[at] = Sum::join(self.sums[2 * at].into(), self.sums[2 * at + 1].into(), half).into();
                if i >= r {
                    break;
                }
                i += 1;
            }
            (l, r, half) = (l / 2, r / 2, half * 2);
        }
        self.sums[1].into()
    }
}

impl Inner {
    fn new(child_pages: u64, free: bool) -> Self {
        let mut sums = [Sum::uniform(0, false); 2 * FAN];
        let mut len = child_pages * FAN as u64;
        let mut first = 1;
        while first < 2 * FAN {
            sums[first..2 * first].fill(Sum::uniform(len, free));
            first *= 2;
            len /= 2;
        }
        Self { sums, children: [None; FAN] }
    }
}

/// Pages covered by a node `height` levels above the leaves.
const fn covered(height: u32) -> u64 {
    1 << (LEAF_BITS + FAN_BITS * height)
}

/// The map. Page numbers count from the window's first page.
///
/// # Invariants
/// 1. `root` is a node of `height`; children of a node of height h are nodes of height h - 1, leaves at 0. All nodes are
///    blocks of [`NODE_SIZE`] bytes that belong to the map.
/// 2. A child that is absent stands for pages that are all free or all taken, as the summary in its place says.
/// 3. Summaries agree with what is below them; pages at and above `nr_pages` are taken.
#[derive(Debug)]
pub(crate) struct FreeMap {
    root: NonNull<u8>,
    height: u32,
    nr_pages: u64,
}

// SAFETY: owns its nodes; nothing is tied to a thread.
unsafe impl Send for FreeMap {}

impl FreeMap {
    /// How many levels a map of `nr_pages` has above its leaves.
    pub(crate) const fn height_for(nr_pages: u64) -> u32 {
        let mut height = 0;
        while covered(height) < nr_pages {
            height += 1;
        }
        height
    }

    /// A map of `nr_pages` free pages. Takes up to `2 + height` nodes from `spares`; `None` if they do not suffice.
    pub(crate) fn new(nr_pages: u64, spares: &mut Spares) -> Option<Self> {
        let height = Self::height_for(nr_pages);
        let all = covered(height);
        if spares.len() < 1 + missing(None, height, 0, nr_pages.min(all - 1), all) {
            return None;
        }
        let root = new_node(spares, height, true)?;
        // INVARIANT: one node, all of it free (1, 2).
        let mut map = Self { root, height, nr_pages };
        if nr_pages < all {
            // INVARIANT: what lies above the window is taken (3).
            map.mark(nr_pages, all, false, spares);
        }
        Some(map)
    }

    /// Nodes that [`take`](Self::take) of the range will want from the spares.
    pub(crate) fn missing(&self, lo: u64, hi: u64) -> usize {
        missing(Some(self.root), self.height, 0, lo, hi)
    }

    /// Marks `lo..hi`, which is free, as taken. The spares hold [`missing`](Self::missing) nodes at least.
    pub(crate) fn take(&mut self, lo: u64, hi: u64, spares: &mut Spares) {
        self.mark(lo, hi, false, spares);
    }

    /// Marks `lo..hi`, which was taken as it is, as free.
    pub(crate) fn free(&mut self, lo: u64, hi: u64) {
        self.mark(lo, hi, true, &mut Spares::new());
    }

    fn mark(&mut self, lo: u64, hi: u64, free: bool, spares: &mut Spares) {
        debug_assert!(lo < hi && hi <= covered(self.height), "{lo}..{hi}");
        mark(self.root, self.height, lo, hi, free, spares);
    }

    /// The longest free run, in pages.
    pub(crate) fn longest(&self) -> u64 {
        if self.height == 0 {
            // SAFETY: the root is a leaf (invariant 1).
            Sum::from(unsafe { self.root.cast::<Leaf>().as_ref() }.sums[1]).max
        } else {
            // SAFETY: the root is an inner node (invariant 1).
            unsafe { self.root.cast::<Inner>().as_ref() }.sums[1].max
        }
    }

    /// Where the lowest free run of `need` pages inside `lo..hi` starts.
    pub(crate) fn first_fit(&self, lo: u64, hi: u64, need: u64) -> Option<u64> {
        if lo == 0 && hi >= self.nr_pages {
            return search::first_anywhere(self, need);
        }
        search::first(self, lo, hi.min(self.nr_pages), need)
    }

    /// Where the highest free run of `need` pages inside `lo..hi` starts.
    pub(crate) fn last_fit(&self, lo: u64, hi: u64, need: u64) -> Option<u64> {
        search::last(self, lo, hi.min(self.nr_pages), need)
    }

    /// Hands every node to `release`.
    ///
    /// # Safety
    /// The map is not used any more.
    pub(crate) unsafe fn dismantle(&mut self, release: &mut dyn FnMut(NonNull<u8>)) {
        dismantle(self.root, self.height, release);
    }
}

fn new_node(spares: &mut Spares, height: u32, free: bool) -> Option<NonNull<u8>> {
    let block = spares.pop()?;
    if height == 0 {
        // SAFETY: spare blocks are unused, page-aligned and of `NODE_SIZE` at least.
        unsafe { block.cast::<Leaf>().write(Leaf::new(free)) };
    } else {
        // SAFETY: as above.
        unsafe { block.cast::<Inner>().write(Inner::new(covered(height - 1), free)) };
    }
    Some(block)
}

/// The part of `lo..hi` inside child `i` of `size` pages, relative to the child.
#[inline]
fn clip(i: u64, size: u64, lo: u64, hi: u64) -> (u64, u64) {
    let base = i * size;
    (lo.saturating_sub(base), (hi - base).min(size))
}

/// How many nodes are absent on the way to the edges of `lo..hi`, in the node at `node` which covers pages from `base`.
fn missing(node: Option<NonNull<u8>>, height: u32, base: u64, lo: u64, hi: u64) -> usize {
    if height == 0 {
        return 0;
    }
    let size = covered(height - 1);
    let mut count = 0;
    let (first, last) = ((lo - base) / size, (hi - 1 - base) / size);
    // Only the edges can be partial.
    for i in [first, last].iter().take(if first == last { 1 } else { 2 }) {
        let child_base = base + i * size;
        let (from, to) = (lo.max(child_base), hi.min(child_base + size));
        if to - from == size {
            continue;
        }
        // SAFETY: above height 0 nodes are `Inner` (invariant 1).
        let child = node.and_then(|node| unsafe { node.cast::<Inner>().as_ref() }.children[*i as usize % FAN]);
        count += usize::from(child.is_none()) + missing(child, height - 1, child_base, from, to);
    }
    count
}

fn mark(node: NonNull<u8>, height: u32, lo: u64, hi: u64, free: bool, spares: &mut Spares) -> Sum {
    if height == 0 {
        // SAFETY: nodes of height 0 are `Leaf` (invariant 1); `&mut FreeMap` excludes others.
        return unsafe { node.cast::<Leaf>().as_mut() }.mark(lo, hi, free);
    }
    // SAFETY: above height 0 nodes are `Inner` (invariant 1); `&mut FreeMap` excludes others.
    let inner = unsafe { node.cast::<Inner>().as_mut() };
    let size = covered(height - 1);
    let (first, last) = ((lo / size) as usize, ((hi - 1) / size) as usize);
    for i in first..=last {
        let (from, to) = clip(i as u64, size, lo, hi);
        let i = i % FAN;
        let sum = match inner.children[i] {
            Some(child) => mark(child, height - 1, from, to, free, spares),
            None if to - from == size => Sum::uniform(size, free),
            None => {
                // The caller has counted: a node is there. Without one the range stays taken, which loses addresses only.
                let was_free = inner.sums[FAN + i].start == size;
                let Some(child) = new_node(spares, height - 1, was_free) else {
                    debug_assert!(false, "no spare node");
                    continue;
                };
                inner.children[i] = Some(child);
                mark(child, height - 1, from, to, free, spares)
            }
        };
        inner.sums[FAN + i] = sum;
    }
    let (mut l, mut r, mut half) = ((FAN + first) / 2, (FAN + last) / 2, size);
    while l > 0 {
        let mut i = l;
        loop {
            let at = i % FAN;
            inner.sums[at] = Sum::join(inner.sums[2 * at], inner.sums[2 * at + 1], half);
            if i >= r {
                break;
            }
            i += 1;
        }
        (l, r, half) = (l / 2, r / 2, half * 2);
    }
    inner.sums[1]
}

fn dismantle(node: NonNull<u8>, height: u32, release: &mut dyn FnMut(NonNull<u8>)) {
    if height > 0 {
        // SAFETY: above height 0 nodes are `Inner` (invariant 1); the map is owned.
        let children = unsafe { node.cast::<Inner>().as_ref() }.children;
        for child in children.into_iter().flatten() {
            dismantle(child, height - 1, release);
        }
    }
    release(node);
}
