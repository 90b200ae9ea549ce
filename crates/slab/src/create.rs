//! Making a cache: checking the arguments, sharing a compatible one, placing the descriptor.

use core::ptr::{self, NonNull};

use kmem_gfp::{AllocContext, Gfp, Order};
use kmem_sync::Cpu;
use kmem_sync::atomic::Ordering;

use crate::backend::Locking;
use crate::cache::{CARE_INJECT, CacheName, Spec};
use crate::family::CacheList;
use crate::layout::{ObjectLayout, alignment, sheaf_capacity};
use crate::node::Node;
use crate::order::{SlabOrders, objects};
use crate::slots::{Slot, Slots};
use crate::{CacheArgs, CreateError, DebugOptions, KmemCache, NAME_MAX, SlabEnv, SlabFlags, Slabs};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Where the parts of a descriptor's block start.
struct Block {
    nodes_at: usize,
    random_at: usize,
    slots_at: usize,
    bytes: usize,
    /// At how many places the slots can begin: each a line further on.
    colors: usize,
}

/// A request for a cache, checked and laid out.
struct Plan {
    flags: SlabFlags,
    args: CacheArgs,
    size: usize,
    layout: ObjectLayout,
}

impl<E: SlabEnv> Slabs<E> {
    /// Creates a cache of objects of `size` bytes, or returns a compatible one that exists, with its count of users
    /// raised. May sleep; not in interrupts.
    ///
    /// A usercopy window that does not fit the object is reported and dropped: then nothing may be copied.
    ///
    /// # Errors
    /// A [`CreateError`] naming the argument that is not acceptable, or shortage of memory. Nothing has changed.
    #[doc(alias("kmem_cache_create", "kmem_cache_create_usercopy"))]
    pub fn create(&self, name: &str, size: usize, args: &CacheArgs) -> Result<&KmemCache, CreateError> {
        let core = self.core().ok_or(kmem_gfp::AllocError::NotReady)?;
        let plan = self.plan(name, size, args)?;
        let shared = core.caches.with(self.env.cpu(), |list| self.find_shared(list, &plan));
        // SAFETY: found on the list with its count raised.
        if let Some(cache) = unsafe { shared.as_ref() } {
            return Ok(cache);
        }
        let cache = self.place(name, &plan)?;
        let insert = |list: &mut CacheList| {
            // Someone else may have been here since.
            let shared = self.find_shared(list, &plan);
            if !shared.is_null() {
                return Ok(shared);
            }
            if let Some(other) = names(list).find(|other| other.name() == name) {
                return Err(other.is_live());
            }
            // SAFETY: just placed; nobody else knows it.
            let descriptor = unsafe { cache.as_ref() };
            if core.injector.is_armed() {
                set_care(self.env.cpu(), descriptor, core.idle, CARE_INJECT, true, Locking::Wait);
            }
            descriptor.older.store(list.newest, Ordering::Relaxed);
            list.newest = cache.as_ptr();
            list.len += 1;
            Ok(cache.as_ptr())
        };
        let listed = loop {
            match core.caches.with(self.env.cpu(), insert) {
                // The cache of that name is on its way out.
                Err(false) => {
                    self.env.cpu().relax();
                    self.env.context().yield_now();
                }
                result => break result,
            }
        };
        if listed != Ok(cache.as_ptr()) {
            // SAFETY: nobody else knows it.
            unsafe { self.unplace(cache) };
        }
        // SAFETY: on the list, with our use counted; it lives until `destroy`.
        let listed = listed.ok().and_then(|listed| unsafe { listed.as_ref() });
        listed.ok_or(CreateError::NameTaken)
    }

