//! Size classes: which block size serves a request.
//!
//! ```text
//! index    3   4   5   6   1   7    2    8    9   10  11  12  13
//! bytes    8  16  32  64  96  128  192  256  512  1k  2k  4k  8k
//! align    8  16  32  64  32  128   64  256  512  1k  2k  4k  8k
//! ```
//!
//! Up to 192 bytes a table of 24 bytes, indexed by `(size - 1) / 8`, gives the class; above, the bit length of
//! `size - 1` is the index. Both fold to a constant when the size is one. Everything here is pure and `const`.

use kmem_gfp::{Order, PAGE_SIZE};

/// The largest request that comes from a class: two pages. Larger ones take whole page blocks.
pub const KMALLOC_MAX_CACHE_SIZE: usize = 2 * PAGE_SIZE;

/// The largest request of all, in bytes: 4 MiB. One byte more is [`AllocError::TooLarge`](kmem_gfp::AllocError::TooLarge).
pub const KMALLOC_MAX_SIZE: usize = Order::MAX.size_bytes();

/// The alignment, in bytes, that every block has at the least where the platform asks for no more.
#[doc(alias("ARCH_KMALLOC_MINALIGN", "KMALLOC_MIN_SIZE"))]
pub const KMALLOC_MINALIGN: usize = 8;

/// `(size - 1) / 8` to class index, for sizes up to 192.
const SMALL: [u8; 24] = [3, 4, 5, 5, 6, 6, 6, 6, 1, 1, 1, 1, 7, 7, 7, 7, 2, 2, 2, 2, 2, 2, 2, 2];

/// A block size that kmalloc keeps a cache for.
///
/// # Invariants
/// The index is in `1..=13`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct SizeClass(u8);

impl SizeClass {
    /// How many classes there are.
    pub const COUNT: usize = 13;
    /// The length of a table that [`index`](Self::index) indexes; entry 0 stays unused.
    pub const TABLE_LEN: usize = Self::COUNT + 1;
    /// Every class, smallest first.
    pub const ALL: [Self; Self::COUNT] = [
        Self(3),
        Self(4),
        Self(5),
        Self(6),
        Self(1),
        Self(7),
        Self(2),
        Self(8),
        Self(9),
        Self(10),
        Self(11),
        Self(12),
        Self(13),
    ];

    /// The smallest class that holds `size_bytes`; `None` for zero and above [`KMALLOC_MAX_CACHE_SIZE`].
    #[doc(alias = "kmalloc_index")]
    #[inline(always)]
    pub const fn for_size(size_bytes: usize) -> Option<Self> {
        let below = size_bytes.wrapping_sub(1);
        if below >= KMALLOC_MAX_CACHE_SIZE {
            return None;
        }
        // INVARIANT: the table holds 1..=7; above 192 bytes and up to 8 KiB the bit length is 8..=13.
        if below < 192 {
            Some(Self(SMALL[below >> 3]))
        } else {
            Some(Self((usize::BITS - below.leading_zeros()) as u8))
        }
    }

    /// The class's number, below [`TABLE_LEN`](Self::TABLE_LEN): 1 is 96 bytes, 2 is 192, `n` from 3 on is `2^n`.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Its block size in bytes.
    #[inline]
    pub const fn size_bytes(self) -> usize {
        match self.0 {
            1 => 96,
            2 => 192,
            n => 1 << n,
        }
    }

    /// The alignment of its blocks in bytes: the largest power of two that divides the size.
    #[inline]
    pub const fn align(self) -> usize {
        natural_align(self.size_bytes())
    }

    /// The size as it ends a cache's name: `"8"`, `"96"`, `"1k"`.
    pub const fn name(self) -> &'static str {
        match self.0 {
            1 => "96",
            2 => "192",
            3 => "8",
            4 => "16",
            5 => "32",
            6 => "64",
            7 => "128",
            8 => "256",
            9 => "512",
            10 => "1k",
            11 => "2k",
            12 => "4k",
            _ => "8k",
        }
    }

    /// The class that serves this one's requests where every block must be aligned to `min`: the smallest that is not
    /// below this one and is naturally aligned to it.
    pub const fn with_min_align(self, min: MinAlign) -> Self {
        let mut i = 0;
        while i < Self::COUNT {
            let candidate = Self::ALL[i];
            if candidate.size_bytes() >= self.size_bytes() && candidate.align() >= min.get() {
                return candidate;
            }
            i += 1;
        }
        // Only a minimum above the largest class would come here; `MinAlign` is at most 256.
        Self(13)
    }
}

/// The largest power of two that divides `size_bytes`: the alignment that a block of such a request has at the least
/// (KM-07). Zero, which has no block, gives 1.
#[inline]
pub const fn natural_align(size_bytes: usize) -> usize {
    if size_bytes == 0 { 1 } else { 1 << size_bytes.trailing_zeros() }
}

/// The alignment that the platform wants every kmalloc block to have: a cache line where devices write to memory that
/// caches do not watch (`ARCH_KMALLOC_MINALIGN`, `ARCH_DMA_MINALIGN`).
///
/// # Invariants
/// A power of two in `8..=256`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinAlign(usize);

impl MinAlign {
    /// Eight bytes.
    pub const SMALLEST: Self = Self(KMALLOC_MINALIGN);

    /// `bytes` as a minimum; `None` unless it is a power of two up to 256. Less than 8 counts as 8.
    pub const fn new(bytes: usize) -> Option<Self> {
        if !bytes.is_power_of_two() || bytes > 256 {
            return None;
        }
        // INVARIANT: a power of two, raised to 8, at most 256.
        Some(Self(if bytes < KMALLOC_MINALIGN { KMALLOC_MINALIGN } else { bytes }))
    }

    /// In bytes.
    #[inline]
    pub const fn get(self) -> usize {
        self.0
    }
}

impl Default for MinAlign {
    fn default() -> Self {
        Self::SMALLEST
    }
}

/// How many bytes a request of `size_bytes` really gets where the minimum alignment is `min`: the class size, above the
/// classes the page block, above [`KMALLOC_MAX_SIZE`] (and for zero) the request itself.
#[doc(alias = "kmalloc_size_roundup")]
pub const fn size_roundup(size_bytes: usize, min: MinAlign) -> usize {
    if let Some(class) = SizeClass::for_size(size_bytes) {
        return class.with_min_align(min).size_bytes();
    }
    if size_bytes == 0 || size_bytes > KMALLOC_MAX_SIZE {
        return size_bytes;
    }
    match Order::for_size(size_bytes) {
        Some(order) => order.size_bytes(),
        None => size_bytes,
    }
}
