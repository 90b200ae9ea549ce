//! Allocation, free and validation of debug caches: everything under the list lock, so that checks see one state.

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, AllocError, Gfp, NodeId, Order};
use kmem_sync::Pinned;
use kmem_sync::atomic::Ordering;

use super::{Track, TrackKind, Use, check, mark, report, set_requested, set_track};
use crate::backend::Locking;
use crate::destroy::for_each_used;
use crate::error::no_memory;
use crate::fast::WHOLE;
use crate::slab::Slab;
use crate::{KmemCache, ObjectError, SlabEnv, SlabFlags, Slabs};

pub(crate) use super::report::tracks as report_tracks;

/// What a look at the node's first partial slab came to.
enum Attempt {
    Object(NonNull<u8>),
    /// A slab failed its check and is out of service; there may be others.
    Again,
    Nothing,
}

impl<E: SlabEnv> Slabs<E> {
    fn track(&self, caller: &'static Location<'static>) -> Track {
        let cpu = Pinned::new(self.env.cpu()).map_or(u32::MAX, |pinned| pinned.id().0);
        let context = self.env.context();
        Track::new(caller, context.now_ms(), cpu, context.task_flags().bits())
    }

    /// Allocates from a debug cache.
    pub(crate) fn debug_alloc(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: Option<NodeId>,
        requested: usize,
        caller: &'static Location<'static>,
    ) -> Result<NonNull<u8>, AllocError> {
        self.debug_alloc_how(cache, gfp, node, requested, Locking::Wait, caller)
    }

    pub(crate) fn debug_alloc_how(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: Option<NodeId>,
        requested: usize,
        how: Locking,
        caller: &'static Location<'static>,
    ) -> Result<NonNull<u8>, AllocError> {
        if how == Locking::Wait {
            self.poll_slow(cache);
        }
        let wanted = node.unwrap_or_else(|| self.env.context().local_node()).index();
        let nr_nodes = cache.nodes().count().max(1);
        let mut failure = no_memory(gfp);
        let mut made = false;
        loop {
            let reach = if made && !gfp.contains(Gfp::THISNODE) { nr_nodes } else { 1 };
            for distance in 0..reach {
                while let Some(home) = cache.node((wanted + distance) % nr_nodes) {
                    let attempt = home.with(self.env.cpu(), how, |slabs| self.attempt(cache, slabs, requested, caller));
                    match attempt {
                        Some(Attempt::Object(object)) => {
                            let care = cache.care.load(Ordering::Relaxed);
                            // SAFETY: just allocated.
                            unsafe { self.hand_out(cache, gfp, care, object, requested) };
                            return Ok(object);
                        }
                        Some(Attempt::Again) => {}
                        Some(Attempt::Nothing) | None => break,
                    }
                }
            }
            if made {
                self.report_out_of_memory(cache, gfp, wanted);
                return Err(failure);
            }
            if let Err(error) = self.new_slab(cache, gfp, wanted, &mut [], how) {
                failure = error;
            }
            made = true;
        }
    }

