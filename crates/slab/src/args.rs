//! [`CacheArgs`] and [`SlabConfig`]: what one cache, and what the whole family, is made with.

use core::ptr::NonNull;

use crate::SlabFlags;

/// Prepares an object once, when its slab is created. Called with the object's first byte; must not allocate from the
/// same family.
///
/// # Safety
/// The pointer is to `size` bytes of the cache's object, aligned as asked, which nobody else uses.
pub type Ctor = unsafe fn(NonNull<u8>);

/// The optional arguments of [`Slabs::create`](crate::Slabs::create). The default is right for most caches.
#[doc(alias = "kmem_cache_args")]
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheArgs {
    /// Properties and debug options.
    pub flags: SlabFlags,
    /// Alignment in bytes: a power of two up to the page size; 0 means 8.
    pub align: usize,
    /// Runs once for each object of a new slab.
    pub ctor: Option<Ctor>,
    /// Start of the window that may be copied to or from user space, in bytes.
    pub useroffset: usize,
    /// Length of that window; 0 means nothing may be copied.
    pub usersize: usize,
    /// Where the free pointer may overlay a free object of a typesafe or constructed cache, in bytes.
    pub freeptr_offset: Option<usize>,
    /// Objects in a sheaf, if more than the automatic number is wanted; 0 means automatic.
    pub sheaf_capacity: u32,
}

impl CacheArgs {
    /// The defaults with `flags`.
    #[must_use]
    pub const fn with_flags(flags: SlabFlags) -> Self {
        Self { flags, align: 0, ctor: None, useroffset: 0, usersize: 0, freeptr_offset: None, sheaf_capacity: 0 }
    }
}

/// Tunables of the whole family, fixed when [`Slabs`](crate::Slabs) is made.
#[derive(Clone, Copy, Debug)]
pub struct SlabConfig {
    /// The smallest slab order ever preferred (`slab_min_order`).
    pub min_order: u32,
    /// The largest slab order preferred for objects that fit (`slab_max_order`).
    pub max_order: u32,
    /// Objects that a slab should hold at least; 0 derives it from the number of CPUs (`slab_min_objects`).
    pub min_objects: u32,
    /// Whether compatible caches are shared (`slab_merge`).
    pub merge: bool,
    /// The largest automatic sheaf; 0 gives no cache sheaves, as a machine with very little memory may want.
    pub max_sheaf_capacity: u32,
    /// Full sheaves a barn keeps.
    pub barn_full: u32,
    /// Empty sheaves a barn keeps.
    pub barn_empty: u32,
    /// Whether a cache that is still small gets smaller slabs than its preferred order, if they waste no more.
    pub grow_orders: bool,
    /// Whether the order of a new slab's objects is random.
    pub randomize: bool,
    /// Debug options by cache name, in the syntax of `slab_debug=`; parsed by this crate.
    pub debug: &'static str,
    /// New objects of every cache are zeroed (`init_on_alloc`).
    pub init_on_alloc: bool,
    /// Freed objects of every cache are zeroed (`init_on_free`).
    pub init_on_free: bool,
}

impl SlabConfig {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        min_order: 0,
        max_order: 3,
        min_objects: 0,
        merge: true,
        max_sheaf_capacity: 4096,
        barn_full: 10,
        barn_empty: 10,
        grow_orders: true,
        randomize: true,
        debug: "",
        init_on_alloc: false,
        init_on_free: false,
    };
}

impl Default for SlabConfig {
    fn default() -> Self {
        Self::DEFAULT
    }
}
