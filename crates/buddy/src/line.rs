//! One bit for each frame of a pageblock, on one cache line, claimed by compare-and-swap.
//!
//! ```text
//! frame   0 ............ 63 | 64 ......... 127 | ... | 448 ........ 511
//!         words[0]          | words[1]         |     | words[7]
//! order   0..=6: a run inside a word   7, 8: two, four words   9: the line
//! ```
//!
//! As the *free* line of a pageblock a set bit is a free frame. Whoever turns a bit from set to clear owns the frame;
//! whoever owns it may set it again. Neighbouring free frames are one larger free block by being neighbours, so there
//! is nothing to merge and nothing to split. A block of several words is taken word by word; a taker that finds a
//! word occupied gives back the words it has taken, so no frame is lost or handed out twice, whoever races.

use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::bits::{WORD_ORDER, aligned, choose, cover, merged, run};

/// Words in a line.
pub(crate) const WORDS: usize = 8;
/// Frames in a pageblock.
pub(crate) const FRAMES: u32 = 512;
/// log2 of [`FRAMES`].
pub(crate) const FRAMES_SHIFT: u32 = 9;

/// A bit per frame of one pageblock.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Line {
    words: [AtomicU64; WORDS],
}

/// A block was to be freed that is free already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Occupied {
    /// The first frame that was found set, as an offset in the pageblock.
    pub(crate) offset: u32,
}

impl Line {
    /// A line with these bits.
    pub(crate) fn new(words: [u64; WORDS]) -> Self {
        Self { words: words.map(AtomicU64::new) }
    }

    /// The word that holds frame `offset`.
    #[inline(always)]
    pub(crate) fn word(&self, offset: u32) -> &AtomicU64 {
        &self.words[(offset / 64) as usize % WORDS]
    }

    /// All words, each read once.
    #[inline]
    pub(crate) fn snapshot(&self) -> [u64; WORDS] {
        core::array::from_fn(|i| self.words[i].load(Ordering::SeqCst))
    }

    /// How many bits are set.
    #[inline]
    pub(crate) fn count(&self) -> u32 {
        self.words.iter().map(|word| word.load(Ordering::SeqCst).count_ones()).sum()
    }

    /// Whether the bit of frame `offset` is set.
    #[inline(always)]
    pub(crate) fn is_set(&self, offset: u32) -> bool {
        self.word(offset).load(Ordering::Acquire) >> (offset % 64) & 1 != 0
    }

    /// Takes up to `want` blocks of `order` (at most 6), calling `taken` with a word's first frame and the blocks' first
    /// bits in it. Returns how many. Words that are not entirely free are used up first.
    pub(crate) fn take_runs(&self, order: u32, want: u32, mut taken: impl FnMut(u32, u64)) -> u32 {
        let mut left = want;
        for whole in [false, true] {
            for (i, word) in self.words.iter().enumerate() {
                if left == 0 {
                    return want;
                }
                let mut old = word.load(Ordering::Relaxed);
                while (old == u64::MAX) == whole && old != 0 {
                    let chosen = choose(old, order, left);
                    if chosen == 0 {
                        break;
                    }
                    // Acquire pairs with the release of whoever freed the frames. SeqCst: see `Block::refile`.
                    match word.compare_exchange(old, old & !cover(chosen, order), Ordering::SeqCst, Ordering::Relaxed) {
                        Ok(_) => {
                            left -= chosen.count_ones().min(left);
                            taken(i as u32 * 64, chosen);
                            break;
                        }
                        Err(now) => old = now,
                    }
                }
            }
        }
        want - left
    }

