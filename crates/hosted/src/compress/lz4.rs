//! LZ4's block format.

use std::cell::RefCell;

use kmem_gfp::PAGE_SIZE;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use super::{Compressor, DecompressError, PageBytes};

/// What a page that does not compress may take.
const ROOM: usize = get_maximum_output_size(PAGE_SIZE);

thread_local! {
    /// The thread's table and output.
    static WORK: RefCell<(CompressTable, [u8; ROOM])> = RefCell::new((CompressTable::small(), [0; ROOM]));
}

/// LZ4: some microseconds a page.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lz4;

impl Compressor for Lz4 {
    fn name(&self) -> &'static str {
        "lz4"
    }

    fn compress(&self, page: &PageBytes, buffer: &mut PageBytes) -> Option<usize> {
        // A thread that is ending has no working memory any more; its pages are kept whole.
        WORK.try_with(|work| {
            let mut work = work.try_borrow_mut().ok()?;
            let (table, room) = &mut *work;
            let len = compress_into_with_table(page, room, table).ok()?;
            buffer.get_mut(..len).filter(|_| len < PAGE_SIZE)?.copy_from_slice(room.get(..len)?);
            Some(len)
        })
        .ok()?
    }

    fn decompress(&self, data: &[u8], page: &mut PageBytes) -> Result<(), DecompressError> {
        match decompress_into(data, page) {
            Ok(len) if len == page.len() => Ok(()),
            _ => Err(DecompressError { compressor: self.name(), len: data.len() }),
        }
    }
}
