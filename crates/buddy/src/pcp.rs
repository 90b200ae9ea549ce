//! Per-CPU page sets: free blocks that one CPU keeps at hand.
//!
//! ```text
//! CpuBlock              route[gfp & 31] ─▶ Stack (order 0) of the preferred zone and type
//!                       span ─▶ lists[pageblock] ─▶ Stack (order 0) that a freed page goes to
//!
//! ZoneSet (CPU x zone)  stacks: 3 types x orders 0..=3, 2 x order 9, and one that takes nothing
//!
//! entries   | f | f | f | f |   |   |   |
//!           base            top     limit          pop: top > floor     push: top < limit
//! ```
//!
//! A stack holds first frames of blocks. Only the CPU that owns it, inside its section,
//! moves `top` and touches entries; everybody may read `top`. `floor` is `base` while the fast path may pop and the
//! largest address while it may not (the zone is short of memory); `limit` is where the fast path stops pushing. Both may
//! be written from any CPU: they only decide which path is taken.

use core::ptr::NonNull;

use kmem_gfp::{MigrateType, NodeId, Order, Pfn};
use kmem_sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use kmem_sync::{CpuId, LocalCounter, LocalLock};

use crate::arena::Arena;
use crate::zone::Zone;

/// Stacks that hold blocks.
pub(crate) const STACKS: usize = 14;
/// The stack that never takes nor gives anything.
pub(crate) const NEVER: usize = STACKS;

/// First frames of blocks, all of one order.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Stack {
    top: AtomicPtr<u64>,
    floor: AtomicPtr<u64>,
    limit: AtomicPtr<u64>,
    /// How many blocks were pushed by callers that freed them.
    pushes: LocalCounter,
}

impl Stack {
    fn new() -> Self {
        let null = || AtomicPtr::new(core::ptr::null_mut());
        Self { top: null(), floor: AtomicPtr::new(closed()), limit: null(), pushes: LocalCounter::new() }
    }

    /// Takes the block pushed last, unless the stack is empty or closed.
    ///
    /// # Safety
    /// The caller is inside the section of the stack's CPU.
    #[inline(always)]
    pub(crate) unsafe fn pop(&self) -> Option<Pfn> {
        // Acquire pairs with the release in `set_open`: what a drain did to the stack before it was opened again is seen.
        let floor = self.floor.load(Ordering::Acquire);
        let top = self.top.load(Ordering::Relaxed);
        if top <= floor {
            return None;
        }
        // SAFETY: above `base`, so the entry below was written by a push; the section makes it ours.
        let (top, pfn) = unsafe { (top.sub(1), *top.sub(1)) };
        self.top.store(top, Ordering::Relaxed);
        Some(Pfn(pfn))
    }

    /// Puts a block on the stack, unless it is full or closed.
    ///
    /// # Safety
    /// The caller is inside the section of the stack's CPU.
    #[inline(always)]
    pub(crate) unsafe fn push(&self, pfn: Pfn) -> bool {
        // Acquire pairs with the release in `set_limit`, as in `pop`.
        let limit = self.limit.load(Ordering::Acquire);
        let top = self.top.load(Ordering::Relaxed);
        if top >= limit {
            return false;
        }
        // SAFETY: below `limit`, which never exceeds the entries' end; the section makes the entry ours.
        unsafe { *top = pfn.0 };
        // SAFETY: as above: at most the entries' end.
        self.top.store(unsafe { top.add(1) }, Ordering::Relaxed);
        self.pushes.add(1);
        true
    }
}

fn closed() -> *mut u64 {
    core::ptr::without_provenance_mut(usize::MAX)
}

/// Which stack of a zone holds blocks of an order and type; `None` for orders that are not cached.
#[inline]
pub(crate) const fn stack_index(order: Order, migratetype: MigrateType) -> Option<usize> {
    let column = match migratetype {
        MigrateType::Unmovable => 0,
        MigrateType::Movable | MigrateType::HighAtomic | MigrateType::Cma => 1,
        MigrateType::Reclaimable => 2,
        MigrateType::Isolate => return None,
    };
    match order.get() {
        0..=3 => Some(order.index() * 3 + column),
        9 => Some(12 + (column != 1) as usize),
        _ => None,
    }
}

