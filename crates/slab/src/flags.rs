//! [`SlabFlags`]: what a cache promises and what it checks.

bitflags::bitflags! {
    /// Properties of a cache, given at its creation.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct SlabFlags: u32 {
        /// Align to the cache line, halved while the object fits into half of it.
        #[doc(alias = "SLAB_HWCACHE_ALIGN")]
        const HWCACHE_ALIGN = 1 << 0;
        /// Slabs come from the DMA zone.
        #[doc(alias = "SLAB_CACHE_DMA")]
        const CACHE_DMA = 1 << 1;
        /// Slabs come from the DMA32 zone.
        #[doc(alias = "SLAB_CACHE_DMA32")]
        const CACHE_DMA32 = 1 << 2;
        /// Slabs are requested as reclaimable and counted so.
        #[doc(alias("SLAB_RECLAIM_ACCOUNT", "SLAB_TEMPORARY"))]
        const RECLAIM_ACCOUNT = 1 << 3;
        /// A slab's pages leave the cache only after a grace period; objects are reused at once.
        #[doc(alias = "SLAB_TYPESAFE_BY_RCU")]
        const TYPESAFE_BY_RCU = 1 << 4;
        /// Every object is charged to the memory cgroup.
        #[doc(alias = "SLAB_ACCOUNT")]
        const ACCOUNT = 1 << 5;
        /// Never shared with another cache.
        #[doc(alias = "SLAB_NO_MERGE")]
        const NO_MERGE = 1 << 6;
        /// Hidden from leak tracing; such caches have no sheaves and are not merged.
        #[doc(alias = "SLAB_NOLEAKTRACE")]
        const NOLEAKTRACE = 1 << 7;
        /// The family's default debug options do not apply.
        #[doc(alias = "SLAB_NO_USER_FLAGS")]
        const NO_USER_FLAGS = 1 << 8;
        /// Debug option `F`: checks at every allocation and free.
        #[doc(alias = "SLAB_CONSISTENCY_CHECKS")]
        const CONSISTENCY_CHECKS = 1 << 9;
        /// Debug option `Z`: red zones on both sides of each object.
        #[doc(alias = "SLAB_RED_ZONE")]
        const RED_ZONE = 1 << 10;
        /// Debug option `P`: free objects are filled with a pattern.
        #[doc(alias = "SLAB_POISON")]
        const POISON = 1 << 11;
        /// Debug option `U`: who allocated and freed each object.
        #[doc(alias = "SLAB_STORE_USER")]
        const STORE_USER = 1 << 12;
        /// Debug option `T`: a report line for every allocation and free.
        #[doc(alias = "SLAB_TRACE")]
        const TRACE = 1 << 13;
        /// Debug option `A`: marked for the fault injector's cache filter.
        #[doc(alias = "SLAB_FAILSLAB")]
        const FAILSLAB = 1 << 14;
        /// A general-purpose size class: the requested size is tracked together with [`STORE_USER`](Self::STORE_USER).
        #[doc(alias = "SLAB_KMALLOC")]
        const KMALLOC = 1 << 15;
        /// New objects are zeroed (not in caches with a constructor).
        const INIT_ON_ALLOC = 1 << 16;
        /// Objects are zeroed when freed (not in typesafe caches or caches with a constructor).
        const INIT_ON_FREE = 1 << 17;
        /// Every operation goes to the slab level.
        const NO_SHEAVES = 1 << 18;
        /// Holds the allocator's own metadata; not counted as slab pages.
        const INTERNAL = 1 << 19;
    }
}

impl SlabFlags {
    /// The debug options: any of them takes a cache's fast path away.
    pub const DEBUG: Self =
        Self::CONSISTENCY_CHECKS.union(Self::RED_ZONE).union(Self::POISON).union(Self::STORE_USER).union(Self::TRACE);
    /// What `slab_debug` without letters means: `FZPU`.
    pub const DEBUG_DEFAULT: Self =
        Self::CONSISTENCY_CHECKS.union(Self::RED_ZONE).union(Self::POISON).union(Self::STORE_USER);
    /// Debug options that make objects larger.
    pub(crate) const DEBUG_METADATA: Self = Self::RED_ZONE.union(Self::POISON).union(Self::STORE_USER);
    /// Flags that a caller of `create` may not give.
    pub(crate) const INTERNAL_ONLY: Self = Self::NO_SHEAVES.union(Self::INTERNAL).union(Self::FAILSLAB);
    /// A cache with one of these is never shared.
    pub(crate) const NEVER_MERGE: Self = Self::DEBUG
        .union(Self::TYPESAFE_BY_RCU)
        .union(Self::NOLEAKTRACE)
        .union(Self::FAILSLAB)
        .union(Self::NO_MERGE)
        .union(Self::INIT_ON_ALLOC)
        .union(Self::INIT_ON_FREE)
        .union(Self::INTERNAL);
    /// Two caches that share must agree on these.
    pub(crate) const MERGE_SAME: Self =
        Self::RECLAIM_ACCOUNT.union(Self::CACHE_DMA).union(Self::CACHE_DMA32).union(Self::ACCOUNT);
}
