//! How deep a request may dig: watermark thresholds and the pages that count as usable.
//!
//! ```text
//!  of a min mark of 1000 pages, a request leaves at least
//!  1000 ├ KERNEL, NOFS, NOIO, USER; NOWAIT too (but for it highatomic pages count as usable)
//!   500 ├ HIGH that may sleep, real-time tasks, NOFAIL's last laps, OOM victims, ATOMIC|NOMEMALLOC
//!   375 ├ ATOMIC
//!     0 ┴ MEMALLOC, a task in reclaim: not checked
//! ```
//!
//! A request passes when `usable > threshold + lowmem_reserve` (strictly). Pure functions of values; any context.

use super::AllocFlags;
use crate::{frame::Order, zone::Watermark};

impl AllocFlags {
    /// How many pages of `mark_pages` must stay free for this request.
    ///
    /// [`NO_WATERMARKS`](Self::NO_WATERMARKS) is not looked at: such a request is not checked at all.
    #[must_use]
    #[inline]
    pub const fn threshold(self, mark_pages: u64) -> u64 {
        if !self.intersects(Self::RESERVES) {
            return mark_pages;
        }
        let mut left = mark_pages;
        if self.contains(Self::MIN_RESERVE) {
            left -= left / 2;
            if self.contains(Self::NON_BLOCK) {
                left -= left / 4;
            }
        }
        if self.contains(Self::OOM) {
            left -= left / 2;
        }
        left
    }

    /// Whether free pages of the highatomic reserve count as usable for this request.
    #[must_use]
    #[inline]
    pub const fn counts_highatomic(self) -> bool {
        self.intersects(Self::RESERVES)
    }
}

/// One zone's figures at the moment of a watermark check, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ZoneLevels {
    /// All free pages, highatomic and CMA ones included.
    pub free: u64,
    /// Free pages in highatomic pageblocks.
    pub free_highatomic: u64,
    /// Free pages in CMA pageblocks.
    pub free_cma: u64,
    /// The watermark to check, without boost.
    pub mark: u64,
    /// The zone's watermark boost; every mark is raised by it.
    pub boost: u64,
    /// What this zone keeps back from a request with this zone ceiling.
    pub lowmem_reserve: u64,
}

impl ZoneLevels {
    /// The free pages that a request of this order and these flags may count.
    #[must_use]
    #[inline]
    pub const fn usable(&self, order: Order, flags: AllocFlags) -> u64 {
        let mut unusable = (1u64 << order.get()) - 1;
        if !flags.counts_highatomic() {
            unusable = unusable.saturating_add(self.free_highatomic);
        }
        if !flags.contains(AllocFlags::CMA) {
            unusable = unusable.saturating_add(self.free_cma);
        }
        self.free.saturating_sub(unusable)
    }

    /// Whether the zone has pages enough for the request: usable pages above the threshold of the boosted mark plus the
    /// lowmem reserve. For orders above 0 a block of that size must also exist, which these figures cannot tell.
    ///
    /// [`AllocFlags::NO_WATERMARKS`] passes always. An order-0 request at the min mark with
    /// [`MIN_RESERVE`](AllocFlags::MIN_RESERVE) that fails because of the boost is checked again without it.
    #[must_use]
    #[inline]
    pub const fn passes(&self, order: Order, flags: AllocFlags) -> bool {
        if flags.contains(AllocFlags::NO_WATERMARKS) {
            return true;
        }
        let usable = self.usable(order, flags);
        if self.leaves(usable, self.mark.saturating_add(self.boost), flags) {
            return true;
        }
        self.boost > 0
            && order.get() == 0
            && flags.contains(AllocFlags::MIN_RESERVE)
            && matches!(flags.watermark(), Watermark::Min)
            && self.leaves(usable, self.mark, flags)
    }

    #[inline]
    const fn leaves(&self, usable: u64, mark: u64, flags: AllocFlags) -> bool {
        usable > flags.threshold(mark).saturating_add(self.lowmem_reserve)
    }
}
