//! [`Gfp`]: the flags that say where memory may come from and what the allocator may do to get it.
//!
//! ```text
//!  bits    flags                                                  say
//!   0..=4  DMA HIGHMEM DMA32 MOVABLE RECLAIMABLE                  which zones and pageblocks
//!   5      HIGH                                                   may use the reserve
//!   6..=7  IO FS                                                  where reclaim may go
//!   8      ZERO                                                   zeroed
//!  10..=11 DIRECT_RECLAIM KSWAPD_RECLAIM                          who reclaims: the caller, the background
//!  12      WRITE                                                  will be dirtied
//!  13      NOWARN                                                 fails silently
//!  14..=16 RETRY_MAYFAIL NOFAIL NORETRY                           when to give up
//!  17, 19  MEMALLOC NOMEMALLOC                                    every reserve, or none
//!  18      COMP                                                   one compound page
//!  20..=21 HARDWALL THISNODE                                      which nodes
//!  22      ACCOUNT                                                who pays
//!  23..=24 ZEROTAGS NO_OBJ_EXT                                    tags; slab's bookkeeping
//! ```
//!
//! A request is one `Gfp` value: single flags (`Gfp::ZERO`) or-ed to one of the *composites* (`Gfp::KERNEL`). The
//! numeric values are those of Linux 7.2 built without hardware tags and without lockdep, so a raw mask out of a
//! trace or a C caller means the same here.
//!
//! What a mask selects stands in [`select`](crate::select), what it grants in
//! [`alloc_flags`](crate::alloc_flags), and which masks make no sense in [`verdict`](crate::verdict).

mod text;

pub use text::ParseGfpError;

