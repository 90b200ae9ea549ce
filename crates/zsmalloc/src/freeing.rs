//! The end of an object.
//!
//! ```text
//! entry := dead          by compare-and-swap: whoever looks from here on is told, and one caller has freed it
//! retire                 is a reader inside?  no: the slot is free, frames without objects go, lists are put in order
//!                                             yes: the slot is PENDING_FREE, and the last reader comes back to reap it
//! ```
//! A CPU keeps one slot of its current zspage of a class [hot](crate::class::Hot): the next store takes it as it is, without
//! any bookkeeping. Whoever else enters the state's section puts it back first.
//!
//! The second half needs the section of the zspage's owner. On another CPU than the owner's it is put off, see
//! [`shard`](crate::shard).

use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::{Cpu, CpuId, Pinned};

use crate::class::{Handles, Hot, State};
use crate::geometry::MAX_FRAMES;
use crate::handle::{Entry, Handle};
use crate::locked::Locked;
use crate::meta::{BATCH, Chain};
use crate::released::Released;
use crate::shard::{Part, Shard, ShardId};
use crate::zspage::{NONE, Owner, PENDING_FREE, Zspage};
use crate::{AccessError, Corruption, Pool, ZsEnv};

/// What became of a free on the running CPU.
enum Freed {
    Done,
    /// Dead, and there are enough of those that lie elsewhere to settle them.
    Settle,
    Stale,
    /// It takes the slower way.
    Elsewhere,
}

/// Whether a slot could be kept hot.
enum Hotness {
    Hot,
    /// The object is dead, but somebody reads its zspage.
    Read,
    /// No; nothing has happened.
    Cold,
}

