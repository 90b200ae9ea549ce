//! Zstandard.

use std::cell::RefCell;

use zstd::zstd_safe::{CCtx, DCtx};

use super::{Compressor, DecompressError, PageBytes};

thread_local! {
    /// The working memory of the thread's compressions: some hundred KiB, made by the first one.
    static COMPRESSION: RefCell<CCtx<'static>> = RefCell::new(CCtx::create());
    /// The same for decompressions.
    static DECOMPRESSION: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Zstandard at a level: smaller than LZ4 and several times slower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zstd {
    level: i32,
}

impl Zstd {
    /// A level of the library's: 1 is fast, 19 is slow, 3 is usual; what lies beyond counts as the nearest.
    #[must_use]
    pub const fn new(level: i32) -> Self {
        Self { level }
    }
}

impl Default for Zstd {
    fn default() -> Self {
        Self::new(3)
    }
}

impl Compressor for Zstd {
    fn name(&self) -> &'static str {
        "zstd"
    }

    fn compress(&self, page: &PageBytes, buffer: &mut PageBytes) -> Option<usize> {
        // A thread that is ending has no working memory any more; its pages are kept whole.
        let len = COMPRESSION
            .try_with(|context| context.try_borrow_mut().ok()?.compress(&mut buffer[..], page, self.level).ok())
            .ok()??;
        (len > 0 && len < page.len()).then_some(len)
    }

    fn decompress(&self, data: &[u8], page: &mut PageBytes) -> Result<(), DecompressError> {
        let error = DecompressError { compressor: self.name(), len: data.len() };
        let whole = page.len();
        let kept =
            DECOMPRESSION.try_with(|context| Some(context.try_borrow_mut().ok()?.decompress(&mut page[..], data)));
        let len = match kept {
            Ok(Some(len)) => len,
            // As above, but a page must come back.
            _ => DCtx::create().decompress(&mut page[..], data),
        };
        if len == Ok(whole) { Ok(()) } else { Err(error) }
    }
}
