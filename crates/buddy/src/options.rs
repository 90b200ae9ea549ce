//! Choices made when the allocator is built.

/// What an allocator does besides allocating; fixed for its lifetime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuddyOptions {
    /// Checks each free exactly, at the call: double free, wrong order, foreign and reserved frames. Costs one bit per frame
    /// (an eighth of a byte more of bookkeeping) and the fast path. Without it the same checks are made when a page leaves its per-CPU set, and at once for
    /// orders that have none; foreign frames are always caught at once. On by default in debug builds.
    pub check_free: bool,
    /// Zeroes every block that is handed out (`init_on_alloc`).
    pub init_on_alloc: bool,
    /// Zeroes every block that is given back (`init_on_free`); the blocks handed out need no second zeroing then.
    pub init_on_free: bool,
    /// Avoids mixing migratetypes until reclaim and compaction have failed (`defrag_mode`).
    pub defrag_mode: bool,
    /// Locks sleep on this kernel: any-context requests are refused in hard interrupts and NMIs.
    pub realtime_kernel: bool,
    /// Raises the min watermarks by what keeps huge pages at hand (`min_free_kbytes` of khugepaged).
    pub huge_pages: bool,
    /// Node reclaim before another node is used (`zone_reclaim_mode`).
    pub node_reclaim: bool,
    /// Whether cpusets exist, so that [`node_allowed`](crate::BuddyEnv::node_allowed) is asked.
    pub cpusets: bool,
    /// How far refills may grow: `batch << this` (`pcp_batch_scale_max`), at most 6.
    pub pcp_batch_scale_max: u32,
}

impl BuddyOptions {
    /// The defaults.
    pub const fn new() -> Self {
        Self {
            check_free: cfg!(debug_assertions),
            init_on_alloc: false,
            init_on_free: false,
            defrag_mode: false,
            realtime_kernel: false,
            huge_pages: false,
            node_reclaim: false,
            cpusets: false,
            pcp_batch_scale_max: 5,
        }
    }

    /// Whether the inline fast paths may be used at all.
    pub(crate) const fn allows_fast_path(&self) -> bool {
        !self.check_free && !self.init_on_alloc && !self.init_on_free && !self.cpusets
    }
}

impl Default for BuddyOptions {
    fn default() -> Self {
        Self::new()
    }
}
