//! One CPU group's share: pools of ranges by size, lazily freed areas, areas freed in interrupts.
//!
//! ```text
//!   Node ─┬─ lazy      ─▶ area ─▶ area          pushed by anyone, taken as a whole by a purge
//!         ├─ deferred  ─▶ area ─▶ area          pushed in interrupts, taken as a whole by whoever may sleep
//!         ├─ pools [1 page][2 pages]...[256]    unmapped, flushed ranges, their descriptors and index entries still set
//!         └─ ram       blocks that vm_map_ram carves
//! ```
//!
//! The lists are lock-free stacks without a pop: taking is one swap of the head, so there is no reuse to go wrong. Pools and
//! blocks have an interrupt-safe lock each, normally touched by one CPU.

use core::ptr::NonNull;

use kmem_sync::IrqLock;
use kmem_sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, Ordering};

use crate::area::{Area, Owned};
use crate::map_ram::RamBlocks;

/// The largest range that a pool keeps, in pages with guard.
pub(crate) const POOL_PAGES: usize = 256;

/// A stack that is pushed one by one and taken as a whole.
///
/// # Invariants
/// Following the links from `head` visits areas whose owner is this list.
#[derive(Debug)]
pub(crate) struct AreaStack {
    head: AtomicPtr<Area>,
}

impl AreaStack {
    pub(crate) fn new() -> Self {
        Self { head: AtomicPtr::new(core::ptr::null_mut()) }
    }

    /// Adds an area; `true` if the stack was empty. Any context.
    #[inline]
    pub(crate) fn push(&self, area: Owned) -> bool {
        let area = area.into_list();
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: we own the area until the swap below succeeds.
            unsafe { area.as_ref() }.set_link(NonNull::new(head));
            // Release pairs with the acquire in `take`: whoever takes the list finds areas and links as they are.
            match self.head.compare_exchange_weak(head, area.as_ptr(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return head.is_null(),
                Err(now) => head = now,
            }
        }
    }

    /// Takes all areas. Any context.
    #[inline]
    pub(crate) fn take(&self) -> Detached {
        if self.is_empty() {
            return Detached { next: None };
        }
        // INVARIANT: the whole list is ours now.
        Detached { next: NonNull::new(self.head.swap(core::ptr::null_mut(), Ordering::Acquire)) }
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }
}

/// A list of areas that one caller owns.
///
/// # Invariants
/// Following the links from `next` visits areas whose owner is this list.
#[derive(Debug)]
pub(crate) struct Detached {
    next: Option<NonNull<Area>>,
}

impl Detached {
    pub(crate) const fn new() -> Self {
        Self { next: None }
    }

    /// Shows each area's first page and length.
    #[inline]
    pub(crate) fn look(&self, mut f: impl FnMut(u64, u64)) {
        let mut next = self.next;
        while let Some(area) = next {
            // SAFETY: on our list (type invariant), so it lives.
            let area = unsafe { area.as_ref() };
            f(area.peek().1, area.pages());
            next = area.link();
        }
    }

    pub(crate) fn push(&mut self, area: Owned) {
        let area = area.into_list();
        // SAFETY: owned, so it lives.
        unsafe { area.as_ref() }.set_link(self.next);
        self.next = Some(area);
    }
}

impl Iterator for Detached {
    type Item = Owned;

    fn next(&mut self) -> Option<Owned> {
        let area = self.next?;
        // SAFETY: on our list (type invariant), so it lives.
        self.next = unsafe { area.as_ref() }.link();
        // SAFETY: on our list, and taken off by the line above.
        Some(unsafe { Owned::from_list(area) })
    }
}

#[derive(Clone, Copy, Debug)]
struct Pool {
    head: Option<NonNull<Area>>,
    tail: Option<NonNull<Area>>,
    len: usize,
}

/// Ranges of one node by their size.
///
/// # Invariants
/// Pool `i` lists `len` areas of `i + 1` pages whose owner it is; `tail` is the last of them if there are any.
#[derive(Debug)]
pub(crate) struct Pools {
    pools: [Pool; POOL_PAGES],
}

