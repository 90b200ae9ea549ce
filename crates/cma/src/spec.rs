//! What an area is to be.

use core::alloc::Layout;
use core::fmt;

use kmem_gfp::{Order, Pfn, PfnRange};

use crate::DeclareError;
use crate::book::Book;

/// How many ranges an area may have.
pub const MAX_RANGES: usize = 8;
/// Bytes of the longest name.
pub const NAME_MAX: usize = 63;
/// Pages of the least alignment of an area: a pageblock.
#[doc(alias = "CMA_MIN_ALIGNMENT_PAGES")]
pub const MIN_ALIGN_PAGES: u64 = Order::PAGEBLOCK.nr_pages() as u64;
/// Above this an area's granularity is refused: bits of 2^30 pages.
const MAX_ORDER_PER_BIT: u32 = 30;

/// Where an area is to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Exactly here.
    Fixed(Pfn),
    /// Anywhere in `base..limit`; no limit is the end of memory.
    Within {
        /// The lowest frame.
        base: Pfn,
        /// The first frame above.
        limit: Option<Pfn>,
    },
}

/// What [`Cma::declare`](crate::Cma::declare) is asked for.
///
/// ```
/// use kmem_cma::AreaSpec;
///
/// let spec = AreaSpec::new("camera", 16_384).granularity(4).for_dma();
/// assert!(kmem_cma::layout(&spec).is_ok());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct AreaSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) nr_pages: u64,
    pub(crate) place: Place,
    pub(crate) align_pages: u64,
    pub(crate) order_per_bit: u32,
    pub(crate) for_dma: bool,
}

impl<'a> AreaSpec<'a> {
    /// An area of `nr_pages` pages, rounded up to whole pageblocks, anywhere, a page a bit. An empty name stands for `cma` and
    /// the area's number.
    pub const fn new(name: &'a str, nr_pages: u64) -> Self {
        let place = Place::Within { base: Pfn(0), limit: None };
        Self { name, nr_pages, place, align_pages: 0, order_per_bit: 0, for_dma: false }
    }

    /// As many pages instead.
    pub const fn sized(mut self, nr_pages: u64) -> Self {
        self.nr_pages = nr_pages;
        self
    }

    /// Where it is to lie.
    pub const fn place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    /// Its first frame is a multiple of `align_pages`, a power of two; 0 stands for the least, a pageblock.
    pub const fn align(mut self, align_pages: u64) -> Self {
        self.align_pages = align_pages;
        self
    }

    /// A bit stands for `1 << order_per_bit` pages, and so much at least every allocation takes. Fewer bits are searched faster.
    pub const fn granularity(mut self, order_per_bit: u32) -> Self {
        self.order_per_bit = order_per_bit;
        self
    }

    /// Devices' memory may come from this area: see [`Contiguous`](crate::Contiguous).
    pub const fn for_dma(mut self) -> Self {
        self.for_dma = true;
        self
    }

    /// What a range of the area must begin and end at a multiple of, in pages: M-03.
    pub(crate) fn grain(&self) -> Result<u64, DeclareError> {
        if self.order_per_bit > MAX_ORDER_PER_BIT {
            return Err(DeclareError::BadGranularity { order_per_bit: self.order_per_bit });
        }
        if self.align_pages != 0 && !self.align_pages.is_power_of_two() || self.align_pages > 1 << 40 {
            return Err(DeclareError::BadAlign { align_pages: self.align_pages });
        }
        Ok(self.align_pages.max(MIN_ALIGN_PAGES).max(1 << self.order_per_bit))
    }

    /// The grain and the size in pages, a multiple of it, once everything but the place has been looked at.
    pub(crate) fn checked(&self) -> Result<(u64, u64), DeclareError> {
        if self.name.len() > NAME_MAX {
            return Err(DeclareError::NameTooLong { len: self.name.len() });
        }
        let grain = self.grain()?;
        if self.nr_pages == 0 {
            return Err(DeclareError::Empty);
        }
        let size = self.nr_pages.checked_next_multiple_of(grain).filter(|&size| size <= 1 << 52);
        Ok((grain, size.ok_or(DeclareError::NoMemory { nr_pages: self.nr_pages })?))
    }
}

/// The memory that the bookkeeping of such an area needs: a descriptor and a bit for each granule.
///
/// # Errors
/// What is wrong with the specification.
pub fn layout(spec: &AreaSpec<'_>) -> Result<Layout, DeclareError> {
    let (_, nr_pages) = spec.checked()?;
    book_layout(nr_pages, spec.order_per_bit).ok_or(DeclareError::NoMemory { nr_pages })
}

/// Descriptor and bitmap words: each range begins with a word of its own.
pub(crate) fn book_layout(nr_pages: u64, order_per_bit: u32) -> Option<Layout> {
    let words = usize::try_from((nr_pages >> order_per_bit).div_ceil(64)).ok()?.checked_add(MAX_RANGES)?;
    let (layout, _) = Layout::new::<Book>().extend(Layout::array::<u64>(words).ok()?).ok()?;
    Some(layout.pad_to_align())
}

/// A name of at most [`NAME_MAX`] bytes.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    bytes: [u8; NAME_MAX],
    len: u8,
}

impl Name {
    pub(crate) fn new(name: &str, number: u32) -> Self {
        let mut this = Self { bytes: [0; NAME_MAX], len: 0 };
        // Cannot fail: a chosen name has been measured, the other is short.
        let _ = if name.is_empty() {
            fmt::write(&mut this, format_args!("cma{number}"))
        } else {
            fmt::Write::write_str(&mut this, name)
        };
        this
    }

    pub(crate) fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or("cma")
    }
}

impl fmt::Write for Name {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let from = usize::from(self.len);
        let place = self.bytes.get_mut(from..from + text.len()).ok_or(fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len += text.len() as u8;
        Ok(())
    }
}

/// The frames of a range, if it is made of whole grains.
pub(crate) fn whole(range: PfnRange, grain: u64) -> Result<(), DeclareError> {
    if range.is_empty() {
        return Err(DeclareError::Empty);
    }
    if range.start.0.is_multiple_of(grain) && range.end.0.is_multiple_of(grain) {
        Ok(())
    } else {
        Err(DeclareError::Misaligned { range, align_pages: grain })
    }
}
