//! How areas stand: counters, the names of the kernel's files, the report of a failure.

use core::fmt;

use kmem_gfp::{AllocContext, Gfp};
use kmem_sync::atomic::Ordering;

use crate::bitmap;
use crate::{CmaArea, CmaEnv, CmaError};

/// Reports that one period may have.
const REPORTS: u32 = 10;
/// The period, in milliseconds.
const PERIOD_MS: u64 = 5000;

/// The figures of an area.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CmaStats {
    /// Pages of the area; 0 if its activation failed.
    pub total_pages: u64,
    /// Pages that are not handed out.
    pub available_pages: u64,
    /// Pages that are handed out.
    pub used_pages: u64,
    /// Pages of the largest run that is not handed out.
    #[doc(alias = "maxchunk")]
    pub max_chunk_pages: u64,
    /// Requests that succeeded (`cma_alloc_success`).
    pub alloc_success: u64,
    /// Requests that failed (`cma_alloc_fail`).
    pub alloc_fail: u64,
    /// Pages handed out so far.
    pub alloc_pages_success: u64,
    /// Pages asked for in vain so far.
    pub alloc_pages_fail: u64,
    /// Pages taken back so far.
    pub release_pages_success: u64,
    /// Places that could not be emptied so far.
    pub busy_places: u64,
}

impl<'a, E: CmaEnv> CmaArea<'a, E> {
    /// The figures; a moment's values.
    pub fn stats(&self) -> CmaStats {
        let counts = &self.book.counts;
        let ((used_pages, max_chunk_pages), available_pages) =
            self.book.bits.with(self.cma.env.cpu(), |bits| (self.book.usage(bits), bits.available));
        let total_pages = self.nr_pages();
        CmaStats {
            total_pages,
            available_pages: available_pages.min(total_pages),
            used_pages,
            max_chunk_pages,
            alloc_success: counts.success.load(Ordering::Relaxed),
            alloc_fail: counts.fail.load(Ordering::Relaxed),
            alloc_pages_success: counts.pages_success.load(Ordering::Relaxed),
            alloc_pages_fail: counts.pages_fail.load(Ordering::Relaxed),
            release_pages_success: counts.pages_released.load(Ordering::Relaxed),
            busy_places: counts.retries.load(Ordering::Relaxed),
        }
    }

    /// Every file of the area below `/sys/kernel/mm/cma` and debugfs' `cma`, one a line: its path, a tab, what reading it gives.
    #[doc(alias("/sys/kernel/mm/cma", "/sys/kernel/debug/cma"))]
    pub fn files(&self) -> CmaFiles<'a, E> {
        CmaFiles(*self)
    }

    /// Says what failed, with the free runs; not too often.
    pub(crate) fn report(&self, error: CmaError, gfp: Gfp) {
        if gfp.contains(Gfp::NOWARN) || !self.may_report() {
            return;
        }
        let context = self.cma.env.context();
        context.report(format_args!("cma: {}: alloc failed: {error}", self.name()));
        context.report(format_args!("{}", FreeRuns(*self)));
    }

    fn may_report(&self) -> bool {
        let counts = &self.book.counts;
        let now = self.cma.env.context().now_ms();
        // Racing reports may let one more pass, or one less.
        if now.saturating_sub(counts.report_since.load(Ordering::Relaxed)) >= PERIOD_MS {
            counts.report_since.store(now, Ordering::Relaxed);
            counts.reports.store(0, Ordering::Relaxed);
        }
        counts.reports.fetch_add(1, Ordering::Relaxed) < REPORTS
    }
}

/// See [`CmaArea::files`].
#[derive(Clone, Copy, Debug)]
pub struct CmaFiles<'a, E>(CmaArea<'a, E>);

impl<E: CmaEnv> fmt::Display for CmaFiles<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let area = &self.0;
        let name = area.name();
        let stats = area.stats();
        for (file, value) in [
            ("alloc_pages_success", stats.alloc_pages_success),
            ("alloc_pages_fail", stats.alloc_pages_fail),
            ("release_pages_success", stats.release_pages_success),
            ("total_pages", stats.total_pages),
            ("available_pages", stats.available_pages),
        ] {
            writeln!(f, "/sys/kernel/mm/cma/{name}/{file}\t{value}")?;
        }
        for (file, value) in [
            ("count", stats.total_pages),
            ("order_per_bit", u64::from(area.order_per_bit())),
            ("used", stats.used_pages),
            ("maxchunk", stats.max_chunk_pages),
        ] {
            writeln!(f, "cma/{name}/{file}\t{value}")?;
        }
        for (nth, span) in area.book.spans().iter().enumerate() {
            writeln!(f, "cma/{name}/ranges/{nth}/base_pfn\t{}", span.start)?;
            write!(f, "cma/{name}/ranges/{nth}/bitmap\t")?;
            area.book.bits.with(area.cma.env.cpu(), |bits| {
                let words = bits.of(span).iter().take(area.book.nr_bits(span).div_ceil(64) as usize);
                for (nth, word) in words.enumerate() {
                    let space = if nth == 0 { "" } else { " " };
                    write!(f, "{space}{} {}", *word as u32, word >> 32)?;
                }
                Ok(())
            })?;
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The runs of pages that are not handed out: `number of pages of 2^order_per_bit: runs`.
struct FreeRuns<'a, E>(CmaArea<'a, E>);

impl<E: CmaEnv> fmt::Display for FreeRuns<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(area) = self;
        write!(f, "cma: number of available pages:")?;
        let mut first = true;
        let available = area.book.bits.with(area.cma.env.cpu(), |bits| {
            for span in area.book.spans() {
                let mut result = Ok(());
                bitmap::each_clear(bits.of(span), area.book.nr_bits(span), |start, end| {
                    let frames = area.book.frames(span, start, end - start);
                    let plus = if core::mem::take(&mut first) { " " } else { " + " };
                    if result.is_ok() {
                        result = write!(f, "{plus}{}@{:#x}", frames.len(), frames.start.0);
                    }
                });
                result?;
            }
            Ok(bits.available)
        })?;
        write!(f, " => {available} free of {} total pages", area.nr_pages())
    }
}
