//! Many objects in one call: copied from and to the main sheaf as long as that goes, then piece by piece.

use core::panic::Location;
use core::ptr::{self, NonNull};

use kmem_gfp::{AllocContext, AllocError, FrameTable, Gfp, OwnerTag, PAGE_SHIFT};
use kmem_sync::Pinned;
use kmem_sync::atomic::Ordering;

use crate::backend::Locking;
use crate::cache::CARE_INJECT;
use crate::fast::{WHOLE, on_main};
use crate::sheaf::{CpuSheaves, Sheaf};
use crate::slab::owner_cache;
use crate::{BulkFreeError, KmemCache, ObjectError, SlabEnv, Slabs};

/// `Option<NonNull<u8>>` is a nullable pointer, by guarantee.
fn as_pointers(objects: &mut [Option<NonNull<u8>>]) -> &mut [*mut u8] {
    // SAFETY: same size, alignment and valid bit patterns.
    unsafe { core::slice::from_raw_parts_mut(objects.as_mut_ptr().cast(), objects.len()) }
}

/// Moves up to `out.len()` objects from the top of a sheaf into `out`.
///
/// # Safety
/// The caller holds the sheaf.
#[inline(always)]
unsafe fn pop_many(sheaf: *mut Sheaf, out: &mut [*mut u8]) -> usize {
    // SAFETY: the objects copied lie below `len`; the sheaf's memory and `out` do not overlap.
    unsafe {
        let len = (*sheaf).len as usize;
        let count = len.min(out.len());
        if count == 0 {
            // Perhaps the shared sheaf without room, which is never written.
            return 0;
        }
        ptr::copy_nonoverlapping(Sheaf::objects(sheaf).add(len - count), out.as_mut_ptr(), count);
        (*sheaf).len = (len - count) as u32;
        count
    }
}

impl<E: SlabEnv> Slabs<E> {
    /// Fills all of `objects`, or none: on failure everything obtained is freed again and `objects` is all `None`. What it
    /// held before is overwritten. Contexts as for [`alloc`](Self::alloc).
    ///
    /// # Errors
    /// As for [`alloc`](Self::alloc).
    #[doc(alias = "kmem_cache_alloc_bulk")]
    #[inline]
    #[track_caller]
    pub fn alloc_bulk(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        objects: &mut [Option<NonNull<u8>>],
    ) -> Result<(), AllocError> {
        self.alloc_many(cache, gfp, objects, true, Location::caller())
    }

