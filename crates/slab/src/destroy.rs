//! Emptying a cache: flushing its sheaves, shrinking it, destroying it.

use core::ptr::{self, NonNull};

use kmem_gfp::AllocContext;
use kmem_sync::atomic::Ordering;
use kmem_sync::{Cpu, CpuId};

use crate::backend::Locking;
use crate::create::names;
use crate::node::{List, Node};
use crate::sheaf::{self, Sheaf};
use crate::slab::Slab;
use crate::{DestroyError, KmemCache, SlabEnv, Slabs};

/// How many leftover objects a failed destruction reports.
const REPORTED: usize = 32;
/// Slabs with at most so many free slots are put in order when a list is sorted.
const SORTED: usize = 32;

impl<E: SlabEnv> Slabs<E> {
    /// Puts what one CPU's sheaves hold back into the slabs. The CPU's owner is shut out meanwhile.
    pub(crate) fn flush_cpu(&self, cache: &KmemCache, cpu: CpuId) {
        let Some(slot) = cache.slots.slot(cpu) else { return };
        let taken = slot.take_all(self.env.cpu());
        if !taken.rcu.is_null() {
            self.pend_sheaf(cache, taken.rcu);
        }
        for sheaf in taken.sheaves {
            self.empty_sheaf(cache, sheaf);
        }
    }

    /// Puts the sheaf's objects back into their slabs and frees it.
    pub(crate) fn empty_sheaf(&self, cache: &KmemCache, sheaf: *mut Sheaf) {
        if sheaf.is_null() || sheaf == sheaf::none() {
            return;
        }
        // SAFETY: the caller gave the sheaf up; its objects are free.
        unsafe {
            self.put_objects(cache, Sheaf::contents(sheaf), Locking::Wait);
            (*sheaf).len = 0;
        }
        self.free_sheaf(sheaf, Locking::Wait);
    }

    /// Puts everything that sheaves and barns hold back into the slabs, and hands what waits for readers on.
    fn flush_all(&self, cache: &KmemCache) {
        self.poll_slow(cache);
        for cpu in 0..cache.slots.len() {
            self.flush_cpu(cache, CpuId(cpu));
        }
        for node in cache.nodes() {
            let cpu = self.env.cpu();
            while let Some(sheaf) = node.barn.take_full(cpu, Locking::Wait) {
                self.empty_sheaf(cache, sheaf);
            }
            while let Some(sheaf) = node.barn.take_empty(cpu, Locking::Wait) {
                self.free_sheaf(sheaf, Locking::Wait);
            }
        }
    }

    /// Gives back the node's empty slabs.
    fn release_empty(&self, cache: &KmemCache, node: &Node) {
        let frames = self.env.frames();
        loop {
            let found = node.with(self.env.cpu(), Locking::Wait, |slabs| {
                let slab = slabs.partial.iter(frames).find(|slab| slab.state().inuse() == 0)?;
                let state = slab.state();
                // An empty listed slab has no objects to be freed into it, and taking needs the lock we hold.
                slab.swap_state(state, state.listed(false));
                slabs.partial.unlink(frames, &slab);
                slabs.nr_empty = slabs.nr_empty.saturating_sub(1);
                Some(slab)
            });
            match found.flatten() {
                Some(slab) => self.release_slab(cache, node, &slab),
                None => break,
            }
        }
    }

    /// Moves the slabs with the fewest free slots to the front of the node's list, in two passes.
    fn sort_partial(&self, node: &Node) {
        let frames = self.env.frames();
        let mut by_free = [const { List::new() }; SORTED];
        node.with(self.env.cpu(), Locking::Wait, |slabs| {
            for slab in slabs.partial.iter(frames) {
                let place = slab.state().free().checked_sub(1).and_then(|at| by_free.get_mut(at));
                if let Some(place) = place {
                    slabs.partial.unlink(frames, &slab);
                    place.push_tail(frames, &slab);
                }
            }
            for list in by_free.iter_mut().rev() {
                while let Some(slab) = list.iter(frames).next() {
                    list.unlink(frames, &slab);
                    slabs.partial.push_head(frames, &slab);
                }
            }
        });
    }

    /// Gives every page back that the cache does not need: flushes sheaves and barns, releases empty slabs, and puts
    /// the fullest slabs in front. Returns whether the cache still owns a slab. Interrupts must be on.
    #[doc(alias = "kmem_cache_shrink")]
    pub fn shrink(&self, cache: &KmemCache) -> bool {
        self.flush_all(cache);
        for node in cache.nodes() {
            self.release_empty(cache, node);
            self.sort_partial(node);
        }
        self.poll_pending(cache);
        cache.nodes().any(|node| node.nr_slabs.load(Ordering::Acquire) > 0)
    }

    /// [`shrink`](Self::shrink) for every cache and for the allocator's own memory, for a machine that is short.
    pub fn shrink_all(&self) {
        self.for_each_cache(|cache| {
            self.shrink(cache);
        });
        self.shrink_metadata();
    }

    /// Gives back the empty slabs of the internal caches.
    pub(crate) fn shrink_metadata(&self) {
        for cache in self.core().into_iter().flat_map(|core| &core.meta) {
            self.drain_deferred(cache);
            for node in cache.nodes() {
                self.release_empty(cache, node);
            }
        }
    }

