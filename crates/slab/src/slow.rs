//! Allocating behind the hot path: swapping sheaves, trading with the barn, refilling from slabs, new slabs.
//!
//! ```text
//! main ─▶ spare ─▶ barn (full for empty) ─▶ partial slabs ─▶ other nodes' partial slabs ─▶ a new slab
//! ```
//!
//! A new slab is made only when nothing free is left where the request may look, and its objects fill the sheaf; a sheaf
//! is never filled up by making slabs. Refills start small and double. The way back is `slow_free`.

use core::mem::MaybeUninit;
use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, AllocError, Gfp, NodeId};
use kmem_sync::atomic::Ordering;

use crate::backend::Locking;
use crate::cache::{CARE_INJECT, CARE_WIPE};
use crate::error::no_memory;
use crate::fast::WHOLE;
use crate::sheaf::{self, CpuSheaves, Sheaf};
use crate::slab::{Slab, owner_node};
use crate::{KmemCache, SlabEnv, SlabFlags, Slabs};

/// Objects that one slab gives to a refill at most.
const REFILL: usize = 64;

/// What a CPU's section came to when it looked for an object.
enum Found {
    Object(NonNull<u8>),
    /// Nothing free within reach. Whether there is a sheaf to fill, and how far.
    Nothing {
        has_sheaf: bool,
        batch: usize,
    },
}

impl<E: SlabEnv> Slabs<E> {
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_slow(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        requested: usize,
        caller: &'static Location<'static>,
    ) -> Result<NonNull<u8>, AllocError> {
        let care = cache.care.load(Ordering::Relaxed);
        if care & CARE_INJECT != 0 {
            self.may_fail(cache, gfp)?;
        }
        if cache.is_debug() {
            let object = self.debug_alloc(cache, gfp, None, requested, caller)?;
            return self.charge_if_due(cache, gfp, object, Locking::Wait);
        }
        let object = match self.pop_own(cache) {
            Some(object) => object,
            None => self.alloc_behind_sheaf(cache, gfp, Locking::Wait)?,
        };
        self.charge_if_due(cache, gfp, object, Locking::Wait)?;
        if care != 0 || gfp.contains(Gfp::ZERO) {
            // SAFETY: just allocated.
            unsafe { self.hand_out(cache, gfp, care, object, requested) };
        }
        Ok(object)
    }

    #[inline(never)]
    pub(crate) fn alloc_on_node(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: NodeId,
        requested: usize,
        caller: &'static Location<'static>,
    ) -> Result<NonNull<u8>, AllocError> {
        self.debug_sleep_check(gfp);
        if cache.node(node.index()).is_none() {
            return Err(AllocError::NoSuchNode(node));
        }
        let care = cache.care.load(Ordering::Relaxed);
        if care & CARE_INJECT != 0 {
            self.may_fail(cache, gfp)?;
        }
        if cache.is_debug() {
            let object = self.debug_alloc(cache, gfp, Some(node), requested, caller)?;
            return self.charge_if_due(cache, gfp, object, Locking::Wait);
        }
        let object = match self.pop_from_node(cache, node) {
            Some(object) => object,
            None => self.take_on_node(cache, gfp, node)?,
        };
        self.charge_if_due(cache, gfp, object, Locking::Wait)?;
        // SAFETY: just allocated.
        unsafe { self.hand_out(cache, gfp, care, object, requested) };
        Ok(object)
    }

    /// Zeroes or wipes a new object as the request and the cache want it.
    ///
    /// # Safety
    /// The object has just been allocated from the cache.
    pub(crate) unsafe fn hand_out(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        care: u32,
        object: NonNull<u8>,
        requested: usize,
    ) {
        if care & CARE_WIPE != 0 {
            // SAFETY: the caller's promise.
            unsafe { cache.wipe_link(object) };
        }
        // Families that zero every new object never touch constructed ones.
        let constructed = cache.ctor.is_some() && cache.flags.contains(SlabFlags::INIT_ON_ALLOC);
        if (gfp.bits() | care) & Gfp::ZERO.bits() != 0 && !constructed {
            let bytes = if cache.layout.size_offset.is_some() && requested != WHOLE {
                requested.min(cache.object_size())
            } else {
                cache.object_size()
            };
            // SAFETY: an object has `object_size` bytes, ours.
            unsafe { object.write_bytes(0, bytes) };
        }
    }

