//! [`Kmalloc`]: from a size to a block, the fast path.
//!
//! ```text
//! kmalloc(size, gfp)
//!   1..=8192   size ─▶ class ─▶ cache of its kind ─▶ Slabs::alloc      (constant size: one load finds the cache)
//!   0          ZERO_SIZE_PTR
//!   more       a block of 2^order pages, marked in the frame table     (large.rs)
//! ```
//!
//! A `Kmalloc` holds pointers to caches and nothing that changes: all state is in the caches, the frame table and the
//! page allocator. The one thing counted here, pages in large blocks, is counted per CPU.

use core::fmt;
use core::num::NonZero;
use core::ptr::NonNull;

use kmem_gfp::size::array_size;
use kmem_gfp::verdict::check_sleep;
use kmem_gfp::{AllocContext, AllocError, Gfp, NodeId};
use kmem_slab::{CreateError, DestroyError, KmemCache, SlabEnv, SlabFlags, Slabs};
use kmem_sync::atomic::{AtomicBool, AtomicI64, Ordering};
use kmem_sync::{Cpu, PerCpu};

use crate::classes::{ClassArgs, Classes};
use crate::rcu::LargeRcu;
use crate::{KmallocConfig, KmallocKind, MinAlign, PartitionToken, SizeClass, class, large};

/// The address that a request for zero bytes gets: not null, never to be dereferenced, accepted by `kfree`, `krealloc`
/// and `ksize`.
pub const ZERO_SIZE_PTR: NonNull<u8> = NonNull::without_provenance(NonZero::<usize>::MIN.saturating_add(15));

/// Whether `address` is null or [`ZERO_SIZE_PTR`] (or lies between): a block without bytes.
#[doc(alias = "ZERO_OR_NULL_PTR")]
#[inline(always)]
pub fn is_zero_or_null(address: usize) -> bool {
    address <= 16
}

/// Blocks of any size, over a family of object caches.
///
/// Made once for a machine (see [`new`](Self::new)); then every method takes `&self` from any CPU.
///
/// # Invariants
/// Every cache in it belongs to `slabs` and stays alive as long as this value.
pub struct Kmalloc<'s, E: SlabEnv> {
    kinds: [Classes<'s>; KmallocKind::COUNT],
    pub(crate) slabs: &'s Slabs<E>,
    pub(crate) config: KmallocConfig,
    partitions: Option<NonNull<Partitions<'s>>>,
    seed: u64,
    large_local: PerCpu<i64>,
    large_shared: AtomicI64,
    warned_too_large: AtomicBool,
    /// Whether new blocks are zeroed right here, where a constant size makes that a few stores: no cache tracks sizes, and
    /// each has the size of its class. Otherwise the cache does it.
    zeroes_here: bool,
    /// Whether some cache keeps the sizes asked for, or checks anything else about its objects.
    pub(crate) tracks_sizes: bool,
    pub(crate) large_rcu: LargeRcu,
}

// SAFETY: everything shared is `Sync` by itself; `partitions` points to memory that is only read.
unsafe impl<E: SlabEnv> Sync for Kmalloc<'_, E> where Slabs<E>: Sync {}
// SAFETY: nothing is tied to the creating thread; the memory behind `partitions` moves along.
unsafe impl<E: SlabEnv> Send for Kmalloc<'_, E> where Slabs<E>: Sync {}

impl<E: SlabEnv> fmt::Debug for Kmalloc<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kmalloc").field("config", &self.config).finish_non_exhaustive()
    }
}