    /// [`alloc_bulk`](Self::alloc_bulk) of objects that are charged one by one later, as they are handed out.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn set_aside(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        objects: &mut [Option<NonNull<u8>>],
    ) -> Result<(), AllocError> {
        self.alloc_many(cache, gfp.difference(Gfp::ACCOUNT), objects, false, Location::caller())
    }

    #[inline(always)]
    fn alloc_many(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        objects: &mut [Option<NonNull<u8>>],
        pays: bool,
        caller: &'static Location<'static>,
    ) -> Result<(), AllocError> {
        self.debug_sleep_check(gfp);
        let out = as_pointers(objects);
        let care = cache.care.load(Ordering::Relaxed);
        let mut got = 0;
        if care & CARE_INJECT == 0 {
            // SAFETY: `hot` keeps invariant 2 of `KmemCache`; in a fast section the main sheaf is ours.
            let popped =
                unsafe { on_main(Pinned::quick(self.env.cpu()), &cache.hot, |main, _| Some(pop_many(main, out))) };
            got = popped.unwrap_or(0);
            if got == out.len() && gfp.bits() & Self::SLOW_FLAGS.bits() == 0 && care == 0 {
                return Ok(());
            }
        }
        self.alloc_bulk_slow(cache, gfp, objects, got, pays, caller)
    }

    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments)]
    fn alloc_bulk_slow(
        &self,
        cache: &KmemCache,
        gfp: Gfp,
        objects: &mut [Option<NonNull<u8>>],
        mut got: usize,
        pays: bool,
        caller: &'static Location<'static>,
    ) -> Result<(), AllocError> {
        let care = cache.care.load(Ordering::Relaxed);
        let mut result = if care & CARE_INJECT != 0 { self.may_fail(cache, gfp) } else { Ok(()) };
        if cache.is_debug() {
            for place in objects.iter_mut().skip(got) {
                match result.and_then(|()| self.debug_alloc(cache, gfp, None, WHOLE, caller)) {
                    Ok(object) => {
                        *place = Some(object);
                        got += 1;
                    }
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
            }
        } else if result.is_ok() {
            result = self.fill(cache, gfp, as_pointers(objects), &mut got);
        }
        if result.is_ok() && pays && Self::is_charged(cache, gfp) {
            result = self.charge_all(cache, gfp, objects);
        }
        if result.is_ok() && !cache.is_debug() && (care != 0 || gfp.contains(Gfp::ZERO)) {
            for object in objects.iter().copied().flatten() {
                // SAFETY: just allocated.
                unsafe { self.hand_out(cache, gfp, care, object, WHOLE) };
            }
        }
        if result.is_err() {
            if let Some(obtained) = objects.get_mut(..got) {
                // SAFETY: nobody has seen them.
                let freed = unsafe { self.free_bulk(cache, obtained) };
                debug_assert!(freed.is_ok(), "{freed:?}");
            }
            objects.fill(None);
        }
        result
    }

    /// Fills `out` behind its first `got` places from wherever objects are.
    fn fill(&self, cache: &KmemCache, gfp: Gfp, out: &mut [*mut u8], got: &mut usize) -> Result<(), AllocError> {
        self.poll_slow(cache);
        let cpu = self.env.cpu();
        let node = self.env.context().local_node().index();
        if let Some(rest) = out.get_mut(*got..) {
            let moved = cache.slots.try_with(cpu, |slot, _| self.drain_sheaves(cache, slot, node, rest));
            *got += moved.unwrap_or(0);
        }
        if *got < out.len()
            && let Some(home) = cache.node(node)
        {
            home.barn.note_refill(self.config.barn_full, cache.most_full());
        }
        while let Some(rest) = out.get_mut(*got..)
            && !rest.is_empty()
        {
            let taken = cache.node(node).map_or(0, |home| self.take_partial(cache, home, rest, Locking::Wait));
            *got += match taken {
                0 => match self.new_slab(cache, gfp, node, rest, Locking::Wait) {
                    Ok(made) => made,
                    Err(error) => {
                        // One at a time may still find something on other nodes; it reports as well.
                        let object = self.take_one(cache, gfp, node, Locking::Wait).map_err(|_| error)?;
                        if let Some(place) = rest.first_mut() {
                            *place = object.as_ptr();
                        }
                        1
                    }
                },
                taken => taken,
            };
        }
        Ok(())
    }

    /// Inside a CPU's section: objects from main, spare and the barn's full sheaves.
    fn drain_sheaves(&self, cache: &KmemCache, slot: &mut CpuSheaves, node: usize, out: &mut [*mut u8]) -> usize {
        let cpu = self.env.cpu();
        // SAFETY: the slot holds its main sheaf.
        let mut got = unsafe { pop_many(slot.main, out) };
        if !slot.spare.is_null()
            && let Some(rest) = out.get_mut(got..)
        {
            // SAFETY: the slot holds its spare.
            got += unsafe { pop_many(slot.spare, rest) };
        }
        let Some(home) = cache.node(node) else { return got };
        while got < out.len() && slot.has_main() {
            // SAFETY: the main sheaf is empty, for `out` still has room; it is replaced if the barn takes it.
            let Some(full) = (unsafe { home.barn.trade_empty(cpu, Locking::Wait, slot.main) }) else { break };
            slot.main = full;
            let Some(rest) = out.get_mut(got..) else { break };
            // SAFETY: the slot holds its main sheaf.
            got += unsafe { pop_many(slot.main, rest) };
        }
        got
    }

    /// Takes many objects of one cache back; `None` places are skipped. The order of `objects` may change. Any context but
    /// NMI.
    ///
    /// # Safety
    /// As for [`free`](Self::free), for each object.
    ///
    /// # Errors
    /// [`BulkFreeError`] if some were refused (and leaked); the others have been taken back.
    #[doc(alias = "kmem_cache_free_bulk")]
    #[inline]
    #[track_caller]
    pub unsafe fn free_bulk(
        &self,
        cache: &KmemCache,
        objects: &mut [Option<NonNull<u8>>],
    ) -> Result<(), BulkFreeError> {
        let pushed = self.push_many(cache, as_pointers(objects));
        if pushed == objects.len() {
            return Ok(());
        }
        // SAFETY: given up by the caller.
        unsafe { self.free_bulk_slow(cache, objects.get_mut(pushed..).unwrap_or_default(), Location::caller()) }
    }

    /// Moves leading objects into the main sheaf as far as it has room and they are this cache's, on this node.
    #[inline(always)]
    fn push_many(&self, cache: &KmemCache, objects: &mut [*mut u8]) -> usize {
        let frames = self.env.frames();
        // SAFETY: `hot` keeps invariant 2 of `KmemCache`; in a fast section the main sheaf is ours; the objects are checked
        // and copied into its room.
        let pushed = unsafe {
            on_main(Pinned::quick(self.env.cpu()), &cache.hot, |main, owner| {
                let len = (*main).len as usize;
                let room = (*main).cap as usize - len;
                let count = leading(frames, *owner, objects.get(..objects.len().min(room))?);
                if count > 0 {
                    ptr::copy_nonoverlapping(objects.as_ptr(), Sheaf::objects(main).add(len), count);
                    (*main).len = (len + count) as u32;
                }
                Some(count)
            })
        };
        pushed.unwrap_or(0)
    }

    #[cold]
    #[inline(never)]
    unsafe fn free_bulk_slow(
        &self,
        cache: &KmemCache,
        objects: &mut [Option<NonNull<u8>>],
        caller: &'static Location<'static>,
    ) -> Result<(), BulkFreeError> {
        let mut refused = 0;
        let mut first = None;
        let mut rest = objects;
        while let Some((object, behind)) = rest.split_first_mut() {
            if let Some(object) = *object {
                // SAFETY: given up by the caller.
                if let Err(error) = unsafe { self.free_slow(cache, object, caller) } {
                    refused += 1;
                    first.get_or_insert(error);
                }
            }
            let pushed = self.push_many(cache, as_pointers(behind));
            rest = behind.get_mut(pushed..).unwrap_or_default();
        }
        first.map_or(Ok(()), |first| Err(BulkFreeError { refused, first }))
    }

    /// Takes many objects of any caches back; `None` places are skipped.
    ///
    /// # Safety
    /// As for [`free_any`](Self::free_any), for each object.
    ///
    /// # Errors
    /// [`BulkFreeError`] if some were refused.
    #[doc(alias = "kfree_bulk")]
    #[track_caller]
    pub unsafe fn free_bulk_any(&self, objects: &mut [Option<NonNull<u8>>]) -> Result<(), BulkFreeError> {
        let mut refused = 0;
        let mut first = None;
        let mut rest = objects;
        while !rest.is_empty() {
            let cache = rest.first().copied().flatten().map(|object| self.cache_of(object));
            let run = rest
                .iter()
                .take_while(|object| {
                    object.map(|object| self.cache_of(object).map(ptr::from_ref)) == cache.map(|c| c.map(ptr::from_ref))
                })
                .count()
                .max(1);
            let (head, tail) = rest.split_at_mut(run);
            match cache {
                // SAFETY: given up by the caller.
                Some(Some(cache)) => match unsafe { self.free_bulk(cache, head) } {
                    Ok(()) => {}
                    Err(error) => {
                        refused += error.refused;
                        first.get_or_insert(error.first);
                    }
                },
                Some(None) => {
                    refused += head.len();
                    let address = head.first().copied().flatten().map_or(0, |object| object.addr().get());
                    first.get_or_insert(ObjectError::NotSlab { address });
                }
                None => {}
            }
            rest = tail;
        }
        first.map_or(Ok(()), |first| Err(BulkFreeError { refused, first }))
    }

    /// The cache that an object belongs to; `None` for memory that is no slab's.
    #[doc(alias = "virt_to_cache")]
    #[inline(always)]
    pub fn cache_of(&self, object: NonNull<u8>) -> Option<&KmemCache> {
        let (_, words) = self.env.frames().lookup(object.addr().get())?;
        let owner = words.owner.load(Ordering::Relaxed);
        // SAFETY: the frame belongs to a slab, so its cache lives.
        if OwnerTag::of(owner) == OwnerTag::Slab { Some(unsafe { owner_cache(owner) }) } else { None }
    }
}

