//! How a cache is set up.

use kmem_zsmalloc::Config;

/// How a [`Zswap`](super::Zswap) is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "nothing happens before `Zswap::new`"]
pub struct ZswapOptions {
    pub(super) max_pool_percent: u32,
    pub(super) accept_threshold_percent: u32,
    pub(super) writeback: bool,
    pub(super) pool: Config,
}

impl Default for ZswapOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl ZswapOptions {
    /// A fifth of the memory; full until nine tenths of that; with writeback.
    pub const fn new() -> Self {
        Self { max_pool_percent: 20, accept_threshold_percent: 90, writeback: true, pool: Config::new() }
    }

    /// The share of the machine's memory that the pool's frames may take, in percent.
    pub const fn max_pool_percent(self, percent: u32) -> Self {
        Self { max_pool_percent: percent, ..self }
    }

    /// The share of the limit, in percent, down to which a pool that was full must shrink before it takes pages again.
    pub const fn accept_threshold_percent(self, percent: u32) -> Self {
        Self { accept_threshold_percent: percent, ..self }
    }

    /// Whether pages may go on to the device. Without, pages that do not compress are refused instead of kept whole, and
    /// [`Zswap::writeback`](super::Zswap::writeback) does nothing.
    pub const fn writeback(self, on: bool) -> Self {
        Self { writeback: on, ..self }
    }

    /// The pool's parameters.
    pub const fn pool(self, config: Config) -> Self {
        Self { pool: config, ..self }
    }
}
