//! [`Slabs`]: the family of caches over one page source, and its own bookkeeping memory.
//!
//! ```text
//! Slabs ── core ──▶ one block of pages, taken at `init`:
//!                   │ Core: list of caches, totals, fault injector, internal caches │ their nodes │
//!
//! internal caches of 64, 128 ... 4096 bytes hold descriptors and sheaves; they have no sheaves themselves, so
//! nothing recurses
//! ```

use core::ptr::{self, NonNull};

use kmem_gfp::{AllocContext, AllocError, Gfp, Order, PageAllocator, Pfn};
use kmem_sync::atomic::{AtomicBool, AtomicI64, AtomicPtr, Ordering};
use kmem_sync::{Cpu, SpinLock, const_fn};

use crate::backend::Locking;
use crate::cache::{CacheName, Spec};
use crate::error::no_memory;
use crate::inject::Injector;
use crate::layout::ObjectLayout;
use crate::node::Node;
use crate::order::SlabOrders;
use crate::payers::{NODE_BYTES, PayerTree};
use crate::slots::{Slot, Slots};
use crate::{DebugOptions, KmemCache, SlabConfig, SlabEnv, SlabFlags};

/// log2 of the smallest internal object.
const META_SHIFT: u32 = 6;
/// Classes that are powers of two.
const META_POWERS: usize = 7;
/// Classes of an odd number of cache lines, for sheaves: their headers spread over all sets of the processor's first cache.
const META_ODD: [usize; 2] = [9 * 64, 17 * 64];
const META_CLASSES: usize = META_POWERS + META_ODD.len();
const META_NAMES: [&str; META_CLASSES] = [
    "slab-meta-64",
    "slab-meta-128",
    "slab-meta-256",
    "slab-meta-512",
    "slab-meta-1k",
    "slab-meta-2k",
    "slab-meta-4k",
    "slab-meta-576",
    "slab-meta-1088",
];

/// The list of caches, newest first.
#[derive(Debug)]
pub(crate) struct CacheList {
    pub(crate) newest: *mut KmemCache,
    pub(crate) len: usize,
}

// SAFETY: descriptors are `Sync` and tied to no thread.
unsafe impl Send for CacheList {}

/// A look at a cache: it is not destroyed before this is dropped.
struct Visit<'s>(&'s KmemCache);

impl Visit<'_> {
    /// Looks at the cache, or the first behind it that is not being destroyed. Called with the list lock held.
    fn from(mut at: *mut KmemCache) -> Option<Self> {
        // SAFETY: caches on the list live while the lock is held.
        while let Some(cache) = unsafe { at.as_ref() } {
            if cache.is_live() {
                cache.visitors.fetch_add(1, Ordering::Relaxed);
                return Some(Self(cache));
            }
            at = cache.older.load(Ordering::Relaxed);
        }
        None
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        // Release pairs with the acquire in `destroy`: what was done here is done before the cache goes.
        self.0.visitors.fetch_sub(1, Ordering::Release);
    }
}

/// What a family keeps beside its caches. Lives in pages from `init` on.
pub(crate) struct Core {
    pub(crate) caches: SpinLock<CacheList>,
    pub(crate) unreclaimable: AtomicI64,
    pub(crate) reclaimable: AtomicI64,
    pub(crate) metadata: AtomicI64,
    /// Whether someone has been told that zeroing undoes a constructor.
    pub(crate) warned_zero: AtomicBool,
    pub(crate) injector: Injector,
    pub(crate) meta: [KmemCache; META_CLASSES],
    /// Slots without sheaves, one for each CPU: where caches point whose requests need care.
    pub(crate) idle: NonNull<Slot>,
    /// Who paid for which object.
    pub(crate) payers: PayerTree,
    block: (Pfn, Order),
}

/// Totals of a family, in pages and caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlabStats {
    /// Pages of slabs whose caches are not reclaimable (`nr_slab_unreclaimable`).
    pub unreclaimable_pages: u64,
    /// Pages of slabs of reclaimable caches (`nr_slab_reclaimable`).
    pub reclaimable_pages: u64,
    /// Pages that hold the allocator's own descriptors and sheaves; in no other count.
    pub metadata_pages: u64,
}