/// How many leading objects lie in frames with the owner word `owner`.
#[inline(always)]
fn leading<F: FrameTable>(frames: &F, owner: u64, objects: &[*mut u8]) -> usize {
    // Bits that are set in one address and clear in another: nothing above the page if all are on one page.
    let (any, all) = objects.iter().fold((0, usize::MAX), |(any, all), at| (any | at.addr(), all & at.addr()));
    if (any ^ all) >> PAGE_SHIFT == 0 && is_owned(frames, owner, all) {
        return objects.len();
    }
    leading_by_page(frames, owner, objects)
}

/// [`leading`] for objects on several pages: looks a frame up whenever the page changes.
#[inline(never)]
fn leading_by_page<F: FrameTable>(frames: &F, owner: u64, objects: &[*mut u8]) -> usize {
    let mut page = usize::MAX;
    let mut is_other = |object: &*mut u8| {
        let before = core::mem::replace(&mut page, object.addr() >> PAGE_SHIFT);
        page != before && !is_owned(frames, owner, object.addr())
    };
    objects.iter().position(&mut is_other).unwrap_or(objects.len())
}

/// Whether the frame of an address carries the owner word `owner`.
#[inline(always)]
fn is_owned<F: FrameTable>(frames: &F, owner: u64, address: usize) -> bool {
    frames.lookup(address).is_some_and(|(_, words)| words.owner.load(Ordering::Relaxed) == owner)
}
