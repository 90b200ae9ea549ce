//! [`AllocFlags`]: what the page allocator may do for one request, derived from its [`Gfp`] and its task.
//!
//! ```text
//!  Gfp ──fast_path──▶ LOW mark, no reserve ──found?──▶ done
//!   │                                        └─no
//!   └──slow_path──▶ MIN mark, NON_BLOCK / MIN_RESERVE / HIGHATOMIC by flags and task
//!                        │
//!        Reserve::decide ┴─▶ NO_WATERMARKS or OOM *replaces* all that (CMA and KSWAPD stay)
//! ```
//!
//! The fast path uses no reserve at all: even an ATOMIC request is first tried at the low mark. Everything here is a
//! pure function of values, so a page allocator calls it from any context and tests cover it whole. How deep each
//! flag reaches below a mark stands in [`depth`].

pub mod depth;
mod reserve;

pub use reserve::Reserve;

use crate::{
    context::TaskFlags,
    flags::Gfp,
    frame::Order,
    zone::{MigrateType, Watermark, ZoneKind},
};

bitflags::bitflags! {
    /// The page allocator's own flags for one attempt. Plain value; every method is constant-time, any context.
    ///
    /// The two lowest bits are the watermark's index: read them with [`watermark`](Self::watermark).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
    pub struct AllocFlags: u32 {
        /// Check the low watermark (neither this nor `WMARK_HIGH`: the min watermark).
        #[doc(alias = "ALLOC_WMARK_LOW")]
        const WMARK_LOW = 0x1;
        /// Check the high watermark.
        #[doc(alias = "ALLOC_WMARK_HIGH")]
        const WMARK_HIGH = 0x2;
        /// Check no watermark at all.
        #[doc(alias = "ALLOC_NO_WATERMARKS")]
        const NO_WATERMARKS = 0x4;
        /// An OOM victim: half of the min watermark, and the highatomic reserve.
        #[doc(alias = "ALLOC_OOM")]
        const OOM = 0x8;
        /// The caller cannot sleep: highatomic pages count as usable.
        #[doc(alias = "ALLOC_NON_BLOCK")]
        const NON_BLOCK = 0x10;
        /// High priority: half of the min watermark. Has the value of [`Gfp::HIGH`].
        #[doc(alias = "ALLOC_MIN_RESERVE")]
        const MIN_RESERVE = 0x20;
        /// Check each zone's node against the task's cpuset.
        #[doc(alias = "ALLOC_CPUSET")]
        const CPUSET = 0x40;
        /// Pages of contiguous areas may serve the request.
        #[doc(alias = "ALLOC_CMA")]
        const CMA = 0x80;
        /// Do not mix migratetypes within a pageblock.
        #[doc(alias = "ALLOC_NOFRAGMENT")]
        const NOFRAGMENT = 0x100;
        /// The request may take from, and grow, the high-order atomic reserve.
        #[doc(alias = "ALLOC_HIGHATOMIC")]
        const HIGHATOMIC = 0x200;
        /// Only try locks.
        #[doc(alias = "ALLOC_TRYLOCK")]
        const TRYLOCK = 0x400;
        /// Background reclaim may be woken. Has the value of [`Gfp::KSWAPD_RECLAIM`].
        #[doc(alias = "ALLOC_KSWAPD")]
        const KSWAPD = 0x800;
    }
}

/// Whether pages are grouped by mobility on this machine (they are not when it is too small for that).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MobilityGrouping {
    /// Each pageblock has a migratetype.
    Enabled,
    /// Everything is unmovable.
    Disabled,
}

/// Whether the machine prefers reclaim and compaction over mixing migratetypes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DefragMode {
    /// Mixing is avoided only where it is cheap to.
    Off,
    /// Mixing is avoided until reclaim and compaction have failed.
    On,
}

/// How the cpuset of the calling task limits the fast path. The slow path starts afresh without any of this: with the
/// caller's own node mask and without the implied [`Gfp::HARDWALL`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpusetEntry {
    /// There are no cpusets: nothing is limited.
    Off,
    /// The task's own nodes serve as the node mask; [`Gfp::HARDWALL`] is implied.
    TaskNodes,
    /// Each zone is checked; [`Gfp::HARDWALL`] is implied.
    CheckEachZone,
}

/// Whether the caller of an allocation named the nodes that may serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeMask {
    /// It did.
    Given,
    /// It left that to the task's cpuset.
    Unspecified,
}

/// Whether an attempt keeps to the cpuset of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpusetRule {
    /// It does.
    Honour,
    /// It does not.
    Ignore,
}

impl CpusetEntry {
    /// How a request enters on a machine that has cpusets.
    #[must_use]
    pub const fn with_cpusets(nodes: NodeMask, task: TaskFlags) -> Self {
        match nodes {
            NodeMask::Unspecified if task.in_task() => Self::TaskNodes,
            NodeMask::Unspecified | NodeMask::Given => Self::CheckEachZone,
        }
    }

    /// `gfp` as the fast path sees it: with the implied [`Gfp::HARDWALL`].
    #[must_use]
    pub const fn fast_gfp(self, gfp: Gfp) -> Gfp {
        match self {
            Self::Off => gfp,
            Self::TaskNodes | Self::CheckEachZone => gfp.union(Gfp::HARDWALL),
        }
    }
}

