//! Writeback: pages leave memory for a backing device.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use kmem_gfp::PAGE_SIZE;

use super::device::{Content, handle_of};
use super::slot::{HUGE, IDLE, Kind, SlotGuard};
use super::stats::Count;
use super::{Zram, ZramError};
use crate::compress::{PageBytes, ZERO_PAGE};
use std::sync::{Mutex, PoisonError};

/// Which pages an operation is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// All with an object.
    #[default]
    All,
    /// Those not accessed since [`Zram::mark_idle`].
    Idle,
    /// Those kept whole.
    Huge,
    /// Those that are both.
    HugeIdle,
}

impl Which {
    pub(super) fn takes(self, slot: &SlotGuard<'_>) -> bool {
        match self {
            Self::All => true,
            Self::Idle => slot.has(IDLE),
            Self::Huge => slot.has(HUGE),
            Self::HugeIdle => slot.has(HUGE) && slot.has(IDLE),
        }
    }
}

/// A file with room for whole pages, uncompressed.
#[derive(Debug)]
pub struct BackingDevice {
    file: File,
    places: Mutex<Places>,
}

/// The places of a backing device.
#[derive(Debug)]
struct Places {
    /// Given back.
    free: Vec<u64>,
    /// From here on none has been used yet.
    fresh: u64,
    total: u64,
}

impl BackingDevice {
    /// A file that may grow to `pages` pages; what is in it is overwritten.
    pub fn new(file: File, pages: u64) -> Self {
        Self { file, places: Mutex::new(Places { free: Vec::new(), fresh: 0, total: pages }) }
    }

    fn with_places<R>(&self, f: impl FnOnce(&mut Places) -> R) -> R {
        f(&mut self.places.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self) -> Option<u64> {
        self.with_places(|places| {
            places.free.pop().or_else(|| {
                let place = places.fresh;
                (place < places.total).then(|| places.fresh += 1).map(|()| place)
            })
        })
    }

    pub(super) fn free(&self, place: u64) {
        self.with_places(|places| places.free.push(place));
    }

    pub(super) fn read(&self, place: u64, data: &mut PageBytes) -> io::Result<()> {
        self.file.read_exact_at(data, place.saturating_mul(PAGE_SIZE as u64))
    }

    fn write(&self, place: u64, data: &PageBytes) -> io::Result<()> {
        self.file.write_all_at(data, place.saturating_mul(PAGE_SIZE as u64))
    }
}

impl Zram {
    /// Moves up to `max_pages` pages to the backing device; returns how many. A page's slot is locked while it is written.
    ///
    /// # Errors
    /// [`ZramError::NoBacking`], [`ZramError::Backing`], and those of [`read_page`](Self::read_page): this page and those behind are
    /// where they were.
    pub fn writeback(&self, which: Which, max_pages: u64) -> Result<u64, ZramError> {
        let backing = self.backing.as_ref().ok_or(ZramError::NoBacking("no backing device"))?;
        let mut written = 0;
        let mut page = ZERO_PAGE;
        for slot in &self.slots {
            if written >= max_pages {
                break;
            }
            let mut slot = slot.lock(&self.cpu);
            if slot.kind() != Kind::Object || handle_of(&slot).is_none() || !which.takes(&slot) {
                continue;
            }
            let Content::Done = self.load(&slot, &mut page)? else { continue };
            let place = backing.take().ok_or(ZramError::NoBacking("the backing device is full"))?;
            if let Err(error) = backing.write(place, &page) {
                backing.free(place);
                return Err(error.into());
            }
            self.free_object(&slot);
            slot.set(Kind::Backed, place, 0, 0);
            self.count(Count::Backed, 1);
            self.count(Count::BackedWrites, 1);
            written += 1;
        }
        Ok(written)
    }
}