    /// Destroys a cache, or gives up one user's share of it. Waits for objects freed through RCU, and for whoever looks at
    /// the cache through [`for_each_cache`](Self::for_each_cache). May sleep; interrupts must be on.
    ///
    /// # Safety
    /// If the result is `Ok`, nobody uses this reference to the cache any more. Frees of its last objects may still be
    /// running elsewhere; then either they are seen, or the result is an error.
    ///
    /// # Errors
    /// [`DestroyError::ObjectsRemain`] if objects are in use: each of the first 32 is reported, nothing is lost, and the
    /// cache works on.
    #[doc(alias = "kmem_cache_destroy")]
    pub unsafe fn destroy(&self, cache: &KmemCache) -> Result<(), DestroyError> {
        let Some(core) = self.core() else { return Err(DestroyError::UnknownCache) };
        let cpu = self.env.cpu();
        // The last user makes it zero: nobody finds the cache from then on, neither to share it nor to look at it.
        let users = core.caches.with(cpu, |list| {
            let known = names(list).any(|other| ptr::eq(other, cache) && other.is_live());
            if known { cache.refs.fetch_sub(1, Ordering::Relaxed) } else { 0 }
        });
        match users {
            0 => return Err(DestroyError::UnknownCache),
            1 => {}
            _ => return Ok(()),
        }
        // Acquire pairs with the release in `Visit`.
        while cache.visitors.load(Ordering::Acquire) > 0 {
            cpu.relax();
            self.env.context().yield_now();
        }
        if let Err(remain) = self.empty(cache) {
            core.caches.with(cpu, |_| cache.refs.fetch_add(1, Ordering::Relaxed));
            return Err(remain);
        }
        core.caches.with(cpu, |list| {
            let older = cache.older.load(Ordering::Relaxed);
            let newer = names(list).find(|other| ptr::eq(other.older.load(Ordering::Relaxed), cache));
            match newer {
                Some(newer) => newer.older.store(older, Ordering::Relaxed),
                None => list.newest = older,
            }
            list.len = list.len.saturating_sub(1);
        });
        // SAFETY: no slabs are left, every section on it has ended, and the caller promises that nobody starts another.
        unsafe { self.unplace(NonNull::from(cache)) };
        Ok(())
    }

    /// Gives back everything, or says what is in use.
    fn empty(&self, cache: &KmemCache) -> Result<(), DestroyError> {
        self.rcu_barrier_cache(cache);
        self.flush_all(cache);
        self.drain_deferred(cache);
        for node in cache.nodes() {
            self.release_empty(cache, node);
        }
        self.finish_pending(cache);
        // Acquire pairs with the release in `destroy_slab`: who counted the last slab out is done with the cache.
        let slabs: u64 = cache.nodes().map(|node| node.nr_slabs.load(Ordering::Acquire)).sum();
        if slabs == 0 {
            return Ok(());
        }
        let mut live = 0;
        let mut first = 0;
        self.env.context().report(format_args!("BUG {}: Objects remaining on cache destruction", cache.name()));
        self.for_each_live_object(cache, |object| {
            live += 1;
            if first == 0 {
                first = object.addr().get();
            }
            if live <= REPORTED {
                self.env.context().report(format_args!("Object {:#018x} remains", object.addr()));
                crate::debug::report_tracks(self.env.context(), cache, object);
            }
        });
        Err(DestroyError::ObjectsRemain { live, slabs: slabs as usize, first })
    }

    /// Calls `f` with every object of the cache that is in use, under the list locks: `f` must not call the allocator.
    /// Objects that sheaves hold count as in use.
    pub fn for_each_live_object(&self, cache: &KmemCache, mut f: impl FnMut(NonNull<u8>)) {
        let frames = self.env.frames();
        for node in cache.nodes() {
            node.with(self.env.cpu(), Locking::Wait, |slabs| {
                for slab in slabs.partial.iter(frames).chain(slabs.full.iter(frames)) {
                    for_each_used(cache, &slab, |index| f(slab.object(cache, index)));
                }
            });
        }
    }
}

/// Calls `f` with the number of every slot of the slab that is not on its chain. The list lock is held.
pub(crate) fn for_each_used(cache: &KmemCache, slab: &Slab<'_>, mut f: impl FnMut(usize)) {
    const WINDOW: usize = 512;
    let state = slab.state();
    let total = state.total();
    let mut start = 0;
    while start < total {
        let mut free = [0_u64; WINDOW / 64];
        let mut at = state.head();
        for _ in 0..state.free() {
            let Some(index) = at else { break };
            if let Some(word) = index.checked_sub(start).and_then(|bit| free.get_mut(bit / 64)) {
                *word |= 1 << ((index - start) % 64);
            }
            // SAFETY: free slots are taken only under the list lock, so the chain below `head` is stable.
            let next = unsafe { cache.next(slab.object(cache, index)) };
            at = if next.is_null() { None } else { slab.index(cache, total, next) };
        }
        for index in start..total.min(start + WINDOW) {
            let bit = index - start;
            if free.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 0) {
                f(index);
            }
        }
        start += WINDOW;
    }
}