impl<'s, E: SlabEnv> Kmalloc<'s, E> {
    /// Creates the caches of every kind that `config` asks for and whatever else is needed, all of it from `slabs` and
    /// the page source beneath. May sleep.
    ///
    /// # Errors
    /// Those of [`Slabs::create`]; nothing is left behind.
    pub fn new(slabs: &'s Slabs<E>, config: KmallocConfig) -> Result<Self, CreateError> {
        // With groups, a cache merged into a normal class would be charged for nothing.
        let flags = if config.cgroup { SlabFlags::NO_MERGE } else { SlabFlags::empty() };
        let normal = Classes::create(slabs, &class_args(&config, KmallocKind::Normal.prefix(), flags))?;
        let mut this = Self {
            kinds: [normal; KmallocKind::COUNT],
            slabs,
            partitions: None,
            seed: slabs.env().entropy(),
            large_local: PerCpu::empty(),
            large_shared: AtomicI64::new(0),
            warned_too_large: AtomicBool::new(false),
            zeroes_here: false,
            tracks_sizes: false,
            large_rcu: LargeRcu::new(),
            config,
        };
        match this.complete() {
            Ok(()) => Ok(this),
            Err(error) => {
                // Nobody has allocated from it, so nothing remains.
                let _ = this.teardown();
                Err(error)
            }
        }
    }

    /// Waits for everything freed through RCU and destroys the caches. May sleep.
    ///
    /// # Errors
    /// [`DestroyError`] if blocks are in use: each is reported, stays valid and can be freed by the [`slabs`](Self::slabs);
    /// its cache stays behind, all others are gone.
    pub fn destroy(mut self) -> Result<(), DestroyError> {
        self.kfree_rcu_barrier();
        self.teardown()
    }

