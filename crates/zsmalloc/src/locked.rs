//! A class under its lock: finding slots, freeing them, giving frames and zspages back.
//!
//! Nothing here allocates or frees memory: what is needed comes in with a [`Stash`], what is no longer needed leaves in a
//! [`Released`], and both are dealt with outside the lock.

use core::ptr::NonNull;

use kmem_gfp::Pfn;
use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::class::{CURRENT, Class, FULL, GROW, SOURCE, State, list_of};
use crate::geometry::MAX_FRAMES;
use crate::handle::Entry;
use crate::meta::{BATCH, Chain};
use crate::zspage::{FIRST_SPECIAL, FrameWord, Inner, NO_CLASS, NONE, PENDING_FREE, RESERVED, Zspage, frame_at};
use crate::{Corruption, Pool, ZsEnv};

/// The most objects that one locked section moves.
pub(crate) const MOVES_PER_SECTION: usize = 4;
/// A free empties at most two frames, and so does a move; two more are kept from section to section of a compaction.
const MAX_RELEASED: usize = 2 + 2 * MOVES_PER_SECTION;

/// What a locked section leaves to be given back. The pool still counts the frames.
#[derive(Debug)]
pub(crate) struct Released {
    frames: [Pfn; MAX_RELEASED],
    nr_frames: usize,
    records: [u32; MAX_RELEASED],
    nr_records: usize,
    handles: Option<Chain>,
}

impl Released {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        Self {
            frames: [Pfn(0); MAX_RELEASED],
            nr_frames: 0,
            records: [NONE; MAX_RELEASED],
            nr_records: 0,
            handles: None,
        }
    }

    pub(crate) fn push_frame(&mut self, pfn: Pfn) {
        if let Some(frame) = self.frames.get_mut(self.nr_frames) {
            *frame = pfn;
            self.nr_frames += 1;
        }
    }

    fn push_record(&mut self, record: u32) {
        if let Some(slot) = self.records.get_mut(self.nr_records) {
            *slot = record;
            self.nr_records += 1;
        }
    }

    fn is_full(&self) -> bool {
        self.nr_frames == MAX_RELEASED
    }

    pub(crate) fn nr_frames(&self) -> usize {
        self.nr_frames
    }

    /// Takes a frame out again, to put it to another use.
    pub(crate) fn pop_frame(&mut self) -> Option<Pfn> {
        self.nr_frames = self.nr_frames.checked_sub(1)?;
        self.frames.get(self.nr_frames).copied()
    }

    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.nr_frames == 0 && self.nr_records == 0 && self.handles.is_none()
    }
}

/// What a store brings into the lock: memory that it allocated before.
#[derive(Debug)]
pub(crate) struct Stash {
    pub(crate) frames: [Option<(Pfn, NonNull<u8>)>; 2],
    pub(crate) record: Option<u32>,
    pub(crate) handles: Option<Chain>,
}

impl Stash {
    pub(crate) const fn empty() -> Self {
        Self { frames: [None; 2], record: None, handles: None }
    }

    fn nr_frames(&self) -> usize {
        self.frames.iter().flatten().count()
    }

    fn take_frame(&mut self) -> Option<(Pfn, NonNull<u8>)> {
        self.frames.iter_mut().find_map(Option::take)
    }
}

/// A slot reserved for an object, with a handle.
#[derive(Debug)]
pub(crate) struct Reserved<'p> {
    pub(crate) zspage: Zspage<'p>,
    pub(crate) number: u32,
    pub(crate) slot: usize,
    pub(crate) index: u32,
    pub(crate) entry: &'p AtomicU64,
    pub(crate) generation: u64,
}

/// What a store still needs.
#[derive(Debug)]
pub(crate) enum Reserve<'p> {
    Done(Reserved<'p>),
    Handles,
    Record,
    Frames(usize),
}

/// A class whose lock is held.
pub(crate) struct Locked<'p, 's, E: ZsEnv> {
    pub(crate) pool: &'p Pool<E>,
    pub(crate) class: &'p Class,
    pub(crate) state: &'s mut State,
}

