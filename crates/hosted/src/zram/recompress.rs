//! Recompression: secondary compressors, slower and denser, get to work on pages that are kept for long.

use super::device::{Content, handle_of};
use super::slot::{IDLE, INCOMPRESSIBLE, Kind, Slot};
use super::stats::Count;
use super::{Which, Zram, ZramError};
use crate::compress::ZERO_PAGE;

/// Which pages to recompress, and with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recompress {
    /// Which pages.
    pub which: Which,
    /// Only objects of at least so many bytes.
    pub threshold: usize,
    /// Only with the secondary compressor of this priority, counted from 1; otherwise with each, until one does better.
    pub priority: Option<u8>,
    /// Stop after so many pages have been tried.
    pub max_pages: u64,
}

impl Default for Recompress {
    fn default() -> Self {
        Self { which: Which::All, threshold: 0, priority: None, max_pages: u64::MAX }
    }
}

/// What came of a recompression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recompressed {
    /// Pages tried.
    pub tried: u64,
    /// Pages that take less now.
    pub smaller: u64,
    /// By how many bytes altogether.
    pub saved_bytes: u64,
}

impl Zram {
    /// Recompresses pages. A result is kept only if its size class is a smaller one; a page that no secondary compressor makes
    /// smaller is not tried again.
    ///
    /// # Errors
    /// [`ZramError`]: `NoCompressor` if there is none of that priority; `Store`, `OverLimit`: the pages before are
    /// recompressed, this one and those behind are as before.
    pub fn recompress(&self, how: Recompress) -> Result<Recompressed, ZramError> {
        let most = self.compressors.len().saturating_sub(1) as u8;
        let chosen = how.priority.unwrap_or(1);
        if chosen == 0 || chosen > most {
            return Err(ZramError::NoCompressor(chosen));
        }
        let mut result = Recompressed::default();
        for slot in &self.slots {
            if result.tried >= how.max_pages {
                break;
            }
            self.recompress_slot(slot, &how, most, &mut result)?;
        }
        Ok(result)
    }

    fn recompress_slot(
        &self,
        slot: &Slot,
        how: &Recompress,
        most: u8,
        result: &mut Recompressed,
    ) -> Result<(), ZramError> {
        let mut slot = slot.lock(&self.cpu);
        if slot.kind() != Kind::Object || slot.has(INCOMPRESSIBLE) || !how.which.takes(&slot) {
            return Ok(());
        }
        let Some(handle) = handle_of(&slot) else { return Ok(()) };
        let old_len = self.pool.len_of(handle)?;
        let priorities = how.priority.map_or(1..=most, |one| one..=one);
        if old_len < how.threshold || priorities.end() <= &slot.priority() {
            return Ok(());
        }
        result.tried += 1;
        let mut page = ZERO_PAGE;
        let Content::Done = self.load(&slot, &mut page)? else { return Ok(()) };
        let geometry = self.pool.geometry();
        let mut buffer = ZERO_PAGE;
        for priority in priorities {
            if priority <= slot.priority() {
                continue;
            }
            let Some(compressor) = self.compressors.get(usize::from(priority)) else { break };
            let Some(len) = compressor.compress(&page, &mut buffer) else { continue };
            if len >= self.huge_bytes || geometry.class_of(len) >= geometry.class_of(old_len) {
                continue;
            }
            let Some(object) = buffer.get(..len) else { continue };
            let new = self.store_object(object)?;
            self.free_object(&slot);
            // Not an access: the idle mark stays.
            let was_idle = slot.has(IDLE);
            slot.set(Kind::Object, new.to_bits().get(), 0, priority);
            slot.set_flag(IDLE, was_idle);
            self.count(Count::Bytes, len as i64);
            result.smaller += 1;
            result.saved_bytes += (old_len - len) as u64;
            return Ok(());
        }
        // All have been tried, so that there is no point in trying again.
        if how.priority.is_none() || most == 1 {
            slot.set_flag(INCOMPRESSIBLE, true);
        }
        Ok(())
    }
}