    /// Takes one block of `order` 7..=9: aligned groups of words. Returns its first frame.
    pub(crate) fn take_words(&self, order: u32) -> Option<u32> {
        let group = 1usize << (order.clamp(WORD_ORDER, FRAMES_SHIFT) - WORD_ORDER);
        let words = self.snapshot();
        let whole = |first: usize, len: usize| words.iter().skip(first).take(len).all(|&word| word == u64::MAX);
        // First the groups whose buddy is in use, so that larger blocks stay whole.
        for lonely in [true, false] {
            for first in (0..WORDS).step_by(group) {
                if whole(first, group)
                    && (group == WORDS || whole(first ^ group, group) != lonely)
                    && self.take_at(first as u32 * 64, order)
                {
                    return Some(first as u32 * 64);
                }
            }
        }
        None
    }

    /// Takes the block of `order` (at most 9) at `offset`, if all of it is free.
    pub(crate) fn take_at(&self, offset: u32, order: u32) -> bool {
        if order < WORD_ORDER {
            return take_word(self.word(offset), run(order) << (offset % 64));
        }
        let group = 1usize << (order.min(FRAMES_SHIFT) - WORD_ORDER);
        let first = (offset / 64) as usize;
        let words = || self.words.iter().skip(first).take(group);
        let taken = words().take_while(|word| take_word(word, u64::MAX)).count();
        if taken == group {
            return true;
        }
        // Somebody has a frame of a later word: what was taken goes back, nobody else can have touched it.
        for word in words().take(taken) {
            word.fetch_or(u64::MAX, Ordering::SeqCst);
        }
        false
    }

    /// Sets the bits of the block of `order` (at most 9) at `offset` and returns the order of the free block that it has
    /// become part of, at most 9.
    ///
    /// # Errors
    /// Some bit is set already; nothing has changed (but for a race with another free of the same frames).
    #[inline]
    pub(crate) fn put(&self, offset: u32, order: u32) -> Result<u32, Occupied> {
        if order < WORD_ORDER {
            let bit = offset % 64;
            let new = self.put_bits(offset, run(order) << bit)?;
            let within = merged(new, bit, order);
            return Ok(if within == WORD_ORDER { self.merged_words(offset, WORD_ORDER) } else { within });
        }
        let group = 1usize << (order.min(FRAMES_SHIFT) - WORD_ORDER);
        let first = (offset / 64) as usize;
        let words = || self.words.iter().skip(first).take(group).zip(first as u32..);
        for (word, i) in words() {
            let set = word.load(Ordering::Relaxed);
            if set != 0 {
                return Err(Occupied { offset: i * 64 + set.trailing_zeros() });
            }
        }
        for (_, i) in words() {
            self.put_bits(i * 64, u64::MAX)?;
        }
        Ok(self.merged_words(offset, order))
    }

    /// Sets `mask` in the word of `offset` and returns the word as it is then.
    ///
    /// # Errors
    /// Some bit is set already; the word is unchanged.
    #[inline(always)]
    pub(crate) fn put_bits(&self, offset: u32, mask: u64) -> Result<u64, Occupied> {
        let word = self.word(offset);
        let mut old = word.load(Ordering::Relaxed);
        loop {
            if old & mask != 0 {
                return Err(Occupied { offset: (offset & !63) + (old & mask).trailing_zeros() });
            }
            // Release pairs with the acquire of the next taker. SeqCst: see `Block::refile`.
            match word.compare_exchange(old, old | mask, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => return Ok(old | mask),
                Err(now) => old = now,
            }
        }
    }

    /// The order (6..=9) of the free block around the free aligned group of `order` at `offset`.
    pub(crate) fn merged_words(&self, offset: u32, order: u32) -> u32 {
        let mut order = order.max(WORD_ORDER);
        while order < FRAMES_SHIFT {
            let group = 1usize << (order - WORD_ORDER);
            let buddy = ((offset / 64) as usize & !(group - 1)) ^ group;
            if !self.words.iter().skip(buddy).take(group).all(|word| word.load(Ordering::SeqCst) == u64::MAX) {
                break;
            }
            order += 1;
        }
        order
    }

