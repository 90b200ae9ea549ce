//! Units of physical memory: frames, orders, nodes. An index, a count and a size never share a type.

use core::fmt;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page: 4096.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;

/// A page frame number: a physical address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pfn(pub u64);

impl Pfn {
    /// The frame that holds the physical address.
    #[inline(always)]
    pub const fn containing(address: u64) -> Self {
        Self(address >> PAGE_SHIFT)
    }

    /// The physical address of the frame's first byte; `None` if it does not fit.
    #[inline(always)]
    pub const fn address(self) -> Option<u64> {
        if self.0 > u64::MAX >> PAGE_SHIFT { None } else { Some(self.0 << PAGE_SHIFT) }
    }

    /// The frame `n` frames further up; `None` on overflow.
    #[inline(always)]
    pub const fn checked_add(self, n: u64) -> Option<Self> {
        match self.0.checked_add(n) {
            Some(pfn) => Some(Self(pfn)),
            None => None,
        }
    }

    /// How many frames lie from `start` up to here; `None` if `start` is above.
    #[inline(always)]
    pub const fn checked_sub(self, start: Self) -> Option<u64> {
        self.0.checked_sub(start.0)
    }

    /// Whether a block of `order` may start here.
    #[inline(always)]
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.nr_pages() as u64 - 1) == 0
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pfn({:#x})", self.0)
    }
}

/// A half-open range of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PfnRange {
    /// The first frame.
    pub start: Pfn,
    /// One past the last frame.
    pub end: Pfn,
}

impl PfnRange {
    /// The range `start..end`; empty if `end` is not above `start`.
    pub const fn new(start: Pfn, end: Pfn) -> Self {
        Self { start, end }
    }

    /// The range of `nr` frames from `start`; `None` on overflow.
    pub const fn with_len(start: Pfn, nr: u64) -> Option<Self> {
        match start.checked_add(nr) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// The block of `order` at `start`; `None` on overflow.
    pub const fn block(start: Pfn, order: Order) -> Option<Self> {
        Self::with_len(start, order.nr_pages() as u64)
    }

    /// How many frames it holds.
    pub const fn len(&self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// Whether it holds none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `pfn` lies inside.
    #[inline(always)]
    pub const fn contains(&self, pfn: Pfn) -> bool {
        pfn.0 >= self.start.0 && pfn.0 < self.end.0
    }

    /// The frames in both ranges.
    pub const fn intersection(&self, other: &Self) -> Self {
        let start = if self.start.0 > other.start.0 { self.start } else { other.start };
        let end = if self.end.0 < other.end.0 { self.end } else { other.end };
        Self { start, end }
    }

    /// Every frame, upwards.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Pfn> + use<> {
        (self.start.0..self.end.0).map(Pfn)
    }
}

impl fmt::Display for PfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfns {:#x}..{:#x}", self.start.0, self.end.0)
    }
}

/// log2 of a block's size in pages, `0..=Order::MAX` (10: 4 MiB).
///
/// # Invariants
/// The number is at most 10, so `1 << order` never overflows.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One page.
    pub const ZERO: Self = Self(0);
    /// The largest block: 1024 pages, 4 MiB (`MAX_PAGE_ORDER`).
    #[doc(alias = "MAX_PAGE_ORDER")]
    pub const MAX: Self = Self(10);
    /// How many orders there are.
    pub const COUNT: usize = 11;
    /// The largest order that is not costly (`PAGE_ALLOC_COSTLY_ORDER`): such requests practically do not fail.
    #[doc(alias = "PAGE_ALLOC_COSTLY_ORDER")]
    pub const COSTLY: Self = Self(3);
    /// A pageblock: 512 pages, 2 MiB.
    #[doc(alias = "pageblock_order")]
    pub const PAGEBLOCK: Self = Self(9);

    /// The order with this number; `None` above [`MAX`](Self::MAX).
    #[inline(always)]
    pub const fn new(order: u32) -> Option<Self> {
        if order <= 10 { Some(Self(order as u8)) } else { None }
    }

    /// The smallest order whose block holds `size_bytes` (`get_order`); `None` above the largest. Zero bytes take one page.
    #[doc(alias = "get_order")]
    #[inline]
    pub const fn for_size(size_bytes: usize) -> Option<Self> {
        if size_bytes <= PAGE_SIZE {
            return Some(Self::ZERO);
        }
        Self::new(usize::BITS - ((size_bytes - 1) >> PAGE_SHIFT).leading_zeros())
    }

    /// The number.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    /// The number as an index below [`COUNT`](Self::COUNT).
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Pages in a block.
    #[inline(always)]
    pub const fn nr_pages(self) -> usize {
        1 << self.0
    }

    /// Bytes in a block.
    #[inline(always)]
    pub const fn size_bytes(self) -> usize {
        PAGE_SIZE << self.0
    }

    /// Whether the allocator may give up on it more easily ([`COSTLY`](Self::COSTLY)).
    #[inline(always)]
    pub const fn is_costly(self) -> bool {
        self.0 > Self::COSTLY.0
    }

    /// All orders, upwards.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..=10).map(Self)
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "order {}", self.0)
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Order({})", self.0)
    }
}

/// A NUMA node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct NodeId(pub u32);

impl NodeId {
    /// The number as an index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}
