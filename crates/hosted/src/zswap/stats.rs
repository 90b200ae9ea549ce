//! Figures.

use core::fmt;

use kmem_sync::atomic::{AtomicU64, Ordering};

/// What a cache has done: the counters of `/sys/kernel/debug/zswap` and, of `/proc/vmstat`, `zswpin`, `zswpout` and `zswpwb`.
/// Printed, one to a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZswapStats {
    /// Pages in the cache.
    pub stored_pages: u64,
    /// Of these, pages kept whole.
    pub stored_incompressible_pages: u64,
    /// Bytes of the pool's frames.
    pub pool_total_size: u64,
    /// Bytes of the objects in them.
    pub stored_bytes: u64,
    /// Pages stored, ever.
    pub zswpout: u64,
    /// Pages loaded, ever.
    pub zswpin: u64,
    /// Pages that went on to the device.
    pub written_back_pages: u64,
    /// How often the pool was found at its limit.
    pub pool_limit_hit: u64,
    /// Pages refused while the pool was full.
    pub reject_full: u64,
    /// Pages refused because there was no memory for them.
    pub reject_alloc_fail: u64,
    /// Pages refused because they do not compress.
    pub reject_compress_poor: u64,
    /// Pages that did not come back whole.
    pub decompress_fail: u64,
}

impl fmt::Display for ZswapStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [
            ("stored_pages", self.stored_pages),
            ("stored_incompressible_pages", self.stored_incompressible_pages),
            ("pool_total_size", self.pool_total_size),
            ("stored_bytes", self.stored_bytes),
            ("zswpout", self.zswpout),
            ("zswpin", self.zswpin),
            ("written_back_pages", self.written_back_pages),
            ("pool_limit_hit", self.pool_limit_hit),
            ("reject_full", self.reject_full),
            ("reject_alloc_fail", self.reject_alloc_fail),
            ("reject_compress_poor", self.reject_compress_poor),
            ("decompress_fail", self.decompress_fail),
        ];
        lines.iter().try_for_each(|(name, value)| writeln!(f, "{name} {value}"))
    }
}

/// The counters behind them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) stored: AtomicU64,
    pub(super) incompressible: AtomicU64,
    pub(super) out: AtomicU64,
    pub(super) loaded: AtomicU64,
    pub(super) written_back: AtomicU64,
    pub(super) limit_hit: AtomicU64,
    pub(super) full: AtomicU64,
    pub(super) no_memory: AtomicU64,
    pub(super) poor: AtomicU64,
    pub(super) damaged: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
