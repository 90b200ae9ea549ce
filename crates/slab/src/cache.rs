//! [`KmemCache`]: the descriptor of a cache. One block of memory holds it and everything of fixed size that belongs to it.
//!
//! ```text
//! │ KmemCache │ Node × nodes │ Slot × CPUs │ shuffled slot numbers │
//! ```

use core::fmt;
use core::ptr::{self, NonNull};

use kmem_gfp::{Gfp, Order};
use kmem_sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use kmem_sync::{IrqLock, UnsafeCell};

use crate::barn::BURST_BYTES;
use crate::layout::ObjectLayout;
use crate::node::Node;
use crate::order::SlabOrders;
use crate::rcu::Pending;
use crate::slots::{Slot, Slots};
use crate::{Ctor, NAME_MAX, SlabFlags};

/// A cache's name, by value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CacheName {
    bytes: [u8; NAME_MAX],
    len: u8,
}

impl CacheName {
    /// Copies `name`; what is longer than [`NAME_MAX`] bytes is cut.
    pub(crate) fn new(name: &str) -> Self {
        let mut bytes = [0; NAME_MAX];
        let mut len = 0;
        for (place, byte) in bytes.iter_mut().zip(name.bytes()) {
            *place = byte;
            len += 1;
        }
        Self { bytes, len }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.len as usize).unwrap_or(&[]);
        core::str::from_utf8(bytes).unwrap_or("?")
    }
}

impl fmt::Display for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Bits of [`KmemCache::care`] beside those of [`Gfp`]: the request goes to the injector first.
pub(crate) const CARE_INJECT: u32 = 1 << 31;
/// The free pointer inside a new object is wiped.
pub(crate) const CARE_WIPE: u32 = 1 << 30;

/// Objects may be charged. Never cleared.
pub(crate) const CARE_ACCOUNT: u32 = 1 << 29;

/// A cache: where objects of one size come from. Made by [`Slabs::create`](crate::Slabs::create) and used through the
/// calls of [`Slabs`](crate::Slabs).
///
/// # Invariants
/// 1. The descriptor is aligned to 512 bytes, so that owner words can carry nine bits beside its address.
/// 2. `hot` and `hot_known` point to as many slots as there are CPUs, which live as long as the descriptor; slot `i` is CPU `i`'s.
/// 3. `nodes` points to `nr_nodes` nodes, and `random` to `random_len` slot numbers, that live as long as it.
#[doc(alias = "kmem_cache")]
#[repr(C, align(512))]
pub struct KmemCache {
    /// Where the hot path finds its sheaves: `slots`, or the family's idle slots while anything needs care.
    pub(crate) hot: AtomicPtr<Slot>,
    /// The same for frees of objects that need no look at their frame: idle where slabs lie on several nodes.
    pub(crate) hot_known: AtomicPtr<Slot>,
    pub(crate) slots: Slots,
    /// What an allocation must see to beyond popping an object: bits of [`Gfp`], and `CARE_*`.
    pub(crate) care: AtomicU32,
    /// Held while `care` changes and the hot path is pointed at the slots that fit.
    pub(crate) care_lock: IrqLock<()>,
    pub(crate) sheaf_capacity: u32,
    pub(crate) layout: ObjectLayout,
    pub(crate) orders: SlabOrders,
    pub(crate) objects_per_slab: u32,
    most_full: u32,
    reciprocal: u64,
    secret: u64,
    pub(crate) flags: SlabFlags,
    pub(crate) ctor: Option<Ctor>,
    /// What the user asked for; grows when a larger alias joins.
    pub(crate) object_size: AtomicUsize,
    pub(crate) useroffset: usize,
    pub(crate) usersize: usize,
    pub(crate) page_flags: Gfp,
    pub(crate) min_partial: AtomicU32,
    /// Other partial slabs beside which an empty one is kept; `min_partial` once that has been set by hand.
    pub(crate) spare_slabs: AtomicU32,
    pub(crate) defrag_ratio: AtomicU32,
    pub(crate) failslab: AtomicU32,
    nodes: NonNull<Node>,
    nr_nodes: u32,
    random: *const u16,
    random_len: u32,
    pub(crate) random_state: AtomicU64,
    /// Objects freed where no lock could be had, linked through their free pointers.
    pub(crate) deferred: AtomicPtr<u8>,
    pub(crate) pending: Pending,
    /// Users: `create` calls that returned this cache. Zero while it is being destroyed. Belongs to the list lock.
    pub(crate) refs: AtomicU32,
    /// Walkers of the list that are looking at this cache: it does not go away meanwhile. Raised under the list lock.
    pub(crate) visitors: AtomicU32,
    /// The next older cache; belongs to the family's list lock.
    pub(crate) older: AtomicPtr<KmemCache>,
    pub(crate) last_report_ms: AtomicU64,
    pub(crate) block_bytes: usize,
    pub(crate) name: CacheName,
    /// Keeps loom's eye on a destroyed descriptor.
    alive: UnsafeCell<bool>,
}

