//! What a device says when it cannot do what it is asked to.

use kmem_zsmalloc::{AccessError, CreateError, StoreError};

use crate::compress::DecompressError;

/// Why there is no device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ZramCreateError {
    /// The device would have no page, or more than there are numbers for.
    #[error("a device of {0} bytes")]
    Size(u64),
    /// More secondary compressors than a slot can tell apart.
    #[error("{0} secondary compressors: at most {max}", max = super::MAX_SECONDARIES)]
    Secondaries(usize),
    /// The pool could not be made.
    #[error(transparent)]
    Pool(#[from] CreateError),
}

/// Why a page was not read or written. A page that was not written is as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZramError {
    /// The device has no such page.
    #[error("page {page} of a device of {pages}")]
    OutOfRange {
        /// The page asked for.
        page: u64,
        /// How many there are.
        pages: u64,
    },
    /// The bytes do not lie on the device.
    #[error("{len} bytes at {offset} of a device of {size}")]
    BytesOutOfRange {
        /// Where, in bytes.
        offset: u64,
        /// How many.
        len: usize,
        /// Bytes of the device.
        size: u64,
    },
    /// The page could not be kept without going over the limit.
    #[error("{used} frames in use, the limit is {limit}")]
    OverLimit {
        /// Frames with this page.
        used: u64,
        /// The limit in frames.
        limit: u64,
    },
    /// The pool could not keep the page.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pool does not have what it was given.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// What the pool has is no page.
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    /// There is no secondary compressor with this priority.
    #[error("no compressor with priority {0}")]
    NoCompressor(u8),
    /// There is no backing device, or it is full.
    #[error("{0}")]
    NoBacking(&'static str),
    /// The backing device fails.
    #[error("the backing device")]
    Backing(#[from] std::io::Error),
}
