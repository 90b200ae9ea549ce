//! Per-CPU page sets: free blocks that one CPU keeps at hand.
//!
//! ```text
//! ZoneSet (CPU x zone)  stacks: 3 types x orders 0..=9; the orders of a type lie behind one another
//!
//! entries   | f | f | f | f |   |   |   |
//!           base            top     limit          pop: top > floor     push: top < limit
//! ```
//!
//! Stacks of the middle orders (4..=8) hold a few blocks each, in sets large enough for that; elsewhere they have no room.
//! Where frames must not be kept at all, requests and frees are sent to stacks that stay closed for good (`CpuBlock`).
//!
//! A stack holds first frames of blocks. Only the CPU that owns it, inside its section,
//! moves `top` and touches entries; everybody may read `top`. `floor` is `base` while the fast path may pop and the
//! largest address while it may not (the zone is short of memory); `limit` is where the fast path stops pushing. Both may
//! be written from any CPU: they only decide which path is taken.

use core::ptr::NonNull;

use kmem_gfp::{MigrateType, Order, Pfn};
use kmem_sync::LocalCounter;
use kmem_sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// Orders that have a stack: 0..=9.
pub(crate) const ORDERS: usize = 10;
/// Types that have stacks of their own.
const COLUMNS: usize = 3;
/// Stacks of a set.
pub(crate) const STACKS: usize = COLUMNS * ORDERS;

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
    /// A stack that is closed, and has no entries.
    pub(crate) fn new() -> Self {
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

/// The most blocks that a stack of a middle order has room for.
const MIDDLE_ROOM: usize = 8;
/// Sets whose order-0 stacks have room for fewer pages keep nothing of the middle orders.
const MIDDLE_LEAST: usize = 256;
/// From here on they keep [`MIDDLE_ROOM_LARGE`] blocks of each, and at least [`HUGE_LEAST`] of order 9.
pub(crate) const MIDDLE_LARGE: usize = 512;
const MIDDLE_ROOM_LARGE: usize = 24;
const HUGE_LEAST: usize = 16;
/// How many more entries such a set needs at most than its smaller stacks alone would.
pub(crate) const MIDDLE_MORE: usize = COLUMNS * (5 * (MIDDLE_ROOM_LARGE - MIDDLE_ROOM) + HUGE_LEAST);

/// Which stack of a zone holds blocks of an order and type; `None` for orders and types that are not cached.
#[inline]
pub(crate) const fn stack_index(order: Order, migratetype: MigrateType) -> Option<usize> {
    let column = match migratetype {
        MigrateType::Unmovable => 0,
        MigrateType::Movable | MigrateType::HighAtomic | MigrateType::Cma => 1,
        MigrateType::Reclaimable => 2,
        MigrateType::Isolate => return None,
    };
    match order.get() {
        0..=9 => Some(column * ORDERS + order.index()),
        _ => None,
    }
}

/// The order of the blocks in a stack.
#[inline(always)]
pub(crate) const fn order_of(stack: usize) -> u32 {
    (stack % ORDERS) as u32
}

/// All stacks, beginning with `first`: those of the same order, then those of the larger ones, then of the smaller ones.
pub(crate) fn stacks_from(first: usize) -> impl Iterator<Item = usize> {
    let begin = first % ORDERS * COLUMNS + first / ORDERS;
    (begin..STACKS).chain(0..begin).map(|place| place % COLUMNS * ORDERS + place / COLUMNS)
}

/// Whether a stack holds blocks of the middle orders, 4..=8, which the kernel does not cache.
pub(crate) const fn is_middle(stack: usize) -> bool {
    matches!(order_of(stack), 4..=8)
}

/// Whether the kernel caches blocks of this order.
pub(crate) const fn is_kernel_cached(order: Order) -> bool {
    matches!(order.get(), 0..=3 | 9)
}

/// How many blocks a stack has room for when an order-0 stack has room for `pages`.
const fn room_of(stack: usize, pages: usize) -> usize {
    let room = match order_of(stack) {
        0 => pages,
        1 => pages / 4,
        2 => pages / 8,
        3 => pages / 16,
        4..=8 => {
            return match pages {
                MIDDLE_LARGE.. => MIDDLE_ROOM_LARGE,
                MIDDLE_LEAST.. => MIDDLE_ROOM,
                _ => 0,
            };
        }
        _ => pages / 64,
    };
    if pages == 0 {
        0
    } else if order_of(stack) == 9 && pages >= MIDDLE_LARGE && room < HUGE_LEAST {
        HUGE_LEAST
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
    pub(crate) stacks: [Stack; STACKS],
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
        if !self.has_room() {
            return 0;
        }
        let mut bytes = 0;
        for (stacks, bases) in self.stacks.chunks_exact(ORDERS).zip(self.bases.chunks_exact(ORDERS)) {
            for (order, (stack, base)) in stacks.iter().zip(bases).enumerate() {
                let (top, base) = (stack.top.load(Ordering::Relaxed), base.load(Ordering::Relaxed));
                bytes += top.addr().wrapping_sub(base.addr()) << order;
            }
        }
        (bytes / size_of::<u64>()) as u64
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
        self.stacks.iter().enumerate().map(|(i, stack)| stack.pushes.get() << order_of(i)).sum()
    }

    /// Lets the fast path pop, or not. From any CPU.
    pub(crate) fn set_open(&self, open: bool) {
        let open = open && self.has_room();
        for (i, stack) in self.stacks.iter().enumerate() {
            stack.floor.store(if open { self.base(i) } else { closed() }, Ordering::Release);
        }
        if !open {
            self.close_frees();
        }
    }

    /// Sends the fast path of every free to the slower one.
    pub(crate) fn close_frees(&self) {
        for stack in &self.stacks {
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

/// Counts on this CPU's counter, or on the shared one where there is no CPU.
pub(crate) fn bump(local: Option<&LocalCounter>, shared: &AtomicU64, n: u64) {
    match local {
        Some(counter) => counter.add(n as i64),
        None => {
            shared.fetch_add(n, Ordering::Relaxed);
        }
    }
}
