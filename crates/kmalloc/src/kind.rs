//! Kinds: the families of kmalloc caches that keep memory of different fates apart.
//!
//! ```text
//! flags of the request        family               exists where
//! DMA                         dma-kmalloc-N        the machine has a DMA zone
//! RECLAIMABLE                 kmalloc-rcl-N        always
//! ACCOUNT                     kmalloc-cg-N         memory is charged to groups
//! none of these               kmalloc-N            always; partitions: kmalloc-part-01-N .. -15-N
//! ```
//!
//! The first line that matches wins. A family that the machine lacks is served by the next line's.

use kmem_gfp::Gfp;

/// A family of caches, one cache for each size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KmallocKind {
    /// Everything without a special fate.
    Normal = 0,
    /// Objects that a shrinker can free.
    Reclaimable = 1,
    /// Charged to a memory cgroup.
    Cgroup = 2,
    /// Reachable by devices with 24 address bits.
    Dma = 3,
}

impl KmallocKind {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [Self::Normal, Self::Reclaimable, Self::Cgroup, Self::Dma];

    /// The family that a request with `gfp` belongs to.
    #[doc(alias = "kmalloc_type")]
    #[inline(always)]
    pub const fn of(gfp: Gfp) -> Self {
        if !gfp.intersects(Gfp::DMA.union(Gfp::RECLAIMABLE).union(Gfp::ACCOUNT)) {
            Self::Normal
        } else if gfp.contains(Gfp::DMA) {
            Self::Dma
        } else if gfp.contains(Gfp::RECLAIMABLE) {
            Self::Reclaimable
        } else {
            Self::Cgroup
        }
    }

    /// The number as an index below [`COUNT`](Self::COUNT).
    #[inline(always)]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// What precedes the size in the names of its caches.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Normal => "kmalloc-",
            Self::Reclaimable => "kmalloc-rcl-",
            Self::Cgroup => "kmalloc-cg-",
            Self::Dma => "dma-kmalloc-",
        }
    }
}

/// Where a request comes from, as four bits: normal requests of different tokens come from different caches on a
/// machine that [partitions](crate::KmallocConfig::partitions) them, so that a use after free of one type seldom meets
/// an object of another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PartitionToken(u64);

impl PartitionToken {
    /// How many partitions there are, the plain family included.
    pub const PARTITIONS: usize = 16;

    /// A token from any number that tells call sites or types apart.
    #[inline]
    pub const fn new(site: u64) -> Self {
        Self(site)
    }

    /// The token of a type: a hash of its name.
    #[inline]
    pub fn of_type<T: ?Sized>() -> Self {
        Self(hash_bytes(core::any::type_name::<T>().as_bytes()))
    }

    /// The token of the calling line.
    #[inline]
    #[track_caller]
    pub fn of_caller() -> Self {
        let caller = core::panic::Location::caller();
        let line = (u64::from(caller.line()) << 32) | u64::from(caller.column());
        Self(hash_bytes(caller.file().as_bytes()) ^ line)
    }

    /// The partition that it falls in on a machine that drew `seed` at boot; 0 is the plain family.
    #[inline]
    pub const fn partition(self, seed: u64) -> usize {
        ((self.0 ^ seed).wrapping_mul(0x61c8_8646_80b5_83eb) >> 60) as usize
    }
}

/// FNV-1a.
const fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut rest = bytes;
    while let [byte, tail @ ..] = rest {
        hash = (hash ^ *byte as u64).wrapping_mul(0x0100_0000_01b3);
        rest = tail;
    }
    hash
}
