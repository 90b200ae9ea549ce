//! What Linux 7.2.13's zram made of 402 MiB of real files: the size of each page, and what it held at three stages.
//!
//! The sizes alone are the workload. So that they go through a whole device, a compressor that knows them stands in for the real
//! one: it keeps as many bytes of a page as Linux's had left of it.

use super::Algorithm;
use kmem_hosted::{Compressor, DecompressError, PageBytes};
use serde::Serialize;

const LZ4: &[u8] = include_bytes!("../../../zsmalloc/data/sizes-lz4.u16");
const ZSTD: &[u8] = include_bytes!("../../../zsmalloc/data/sizes-zstd.u16");

/// What Linux held at a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LinuxStage {
    /// Objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes_stored: u64,
    /// Bytes of the frames that held them.
    pub bytes_held: u64,
}

/// Linux, filled, half of it discarded, compacted.
pub(super) const fn linux(algorithm: Algorithm) -> [LinuxStage; 3] {
    const fn stage(objects: u64, bytes_stored: u64, bytes_held: u64) -> LinuxStage {
        LinuxStage { objects, bytes_stored, bytes_held }
    }
    match algorithm {
        Algorithm::Lz4 => [
            stage(102_490, 253_978_947, 259_649_536),
            stage(51_503, 127_787_060, 226_689_024),
            stage(51_503, 127_787_060, 131_223_552),
        ],
        Algorithm::Zstd => [
            stage(102_490, 198_617_031, 203_481_088),
            stage(51_503, 99_956_169, 176_173_056),
            stage(51_503, 99_956_169, 103_002_112),
        ],
    }
}

/// The recorded sizes: 0 for a page of one word, 4096 for one stored whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes(&'static [u8]);

impl Sizes {
    pub(super) const fn of(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Lz4 => Self(LZ4),
            Algorithm::Zstd => Self(ZSTD),
        }
    }

    pub(super) const fn nr(self) -> u64 {
        self.0.len() as u64 / 2
    }

    fn size(self, page: u64) -> Option<usize> {
        let at = usize::try_from(page).ok()?.checked_mul(2)?;
        Some(u16::from_le_bytes([*self.0.get(at)?, *self.0.get(at + 1)?]).into())
    }

    /// The page with this number: its number, then noise; or one word all over.
    pub(super) fn page(self, number: u64) -> PageBytes {
        let mut page = [0; 4096];
        let mut word = number;
        let is_same = self.size(number) == Some(0);
        for chunk in page.as_chunks_mut::<8>().0 {
            *chunk = word.to_le_bytes();
            if !is_same {
                word = (word ^ word >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
            }
        }
        page
    }
}

fn number_of(data: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*data.first_chunk()?))
}

impl Compressor for Sizes {
    fn name(&self) -> &'static str {
        "recorded"
    }

    fn compress(&self, page: &PageBytes, buffer: &mut PageBytes) -> Option<usize> {
        let size = self.size(number_of(page)?).filter(|size| *size < page.len())?;
        buffer.get_mut(..size)?.copy_from_slice(page.get(..size)?);
        Some(size)
    }

    fn decompress(&self, data: &[u8], page: &mut PageBytes) -> Result<(), DecompressError> {
        let error = DecompressError { compressor: self.name(), len: data.len() };
        *page = self.page(number_of(data).ok_or(error)?);
        if page.get(..data.len()) == Some(data) { Ok(()) } else { Err(error) }
    }
}