    /// Under the list lock: one object from the first partial slab.
    fn attempt(
        &self,
        cache: &KmemCache,
        slabs: &mut crate::node::Slabs,
        requested: usize,
        caller: &'static Location<'static>,
    ) -> Attempt {
        let context = self.env.context();
        let frames = self.env.frames();
        let Some(slab) = slabs.pick(frames) else { return Attempt::Nothing };
        let state = slab.state();
        let checks = cache.flags.contains(SlabFlags::CONSISTENCY_CHECKS);
        if checks && !check::chain(context, cache, &slab, None).sound {
            self.leave_frozen(cache, slabs, &slab);
            return Attempt::Again;
        }
        let Some(index) = state.head() else {
            self.leave_frozen(cache, slabs, &slab);
            return Attempt::Again;
        };
        let object = slab.object(cache, index);
        if checks && check::object(context, cache, &slab, object, Use::Free) > 0 {
            self.leave_frozen(cache, slabs, &slab);
            return Attempt::Again;
        }
        // SAFETY: the head of the chain is free.
        let next = unsafe { cache.next(object) };
        let rest = if next.is_null() { None } else { slab.index(cache, state.total(), next) };
        let new = state.with(rest, state.inuse() + 1);
        let full = new.is_full();
        // Everything of a debug cache happens under the lock, so this cannot fail.
        if !slab.swap_state(state, new.listed(!full)) {
            return Attempt::Again;
        }
        if state.inuse() == 0 {
            slabs.nr_empty = slabs.nr_empty.saturating_sub(1);
        }
        if full {
            slabs.partial.unlink(frames, &slab);
            slabs.full.push_head(frames, &slab);
        }
        let size = if requested == WHOLE { cache.object_size() } else { requested };
        set_requested(cache, object, size);
        set_track(cache, object, TrackKind::Alloc, self.track(caller));
        mark(cache, object, Use::Allocated);
        if cache.flags.contains(SlabFlags::TRACE) {
            context.report(format_args!(
                "TRACE {} alloc {:#018x} inuse={} fp={next:p} by {caller}",
                cache.name(),
                object.addr(),
                new.inuse()
            ));
        }
        Attempt::Object(object)
    }

    fn leave_frozen(&self, cache: &KmemCache, slabs: &mut crate::node::Slabs, slab: &Slab<'_>) {
        if slab.state().inuse() == 0 {
            slabs.nr_empty = slabs.nr_empty.saturating_sub(1);
        }
        report::fix(self.env.context(), cache, format_args!("Marking all objects used"));
        self.freeze(cache, slabs, slab);
    }

    /// Frees to a debug cache.
    ///
    /// # Safety
    /// The caller gives up the object.
    pub(crate) unsafe fn debug_free(
        &self,
        cache: &KmemCache,
        owner: u64,
        slab: &Slab<'_>,
        object: NonNull<u8>,
        how: Locking,
        caller: &'static Location<'static>,
    ) -> Result<(), ObjectError> {
        let address = object.addr().get();
        let context = self.env.context();
        let node = self.node_of_slab(cache, owner, slab).ok_or(ObjectError::Corrupted { address })?;
        let freed = node.with(self.env.cpu(), how, |slabs| {
            let state = slab.state();
            let refuse = |error, what: &str| {
                report::bug(context, cache, format_args!("{what}"));
                report::slab_line(context, cache, slab);
                report::fix(context, cache, format_args!("Object at {address:#x} not freed"));
                Err(error)
            };
            let Some(index) = slab.index(cache, state.total(), object.as_ptr()) else {
                return refuse(ObjectError::NotAnObject { address }, "Invalid object pointer");
            };
            if state.is_frozen() {
                return Err(ObjectError::Corrupted { address });
            }
            if state.inuse() == 0 || state.head() == Some(index) {
                return refuse(ObjectError::DoubleFree { address }, "Object already free");
            }
            if cache.flags.contains(SlabFlags::CONSISTENCY_CHECKS) {
                let chain = check::chain(context, cache, slab, Some(index));
                if chain.found {
                    report::bug(context, cache, format_args!("Object already free"));
                    report::object(context, cache, slab, object);
                    report::fix(context, cache, format_args!("Object at {address:#x} not freed"));
                    return Err(ObjectError::DoubleFree { address });
                }
                if !chain.sound {
                    self.leave_frozen(cache, slabs, slab);
                    return Err(ObjectError::Corrupted { address });
                }
                if check::object(context, cache, slab, object, Use::Allocated) > 0 {
                    report::fix(context, cache, format_args!("Object at {address:#x} not freed"));
                    return Err(ObjectError::Corrupted { address });
                }
            }
            let keeps = cache.ctor.is_some() || cache.flags.contains(SlabFlags::TYPESAFE_BY_RCU);
            if cache.flags.contains(SlabFlags::INIT_ON_FREE) && !cache.flags.contains(SlabFlags::POISON) && !keeps {
                // SAFETY: an object has `object_size` bytes, given up by the caller.
                unsafe { object.write_bytes(0, cache.object_size()) };
            }
            set_track(cache, object, TrackKind::Free, self.track(caller));
            mark(cache, object, Use::Free);
            if cache.flags.contains(SlabFlags::TRACE) {
                context.report(format_args!(
                    "TRACE {} free {address:#018x} inuse={} by {caller}",
                    cache.name(),
                    state.inuse()
                ));
            }
            // SAFETY: given up by the caller; a chain of one.
            unsafe { self.push_locked(cache, slabs, slab, index, object, 1, how) }
        });
        match freed {
            Some(Ok(true)) => self.release_slab(cache, node, slab),
            Some(Ok(false)) => {}
            Some(Err(error)) => return Err(error),
            // SAFETY: given up by the caller.
            None => unsafe { self.defer(cache, object) },
        }
        Ok(())
    }