    /// The family of caches beneath.
    #[inline(always)]
    pub fn slabs(&self) -> &'s Slabs<E> {
        self.slabs
    }

    /// What it was made with.
    pub fn config(&self) -> &KmallocConfig {
        &self.config
    }

    /// The cache that serves requests of `class` with `gfp`.
    #[inline(always)]
    pub fn cache(&self, class: SizeClass, gfp: Gfp) -> &'s KmemCache {
        self.classes(gfp).get(class)
    }

    /// Allocates at least `size_bytes` bytes.
    ///
    /// The block is aligned to the largest power of two that divides `size_bytes`, so a power of two to itself, and to
    /// at least [`KmallocConfig::min_align`]. Zero bytes give [`ZERO_SIZE_PTR`].
    ///
    /// Contexts: any that `gfp` permits; any at all, NMI excepted, without [`Gfp::DIRECT_RECLAIM`]. Constant time when
    /// this CPU's sheaf has an object.
    ///
    /// # Errors
    /// [`AllocError::TooLarge`] above [`KMALLOC_MAX_SIZE`](crate::KMALLOC_MAX_SIZE), whatever the flags; otherwise
    /// [`AllocError::NoMemory`] and its kin, which [`Gfp::NOFAIL`] rules out. Nothing has changed.
    #[inline(always)]
    #[track_caller]
    pub fn kmalloc(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.debug_sleep_check(gfp);
        match SizeClass::for_size(size_bytes) {
            Some(class) if gfp.contains(Gfp::ZERO) && self.zeroes_here => {
                let plain = gfp.difference(Gfp::ZERO);
                let block = self.slabs.alloc_sized(self.cache(class, gfp), plain, size_bytes)?;
                // SAFETY: a new object of the class: where zeroing is done here, its cache has the class's size.
                unsafe { block.write_bytes(0, class.size_bytes()) };
                Ok(block)
            }
            Some(class) => self.slabs.alloc_sized(self.cache(class, gfp), gfp, size_bytes),
            None => self.kmalloc_unclassed(size_bytes, gfp, None),
        }
    }

    /// As [`kmalloc`](Self::kmalloc), zeroed: the bytes asked for and the rest of the block.
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    #[inline(always)]
    #[track_caller]
    pub fn kzalloc(&self, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc(size_bytes, gfp.union(Gfp::ZERO))
    }

    /// As [`kmalloc`](Self::kmalloc) for `count` elements of `size_bytes` each.
    ///
    /// # Errors
    /// [`AllocError::TooLarge`] as well when the product overflows.
    #[inline(always)]
    #[track_caller]
    pub fn kmalloc_array(&self, count: usize, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc(array_size(count, size_bytes), gfp)
    }

    /// As [`kmalloc_array`](Self::kmalloc_array), zeroed.
    ///
    /// # Errors
    /// Those of [`kmalloc_array`](Self::kmalloc_array).
    #[inline(always)]
    #[track_caller]
    pub fn kcalloc(&self, count: usize, size_bytes: usize, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc_array(count, size_bytes, gfp.union(Gfp::ZERO))
    }

    /// As [`kmalloc`](Self::kmalloc), preferably on `node`; with [`Gfp::THISNODE`] only there.
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc); [`AllocError::NoSuchNode`].
    #[inline]
    #[track_caller]
    pub fn kmalloc_node(&self, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError> {
        self.debug_sleep_check(gfp);
        match SizeClass::for_size(size_bytes) {
            Some(class) => self.slabs.alloc_node_sized(self.cache(class, gfp), gfp, node, size_bytes),
            None => self.kmalloc_unclassed(size_bytes, gfp, node),
        }
    }

    /// As [`kmalloc_node`](Self::kmalloc_node), zeroed.
    ///
    /// # Errors
    /// Those of [`kmalloc_node`](Self::kmalloc_node).
    #[inline]
    #[track_caller]
    pub fn kzalloc_node(&self, size_bytes: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc_node(size_bytes, gfp.union(Gfp::ZERO), node)
    }

    /// As [`kmalloc_array`](Self::kmalloc_array), preferably on `node`.
    ///
    /// # Errors
    /// Those of [`kmalloc_array`](Self::kmalloc_array) and [`kmalloc_node`](Self::kmalloc_node).
    #[inline]
    #[track_caller]
    pub fn kmalloc_array_node(
        &self,
        count: usize,
        size_bytes: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc_node(array_size(count, size_bytes), gfp, node)
    }

    /// As [`kcalloc`](Self::kcalloc), preferably on `node`.
    ///
    /// # Errors
    /// Those of [`kmalloc_array_node`](Self::kmalloc_array_node).
    #[inline]
    #[track_caller]
    pub fn kcalloc_node(
        &self,
        count: usize,
        size_bytes: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, AllocError> {
        self.kmalloc_array_node(count, size_bytes, gfp.union(Gfp::ZERO), node)
    }

    /// As [`kmalloc`](Self::kmalloc), from the partition of `token` where the machine has partitions and the request is
    /// a normal one.
    ///
    /// # Errors
    /// Those of [`kmalloc`](Self::kmalloc).
    #[inline]
    #[track_caller]
    pub fn kmalloc_partitioned(
        &self,
        size_bytes: usize,
        gfp: Gfp,
        token: PartitionToken,
    ) -> Result<NonNull<u8>, AllocError> {
        self.debug_sleep_check(gfp);
        match (self.partitions, SizeClass::for_size(size_bytes)) {
            (Some(partitions), Some(class)) if KmallocKind::of(gfp) == KmallocKind::Normal => {
                // SAFETY: written by `create_partitions`, read only since, freed never.
                let partitions = unsafe { partitions.as_ref() };
                self.slabs.alloc_sized(partitions[token.partition(self.seed) & 15].get(class), gfp, size_bytes)
            }
            _ => self.kmalloc(size_bytes, gfp),
        }
    }

    /// How many bytes a request of `size_bytes` gets: see [`size_roundup`](crate::size_roundup).
    pub fn kmalloc_size_roundup(&self, size_bytes: usize) -> usize {
        class::size_roundup(size_bytes, self.config.min_align)
    }

    /// Pages in large blocks, which count as unreclaimable slab. Slow: it stops each CPU's counting for a moment.
    pub fn large_pages(&self) -> usize {
        let cpu = self.slabs.env().cpu();
        let local: i64 = self.large_local.iter().map(|(_, slot)| slot.with_revoked(cpu, |n| *n)).sum();
        usize::try_from(local.saturating_add(self.large_shared.load(Ordering::Relaxed))).unwrap_or_default()
    }

    /// Complains in debug builds about a request that may sleep where sleeping is forbidden, whether or not it would have
    /// slept this time.
    #[inline(always)]
    pub(crate) fn debug_sleep_check(&self, gfp: Gfp) {
        if cfg!(debug_assertions) {
            let allowed = check_sleep(gfp, self.slabs.env().context().task_flags());
            debug_assert!(allowed.is_ok(), "kmalloc: {allowed:?}");
        }
    }

    #[inline(always)]
    fn classes(&self, gfp: Gfp) -> &Classes<'s> {
        match KmallocKind::of(gfp) {
            KmallocKind::Normal => &self.kinds[0],
            _ => self.classes_of_kind(gfp),
        }
    }

    fn classes_of_kind(&self, gfp: Gfp) -> &Classes<'s> {
        let mut present = Gfp::RECLAIMABLE;
        present.set(Gfp::DMA, self.config.dma);
        present.set(Gfp::ACCOUNT, self.config.cgroup);
        &self.kinds[KmallocKind::of(gfp & present).index() & 3]
    }

    /// Zero bytes, and blocks above the classes.
    #[cold]
    #[inline(never)]
    pub(crate) fn kmalloc_unclassed(
        &self,
        size_bytes: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, AllocError> {
        if size_bytes == 0 {
            return Ok(ZERO_SIZE_PTR);
        }
        let env = self.slabs.env();
        if !gfp.slab_bugs().is_empty() {
            let bugs = gfp.slab_bugs();
            env.context().report(format_args!("kmalloc: unexpected flags {bugs} are left out. Fix your code!"));
        }
        match large::alloc(env.pages(), env.frames(), size_bytes, gfp, node) {
            Ok((block, order)) => {
                self.count_large(order.nr_pages() as i64);
                Ok(block)
            }
            Err(error) => {
                if matches!(error, AllocError::TooLarge { .. }) && gfp.reports_failure() {
                    self.report_too_large(size_bytes, gfp);
                }
                Err(error)
            }
        }
    }

    pub(crate) fn count_large(&self, pages: i64) {
        let counted = self.large_local.try_with(self.slabs.env().cpu(), |n, _| *n = n.wrapping_add(pages));
        if counted.is_none() {
            self.large_shared.fetch_add(pages, Ordering::Relaxed);
        }
    }

    fn report_too_large(&self, size_bytes: usize, gfp: Gfp) {
        if !self.warned_too_large.swap(true, Ordering::Relaxed) {
            self.slabs.env().context().report(format_args!("kmalloc: {size_bytes} bytes are too many, mode {gfp}"));
        }
    }

    /// Creates what [`new`](Self::new) has not yet.
    fn complete(&mut self) -> Result<(), CreateError> {
        let kinds = [
            (KmallocKind::Reclaimable, SlabFlags::RECLAIM_ACCOUNT, true),
            (KmallocKind::Cgroup, SlabFlags::ACCOUNT, self.config.cgroup),
            (KmallocKind::Dma, SlabFlags::CACHE_DMA, self.config.dma),
        ];
        for (kind, flags, exists) in kinds {
            if exists {
                let args = class_args(&self.config, kind.prefix(), flags);
                self.kinds[kind.index() & 3] = Classes::create(self.slabs, &args)?;
            }
        }
        self.allocate_counters()?;
        if self.config.partitions {
            self.create_partitions()?;
        }
        // SAFETY: written by `create_partitions`, only read since.
        let partitions = self.partitions.map(|partitions| unsafe { partitions.as_ref() });
        let mut sets = self.kinds.iter().chain(partitions.into_iter().flatten());
        self.tracks_sizes = sets.any(|classes| classes.iter().any(KmemCache::is_debug));
        self.zeroes_here = !self.tracks_sizes && self.config.min_align == MinAlign::SMALLEST;
        Ok(())
    }

    fn allocate_counters(&mut self) -> Result<(), CreateError> {
        let nr_cpus = self.slabs.env().cpu().nr_cpus();
        let Some(layout) = PerCpu::<i64>::layout(nr_cpus) else { return Ok(()) };
        let memory = self.kmalloc(layout.size(), Gfp::KERNEL)?;
        debug_assert!(memory.addr().get() % layout.align() == 0);
        // SAFETY: of the layout's size, which is a multiple of its alignment, so kmalloc aligned the block to it. It is
        // freed with this value, if ever.
        self.large_local = unsafe { PerCpu::init(memory, nr_cpus, |_| 0) };
        Ok(())
    }

    #[cold]
    fn create_partitions(&mut self) -> Result<(), CreateError> {
        let memory = self.kmalloc(size_of::<Partitions<'s>>().next_power_of_two(), Gfp::KERNEL)?;
        let place = memory.cast::<Partitions<'s>>();
        // SAFETY: as large as the array or larger, and aligned to its own size; ours alone.
        unsafe { place.write([self.kinds[0]; PartitionToken::PARTITIONS]) };
        self.partitions = Some(place);
        // SAFETY: just written; nobody else has this value yet.
        let partitions = unsafe { &mut *place.as_ptr() };
        for (classes, prefix) in partitions.iter_mut().zip(PARTITION_PREFIXES).skip(1) {
            *classes = Classes::create(self.slabs, &class_args(&self.config, prefix, SlabFlags::NO_MERGE))?;
        }
        Ok(())
    }

    /// Destroys all caches. The value is not used again.
    #[cold]
    fn teardown(&mut self) -> Result<(), DestroyError> {
        let normal = self.kinds[0];
        let mut result = Ok(());
        if let Some(partitions) = self.partitions.take() {
            // SAFETY: written by `create_partitions`.
            for classes in unsafe { partitions.as_ref() }.iter().filter(|classes| !classes.same_as(&normal)) {
                // SAFETY: the value that held the set ends here.
                result = result.and(unsafe { classes.destroy(self.slabs) });
            }
            // SAFETY: ours, and nobody uses it any more.
            let _ = unsafe { self.kfree(partitions.as_ptr().cast()) };
        }
        if !self.large_local.is_empty() {
            let counters = core::mem::replace(&mut self.large_local, PerCpu::empty());
            // SAFETY: ours, and nobody uses it any more.
            let _ = unsafe { self.kfree(counters.memory().as_ptr()) };
        }
        for classes in self.kinds.iter().skip(1).filter(|classes| !classes.same_as(&normal)) {
            // SAFETY: as above.
            result = result.and(unsafe { classes.destroy(self.slabs) });
        }
        // SAFETY: as above; the counters and partitions have been freed.
        result.and(unsafe { normal.destroy(self.slabs) })
    }
}

type Partitions<'s> = [Classes<'s>; PartitionToken::PARTITIONS];

const PARTITION_PREFIXES: [&str; PartitionToken::PARTITIONS] = [
    "kmalloc-",
    "kmalloc-part-01-",
    "kmalloc-part-02-",
    "kmalloc-part-03-",
    "kmalloc-part-04-",
    "kmalloc-part-05-",
    "kmalloc-part-06-",
    "kmalloc-part-07-",
    "kmalloc-part-08-",
    "kmalloc-part-09-",
    "kmalloc-part-10-",
    "kmalloc-part-11-",
    "kmalloc-part-12-",
    "kmalloc-part-13-",
    "kmalloc-part-14-",
    "kmalloc-part-15-",
];

/// What the caches of one of kmalloc's own families are made with: all of each object may go to user space.
fn class_args<'n>(config: &KmallocConfig, prefix: &'n str, flags: SlabFlags) -> ClassArgs<'n> {
    ClassArgs {
        prefix,
        flags: config.flags | SlabFlags::KMALLOC | flags,
        min_align: config.min_align,
        useroffset: 0,
        usersize: usize::MAX,
        ctor: None,
    }
}
