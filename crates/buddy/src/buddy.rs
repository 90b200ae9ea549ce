//! [`Buddy`]: the allocator, its initialisation and its inline fast paths.
//!
//! ```text
//! alloc_pages ─▶ route[gfp] ─▶ stack ─▶ pop ──▶ done             about 20 instructions, orders 0..=9 alike
//!                                       └─empty, closed─▶ alloc.rs
//! free_pages  ─▶ span ─▶ lists[pageblock] ─▶ stack ─▶ push ─▶ done
//!                                                     └─full, closed─▶ free.rs
//! ```

use core::alloc::Layout;
use core::ptr::NonNull;

use kmem_gfp::{AllocError, FreeError, Gfp, NodeId, Order, Pfn, PfnRange, TaskFlags, ZoneKind};
use kmem_sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use kmem_sync::{Cpu, CpuId, UnsafeCell, const_fn};

use crate::cpu::CpuBlock;
use crate::env::BuddyEnv;
use crate::map::{MapError, MemoryMap};
use crate::metadata::{self, Machine};
use crate::options::BuddyOptions;
use crate::pcp::{ORDERS, stack_index};
use crate::state::{CpuPointer, State};
use crate::table::Carver;
use crate::zone::Zone;
use crate::zonelist;

/// A page allocator.
///
/// `const`-constructible and then empty; [`init`](Self::init) gives it memory. All methods take `&self` and may be called
/// from several CPUs at once. Nothing is freed when it is dropped: the bookkeeping memory is the caller's, and so are
/// the frames.
///
/// # Invariants
/// 1. `cpus` is written once, by `init`, while nobody else uses the allocator (its promise 3).
/// 2. From then on it and `state` point into the bookkeeping memory, fully initialised, for good.
#[derive(Debug)]
pub struct Buddy<E: BuddyEnv> {
    cpus: UnsafeCell<Cpus>,
    /// 0: empty, 1: being initialised, 2: ready.
    phase: AtomicU32,
    state: AtomicPtr<State>,
    options: BuddyOptions,
    env: E,
}

/// Where the CPUs' blocks are.
#[derive(Clone, Copy, Debug)]
struct Cpus {
    blocks: *const CpuPointer,
    /// Zero until there are any.
    nr: usize,
}

// SAFETY: invariant 1 of `Buddy`; everything else is `Sync` by itself.
unsafe impl<E: BuddyEnv + Sync> Sync for Buddy<E> {}
// SAFETY: nothing is tied to the creating thread.
unsafe impl<E: BuddyEnv + Send> Send for Buddy<E> {}

/// Flags whose requests the inline path leaves alone.
const SLOWER: Gfp = Gfp::ZERO.union(Gfp::ACCOUNT).union(Gfp::THISNODE);

impl<E: BuddyEnv> Buddy<E> {
    const_fn! {
        /// An allocator without memory: every request fails with [`AllocError::NotReady`].
        pub fn new(env: E) -> Self {
            Self::with_options(env, BuddyOptions::new())
        }
    }

    const_fn! {
        /// As [`new`](Self::new), with choices.
        pub fn with_options(env: E, options: BuddyOptions) -> Self {
            Self {
                cpus: UnsafeCell::new(Cpus { blocks: core::ptr::null(), nr: 0 }),
                phase: AtomicU32::new(0),
                state: AtomicPtr::new(core::ptr::null_mut()),
                options,
                env,
            }
        }
    }

    /// The environment.
    pub fn env(&self) -> &E {
        &self.env
    }

    /// The choices made when it was built.
    pub fn options(&self) -> &BuddyOptions {
        &self.options
    }

    fn machine(&self) -> Machine {
        Machine { nr_cpus: self.env.cpu().nr_cpus(), options: self.options }
    }

    /// The bookkeeping memory that [`init`](Self::init) needs for `map`: at most half a byte per frame, and a few kilobytes
    /// more for machines so small that the fixed parts do not fit that.
    ///
    /// # Errors
    /// What is wrong with the map.
    pub fn metadata_layout(&self, map: &MemoryMap<'_>) -> Result<Layout, MapError> {
        metadata::layout(map, self.machine())
    }

