//! What a device is to be like.

use kmem_zsmalloc::Config;

use super::BackingDevice;
use crate::compress::Compressor;

/// The most secondary compressors.
#[doc(alias = "ZRAM_MAX_COMPS")]
pub const MAX_SECONDARIES: usize = 3;

/// What a [`Zram`](super::Zram) is to be like.
#[must_use = "nothing happens before `Zram::new`"]
pub struct ZramOptions {
    pub(super) size_bytes: u64,
    pub(super) compressors: Vec<Box<dyn Compressor>>,
    pub(super) limit_bytes: u64,
    pub(super) pool: Config,
    pub(super) backing: Option<BackingDevice>,
}

impl core::fmt::Debug for ZramOptions {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let names: Vec<_> = self.compressors.iter().map(|compressor| compressor.name()).collect();
        f.debug_struct("ZramOptions")
            .field("size_bytes", &self.size_bytes)
            .field("compressors", &names)
            .field("limit_bytes", &self.limit_bytes)
            .field("pool", &self.pool)
            .field("backing", &self.backing)
            .finish()
    }
}

impl ZramOptions {
    /// A device of `size_bytes`, rounded up to whole pages, that compresses with `primary`; no limit, no backing device.
    #[doc(alias("disksize", "comp_algorithm"))]
    pub fn new(size_bytes: u64, primary: impl Compressor + 'static) -> Self {
        Self { size_bytes, compressors: vec![Box::new(primary)], limit_bytes: 0, pool: Config::new(), backing: None }
    }

    /// A compressor for [recompression](super::Zram::recompress), of the next priority; at most [`MAX_SECONDARIES`].
    #[doc(alias = "recomp_algorithm")]
    pub fn secondary(mut self, compressor: impl Compressor + 'static) -> Self {
        self.compressors.push(Box::new(compressor));
        self
    }

    /// How many bytes of frames the objects may take, rounded up to whole frames; 0, the default, is no limit.
    #[doc(alias = "mem_limit")]
    pub fn limit_bytes(mut self, bytes: u64) -> Self {
        self.limit_bytes = bytes;
        self
    }

    /// The pool's parameters.
    pub fn pool(mut self, config: Config) -> Self {
        self.pool = config;
        self
    }

    /// Where pages go that are to leave memory.
    #[doc(alias = "backing_dev")]
    pub fn backing(mut self, device: BackingDevice) -> Self {
        self.backing = Some(device);
        self
    }
}
