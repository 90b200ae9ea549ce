//! [`CmaArea`]: handing out and taking back.
//!
//! ```text
//! alloc ─▶ turn ─▶ ranges: find clear bits ─▶ set ─▶ take_range ─▶ pages
//!                      ▲                               │ busy: clear, go on behind the frame in the way
//!                      └───────────────────────────────┘ no memory: clear, fail
//! release ─▶ all bits set? ─▶ return_range ─▶ clear
//! ```

use core::fmt;
use core::mem::ManuallyDrop;

use kmem_gfp::{AllocContext, AllocError, ContigRange, FreeError, Gfp, Order, Pfn, PfnRange};
use kmem_sync::atomic::Ordering;

use crate::bitmap::{self, Wish};
use crate::book::{ACTIVE, BUSY, Book, DEAD, DECLARED, Span, Turn};
use crate::{Cma, CmaEnv, CmaError, Contiguous, Lender, ReleaseError};

/// One area. A copy is as good as the original.
pub struct CmaArea<'a, E> {
    pub(crate) cma: &'a Cma<E>,
    pub(crate) book: &'a Book,
}

impl<E> Clone for CmaArea<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E> Copy for CmaArea<'_, E> {}

impl<E> PartialEq for CmaArea<'_, E> {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.book, other.book)
    }
}
impl<E> Eq for CmaArea<'_, E> {}

impl<E> fmt::Debug for CmaArea<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmaArea").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl<'a, E> CmaArea<'a, E> {
    /// Its name.
    #[doc(alias = "cma_get_name")]
    pub fn name(&self) -> &'a str {
        self.book.name.as_str()
    }

    /// Its ranges, upwards.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = PfnRange> + use<'a, E> {
        self.book.spans().iter().map(Span::frames)
    }

    /// The first frame, if the area has one range; `None` if it has several, for then this says little.
    #[doc(alias = "cma_get_base")]
    pub fn base(&self) -> Option<Pfn> {
        match self.book.spans() {
            [only] => Some(Pfn(only.start)),
            _ => None,
        }
    }

    /// Pages of all ranges; 0 once activation has failed.
    #[doc(alias = "cma_get_size")]
    pub fn nr_pages(&self) -> u64 {
        self.book.nr_pages.load(Ordering::Relaxed)
    }

    /// log2 of the pages that a bit stands for.
    pub fn order_per_bit(&self) -> u32 {
        self.book.order_per_bit
    }

    /// Whether it hands out memory.
    pub fn is_active(&self) -> bool {
        self.book.is_active()
    }

    /// Whether devices' memory may come from it.
    pub fn is_for_dma(&self) -> bool {
        self.book.for_dma
    }
}

/// How an allocation ended at one range.
enum Outcome {
    Got(PfnRange),
    /// Nothing here; what was in the way last.
    Full(Option<Pfn>),
}