impl<'p, E: ZsEnv> Locked<'p, '_, E> {
    /// Ends the life of an object, unless its entry has changed: `false`, and nothing has happened.
    pub(crate) fn free(
        &mut self,
        place: Entry,
        index: u32,
        entry: &AtomicU64,
        released: &mut Released,
    ) -> Result<bool, Corruption> {
        let number = place.zspage();
        let zspage = self.zspage(number)?;
        let dead = self.pool.sealed(place.dead(self.handles.head));
        if entry.compare_exchange(place.0, dead.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Ok(false);
        }
        self.push_handle(index);
        self.retire(number, &zspage, place, released).map(|()| true)
    }

    /// Frees the slot that was kept hot.
    #[cold]
    #[inline(never)]
    pub(crate) fn end_hot(&mut self) {
        let hot = core::mem::replace(&mut self.state.hot, Hot::none());
        let place = hot.life;
        // SAFETY: hot slots' handles are bits of live ones.
        let index = unsafe { Handle::of_bits(hot.handle) }.index();
        let (Some(entry), Ok(zspage)) = (self.pool.entry(index), self.view(place.zspage())) else { return };
        let dead = Entry(entry.load(Ordering::Relaxed));
        entry.store(dead.chained(self.handles.head).0, Ordering::Relaxed);
        self.push_handle(index);
        // SAFETY: hot slots exist.
        unsafe {
            zspage.slot(place.slot()).owner.store(NONE, Ordering::Relaxed);
            // A frame without objects is dealt with by whoever has just freed the last one.
            zspage.count_object(place.slot(), -1);
        }
        self.edit(&zspage, |inner| {
            inner.set_avail(place.slot());
            inner.inuse = inner.inuse.wrapping_sub(1);
        });
        self.counts.inuse.add(-1);
    }

    /// Frees the slot of an object that has been dead for some time.
    pub(crate) fn free_dead(&mut self, index: u32, released: &mut Released) -> Result<(), Corruption> {
        let entry = self.pool.entry(index).ok_or(self.pool.bad_entry())?;
        let place = Entry(entry.load(Ordering::Relaxed));
        let zspage = self.zspage(place.zspage())?;
        entry.store(place.chained(self.handles.head).0, Ordering::Relaxed);
        self.push_handle(index);
        self.retire(place.zspage(), &zspage, place, released)
    }

    fn push_handle(&mut self, index: u32) {
        *self.handles = Handles { head: index, nr: self.handles.nr.wrapping_add(1) };
    }

    /// Frees the slot of a dead object, or leaves that to its last reader.
    fn retire(
        &mut self,
        number: u32,
        zspage: &Zspage<'p>,
        place: Entry,
        released: &mut Released,
    ) -> Result<(), Corruption> {
        let slot = place.slot();
        self.counts.bytes.add(-(place.len() as i64));
        if zspage.lock().retire() {
            // SAFETY: entries of objects name slots that exist.
            unsafe { self.free_slot(zspage, slot, released) };
            self.finish_free(number, zspage, released)
        } else {
            // SAFETY: as above.
            unsafe { zspage.slot(slot) }.owner.store(PENDING_FREE, Ordering::Relaxed);
            self.counts.pending.add(1);
            Ok(())
        }
    }

    /// What comes after a slot has become free: lists, free handles, incremental compaction.
    fn finish_free(&mut self, number: u32, zspage: &Zspage<'p>, released: &mut Released) -> Result<(), Corruption> {
        self.settle(number, zspage, released)?;
        if self.handles.nr >= 2 * BATCH {
            self.shed_handles(released);
        }
        if self.pool.config.moves_per_free != 0 { self.compact_a_little(released) } else { Ok(()) }
    }

    /// Puts a batch of free handles where others find them.
    #[cold]
    fn shed_handles(&mut self, released: &mut Released) {
        if released.handles.is_some() {
            return;
        }
        let head = self.handles.head;
        let mut tail = head;
        for _ in 1..BATCH {
            let Some(next) = self.pool.next_free(tail) else { return };
            tail = next;
        }
        let Some(next) = self.pool.next_free(tail) else { return };
        *self.handles = Handles { head: next, nr: self.handles.nr.saturating_sub(BATCH) };
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
        self.counts.inuse.add(-1);
        if empty {
            self.unback_empty(zspage, slot, released);
        }
    }

    /// Takes the frames of a slot from under a zspage that have no object left.
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
                self.counts.pending.add(-1);
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
    /// Frees an object. Its memory can be used again at once, or when the last reader of its zspage leaves; if it was stored
    /// on another CPU, when a few dozen such frees are [settled](Self::settle_frees).
    ///
    /// Constant time, incremental compaction included. Contexts: any with interrupts on, but interrupt handlers; never sleeps.
    ///
    /// # Errors
    /// [`AccessError`]: `Foreign`, `Stale`, `Corrupt`.
    #[doc(alias = "zs_free")]
    #[inline(always)]
    pub fn free(&self, handle: Handle) -> Result<(), AccessError> {
        let entry = self.entry_of(handle)?;
        if self.free_hot(handle, entry) { Ok(()) } else { self.free_cold(handle, entry) }
    }

    /// Frees an object on the running CPU if its slot can be kept hot. `false`: nothing has happened.
    #[inline(never)]
    fn free_hot(&self, handle: Handle, entry: &AtomicU64) -> bool {
        let Some(pin) = Pinned::quick(self.env.cpu()) else { return false };
        let Some(part) = self.part(pin.id()) else { return false };
        // SAFETY: pinned to the CPU that the part belongs to.
        match unsafe { part.slot.try_with::<E::Cpu, _>(|_| self.free_hot_in(part, handle, entry)) } {
            Some(Hotness::Hot) => true,
            Some(Hotness::Read) => {
                drop(pin);
                self.settle_one(handle.index())
            }
            _ => false,
        }
    }

    /// [`free_hot`](Self::free_hot) inside the CPU's section.
    #[inline(always)]
    fn free_hot_in(&self, part: &Part, handle: Handle, entry: &AtomicU64) -> Hotness {
        let place = Entry(entry.load(Ordering::Acquire));
        if !place.fits(handle) {
            return Hotness::Cold;
        }
        let Some(local) = part.local(self.geometry.class_of(place.len())) else { return Hotness::Cold };
        // SAFETY: inside the section nobody else reaches the state, and nothing else is called before `state` is done with.
        let state = local.state.with_mut(|state| unsafe { &mut *state });
        if state.quiet != place.zspage() || !state.hot.is_empty() {
            return Hotness::Cold;
        }
        // SAFETY: the quiet zspage is the current one, whose record stays as long as the pool.
        let header = unsafe { &*state.current_header };
        let (size, frames_at) = (state.size, state.frames_at);
        // SAFETY: the zspage is this state's, which has its slot size and layout, and live entries name slots that exist.
        let Some(bytes) = (unsafe { Zspage::bytes_beside_others(header, place.slot(), size, frames_at) }) else {
            return Hotness::Cold;
        };
        if entry.compare_exchange(place.0, place.dead_in_place().0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Hotness::Cold;
        }
        if !header.lock.is_idle() {
            return Hotness::Read;
        }
        local.counts.bytes.add(-(place.len() as i64));
        state.hot = Hot { entry, handle: handle.next_life(), life: place.next_life(), bytes, header };
        Hotness::Hot
    }

    /// Settles a dead object.
    #[cold]
    #[inline(never)]
    fn settle_one(&self, index: u32) -> bool {
        while let Some(header) = self.entry(index).and_then(|entry| {
            // The entry keeps its place until the slot is free.
            self.header(Entry(entry.load(Ordering::Acquire)).zspage())
        }) {
            let mut released = Released::new();
            let result = self.with_owner(header, |mut locked| locked.free_dead(index, &mut released));
            self.release(&mut released);
            match result {
                Some(Ok(())) => break,
                Some(Err(damage)) => {
                    self.report_damage(damage);
                    break;
                }
                None => self.env.cpu().relax(),
            }
        }
        true
    }

    /// Frees an object on the running CPU, or makes one of another CPU dead; on to the slower way if neither can be.
    #[inline(never)]
    fn free_cold(&self, handle: Handle, entry: &AtomicU64) -> Result<(), AccessError> {
        let mut released = Released::new();
        let freed = match Pinned::new(self.env.cpu()) {
            Some(pin) if let Some(part) = self.part(pin.id()) => {
                let free = |shard: &mut Shard| self.free_local(pin.id(), part, shard, handle, entry, &mut released);
                // SAFETY: pinned to the CPU that the part belongs to.
                unsafe { part.slot.try_with::<E::Cpu, _>(free) }.unwrap_or(Freed::Elsewhere)
            }
            _ => Freed::Elsewhere,
        };
        match freed {
            Freed::Done => {
                self.release(&mut released);
                released.take_damage().map_or(Ok(()), |damage| Err(AccessError::Corrupt(damage)))
            }
            Freed::Settle => {
                self.settle_mine();
                Ok(())
            }
            Freed::Stale => Err(AccessError::Stale(handle)),
            Freed::Elsewhere => self.free_slow(handle, entry),
        }
    }

    /// Frees an object of the running CPU, whose section this is, or makes one of another CPU dead.
    #[inline(always)]
    fn free_local<'p>(
        &'p self,
        cpu: CpuId,
        part: &'p Part,
        shard: &mut Shard,
        handle: Handle,
        entry: &AtomicU64,
        released: &mut Released,
    ) -> Freed {
        let place = Entry(entry.load(Ordering::Acquire));
        if !place.fits(handle) {
            return Freed::Stale;
        }
        let (number, slot) = (place.zspage(), place.slot());
        let Some(header) = self.header(number) else { return Freed::Elsewhere };
        let owner = Owner(header.owner.load(Ordering::Relaxed));
        if owner.shard() != ShardId::of(cpu) {
            return self.free_remote(owner, shard, handle, entry, place);
        }
        let Some(local) = part.local(owner.class()) else { return Freed::Elsewhere };
        let dead = place.dead(shard.handles.head);
        if entry.compare_exchange(place.0, dead.0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Freed::Elsewhere;
        }
        local.counts.bytes.add(-(place.len() as i64));
        shard.handles = Handles { head: handle.index(), nr: shard.handles.nr.wrapping_add(1) };
        // SAFETY: inside the section nobody else reaches the state.
        let state: &State = local.state.with(|state| unsafe { &*state });
        // SAFETY: the zspage is one of this state's, which has its slot size and layout; live entries name slots that exist.
        let owner_of_slot = unsafe { &Zspage::slot_of(header, slot).owner };
        if !header.lock.retire() {
            owner_of_slot.store(PENDING_FREE, Ordering::Relaxed);
            local.counts.pending.add(1);
            return Freed::Done;
        }
        owner_of_slot.store(NONE, Ordering::Relaxed);
        local.counts.inuse.add(-1);
        // SAFETY: inside the section, and the closure makes no other call; as above.
        let left = unsafe {
            header.inner.with_mut(|inner| {
                let inner = &mut *inner;
                inner.set_avail(slot);
                inner.inuse = inner.inuse.wrapping_sub(1);
            });
            Zspage::vacate(header, slot, state.size, state.frames_at)
        };
        // What is kept hot must not be the last on its frame.
        let empty = left <= u64::from(!state.hot.is_empty());
        if empty | (state.quiet != number) | (shard.handles.nr >= 2 * BATCH) {
            self.free_tail(cpu, part, shard, owner, number, empty.then_some(slot), released);
        }
        Freed::Done
    }

    /// Makes an object that lies elsewhere dead and notes it.
    #[inline(never)]
    fn free_remote(&self, owner: Owner, shard: &mut Shard, handle: Handle, entry: &AtomicU64, place: Entry) -> Freed {
        if owner == Owner::NOBODY || owner.shard() == ShardId::HOME {
            return Freed::Elsewhere;
        }
        // One half of the handshake in `LockWord::retire`; the other comes when the slot is settled.
        if entry.compare_exchange(place.0, place.dead_in_place().0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Freed::Elsewhere;
        }
        if shard.push_dead(handle.index()) { Freed::Settle } else { Freed::Done }
    }

    /// The part of a free that is not always due.
    #[expect(clippy::too_many_arguments, reason = "what the fast part knows already")]
    fn free_tail<'p>(
        &'p self,
        cpu: CpuId,
        part: &'p Part,
        shard: &mut Shard,
        owner: Owner,
        number: u32,
        emptied: Option<usize>,
        released: &mut Released,
    ) {
        let Some(class) = self.class(owner.class()) else { return };
        // SAFETY: the caller is inside the part's section.
        let result = unsafe {
            self.in_shard(ShardId::of(cpu), part, shard, class, |mut locked| {
                let zspage = locked.view(number)?;
                if let Some(slot) = emptied {
                    locked.unback_empty(&zspage, slot, released);
                }
                locked.finish_free(number, &zspage, released)
            })
        };
        if let Some(Err(damage)) = result {
            released.set_damage(damage);
        }
    }

    /// Frees an object inside the section of whoever owns it.
    fn free_slow(&self, handle: Handle, entry: &AtomicU64) -> Result<(), AccessError> {
        loop {
            let mut released = Released::new();
            let place = Entry(entry.load(Ordering::Acquire));
            let found = self.find(place, handle)?;
            let index = handle.index();
            let done = if self.verify {
                // All zspages of a verifying pool are shared.
                self.locked(found.class, |mut locked| {
                    if entry.load(Ordering::Relaxed) != place.0 {
                        return Ok(false);
                    }
                    self.verify_place(place, index, locked.class)?;
                    locked.free(place, index, entry, &mut released)
                })
            } else {
                let free = |mut locked: Locked<'_, '_, E>| {
                    if entry.load(Ordering::Relaxed) != place.0 {
                        return Ok(false);
                    }
                    locked.free(place, index, entry, &mut released)
                };
                self.with_owner(found.zspage.header(), free).unwrap_or(Ok(false))
            };
            self.release(&mut released);
            match done {
                Ok(true) => return Ok(()),
                Ok(false) => self.env.cpu().relax(),
                Err(damage) => return Err(AccessError::Corrupt(damage)),
            }
        }
    }
}
