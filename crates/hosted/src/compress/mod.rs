//! Compressors of single pages: what [`Zram`](crate::Zram) and [`Zswap`](crate::Zswap) put in front of their pools.
//!
//! ```text
//! page, 4096 bytes ──compress──▶ buffer[..n], or "does not get smaller"      buffer[..n] ──decompress──▶ page
//! ```
//! [`Lz4`] (feature `lz4`) is fast, [`Zstd`] (feature `zstd`) makes pages smaller. Anything else implements [`Compressor`].

#[cfg(feature = "lz4")]
mod lz4;
mod same;
#[cfg(feature = "zstd")]
mod zstd;

use kmem_gfp::PAGE_SIZE;

#[cfg(feature = "lz4")]
pub use self::lz4::Lz4;
pub(crate) use self::same::{fill, same_filled};
#[cfg(feature = "zstd")]
pub use self::zstd::Zstd;

/// The bytes of a page.
pub type PageBytes = [u8; PAGE_SIZE];

/// A page full of zeroes.
pub(crate) const ZERO_PAGE: PageBytes = [0; PAGE_SIZE];

/// Compressed bytes that do not decompress to a page: they were damaged, or another compressor made them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{compressor}: {len} bytes do not decompress to a page")]
pub struct DecompressError {
    /// Who was to decompress them.
    pub compressor: &'static str,
    /// How many bytes there were.
    pub len: usize,
}

/// Compresses pages, one at a time, on any number of threads at once.
pub trait Compressor: Send + Sync {
    /// The name that people know it by.
    fn name(&self) -> &'static str;

    /// Writes the compressed page to the beginning of `buffer` and returns how many bytes it takes; `None` if that is not
    /// less than a page.
    fn compress(&self, page: &PageBytes, buffer: &mut PageBytes) -> Option<usize>;

    /// Makes the page again from what [`compress`](Self::compress) wrote.
    ///
    /// # Errors
    /// [`DecompressError`]; the page then holds anything.
    fn decompress(&self, data: &[u8], page: &mut PageBytes) -> Result<(), DecompressError>;
}
