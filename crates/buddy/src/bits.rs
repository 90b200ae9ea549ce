//! Arithmetic on 64 frames at a time: which aligned runs of free frames a word holds.
//!
//! ```text
//! word        1111 0011 1100 1111      bit set: the frame is free
//! heads(_, 0) 1111 0011 1100 1111      every free frame
//! heads(_, 1) 0101 0001 0100 0101      free and aligned pairs, by their first frame
//! heads(_, 2) 0001 0000 0000 0001      free and aligned quadruples
//! ```
//!
//! Pure functions; the orders are those inside one word, `0..=6`.

/// log2 of the frames in a word.
pub(crate) const WORD_ORDER: u32 = 6;

/// The positions at which a run of each order may start.
const ALIGNED: [u64; 7] = [
    u64::MAX,
    0x5555_5555_5555_5555,
    0x1111_1111_1111_1111,
    0x0101_0101_0101_0101,
    0x0001_0001_0001_0001,
    0x0000_0001_0000_0001,
    1,
];

/// The positions at which a run of `order` may start.
#[inline(always)]
pub(crate) const fn aligned(order: u32) -> u64 {
    ALIGNED[if order < WORD_ORDER { order as usize } else { WORD_ORDER as usize }]
}

/// The first `1 << order` bits.
#[inline(always)]
pub(crate) const fn run(order: u32) -> u64 {
    if order >= WORD_ORDER { u64::MAX } else { (1 << (1u32 << order)) - 1 }
}

/// The lowest `nr` bits.
#[inline(always)]
pub(crate) const fn low(nr: u32) -> u64 {
    if nr >= 64 { u64::MAX } else { (1 << nr) - 1 }
}

/// The first frames of the aligned free runs of `1 << order` frames.
#[inline(always)]
pub(crate) const fn heads(word: u64, order: u32) -> u64 {
    let mut runs = word;
    let mut k = 0;
    while k < order && k < WORD_ORDER {
        runs &= runs >> (1u32 << k);
        k += 1;
    }
    runs & aligned(order)
}

/// Every frame of the runs of `order` that start at `heads`.
#[inline(always)]
pub(crate) const fn cover(heads: u64, order: u32) -> u64 {
    // The runs are aligned and so do not overlap: no carries.
    heads.wrapping_mul(run(order))
}

/// The order of the free run that the run of `order` at `bit` has become part of, all of it being free.
#[inline(always)]
pub(crate) const fn merged(word: u64, bit: u32, order: u32) -> u32 {
    let mut order = order;
    while order < WORD_ORDER {
        let buddy = (bit & 63 & !((1 << order) - 1)) ^ (1 << order);
        let mask = run(order) << buddy;
        if word & mask != mask {
            break;
        }
        order += 1;
    }
    order
}

/// Whether the frames of `mask` that have just become free in `word` may belong to a free run of `order` or more. Exact for a
/// single frame.
#[inline(always)]
pub(crate) const fn outgrows(word: u64, mask: u64, order: u32) -> bool {
    if order > WORD_ORDER {
        return word == u64::MAX;
    }
    if mask & mask.wrapping_sub(1) == 0 {
        let size = 1u32 << order;
        let run = u64::MAX >> (64 - size);
        let first = mask.trailing_zeros() & !(size - 1);
        return word >> (first & 63) & run == run;
    }
    heads(word, order) != 0
}

/// The first frame of one run of `order` to take out of `word`: out of the smallest free run that holds one.
#[inline]
const fn choose_one(word: u64, order: u32) -> u64 {
    let mut runs = word;
    let mut k = 0;
    while k < order {
        runs &= runs >> (1u32 << k);
        k += 1;
    }
    // The aligned runs of size `k`, and those of them that are no half of a larger one.
    let mut here = runs & aligned(k);
    while k < WORD_ORDER {
        runs &= runs >> (1u32 << k);
        let next = runs & aligned(k + 1);
        let alone = here & !(next | next << (1u32 << k));
        if alone != 0 {
            return alone & alone.wrapping_neg();
        }
        here = next;
        k += 1;
    }
    here & here.wrapping_neg()
}

/// The first frames of up to `want` runs of `order` to take out of `word`: out of the smallest free runs that hold them.
#[inline]
pub(crate) const fn choose(word: u64, order: u32, want: u32) -> u64 {
    if want == 1 {
        return choose_one(word, if order < WORD_ORDER { order } else { WORD_ORDER });
    }
    let available = heads(word, order);
    if word == u64::MAX && order <= WORD_ORDER && want < 64 {
        // One large run, from its beginning.
        return available & low(want << order);
    }
    if available.count_ones() <= want {
        return available;
    }
    choose_many(word, order, want, available)
}

const fn choose_many(word: u64, order: u32, want: u32, available: u64) -> u64 {
    let mut chosen = 0u64;
    let mut left = want;
    let mut size = order;
    while size <= WORD_ORDER && left > 0 {
        let larger = if size < WORD_ORDER { cover(heads(word, size + 1), size + 1) } else { 0 };
        let mut here = heads(word & !larger, size);
        while here != 0 && left > 0 {
            let mut inside = available & (run(size) << here.trailing_zeros());
            here &= here - 1;
            while inside != 0 && left > 0 {
                chosen |= inside & inside.wrapping_neg();
                inside &= inside - 1;
                left -= 1;
            }
        }
        size += 1;
    }
    chosen
}