    /// Sets or clears bits that the caller owns, whoever changes others meanwhile.
    pub(crate) fn assign(&self, offset: u32, len: u32, value: bool) {
        for (word, mask) in self.pieces(offset, len) {
            if value {
                word.fetch_or(mask, Ordering::AcqRel);
            } else if word.load(Ordering::Relaxed) & mask != 0 {
                word.fetch_and(!mask, Ordering::AcqRel);
            }
        }
    }

    /// The first frame of `offset..offset + len` whose bit is `value`.
    pub(crate) fn find(&self, offset: u32, len: u32, value: bool) -> Option<u32> {
        let mut at = offset;
        let end = (offset + len).min(FRAMES);
        while at < end {
            let word = self.word(at).load(Ordering::Acquire);
            let wanted = (if value { word } else { !word }) >> (at % 64);
            if wanted != 0 {
                let found = at + wanted.trailing_zeros();
                return (found < end).then_some(found);
            }
            at = (at & !63) + 64;
        }
        None
    }

    /// The words that `offset..offset + len` touches, each with the bits that it concerns.
    pub(crate) fn pieces(&self, offset: u32, len: u32) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let end = (offset + len).min(FRAMES);
        let mut at = offset;
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let stop = ((at & !63) + 64).min(end);
            let mask = crate::bits::low(stop - at) << (at % 64);
            let word = self.word(at);
            at = stop;
            Some((word, mask))
        })
    }
}

#[inline(always)]
fn take_word(word: &AtomicU64, mask: u64) -> bool {
    let mut old = word.load(Ordering::Relaxed);
    loop {
        if old & mask != mask {
            return false;
        }
        match word.compare_exchange(old, old & !mask, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => old = now,
        }
    }
}

/// The largest order (at most 9) of which `words` hold a free block; `None` if nothing is free.
pub(crate) fn largest_in(words: &[u64; WORDS]) -> Option<u32> {
    let mut whole = 0u32;
    for (i, &word) in words.iter().enumerate() {
        whole |= u32::from(word == u64::MAX) << i;
    }
    if whole != 0 {
        let pairs = whole & whole >> 1 & 0x55;
        let quads = pairs & pairs >> 2 & 0x11;
        return Some(match (whole, quads, pairs) {
            (0xff, ..) => 9,
            (_, 0, 0) => 6,
            (_, 0, _) => 7,
            _ => 8,
        });
    }
    if words.iter().fold(0, |any, &word| any | word) == 0 {
        return None;
    }
    // Larger runs begin with runs of every smaller order: upwards in all words at once, until none is left.
    let mut runs = *words;
    let mut order = 0;
    while order < WORD_ORDER {
        let mut any = 0;
        for word in &mut runs {
            *word &= *word >> (1u32 << order);
            any |= *word;
        }
        if any & aligned(order + 1) == 0 {
            break;
        }
        order += 1;
    }
    Some(order)
}

/// Calls `each` with order and first frame of every maximal free block in `words`, upwards.
pub(crate) fn for_each_block(words: &[u64; WORDS], mut each: impl FnMut(u32, u32)) {
    let mut at = 0;
    while at < FRAMES {
        let word = words[(at / 64) as usize % WORDS];
        let bit = at % 64;
        if word >> bit == 0 {
            at = (at & !63) + 64;
            continue;
        }
        if word >> bit & 1 == 0 {
            at += 1;
            continue;
        }
        let mut order = 0;
        while order < FRAMES_SHIFT && at & ((2 << order) - 1) == 0 && is_whole(words, at, order + 1) {
            order += 1;
        }
        each(order, at);
        at += 1 << order;
    }
}

fn is_whole(words: &[u64; WORDS], offset: u32, order: u32) -> bool {
    if order < WORD_ORDER {
        let mask = run(order) << (offset % 64);
        return words[(offset / 64) as usize % WORDS] & mask == mask;
    }
    words.iter().skip((offset / 64) as usize).take(1 << (order - WORD_ORDER)).all(|&word| word == u64::MAX)
}
