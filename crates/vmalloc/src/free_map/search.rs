//! First and last fit: one walk over the summaries, upwards or mirrored.
//!
//! The walk visits parts in order and carries the free run that ends where it stands. A part that lies inside the bounds
//! and has no run that is long enough is passed over by its summary alone, so at most one way down is taken, and one more
//! for each bound.

use core::ptr::NonNull;

use super::{FAN, FreeMap, Inner, LEAF_WORDS, Leaf, Sum, covered};

pub(super) fn first(map: &FreeMap, lo: u64, hi: u64, need: u64) -> Option<u64> {
    if need == 0 || lo >= hi {
        return None;
    }
    Walk::<false> { need, lo, hi, run: 0, run_at: 0 }.node(map.root, map.height, 0)
}

pub(super) fn last(map: &FreeMap, lo: u64, hi: u64, need: u64) -> Option<u64> {
    if need == 0 || lo >= hi {
        return None;
    }
    // Mirrored: page p stands at all - 1 - p.
    let all = covered(map.height);
    let found = Walk::<true> { need, lo: all - hi, hi: all - lo, run: 0, run_at: 0 }.node(map.root, map.height, 0)?;
    Some(all - found - need)
}

/// [`first`] without bounds: one way down, no run to carry. What is too long for the left half and for the middle lies in the
/// right half, and the root has been asked whether it is there at all.
pub(super) fn first_anywhere(map: &FreeMap, need: u64) -> Option<u64> {
    if need == 0 || map.longest() < need {
        return None;
    }
    let (mut node, mut height, mut base) = (map.root, map.height, 0);
    while height > 0 {
        // SAFETY: above height 0 nodes are `Inner` (invariant 1 of `FreeMap`), which is borrowed.
        let inner = unsafe { node.cast::<Inner>().as_ref() };
        let (mut i, mut half) = (1, covered(height) / 2);
        while i < FAN {
            let [left, right] = [inner.sums[2 * i], inner.sums[2 * i + 1]];
            if left.max >= need {
                i *= 2;
            } else if left.end + right.start >= need {
                return Some(base + half - left.end);
            } else {
                i = 2 * i + 1;
                base += half;
            }
            half /= 2;
        }
        height -= 1;
        match inner.children[i % FAN] {
            Some(child) => node = child,
            None => return Some(base),
        }
    }
    // SAFETY: nodes of height 0 are `Leaf` (invariant 1 of `FreeMap`), which is borrowed.
    let leaf = unsafe { node.cast::<Leaf>().as_ref() };
    let (mut i, mut half) = (1, covered(0) / 2);
    while i < LEAF_WORDS {
        let [left, right] = [leaf.sums[2 * i], leaf.sums[2 * i + 1]];
        if u64::from(left.max) >= need {
            i *= 2;
        } else if u64::from(left.end) + u64::from(right.start) >= need {
            return Some(base + half - u64::from(left.end));
        } else {
            i = 2 * i + 1;
            base += half;
        }
        half /= 2;
    }
    Walk::<false> { need, lo: 0, hi: u64::MAX, run: 0, run_at: 0 }.word(leaf.words[i % LEAF_WORDS], base)
}

struct Walk<const MIRROR: bool> {
    need: u64,
    lo: u64,
    hi: u64,
    /// The free run that ends where the walk stands, and where it started.
    run: u64,
    run_at: u64,
}

impl<const MIRROR: bool> Walk<MIRROR> {
    fn grow(&mut self, at: u64, len: u64) -> Option<u64> {
        if self.run == 0 {
            self.run_at = at;
        }
        self.run += len;
        (self.run >= self.need).then_some(self.run_at)
    }

    /// A part that is free, or taken, as a whole.
    fn uniform(&mut self, base: u64, len: u64, free: bool) -> Option<u64> {
        if !free {
            self.run = 0;
            return None;
        }
        let (from, to) = (base.max(self.lo), (base + len).min(self.hi));
        if from < to { self.grow(from, to - from) } else { None }
    }

