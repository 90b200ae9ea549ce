//! What pages are swapped to.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use kmem_gfp::PAGE_SIZE;

use crate::compress::PageBytes;

/// A place for swapped pages, each at an offset that its user gave out: at most one thread writes to an offset at a time.
pub trait SwapDevice: Send + Sync {
    /// Writes the page at `offset` (in pages).
    ///
    /// # Errors
    /// What the device says; what is at the offset then is unknown.
    fn write_page(&self, offset: u64, page: &PageBytes) -> io::Result<()>;

    /// Reads the page at `offset`.
    ///
    /// # Errors
    /// What the device says; `page` then holds anything.
    fn read_page(&self, offset: u64, page: &mut PageBytes) -> io::Result<()>;

    /// The page at `offset` will not be read any more.
    fn discard_page(&self, offset: u64) {
        let _ = offset;
    }
}

impl<D: SwapDevice + ?Sized> SwapDevice for &D {
    fn write_page(&self, offset: u64, page: &PageBytes) -> io::Result<()> {
        (**self).write_page(offset, page)
    }
    fn read_page(&self, offset: u64, page: &mut PageBytes) -> io::Result<()> {
        (**self).read_page(offset, page)
    }
    fn discard_page(&self, offset: u64) {
        (**self).discard_page(offset);
    }
}

impl<D: SwapDevice + ?Sized> SwapDevice for Box<D> {
    fn write_page(&self, offset: u64, page: &PageBytes) -> io::Result<()> {
        (**self).write_page(offset, page)
    }
    fn read_page(&self, offset: u64, page: &mut PageBytes) -> io::Result<()> {
        (**self).read_page(offset, page)
    }
    fn discard_page(&self, offset: u64) {
        (**self).discard_page(offset);
    }
}

/// A swap file: page `n` at byte `4096 n`.
#[derive(Debug)]
pub struct SwapFile {
    file: File,
}

impl SwapFile {
    /// A file that is open for reading and writing; it grows as needed.
    #[must_use]
    pub const fn new(file: File) -> Self {
        Self { file }
    }
}

fn position(offset: u64) -> io::Result<u64> {
    offset.checked_mul(PAGE_SIZE as u64).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

impl SwapDevice for SwapFile {
    fn write_page(&self, offset: u64, page: &PageBytes) -> io::Result<()> {
        self.file.write_all_at(page, position(offset)?)
    }
    fn read_page(&self, offset: u64, page: &mut PageBytes) -> io::Result<()> {
        self.file.read_exact_at(page, position(offset)?)
    }
}
