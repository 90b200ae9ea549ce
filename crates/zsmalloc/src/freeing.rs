//! A class under its lock: the end of an object.
//!
//! ```text
//! entry := dead          whoever looks from here on is told
//! retire                 is a reader inside?  no: the slot is free, frames without objects go, lists are put in order
//!                                             yes: the slot is PENDING_FREE, and the last reader comes back to reap it
//! ```

use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::class::{Class, State};
use crate::geometry::MAX_FRAMES;
use crate::handle::Entry;
use crate::locked::Locked;
use crate::meta::{BATCH, Chain};
use crate::released::Released;
use crate::zspage::{NONE, PENDING_FREE, Zspage};
use crate::{Corruption, Pool, ZsEnv};

impl<'p, E: ZsEnv> Locked<'p, '_, E> {
    /// Ends the life of an object: its entry, then its slot, unless a reader is inside. The checked form of
    /// [`Pool::free_quick`].
    pub(crate) fn free(
        &mut self,
        place: Entry,
        index: u32,
        entry: &AtomicU64,
        released: &mut Released,
    ) -> Result<(), Corruption> {
        let (number, slot) = (place.zspage(), place.slot());
        let zspage = self.zspage(number)?;
        // Ordered before `retire`, whose compare-and-swap releases it.
        entry.store(self.pool.sealed(place.dead(self.state.free_handles)).0, Ordering::Relaxed);
        self.state.free_handles = index;
        self.state.nr_free_handles += 1;
        self.state.bytes -= place.len() as u64;
        if zspage.lock().retire() {
            // SAFETY: live entries name slots that exist.
            unsafe { self.free_slot(&zspage, slot, released) };
            self.finish_free(number, &zspage, released)?;
        } else {
            // SAFETY: as above.
            unsafe { zspage.slot(slot) }.owner.store(PENDING_FREE, Ordering::Relaxed);
            self.state.pending += 1;
        }
        Ok(())
    }

    /// What comes after a slot has become free: lists, free handles, incremental compaction.
    fn finish_free(&mut self, number: u32, zspage: &Zspage<'p>, released: &mut Released) -> Result<(), Corruption> {
        self.settle(number, zspage, released)?;
        if self.state.nr_free_handles >= 2 * BATCH {
            self.shed_handles(released);
        }
        if self.pool.config.moves_per_free != 0 { self.compact_a_little(released) } else { Ok(()) }
    }

    /// Puts a batch of free handles where other classes find them.
    #[cold]
    fn shed_handles(&mut self, released: &mut Released) {
        if released.handles.is_some() {
            return;
        }
        let head = self.state.free_handles;
        let mut tail = head;
        for _ in 1..BATCH {
            let Some(next) = self.pool.next_free(tail) else { return };
            tail = next;
        }
        let Some(next) = self.pool.next_free(tail) else { return };
        self.state.free_handles = next;
        self.state.nr_free_handles -= BATCH;
        released.is_used = true;
        released.handles = Some(Chain { head, tail, len: BATCH });
    }

    /// Makes a slot free whose object is gone. [`settle`](Self::settle) comes next.
    ///
    /// # Safety
    /// The slot exists.
    #[inline(always)]
    pub(crate) unsafe fn free_slot(&mut self, zspage: &Zspage<'p>, slot: usize, released: &mut Released) {
        // SAFETY: the caller's promise.
        let empty = unsafe {
            zspage.slot(slot).owner.store(NONE, Ordering::Relaxed);
            zspage.count_object(slot, -1)
        };
        self.edit(zspage, |inner| {
            inner.set_avail(slot);
            inner.inuse = inner.inuse.wrapping_sub(1);
        });
        self.state.inuse -= 1;
        if empty {
            self.unback_empty(zspage, slot, released);
        }
    }

    /// Takes the frames of a slot from under a zspage that have no object left.
    #[cold]
    #[inline(never)]
    pub(crate) fn unback_empty(&mut self, zspage: &Zspage<'p>, slot: usize, released: &mut Released) {
        let (first, last) = zspage.shape().frames_of(slot);
        self.unback(zspage, first, released);
        if last != first {
            self.unback(zspage, last, released);
        }
    }

    /// Frees what was freed while readers were inside, if the last of them has gone.
    pub(crate) fn reap(&mut self, number: u32, released: &mut Released) -> Result<(), Corruption> {
        let zspage = self.zspage(number)?;
        if !zspage.lock().begin_reap() {
            return Ok(());
        }
        for slot in 0..zspage.shape().slots() {
            if zspage.owner(slot) == PENDING_FREE {
                self.state.pending -= 1;
                // SAFETY: counted up to the number of slots.
                unsafe { self.free_slot(&zspage, slot, released) };
            }
        }
        // What did not fit in `released` is frames without objects; they go now if at all.
        for frame in 0..zspage.shape().frames().min(MAX_FRAMES) {
            if zspage.frame(frame).is_backed() && zspage.frame(frame).live() == 0 {
                self.unback(&zspage, frame, released);
            }
        }
        self.settle(number, &zspage, released)
    }
}

impl<E: ZsEnv> Pool<E> {
    /// Ends the life of an object whose entry has been seen under the class lock: its entry, then its slot, unless a reader
    /// is inside. What is to be given back without the lock comes out in `released`. `false`: nothing
    /// has changed. Not for verifying pools.
    #[inline(always)]
    pub(crate) fn free_quick<'p>(
        &'p self,
        class: &'p Class,
        state: &mut State,
        place: Entry,
        index: u32,
        entry: &AtomicU64,
        released: &mut Released,
    ) -> bool {
        let (number, slot) = (place.zspage(), place.slot());
        let Some(header) = self.header(number) else { return false };
        // SAFETY: live entries name records that were set up for the class of their length.
        let zspage = unsafe { Zspage::new(header, class) };
        // Ordered before `retire`, whose compare-and-swap releases it.
        entry.store(place.dead(state.free_handles).0, Ordering::Relaxed);
        state.free_handles = index;
        state.nr_free_handles = state.nr_free_handles.wrapping_add(1);
        state.bytes = state.bytes.wrapping_sub(place.len() as u64);
        // SAFETY: live entries name slots that exist.
        let owner = unsafe { &zspage.slot(slot).owner };
        if !zspage.lock().retire() {
            owner.store(PENDING_FREE, Ordering::Relaxed);
            state.pending += 1;
            return true;
        }
        owner.store(NONE, Ordering::Relaxed);
        state.inuse = state.inuse.wrapping_sub(1);
        // SAFETY: as above; we hold the class lock, and the closure makes no other call.
        let empty = unsafe {
            zspage.with_inner(|inner| {
                inner.set_avail(slot);
                inner.inuse = inner.inuse.wrapping_sub(1);
            });
            zspage.count_object(slot, -1)
        };
        if empty | (number != state.current) | (state.nr_free_handles >= 2 * BATCH) | (self.config.moves_per_free != 0)
        {
            self.free_tail(class, state, number, slot, empty, released);
        }
        true
    }

    /// The part of a free that is not always due.
    #[inline(never)]
    fn free_tail<'p>(
        &'p self,
        class: &'p Class,
        state: &mut State,
        number: u32,
        slot: usize,
        empty: bool,
        released: &mut Released,
    ) {
        let mut locked = Locked { pool: self, class, state };
        let Ok(zspage) = locked.view(number) else { return };
        if empty {
            locked.unback_empty(&zspage, slot, released);
        }
        if let Err(damage) = locked.finish_free(number, &zspage, released) {
            released.damage = Some(damage);
            released.is_used = true;
        }
    }
}