    /// Takes the memory of `map`, keeping books in `metadata`. Time: a few instructions per pageblock.
    ///
    /// # Errors
    /// What is wrong with the map; [`MapError::AlreadyInitialised`] at the second call. Nothing has changed then.
    ///
    /// # Safety
    /// 1. `metadata` has the [`metadata_layout`](Self::metadata_layout) of the same map, is used by nobody else, and stays
    ///    so as long as this allocator is used.
    /// 2. The frames of the map that are not reserved are used by nobody else; `metadata` is not in them.
    /// 3. Nobody calls another method meanwhile, and whoever does so later knows (by any synchronization) that this call
    ///    has returned.
    pub unsafe fn init(&self, map: &MemoryMap<'_>, metadata: NonNull<u8>) -> Result<(), MapError> {
        map.check()?;
        let layout = self.metadata_layout(map)?;
        if self.phase.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(MapError::AlreadyInitialised);
        }
        // SAFETY: promise 1.
        let mut carver = unsafe { Carver::placing(metadata) };
        let node_of_cpu = |cpu: CpuId| self.env.node_of_cpu(cpu);
        let placed = match metadata::carve(map, self.machine(), &mut carver, &node_of_cpu) {
            Ok(placed) => placed,
            Err(error) => {
                self.phase.store(0, Ordering::Release);
                return Err(error);
            }
        };
        let (Some(state), Some(arena)) = (placed.state.first(), placed.arena.first()) else {
            self.phase.store(0, Ordering::Release);
            return Err(MapError::TooLarge);
        };
        state.metadata_bytes.store(layout.size() as u64, Ordering::Relaxed);
        zonelist::build(state, &self.env);
        metadata::link_arena(state, map, arena, &placed.segments);
        self.state.store(core::ptr::from_ref(state).cast_mut(), Ordering::Relaxed);
        self.reconfigure(state, true);
        for block in state.cpus() {
            // SAFETY: nobody else uses the allocator yet (promise 3).
            unsafe { block.remember_largest(arena) };
        }
        self.zero_at_start(map);
        let cpus = Cpus { blocks: state.blocks.start().as_ptr(), nr: state.nr_cpus() };
        // SAFETY: nobody else uses the allocator yet (promise 3).
        self.cpus.with_mut(|slot| unsafe { *slot = cpus });
        self.phase.store(2, Ordering::Release);
        Ok(())
    }

    /// With `init_on_free` everything that is free has been zeroed, from the start on.
    fn zero_at_start(&self, map: &MemoryMap<'_>) {
        if !self.options.init_on_free {
            return;
        }
        for run in map.runs() {
            for number in run.block.number..run.block.number + run.len {
                for (i, &word) in run.block.managed.iter().enumerate() {
                    let first = number * 512 + i as u64 * 64;
                    let mut left = word;
                    while left != 0 {
                        let start = left.trailing_zeros();
                        let len = (left >> start).trailing_ones();
                        let frames = PfnRange::with_len(Pfn(first + u64::from(start)), u64::from(len));
                        // SAFETY: free frames of the map, which are ours.
                        unsafe { self.env.zero_frames(frames.unwrap_or_default()) };
                        left &= !(crate::bits::low(len) << start);
                    }
                }
            }
        }
    }

    /// The bookkeeping memory that [`add_region`](Self::add_region) needs for `map`.
    ///
    /// # Errors
    /// What is wrong with the map.
    pub fn region_layout(&self, map: &MemoryMap<'_>) -> Result<Layout, MapError> {
        metadata::arena_layout(&self.grown(map)?, self.machine())
    }

    /// `map` with this machine's number of nodes.
    fn grown<'a>(&self, map: &MemoryMap<'a>) -> Result<MemoryMap<'a>, MapError> {
        let state = self.state().ok_or(MapError::NotInitialised)?;
        Ok(MemoryMap { nr_nodes: state.nr_nodes, ..*map })
    }

    /// Adds memory while the allocator is in use. Its zones must have memory already, or have been declared as
    /// [`hotplug`](MemoryMap::hotplug). Marks, reserves and set sizes follow. May sleep for nothing, but holds the
    /// configuration lock.
    ///
    /// # Errors
    /// What is wrong with the map; nothing has changed.
    ///
    /// # Safety
    /// As for [`init`](Self::init), with the layout of [`region_layout`](Self::region_layout).
    pub unsafe fn add_region(&self, map: &MemoryMap<'_>, metadata: NonNull<u8>) -> Result<(), MapError> {
        let map = self.grown(map)?;
        map.check()?;
        let state = self.state().ok_or(MapError::NotInitialised)?;
        for run in map.runs() {
            let known = state.zone(run.block.node, run.block.kind).is_some_and(|zone| zone.set.is_some());
            if !known {
                return Err(MapError::NoSuchZone { node: run.block.node, zone: run.block.kind });
            }
            let first = Pfn(run.block.number * 512);
            for arena in state.arenas() {
                let taken = arena.spans.iter().find(|span| {
                    span.first < run.block.number + run.len && run.block.number < span.first + span.len as u64
                });
                if let Some(span) = taken {
                    let frames = PfnRange::new(Pfn(span.first * 512), Pfn((span.first + span.len as u64) * 512));
                    let added = PfnRange::new(first, Pfn((run.block.number + run.len) * 512));
                    return Err(MapError::Overlap(frames.intersection(&added)));
                }
            }
        }
        state.config.with(self.env.cpu(), |()| {
            // SAFETY: the caller's promise.
            let mut carver = unsafe { Carver::placing(metadata) };
            let number = |node: NodeId, kind: ZoneKind| state.zone_number(node, kind).unwrap_or(0);
            let (arenas, segments) = metadata::carve_arena(&map, &mut carver, &self.options, &state.zones, &number);
            let budget = metadata::spare_budget(&map, &carver);
            let entries = carver.table(metadata::spare_entries(&map, budget, self.machine()), |_| 0u64);
            if let Some(arena) = arenas.first() {
                metadata::open_new_sets(state, &map, budget, &entries, self.machine());
                metadata::link_arena(state, &map, arena, &segments);
            }
            state.metadata_bytes.fetch_add(carver.used_bytes() as u64, Ordering::Relaxed);
        });
        self.zero_at_start(&map);
        self.reconfigure(state, true);
        Ok(())
    }

    /// What has been built, if anything has.
    #[inline(always)]
    pub(crate) fn state(&self) -> Option<&State> {
        // SAFETY: null, or initialised for good before it was stored (invariant 2).
        unsafe { self.state.load(Ordering::Acquire).as_ref() }
    }

    /// Whether [`init`](Self::init) has succeeded.
    pub fn is_ready(&self) -> bool {
        self.phase.load(Ordering::Acquire) == 2
    }

    /// Runs `f` with the block of the CPU with this number, to which the context is pinned if there is such a CPU, and unpins
    /// it; `None` without a CPU or before `init`.
    #[inline(always)]
    fn on_cpu<R>(&self, number: usize, f: impl FnOnce(&CpuBlock) -> Option<R>) -> Option<R> {
        // SAFETY: written before anybody else came (invariant 1).
        let cpus = self.cpus.with(|cpus| unsafe { *cpus });
        let id = CpuId(number as u32);
        if number < cpus.nr {
            // SAFETY: below the number of pointers, each to a block that is initialised for good (invariant 2).
            let result = f(unsafe { (*cpus.blocks.add(number)).0.as_ref() });
            // SAFETY: pinned by the caller, and nothing pinned since is still so.
            unsafe { self.env.cpu().unpin(id) };
            return result;
        }
        if number < self.env.cpu().nr_cpus() as usize {
            // SAFETY: as above.
            unsafe { self.env.cpu().unpin(id) };
        }
        None
    }

    /// Runs `f` in a full section of this CPU; `None` if that cannot be had at the moment (no CPU, interrupted section,
    /// revoked, not initialised).
    #[inline]
    pub(crate) fn section<R>(&self, f: impl FnOnce(&CpuBlock) -> R) -> Option<R> {
        self.on_cpu(self.env.cpu().try_pin().map_or(usize::MAX, CpuId::index), |block| {
            // SAFETY: pinned to the block's CPU for the whole call.
            if !unsafe { block.lock.try_enter::<E::Cpu>() } {
                return None;
            }
            let result = f(block);
            // SAFETY: entered above.
            unsafe { block.lock.exit() };
            Some(result)
        })
    }

    /// Runs `f` in a fast section of this CPU, which may use open stacks only.
    #[inline(always)]
    fn fast_section<R>(&self, f: impl FnOnce(&CpuBlock) -> Option<R>) -> Option<R> {
        self.on_cpu(self.env.cpu().try_pin_number(), |block| {
            // SAFETY: pinned to the block's CPU for the whole call. The section reaches entries through `floor` and `limit`
            // of a stack, which a revoker takes away (`revoked`).
            if !unsafe { block.lock.try_enter_unrevoked::<E::Cpu>() } {
                return None;
            }
            let result = f(block);
            // SAFETY: entered above.
            unsafe { block.lock.exit() };
            result
        })
    }

    /// Runs `f` on a CPU's block with that CPU shut out of its sections. Only where sleeping is allowed, and not inside a
    /// section.
    pub(crate) fn revoked<R>(&self, state: &State, block: &CpuBlock, f: impl FnOnce(&CpuBlock) -> R) -> R {
        let cpu = self.env.cpu();
        // From here on nobody opens stacks for lack of pressure.
        for zone in state.zones.iter() {
            zone.gate.with(cpu, |drains| *drains += 1);
        }
        block.lock.revoke(cpu);
        // Full sections are over and do not begin again, so nobody reopens what is closed now; fast ones that saw it
        // open are waited for.
        block.close();
        // SAFETY: revoked above.
        unsafe { block.lock.wait_again(cpu) };
        let result = f(block);
        // SAFETY: as above.
        unsafe { block.lock.unrevoke() };
        for zone in state.zones.iter() {
            zone.gate.with(cpu, |drains| *drains -= 1);
            self.settle(state, zone);
        }
        result
    }

    /// Allocates `1 << order` contiguous frames, aligned to their count, from the zones that `gfp` allows, preferably on
    /// `node` (`None`: the running CPU's).
    ///
    /// Contexts: any that `gfp` allows. The common request of a cached order (0..=3 and 9, in large zones all up to 9)
    /// takes about twenty instructions; all others are lock-free searches of the
    /// bitmaps. Under shortage the slow path reclaims through the environment, as far as `gfp` permits.
    ///
    /// # Errors
    /// [`AllocError::NoMemory`] when nothing fits and the flags forbid trying harder; [`AllocError::BadFlags`] for flags that
    /// contradict one another; [`AllocError::NoSuchNode`]; [`AllocError::OverLimit`] when the charge of
    /// [`Gfp::ACCOUNT`] fails. Nothing has changed.
    #[doc(alias("alloc_pages_node", "__alloc_pages"))]
    #[inline(always)]
    pub fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        // The pin scope takes MOVABLE away; the other scopes change nothing that matters while pages are at hand.
        if node.is_none()
            && !gfp.intersects(SLOWER)
            && !(gfp.contains(Gfp::MOVABLE) && self.task_flags().contains(TaskFlags::PIN))
        {
            self.debug_sleep_check(gfp);
            if E::INJECTS_ANYWHERE && !gfp.contains(Gfp::NOFAIL) && self.env.inject_failure(gfp, order) {
                return Err(AllocError::Injected);
            }
            if let Some(pfn) = self.pop_cached(gfp, order) {
                return Ok(pfn);
            }
            // Through registers: the block found above need not be written to memory to look like one found here.
            let mut error = AllocError::NotReady;
            return self.alloc_missed(gfp, order, &mut error).ok_or(error);
        }
        self.alloc_general(gfp, order, node)
    }

    /// Takes back a block of `1 << order` frames (`__free_pages`). Any context, NMI included; never sleeps.
    ///
    /// # Errors
    /// A [`FreeError`] if the block is recognisably not an allocated block of this order; nothing has changed. Frames that no
    /// zone holds are always recognised. With [`BuddyOptions::check_free`] everything else is recognised as well;
    /// without it blocks of the orders that are cached per CPU (up to 9 in large zones, else 0..=3 and 9) are checked when
    /// they leave their set, and a bad one is then dropped and reported instead of freed.
    ///
    /// # Safety
    /// The caller owns the whole block and nothing uses its memory any more.
    #[doc(alias("__free_pages", "free_page"))]
    #[inline(always)]
    pub unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        if E::CHARGES {
            self.env.uncharge(pfn, order);
        }
        if self.push_cached(pfn, order) {
            return Ok(());
        }
        self.free_missed(pfn, order)
    }

    /// The fast path of every cached order.
    #[inline(always)]
    pub(crate) fn pop_cached(&self, gfp: Gfp, order: Order) -> Option<Pfn> {
        if order.index() >= ORDERS {
            return None;
        }
        // SAFETY: inside this CPU's section, whose stacks these are; the order was looked at above.
        self.fast_section(|block| unsafe { block.route(gfp.bits(), order).pop() })
    }

    /// The fast path back of every cached order.
    #[inline(always)]
    pub(crate) fn push_cached(&self, pfn: Pfn, order: Order) -> bool {
        if order.index() >= ORDERS || !pfn.is_aligned(order) {
            return false;
        }
        // SAFETY: inside this CPU's section, whose stacks these are; the order was looked at above.
        let push = |block: &CpuBlock| unsafe { block.list(pfn, order)?.push(pfn).then_some(()) };
        self.fast_section(push).is_some()
    }

    /// Complains in debug builds about a request that may sleep in a context that may not.
    #[inline(always)]
    pub(crate) fn debug_sleep_check(&self, gfp: Gfp) {
        if cfg!(debug_assertions) {
            use kmem_gfp::AllocContext;
            let task = self.env.context().task_flags();
            let allowed = kmem_gfp::verdict::check_sleep(gfp, task);
            debug_assert!(allowed.is_ok(), "alloc_pages: {allowed:?}");
        }
    }

    /// The stack that a request of a cached order uses in a zone.
    pub(crate) fn stack_for(&self, zone: &Zone, order: Order, migratetype: kmem_gfp::MigrateType) -> Option<usize> {
        zone.set?;
        stack_index(order, migratetype)
    }

    /// The flags of the running task.
    pub(crate) fn task_flags(&self) -> TaskFlags {
        use kmem_gfp::AllocContext;
        self.env.context().task_flags()
    }
}