bitflags::bitflags! {
    /// A request's flags.
    ///
    /// `Gfp` is a plain 32-bit value: copying, or-ing and testing it cost one instruction, and every method is
    /// `const` and may run in any context. Its [`Display`](core::fmt::Display) and [`FromStr`](core::str::FromStr)
    /// speak the text form of the kernel's traces, composites first.
    ///
    /// # Examples
    ///
    /// ```
    /// use kmem_gfp::Gfp;
    ///
    /// let gfp = Gfp::KERNEL | Gfp::ZERO;
    /// assert!(gfp.allows_blocking());
    /// assert_eq!(gfp.bits(), 0xdc0);
    /// assert_eq!(gfp.to_string(), "GFP_KERNEL|__GFP_ZERO");
    /// assert_eq!("GFP_KERNEL|__GFP_ZERO".parse(), Ok(gfp));
    /// ```
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
    pub struct Gfp: u32 {
        /// Only memory that the oldest DMA hardware reaches: the ceiling is the DMA zone.
        ///
        /// As a composite (`GFP_DMA`) it is this bit alone: without reclaim bits it neither sleeps nor wakes kswapd.
        #[doc(alias("GFP_DMA", "__GFP_DMA"))]
        const DMA = 0x1;
        /// Memory that need not be mapped permanently: the ceiling is the high-memory zone where there is one.
        #[doc(alias = "__GFP_HIGHMEM")]
        const HIGHMEM = 0x2;
        /// Only memory below 4 GiB: the ceiling is the DMA32 zone. As a composite it is this bit alone.
        #[doc(alias("GFP_DMA32", "__GFP_DMA32"))]
        const DMA32 = 0x4;
        /// The owner lets the page be migrated; with [`HIGHMEM`](Self::HIGHMEM) the MOVABLE zone may serve it.
        #[doc(alias = "__GFP_MOVABLE")]
        const MOVABLE = 0x8;
        /// The page can be freed by a shrinker: groups it with others of its kind.
        #[doc(alias = "__GFP_RECLAIMABLE")]
        const RECLAIMABLE = 0x10;
        /// High priority: may dig into the reserve below the min watermark.
        #[doc(alias = "__GFP_HIGH")]
        const HIGH = 0x20;
        /// Reclaim may start physical I/O. Also the switch that lets direct compaction run.
        #[doc(alias = "__GFP_IO")]
        const IO = 0x40;
        /// Reclaim may call into filesystems. Also needed before the OOM killer really kills.
        #[doc(alias = "__GFP_FS")]
        const FS = 0x80;
        /// The memory is returned zeroed.
        #[doc(alias = "__GFP_ZERO")]
        const ZERO = 0x100;
        /// The caller may sleep and reclaim memory itself.
        #[doc(alias = "__GFP_DIRECT_RECLAIM")]
        const DIRECT_RECLAIM = 0x400;
        /// Wake background reclaim when the low watermark is not met.
        #[doc(alias = "__GFP_KSWAPD_RECLAIM")]
        const KSWAPD_RECLAIM = 0x800;
        /// The page will be dirtied: nodes over their dirty limit are passed over at first.
        #[doc(alias = "__GFP_WRITE")]
        const WRITE = 0x1000;
        /// A failure is not reported: the caller has a fallback.
        #[doc(alias = "__GFP_NOWARN")]
        const NOWARN = 0x2000;
        /// Try hard and retry, but never invoke the OOM killer; may fail.
        #[doc(alias = "__GFP_RETRY_MAYFAIL")]
        const RETRY_MAYFAIL = 0x4000;
        /// Loop until memory is found. Works only for callers that may sleep.
        #[doc(alias = "__GFP_NOFAIL")]
        const NOFAIL = 0x8000;
        /// One light round of reclaim, then fail; no OOM killer.
        #[doc(alias = "__GFP_NORETRY")]
        const NORETRY = 0x10000;
        /// May ignore watermarks completely: for whoever frees more memory by getting some.
        #[doc(alias = "__GFP_MEMALLOC")]
        const MEMALLOC = 0x20000;
        /// Make the block a compound page when its order is above 0.
        #[doc(alias = "__GFP_COMP")]
        const COMP = 0x40000;
        /// Never touch the emergency reserves, whatever else is said.
        #[doc(alias = "__GFP_NOMEMALLOC")]
        const NOMEMALLOC = 0x80000;
        /// Keep strictly to the node mask of the task's cpuset.
        #[doc(alias = "__GFP_HARDWALL")]
        const HARDWALL = 0x10_0000;
        /// Use only the requested node: no fallback list, no OOM killer.
        #[doc(alias = "__GFP_THISNODE")]
        const THISNODE = 0x20_0000;
        /// Charge the memory to the current memory cgroup.
        #[doc(alias = "__GFP_ACCOUNT")]
        const ACCOUNT = 0x40_0000;
        /// With [`ZERO`](Self::ZERO): zero the memory tags as well. No effect without tagging hardware.
        #[doc(alias = "__GFP_ZEROTAGS")]
        const ZEROTAGS = 0x80_0000;
        /// For slab's own use: do not allocate an object-extension vector for this slab page.
        #[doc(alias = "__GFP_NO_OBJ_EXT")]
        const NO_OBJ_EXT = 0x100_0000;
    }
}

/// Flags that stand for a facility this allocator has no part in; their bits are not assigned, as in a Linux built
/// without that facility. `contains` is therefore true for each of them on every mask: set them, never test them.
impl Gfp {
    /// Skip zeroing at allocation (hardware-tag KASAN only): empty.
    #[doc(alias = "__GFP_SKIP_ZERO")]
    pub const SKIP_ZERO: Self = Self::empty();
    /// Skip KASAN (un)poisoning (hardware-tag KASAN only): empty.
    #[doc(alias = "__GFP_SKIP_KASAN")]
    pub const SKIP_KASAN: Self = Self::empty();
    /// Keep this request out of lockdep's reclaim map: empty.
    #[doc(alias = "__GFP_NOLOCKDEP")]
    pub const NOLOCKDEP: Self = Self::empty();
}

