//! [`Zram`]: a block device in memory that keeps its pages compressed.
//!
//! ```text
//! page ─▶ one word all over? ──yes──▶ slot: that word                                    same_pages
//!           └no─▶ compressor ──small──▶ pool ─▶ slot: handle                             compr_data_size
//!                     └as large as a whole frame──▶ pool, the page itself ─▶ slot: handle     huge_pages
//! ```
//! - [`ZramOptions`]: size, compressors, limit;
//! - [`Zram`]: pages written, read, discarded; [`slot`]: a page's lock and what is behind it;
//! - [`Recompress`]: what secondary compressors get to work on;
//! - [`MmStat`], [`IoStat`], [`BdStat`]: the kernel's figures in the kernel's format; [`BackingDevice`]: pages moved out of memory.
//!
//! **Locks:** a bit in each slot, held while its object is read, replaced or recompressed. Compressing comes before it.

mod device;
mod error;
mod options;
mod recompress;
mod slot;
mod stats;
mod writeback;

#[cfg(test)]
pub(crate) use device::FLAGS;
pub use device::Zram;
pub use error::{ZramCreateError, ZramError};
pub use options::{MAX_SECONDARIES, ZramOptions};
pub use recompress::{Recompress, Recompressed};
#[cfg(all(test, loom))]
pub(crate) use slot::{Kind, Slot};
pub use stats::{BdStat, IoStat, MmStat};
pub use writeback::{BackingDevice, Which};
