//! The slab level: taking free slots out of slabs and putting them back. Behind the sheaves, under the node's list lock.

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, PageAllocator};
use kmem_sync::atomic::Ordering;

use crate::node::Node;
use crate::slab::{Slab, SlabState, owner_node};
use crate::{KmemCache, ObjectError, SlabEnv, SlabFlags, Slabs};

/// Whether a lock is worth waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locking {
    /// Spin until it is free.
    Wait,
    /// Any context: an unavailable lock is an answer.
    Try,
}

/// How many whole chains are detached under one hold of the list lock.
const DETACH: usize = 8;

/// A slab's whole chain, taken off it and not yet walked.
#[derive(Clone, Copy)]
struct Detached<'a> {
    slab: Slab<'a>,
    head: Option<usize>,
    count: usize,
    total: usize,
}

impl<E: SlabEnv> Slabs<E> {
    /// Fills `out` from the node's partial slabs; returns how many leading places are filled.
    pub(crate) fn take_partial(&self, cache: &KmemCache, node: &Node, out: &mut [*mut u8], how: Locking) -> usize {
        let mut got = 0;
        while got < out.len() && node.nr_partial() > 0 {
            let before = got;
            let mut detached = [None; DETACH];
            let Some(rest) = out.get_mut(got..) else { break };
            let walked = node.with(self.env.cpu(), how, |slabs| self.detach(cache, slabs, rest, &mut detached));
            let Some(walked) = walked else { break };
            got += walked;
            for Detached { slab, head, count, total } in detached.into_iter().flatten() {
                let Some(places) = out.get_mut(got..got + count) else { break };
                // SAFETY: the chain was detached, so its slots are ours.
                match unsafe { slab.walk(cache, total, head, places) } {
                    Ok((walked, _)) => got += walked,
                    Err(good) => {
                        got += good;
                        self.lose_chain(cache, node, &slab, count - good, how);
                    }
                }
            }
            if got == before {
                break;
            }
        }
        got
    }

    /// Under the list lock: detaches whole chains while they fit, and takes the last few slots from the slab that has too
    /// many. Returns how many places at the start of `out` have been filled; the rest of the wanted slots are in
    /// `detached`.
    fn detach<'f>(
        &'f self,
        cache: &KmemCache,
        slabs: &mut crate::node::Slabs,
        out: &mut [*mut u8],
        detached: &mut [Option<Detached<'f>>; DETACH],
    ) -> usize {
        let frames = self.env.frames();
        let mut left = out.len();
        for place in detached.iter_mut() {
            if left == 0 {
                return 0;
            }
            let Some(slab) = slabs.pick(frames) else { return 0 };
            loop {
                let state = slab.state();
                let free = state.free();
                if free <= left {
                    let full = state.with(None, state.total()).listed(false);
                    if !slab.swap_state(state, full) {
                        continue;
                    }
                    slabs.partial.unlink(frames, &slab);
                    slabs.full.push_head(frames, &slab);
                    *place = Some(Detached { slab, head: state.head(), count: free, total: state.total() });
                    left -= free;
                } else {
                    // SAFETY: slots are taken only under the list lock, which we hold; pushes go in front.
                    let walked = unsafe {
                        slab.walk(cache, state.total(), state.head(), out.get_mut(..left).unwrap_or_default())
                    };
                    let taken = match walked {
                        Ok((taken, rest)) if slab.swap_state(state, state.with(rest, state.inuse() + taken)) => taken,
                        Ok(_) => continue,
                        Err(_) => {
                            self.freeze(cache, slabs, &slab);
                            0
                        }
                    };
                    if state.inuse() == 0 {
                        slabs.nr_empty = slabs.nr_empty.saturating_sub(1);
                    }
                    return taken;
                }
                if state.inuse() == 0 {
                    slabs.nr_empty = slabs.nr_empty.saturating_sub(1);
                }
                break;
            }
        }
        0
    }

    /// Takes a slab whose bookkeeping is broken out of service: its free slots are lost, and objects freed into it leak.
    pub(crate) fn freeze(&self, cache: &KmemCache, slabs: &mut crate::node::Slabs, slab: &Slab<'_>) {
        let frames = self.env.frames();
        loop {
            let state = slab.state();
            if !slab.swap_state(state, state.with(None, state.total()).frozen()) {
                continue;
            }
            if state.is_listed() {
                slabs.partial.unlink(frames, slab);
                slabs.full.push_head(frames, slab);
            }
            break;
        }
        self.env.context().report(format_args!(
            "FIX {}: slab at {:#x} taken out of service",
            cache.name(),
            slab.base.addr()
        ));
    }