/// Composites: what callers usually write.
impl Gfp {
    /// Direct and background reclaim together.
    #[doc(alias = "__GFP_RECLAIM")]
    pub const RECLAIM: Self = Self::DIRECT_RECLAIM.union(Self::KSWAPD_RECLAIM);
    /// Must not sleep, and must rather succeed: may use part of the reserves and wakes kswapd.
    #[doc(alias = "GFP_ATOMIC")]
    pub const ATOMIC: Self = Self::HIGH.union(Self::KSWAPD_RECLAIM);
    /// The default for kernel memory: may sleep, reclaim, start I/O and enter filesystems.
    #[doc(alias = "GFP_KERNEL")]
    pub const KERNEL: Self = Self::RECLAIM.union(Self::IO).union(Self::FS);
    /// [`KERNEL`](Self::KERNEL), charged to the current memory cgroup.
    #[doc(alias = "GFP_KERNEL_ACCOUNT")]
    pub const KERNEL_ACCOUNT: Self = Self::KERNEL.union(Self::ACCOUNT);
    /// Must not sleep and has a fallback: wakes kswapd, fails silently, uses no reserve.
    #[doc(alias = "GFP_NOWAIT")]
    pub const NOWAIT: Self = Self::KSWAPD_RECLAIM.union(Self::NOWARN);
    /// May sleep and reclaim, but reclaim starts no I/O. Prefer [`NoIoScope`](crate::NoIoScope).
    #[doc(alias = "GFP_NOIO")]
    pub const NOIO: Self = Self::RECLAIM;
    /// May sleep, reclaim and start I/O, but enters no filesystem. Prefer [`NoFsScope`](crate::NoFsScope).
    #[doc(alias = "GFP_NOFS")]
    pub const NOFS: Self = Self::RECLAIM.union(Self::IO);
    /// For user space, directly accessible to the kernel too, not movable; keeps to the cpuset.
    #[doc(alias = "GFP_USER")]
    pub const USER: Self = Self::KERNEL.union(Self::HARDWALL);
    /// For user space; the kernel need not access it directly; not movable.
    #[doc(alias = "GFP_HIGHUSER")]
    pub const HIGHUSER: Self = Self::USER.union(Self::HIGHMEM);
    /// For user space; the kernel need not access it directly; movable.
    #[doc(alias = "GFP_HIGHUSER_MOVABLE")]
    pub const HIGHUSER_MOVABLE: Self = Self::HIGHUSER.union(Self::MOVABLE).union(Self::SKIP_KASAN);
    /// A huge page at fault time, if one lies ready: no reclaim at all.
    #[doc(alias = "GFP_TRANSHUGE_LIGHT")]
    pub const TRANSHUGE_LIGHT: Self =
        Self::HIGHUSER_MOVABLE.union(Self::COMP).union(Self::NOMEMALLOC).union(Self::NOWARN).difference(Self::RECLAIM);
    /// A huge page worth some work: direct reclaim and compaction, but kswapd stays asleep.
    #[doc(alias = "GFP_TRANSHUGE")]
    pub const TRANSHUGE: Self = Self::TRANSHUGE_LIGHT.union(Self::DIRECT_RECLAIM);
}

/// Masks: which flags a layer keeps of its caller's.
impl Gfp {
    /// The flags that choose a zone or the mobility (the low five bits).
    pub const ZONE_AND_MOBILITY: Self =
        Self::DMA.union(Self::HIGHMEM).union(Self::DMA32).union(Self::MOVABLE).union(Self::RECLAIMABLE);
    /// What an allocation made on behalf of another may inherit: how to reclaim, which reserves, how to fail.
    #[doc(alias = "GFP_RECLAIM_MASK")]
    pub const RECLAIM_MASK: Self = Self::RECLAIM
        .union(Self::HIGH)
        .union(Self::IO)
        .union(Self::FS)
        .union(Self::NOWARN)
        .union(Self::RETRY_MAYFAIL)
        .union(Self::NOFAIL)
        .union(Self::NORETRY)
        .union(Self::MEMALLOC)
        .union(Self::NOMEMALLOC)
        .union(Self::NOLOCKDEP);
    /// The flags that limit the nodes.
    #[doc(alias = "GFP_CONSTRAINT_MASK")]
    pub const CONSTRAINT_MASK: Self = Self::HARDWALL.union(Self::THISNODE);
    /// What may pass until tasks can sleep: and-ed into each request during boot.
    #[doc(alias = "GFP_BOOT_MASK")]
    pub const BOOT_MASK: Self = Self::all().difference(Self::RECLAIM.union(Self::IO).union(Self::FS));
    /// What a slab cache must not be asked for: zones it cannot address, and unassigned bits.
    #[doc(alias = "GFP_SLAB_BUG_MASK")]
    pub const SLAB_BUG_MASK: Self =
        Self::from_bits_retain(Self::DMA32.union(Self::HIGHMEM).bits() | !Self::all().bits());
    /// The reclaim modifiers, of which a request carries at most one.
    pub const RETRY_MODIFIERS: Self = Self::NORETRY.union(Self::RETRY_MAYFAIL).union(Self::NOFAIL);
}