// SAFETY: the raw pointers are to parts of the descriptor's own block, which hold only `Sync` values or are constant.
unsafe impl Sync for KmemCache {}
// SAFETY: as above; nothing is tied to a thread.
unsafe impl Send for KmemCache {}

/// What [`KmemCache::new`] is told.
pub(crate) struct Spec {
    pub(crate) name: CacheName,
    pub(crate) layout: ObjectLayout,
    pub(crate) orders: SlabOrders,
    pub(crate) flags: SlabFlags,
    pub(crate) ctor: Option<Ctor>,
    pub(crate) useroffset: usize,
    pub(crate) usersize: usize,
    pub(crate) sheaf_capacity: u32,
    pub(crate) secret: u64,
    pub(crate) nodes: NonNull<Node>,
    pub(crate) nr_nodes: u32,
    pub(crate) random: *const u16,
    pub(crate) random_len: u32,
    pub(crate) block_bytes: usize,
    /// Whether every object is charged.
    pub(crate) accounted: bool,
    /// Slots without sheaves, one for each CPU.
    pub(crate) idle: NonNull<Slot>,
}

/// The default of `min_partial`: half the bit length of the stride, 5 to 10.
pub(crate) fn default_min_partial(stride: usize) -> u32 {
    (stride.max(1).ilog2() / 2).clamp(5, 10)
}