/// The order of the blocks in a stack.
pub(crate) const fn order_of(stack: usize) -> u32 {
    if stack < 12 { (stack / 3) as u32 } else { 9 }
}

/// How many blocks a stack has room for when an order-0 stack has room for `pages`.
const fn room_of(stack: usize, pages: usize) -> usize {
    let room = match order_of(stack) {
        0 => pages,
        1 => pages / 4,
        2 => pages / 8,
        3 => pages / 16,
        _ => pages / 64,
    };
    if pages == 0 {
        0
    } else if room < 4 {
        4
    } else {
        room
    }
}

/// Entries before those of a stack.
fn before(stack: usize, pages: usize) -> usize {
    (0..stack).map(|i| room_of(i, pages)).sum()
}

/// Entries that the stacks of one set need when an order-0 stack has room for `pages`.
pub(crate) fn entries_for(pages: usize) -> usize {
    before(STACKS, pages)
}

/// Room at the top of a stack that is being refilled.
pub(crate) struct Filler<'a> {
    entries: core::slice::IterMut<'a, u64>,
    nr: usize,
}

impl Filler<'_> {
    /// Adds a block, if there is room.
    #[inline(always)]
    pub(crate) fn push(&mut self, pfn: Pfn) {
        if let Some(entry) = self.entries.next() {
            *entry = pfn.0;
            self.nr += 1;
        }
    }
}

/// One CPU's blocks of one zone.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct ZoneSet {
    /// The stacks, at offset 0: `Zone::list_of` relies on it.
    pub(crate) stacks: [Stack; STACKS + 1],
    /// Blocks moved in from the bitmaps less blocks moved out to them, by stack.
    net: [LocalCounter; STACKS],
    bases: [AtomicPtr<u64>; STACKS],
    room: AtomicU32,

    pub(crate) batch: AtomicU32,
    pub(crate) high: AtomicU32,
    pub(crate) high_min: AtomicU32,
    pub(crate) high_max: AtomicU32,
    pub(crate) alloc_factor: AtomicU32,
    pub(crate) free_count: AtomicU32,
    /// Whether the last free that came here was of order 1..=3.
    pub(crate) freed_high_order: AtomicU32,
    /// Ticks for which a set of another node's zone has lain unused.
    idle_ticks: AtomicU32,

    /// What bypassed the stacks on this CPU.
    pub(crate) allocated_pages: LocalCounter,
    pub(crate) allocated_calls: LocalCounter,
    pub(crate) freed_pages: LocalCounter,
    pub(crate) numa_miss: LocalCounter,
    pub(crate) numa_foreign: LocalCounter,
    pub(crate) numa_other: LocalCounter,
}

impl ZoneSet {
    /// A set without room: the boot page set (high 0, batch 1).
    pub(crate) fn new() -> Self {
        let zero = || AtomicU32::new(0);
        Self {
            stacks: core::array::from_fn(|_| Stack::new()),
            net: core::array::from_fn(|_| LocalCounter::new()),
            bases: core::array::from_fn(|_| AtomicPtr::new(core::ptr::null_mut())),
            room: zero(),
            batch: AtomicU32::new(1),
            high: zero(),
            high_min: zero(),
            high_max: zero(),
            alloc_factor: zero(),
            free_count: zero(),
            freed_high_order: zero(),
            idle_ticks: zero(),
            allocated_pages: LocalCounter::new(),
            allocated_calls: LocalCounter::new(),
            freed_pages: LocalCounter::new(),
            numa_miss: LocalCounter::new(),
            numa_foreign: LocalCounter::new(),
            numa_other: LocalCounter::new(),
        }
    }