impl<'a, E: CmaEnv> CmaArea<'a, E> {
    fn env(&self) -> &'a E {
        &self.cma.env
    }

    /// Lends the area's memory to movable requests and begins to hand it out. Whether the area is active then.
    pub fn activate(&self) -> bool {
        self.activate_unless(|| false)
    }

    /// As [`activate`](Self::activate), unless `refused` says that the area is not wanted after all (a boot option, a device that
    /// is not there): then its memory is ordinary memory, and the area has no pages.
    pub fn activate_unless(&self, refused: impl FnOnce() -> bool) -> bool {
        let state = &self.book.state;
        if state.compare_exchange(DECLARED, BUSY, Ordering::Acquire, Ordering::Acquire).is_err() {
            return self.is_active();
        }
        let refused = refused();
        let early = self.book.bits.with(self.env().cpu(), |bits| bits.early);
        for (span, early) in self.book.spans().iter().zip(early) {
            let frames = span.frames();
            let lent = PfnRange::new(Pfn(frames.start.0 + early), frames.end);
            if lent.is_empty() {
                continue;
            }
            // SAFETY: taken when the area was declared, and `reserve_early` gave away the part before alone.
            unsafe {
                if refused {
                    self.env().source().give_up(lent);
                } else {
                    self.env().source().lend(lent);
                }
            }
        }
        if refused {
            self.book.nr_pages.store(0, Ordering::Relaxed);
        }
        // Release: whoever sees the area active sees its memory lent.
        state.store(if refused { DEAD } else { ACTIVE }, Ordering::Release);
        !refused
    }

    /// Hands out memory before activation, for good: whole pageblocks and bits from the lowest range that has so many. `None`
    /// if none has, or the area is active.
    #[doc(alias = "cma_reserve_early")]
    pub fn reserve_early(&self, nr_pages: u64) -> Option<PfnRange> {
        let state = &self.book.state;
        if nr_pages == 0 || state.compare_exchange(DECLARED, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return None;
        }
        let grain = crate::MIN_ALIGN_PAGES.max(self.book.pages_per_bit());
        let found = nr_pages.checked_next_multiple_of(grain).and_then(|size| {
            self.book.bits.with(self.env().cpu(), |bits| {
                let mut spans = self.book.spans().iter().zip(bits.early);
                let number = spans.position(|(span, early)| span.nr_pages - early >= size)?;
                let span = self.book.spans().get(number)?;
                let early = bits.early.get_mut(number)?;
                let first = *early >> self.book.order_per_bit;
                let nr_bits = size >> self.book.order_per_bit;
                *early += size;
                bits.available = bits.available.saturating_sub(size);
                bitmap::assign(bits.of_mut(span), first, first + nr_bits, true);
                Some(self.book.frames(span, first, nr_bits))
            })
        });
        state.store(DECLARED, Ordering::Release);
        found
    }

    /// Hands out at least `nr_pages` contiguous pages whose first is a multiple of `1 << align_order`: whole bits, so what
    /// comes back may be longer. Moves what lies there. Contents are whatever was there before.
    ///
    /// Only where sleeping is allowed. Places are tried upwards, each once. Requests to one area take turns; releases do not
    /// wait for them. A failure is reported.
    ///
    /// # Errors
    /// [`CmaError`].
    #[doc(alias("cma_alloc", "cma_alloc_frozen"))]
    pub fn alloc(&self, nr_pages: u64, align_order: u32) -> Result<CmaPages<'a, E>, CmaError> {
        self.alloc_with(nr_pages, align_order, Gfp::KERNEL)
    }

    /// As [`alloc`](Self::alloc), without a report.
    ///
    /// # Errors
    /// [`CmaError`].
    pub fn try_alloc(&self, nr_pages: u64, align_order: u32) -> Result<CmaPages<'a, E>, CmaError> {
        self.alloc_with(nr_pages, align_order, Gfp::KERNEL | Gfp::NOWARN)
    }

    /// One block of `1 << order` pages, aligned to its size; without a report.
    ///
    /// # Errors
    /// [`CmaError`].
    #[doc(alias = "cma_alloc_frozen_compound")]
    pub fn alloc_compound(&self, order: Order) -> Result<CmaPages<'a, E>, CmaError> {
        let nr_pages = order.nr_pages() as u64;
        if nr_pages < self.book.pages_per_bit() {
            return Err(CmaError::BadRequest { nr_pages, align_order: order.get() });
        }
        self.alloc_with(nr_pages, order.get(), Gfp::KERNEL | Gfp::COMP | Gfp::NOWARN)
    }

    fn alloc_with(&self, nr_pages: u64, align_order: u32, gfp: Gfp) -> Result<CmaPages<'a, E>, CmaError> {
        // INVARIANT: just taken.
        self.alloc_raw(nr_pages, align_order, gfp).map(|range| CmaPages { area: *self, range })
    }

    /// As [`alloc`](Self::alloc), the pages being the caller's to [release](Self::release) by hand; `gfp` as
    /// [`ContigRange::take_range`] takes it. [`Gfp::NOWARN`] silences the report, [`Gfp::ZERO`] clears the pages.
    ///
    /// # Errors
    /// [`CmaError`].
    pub fn alloc_raw(&self, nr_pages: u64, align_order: u32, gfp: Gfp) -> Result<PfnRange, CmaError> {
        if !self.is_active() {
            return Err(CmaError::Inactive);
        }
        let order_per_bit = self.book.order_per_bit;
        if nr_pages == 0 || align_order >= 52 {
            return Err(CmaError::BadRequest { nr_pages, align_order });
        }
        if !self.env().context().task_flags().may_sleep() {
            return Err(CmaError::MustNotSleep);
        }
        let nr = nr_pages.div_ceil(self.book.pages_per_bit());
        let mask = (1 << align_order.saturating_sub(order_per_bit)) - 1;
        let counts = &self.book.counts;
        let result = {
            let _turn = Turn::wait(&self.book.turn, self.env().context());
            self.find(nr, mask, gfp)
        };
        match result {
            Ok(Outcome::Got(range)) => {
                counts.success.fetch_add(1, Ordering::Relaxed);
                counts.pages_success.fetch_add(range.len(), Ordering::Relaxed);
                Ok(range)
            }
            Ok(Outcome::Full(busy)) => {
                self.count_failure(nr_pages);
                let error = CmaError::NoRoom { nr_pages, busy };
                self.report(error, gfp);
                Err(error)
            }
            Err(error) => {
                self.count_failure(nr_pages);
                let error = CmaError::Source(error);
                self.report(error, gfp);
                Err(error)
            }
        }
    }

    fn count_failure(&self, nr_pages: u64) {
        self.book.counts.fail.fetch_add(1, Ordering::Relaxed);
        self.book.counts.pages_fail.fetch_add(nr_pages, Ordering::Relaxed);
    }

    fn find(&self, nr: u64, mask: u64, gfp: Gfp) -> Result<Outcome, AllocError> {
        let mut last = None;
        for span in self.book.spans() {
            match self.find_in(span, nr, mask, gfp)? {
                got @ Outcome::Got(_) => return Ok(got),
                Outcome::Full(busy) => last = busy.or(last),
            }
        }
        Ok(Outcome::Full(last))
    }

    /// Looks through one range. The caller has the turn.
    fn find_in(&self, span: &Span, nr: u64, mask: u64, gfp: Gfp) -> Result<Outcome, AllocError> {
        let cpu = self.env().cpu();
        let wish = Wish { nr, mask, offset: (span.start >> self.book.order_per_bit) & mask };
        let nr_bits = self.book.nr_bits(span);
        let pages = nr << self.book.order_per_bit;
        let mut from = 0;
        let mut last = None;
        loop {
            let found = self.book.bits.with(cpu, |bits| {
                if pages > bits.available {
                    return None;
                }
                let bit = bitmap::find_clear(bits.of(span), nr_bits, from, wish)?;
                bitmap::assign(bits.of_mut(span), bit, bit + nr, true);
                bits.available -= pages;
                Some(bit)
            });
            let Some(bit) = found else { return Ok(Outcome::Full(last)) };
            let range = self.book.frames(span, bit, nr);
            let error = match self.env().source().take_range(range, gfp) {
                Ok(()) => return Ok(Outcome::Got(range)),
                Err(error) => error,
            };
            self.clear(span, bit, nr);
            let AllocError::Busy(busy) = error else { return Err(error) };
            self.book.counts.retries.fetch_add(1, Ordering::Relaxed);
            last = Some(busy);
            // Every place that holds the frame in the way would fail as well.
            let step = if range.contains(busy) { (busy.0 - span.start) >> self.book.order_per_bit } else { bit };
            from = step + 1;
        }
    }

    fn clear(&self, span: &Span, bit: u64, nr: u64) {
        self.book.bits.with(self.env().cpu(), |bits| {
            bitmap::assign(bits.of_mut(span), bit, bit + nr, false);
            bits.available += nr << self.book.order_per_bit;
        });
    }

    /// Takes back pages of [`alloc_raw`](Self::alloc_raw): whole bits, all or any part of an allocation, or neighbouring ones
    /// together. They serve movable requests again. Any context but NMI, as long as the page allocator's
    /// [`return_range`](ContigRange::return_range) may run there; O(pages / 64).
    ///
    /// # Errors
    /// [`ReleaseError`]; nothing has changed. [`ReleaseError::Foreign`] is what a caller with several sources asks about.
    ///
    /// # Safety
    /// The caller owns every frame of `range` and nothing uses them any more.
    #[doc(alias("cma_release", "cma_release_frozen"))]
    pub unsafe fn release(&self, range: PfnRange) -> Result<(), ReleaseError> {
        let Some((number, span, first, end)) = self.book.locate(range).filter(|_| self.is_active()) else {
            return Err(ReleaseError::Foreign(range));
        };
        let pages_per_bit = self.book.pages_per_bit();
        if !(range.start.0 - span.start).is_multiple_of(pages_per_bit) || !range.len().is_multiple_of(pages_per_bit) {
            return Err(ReleaseError::PartialBit { range, pages_per_bit });
        }
        let stray = self.book.bits.with(self.env().cpu(), |bits| {
            let early = bits.early.get(number).copied().unwrap_or(0);
            if range.start.0 - span.start < early {
                return Some(range.start);
            }
            let clear = bitmap::next(bits.of(span), first, end, false)?;
            Some(self.book.frames(span, clear, 1).start)
        });
        if let Some(pfn) = stray {
            return Err(ReleaseError::NotAllocated(pfn));
        }
        // The frames first: once the bits are clear the next request may want them.
        // SAFETY: the caller owns the frames.
        let returned: Result<(), FreeError> = unsafe { self.env().source().return_range(range) };
        returned?;
        self.clear(span, first, end - first);
        self.book.counts.pages_released.fetch_add(range.len(), Ordering::Relaxed);
        Ok(())
    }
}