impl KmemCache {
    /// A descriptor by value, to be written to its place.
    pub(crate) fn new(spec: Spec, slots: Slots) -> Self {
        let stride = spec.layout.stride;
        let mut page_flags = Gfp::empty();
        if spec.orders.preferred > Order::ZERO {
            page_flags |= Gfp::COMP;
        }
        if spec.flags.contains(SlabFlags::CACHE_DMA) {
            page_flags |= Gfp::DMA;
        }
        if spec.flags.contains(SlabFlags::CACHE_DMA32) {
            page_flags |= Gfp::DMA32;
        }
        if spec.flags.contains(SlabFlags::RECLAIM_ACCOUNT) {
            page_flags |= Gfp::RECLAIMABLE;
        }
        let mut care = 0;
        // Contents that mean something to readers, constructors or checks are not overwritten unasked.
        let keeps = spec.ctor.is_some() || spec.flags.intersects(SlabFlags::TYPESAFE_BY_RCU | SlabFlags::POISON);
        if spec.flags.contains(SlabFlags::INIT_ON_ALLOC) && !keeps {
            care |= Gfp::ZERO.bits();
        }
        if spec.flags.contains(SlabFlags::INIT_ON_FREE) && spec.layout.free_pointer_inside() && !keeps {
            care |= CARE_WIPE;
        }
        if spec.accounted {
            care |= CARE_ACCOUNT;
        }
        let plain = care == 0 && !slots.is_empty();
        let hot = if plain { slots.first() } else { spec.idle };
        Self {
            hot: AtomicPtr::new(hot.as_ptr()),
            hot_known: AtomicPtr::new(if spec.nr_nodes == 1 { hot } else { spec.idle }.as_ptr()),
            slots,
            care: AtomicU32::new(care),
            care_lock: IrqLock::new(()),
            sheaf_capacity: spec.sheaf_capacity,
            objects_per_slab: crate::order::objects(spec.orders.preferred, stride) as u32,
            most_full: (BURST_BYTES / stride.saturating_mul(spec.sheaf_capacity as usize).max(1)) as u32,
            // Exact for offsets below 4 MiB: the error is below 2^22 / 2^44, less than one part in any stride.
            reciprocal: (1 << 44) / stride as u64 + 1,
            secret: spec.secret,
            object_size: AtomicUsize::new(spec.layout.object_size),
            layout: spec.layout,
            orders: spec.orders,
            flags: spec.flags,
            ctor: spec.ctor,
            useroffset: spec.useroffset,
            usersize: spec.usersize,
            page_flags,
            min_partial: AtomicU32::new(default_min_partial(stride)),
            spare_slabs: AtomicU32::new(0),
            defrag_ratio: AtomicU32::new(1000),
            failslab: AtomicU32::new(u32::from(spec.flags.contains(SlabFlags::FAILSLAB))),
            nodes: spec.nodes,
            nr_nodes: spec.nr_nodes,
            random: spec.random,
            random_len: spec.random_len,
            random_state: AtomicU64::new(spec.secret | 1),
            deferred: AtomicPtr::new(ptr::null_mut()),
            pending: Pending::new(),
            refs: AtomicU32::new(1),
            visitors: AtomicU32::new(0),
            older: AtomicPtr::new(ptr::null_mut()),
            last_report_ms: AtomicU64::new(0),
            block_bytes: spec.block_bytes,
            name: spec.name,
            alive: UnsafeCell::new(true),
        }
    }

    /// The cache's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Bytes of an object that its users may touch (`kmem_cache_size`). Grows when a larger alias joins.
    #[doc(alias = "kmem_cache_size")]
    pub fn object_size(&self) -> usize {
        self.object_size.load(Ordering::Relaxed)
    }

    /// Bytes from one object to the next, padding and debug data included.
    pub fn stride(&self) -> usize {
        self.layout.stride
    }

    /// The alignment of every object, in bytes.
    pub fn align(&self) -> usize {
        self.layout.align
    }

    /// Properties and debug options.
    pub fn flags(&self) -> SlabFlags {
        self.flags
    }

    /// The order that slabs preferably have.
    pub fn order(&self) -> Order {
        self.orders.preferred
    }

    /// Objects in a slab of the preferred order.
    pub fn objects_per_slab(&self) -> usize {
        self.objects_per_slab as usize
    }

    /// Objects in a sheaf; 0 in caches without.
    pub fn sheaf_capacity(&self) -> usize {
        self.sheaf_capacity as usize
    }

    /// Whether a debug option is on; then every call takes the slow path.
    pub fn is_debug(&self) -> bool {
        self.flags.intersects(SlabFlags::DEBUG)
    }

    /// How many partial slabs a node keeps before an empty one is given back.
    pub fn min_partial(&self) -> u32 {
        self.min_partial.load(Ordering::Relaxed)
    }

    /// Sets [`min_partial`](Self::min_partial). By default an empty slab is kept only while its node has no other partial
    /// slab; from here on as many are kept as the number says.
    pub fn set_min_partial(&self, nr_slabs: u32) {
        self.min_partial.store(nr_slabs, Ordering::Relaxed);
        self.spare_slabs.store(nr_slabs, Ordering::Relaxed);
    }

    /// Whether nobody is destroying it. Called with the list lock held.
    pub(crate) fn is_live(&self) -> bool {
        self.refs.load(Ordering::Relaxed) > 0
    }

    /// Whether the cache has nothing to see to when an object is freed.
    pub(crate) fn frees_plainly(&self) -> bool {
        !self.flags.intersects(SlabFlags::INIT_ON_FREE.union(SlabFlags::DEBUG))
    }