impl AllocFlags {
    /// The flags that let a request count highatomic pages as usable.
    #[doc(alias = "ALLOC_RESERVES")]
    pub const RESERVES: Self = Self::NON_BLOCK.union(Self::MIN_RESERVE).union(Self::HIGHATOMIC).union(Self::OOM);

    /// The two bits of the watermark's index.
    pub const WMARK_MASK: Self = Self::WMARK_LOW.union(Self::WMARK_HIGH);

    /// The flags of an any-context request: the min mark, locks only tried, no kswapd, no reserve.
    pub const NOLOCK: Self = Self::TRYLOCK;

    /// The watermark that this attempt is checked against.
    #[must_use]
    #[inline]
    pub const fn watermark(self) -> Watermark {
        match self.bits() & Self::WMARK_MASK.bits() {
            0 => Watermark::Min,
            1 => Watermark::Low,
            2 => Watermark::High,
            _ => Watermark::Promo,
        }
    }

    /// These flags with another watermark.
    #[must_use]
    #[inline]
    pub const fn with_watermark(self, mark: Watermark) -> Self {
        let index = match mark {
            Watermark::Min => Self::empty(),
            Watermark::Low => Self::WMARK_LOW,
            Watermark::High => Self::WMARK_HIGH,
            Watermark::Promo => Self::WMARK_MASK,
        };
        self.difference(Self::WMARK_MASK).union(index)
    }

    /// Whether a page found under these flags is for reclaim-critical users only (`pfmemalloc`).
    #[must_use]
    #[inline]
    pub const fn tags_pfmemalloc(self) -> bool {
        self.contains(Self::NO_WATERMARKS)
    }

    /// [`NOFRAGMENT`](Self::NOFRAGMENT) where the fast path should avoid mixing migratetypes: always in defrag mode,
    /// else when the preferred zone is Normal and a populated DMA32 zone lies directly below it on its node.
    #[doc(alias = "alloc_flags_nofragment")]
    #[must_use]
    #[inline]
    pub const fn nofragment(preferred: ZoneKind, dma32_populated: bool, defrag: DefragMode) -> Self {
        match defrag {
            DefragMode::On => Self::NOFRAGMENT,
            DefragMode::Off if dma32_populated && matches!(preferred, ZoneKind::Normal) => Self::NOFRAGMENT,
            DefragMode::Off => Self::empty(),
        }
    }

    /// The flags of the first attempt: the low mark and no reserve, whatever `gfp` says of priority.
    ///
    /// `nofragment` is the answer of [`nofragment`](Self::nofragment); other bits of it are ignored.
    #[must_use]
    #[inline]
    pub const fn fast_path(gfp: Gfp, migrate_type: MigrateType, cpuset: CpusetEntry, nofragment: Self) -> Self {
        let cpuset = match cpuset {
            CpusetEntry::CheckEachZone => Self::CPUSET,
            CpusetEntry::Off | CpusetEntry::TaskNodes => Self::empty(),
        };
        Self::WMARK_LOW
            .union(Self::kswapd(gfp))
            .union(Self::cma(migrate_type))
            .union(cpuset)
            .union(nofragment.intersection(Self::NOFRAGMENT))
    }

    /// The flags of the slow path: the min mark, and what the request's priority and its task add to it.
    #[doc(alias = "gfp_to_alloc_flags")]
    #[must_use]
    pub const fn slow_path(
        gfp: Gfp,
        order: Order,
        migrate_type: MigrateType,
        task: TaskFlags,
        defrag: DefragMode,
    ) -> Self {
        let mut flags = Self::CPUSET.union(Self::kswapd(gfp)).union(Self::cma(migrate_type));
        if gfp.contains(Gfp::HIGH) {
            flags = flags.union(Self::MIN_RESERVE);
        }
        if !gfp.allows_blocking() {
            if !gfp.contains(Gfp::NOMEMALLOC) {
                flags = flags.union(Self::NON_BLOCK);
                if order.get() > 0 && gfp.contains(Gfp::HIGH) {
                    flags = flags.union(Self::HIGHATOMIC);
                }
            }
            if gfp.contains(Gfp::HIGH) {
                flags = flags.difference(Self::CPUSET);
            }
        } else if task.contains(TaskFlags::REALTIME) && task.in_task() {
            flags = flags.union(Self::MIN_RESERVE);
        }
        match defrag {
            DefragMode::On => flags.union(Self::NOFRAGMENT),
            DefragMode::Off => flags,
        }
    }

    /// The flags of a last attempt for a request that must not fail: the min mark with
    /// [`MIN_RESERVE`](Self::MIN_RESERVE), first honouring the cpuset, then ignoring it.
    #[must_use]
    pub const fn nofail_lap(self, rule: CpusetRule) -> Self {
        let flags = self.with_watermark(Watermark::Min).union(Self::MIN_RESERVE);
        match rule {
            CpusetRule::Honour => flags.union(Self::CPUSET),
            CpusetRule::Ignore => flags.difference(Self::CPUSET),
        }
    }

    #[inline]
    const fn kswapd(gfp: Gfp) -> Self {
        if gfp.wakes_kswapd() { Self::KSWAPD } else { Self::empty() }
    }

    #[inline]
    const fn cma(migrate_type: MigrateType) -> Self {
        if matches!(migrate_type, MigrateType::Movable) { Self::CMA } else { Self::empty() }
    }
}