    /// Gives the stacks their entries. The room is told last: until then nobody touches them.
    ///
    /// # Safety
    /// `entries` has room for `entries_for(pages)` words and stays this set's alone; the set had no room before.
    pub(crate) unsafe fn open(&self, entries: NonNull<u64>, pages: u32) {
        for (i, (stack, base)) in self.stacks.iter().zip(&self.bases).enumerate() {
            let first = entries.as_ptr().wrapping_add(before(i, pages as usize));
            base.store(first, Ordering::Relaxed);
            stack.top.store(first, Ordering::Relaxed);
        }
        // Release pairs with the acquire in `has_room`.
        self.room.store(pages, Ordering::Release);
    }

    /// Whether the set has entries at all.
    #[inline]
    fn has_room(&self) -> bool {
        self.room.load(Ordering::Acquire) > 0
    }

    /// Where a stack's entries begin.
    #[inline(always)]
    fn base(&self, stack: usize) -> *mut u64 {
        self.bases.get(stack).map_or(core::ptr::null_mut(), |base| base.load(Ordering::Relaxed))
    }

    /// How many blocks a stack has room for.
    pub(crate) fn room(&self, stack: usize) -> usize {
        room_of(stack, self.room.load(Ordering::Relaxed) as usize)
    }

    /// How many blocks a stack holds. Exact inside the section, else a moment's value.
    pub(crate) fn len(&self, stack: usize) -> usize {
        let Some(state) = self.stacks.get(stack).filter(|_| self.has_room()) else { return 0 };
        (state.top.load(Ordering::Relaxed).addr().saturating_sub(self.base(stack).addr())) / size_of::<u64>()
    }

    /// Pages in all stacks.
    pub(crate) fn pages(&self) -> u64 {
        (0..STACKS).map(|stack| (self.len(stack) as u64) << order_of(stack)).sum()
    }

    /// Blocks that callers took out of a stack.
    fn pops(&self, stack: usize) -> i64 {
        let (Some(state), Some(net)) = (self.stacks.get(stack), self.net.get(stack)) else { return 0 };
        state.pushes.get() + net.get() - self.len(stack) as i64
    }

    /// Pages that callers took out of the stacks.
    pub(crate) fn popped_pages(&self) -> i64 {
        (0..STACKS).map(|stack| self.pops(stack) << order_of(stack)).sum()
    }

    /// Calls that took something out of the stacks.
    pub(crate) fn popped_calls(&self) -> i64 {
        (0..STACKS).map(|stack| self.pops(stack)).sum()
    }

    /// Pages that callers put on the stacks.
    pub(crate) fn pushed_pages(&self) -> i64 {
        self.stacks.iter().take(STACKS).enumerate().map(|(i, stack)| stack.pushes.get() << order_of(i)).sum()
    }

    /// Lets the fast path pop, or not. From any CPU.
    pub(crate) fn set_open(&self, open: bool) {
        let open = open && self.has_room();
        for (i, stack) in self.stacks.iter().enumerate().take(STACKS) {
            stack.floor.store(if open { self.base(i) } else { closed() }, Ordering::Release);
        }
        if !open {
            self.close_frees();
        }
    }

    /// Sends the fast path of every free to the slower one.
    pub(crate) fn close_frees(&self) {
        for stack in self.stacks.iter().take(STACKS) {
            stack.limit.store(core::ptr::null_mut(), Ordering::Relaxed);
        }
    }

    /// Takes a block whether or not the stack is closed.
    ///
    /// # Safety
    /// The caller is inside the section of the set's CPU.
    pub(crate) unsafe fn pop_any(&self, stack: usize) -> Option<Pfn> {
        let state = self.stacks.get(stack).filter(|_| self.has_room())?;
        let top = state.top.load(Ordering::Relaxed);
        if top <= self.base(stack) {
            return None;
        }
        // SAFETY: above the base, so the entry below was written by a push; the section makes it ours.
        let (top, pfn) = unsafe { (top.sub(1), *top.sub(1)) };
        state.top.store(top, Ordering::Relaxed);
        Some(Pfn(pfn))
    }