    /// Checks every object of the cache, in use or free, and returns how many problems were found; all are reported
    /// and repaired. `None` if the cache has no consistency checks to make. Takes the list locks.
    #[doc(alias = "validate_slab_cache")]
    pub fn validate(&self, cache: &KmemCache) -> Option<usize> {
        if !cache.flags.intersects(SlabFlags::DEBUG - SlabFlags::TRACE) {
            return None;
        }
        let context = self.env.context();
        let frames = self.env.frames();
        let mut errors = 0;
        for node in cache.nodes() {
            node.with(self.env.cpu(), Locking::Wait, |slabs| {
                for slab in slabs.partial.iter(frames).chain(slabs.full.iter(frames)) {
                    let state = slab.state();
                    if state.is_frozen() {
                        continue;
                    }
                    let mut at = state.head();
                    for _ in 0..state.free() {
                        let Some(index) = at else { break };
                        let object = slab.object(cache, index);
                        errors += check::object(context, cache, &slab, object, Use::Free);
                        // SAFETY: on the chain, so free.
                        let next = unsafe { cache.next(object) };
                        at = if next.is_null() { None } else { slab.index(cache, state.total(), next) };
                    }
                    if !check::chain(context, cache, &slab, None).sound {
                        errors += 1;
                        if !self.correct_counts(cache, &slab) {
                            self.leave_frozen(cache, slabs, &slab);
                        }
                        continue;
                    }
                    for_each_used(cache, &slab, |index| {
                        errors += check::object(context, cache, &slab, slab.object(cache, index), Use::Allocated);
                    });
                    errors += check::tail(context, cache, &slab, state.order());
                }
            });
        }
        Some(errors)
    }

    /// Sets the number of objects in use to what the chain says; `false` if it goes round in a circle.
    fn correct_counts(&self, cache: &KmemCache, slab: &Slab<'_>) -> bool {
        let state = slab.state();
        let total = state.total();
        let mut length = 0;
        let mut at = state.head();
        while let Some(index) = at
            && length < total
        {
            length += 1;
            // SAFETY: on the chain, so free.
            let next = unsafe { cache.next(slab.object(cache, index)) };
            at = if next.is_null() { None } else { slab.index(cache, total, next) };
        }
        if at.is_some() {
            return false;
        }
        if slab.swap_state(state, state.with(state.head(), total - length)) {
            report::fix(self.env.context(), cache, format_args!("Object count adjusted to {}", total - length));
        }
        true
    }

    /// Who allocated or freed an object last. `None` if it is no object of a cache that stores users.
    pub fn track_of(&self, object: NonNull<u8>, kind: TrackKind) -> Option<Track> {
        let found = self.object_of(object)?;
        super::track(found.cache, found.start, kind)
    }
}

/// Checks the bytes behind the last slot of a slab that is going away.
pub(crate) fn check_slab_padding<E: SlabEnv>(slabs: &Slabs<E>, cache: &KmemCache, slab: &Slab<'_>, order: Order) {
    check::tail(slabs.env().context(), cache, slab, order);
}