/// Questions about a request. All are `const`, constant-time and legal in any context.
impl Gfp {
    /// Whether the caller may sleep: exactly [`DIRECT_RECLAIM`](Self::DIRECT_RECLAIM).
    #[doc(alias = "gfpflags_allow_blocking")]
    #[must_use]
    #[inline]
    pub const fn allows_blocking(self) -> bool {
        self.contains(Self::DIRECT_RECLAIM)
    }

    /// Whether the caller may wait for a lock: exactly "any reclaim flag is set". A mask without any marks a caller
    /// from an arbitrary context (an NMI, say), for whom every lock is only tried.
    #[doc(alias = "gfpflags_allow_spinning")]
    #[must_use]
    #[inline]
    pub const fn allows_spinning(self) -> bool {
        self.intersects(Self::RECLAIM)
    }

    /// Whether a shortage may wake background reclaim.
    #[must_use]
    #[inline]
    pub const fn wakes_kswapd(self) -> bool {
        self.contains(Self::KSWAPD_RECLAIM)
    }

    /// Whether direct compaction may run for this request (if compaction is built in): exactly [`IO`](Self::IO), so a
    /// [`NOIO`](Self::NOIO) request of a high order never compacts.
    #[must_use]
    #[inline]
    pub const fn allows_compaction(self) -> bool {
        self.contains(Self::IO)
    }

    /// Whether a failure is reported.
    #[must_use]
    #[inline]
    pub const fn reports_failure(self) -> bool {
        !self.contains(Self::NOWARN)
    }

    /// Whether fault injection may fail this request: any but a [`NOFAIL`](Self::NOFAIL) one.
    #[must_use]
    #[inline]
    pub const fn may_be_injected(self) -> bool {
        !self.contains(Self::NOFAIL)
    }
}

/// A request rewritten for another layer. All are `const`, constant-time and legal in any context.
impl Gfp {
    /// What a nested layer may inherit of this request ([`RECLAIM_MASK`](Self::RECLAIM_MASK)).
    #[must_use]
    #[inline]
    pub const fn inherited(self) -> Self {
        self.intersection(Self::RECLAIM_MASK)
    }

    /// The request for a bookkeeping allocation made *inside* this one: keeps the caller's right to sleep and to use
    /// the reserve, but gives up early, silently, and never touches the emergency reserves.
    #[doc(alias = "gfp_nested_mask")]
    #[must_use]
    #[inline]
    pub const fn nested(self) -> Self {
        self.intersection(Self::KERNEL.union(Self::ATOMIC).union(Self::NOLOCKDEP))
            .union(Self::NORETRY.union(Self::NOMEMALLOC).union(Self::NOWARN))
    }

    /// The request for an interface that returns an address: [`HIGHMEM`](Self::HIGHMEM) is dropped, silently.
    #[doc(alias("__get_free_pages", "get_zeroed_page"))]
    #[must_use]
    #[inline]
    pub const fn addressable(self) -> Self {
        self.difference(Self::HIGHMEM)
    }

    /// The bits of this request that slab strips (after a warning): see [`SLAB_BUG_MASK`](Self::SLAB_BUG_MASK).
    #[must_use]
    #[inline]
    pub const fn slab_bugs(self) -> Self {
        self.intersection(Self::SLAB_BUG_MASK)
    }
}