    /// The top of the main sheaf, if it lies on `node` and that is this CPU's.
    fn pop_from_node(&self, cache: &KmemCache, node: NodeId) -> Option<NonNull<u8>> {
        if node != self.env.context().local_node() {
            return None;
        }
        let frames = self.env.frames();
        let popped = cache.slots.try_with(self.env.cpu(), |slot, _| {
            // SAFETY: the slot holds its main sheaf.
            let top = NonNull::new(*unsafe { Sheaf::contents(slot.main) }.last()?)?;
            let (owner, _) = Slab::find(frames, top)?;
            if owner_node(owner) != Some(node.index()) {
                return None;
            }
            // SAFETY: as above.
            unsafe { Sheaf::pop(slot.main) }
        });
        popped.flatten()
    }

    /// One object from the slabs of `node`, or if that is only a preference, from anywhere.
    fn take_on_node(&self, cache: &KmemCache, gfp: Gfp, node: NodeId) -> Result<NonNull<u8>, AllocError> {
        self.poll_slow(cache);
        if gfp.contains(Gfp::THISNODE) {
            return self.take_one(cache, gfp, node.index(), Locking::Wait);
        }
        let gentle = (gfp | Gfp::THISNODE | Gfp::NOWARN).difference(Gfp::DIRECT_RECLAIM | Gfp::NOFAIL);
        match self.take_one(cache, gentle, node.index(), Locking::Wait) {
            Ok(object) => Ok(object),
            Err(_) => self.take_one(cache, gfp, node.index(), Locking::Wait),
        }
    }

    /// One object from the slab level: the node's partial slabs, a new slab, anything free elsewhere.
    pub(crate) fn take_one(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: usize,
        how: Locking,
    ) -> Result<NonNull<u8>, AllocError> {
        // Places beyond the count returned may have been written as well.
        let mut one = [core::ptr::null_mut()];
        let mut got = cache.node(node).map_or(0, |home| self.take_partial(cache, home, &mut one, how));
        if got == 0 {
            got = self.take_elsewhere(cache, gfp, node, &mut one, how, Reach::Spare);
        }
        let mut failure = no_memory(gfp);
        if got == 0 {
            match self.new_slab(cache, gfp, node, &mut one, how) {
                Ok(made) => got = made,
                Err(error) => {
                    failure = error;
                    got = self.take_elsewhere(cache, gfp, node, &mut one, how, Reach::Any);
                }
            }
        }
        match one.first().copied().and_then(NonNull::new) {
            Some(object) if got > 0 => Ok(object),
            _ => {
                self.report_out_of_memory(cache, gfp, node);
                Err(failure)
            }
        }
    }

    /// Objects from other nodes' partial slabs, if the request is not bound to its node.
    fn take_elsewhere(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: usize,
        out: &mut [*mut u8],
        how: Locking,
        reach: Reach,
    ) -> usize {
        if gfp.contains(Gfp::THISNODE) {
            return 0;
        }
        let nr_nodes = cache.nodes().count();
        if reach == Reach::Spare
            && (nr_nodes < 2 || cache.random() % 1024 >= cache.defrag_ratio.load(Ordering::Relaxed) as u64)
        {
            return 0;
        }
        let min_partial = cache.min_partial();
        for distance in usize::from(reach == Reach::Spare)..nr_nodes {
            let Some(other) = cache.node((node + distance) % nr_nodes) else { continue };
            if reach == Reach::Spare && other.nr_partial() <= min_partial {
                continue;
            }
            let got = self.take_partial(cache, other, out, how);
            if got > 0 {
                return got;
            }
        }
        0
    }

