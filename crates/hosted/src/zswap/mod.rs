//! [`Zswap`]: a compressed cache in front of a swap device.
//!
//! ```text
//! reclaim ──write_page──▶ Zswap ──compressed──▶ pool, at most a fifth of memory ──oldest first──▶ SwapDevice
//!                           └──rejected: full, incompressible, no memory──────────────────────▶ SwapDevice
//! fault ◀──read_page── Zswap, or what the device has
//! ```
//! - [`SwapDevice`]: pages by offset; [`SwapFile`] is one in a file, and a [`Zswap`] is one itself;
//! - [`ZswapOptions`]: limit, accept threshold, writeback;
//! - [`Zswap`]: store, load, invalidate, write back; [`Rejected`] says why a page was not taken;
//! - [`ZswapStats`]: the kernel's figures.
//!
//! **Locks:** one for each of 64 shards of offsets, never held over compression, decompression or I/O. A page that is being
//! written back stays loadable; whoever stores to its offset or invalidates it waits until the device has it.

mod cache;
mod device;
mod options;
mod shard;
mod stats;
mod writeback;

#[cfg(test)]
pub(crate) use cache::FLAGS;
pub use cache::{Rejected, Zswap};
pub use device::{SwapDevice, SwapFile};
pub use options::ZswapOptions;
pub use stats::ZswapStats;