    /// Says that part of a detached chain could not be followed, and freezes the slab.
    #[cold]
    fn lose_chain(&self, cache: &KmemCache, node: &Node, slab: &Slab<'_>, lost: usize, how: Locking) {
        self.env.context().report(format_args!(
            "BUG {}: Freechain corrupt in slab at {:#x}, {lost} objects lost",
            cache.name(),
            slab.base.addr()
        ));
        node.with(self.env.cpu(), how, |slabs| self.freeze(cache, slabs, slab));
    }

    /// The node part of the cache that a slab with this owner word belongs to.
    pub(crate) fn node_of_slab<'c>(&self, cache: &'c KmemCache, owner: u64, slab: &Slab<'_>) -> Option<&'c Node> {
        let node = match owner_node(owner) {
            Some(node) => node,
            None => self.env.pages().node_of(slab.pfn).index(),
        };
        cache.node(node)
    }

    /// Puts one object back into its slab.
    ///
    /// # Safety
    /// The caller gives up the object, if it is one.
    pub(crate) unsafe fn put_object(
        &self,
        cache: &KmemCache,
        object: NonNull<u8>,
        how: Locking,
    ) -> Result<(), ObjectError> {
        let address = object.addr().get();
        let Some((owner, slab)) = Slab::find(self.env.frames(), object) else {
            return Err(ObjectError::NotSlab { address });
        };
        let total = slab.state().total();
        let Some(index) = slab.index(cache, total, object.as_ptr()) else {
            return Err(ObjectError::NotAnObject { address });
        };
        // SAFETY: a chain of one, given up by the caller.
        unsafe { self.put_chain(cache, owner, &slab, index, object, 1, how) }
    }

    /// Puts a chain of `count` slots, from slot `head` to the object `tail`, back into their slab.
    ///
    /// # Safety
    /// The caller gives up the objects; each but the last links to the next.
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn put_chain(
        &self,
        cache: &KmemCache,
        owner: u64,
        slab: &Slab<'_>,
        head: usize,
        tail: NonNull<u8>,
        count: usize,
        how: Locking,
    ) -> Result<(), ObjectError> {
        // SAFETY: the caller's promise.
        if unsafe { self.push_unlocked(cache, slab, head, tail, count)? } {
            return Ok(());
        }
        let Some(node) = self.node_of_slab(cache, owner, slab) else {
            return Err(ObjectError::Corrupted { address: tail.addr().get() });
        };
        let done = node.with(self.env.cpu(), how, |slabs| {
            // SAFETY: the caller's promise.
            unsafe { self.push_locked(cache, slabs, slab, head, tail, count, how) }
        });
        match done {
            Some(Ok(true)) => self.release_slab(cache, node, slab),
            Some(Ok(false)) => {}
            Some(Err(error)) => return Err(error),
            // SAFETY: the caller's promise.
            None => unsafe { self.defer_chain(cache, slab, head, count) },
        }
        Ok(())
    }

    /// Pushes a chain without the list lock; `Ok(false)`, with nothing pushed, if that would make the slab partial or empty.
    ///
    /// # Safety
    /// As for [`put_chain`](Self::put_chain).
    #[inline]
    pub(crate) unsafe fn push_unlocked(
        &self,
        cache: &KmemCache,
        slab: &Slab<'_>,
        head: usize,
        tail: NonNull<u8>,
        count: usize,
    ) -> Result<bool, ObjectError> {
        loop {
            let state = slab.state();
            // SAFETY: the caller's promise.
            let new = unsafe { self.pushed(cache, slab, state, head, tail, count)? };
            if state.is_full() || new.inuse() == 0 {
                return Ok(false);
            }
            if slab.swap_state(state, new) {
                return Ok(true);
            }
        }
    }

    /// Leaves a chain of objects for the next slow call that may wait for locks.
    ///
    /// # Safety
    /// As for [`put_chain`](Self::put_chain).
    #[cold]
    pub(crate) unsafe fn defer_chain(&self, cache: &KmemCache, slab: &Slab<'_>, head: usize, count: usize) {
        let mut at = Some(slab.object(cache, head));
        for _ in 0..count {
            let Some(object) = at else { break };
            // SAFETY: given up by the caller; the link is read before deferring writes it.
            unsafe {
                at = NonNull::new(cache.next(object));
                self.defer(cache, object);
            }
        }
    }

