//! The bookkeeping of one area, in memory of the caller's: a descriptor, then the bitmaps of its ranges.
//!
//! ```text
//! Book ── next ──▶ Book ── next ──▶ null                     a list that only grows
//!  ├ span[0..nr]   the ranges: first frame, pages, first word of its bitmap, pages handed out before activation
//!  ├ state         declared ─▶ active | dead
//!  ├ turn          whoever allocates; the others wait for it, asleep if the platform can
//!  ├ bits ▼        bitmap words and the available count, behind a spin lock that is held for a search at most
//!  └ [word][word]..[word]
//! ```

use core::ptr::NonNull;

use kmem_gfp::{AllocContext, Pfn, PfnRange};
use kmem_sync::IrqLock;
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::bitmap;
use crate::spec::{MAX_RANGES, Name};

/// Not activated yet.
pub(crate) const DECLARED: u32 = 0;
/// Somebody activates it.
pub(crate) const BUSY: u32 = 1;
/// Hands out memory.
pub(crate) const ACTIVE: u32 = 2;
/// Could not be activated.
pub(crate) const DEAD: u32 = 3;

/// One range of an area.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) nr_pages: u64,
    pub(crate) first_word: usize,
}

impl Span {
    pub(crate) fn frames(&self) -> PfnRange {
        PfnRange::new(Pfn(self.start), Pfn(self.start.saturating_add(self.nr_pages)))
    }
}

/// What the lock guards.
///
/// # Invariants
/// `words` points to `nr_words` words that are reached through this value alone.
pub(crate) struct Bits {
    words: NonNull<u64>,
    nr_words: usize,
    /// Pages whose bits are clear.
    pub(crate) available: u64,
    /// Pages of each range handed out before activation, from its start on.
    pub(crate) early: [u64; MAX_RANGES],
}

// SAFETY: the words belong to this value alone (type invariant).
unsafe impl Send for Bits {}

impl Bits {
    /// # Safety
    /// The invariant of the type.
    pub(crate) unsafe fn new(words: NonNull<u64>, nr_words: usize, available: u64) -> Self {
        // INVARIANT: the caller's promise.
        Self { words, nr_words, available, early: [0; MAX_RANGES] }
    }

    /// The bitmap of a range, and of those behind it.
    pub(crate) fn of(&self, span: &Span) -> &[u64] {
        // SAFETY: type invariant.
        let words = unsafe { core::slice::from_raw_parts(self.words.as_ptr(), self.nr_words) };
        words.get(span.first_word..).unwrap_or_default()
    }

    /// As [`of`](Self::of), to be changed.
    pub(crate) fn of_mut(&mut self, span: &Span) -> &mut [u64] {
        // SAFETY: type invariant.
        let words = unsafe { core::slice::from_raw_parts_mut(self.words.as_ptr(), self.nr_words) };
        words.get_mut(span.first_word..).unwrap_or_default()
    }
}

/// See the file's header.
pub(crate) struct Book {
    pub(crate) next: AtomicPtr<Book>,
    pub(crate) name: Name,
    pub(crate) order_per_bit: u32,
    pub(crate) for_dma: bool,
    pub(crate) nr_spans: usize,
    pub(crate) span: [Span; MAX_RANGES],
    /// Pages of all ranges; zero once activation has failed.
    pub(crate) nr_pages: AtomicU64,
    pub(crate) state: AtomicU32,
    pub(crate) turn: AtomicBool,
    pub(crate) bits: IrqLock<Bits>,
    pub(crate) counts: Counts,
}

/// What an area has been asked for so far.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) success: AtomicU64,
    pub(crate) fail: AtomicU64,
    pub(crate) pages_success: AtomicU64,
    pub(crate) pages_fail: AtomicU64,
    pub(crate) pages_released: AtomicU64,
    /// Candidates that could not be emptied.
    pub(crate) retries: AtomicU64,
    /// When the present run of reports began, in milliseconds, and how many it has had.
    pub(crate) report_since: AtomicU64,
    pub(crate) reports: AtomicU32,
}

impl Book {
    /// The ranges.
    pub(crate) fn spans(&self) -> &[Span] {
        self.span.get(..self.nr_spans).unwrap_or_default()
    }

    /// Pages of a bit.
    pub(crate) fn pages_per_bit(&self) -> u64 {
        1 << self.order_per_bit
    }

    pub(crate) fn is_active(&self) -> bool {
        // Acquire pairs with the release of activation.
        self.state.load(Ordering::Acquire) == ACTIVE
    }

    /// The range that holds all of `frames`, its number, and the bits.
    pub(crate) fn locate(&self, frames: PfnRange) -> Option<(usize, &Span, u64, u64)> {
        let (number, span) = self.spans().iter().enumerate().find(|(_, span)| span.frames().contains(frames.start))?;
        if frames.is_empty() || frames.end > span.frames().end {
            return None;
        }
        let bit = |pfn: Pfn| (pfn.0 - span.start) >> self.order_per_bit;
        Some((number, span, bit(frames.start), bit(frames.end)))
    }

    /// The frames behind bits of a range.
    pub(crate) fn frames(&self, span: &Span, bit: u64, nr_bits: u64) -> PfnRange {
        let start = span.start.saturating_add(bit << self.order_per_bit);
        PfnRange::new(Pfn(start), Pfn(start.saturating_add(nr_bits << self.order_per_bit)))
    }

    /// Bits of a range.
    pub(crate) fn nr_bits(&self, span: &Span) -> u64 {
        span.nr_pages >> self.order_per_bit
    }

    /// Pages whose bits are set, and the largest run of clear ones, in pages.
    pub(crate) fn usage(&self, bits: &Bits) -> (u64, u64) {
        let (mut used, mut largest) = (0, 0);
        for span in self.spans() {
            let nr_bits = self.nr_bits(span);
            used += bitmap::count(bits.of(span), nr_bits);
            bitmap::each_clear(bits.of(span), nr_bits, |start, end| largest = largest.max(end - start));
        }
        (used << self.order_per_bit, largest << self.order_per_bit)
    }
}

/// The right to look for a place in an area and to empty it; the next one has it when this is dropped.
///
/// A request that fails at a place has set and cleared its bits meanwhile. As it has the turn all the while, no other
/// request mistakes them for pages in use.
pub(crate) struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    pub(crate) fn wait(turn: &'a AtomicBool, context: &impl AllocContext) -> Self {
        // Acquire pairs with the release of the one before.
        while turn.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            context.yield_now();
        }
        Self(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