impl SlabStats {
    /// Pages of all caches' slabs.
    pub fn slab_pages(&self) -> u64 {
        self.unreclaimable_pages + self.reclaimable_pages
    }
}

/// A family of object caches over one page source. See the [crate documentation](crate).
///
/// # Invariants
/// `core` is null until [`init`](Self::init) has succeeded and then points to a `Core` until the family is dropped.
pub struct Slabs<E: SlabEnv> {
    pub(crate) env: E,
    pub(crate) config: SlabConfig,
    core: AtomicPtr<Core>,
}

impl<E: SlabEnv> Slabs<E> {
    const_fn! {
        /// A family over `env` with default tunables. It allocates nothing until [`init`](Self::init).
        pub fn new(env: E) -> Self {
            Self { env, config: SlabConfig::DEFAULT, core: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    const_fn! {
        /// A family over `env` with the given tunables.
        pub fn with_config(env: E, config: SlabConfig) -> Self {
            Self { env, config, core: AtomicPtr::new(ptr::null_mut()) }
        }
    }

    /// What the family is built over.
    #[inline(always)]
    pub fn env(&self) -> &E {
        &self.env
    }

    /// The tunables.
    pub fn config(&self) -> &SlabConfig {
        &self.config
    }

    /// Takes the first pages and makes the internal caches. Caches can be created from here on. Calling it again does
    /// nothing. May sleep.
    ///
    /// # Errors
    /// Those of the page source.
    #[doc(alias = "kmem_cache_init")]
    pub fn init(&self) -> Result<(), AllocError> {
        if self.core().is_some() {
            return Ok(());
        }
        let nr_nodes = self.env.pages().nr_nodes().max(1);
        let nodes_at = size_of::<Core>().next_multiple_of(align_of::<Node>());
        let nodes_len = META_CLASSES.saturating_mul(nr_nodes as usize);
        let idle_at = nodes_at.saturating_add(nodes_len.saturating_mul(size_of::<Node>()));
        let nr_cpus = self.nr_cpus();
        let bytes = idle_at.saturating_add((nr_cpus as usize).saturating_mul(size_of::<Slot>()));
        let order = Order::for_size(bytes).ok_or(AllocError::TooLarge { size_bytes: bytes })?;
        let pfn = self.env.pages().alloc_pages(Gfp::KERNEL, order, None)?;
        let Some(base) = crate::pages::mapped(self, pfn) else {
            self.return_pages(pfn, order);
            return Err(no_memory(Gfp::KERNEL));
        };
        // SAFETY: the block holds `bytes` bytes; the nodes start inside, aligned.
        let nodes = unsafe { base.add(nodes_at) }.cast::<Node>();
        for index in 0..nodes_len {
            // SAFETY: below the length computed above.
            unsafe { nodes.add(index).write(Node::new(self.config.barn_full)) };
        }
        // SAFETY: the slots lie behind the nodes, whose size is a multiple of their alignment.
        let idle = unsafe { base.add(idle_at) }.cast::<Slot>();
        for index in 0..nr_cpus as usize {
            // SAFETY: below the number counted in.
            unsafe { idle.add(index).write(Slot::new()) };
        }
        let meta = core::array::from_fn(|class| {
            // SAFETY: each class has its own `nr_nodes` nodes.
            let nodes = unsafe { nodes.add(class * nr_nodes as usize) };
            self.meta_cache(class, nodes, nr_nodes, idle)
        });
        let core = base.cast::<Core>();
        let value = Core {
            caches: SpinLock::new(CacheList { newest: ptr::null_mut(), len: 0 }),
            unreclaimable: AtomicI64::new(0),
            reclaimable: AtomicI64::new(0),
            metadata: AtomicI64::new(order.nr_pages() as i64),
            warned_zero: AtomicBool::new(false),
            injector: Injector::new(self.env.entropy()),
            meta,
            idle,
            payers: PayerTree::new(),
            block: (pfn, order),
        };
        // SAFETY: page-aligned memory of ours that is large enough.
        unsafe { core.write(value) };
        // Release pairs with the acquire in `core`.
        let won = self.core.compare_exchange(ptr::null_mut(), core.as_ptr(), Ordering::Release, Ordering::Relaxed);
        if won.is_err() {
            self.return_pages(pfn, order);
        }
        for letter in DebugOptions::parse(self.config.debug).unknown_letters() {
            self.env.context().report(format_args!("slab_debug option '{letter}' unknown. skipped"));
        }
        Ok(())
    }

    fn meta_cache(&self, class: usize, nodes: NonNull<Node>, nr_nodes: u32, idle: NonNull<Slot>) -> KmemCache {
        let odd = class.checked_sub(META_POWERS).and_then(|odd| META_ODD.get(odd));
        let size = odd.copied().unwrap_or(1 << (META_SHIFT as usize + class));
        let flags = SlabFlags::INTERNAL | SlabFlags::NO_SHEAVES | SlabFlags::NO_MERGE;
        let align = 1 << size.trailing_zeros();
        let layout = ObjectLayout::new(size, align, flags, false, None);
        let small = Order::for_size(size * 4).unwrap_or(Order::ZERO);
        let spec = Spec {
            name: CacheName::new(META_NAMES.get(class).copied().unwrap_or("slab-meta")),
            layout,
            orders: SlabOrders { preferred: small, minimum: Order::ZERO, dense: 1 },
            flags,
            ctor: None,
            useroffset: 0,
            usersize: 0,
            sheaf_capacity: 0,
            secret: self.env.entropy().rotate_left(class as u32),
            nodes,
            nr_nodes,
            random: ptr::null(),
            random_len: 0,
            block_bytes: 0,
            accounted: false,
            idle,
        };
        KmemCache::new(spec, Slots::empty())
    }

    /// The core, once there is one.
    #[inline]
    pub(crate) fn core(&self) -> Option<&Core> {
        let core = self.core.load(Ordering::Acquire);
        // SAFETY: null or a live core (type invariant).
        unsafe { core.as_ref() }
    }

    fn meta_class(&self, size_bytes: usize) -> Option<&KmemCache> {
        let log2 = usize::BITS - size_bytes.saturating_sub(1).leading_zeros();
        let power = log2.saturating_sub(META_SHIFT) as usize;
        let odd = META_ODD.iter().position(|&odd| size_bytes <= odd && size_bytes > odd - 64);
        let class = match odd {
            Some(odd) => META_POWERS + odd,
            // Behind the powers come the odd classes, which are smaller.
            None if power < META_POWERS => power,
            None => return None,
        };
        self.core()?.meta.get(class)
    }

    /// Memory for the allocator's own use, aligned to a cache line; powers of two to themselves, up to a page.
    pub(crate) fn meta_alloc(&self, size_bytes: usize, gfp: Gfp, how: Locking) -> Result<NonNull<u8>, AllocError> {
        if self.core().is_none() {
            return Err(AllocError::NotReady);
        }
        if let Some(cache) = self.meta_class(size_bytes) {
            return self.take_one(cache, gfp, self.env.context().local_node().index(), how);
        }
        let order = Order::for_size(size_bytes).ok_or(AllocError::TooLarge { size_bytes })?;
        let pfn = match how {
            Locking::Wait => self.env.pages().alloc_pages(gfp, order, None)?,
            Locking::Try => self.env.pages().alloc_pages_nolock(gfp, order, None)?,
        };
        let Some(memory) = crate::pages::mapped(self, pfn) else {
            self.return_pages(pfn, order);
            return Err(no_memory(gfp));
        };
        self.count_metadata(order.nr_pages() as i64);
        Ok(memory)
    }

    /// Takes back what [`meta_alloc`](Self::meta_alloc) gave for the same size.
    ///
    /// # Safety
    /// Nothing uses the memory any more.
    pub(crate) unsafe fn meta_free(&self, memory: NonNull<u8>, size_bytes: usize, how: Locking) {
        use kmem_gfp::FrameTable;
        if let Some(cache) = self.meta_class(size_bytes) {
            // SAFETY: the caller gives the object up.
            if let Err(error) = unsafe { self.put_object(cache, memory, how) } {
                self.report_refused(cache, error);
            }
        } else if let (Some(order), Some(pfn)) =
            (Order::for_size(size_bytes), self.env.frames().frame_of(memory.addr().get()))
        {
            self.count_metadata(-(order.nr_pages() as i64));
            self.return_pages(pfn, order);
        }
    }

    pub(crate) fn count_metadata(&self, pages: i64) {
        if let Some(core) = self.core() {
            core.metadata.fetch_add(pages, Ordering::Relaxed);
        }
    }

    pub(crate) fn count_slab(&self, cache: &KmemCache, pages: i64) {
        if let Some(core) = self.core() {
            let reclaimable = cache.flags.contains(SlabFlags::RECLAIM_ACCOUNT);
            let count = if reclaimable { &core.reclaimable } else { &core.unreclaimable };
            count.fetch_add(pages, Ordering::Relaxed);
        }
    }

    /// Totals, read from three counters. Any context.
    pub fn stats(&self) -> SlabStats {
        let read = |count: &AtomicI64| count.load(Ordering::Relaxed).max(0) as u64;
        self.core().map_or_else(SlabStats::default, |core| SlabStats {
            unreclaimable_pages: read(&core.unreclaimable),
            reclaimable_pages: read(&core.reclaimable),
            metadata_pages: read(&core.metadata),
        })
    }

    /// Calls `f` with every cache, newest first, the internal ones left out, and no lock held. Caches created or destroyed
    /// meanwhile may be missed; destroying the one that `f` looks at waits until it has returned, so `f` must not do it.
    pub fn for_each_cache(&self, mut f: impl FnMut(&KmemCache)) {
        let Some(core) = self.core() else { return };
        let mut visit = core.caches.with(self.env.cpu(), |list| Visit::from(list.newest));
        while let Some(Visit(cache)) = &visit {
            f(cache);
            let next = core.caches.with(self.env.cpu(), |_| Visit::from(cache.older.load(Ordering::Relaxed)));
            visit = next;
        }
    }

    /// The cache of that name, if there is one. Aliases go by the name of the cache that they share.
    pub fn find_cache(&self, name: &str) -> Option<&KmemCache> {
        let core = self.core()?;
        let found = core.caches.with(self.env.cpu(), |list| {
            let mut at = list.newest;
            // SAFETY: caches on the list live while the lock is held.
            while let Some(cache) = unsafe { at.as_ref() } {
                if cache.name() == name {
                    return at;
                }
                at = cache.older.load(Ordering::Relaxed);
            }
            ptr::null_mut()
        });
        // SAFETY: on the list, and destroyed only by a caller who promises that nobody uses it.
        unsafe { found.as_ref() }
    }

    /// Empties what the CPU's sheaves hold of every cache: for a CPU that went away. Interrupts must be on.
    pub fn cpu_dead(&self, cpu: kmem_sync::CpuId) {
        self.for_each_cache(|cache| self.flush_cpu(cache, cpu));
    }

    /// Waits until every CPU has left the local sections of every cache that it is in now. For a process that forks: with
    /// [`Cpu::sections_closed`] in force, nobody is inside one afterwards. Interrupts must be on.
    pub fn wait_sections(&self) {
        self.for_each_cache(|cache| cache.slots.iter().for_each(|slot| slot.wait(self.env.cpu())));
    }

    pub(crate) fn nr_cpus(&self) -> u32 {
        self.env.cpu().nr_cpus().max(1)
    }
}

impl<E: SlabEnv + core::fmt::Debug> core::fmt::Debug for Slabs<E> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Slabs").field("env", &self.env).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl<E: SlabEnv> Drop for Slabs<E> {
    /// Gives the family's own pages back if no cache is left; otherwise they stay with the caches.
    fn drop(&mut self) {
        let Some(core) = self.core() else { return };
        if core.caches.with(self.env.cpu(), |list| list.len) > 0 {
            return;
        }
        // SAFETY: the nodes were allocated with that size; without caches nobody looks for payers.
        core.payers.clear(|node| unsafe { self.meta_free(node, NODE_BYTES, Locking::Wait) });
        self.shrink_metadata();
        let in_use = core.meta.iter().flat_map(KmemCache::nodes).any(|node| node.nr_slabs.load(Ordering::Acquire) > 0);
        if !in_use {
            let (pfn, order) = core.block;
            self.core.store(ptr::null_mut(), Ordering::Release);
            self.return_pages(pfn, order);
        }
    }
}