    fn plan(&self, name: &str, size: usize, args: &CacheArgs) -> Result<Plan, CreateError> {
        if name.is_empty() || name.len() > NAME_MAX || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(CreateError::BadName);
        }
        if size == 0 || size > Order::MAX.size_bytes() {
            return Err(CreateError::BadSize(size));
        }
        let mut flags = args.flags;
        if flags.intersects(SlabFlags::INTERNAL_ONLY) || !SlabFlags::all().contains(flags) {
            return Err(CreateError::BadFlags(flags.bits()));
        }
        if let Some(offset) = args.freeptr_offset {
            let allowed = flags.contains(SlabFlags::TYPESAFE_BY_RCU) || args.ctor.is_some();
            let fits = offset % size_of::<usize>() == 0 && offset.saturating_add(size_of::<usize>()) <= size.max(8);
            if !allowed || !fits {
                return Err(CreateError::BadFreePointer(offset));
            }
        }
        let mut args = *args;
        let end = args.useroffset.checked_add(args.usersize);
        if (args.usersize == 0 && args.useroffset != 0) || end.is_none_or(|end| end > size) {
            self.env.context().report(format_args!(
                "kmem_cache_create({name}): usercopy window {}+{} does not fit {size} bytes: nothing may be copied",
                args.useroffset, args.usersize
            ));
            (args.useroffset, args.usersize) = (0, 0);
        }
        if args.sheaf_capacity > 0 {
            flags |= SlabFlags::NO_MERGE;
        }
        if self.config.init_on_alloc {
            flags |= SlabFlags::INIT_ON_ALLOC;
        }
        if self.config.init_on_free {
            flags |= SlabFlags::INIT_ON_FREE;
        }
        let align = alignment(flags, args.align, size)?;
        let lay_out = |flags| ObjectLayout::new(size, align, flags, args.ctor.is_some(), args.freeptr_offset);
        let plain = lay_out(flags);
        let options = DebugOptions::parse(self.config.debug);
        let chosen = options.for_cache(name, flags);
        let mut with_debug = flags | chosen.flags;
        if chosen.not_if_larger && Order::for_size(lay_out(with_debug).stride) > Order::for_size(plain.stride) {
            with_debug -= SlabFlags::DEBUG_METADATA - flags;
        }
        let layout = lay_out(with_debug);
        if layout.stride > Order::MAX.size_bytes() {
            return Err(CreateError::BadSize(size));
        }
        Ok(Plan { flags: with_debug, args, size, layout })
    }

    /// Under the list lock: the oldest cache that can serve the plan's objects as well, its count of users raised.
    fn find_shared(&self, list: &mut CacheList, plan: &Plan) -> *mut KmemCache {
        let args = &plan.args;
        if !self.config.merge
            || plan.flags.intersects(SlabFlags::NEVER_MERGE - SlabFlags::INIT_ON_ALLOC - SlabFlags::INIT_ON_FREE)
            || args.ctor.is_some()
            || args.usersize > 0
        {
            return ptr::null_mut();
        }
        let size = plan.size.next_multiple_of(size_of::<usize>()).next_multiple_of(plan.layout.align);
        let mut best: Option<&KmemCache> = None;
        for cache in names(list) {
            let fits = size <= cache.stride()
                && cache.stride() - size < size_of::<usize>()
                && cache.stride() % plan.layout.align == 0
                && (cache.flags ^ plan.flags) & SlabFlags::MERGE_SAME == SlabFlags::empty()
                && (cache.flags ^ plan.flags) & (SlabFlags::INIT_ON_ALLOC | SlabFlags::INIT_ON_FREE)
                    == SlabFlags::empty();
            if fits && is_mergeable(cache) && cache.is_live() {
                best = Some(cache);
            }
        }
        let Some(cache) = best else { return ptr::null_mut() };
        cache.refs.fetch_add(1, Ordering::Relaxed);
        cache.object_size.fetch_max(plan.size, Ordering::Relaxed);
        ptr::from_ref(cache).cast_mut()
    }

    /// Allocates and writes a descriptor.
    fn place(&self, name: &str, plan: &Plan) -> Result<NonNull<KmemCache>, CreateError> {
        let nr_cpus = self.nr_cpus();
        let nr_nodes = kmem_gfp::PageAllocator::nr_nodes(self.env.pages()).max(1);
        let orders = SlabOrders::new(plan.layout.stride, nr_cpus, &self.config)?;
        let bare = plan.flags.intersects(SlabFlags::DEBUG | SlabFlags::NOLEAKTRACE | SlabFlags::NO_SHEAVES);
        let capacity = match bare {
            true => 0,
            false => sheaf_capacity(plan.layout.stride, plan.args.sheaf_capacity, self.config.max_sheaf_capacity),
        };
        let nr_slots = if capacity > 0 { nr_cpus } else { 0 };
        let count = objects(orders.preferred, plan.layout.stride);
        let random_len = if self.config.randomize && count >= 2 { count } else { 0 };
        let block = block(nr_nodes, nr_slots, random_len).ok_or(CreateError::BadSize(plan.size))?;
        let idle = self.core().ok_or(kmem_gfp::AllocError::NotReady)?.idle;
        let memory = self.meta_alloc(block.bytes, Gfp::KERNEL, Locking::Wait)?;
        // SAFETY: (all of this block) `memory` has `block.bytes` bytes, ours, and the parts lie inside, aligned.
        unsafe {
            let nodes = memory.add(block.nodes_at).cast::<Node>();
            for index in 0..nr_nodes as usize {
                nodes.add(index).write(Node::new(self.config.barn_full));
            }
            let slots = match nr_slots {
                0 => Slots::empty(),
                _ => Slots::init(memory.add(block.slots_at + block.color(memory)), nr_slots),
            };
            let random = memory.add(block.random_at).cast::<u16>();
            let mut state = self.env.entropy() ^ (memory.addr().get() as u64) << 16 | 1;
            shuffle(random, random_len, &mut state);
            let cache = memory.cast::<KmemCache>();
            let spec = Spec {
                name: CacheName::new(name),
                layout: plan.layout,
                orders,
                flags: plan.flags,
                ctor: plan.args.ctor,
                useroffset: plan.args.useroffset,
                usersize: plan.args.usersize,
                sheaf_capacity: capacity,
                secret: next_random(&mut state),
                nodes,
                nr_nodes,
                random: random.as_ptr(),
                random_len: random_len as u32,
                block_bytes: block.bytes,
                accounted: E::ACCOUNTS && plan.flags.contains(SlabFlags::ACCOUNT),
                idle,
            };
            cache.write(KmemCache::new(spec, slots));
            Ok(cache)
        }
    }

    /// Frees a descriptor.
    ///
    /// # Safety
    /// Nobody uses the cache any more, and it has no slabs.
    pub(crate) unsafe fn unplace(&self, cache: NonNull<KmemCache>) {
        // SAFETY: the caller's promise; the block's size is in the descriptor.
        unsafe {
            let bytes = cache.as_ref().block_bytes;
            cache.as_ref().retire();
            self.meta_free(cache.cast(), bytes, Locking::Wait);
        }
    }
}

