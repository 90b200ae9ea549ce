//! Handles and the entries they name.
//!
//! ```text
//! handle          pool 18 | generation 14 | index 32
//! entry, live     1 | generation 14 | length - 1: 12 | slot 7 | zspage 30
//! entry, free     0 | generation 14 | 1 | check 16 | next 32
//! ```
//! A handle stays the same while its object moves: the entry holds the place. Freeing an object gives its entry the next
//! generation, so an old handle no longer fits.

use core::fmt;
use core::num::NonZeroU64;

/// The name of a stored object: 8 bytes, meaningless outside the pool that gave it.
///
/// A handle can be copied; every use checks that it belongs to the pool and that its object has not been freed. The check
/// of a freed object can be fooled after its entry has been used 16,384 times over, the check of the pool by a pool that
/// shares both 18 bits of tag and the generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Handle(NonZeroU64);

const GENERATION_BITS: u32 = 14;
pub(crate) const GENERATION_MASK: u64 = (1 << GENERATION_BITS) - 1;
const TAG_BITS: u32 = 18;
/// The bits of a pool's tag.
pub(crate) const TAG_MASK: u64 = (1 << TAG_BITS) - 1;

impl Handle {
    /// `tag` is not zero.
    #[inline(always)]
    pub(crate) fn pack(tag: u64, generation: u64, index: u32) -> Self {
        let bits = tag << (64 - TAG_BITS) | (generation & GENERATION_MASK) << 32 | index as u64;
        Self(NonZeroU64::new(bits).unwrap_or(NonZeroU64::MIN))
    }

    #[inline(always)]
    pub(crate) fn tag(self) -> u64 {
        self.0.get() >> (64 - TAG_BITS)
    }

    #[inline(always)]
    pub(crate) fn generation(self) -> u64 {
        self.0.get() >> 32 & GENERATION_MASK
    }

    #[inline(always)]
    pub(crate) fn index(self) -> u32 {
        self.0.get() as u32
    }

    /// The handle as a number, to keep in a table of one's own.
    pub const fn to_bits(self) -> NonZeroU64 {
        self.0
    }

    /// The handle that [`to_bits`](Self::to_bits) turned into this number. Any number is safe: it is checked when used.
    pub const fn from_bits(bits: NonZeroU64) -> Self {
        Self(bits)
    }
}

impl fmt::Display for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "handle {:#x}", self.0)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:#x})", self.0)
    }
}

/// The bits of a zspage's number.
pub(crate) const ZSPAGE_BITS: u32 = 30;
const SLOT_SHIFT: u32 = ZSPAGE_BITS;
const LEN_SHIFT: u32 = SLOT_SHIFT + 7;
const GENERATION_SHIFT: u32 = LEN_SHIFT + 12;
const LIVE: u64 = 1 << 63;
/// Set in every free entry, so that no entry is zero.
const FREE: u64 = 1 << 48;

/// The value of a handle's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Entry(pub(crate) u64);

impl Entry {
    #[inline(always)]
    pub(crate) fn live(generation: u64, len: usize, slot: usize, zspage: u32) -> Self {
        Self(
            LIVE | (generation & GENERATION_MASK) << GENERATION_SHIFT
                | (len as u64 - 1) << LEN_SHIFT
                | (slot as u64) << SLOT_SHIFT
                | zspage as u64,
        )
    }

    #[inline(always)]
    pub(crate) fn free(generation: u64, next: u32) -> Self {
        Self((generation & GENERATION_MASK) << GENERATION_SHIFT | FREE | next as u64)
    }

    /// With the check that [`is_sound_free`](Self::is_sound_free) wants; for free entries of verifying pools.
    pub(crate) fn sealed(self) -> Self {
        let bare = self.0 & !(0xffff << 32);
        Self(bare | (mix(bare) & 0xffff) << 32)
    }

    /// Whether this is a free entry as [`sealed`](Self::sealed) made it.
    pub(crate) fn is_sound_free(self) -> bool {
        self.0 & (LIVE | FREE) == FREE && self.sealed() == self
    }

    #[inline(always)]
    pub(crate) fn is_live(self) -> bool {
        self.0 & LIVE != 0
    }

    #[inline(always)]
    pub(crate) fn generation(self) -> u64 {
        self.0 >> GENERATION_SHIFT & GENERATION_MASK
    }

    /// Whether this is the live entry of a handle with that generation.
    #[inline(always)]
    pub(crate) fn fits(self, handle: Handle) -> bool {
        self.0 >> GENERATION_SHIFT == (1 << GENERATION_BITS) | handle.generation()
    }

    #[inline(always)]
    pub(crate) fn len(self) -> usize {
        (self.0 >> LEN_SHIFT & 0xfff) as usize + 1
    }

    #[inline(always)]
    pub(crate) fn slot(self) -> usize {
        (self.0 >> SLOT_SHIFT & 0x7f) as usize
    }

    #[inline(always)]
    pub(crate) fn zspage(self) -> u32 {
        (self.0 & ((1 << ZSPAGE_BITS) - 1)) as u32
    }

    /// The next free entry.
    #[inline(always)]
    pub(crate) fn next(self) -> u32 {
        self.0 as u32
    }

    /// The same object elsewhere.
    #[inline(always)]
    pub(crate) fn moved(self, slot: usize, zspage: u32) -> Self {
        Self::live(self.generation(), self.len(), slot, zspage)
    }
}

/// Spreads a word's bits.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^ word >> 32
}