// SAFETY: pages come from the area and belong to one holder at a time.
unsafe impl<E: CmaEnv> Contiguous for CmaArea<'_, E> {
    fn take(&self, nr_pages: u64, align_order: u32) -> Option<PfnRange> {
        let range = self.alloc_raw(nr_pages, align_order, Gfp::KERNEL | Gfp::NOWARN).ok()?;
        PfnRange::with_len(range.start, nr_pages)
    }

    unsafe fn give(&self, range: PfnRange) -> Result<(), ReleaseError> {
        // What `take` cut off: the pages of the last bit.
        let len = range.len().next_multiple_of(self.book.pages_per_bit());
        let whole = PfnRange::with_len(range.start, len).ok_or(ReleaseError::Foreign(range))?;
        // SAFETY: the caller's promise, and nobody has seen the rest.
        unsafe { self.release(whole) }
    }
}

// SAFETY: as above; a range lies in one area.
unsafe impl<E: CmaEnv> Contiguous for Cma<E> {
    fn take(&self, nr_pages: u64, align_order: u32) -> Option<PfnRange> {
        self.areas().filter(CmaArea::is_for_dma).find_map(|area| area.take(nr_pages, align_order))
    }

    unsafe fn give(&self, range: PfnRange) -> Result<(), ReleaseError> {
        let area = self.area_of(range.start).ok_or(ReleaseError::Foreign(range))?;
        // SAFETY: the caller's promise is the same.
        unsafe { area.give(range) }
    }
}