/// Every cache on the list, newest first.
pub(crate) fn names(list: &CacheList) -> impl Iterator<Item = &KmemCache> {
    let mut at = list.newest;
    core::iter::from_fn(move || {
        // SAFETY: caches on the list live while its lock is held, which `list` proves.
        let cache = unsafe { at.as_ref() }?;
        at = cache.older.load(Ordering::Relaxed);
        Some(cache)
    })
}

/// Whether a cache may be shared at all.
pub(crate) fn is_mergeable(cache: &KmemCache) -> bool {
    let never = SlabFlags::NEVER_MERGE - SlabFlags::INIT_ON_ALLOC - SlabFlags::INIT_ON_FREE;
    !cache.flags.intersects(never)
        && cache.ctor.is_none()
        && cache.usersize == 0
        && cache.failslab.load(Ordering::Relaxed) == 0
}

fn block(nr_nodes: u32, nr_slots: u32, random_len: usize) -> Option<Block> {
    let nodes_at = size_of::<KmemCache>().next_multiple_of(align_of::<Node>());
    let nodes_end = nodes_at.checked_add(size_of::<Node>().checked_mul(nr_nodes as usize)?)?;
    let random_at = nodes_end.next_multiple_of(align_of::<u16>());
    let slots_at = random_at.checked_add(random_len.checked_mul(2)?)?.checked_next_multiple_of(LINE)?;
    let end = slots_at.checked_add(Slots::bytes(nr_slots)?)?;
    // A power of two, so that descriptors are aligned as `KmemCache` demands; what is over colours the slots.
    let bytes = end.checked_next_power_of_two()?;
    Some(Block { nodes_at, slots_at, random_at, bytes, colors: (bytes - end) / LINE + 1 })
}

impl Block {
    /// How far behind `slots_at` the slots of the block at `memory` begin: blocks are aligned alike, and without this the same
    /// CPU's slots of all caches would compete for a few sets of the processor's first cache.
    fn color(&self, memory: NonNull<u8>) -> usize {
        (memory.addr().get() / self.bytes) % self.colors * LINE
    }
}

fn next_random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// Writes the numbers `0..len` in random order (Fisher-Yates).
///
/// # Safety
/// `table` has room for `len` numbers.
unsafe fn shuffle(table: NonNull<u16>, len: usize, state: &mut u64) {
    for index in 0..len {
        let other = (next_random(state) % (index as u64 + 1)) as usize;
        // SAFETY: both are at most `index`, inside the table.
        unsafe {
            table.add(index).write(if other < index { table.add(other).read() } else { index as u16 });
            table.add(other).write(index as u16);
        }
    }
}

/// Sets or clears `bit` in what the cache sees to, and points its hot path at the slots that fit. `false` if the lock
/// cannot be had.
pub(crate) fn set_care<C: Cpu>(
    cpu: &C,
    cache: &KmemCache,
    idle: NonNull<Slot>,
    bit: u32,
    on: bool,
    how: Locking,
) -> bool {
    let change = |_: &mut ()| {
        let care = match on {
            true => cache.care.fetch_or(bit, Ordering::Relaxed) | bit,
            false => cache.care.fetch_and(!bit, Ordering::Relaxed) & !bit,
        };
        let hot = if care == 0 && !cache.slots.is_empty() { cache.slots.first() } else { idle };
        cache.hot.store(hot.as_ptr(), Ordering::Relaxed);
        let known = if cache.nodes().count() == 1 { hot } else { idle };
        cache.hot_known.store(known.as_ptr(), Ordering::Relaxed);
    };
    match how {
        Locking::Wait => {
            cache.care_lock.with(cpu, change);
            true
        }
        Locking::Try => cache.care_lock.try_with(cpu, change).is_some(),
    }
}

impl<E: SlabEnv> Slabs<E> {
    /// Sets or clears `bit` in what every cache sees to.
    pub(crate) fn set_care(&self, bit: u32, on: bool) {
        let Some(core) = self.core() else { return };
        core.caches.with(self.env.cpu(), |list| {
            for cache in names(list) {
                set_care(self.env.cpu(), cache, core.idle, bit, on, Locking::Wait);
            }
        });
    }

    /// Says which CPUs there are, for views.
    pub fn possible_cpus(&self) -> u32 {
        self.env.cpu().nr_cpus()
    }
}