    /// `state` with a chain pushed in front, after linking the chain's tail to the present head.
    ///
    /// # Safety
    /// The chain is free and known to the caller alone.
    unsafe fn pushed(
        &self,
        cache: &KmemCache,
        slab: &Slab<'_>,
        state: SlabState,
        head: usize,
        tail: NonNull<u8>,
        count: usize,
    ) -> Result<SlabState, ObjectError> {
        let address = slab.object(cache, head).addr().get();
        if state.is_frozen() {
            return Err(ObjectError::Corrupted { address });
        }
        if state.inuse() < count || state.head() == Some(head) {
            return Err(ObjectError::DoubleFree { address });
        }
        let next = state.head().map_or(core::ptr::null_mut(), |index| slab.object(cache, index).as_ptr());
        // SAFETY: the caller's promise.
        unsafe { cache.set_next(tail, next) };
        Ok(state.with(Some(head), state.inuse() - count))
    }

    /// Under the list lock: pushes a chain and moves the slab to the list where it belongs. `Ok(true)` makes the caller
    /// release the slab, which is on no list any more.
    ///
    /// # Safety
    /// As for [`put_chain`](Self::put_chain).
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn push_locked(
        &self,
        cache: &KmemCache,
        slabs: &mut crate::node::Slabs,
        slab: &Slab<'_>,
        head: usize,
        tail: NonNull<u8>,
        count: usize,
        how: Locking,
    ) -> Result<bool, ObjectError> {
        let frames = self.env.frames();
        loop {
            let state = slab.state();
            // SAFETY: the caller's promise.
            let new = unsafe { self.pushed(cache, slab, state, head, tail, count)? };
            let empty = new.inuse() == 0;
            // Waiting for readers means a queue, and payers go back to a cache: not every context can take those locks.
            let waits = cache.flags.contains(SlabFlags::TYPESAFE_BY_RCU) || self.has_payers(cache);
            let stays = how == Locking::Try && waits;
            // An empty slab is worth keeping only while the node has no other to allocate from.
            let others = slabs.partial.len.saturating_sub(u32::from(state.is_listed()));
            let enough = others > cache.spare_slabs.load(Ordering::Relaxed)
                || slabs.partial.len >= cache.min_partial.load(Ordering::Relaxed);
            let release = empty && !stays && enough;
            if !slab.swap_state(state, new.listed(!release)) {
                continue;
            }
            if state.is_full() {
                slabs.full.unlink(frames, slab);
                if !release {
                    slabs.partial.push_tail(frames, slab);
                }
            } else if release {
                slabs.partial.unlink(frames, slab);
            }
            if empty && !release {
                slabs.nr_empty += 1;
            }
            return Ok(release);
        }
    }

    /// Leaves an object for the next slow call that may wait for locks.
    ///
    /// # Safety
    /// The caller gives up the object.
    pub(crate) unsafe fn defer(&self, cache: &KmemCache, object: NonNull<u8>) {
        let mut head = cache.deferred.load(Ordering::Relaxed);
        loop {
            // SAFETY: the object is free and ours until the exchange succeeds.
            unsafe { cache.set_next(object, head) };
            // Release pairs with the acquire in `drain_deferred`.
            match cache.deferred.compare_exchange(head, object.as_ptr(), Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(found) => head = found,
            }
        }
    }

    /// Frees what any-context calls left behind.
    pub(crate) fn drain_deferred(&self, cache: &KmemCache) {
        if cache.deferred.load(Ordering::Relaxed).is_null() {
            return;
        }
        let mut at = cache.deferred.swap(core::ptr::null_mut(), Ordering::Acquire);
        while let Some(object) = NonNull::new(at) {
            // SAFETY: the list was detached; every object on it links to the next.
            at = unsafe { cache.next(object) };
            // SAFETY: it was given up to the list.
            let freed = unsafe {
                match (cache.is_debug(), Slab::find(self.env.frames(), object)) {
                    (true, Some((owner, slab))) => {
                        self.debug_free(cache, owner, &slab, object, Locking::Wait, Location::caller())
                    }
                    _ => self.put_object(cache, object, Locking::Wait),
                }
            };
            if let Err(error) = freed {
                self.report_refused(cache, error);
            }
        }
    }

    /// Says that an object was refused and leaked.
    #[cold]
    pub(crate) fn report_refused(&self, cache: &KmemCache, error: ObjectError) {
        self.env.context().report(format_args!("BUG {}: {error}; object leaked", cache.name()));
    }
}
