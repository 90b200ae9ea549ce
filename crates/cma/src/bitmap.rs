//! Runs of bits: finding clear ones, setting and clearing them.
//!
//! ```text
//! bit   0   1   2   3   4   5   6   7        a run of 2 aligned to 2, in an area whose base lies one bit past
//!      [#] [ ] [ ] [ ] [#] [ ] [ ] [ ]       a multiple of 2: bits 1, 3, 5, .. are the places, so 1..3
//! ```

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    /// How many bits; at least one.
    pub(crate) nr: u64,
    /// One less than the alignment, in bits.
    pub(crate) mask: u64,
    /// Bits that the bitmap's first bit lies past a multiple of the alignment.
    pub(crate) offset: u64,
}

fn word_of(words: &[u64], index: u64) -> u64 {
    usize::try_from(index).ok().and_then(|index| words.get(index)).copied().unwrap_or(0)
}

/// The first bit in `from..end` that equals `set`.
pub(crate) fn next(words: &[u64], from: u64, end: u64, set: bool) -> Option<u64> {
    let mut at = from;
    while at < end {
        let word = word_of(words, at / 64);
        let wanted = (if set { word } else { !word }) >> (at % 64);
        if wanted != 0 {
            return Some(at + u64::from(wanted.trailing_zeros())).filter(|&bit| bit < end);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

/// The first run of clear bits at or above `from` that fits the wish, among `nr_bits`.
pub(crate) fn find_clear(words: &[u64], nr_bits: u64, from: u64, wish: Wish) -> Option<u64> {
    let mut at = from;
    loop {
        let aligned = at.checked_add(wish.offset)?.checked_add(wish.mask)? & !wish.mask;
        let start = aligned.checked_sub(wish.offset)?;
        let end = start.checked_add(wish.nr).filter(|&end| end <= nr_bits)?;
        match next(words, start, end, true) {
            None => return Some(start),
            Some(taken) => at = taken + 1,
        }
    }
}

/// Sets or clears the bits of `from..end`.
pub(crate) fn assign(words: &mut [u64], from: u64, end: u64, set: bool) {
    let mut at = from;
    while at < end {
        let stop = end.min((at / 64 + 1) * 64);
        let mask = (u64::MAX >> (64 - (stop - at))) << (at % 64);
        if let Some(word) = usize::try_from(at / 64).ok().and_then(|index| words.get_mut(index)) {
            if set {
                *word |= mask;
            } else {
                *word &= !mask;
            }
        }
        at = stop;
    }
}

/// How many of `nr_bits` bits are set.
pub(crate) fn count(words: &[u64], nr_bits: u64) -> u64 {
    let mut at = 0;
    let mut nr = 0;
    while at < nr_bits {
        let left = (nr_bits - at).min(64);
        nr += u64::from((word_of(words, at / 64) & (u64::MAX >> (64 - left))).count_ones());
        at += 64;
    }
    nr
}

/// Calls `f` with the bounds of each run of clear bits, upwards.
pub(crate) fn each_clear(words: &[u64], nr_bits: u64, mut f: impl FnMut(u64, u64)) {
    let mut at = 0;
    while let Some(start) = next(words, at, nr_bits, false) {
        let end = next(words, start, nr_bits, true).unwrap_or(nr_bits);
        f(start, end);
        at = end;
    }
}