impl<'p, E: ZsEnv> Locked<'p, '_, E> {
    /// The zspage with a number that live metadata of this class holds.
    #[inline(always)]
    pub(crate) fn zspage(&self, number: u32) -> Result<Zspage<'p>, Corruption> {
        if self.pool.verify {
            self.verify(number)?;
        }
        self.view(number)
    }

    #[inline(always)]
    pub(crate) fn view(&self, number: u32) -> Result<Zspage<'p>, Corruption> {
        let header = self.pool.header(number).ok_or(Corruption { zspage: number, what: "zspage number" })?;
        // SAFETY: numbers in entries and lists of this class name records that were set up for it.
        Ok(unsafe { Zspage::new(header, self.class.shape) })
    }

    /// A copy of a zspage's inner part.
    #[inline(always)]
    pub(crate) fn inner(&self, zspage: &Zspage<'p>) -> Inner {
        // SAFETY: we hold the class lock, and the closure makes no other call.
        unsafe { zspage.with_inner(|inner| *inner) }
    }

    /// Changes a zspage's inner part.
    #[inline(always)]
    pub(crate) fn edit<R>(&self, zspage: &Zspage<'p>, f: impl FnOnce(&mut Inner) -> R) -> R {
        // SAFETY: we hold the class lock, and closures given to this make no other call.
        let result = unsafe { zspage.with_inner(f) };
        if self.pool.verify {
            self.seal(zspage);
        }
        result
    }

    /// Reserves a slot and a handle for an object of `len` bytes, if that takes no memory.
    #[inline(always)]
    pub(crate) fn reserve_fast(&mut self, len: usize) -> Option<Reserved<'p>> {
        let (number, index) = (self.state.current, self.state.free_handles);
        if number == NONE || index == NONE || self.pool.verify {
            return None;
        }
        let zspage = self.view(number).ok()?;
        self.take_slot(number, zspage, len)
    }

    /// Takes the first slot of the current zspage and a free handle.
    #[inline(always)]
    fn take_slot(&mut self, number: u32, zspage: Zspage<'p>, len: usize) -> Option<Reserved<'p>> {
        let index = self.state.free_handles;
        let entry = self.pool.entry(index)?;
        let slot = self.edit(&zspage, |inner| {
            let slot = inner.first_avail()?;
            inner.clear_avail(slot);
            inner.inuse = inner.inuse.wrapping_add(1);
            Some(slot)
        })?;
        let free = Entry(entry.load(Ordering::Relaxed));
        self.state.free_handles = free.next();
        self.state.nr_free_handles -= 1;
        self.state.avail -= 1;
        self.state.inuse += 1;
        self.state.objects += 1;
        self.state.bytes += len as u64;
        zspage.slots().get(slot)?.owner.store(RESERVED, Ordering::Relaxed);
        zspage.count_object(slot, 1);
        Some(Reserved { zspage, number, slot, index, entry, generation: free.generation() })
    }

    /// Reserves a slot and a handle, taking memory from `stash`, or says what is missing.
    pub(crate) fn reserve(&mut self, len: usize, stash: &mut Stash) -> Result<Reserve<'p>, Corruption> {
        if self.state.free_handles == NONE {
            let Some(chain) = stash.handles.take() else { return Ok(Reserve::Handles) };
            self.state.free_handles = chain.head;
            self.state.nr_free_handles = chain.len;
            // The chain's tail may lead on to handles that are not ours.
            if let Some(entry) = self.pool.entry(chain.tail) {
                let tail = Entry(entry.load(Ordering::Relaxed));
                entry.store(self.pool.free_entry(tail.generation(), NONE).0, Ordering::Relaxed);
            }
        }
        if self.pool.verify && self.pool.next_free(self.state.free_handles).is_none() {
            // The damaged chain is left alone; the next store takes another.
            self.state.free_handles = NONE;
            self.state.nr_free_handles = 0;
            return Err(self.pool.bad_entry());
        }
        let Some(number) = self.destination_for_store()? else {
            let Some(record) = stash.record.take() else { return Ok(Reserve::Record) };
            let zspage = self.new_zspage(record)?;
            return self.grow_and_take(record, zspage, len, stash);
        };
        let zspage = self.zspage(number)?;
        if self.inner(&zspage).nr_avail == 0 {
            return self.grow_and_take(number, zspage, len, stash);
        }
        self.take_slot(number, zspage, len).map(Reserve::Done).ok_or(self.damage(number, "free slots"))
    }

    pub(crate) fn damage(&self, zspage: u32, what: &'static str) -> Corruption {
        Corruption { zspage, what }
    }

    /// Makes the best zspage for a store the current one: with a slot that can be used at once, the fullest; else one that
    /// could have another frame, the current one first. `None`: a new zspage is needed.
    fn destination_for_store(&mut self) -> Result<Option<u32>, Corruption> {
        if let Some(number) = self.destination()? {
            return Ok(Some(number));
        }
        if self.state.source != NONE && self.state.avail != 0 {
            // All holes are in the zspage that was being emptied: it is a good one, then.
            let number = core::mem::replace(&mut self.state.source, NONE);
            self.make_current(number)?;
            return Ok(Some(number));
        }
        self.growable()
    }

    /// Makes the fullest zspage that could have another frame the current one, unless the current one could.
    pub(crate) fn growable(&mut self) -> Result<Option<u32>, Corruption> {
        if self.state.current != NONE {
            let zspage = self.zspage(self.state.current)?;
            if (self.inner(&zspage).inuse as usize) < self.class.shape.slots() {
                return Ok(Some(self.state.current));
            }
        }
        let Some(number) = self.state.fullest_growable() else { return Ok(None) };
        self.unlink(number)?;
        self.make_current(number)?;
        Ok(Some(number))
    }

    /// Makes the fullest zspage with a slot that can be used at once the current one, unless the current one has such a slot.
    pub(crate) fn destination(&mut self) -> Result<Option<u32>, Corruption> {
        if self.state.current != NONE {
            let zspage = self.zspage(self.state.current)?;
            if self.inner(&zspage).nr_avail != 0 {
                return Ok(Some(self.state.current));
            }
        }
        let Some(number) = self.state.fullest_avail() else { return Ok(None) };
        self.unlink(number)?;
        self.make_current(number)?;
        Ok(Some(number))
    }

    /// Makes an unlisted zspage the current one and puts the one before on its list.
    fn make_current(&mut self, number: u32) -> Result<(), Corruption> {
        let zspage = self.view(number)?;
        self.edit(&zspage, |inner| inner.list = CURRENT);
        let old = core::mem::replace(&mut self.state.current, number);
        if old != NONE {
            let zspage = self.zspage(old)?;
            self.enlist(old, &zspage)?;
        }
        Ok(())
    }

    fn new_zspage(&mut self, record: u32) -> Result<Zspage<'p>, Corruption> {
        let header = self.pool.header(record).ok_or(self.damage(record, "zspage number"))?;
        // SAFETY: the record is unused and large enough: it came from the class's bucket.
        let zspage = unsafe { Zspage::set_up(header, self.class.shape, self.pool.verify) };
        zspage.class().store(self.class.index.into(), Ordering::Relaxed);
        self.edit(&zspage, |inner| *inner = Inner::new(CURRENT));
        self.state.zspages += 1;
        self.make_current(record)?;
        Ok(zspage)
    }

    /// Gives the current zspage the frames that its first free slot misses, and takes that slot.
    fn grow_and_take(
        &mut self,
        number: u32,
        zspage: Zspage<'p>,
        len: usize,
        stash: &mut Stash,
    ) -> Result<Reserve<'p>, Corruption> {
        let slot = (0..zspage.shape.slots()).find(|&slot| zspage.owner(slot) == NONE);
        let slot = slot.ok_or(self.damage(number, "object count"))?;
        let (first, last) = zspage.shape.frames_of(slot);
        let missing = (first..=last).filter(|&frame| !zspage.frame(frame).is_backed()).count();
        if stash.nr_frames() < missing {
            return Ok(Reserve::Frames(missing));
        }
        for frame in first..=last {
            if !zspage.frame(frame).is_backed()
                && let Some((pfn, address)) = stash.take_frame()
            {
                self.back(number, &zspage, frame, pfn, address);
            }
        }
        self.take_slot(number, zspage, len).map(Reserve::Done).ok_or(self.damage(number, "free slots"))
    }

    /// Puts a frame under a zspage.
    pub(crate) fn back(&mut self, number: u32, zspage: &Zspage<'p>, frame: usize, pfn: Pfn, address: NonNull<u8>) {
        self.pool.claim_frame(pfn, u64::from(number) << 8 | frame as u64);
        zspage.set_frame(frame, FrameWord::backed(address));
        self.state.frames += 1;
        self.pool.frames.add(1);
        let (start, end) = zspage.shape.slots_of(frame);
        let gained = self.edit(zspage, |inner| {
            let mut gained = 0;
            for slot in start..end {
                if zspage.owner(slot) == NONE && zspage.is_slot_backed(slot) && !inner.is_avail(slot) {
                    inner.set_avail(slot);
                    gained += 1;
                }
            }
            gained
        });
        self.state.avail += gained;
    }

    /// Takes an unused frame from under a zspage.
    #[cold]
    pub(crate) fn unback(&mut self, zspage: &Zspage<'p>, frame: usize, released: &mut Released) {
        let word = zspage.frame(frame);
        let Some(pfn) = frame_at(self.pool.env.frames(), word) else { return };
        if word.live() != 0 || word.is_isolated() || released.is_full() {
            return;
        }
        self.pool.disclaim_frame(pfn);
        zspage.set_frame(frame, FrameWord(0));
        self.state.frames -= 1;
        let (start, end) = zspage.shape.slots_of(frame);
        let lost = self.edit(zspage, |inner| {
            let mut lost = 0;
            for slot in start..end {
                if inner.is_avail(slot) {
                    inner.clear_avail(slot);
                    lost += 1;
                }
            }
            lost
        });
        self.state.avail -= lost;
        released.push_frame(pfn);
    }

    /// Ends the life of an object: its entry, then its slot, unless a reader is inside.
    #[inline(always)]
    pub(crate) fn free(
        &mut self,
        place: Entry,
        index: u32,
        entry: &AtomicU64,
        released: &mut Released,
    ) -> Result<(), Corruption> {
        let (number, slot) = (place.zspage(), place.slot());
        let zspage = self.zspage(number)?;
        let owner = &zspage.slots().get(slot).ok_or(self.damage(number, "slot number"))?.owner;
        let dead = self.pool.free_entry(place.generation() + 1, self.state.free_handles);
        // Ordered before `retire`, whose compare-and-swap releases it.
        entry.store(dead.0, Ordering::Relaxed);
        self.state.free_handles = index;
        self.state.nr_free_handles += 1;
        self.state.objects -= 1;
        self.state.bytes -= place.len() as u64;
        if zspage.lock().retire() {
            self.free_slot(&zspage, slot, released);
            self.settle(number, &zspage, released)?;
        } else {
            owner.store(PENDING_FREE, Ordering::Relaxed);
        }
        if self.state.nr_free_handles >= 2 * BATCH {
            self.shed_handles(released);
        }
        Ok(())
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
        released.handles = Some(Chain { head, tail, len: BATCH });
    }

    /// Makes a slot free whose object is gone. [`settle`](Self::settle) comes next.
    #[inline(always)]
    pub(crate) fn free_slot(&mut self, zspage: &Zspage<'p>, slot: usize, released: &mut Released) {
        if let Some(slot) = zspage.slots().get(slot) {
            slot.owner.store(NONE, Ordering::Relaxed);
        }
        self.edit(zspage, |inner| {
            inner.set_avail(slot);
            inner.inuse = inner.inuse.wrapping_sub(1);
        });
        self.state.avail += 1;
        self.state.inuse -= 1;
        zspage.count_object(slot, -1);
        let (first, last) = zspage.shape.frames_of(slot);
        if zspage.frame(first).live() == 0 {
            self.unback(zspage, first, released);
        }
        if last != first && zspage.frame(last).live() == 0 {
            self.unback(zspage, last, released);
        }
    }

    /// Puts a zspage where it belongs after its counts changed; a listed one without objects and frames ceases to be.
    #[inline(always)]
    pub(crate) fn settle(
        &mut self,
        number: u32,
        zspage: &Zspage<'p>,
        released: &mut Released,
    ) -> Result<(), Corruption> {
        if number == self.state.current {
            return Ok(());
        }
        let inner = self.inner(zspage);
        if inner.inuse == 0 && self.is_bare(zspage) {
            if number == self.state.source {
                self.state.source = NONE;
            } else {
                self.unlink(number)?;
            }
            self.retire_record(number, zspage, released);
            return Ok(());
        }
        if number == self.state.source {
            return Ok(());
        }
        if list_of(&inner, &self.class.shape, self.class.group_magic) != inner.list as usize {
            self.unlink(number)?;
            self.enlist(number, zspage)?;
        }
        Ok(())
    }

    /// Whether a zspage has no frame.
    pub(crate) fn is_bare(&self, zspage: &Zspage<'p>) -> bool {
        (0..zspage.shape.frames()).all(|frame| !zspage.frame(frame).is_backed())
    }

    pub(crate) fn retire_record(&mut self, number: u32, zspage: &Zspage<'p>, released: &mut Released) {
        zspage.class().store(NO_CLASS, Ordering::Relaxed);
        self.state.zspages -= 1;
        released.push_record(number);
    }

    /// Puts an unlisted zspage on the list it belongs on.
    pub(crate) fn enlist(&mut self, number: u32, zspage: &Zspage<'p>) -> Result<(), Corruption> {
        let list = list_of(&self.inner(zspage), &self.class.shape, self.class.group_magic);
        let next = self.state.head(list);
        self.edit(zspage, |inner| {
            inner.list = list as u8;
            inner.prev = NONE;
            inner.next = next;
        });
        if next != NONE {
            let next = self.zspage(next)?;
            self.edit(&next, |inner| inner.prev = number);
        }
        self.state.set_head(list, number);
        Ok(())
    }

    /// Takes a zspage off its list.
    pub(crate) fn unlink(&mut self, number: u32) -> Result<(), Corruption> {
        let zspage = self.zspage(number)?;
        let inner = self.inner(&zspage);
        if inner.prev == NONE {
            self.state.set_head(inner.list.into(), inner.next);
        } else {
            let prev = self.zspage(inner.prev)?;
            self.edit(&prev, |prev| prev.next = inner.next);
        }
        if inner.next != NONE {
            let next = self.zspage(inner.next)?;
            self.edit(&next, |next| next.prev = inner.prev);
        }
        Ok(())
    }

    /// Frees what was freed while readers were inside, if the last of them has gone.
    pub(crate) fn reap(&mut self, number: u32, released: &mut Released) -> Result<(), Corruption> {
        let zspage = self.zspage(number)?;
        if !zspage.lock().begin_reap() {
            return Ok(());
        }
        for slot in 0..zspage.shape.slots() {
            if zspage.owner(slot) == PENDING_FREE {
                self.free_slot(&zspage, slot, released);
            }
        }
        // What did not fit in `released` is frames without objects; they go now if at all.
        for frame in 0..zspage.shape.frames().min(MAX_FRAMES) {
            if zspage.frame(frame).is_backed() && zspage.frame(frame).live() == 0 {
                self.unback(&zspage, frame, released);
            }
        }
        self.settle(number, &zspage, released)
    }

    /// The last slot of a zspage whose object can be moved, if its every object can be: `Err(())` if something in it is
    /// being stored or awaits its last reader.
    pub(crate) fn last_movable(&self, zspage: &Zspage<'p>) -> Option<usize> {
        (0..zspage.shape.slots()).rev().find(|&slot| zspage.owner(slot) < FIRST_SPECIAL)
    }

    /// Takes a zspage off wherever it is and makes it the one that compaction empties.
    pub(crate) fn make_source(&mut self, number: u32) -> Result<(), Corruption> {
        self.unlink(number)?;
        let zspage = self.view(number)?;
        self.edit(&zspage, |inner| inner.list = SOURCE);
        self.state.source = number;
        Ok(())
    }

    /// Puts the zspage that compaction empties back on a list.
    pub(crate) fn drop_source(&mut self) -> Result<(), Corruption> {
        let number = core::mem::replace(&mut self.state.source, NONE);
        if number != NONE {
            let zspage = self.zspage(number)?;
            self.enlist(number, &zspage)?;
        }
        Ok(())
    }

    /// Frames that compaction of the class could give back.
    #[inline(always)]
    pub(crate) fn freeable(&self) -> u64 {
        self.state.frames.saturating_sub(self.class.shape.frames_for(self.state.inuse))
    }
}

