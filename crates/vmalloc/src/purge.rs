//! Lazy unmapping: freed areas wait, unmapped, until one flush serves them all.
//!
//! ```text
//!   vfree ─▶ unmap ─▶ lazy list ──(purge: one flush over the union)──▶ pool of the node that made it, or the free map
//! ```
//!
//! A range is handed out again only after it came through here, and a flush lies between. Purges are serialised; each takes
//! whole lists, so what is freed meanwhile waits for the next one.

use kmem_gfp::AllocContext;
use kmem_sync::Cpu;
use kmem_sync::atomic::Ordering;

use crate::address_space::AddressSpace;
use crate::area::{Owned, State};
use crate::env::Work;
use crate::node::{Detached, Node};
use crate::vmalloc::{MAX_NODES, Shared, Vmalloc};
use crate::{PoolShrinker, VmallocEnv};

/// Ranges that go into a pool in one section.
const POOL_BATCH: usize = 32;

/// How far a purge goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Pools lose a quarter and are then filled.
    Normal,
    /// No addresses are left: pools are emptied and not filled, fragmented blocks are given up.
    Exhausted,
}

/// The union of the ranges to be flushed, in pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Union {
    pub(crate) lo: u64,
    pub(crate) hi: u64,
}

impl Union {
    pub(crate) const EMPTY: Self = Self { lo: u64::MAX, hi: 0 };

    pub(crate) fn add(&mut self, lo: u64, hi: u64) {
        self.lo = self.lo.min(lo);
        self.hi = self.hi.max(hi);
    }
}

impl<E: VmallocEnv> Vmalloc<E> {
    /// Puts an unmapped area on the lazy list and starts a purge if too many pages wait. Task context.
    #[inline]
    pub(crate) fn retire(&self, shared: &Shared, area: Owned) {
        if self.retire_quietly(shared, area) > shared.lazy_limit {
            self.purge_is_due(shared);
        }
    }

    /// Puts an unmapped area on the lazy list; returns how many pages wait there.
    #[inline]
    pub(crate) fn retire_quietly(&self, shared: &Shared, area: Owned) -> u64 {
        self.make_lazy(shared, shared.node(self.local_node()), area)
    }

    #[inline(always)]
    pub(crate) fn make_lazy(&self, shared: &Shared, here: &Node, mut area: Owned) -> u64 {
        let pages = area.pages();
        area.set_state(State::Lazy);
        // Before the area is on the list: from then on a purge may count it out again.
        let lazy = shared.lazy_pages.fetch_add(pages, Ordering::Relaxed) + pages;
        here.lazy.push(area);
        lazy
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn purge_is_due(&self, shared: &Shared) {
        if self.env.schedule(Work::Purge) || !self.env.context().task_flags().may_sleep() {
            return;
        }
        // Whoever purges at the moment does it for us as well, or the next free will.
        shared.purging.try_with(|()| self.purge_locked(shared, Mode::Normal));
    }

    /// Flushes what has been freed lazily and makes its addresses available again; returns how many pages that were. What
    /// [`Work::Purge`] asks for. Task context; may sleep. One flush, whatever the number of areas.
    pub fn purge(&self) -> u64 {
        self.try_shared().map_or(0, |shared| self.purge_in_mode(shared, Mode::Normal))
    }

    /// Makes sure that no CPU can reach freed memory through any address of the window. Task context; may sleep.
    pub fn vm_unmap_aliases(&self) {
        self.run_deferred();
        self.purge();
    }

    /// Purges, waiting for one that is under way.
    pub(crate) fn purge_in_mode(&self, shared: &Shared, mode: Mode) -> u64 {
        loop {
            if let Some(purged) = shared.purging.try_with(|()| self.purge_locked(shared, mode)) {
                return purged;
            }
            self.env.cpu().relax();
            self.env.context().yield_now();
        }
    }

    fn purge_locked(&self, shared: &Shared, mode: Mode) -> u64 {
        let cpu = self.env.cpu();
        for node in shared.nodes() {
            let divisor = if mode == Mode::Normal { 4 } else { 1 };
            let trimmed = node.pools.with(cpu, |pools| pools.trim(divisor));
            self.release_all(shared, trimmed);
        }
        let mut union = Union::EMPTY;
        self.collect_ram_blocks(shared, mode, &mut union);
        let mut lazy = [const { Detached::new() }; MAX_NODES];
        let mut pages = 0;
        for (node, list) in shared.nodes().zip(&mut lazy) {
            *list = node.lazy.take();
            list.look(|page, len| {
                union.add(page, page + len);
                pages += len;
            });
        }
        if union.lo < union.hi {
            self.env.space().flush(shared.address(union.lo)..shared.address(union.hi), self.env.flush_cpus());
            shared.flushes.fetch_add(1, Ordering::Relaxed);
        }
        shared.lazy_pages.fetch_sub(pages, Ordering::Relaxed);
        shared.purges.fetch_add(1, Ordering::Relaxed);
        for list in lazy {
            if mode == Mode::Normal {
                self.fill_pools(shared, list);
            } else {
                self.release_all(shared, list);
            }
        }
        pages
    }

    /// Puts flushed ranges into the pools of the nodes that made them, a bounded number at a time; what no pool keeps
    /// becomes free.
    fn fill_pools(&self, shared: &Shared, mut areas: Detached) {
        let mut next = areas.next();
        while let Some(first) = next.take() {
            let node = first.node();
            let too_large;
            (too_large, next) = shared.node(node).pools.with(self.env.cpu(), |pools| {
                let mut area = first;
                for _ in 0..POOL_BATCH {
                    area.set_state(State::Pooled);
                    if let Err(area) = pools.push(area) {
                        return (Some(area), areas.next());
                    }
                    match areas.next() {
                        Some(next) if next.node() == node => area = next,
                        other => return (None, other),
                    }
                }
                (None, Some(area))
            });
            if let Some(area) = too_large {
                shared.tree.with(self.env.cpu(), |tree| tree.release(area));
            }
        }
    }

    fn release_all(&self, shared: &Shared, areas: Detached) {
        for area in areas {
            // One section for each: interrupts are never off for long.
            shared.tree.with(self.env.cpu(), |tree| tree.release(area));
        }
    }
}

impl<E: VmallocEnv> PoolShrinker for Vmalloc<E> {
    fn count_objects(&self) -> usize {
        let Some(shared) = self.try_shared() else { return 0 };
        shared.nodes().map(|node| node.pools.with(self.env.cpu(), |pools| pools.entries())).sum()
    }

    fn scan_objects(&self) -> usize {
        let Some(shared) = self.try_shared() else { return 0 };
        let mut entries = 0;
        for node in shared.nodes() {
            let taken = node.pools.with(self.env.cpu(), |pools| (pools.entries(), pools.trim(1)));
            entries += taken.0;
            self.release_all(shared, taken.1);
        }
        entries
    }
}
