//! [`Cma`]: the areas of a machine, and how they come to be.
//!
//! ```text
//! declare (takes ordinary memory) ─┐
//! init_reserved (boot's memory) ───┴─▶ declared ── reserve_early ──▶ activate ─▶ active
//!                                                                        └─ refused ─▶ dead, its memory ordinary
//! ```

use core::fmt;
use core::ptr::{NonNull, null_mut};

use kmem_gfp::{Pfn, PfnRange};
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use kmem_sync::{IrqLock, const_fn};

use crate::area::CmaArea;
use crate::book::{Bits, Book, Counts, DECLARED, Span};
use crate::place::{Found, find_place};
use crate::spec::{MAX_RANGES, Name, book_layout, whole};
use crate::{AreaSpec, CmaEnv, DeclareError, Lender};

/// The contiguous areas of a machine. `const`-made, so a `static` can hold it; how many areas there are is nobody's
/// constant, for each brings its own bookkeeping memory.
///
/// # Invariants
/// `first` heads a list of books, each in memory that was given to this value for good; the list only grows.
pub struct Cma<E> {
    pub(crate) env: E,
    first: AtomicPtr<Book>,
    nr_areas: AtomicU32,
}

impl<E> fmt::Debug for Cma<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cma").field("nr_areas", &self.nr_areas.load(Ordering::Relaxed)).finish_non_exhaustive()
    }
}

impl<E> Cma<E> {
    const_fn! {
        /// No areas yet.
        pub fn new(env: E) -> Self {
            Self { env, first: AtomicPtr::new(null_mut()), nr_areas: AtomicU32::new(0) }
        }
    }

    fn books(&self) -> impl Iterator<Item = &Book> {
        // SAFETY: null or a book that stays (type invariant). Acquire pairs with the release in `publish`.
        let follow = |link: &AtomicPtr<Book>| unsafe { link.load(Ordering::Acquire).as_ref() };
        core::iter::successors(follow(&self.first), move |book| follow(&book.next))
    }

    /// How many areas have been declared.
    pub fn nr_areas(&self) -> u32 {
        self.nr_areas.load(Ordering::Relaxed)
    }
}

impl<E> Drop for Cma<E> {
    fn drop(&mut self) {
        let mut next = self.first.load(Ordering::Acquire);
        // SAFETY: a book of ours (type invariant), dropped once; nobody else is here.
        while let Some(book) = unsafe { next.as_ref() } {
            let this = next;
            next = book.next.load(Ordering::Acquire);
            // SAFETY: as above.
            unsafe { this.drop_in_place() };
        }
    }
}

impl<E: CmaEnv> Cma<E> {
    /// Declares an area and takes its memory from the page allocator, in one range if there is such a place. It has yet to be
    /// [activated](CmaArea::activate). Only where sleeping is allowed; O(memory / pageblock) attempts.
    ///
    /// Unless a place is given the area is put above 4 GiB if there is memory, from below; else as high as possible.
    ///
    /// # Errors
    /// [`DeclareError`]; nothing has changed.
    ///
    /// # Safety
    /// `memory` is as [`layout`](crate::layout) asks for, and nobody else uses it for as long as this value exists.
    #[doc(alias("cma_declare_contiguous", "cma_declare_contiguous_nid"))]
    pub unsafe fn declare(&self, spec: &AreaSpec<'_>, memory: NonNull<u8>) -> Result<CmaArea<'_, E>, DeclareError> {
        let found = find_place(self.env.source(), spec, 1)?;
        // SAFETY: the caller's promise.
        Ok(unsafe { self.publish(spec, &found, memory) })
    }

    /// As [`declare`](Self::declare), but if there is no one place for all of the area it is put together of up to
    /// [`MAX_RANGES`] ranges, as large as possible: all of it or nothing. A request is served from one of the ranges.
    ///
    /// # Errors
    /// As for [`declare`](Self::declare).
    ///
    /// # Safety
    /// As for [`declare`](Self::declare).
    #[doc(alias = "cma_declare_contiguous_multi")]
    pub unsafe fn declare_multi(
        &self,
        spec: &AreaSpec<'_>,
        memory: NonNull<u8>,
    ) -> Result<CmaArea<'_, E>, DeclareError> {
        let found = find_place(self.env.source(), spec, MAX_RANGES)?;
        // SAFETY: the caller's promise.
        Ok(unsafe { self.publish(spec, &found, memory) })
    }