    /// Adds a block that a caller freed, limit or not; `false` if there is no room.
    ///
    /// # Safety
    /// The caller is inside the section of the set's CPU.
    pub(crate) unsafe fn push_any(&self, stack: usize, pfn: Pfn) -> bool {
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.add(stack, pfn) };
        if let (true, Some(state)) = (pushed, self.stacks.get(stack)) {
            state.pushes.add(1);
        }
        pushed
    }

    /// Adds blocks from the bitmaps: as many as `f` pushes and there is room for.
    ///
    /// # Safety
    /// The caller is inside the section of the set's CPU, and `f` does not use the set.
    pub(crate) unsafe fn refill(&self, stack: usize, f: impl FnOnce(&mut Filler<'_>)) {
        let (Some(state), Some(net)) = (self.stacks.get(stack), self.net.get(stack)) else { return };
        let len = self.len(stack);
        let room = self.room(stack).saturating_sub(len);
        if room == 0 {
            return;
        }
        let top = state.top.load(Ordering::Relaxed);
        // SAFETY: the entries from `top` on are inside the stack's part, initialised (to zero at least), and the section makes
        // them ours.
        let entries = unsafe { core::slice::from_raw_parts_mut(top, room) };
        let mut filler = Filler { entries: entries.iter_mut(), nr: 0 };
        f(&mut filler);
        let nr = filler.nr;
        state.top.store(top.wrapping_add(nr), Ordering::Relaxed);
        net.add(nr as i64);
    }

    unsafe fn add(&self, stack: usize, pfn: Pfn) -> bool {
        let Some(state) = self.stacks.get(stack).filter(|_| self.has_room()) else { return false };
        if self.len(stack) >= self.room(stack) {
            return false;
        }
        let top = state.top.load(Ordering::Relaxed);
        // SAFETY: there is room; the caller is inside the section, so the entry is ours.
        unsafe { *top = pfn.0 };
        // SAFETY: as above: at most the entries' end.
        state.top.store(unsafe { top.add(1) }, Ordering::Relaxed);
        true
    }

    /// Takes the `nr` blocks that have lain longest, calling `taken` with them.
    ///
    /// # Safety
    /// The caller is inside the section of the set's CPU, or has revoked it.
    pub(crate) unsafe fn drain(&self, stack: usize, nr: usize, taken: impl FnOnce(&mut [u64])) -> usize {
        let len = self.len(stack);
        let nr = nr.min(len);
        let (Some(state), Some(net)) = (self.stacks.get(stack), self.net.get(stack)) else { return 0 };
        if nr == 0 {
            return 0;
        }
        let base = self.base(stack);
        // SAFETY: the first `len` entries have been written, and the section makes them ours.
        taken(unsafe { core::slice::from_raw_parts_mut(base, nr) });
        // SAFETY: as above; the rest moves down.
        unsafe { core::ptr::copy(base.add(nr), base, len - nr) };
        state.top.store(base.wrapping_add(len - nr), Ordering::Relaxed);
        net.add(-(nr as i64));
        nr
    }

    /// Sets how many blocks of `stack` the fast path may pile up.
    pub(crate) fn set_limit(&self, stack: usize, blocks: usize) {
        if let Some(state) = self.stacks.get(stack) {
            let blocks = blocks.min(self.room(stack));
            state.limit.store(self.base(stack).wrapping_add(blocks), Ordering::Release);
        }
    }

    /// One more tick for a set of another node; whether its time is up (at the third).
    pub(crate) fn expires(&self) -> bool {
        let ticks = self.idle_ticks.load(Ordering::Relaxed) + 1;
        self.idle_ticks.store(if ticks >= 3 { 0 } else { ticks }, Ordering::Relaxed);
        ticks >= 3
    }
}