    /// Full sheaves that a barn may hold at most while bursts repeat.
    pub(crate) fn most_full(&self) -> u32 {
        self.most_full
    }

    /// The part on `node`.
    pub(crate) fn node(&self, node: usize) -> Option<&Node> {
        if node >= self.nr_nodes as usize {
            return None;
        }
        // SAFETY: below `nr_nodes` (invariant 3).
        Some(unsafe { self.nodes.add(node).as_ref() })
    }

    /// All parts, in node order.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        (0..self.nr_nodes as usize).filter_map(|node| self.node(node))
    }

    /// `offset / stride` for offsets inside a slab.
    #[inline(always)]
    pub(crate) fn divide(&self, offset: usize) -> usize {
        ((offset as u64).wrapping_mul(self.reciprocal) >> 44) as usize
    }

    #[inline(always)]
    fn link(&self, object: NonNull<u8>) -> *mut usize {
        // SAFETY: the free pointer lies inside the slot (invariant of `ObjectLayout`).
        unsafe { object.as_ptr().add(self.layout.free_offset).cast() }
    }

    #[inline(always)]
    fn mask(&self, link: *mut usize) -> usize {
        self.secret as usize ^ link.addr().swap_bytes()
    }

    /// The object that a free one links to; null at the end of the chain.
    ///
    /// # Safety
    /// `object` is a free object of this cache whose link has been written.
    #[inline(always)]
    pub(crate) unsafe fn next(&self, object: NonNull<u8>) -> *mut u8 {
        let link = self.link(object);
        // SAFETY: the caller's promise; the link need not be aligned in objects with odd free-pointer offsets.
        let stored = unsafe { link.read_unaligned() };
        object.as_ptr().with_addr(stored ^ self.mask(link))
    }

    /// Links a free object to the next.
    ///
    /// # Safety
    /// `object` is a free object of this cache that the caller alone knows.
    #[inline(always)]
    pub(crate) unsafe fn set_next(&self, object: NonNull<u8>, next: *mut u8) {
        let link = self.link(object);
        // SAFETY: the caller's promise.
        unsafe { link.write_unaligned(next.addr() ^ self.mask(link)) };
    }

    /// Zeroes the word that [`set_next`](Self::set_next) wrote.
    ///
    /// # Safety
    /// `object` is an object of this cache that the caller owns.
    pub(crate) unsafe fn wipe_link(&self, object: NonNull<u8>) {
        // SAFETY: the caller's promise.
        unsafe { self.link(object).write_unaligned(0) };
    }

    /// The slot numbers of a slab in shuffled order; empty if slabs are not shuffled.
    pub(crate) fn shuffled(&self) -> &[u16] {
        if self.random_len == 0 {
            return &[];
        }
        // SAFETY: `random` points to `random_len` numbers that live as long as the descriptor (invariant 3).
        unsafe { core::slice::from_raw_parts(self.random, self.random_len as usize) }
    }

    /// A pseudo-random number; not from a secret source.
    pub(crate) fn random(&self) -> u64 {
        let mut state = self.random_state.load(Ordering::Relaxed);
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.random_state.store(state, Ordering::Relaxed);
        state
    }

    /// Says that the descriptor is in use: in loom models a use behind [`retire`](Self::retire) is an error.
    pub(crate) fn assert_alive(&self) {
        #[cfg(debug_assertions)]
        self.alive.with(|alive| {
            // SAFETY: written only once, when nobody uses the descriptor any more.
            debug_assert!(unsafe { *alive }, "cache used after it was destroyed");
        });
    }

    /// Marks the descriptor as gone.
    pub(crate) fn retire(&self) {
        // SAFETY: the caller is the last user.
        self.alive.with_mut(|alive| unsafe { *alive = false });
    }
}

impl fmt::Debug for KmemCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmemCache")
            .field("name", &self.name)
            .field("object_size", &self.object_size())
            .field("stride", &self.stride())
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}