/// Owned pages of an area; released on drop.
///
/// # Invariants
/// `range` was handed out by `area` and nobody else owns it.
#[must_use = "dropping `CmaPages` releases the pages"]
pub struct CmaPages<'a, E: CmaEnv> {
    area: CmaArea<'a, E>,
    range: PfnRange,
}

impl<E: CmaEnv> fmt::Debug for CmaPages<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CmaPages").field("area", &self.area).field("range", &self.range).finish()
    }
}

impl<'a, E: CmaEnv> CmaPages<'a, E> {
    /// The frames: as many as asked for, rounded up to whole bits.
    pub fn range(&self) -> PfnRange {
        self.range
    }

    /// The area they are from.
    pub fn area(&self) -> CmaArea<'a, E> {
        self.area
    }

    /// Gives up ownership: the caller [releases](CmaArea::release) the pages by hand, or never.
    pub fn into_raw(self) -> PfnRange {
        ManuallyDrop::new(self).range
    }

    /// Takes ownership of pages, as [`into_raw`](Self::into_raw) left them.
    ///
    /// # Safety
    /// `area` handed out `range`, and the caller owns it.
    pub unsafe fn from_raw(area: CmaArea<'a, E>, range: PfnRange) -> Self {
        // INVARIANT: the caller's promise.
        Self { area, range }
    }
}

impl<E: CmaEnv> Drop for CmaPages<'_, E> {
    fn drop(&mut self) {
        // SAFETY: we own the pages (type invariant) and are their last user.
        let released = unsafe { self.area.release(self.range) };
        debug_assert!(released.is_ok(), "{released:?}");
    }
}