/// One CPU's part: what its fast paths look at, and behind it its zone sets.
///
/// ```text
/// CpuBlock │ ZoneSet 0 │ ZoneSet 1 │ ...        `Zone::list_of` counts bytes from the block's start
/// ```
///
/// A *section* is the context that holds `lock`. Full sections look for a revoker; fast sections do not, and touch only
/// stacks that are open: whoever revokes closes the stacks behind the revocation and waits once more.
///
/// # Invariants
/// 1. `span_*` are written inside full sections only, and name a span whose lists live as long as the allocator.
/// 2. `routes` point to stacks of this block.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct CpuBlock {
    /// Number of the first pageblock of the span used last, and how many it has.
    span_first: AtomicU64,
    span_len: AtomicU64,
    /// Its pageblocks' entries in `Arena::lists`.
    span_lists: AtomicPtr<AtomicU32>,
    pub(crate) lock: LocalLock,
    pub(crate) cpu: CpuId,
    pub(crate) node: NodeId,
    nr_sets: u32,
    /// By the low five bits of a `Gfp`: where a page comes from, for order 0 and for order 9.
    routes: [[AtomicPtr<Stack>; 32]; 2],
}

// SAFETY: atomics, and entries that are reached only inside sections.
unsafe impl Sync for CpuBlock {}

impl CpuBlock {
    /// Bytes of a block with its sets.
    pub(crate) const fn size(nr_sets: usize) -> usize {
        size_of::<Self>() + nr_sets * size_of::<ZoneSet>()
    }

    /// Writes a block whose requests are all routed to a stack without anything.
    ///
    /// # Safety
    /// `memory` has room for [`size`](Self::size) bytes, aligned for `CpuBlock`, is nobody else's, and stays the block's for
    /// as long as it is used.
    pub(crate) unsafe fn write(memory: NonNull<u8>, cpu: CpuId, node: NodeId, nr_sets: usize) -> NonNull<Self> {
        let block = memory.cast::<Self>();
        // SAFETY: the sets lie behind the block, in the same memory.
        let sets = unsafe { block.add(1) }.cast::<ZoneSet>();
        for i in 0..nr_sets {
            // SAFETY: as above.
            unsafe { sets.add(i).write(ZoneSet::new()) };
        }
        // SAFETY: written just above; a map that passed its check has memory and so at least one set.
        let never = unsafe { &raw mut (*sets.as_ptr()).stacks[NEVER] };
        // SAFETY: inside the memory.
        unsafe {
            block.write(Self {
                span_first: AtomicU64::new(0),
                span_len: AtomicU64::new(0),
                span_lists: AtomicPtr::new(core::ptr::null_mut()),
                lock: LocalLock::new(),
                cpu,
                node,
                nr_sets: nr_sets as u32,
                routes: core::array::from_fn(|_| core::array::from_fn(|_| AtomicPtr::new(never))),
            });
        }
        block
    }

    /// The stack that serves an order-0 request.
    #[inline(always)]
    pub(crate) fn route(&self, bits: u32) -> &Stack {
        let stack = self.routes[0][(bits & 31) as usize].load(Ordering::Relaxed);
        // SAFETY: invariant 2.
        unsafe { &*stack }
    }

    /// The stack that serves a request of a cached order; `None` for other orders and for contradicting flags.
    #[inline(always)]
    pub(crate) fn route_for(&self, bits: u32, order: Order) -> Option<&Stack> {
        let stack = match order.get() {
            0 => return Some(self.route(bits)),
            9 => self.routes[1][(bits & 31) as usize].load(Ordering::Relaxed),
            order @ 1..=3 => {
                let stack = self.routes[0][(bits & 31) as usize].load(Ordering::Relaxed);
                if self.column_of(stack)? >= 3 {
                    return None;
                }
                stack.wrapping_add(order as usize * 3)
            }
            _ => return None,
        };
        // SAFETY: invariant 2; of the first three stacks of a set, the ones that many further on are in it as well.
        Some(unsafe { &*stack })
    }

    /// A stack's place in its set.
    #[inline(always)]
    fn column_of(&self, stack: *const Stack) -> Option<usize> {
        let first = core::ptr::from_ref(self).addr() + size_of::<Self>();
        Some(stack.addr().checked_sub(first)? % size_of::<ZoneSet>() / size_of::<Stack>())
    }

