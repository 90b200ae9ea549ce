//! [`Swap`]: places for pages on a [`SwapDevice`].
//!
//! ```text
//! bits: a word for 64 places, set = taken        hint: where the next search begins
//! ```

use std::io;

use kmem_gfp::PAGE_SIZE;
use kmem_sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::SwapDevice;

/// Every place is taken, or the device refused the page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwapFull {
    /// No place is free.
    #[error("all {0} pages of swap are in use")]
    Full(u64),
    /// The device failed.
    #[error("the swap device failed")]
    Device(#[from] io::Error),
}

/// Swap of a machine: a device, and which of its places are taken.
pub struct Swap {
    device: Box<dyn SwapDevice>,
    taken: Box<[AtomicU64]>,
    pages: u64,
    free: AtomicU64,
    hint: AtomicUsize,
    written: AtomicU64,
    read: AtomicU64,
}

impl core::fmt::Debug for Swap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Swap").field("pages", &self.pages).field("free", &self.free_pages()).finish_non_exhaustive()
    }
}

impl Swap {
    /// `pages` places, none taken, on `device`.
    pub fn new(device: Box<dyn SwapDevice>, pages: u64) -> Self {
        let words = pages.div_ceil(64) as usize;
        let taken: Box<[AtomicU64]> = (0..words as u64)
            .map(|word| {
                let last = pages.saturating_sub(word * 64);
                AtomicU64::new(if last < 64 { u64::MAX << last } else { 0 })
            })
            .collect();
        Self {
            device,
            taken,
            pages,
            free: AtomicU64::new(pages),
            hint: AtomicUsize::new(0),
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
        }
    }

    /// All places.
    pub fn total_pages(&self) -> u64 {
        self.pages
    }

    /// Places that are not taken.
    pub fn free_pages(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Pages written to the device and read from it so far.
    #[doc(alias("pswpout", "pswpin"))]
    pub fn traffic(&self) -> (u64, u64) {
        (self.written.load(Ordering::Relaxed), self.read.load(Ordering::Relaxed))
    }

    /// What the places are on.
    pub fn device(&self) -> &dyn SwapDevice {
        &*self.device
    }

    fn take(&self) -> Option<u64> {
        let nr = self.taken.len();
        let start = self.hint.load(Ordering::Relaxed);
        for at in (0..nr).map(|step| (start + step) % nr.max(1)) {
            let Some(word) = self.taken.get(at) else { continue };
            let mut seen = word.load(Ordering::Relaxed);
            while seen != u64::MAX {
                let bit = seen.trailing_ones();
                match word.compare_exchange(seen, seen | 1 << bit, Ordering::Acquire, Ordering::Relaxed) {
                    Ok(_) => {
                        self.hint.store(at, Ordering::Relaxed);
                        self.free.fetch_sub(1, Ordering::Relaxed);
                        return Some(at as u64 * 64 + u64::from(bit));
                    }
                    Err(now) => seen = now,
                }
            }
        }
        None
    }

    /// Writes a page to a free place and returns which.
    pub(crate) fn store(&self, page: &[u8; PAGE_SIZE]) -> Result<u64, SwapFull> {
        let place = self.take().ok_or(SwapFull::Full(self.pages))?;
        if let Err(error) = self.device.write_page(place, page) {
            self.release(place);
            return Err(error.into());
        }
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(place)
    }

    /// Reads the page at a taken place.
    pub(crate) fn load(&self, place: u64, page: &mut [u8; PAGE_SIZE]) -> io::Result<()> {
        self.device.read_page(place, page)?;
        self.read.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Nobody reads that place any more.
    pub(crate) fn release(&self, place: u64) {
        self.device.discard_page(place);
        if let Some(word) = self.taken.get((place / 64) as usize) {
            // Release pairs with the acquire in `take`: the next writer comes behind.
            word.fetch_and(!(1 << (place % 64)), Ordering::Release);
            self.free.fetch_add(1, Ordering::Relaxed);
        }
    }
}
