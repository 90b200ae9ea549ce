//! Compressors for tests, whose sizes are known, and pages for them.

use crate::{Compressor, DecompressError, PageBytes};

/// Leaves the zeroes at a page's end out; one byte is left of a page of zeroes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut;

impl Compressor for Cut {
    fn name(&self) -> &'static str {
        "cut"
    }
    fn compress(&self, page: &PageBytes, buffer: &mut PageBytes) -> Option<usize> {
        let len = page.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        buffer[..len].copy_from_slice(&page[..len]);
        (len < page.len()).then_some(len)
    }
    fn decompress(&self, data: &[u8], page: &mut PageBytes) -> Result<(), DecompressError> {
        page.fill(0);
        page[..data.len()].copy_from_slice(data);
        Ok(())
    }
}

/// Keeps every second byte of what [`Cut`] keeps, if they come in pairs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pairs;

impl Compressor for Pairs {
    fn name(&self) -> &'static str {
        "pairs"
    }
    fn compress(&self, page: &PageBytes, buffer: &mut PageBytes) -> Option<usize> {
        let len = page.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1).next_multiple_of(2);
        if !page.chunks(2).all(|pair| pair[0] == pair[1]) {
            return None;
        }
        for (to, pair) in buffer.iter_mut().zip(page[..len].chunks(2)) {
            *to = pair[0];
        }
        Some(len / 2)
    }
    fn decompress(&self, data: &[u8], page: &mut PageBytes) -> Result<(), DecompressError> {
        page.fill(0);
        for (pair, byte) in page.chunks_mut(2).zip(data) {
            pair.fill(*byte);
        }
        Ok(())
    }
}

/// A page that [`Cut`] makes `len` bytes of, told apart by `seed`.
pub(crate) fn page_of(len: usize, seed: u64) -> PageBytes {
    let mut page = [0; 4096];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for byte in &mut page[..len] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 32) as u8 | 1;
    }
    page
}

/// The same in pairs of equal bytes, so that [`Pairs`] makes half of it.
pub(crate) fn paired_page_of(len: usize, seed: u64) -> PageBytes {
    let half = page_of(len / 2, seed);
    let mut page = [0; 4096];
    for (pair, byte) in page.chunks_mut(2).zip(half) {
        pair.fill(byte);
    }
    page
}