    /// Declares an area over memory that was reserved when the machine was set up. The specification's size and place do not
    /// count.
    ///
    /// # Errors
    /// [`DeclareError::NotReserved`], after which the memory is ordinary memory; others, after which nothing has changed.
    ///
    /// # Safety
    /// 1. As for [`declare`](Self::declare), with a layout for as many pages as `ranges` have.
    /// 2. Nobody uses those frames of the ranges that are reserved.
    #[doc(alias = "cma_init_reserved_mem")]
    pub unsafe fn init_reserved(
        &self,
        spec: &AreaSpec<'_>,
        ranges: &[PfnRange],
        memory: NonNull<u8>,
    ) -> Result<CmaArea<'_, E>, DeclareError> {
        let nr_pages = ranges.iter().fold(0_u64, |sum, range| sum.saturating_add(range.len()));
        let spec = AreaSpec { nr_pages, ..*spec };
        let (grain, _) = spec.checked()?;
        let mut found = Found::default();
        for &range in ranges {
            whole(range, grain)?;
            found.push(range).ok_or(DeclareError::TooManyRanges { nr: ranges.len() })?;
        }
        for (nth, &range) in ranges.iter().enumerate() {
            // SAFETY: nobody uses what is reserved, the caller says.
            if unsafe { self.env.source().adopt(range) }.is_err() {
                for &adopted in ranges.iter().take(nth) {
                    // SAFETY: adopted above, and nobody has seen it.
                    unsafe { self.env.source().give_up(adopted) };
                }
                return Err(DeclareError::NotReserved(range));
            }
        }
        // SAFETY: the caller's promise.
        Ok(unsafe { self.publish(&spec, &found, memory) })
    }

    /// Writes the book of an area whose ranges are ours and lists it.
    ///
    /// # Safety
    /// As for [`declare`](Self::declare).
    unsafe fn publish(&self, spec: &AreaSpec<'_>, found: &Found, memory: NonNull<u8>) -> CmaArea<'_, E> {
        let mut spans = [Span::default(); MAX_RANGES];
        let (mut nr_pages, mut nr_words) = (0, 0);
        for (span, range) in spans.iter_mut().zip(found.ranges()) {
            *span = Span { start: range.start.0, nr_pages: range.len(), first_word: nr_words };
            nr_pages += range.len();
            nr_words += (range.len() >> spec.order_per_bit).div_ceil(64) as usize;
        }
        let book: NonNull<Book> = memory.cast();
        debug_assert!(book_layout(nr_pages, spec.order_per_bit).is_some_and(|layout| {
            memory.addr().get().is_multiple_of(layout.align()) && size_of::<Book>() + nr_words * 8 <= layout.size()
        }));
        // SAFETY: the layout holds a book and these words behind it, aligned for both (`book_layout`), and is ours.
        let book = unsafe {
            let words = book.add(1).cast::<u64>();
            words.write_bytes(0, nr_words);
            let number = self.nr_areas.fetch_add(1, Ordering::Relaxed);
            book.write(Book {
                next: AtomicPtr::new(null_mut()),
                name: Name::new(spec.name, number),
                order_per_bit: spec.order_per_bit,
                for_dma: spec.for_dma,
                nr_spans: found.ranges().len(),
                span: spans,
                nr_pages: AtomicU64::new(nr_pages),
                state: AtomicU32::new(DECLARED),
                turn: AtomicBool::new(false),
                bits: IrqLock::new(Bits::new(words, nr_words, nr_pages)),
                counts: Counts::default(),
            });
            book.as_ref()
        };
        // INVARIANT: the new book joins at the end, so that areas are listed in the order of their numbers.
        let mut link = &self.first;
        loop {
            // Release: whoever finds the book sees it written.
            let new = core::ptr::from_ref(book).cast_mut();
            match link.compare_exchange(null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return CmaArea { cma: self, book },
                // SAFETY: a book that stays (type invariant).
                Err(other) => link = unsafe { &(*other).next },
            }
        }
    }

    /// Every area, in the order of declaration.
    pub fn areas(&self) -> impl Iterator<Item = CmaArea<'_, E>> {
        self.books().map(|book| CmaArea { cma: self, book })
    }

    /// Calls `f` with each area until it says something; that is the result.
    #[doc(alias = "cma_for_each_area")]
    pub fn for_each<R>(&self, f: impl FnMut(CmaArea<'_, E>) -> Option<R>) -> Option<R> {
        self.areas().find_map(f)
    }

    /// The area with this name; the first, if there are several.
    pub fn area(&self, name: &str) -> Option<CmaArea<'_, E>> {
        self.areas().find(|area| area.name() == name)
    }

    /// The area that a frame lies in.
    pub fn area_of(&self, pfn: Pfn) -> Option<CmaArea<'_, E>> {
        self.areas().find(|area| area.ranges().any(|range| range.contains(pfn)))
    }

    /// Activates every area that is not; whether all are active then.
    #[doc(alias = "cma_init_reserved_areas")]
    pub fn activate_all(&self) -> bool {
        let mut all = true;
        for area in self.areas() {
            all &= area.activate();
        }
        all
    }
}
