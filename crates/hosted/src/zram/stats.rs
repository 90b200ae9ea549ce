//! Figures: counted where they arise, summed when asked for, printed as the kernel prints them.

use core::fmt;

use kmem_gfp::PAGE_SIZE;
use kmem_sync::Cpu;
use kmem_sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Shards of the counters: CPUs beyond share them.
const SHARDS: usize = 16;

/// What is counted.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub(super) enum Count {
    /// Pages with a content, same-filled ones and those on the backing device included.
    Pages,
    /// Bytes of objects.
    Bytes,
    Same,
    Huge,
    HugeSince,
    FailedReads,
    FailedWrites,
    NotifyFree,
    Backed,
    BackedReads,
    BackedWrites,
}

const COUNTS: usize = Count::BackedWrites as usize + 1;

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard([AtomicI64; COUNTS]);

/// The counters of a device: each CPU adds to a cache line of its own.
#[derive(Debug)]
pub(super) struct Counters {
    shards: Box<[Shard]>,
    /// The most frames that there were.
    most: AtomicU64,
}

impl Counters {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect(), most: AtomicU64::new(0) }
    }

    #[inline]
    pub(super) fn add<C: Cpu>(&self, cpu: &C, count: Count, n: i64) {
        let id = cpu.try_pin().map_or(0, |id| {
            // SAFETY: pinned just above; the number stays a good guess.
            unsafe { cpu.unpin(id) };
            id.0 as usize
        });
        if let Some(counter) = self.shards.get(id % SHARDS).and_then(|shard| shard.0.get(count as usize)) {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    pub(super) fn sum(&self, count: Count) -> u64 {
        let values = self.shards.iter().filter_map(|shard| shard.0.get(count as usize));
        u64::try_from(values.map(|value| value.load(Ordering::Relaxed)).sum::<i64>()).unwrap_or(0)
    }

    /// Notes that there were so many frames.
    #[inline]
    pub(super) fn note_frames(&self, frames: u64) {
        if frames > self.most.load(Ordering::Relaxed) {
            self.most.fetch_max(frames, Ordering::Relaxed);
        }
    }

    pub(super) fn set_most(&self, frames: u64) {
        self.most.store(frames, Ordering::Relaxed);
    }

    pub(super) fn most(&self) -> u64 {
        self.most.load(Ordering::Relaxed)
    }
}

/// What the device holds: `/sys/block/zram0/mm_stat`. Printed, it is the kernel's line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MmStat {
    /// Bytes of the pages stored, uncompressed.
    pub orig_data_size: u64,
    /// Bytes that they take compressed.
    pub compr_data_size: u64,
    /// Bytes of the frames that hold them.
    pub mem_used_total: u64,
    /// The limit for that in bytes; 0: none.
    pub mem_limit: u64,
    /// The most that it was.
    pub mem_used_max: u64,
    /// Pages that one word fills.
    pub same_pages: u64,
    /// Frames that compaction gave back.
    pub pages_compacted: u64,
    /// Pages that do not compress, at present.
    pub huge_pages: u64,
    /// The same, ever.
    pub huge_pages_since: u64,
}

impl fmt::Display for MmStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self;
        write!(f, "{:8} {:8} {:8} {:8} ", s.orig_data_size, s.compr_data_size, s.mem_used_total, s.mem_limit)?;
        write!(f, "{:8} {:8} {:8} ", s.mem_used_max, s.same_pages, s.pages_compacted)?;
        writeln!(f, "{:8} {:8}", s.huge_pages, s.huge_pages_since)
    }
}

/// What failed, and what the layer above said it has no use for: `/sys/block/zram0/io_stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoStat {
    /// Reads that failed.
    pub failed_reads: u64,
    /// Writes that failed.
    pub failed_writes: u64,
    /// Requests that are not whole pages: none, as the device takes any.
    pub invalid_io: u64,
    /// Pages discarded.
    pub notify_free: u64,
}

impl fmt::Display for IoStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:8} {:8} {:8} {:8}", self.failed_reads, self.failed_writes, self.invalid_io, self.notify_free)
    }
}

/// Traffic of the backing device in units of 4 KiB: `/sys/block/zram0/bd_stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BdStat {
    /// Pages on it.
    pub count: u64,
    /// Pages read from it.
    pub reads: u64,
    /// Pages written to it.
    pub writes: u64,
}

impl fmt::Display for BdStat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:8} {:8} {:8}", self.count, self.reads, self.writes)
    }
}

/// Frames in bytes.
pub(super) const fn bytes(frames: u64) -> u64 {
    frames.saturating_mul(PAGE_SIZE as u64)
}
