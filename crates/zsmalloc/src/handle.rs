//! Handles and the entries they name.
//!
//! ```text
//! handle          generation 14       | pool 19                 | index 31
//! entry, live     generation 14, odd  | length - 1: 12 | slot 7 | zspage 31
//! entry, dead     generation 14, even | length - 1: 12 | slot 7 | zspage 31     freed, but its slot is not yet
//! entry, free     generation 14, even | check 19                | next 31
//! ```
//! A handle stays the same while its object moves: the entry holds the place. The entry's generation grows by one with each
//! store and each free, so an old handle no longer fits, and one comparison tells a live entry with the right generation.

use core::fmt;
use core::num::NonZeroU64;

/// The name of a stored object: 8 bytes, meaningless outside the pool that gave it.
///
/// A handle can be copied; every use checks that it belongs to the pool and that its object has not been freed. The check
/// of a freed object can be fooled after its entry has been used 8,192 times over, the check of the pool by a pool that
/// shares 19 bits of tag and the generation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Handle(NonZeroU64);

/// The bits of a handle's index, and of a zspage's number.
pub(crate) const INDEX_BITS: u32 = 31;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
const GENERATION_SHIFT: u32 = 50;
/// The generation where it stands in handles and entries alike: on top, so that adding to it needs no mask.
const GENERATION: u64 = u64::MAX << GENERATION_SHIFT;
pub(crate) const ONE_GENERATION: u64 = 1 << GENERATION_SHIFT;
/// What stands between index and generation: a handle's tag, a free entry's check.
const MIDDLE: u64 = !GENERATION & !INDEX_MASK;

/// A pool's tag, where it stands in handles, and an odd generation's lowest bit, which all handles have.
pub(crate) fn tag_of(pool: u64) -> u64 {
    mix(pool) << INDEX_BITS & MIDDLE | ONE_GENERATION
}

impl Handle {
    /// The handle of a live entry.
    #[inline(always)]
    pub(crate) fn pack(tag: u64, live: Entry, index: u32) -> Self {
        // SAFETY: the tag is not zero, for its generation bit.
        Self(unsafe { NonZeroU64::new_unchecked(tag | live.0 & GENERATION | u64::from(index)) })
    }

    #[inline(always)]
    pub(crate) fn has_tag(self, tag: u64) -> bool {
        (self.0.get() ^ tag) & (MIDDLE | ONE_GENERATION) == 0
    }

    #[inline(always)]
    pub(crate) fn index(self) -> u32 {
        (self.0.get() & INDEX_MASK) as u32
    }

    /// The handle of the next object under the same entry.
    #[inline(always)]
    pub(crate) fn next_life(self) -> u64 {
        self.0.get().wrapping_add(2 * ONE_GENERATION)
    }

    /// The handle with these bits.
    ///
    /// # Safety
    /// They come from [`next_life`](Self::next_life).
    #[inline(always)]
    pub(crate) unsafe fn of_bits(bits: u64) -> Self {
        // SAFETY: a handle's, whose generation stays odd (the caller's promise).
        Self(unsafe { NonZeroU64::new_unchecked(bits) })
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

const SLOT_SHIFT: u32 = INDEX_BITS;
const LEN_SHIFT: u32 = SLOT_SHIFT + 7;
const LEN_MASK: u64 = 0xfff << LEN_SHIFT;

/// The value of a handle's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Entry(pub(crate) u64);

impl Entry {
    /// The first value of an entry of a pool.
    pub(crate) fn first(pool: u64, next: u32) -> Self {
        Self(mix(pool ^ 0x5a) & GENERATION & !ONE_GENERATION | u64::from(next) & INDEX_MASK)
    }

    /// The entry with the next generation and an object's place.
    #[inline(always)]
    pub(crate) fn live(self, len: usize, slot: usize, zspage: u32) -> Self {
        let generation = (self.0 & GENERATION).wrapping_add(ONE_GENERATION);
        Self(generation | (len as u64).wrapping_sub(1) << LEN_SHIFT | (slot as u64) << SLOT_SHIFT | u64::from(zspage))
    }

    /// The entry for the next object in the same place, two generations on, but for its length.
    #[inline(always)]
    pub(crate) fn next_life(self) -> Self {
        Self(self.0.wrapping_add(2 * ONE_GENERATION) & !LEN_MASK)
    }

    /// The entry without a length, with one.
    #[inline(always)]
    pub(crate) fn with_len(self, len: usize) -> Self {
        Self(self.0 | (len as u64).wrapping_sub(1) << LEN_SHIFT)
    }

    /// The live entry with another place and length for the same object.
    #[inline(always)]
    pub(crate) fn moved(self, len: usize, slot: usize, zspage: u32) -> Self {
        Self(
            self.0 & GENERATION
                | (len as u64).wrapping_sub(1) << LEN_SHIFT
                | (slot as u64) << SLOT_SHIFT
                | u64::from(zspage),
        )
    }

    /// The entry with the next generation, free.
    #[inline(always)]
    pub(crate) fn dead(self, next: u32) -> Self {
        Self((self.0 & GENERATION).wrapping_add(ONE_GENERATION) | u64::from(next) & INDEX_MASK)
    }

    /// The entry with the next generation, dead, but with its place.
    #[inline(always)]
    pub(crate) fn dead_in_place(self) -> Self {
        Self(self.0.wrapping_add(ONE_GENERATION))
    }

    /// The free entry with another one behind it.
    pub(crate) fn chained(self, next: u32) -> Self {
        Self(self.0 & GENERATION | u64::from(next) & INDEX_MASK)
    }

    /// With the check that [`is_sound_free`](Self::is_sound_free) wants; for free entries of verifying pools.
    pub(crate) fn sealed(self) -> Self {
        let bare = self.0 & !MIDDLE;
        Self(bare | mix(bare ^ 0xa5) << INDEX_BITS & MIDDLE)
    }

    /// Whether this is a free entry as [`sealed`](Self::sealed) made it.
    pub(crate) fn is_sound_free(self) -> bool {
        !self.is_live() && self.sealed() == self
    }

    #[inline(always)]
    pub(crate) fn is_live(self) -> bool {
        self.0 & ONE_GENERATION != 0
    }

    /// Whether this is the live entry of a handle with that generation, which is odd.
    #[inline(always)]
    pub(crate) fn fits(self, handle: Handle) -> bool {
        (self.0 ^ handle.0.get()) >> GENERATION_SHIFT == 0
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
        (self.0 & INDEX_MASK) as u32
    }

    /// The next free entry.
    #[inline(always)]
    pub(crate) fn next(self) -> u32 {
        (self.0 & INDEX_MASK) as u32
    }
}

/// Spreads a word's bits.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 31).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word ^ word >> 32
}