    /// Routes requests of these flags.
    pub(crate) fn set_route(&self, bits: usize, zone: Option<(&Zone, MigrateType)>) {
        let stack = |order: Order| {
            let (zone, migratetype) = zone?;
            self.zone_set(zone)?.stacks.get(stack_index(order, migratetype)?)
        };
        // SAFETY: there is at least one set (see `write`).
        let never = unsafe { &self.sets().as_ref().stacks[NEVER] };
        for (routes, order) in self.routes.iter().zip([Order::ZERO, Order::PAGEBLOCK]) {
            if let Some(route) = routes.get(bits) {
                route.store(core::ptr::from_ref(stack(order).unwrap_or(never)).cast_mut(), Ordering::Relaxed);
            }
        }
    }

    /// The order-0 stack that takes a page of this frame's pageblock, if that lies in the span used last.
    #[inline(always)]
    pub(crate) fn list(&self, pfn: Pfn) -> Option<&Stack> {
        let block = (pfn.0 >> crate::line::FRAMES_SHIFT).wrapping_sub(self.span_first.load(Ordering::Relaxed));
        if block >= self.span_len.load(Ordering::Relaxed) {
            return None;
        }
        // SAFETY: inside the span (invariant 1).
        let list = unsafe { &*self.span_lists.load(Ordering::Relaxed).add(block as usize) }.load(Ordering::Relaxed);
        // SAFETY: lists hold offsets of stacks in a CPU's block (`Zone::list_of`).
        Some(unsafe { NonNull::from(self).byte_add(list as usize).cast::<Stack>().as_ref() })
    }

    /// As [`list`](Self::list), for any cached order.
    #[inline(always)]
    pub(crate) fn list_for(&self, pfn: Pfn, order: Order) -> Option<&Stack> {
        let stack = core::ptr::from_ref(self.list(pfn)?);
        let column = self.column_of(stack)?;
        let ahead = match order.get() {
            _ if column >= 3 => return None,
            order @ 0..=3 => order as usize * 3,
            9 => 12 + usize::from(column != 1) - column,
            _ => return None,
        };
        // SAFETY: in the set of which `stack` is one of the first three.
        Some(unsafe { &*stack.add(ahead) })
    }

    /// Makes the span that holds `pfn` the one that is looked at first. Inside a full section.
    pub(crate) fn remember(&self, arena: &Arena, pfn: Pfn) {
        if let Some(span) = arena.span_of(pfn)
            && let Some(lists) = arena.lists.get(span.index..span.index + span.len)
        {
            self.span_first.store(span.first, Ordering::Relaxed);
            self.span_len.store(span.len as u64, Ordering::Relaxed);
            self.span_lists.store(lists.as_ptr().cast_mut(), Ordering::Relaxed);
        }
    }

    /// Begins with the largest span.
    pub(crate) fn remember_largest(&self, arena: &Arena) {
        if let Some(span) = arena.spans.iter().max_by_key(|span| span.len) {
            self.remember(arena, Pfn(span.first << crate::line::FRAMES_SHIFT));
        }
    }

    fn sets(&self) -> NonNull<ZoneSet> {
        // SAFETY: the sets lie behind the block, in the same memory (`write`).
        unsafe { NonNull::from(self).add(1) }.cast()
    }

    /// This CPU's set with a number.
    pub(crate) fn set(&self, set: usize) -> Option<&ZoneSet> {
        // SAFETY: below the number of sets that `write` wrote.
        (set < self.nr_sets as usize).then(|| unsafe { self.sets().add(set).as_ref() })
    }

    /// This CPU's set of a zone.
    pub(crate) fn zone_set(&self, zone: &Zone) -> Option<&ZoneSet> {
        self.set(zone.set?)
    }

    /// Closes all stacks to the fast paths.
    pub(crate) fn close(&self) {
        for set in (0..self.nr_sets as usize).filter_map(|i| self.set(i)) {
            set.set_open(false);
        }
    }
}

/// Counts on this CPU's counter, or on the shared one where there is no CPU.
pub(crate) fn bump(local: Option<&LocalCounter>, shared: &AtomicU64, n: u64) {
    match local {
        Some(counter) => counter.add(n as i64),
        None => {
            shared.fetch_add(n, Ordering::Relaxed);
        }
    }
}