    /// An object when the main sheaf had none, or no sheaf could be reached.
    pub(crate) fn alloc_behind_sheaf(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        how: Locking,
    ) -> Result<NonNull<u8>, AllocError> {
        if how == Locking::Wait {
            self.poll_slow(cache);
        }
        let node = self.env.context().local_node().index();
        let found = cache.slots.try_with(self.env.cpu(), |slot, _| self.find_object(cache, slot, node, how));
        match found {
            Some(Found::Object(object)) => Ok(object),
            Some(Found::Nothing { has_sheaf, batch }) => self.make_and_fill(cache, gfp, node, has_sheaf, batch, how),
            None => self.take_one(cache, gfp, node, how),
        }
    }

    /// Inside a CPU's section: everything within reach that needs no new memory.
    fn find_object(&self, cache: &KmemCache, slot: &mut CpuSheaves, node: usize, how: Locking) -> Found {
        let cpu = self.env.cpu();
        // SAFETY: the slot holds its sheaves; what the barn gives is ours.
        if let Some(object) = unsafe { Sheaf::pop(slot.main) } {
            return Found::Object(object);
        }
        if !slot.spare.is_null() {
            // SAFETY: as above.
            if let Some(object) = unsafe { Sheaf::pop(slot.spare) } {
                core::mem::swap(&mut slot.main, &mut slot.spare);
                return Found::Object(object);
            }
        }
        let Some(home) = cache.node(node) else {
            return Found::Nothing { has_sheaf: slot.has_main(), batch: 1 };
        };
        let full = match slot.has_main() {
            // SAFETY: the main sheaf is empty, and replaced if the barn takes it.
            true => unsafe { home.barn.trade_empty(cpu, how, slot.main) },
            false => home.barn.take_full(cpu, how),
        };
        if let Some(full) = full {
            slot.main = full;
            // SAFETY: as above.
            if let Some(object) = unsafe { Sheaf::pop(full) } {
                return Found::Object(object);
            }
        }
        home.barn.note_refill(self.config.barn_full, cache.most_full());
        let least = (cache.sheaf_capacity / 8).max(2);
        slot.batch = slot.batch.saturating_mul(2).clamp(least, cache.sheaf_capacity.max(least));
        if slot.has_main() && home.nr_partial() > 0 {
            // SAFETY: what `take_partial` gives are free objects of this cache.
            unsafe {
                Sheaf::fill_with(slot.main, slot.batch, |out| self.take_partial(cache, home, out, how));
                if let Some(object) = Sheaf::pop(slot.main) {
                    return Found::Object(object);
                }
            }
        }
        Found::Nothing { has_sheaf: slot.has_main(), batch: slot.batch as usize }
    }

    /// Takes objects from where they need no new slab, or makes one; one object goes to the caller, the others into the
    /// sheaf of whatever CPU this is by then.
    fn make_and_fill(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        node: usize,
        has_sheaf: bool,
        batch: usize,
        how: Locking,
    ) -> Result<NonNull<u8>, AllocError> {
        let new_sheaf = match has_sheaf {
            true => None,
            false => self.new_sheaf(cache, gfp.nested(), how),
        };
        let mut buffer = [MaybeUninit::uninit(); REFILL];
        let wanted = if has_sheaf || new_sheaf.is_some() { batch.saturating_add(1).min(REFILL) } else { 1 };
        let out = emptied(buffer.get_mut(..wanted).unwrap_or_default());
        let mut got = cache.node(node).map_or(0, |home| self.take_partial(cache, home, out, how));
        if got == 0 {
            got = self.take_elsewhere(cache, gfp, node, out, how, Reach::Spare);
        }
        let mut failure = no_memory(gfp);
        if got == 0 {
            match self.new_slab(cache, gfp, node, out, how) {
                Ok(made) => got = made,
                Err(error) => {
                    failure = error;
                    let one = out.get_mut(..1).unwrap_or_default();
                    got = self.take_elsewhere(cache, gfp, node, one, how, Reach::Any);
                    if got == 0 {
                        self.report_out_of_memory(cache, gfp, node);
                    }
                }
            }
        }
        let first = out.get(..got).and_then(|objects| objects.first()).copied().and_then(NonNull::new);
        let mut spare_sheaf = new_sheaf;
        if let Some(extra) = out.get_mut(1..got.max(1)) {
            let mut left = extra.len();
            cache.slots.try_with(self.env.cpu(), |slot, _| {
                if !slot.has_main()
                    && let Some(sheaf) = spare_sheaf.take()
                {
                    slot.main = sheaf;
                }
                // SAFETY: the slot holds its main sheaf; the objects are free and ours.
                left -= unsafe { Sheaf::push_last(slot.main, extra) };
            });
            if left > 0 {
                // SAFETY: these are free and ours.
                unsafe { self.put_objects(cache, extra.get_mut(..left).unwrap_or_default(), how) };
            }
        }
        if let Some(sheaf) = spare_sheaf {
            self.keep_empty(cache, node, sheaf, how);
        }
        first.ok_or(failure)
    }