// SAFETY: owns its areas; nothing is tied to a thread.
unsafe impl Send for Pools {}

impl Pools {
    const EMPTY: Pool = Pool { head: None, tail: None, len: 0 };

    const fn new() -> Self {
        Self { pools: [Self::EMPTY; POOL_PAGES] }
    }

    /// Takes a range for one page and its guard.
    #[inline(always)]
    pub(crate) fn pop_page(&mut self) -> Option<Owned> {
        let [_, pool, ..] = &mut self.pools;
        let first = pool.head?;
        // SAFETY: listed, so it lives and this pool owns it (type invariant).
        pool.head = unsafe { first.as_ref() }.link();
        pool.len -= 1;
        // SAFETY: taken off the list above.
        Some(unsafe { Owned::from_list(first) })
    }

    /// Takes a range of exactly `pages` whose address `suits`. Looks at the first one only: if it does not suit, it goes to
    /// the end.
    #[inline]
    pub(crate) fn pop(&mut self, pages: u64, suits: impl FnOnce(u64) -> bool) -> Option<Owned> {
        let pool = self.pools.get_mut((pages as usize).wrapping_sub(1))?;
        let first = pool.head?;
        // SAFETY: listed, so it lives and this pool owns it (type invariant).
        let area = unsafe { first.as_ref() };
        let next = area.link();
        if !suits(area.peek().1) {
            if let (Some(next), Some(tail)) = (next, pool.tail) {
                area.set_link(None);
                // SAFETY: listed (type invariant).
                unsafe { tail.as_ref() }.set_link(Some(first));
                (pool.head, pool.tail) = (Some(next), Some(first));
            }
            return None;
        }
        pool.head = next;
        pool.len -= 1;
        // SAFETY: taken off the list above.
        Some(unsafe { Owned::from_list(first) })
    }

    /// Adds a range; gives it back if no pool keeps that size.
    pub(crate) fn push(&mut self, area: Owned) -> Result<(), Owned> {
        let Some(pool) = self.pools.get_mut((area.pages() as usize).wrapping_sub(1)) else {
            return Err(area);
        };
        let area = area.into_list();
        // SAFETY: owned, so it lives.
        unsafe { area.as_ref() }.set_link(pool.head);
        if pool.head.is_none() {
            pool.tail = Some(area);
        }
        pool.head = Some(area);
        pool.len += 1;
        Ok(())
    }

    /// Takes `1 / divisor` of each pool's entries (rounded down), or all of them if `divisor` is 1.
    pub(crate) fn trim(&mut self, divisor: usize) -> Detached {
        let mut taken = Detached::new();
        for pages in 1..=POOL_PAGES {
            let len = self.pools.get(pages - 1).map_or(0, |pool| pool.len);
            for _ in 0..len / divisor.max(1) {
                if let Some(area) = self.pop(pages as u64, |_| true) {
                    taken.push(area);
                }
            }
        }
        taken
    }

    /// How many ranges there are.
    pub(crate) fn entries(&self) -> usize {
        self.pools.iter().map(|pool| pool.len).sum()
    }
}

/// A CPU group's share of the window's bookkeeping.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Node {
    pub(crate) lazy: AreaStack,
    pub(crate) deferred: AreaStack,
    /// Pages of memory that areas own; the sum over all nodes counts.
    pub(crate) used_pages: AtomicI64,
    /// How many areas were taken from a pool.
    pub(crate) pool_hits: AtomicU64,
    pub(crate) pools: IrqLock<Pools>,
    pub(crate) ram: IrqLock<RamBlocks>,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            lazy: AreaStack::new(),
            deferred: AreaStack::new(),
            used_pages: AtomicI64::new(0),
            pool_hits: AtomicU64::new(0),
            pools: IrqLock::new(Pools::new()),
            ram: IrqLock::new(RamBlocks::new()),
        }
    }

    #[inline(always)]
    pub(crate) fn count_pool_hit(&self) {
        self.pool_hits.fetch_add(1, Ordering::Relaxed);
    }

    #[inline(always)]
    pub(crate) fn count_used(&self, pages: i64) {
        self.used_pages.fetch_add(pages, Ordering::Relaxed);
    }
}
