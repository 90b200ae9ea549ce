//! What no allocator may do: hand out the same bytes twice, or touch what it has handed out.
//!
//! *Overlap*: a bitmap has a bit for every 8 bytes of the machine's memory. An allocation sets the bits of its bytes and finds one
//! set already if they belong to somebody. *Corruption*: every object is filled with a pattern that depends on it, which must be
//! there, whole, when it is freed; of a page block, the first and last 64 bytes of each page are filled.

use crate::program::Ref;
use serde::Serialize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

const GRAIN: usize = 8;
const WORD_BYTES: usize = GRAIN * 64;
const EDGE: usize = 64;

/// What was found wrong.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct IntegrityCounts {
    /// Allocations that overlap something live, or lie outside the machine's memory.
    pub overlaps: u64,
    /// Objects and pages whose pattern was damaged while they were live.
    pub corrupt: u64,
    /// Frees of live memory that the allocator refused as free already.
    pub double_free: u64,
    /// Objects and pages that the machine still counts as in use after everything was freed.
    pub leaked: u64,
    /// Frees of live memory that the allocator refused for another reason.
    pub refused_free: u64,
    /// Bytes that were filled and checked.
    pub checked_bytes: u64,
}

impl IntegrityCounts {
    /// True if nothing was found.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.overlaps + self.corrupt + self.double_free + self.leaked + self.refused_free == 0
    }
}

/// The bitmap and the counts.
#[derive(Debug)]
pub struct Integrity {
    window: Range<usize>,
    bits: Box<[AtomicU64]>,
    pub(crate) overlaps: AtomicU64,
    corrupt: AtomicU64,
    pub(crate) double_free: AtomicU64,
    pub(crate) refused_free: AtomicU64,
    checked: AtomicU64,
}

impl Integrity {
    /// Books for a machine whose memory is at `window`.
    #[must_use]
    pub fn new(window: Range<usize>) -> Self {
        let words = window.len().div_ceil(WORD_BYTES);
        Self {
            window,
            bits: (0..words).map(|_| AtomicU64::new(0)).collect(),
            overlaps: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            double_free: AtomicU64::new(0),
            refused_free: AtomicU64::new(0),
            checked: AtomicU64::new(0),
        }
    }

    /// The counts; leaks are found elsewhere.
    #[must_use]
    pub fn counts(&self) -> IntegrityCounts {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        IntegrityCounts {
            overlaps: get(&self.overlaps),
            corrupt: get(&self.corrupt),
            double_free: get(&self.double_free),
            leaked: 0,
            refused_free: get(&self.refused_free),
            checked_bytes: get(&self.checked),
        }
    }

    /// Each word of the bitmap that `bytes` at `start` touch, with the bits they mean.
    fn words(&self, start: usize, bytes: usize) -> Option<impl Iterator<Item = (&AtomicU64, u64)>> {
        let end = start.checked_add(bytes)?;
        if start < self.window.start || end > self.window.end {
            return None;
        }
        let first = (start - self.window.start) / GRAIN;
        let last = (end - self.window.start).div_ceil(GRAIN).max(first + 1);
        let words = self.bits.get(first / 64..last.div_ceil(64))?;
        Some(words.iter().enumerate().map(move |(n, word)| {
            let base = (first / 64 + n) * 64;
            let (from, to) = (first.saturating_sub(base), (last - base).min(64));
            let below = if to == 64 { u64::MAX } else { (1 << to) - 1 };
            (word, below & (u64::MAX << from))
        }))
    }

    /// Books bytes as live; false, and counted, if some are live already or are not the machine's.
    pub(crate) fn claim(&self, start: NonNull<u8>, bytes: usize) -> bool {
        let fine = self.words(start.as_ptr() as usize, bytes).is_some_and(|words| {
            // Relaxed: a bit is set by the owner of the bytes, who got them from the allocator, which orders.
            words.fold(true, |fine, (word, mask)| word.fetch_or(mask, Ordering::Relaxed) & mask == 0 && fine)
        });
        if !fine {
            self.overlaps.fetch_add(1, Ordering::Relaxed);
        }
        fine
    }

    /// Books bytes as free again.
    pub(crate) fn release(&self, start: NonNull<u8>, bytes: usize) {
        for (word, mask) in self.words(start.as_ptr() as usize, bytes).into_iter().flatten() {
            word.fetch_and(!mask, Ordering::Relaxed);
        }
    }

    /// Fills an object.
    ///
    /// # Safety
    /// `bytes` at `start` are writable and belong to the caller.
    pub(crate) unsafe fn fill(&self, start: NonNull<u8>, bytes: usize, used: Ref) {
        // SAFETY: the caller's.
        unsafe { fill(start.as_ptr(), bytes, seed(used)) }
    }

