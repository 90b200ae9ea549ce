//! Writeback: the oldest pages go on to the device.
//!
//! ```text
//! entry: leaving ──▶ device.write_page, no lock held ──ok──▶ entry removed, object freed ──▶ waiters
//!                                                     └─error─▶ entry as before ───────────▶ waiters
//! ```

use std::io;

use kmem_sync::atomic::Ordering;

use super::stats::count;
use super::{SwapDevice, Zswap};
use crate::compress::ZERO_PAGE;

/// Pages written between two looks at the pool.
const BATCH: u64 = 16;

/// Takes the mark off a page that is being written, whatever comes of it.
struct Leaving<'a, D: SwapDevice> {
    zswap: &'a Zswap<D>,
    offset: u64,
    is_written: bool,
}

impl<D: SwapDevice> Drop for Leaving<'_, D> {
    fn drop(&mut self) {
        let Some(mut pages) = self.zswap.index.lock(self.offset) else { return };
        let gone = if self.is_written {
            pages.remove(self.offset)
        } else {
            if let Some(entry) = pages.get(self.offset) {
                entry.is_leaving = false;
            }
            None
        };
        drop(pages);
        self.zswap.index.wake(self.offset);
        if let Some(entry) = gone {
            self.zswap.forget(entry);
        }
    }
}

impl<D: SwapDevice> Zswap<D> {
    /// Writes up to `nr` of the oldest pages to the device and drops them from the cache; returns how many. May sleep. Several
    /// threads may do so at once.
    ///
    /// # Errors
    /// What the device says, or [`io::ErrorKind::InvalidData`] if memory is damaged: the page stays in the cache.
    #[doc(alias = "zswap_writeback_entry")]
    pub fn writeback(&self, nr: u64) -> io::Result<u64> {
        let mut written = 0;
        while self.writes_back && written < nr {
            let Some((age, offset)) = self.index.oldest() else { break };
            let Some(mut pages) = self.index.lock(offset) else { break };
            // It may have gone, or somebody else may have been faster.
            let Some(entry) = pages.get(offset).filter(|entry| entry.age == age && !entry.is_leaving) else { continue };
            entry.is_leaving = true;
            drop(pages);
            let mut leaving = Leaving { zswap: self, offset, is_written: false };
            let mut page = ZERO_PAGE;
            if self.load_for_writeback(offset, &mut page)? {
                self.device.write_page(offset, &page)?;
                leaving.is_written = true;
                count(&self.counters.written_back);
                written += 1;
            }
        }
        Ok(written)
    }

    /// Loads a page without counting it as one that was asked for.
    fn load_for_writeback(&self, offset: u64, page: &mut crate::compress::PageBytes) -> io::Result<bool> {
        let found = self.load(offset, page)?;
        if found {
            self.counters.loaded.fetch_sub(1, Ordering::Relaxed);
        }
        Ok(found)
    }

    /// Whether the pool has been full, so that [`shrink`](Self::shrink) has work to do.
    pub fn wants_shrink(&self) -> bool {
        self.is_full.load(Ordering::Relaxed) && self.pool.total_pages() > self.accept
    }

    /// Writes back until the pool takes pages again; returns how many pages that were. What a kernel's worker does when the
    /// limit is hit: for whoever has time and may sleep.
    ///
    /// # Errors
    /// Those of [`writeback`](Self::writeback).
    pub fn shrink(&self) -> io::Result<u64> {
        let mut written = 0;
        while self.pool.total_pages() > self.accept {
            let nr = self.writeback(BATCH)?;
            // Objects freed here and there leave holes.
            self.pool.compact_until(self.pool.total_pages().saturating_sub(self.accept));
            if nr == 0 {
                break;
            }
            written += nr;
        }
        Ok(written)
    }
}