    /// Passes a part by its summary if that is possible; otherwise says that it has to be entered.
    fn pass(&mut self, sum: Sum, base: u64, len: u64) -> Result<Option<u64>, Enter> {
        if base + len <= self.lo || base >= self.hi {
            return Ok(None);
        }
        if base < self.lo || base + len > self.hi {
            return if sum.start == len || sum.max == 0 {
                Ok(self.uniform(base, len, sum.max != 0))
            } else {
                Err(Enter)
            };
        }
        let (start, end) = if MIRROR { (sum.end, sum.start) } else { (sum.start, sum.end) };
        if start > 0 || self.run > 0 {
            let (run, run_at) = (self.run, self.run_at);
            if start > 0
                && let Some(found) = self.grow(base, start)
            {
                return Ok(Some(found));
            }
            if start == len {
                return Ok(None);
            }
            if sum.max >= self.need {
                (self.run, self.run_at) = (run, run_at);
                return Err(Enter);
            }
        } else if sum.max >= self.need {
            return Err(Enter);
        }
        (self.run, self.run_at) = (end, base + len - end);
        Ok(None)
    }

    fn node(&mut self, node: NonNull<u8>, height: u32, base: u64) -> Option<u64> {
        if height == 0 {
            // SAFETY: nodes of height 0 are `Leaf` (invariant 1 of `FreeMap`), which is borrowed.
            self.leaf(unsafe { node.cast::<Leaf>().as_ref() }, 1, base, covered(0))
        } else {
            // SAFETY: above height 0 nodes are `Inner` (invariant 1 of `FreeMap`), which is borrowed.
            self.inner(unsafe { node.cast::<Inner>().as_ref() }, height, 1, base, covered(height))
        }
    }

    fn inner(&mut self, inner: &Inner, height: u32, i: usize, base: u64, len: u64) -> Option<u64> {
        let sum = inner.sums[i % (2 * FAN)];
        if let Ok(outcome) = self.pass(sum, base, len) {
            return outcome;
        }
        if i >= FAN {
            return match inner.children[i % FAN] {
                Some(child) => self.node(child, height - 1, base),
                None => self.uniform(base, len, sum.start == len),
            };
        }
        let (near, far) = if MIRROR { (2 * i + 1, 2 * i) } else { (2 * i, 2 * i + 1) };
        let half = len / 2;
        match self.inner(inner, height, near, base, half) {
            Some(found) => Some(found),
            None => self.inner(inner, height, far, base + half, half),
        }
    }

    fn leaf(&mut self, leaf: &Leaf, i: usize, base: u64, len: u64) -> Option<u64> {
        if let Ok(outcome) = self.pass(leaf.sums[i % (2 * LEAF_WORDS)].into(), base, len) {
            return outcome;
        }
        if i >= LEAF_WORDS {
            return self.word(leaf.words[i % LEAF_WORDS], base);
        }
        let (near, far) = if MIRROR { (2 * i + 1, 2 * i) } else { (2 * i, 2 * i + 1) };
        let half = len / 2;
        match self.leaf(leaf, near, base, half) {
            Some(found) => Some(found),
            None => self.leaf(leaf, far, base + half, half),
        }
    }

    fn word(&mut self, word: u64, base: u64) -> Option<u64> {
        let mut word = if MIRROR { word.reverse_bits() } else { word };
        if base < self.lo {
            word &= u64::MAX << (self.lo - base).min(63);
        }
        if base + 64 > self.hi {
            word &= u64::MAX >> (base + 64 - self.hi).min(63);
        }
        let mut at = 0;
        while at < 64 {
            let rest = word >> at;
            let ones = u64::from((!rest).trailing_zeros()).min(64 - at);
            if ones > 0 {
                if let Some(found) = self.grow(base + at, ones) {
                    return Some(found);
                }
                at += ones;
            }
            if at < 64 {
                self.run = 0;
                at += u64::from((word >> at).trailing_zeros()).min(64 - at);
            }
        }
        None
    }
}

/// The part has to be entered.
struct Enter;