    /// Checks an object; damage is counted.
    ///
    /// # Safety
    /// `bytes` at `start` are readable and belong to the caller, and were filled by [`fill`](Self::fill) for the same `used`.
    pub(crate) unsafe fn check(&self, start: NonNull<u8>, bytes: usize, used: Ref) {
        self.checked.fetch_add(bytes as u64, Ordering::Relaxed);
        // SAFETY: the caller's.
        if !unsafe { holds(start.as_ptr(), bytes, seed(used)) } {
            self.corrupt.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Fills the edges of a page, which is number `at` of its block.
    ///
    /// # Safety
    /// 4096 bytes at `page` are writable and belong to the caller.
    pub(crate) unsafe fn fill_page(&self, page: NonNull<u8>, at: u32, used: Ref) {
        let seed = seed(used) ^ u64::from(at) << 17;
        // SAFETY: both edges lie in the page.
        unsafe {
            fill(page.as_ptr(), EDGE, seed);
            fill(page.as_ptr().add(4096 - EDGE), EDGE, !seed);
        }
    }

    /// Checks the edges of a page.
    ///
    /// # Safety
    /// As for [`check`](Self::check), with [`fill_page`](Self::fill_page).
    pub(crate) unsafe fn check_page(&self, page: NonNull<u8>, at: u32, used: Ref) {
        let seed = seed(used) ^ u64::from(at) << 17;
        self.checked.fetch_add(2 * EDGE as u64, Ordering::Relaxed);
        // SAFETY: both edges lie in the page.
        let fine = unsafe { holds(page.as_ptr(), EDGE, seed) && holds(page.as_ptr().add(4096 - EDGE), EDGE, !seed) };
        if !fine {
            self.corrupt.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn seed(used: Ref) -> u64 {
    (u64::from(used.slot) << 32 | u64::from(used.turn)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// # Safety
/// `bytes` at `start` are writable.
unsafe fn fill(start: *mut u8, bytes: usize, seed: u64) {
    let words = bytes / 8;
    for n in 0..words {
        // SAFETY: `n * 8 + 8 <= bytes`.
        unsafe { start.add(n * 8).cast::<u64>().write_unaligned(seed.wrapping_add(n as u64)) };
    }
    for (n, b) in (words * 8..bytes).zip(seed.to_le_bytes()) {
        // SAFETY: `n < bytes`.
        unsafe { start.add(n).write(b) };
    }
}

/// # Safety
/// `bytes` at `start` are readable.
unsafe fn holds(start: *const u8, bytes: usize, seed: u64) -> bool {
    let words = bytes / 8;
    let mut wrong = 0;
    for n in 0..words {
        // SAFETY: `n * 8 + 8 <= bytes`.
        wrong |= unsafe { start.add(n * 8).cast::<u64>().read_unaligned() } ^ seed.wrapping_add(n as u64);
    }
    for (n, b) in (words * 8..bytes).zip(seed.to_le_bytes()) {
        // SAFETY: `n < bytes`.
        wrong |= u64::from(unsafe { start.add(n).read() } ^ b);
    }
    wrong == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const USED: Ref = Ref { slot: 3, turn: 8, seen: false };

    #[test]
    fn bytes_belong_to_one_at_a_time() {
        let mut memory = vec![0u64; 4096];
        let base = NonNull::new(memory.as_mut_ptr().cast::<u8>()).unwrap();
        let start = base.as_ptr() as usize;
        let at = |n: usize| NonNull::new((start + n) as *mut u8).unwrap();
        let i = Integrity::new(start..start + 32768);
        assert!(i.claim(at(512), 1024) && i.claim(at(0), 512) && i.claim(at(1536), 1));
        assert!(!i.claim(at(1528), 16) && !i.claim(at(8), 8));
        i.release(at(512), 1024);
        assert!(i.claim(at(520), 1000));
        assert!(!i.claim(at(32760), 16) && !i.claim(NonNull::dangling(), 8));
        assert_eq!(i.counts().overlaps, 4);
    }

    #[test]
    fn any_changed_byte_is_found() {
        let mut memory = [0u8; 100];
        let start = NonNull::new(memory.as_mut_ptr()).unwrap();
        let i = Integrity::new(0..0);
        for len in [1usize, 7, 8, 9, 100] {
            for n in 0..len {
                // SAFETY: all within `memory`.
                unsafe {
                    i.fill(start, len, USED);
                    let before = i.counts().corrupt;
                    i.check(start, len, USED);
                    assert_eq!(i.counts().corrupt, before);
                    *start.as_ptr().add(n) ^= 0x10;
                    i.check(start, len, USED);
                    assert_eq!(i.counts().corrupt, before + 1);
                }
            }
        }
    }
}