    /// An empty sheaf for the cache: the barn's, or a new one. `None` in caches without sheaves.
    pub(crate) fn new_sheaf(&self, cache: &KmemCache, gfp: Gfp, how: Locking) -> Option<*mut Sheaf> {
        if cache.sheaf_capacity == 0 || cache.slots.is_empty() {
            return None;
        }
        self.new_sheaf_of(cache.sheaf_capacity, gfp, how)
    }

    /// An empty sheaf with room for `capacity` objects.
    pub(crate) fn new_sheaf_of(&self, capacity: u32, gfp: Gfp, how: Locking) -> Option<*mut Sheaf> {
        let memory = self.meta_alloc(Sheaf::size_bytes(capacity), gfp, how).ok()?;
        // SAFETY: fresh memory of that size.
        Some(unsafe { Sheaf::init(memory, capacity) })
    }

    /// Offers an empty sheaf to the barn; gives it back if the barn has enough.
    pub(crate) fn offer_empty(
        &self,
        cache: &KmemCache,
        node: usize,
        sheaf: *mut Sheaf,
        how: Locking,
    ) -> Option<*mut Sheaf> {
        let kept = cache.node(node).is_some_and(|home| {
            // SAFETY: the sheaf is ours and empty.
            unsafe { home.barn.put_empty(self.env.cpu(), how, sheaf, self.config.barn_empty) }
        });
        if kept { None } else { Some(sheaf) }
    }

    /// Puts an empty sheaf into the barn, or frees it.
    pub(crate) fn keep_empty(&self, cache: &KmemCache, node: usize, sheaf: *mut Sheaf, how: Locking) {
        if let Some(sheaf) = self.offer_empty(cache, node, sheaf, how) {
            self.free_sheaf(sheaf, how);
        }
    }

    /// Frees the memory of an empty sheaf.
    pub(crate) fn free_sheaf(&self, sheaf: *mut Sheaf, how: Locking) {
        if sheaf == sheaf::none() {
            return;
        }
        if let Some(memory) = NonNull::new(sheaf.cast::<u8>()) {
            // SAFETY: the sheaf is ours; its capacity says how much memory it has.
            unsafe { self.meta_free(memory, Sheaf::size_bytes((*sheaf).cap), how) };
        }
    }

    /// What slow calls do on the way: deferred frees, and whatever waited for readers that have finished.
    pub(crate) fn poll_slow(&self, cache: &KmemCache) {
        self.drain_deferred(cache);
        self.poll_pending(cache);
    }
}

/// Places for objects, none of which is filled yet.
fn emptied(places: &mut [MaybeUninit<*mut u8>]) -> &mut [*mut u8] {
    for place in &mut *places {
        place.write(core::ptr::null_mut());
    }
    // SAFETY: all of them have just been written; the layout is the same.
    unsafe { core::slice::from_raw_parts_mut(places.as_mut_ptr().cast(), places.len()) }
}

/// How far from its node a request may take objects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// From nodes that have more than they need.
    Spare,
    /// From any node: there is no memory for a new slab.
    Any,
}