/// Whether a list number is one of the lists.
pub(crate) fn is_list(list: u8) -> bool {
    (list as usize) < GROW + FULL || list == CURRENT || list == SOURCE
}

impl<E: ZsEnv> Pool<E> {
    /// Gives back what a locked section left.
    #[inline(always)]
    pub(crate) fn release(&self, released: &Released, class: &Class) {
        if !released.is_empty() {
            self.release_slow(released, class);
        }
    }

    /// Gives back what a locked section left, but for some frames.
    pub(crate) fn release_but(&self, released: &mut Released, class: &Class, keep: usize) {
        let kept = keep.min(released.nr_frames);
        let mut rest = core::mem::replace(released, Released::new());
        for _ in 0..kept {
            if let Some(pfn) = rest.pop_frame() {
                released.push_frame(pfn);
            }
        }
        self.release(&rest, class);
    }

    #[cold]
    #[inline(never)]
    fn release_slow(&self, released: &Released, class: &Class) {
        for &pfn in released.frames.iter().take(released.nr_frames) {
            self.give_frame(pfn);
        }
        if released.nr_frames != 0 {
            self.frames.add(-(released.nr_frames as i64));
        }
        for &record in released.records.iter().take(released.nr_records) {
            self.give_record(record, class.bucket);
        }
        if let Some(chain) = released.handles {
            self.give_handles(chain);
        }
    }

    /// Gives back what a store did not use.
    pub(crate) fn drop_stash(&self, stash: &mut Stash, class: &Class) {
        while let Some((pfn, _)) = stash.take_frame() {
            self.give_frame(pfn);
        }
        if let Some(record) = stash.record.take() {
            self.give_record(record, class.bucket);
        }
        if let Some(chain) = stash.handles.take() {
            self.give_handles(chain);
        }
    }
}
