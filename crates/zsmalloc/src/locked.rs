//! A class under its lock: finding slots, freeing them, giving frames and zspages back.
//!
//! Nothing here allocates or frees memory: what is needed comes in with a [`Stash`], what is no longer needed leaves in a
//! [`Released`], and both are dealt with outside the lock.

use core::ptr::NonNull;

use kmem_gfp::Pfn;
use kmem_sync::atomic::{AtomicU64, Ordering};

use crate::class::{CURRENT, Class, FULL, GROW, SOURCE, State, list_of};
use crate::handle::Entry;
use crate::released::{Released, Stash};
use crate::zspage::{FrameWord, Inner, NO_CLASS, NONE, RESERVED, Zspage, frame_at};
use crate::{Corruption, Pool, ZsEnv};

/// The most objects that one locked section moves.
pub(crate) const MOVES_PER_SECTION: usize = 8;
/// A slot reserved for an object, with a handle.
#[derive(Debug)]
pub(crate) struct Reserved<'p> {
    pub(crate) zspage: Zspage<'p>,
    pub(crate) number: u32,
    pub(crate) slot: usize,
    pub(crate) index: u32,
    pub(crate) entry: &'p AtomicU64,
    pub(crate) free: Entry,
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
        Ok(unsafe { Zspage::new(header, self.class) })
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

    /// Reserves a slot and a handle for an object of `len` bytes, if that takes neither memory nor another zspage, and the
    /// pool does not verify.
    #[inline(always)]
    pub(crate) fn reserve_fast(&mut self, len: usize) -> Option<Reserved<'p>> {
        // SAFETY: null, or the header of the current zspage, whose record stays as long as the pool.
        let header = unsafe { self.state.current_header.as_ref() }?;
        // SAFETY: the current zspage is one of this class.
        let zspage = unsafe { Zspage::new(header, self.class) };
        // There is no entry with the index `NONE`.
        let entry = self.pool.entry(self.state.free_handles)?;
        // SAFETY: we hold the class lock, and the closure makes no other call.
        let slot = unsafe { zspage.with_inner(Inner::take_first) }?;
        // SAFETY: bits of `avail` stand for slots that exist.
        Some(unsafe { self.reserve_slot(self.state.current, zspage, slot, entry, len) })
    }

    /// Reserves a slot that has just been taken out of `avail`, and the first free handle.
    ///
    /// # Safety
    /// The slot exists.
    #[inline(always)]
    unsafe fn reserve_slot(
        &mut self,
        number: u32,
        zspage: Zspage<'p>,
        slot: usize,
        entry: &'p AtomicU64,
        len: usize,
    ) -> Reserved<'p> {
        let index = self.state.free_handles;
        let free = Entry(entry.load(Ordering::Relaxed));
        self.state.free_handles = free.next();
        self.state.nr_free_handles = self.state.nr_free_handles.wrapping_sub(1);
        self.state.inuse = self.state.inuse.wrapping_add(1);
        self.state.bytes = self.state.bytes.wrapping_add(len as u64);
        // SAFETY: the caller's promise.
        unsafe {
            zspage.slot(slot).owner.store(RESERVED, Ordering::Relaxed);
            zspage.count_object(slot, 1);
        }
        Reserved { zspage, number, slot, index, entry, free }
    }

    /// Takes the first slot of the current zspage and a free handle.
    fn take_slot(&mut self, number: u32, zspage: Zspage<'p>, len: usize) -> Option<Reserved<'p>> {
        let entry = self.pool.entry(self.state.free_handles)?;
        let slot = self.edit(&zspage, Inner::take_first)?;
        // SAFETY: bits of `avail` stand for slots that exist.
        Some(unsafe { self.reserve_slot(number, zspage, slot, entry, len) })
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
                entry.store(self.pool.sealed(tail.chained(NONE)).0, Ordering::Relaxed);
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
        if self.state.source != NONE {
            let zspage = self.zspage(self.state.source)?;
            if self.inner(&zspage).nr_avail != 0 {
                // All holes are in the zspage that was being emptied: it is a good one, then.
                let number = core::mem::replace(&mut self.state.source, NONE);
                self.make_current(number)?;
                return Ok(Some(number));
            }
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
            // SAFETY: we hold the class lock, and the closure makes no other call.
            if unsafe { zspage.with_inner(|inner| inner.nr_avail) } != 0 {
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
        self.state.current_header = if self.pool.verify { core::ptr::null() } else { zspage.header() };
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
        let zspage = unsafe { Zspage::set_up(header, self.class, self.pool.verify) };
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
        let missing = self.missing_frames(number, &zspage)?;
        let nr = usize::from(missing.0 != missing.1) + 1;
        if stash.nr_frames() < nr {
            return Ok(Reserve::Frames(nr));
        }
        for frame in missing.0..=missing.1 {
            if let Some((pfn, address)) = stash.take_frame() {
                self.back(number, &zspage, frame, pfn, address);
            }
        }
        self.take_slot(number, zspage, len).map(Reserve::Done).ok_or(self.damage(number, "free slots"))
    }

    /// The frames, one or two, that must come under a zspage without usable slots to make one usable, first and last.
    pub(crate) fn missing_frames(&self, number: u32, zspage: &Zspage<'p>) -> Result<(usize, usize), Corruption> {
        let first = zspage.frames().iter().position(|word| !FrameWord(word.load(Ordering::Relaxed)).is_backed());
        let first = first.ok_or(self.damage(number, "object count"))?;
        // Slots that touch a missing frame are free. The first of them may begin in the frame before, which is there.
        let (slot, _) = zspage.shape().slots_of(first);
        let (_, last) = zspage.shape().frames_of(slot);
        Ok((first, if last != first && !zspage.frame(last).is_backed() { last } else { first }))
    }

    /// Puts a frame under a zspage.
    pub(crate) fn back(&mut self, number: u32, zspage: &Zspage<'p>, frame: usize, pfn: Pfn, address: NonNull<u8>) {
        self.pool.claim_frame(pfn, u64::from(number) << 8 | frame as u64);
        zspage.set_frame(frame, FrameWord::backed(address));
        self.state.frames += 1;
        self.pool.count_frames(self.class, 1);
        let (start, end) = zspage.shape().slots_of(frame);
        // Slots that touch a frame that was missing are free; those at the edges may miss another one.
        let is_first_whole = zspage.is_slot_backed(start);
        let is_last_whole = zspage.is_slot_backed(end - 1);
        let start = start + usize::from(!is_first_whole);
        let end = end - usize::from(!is_last_whole);
        self.edit(zspage, |inner| inner.set_range(start, end));
    }

    /// Takes an unused frame from under a zspage.
    pub(crate) fn unback(&mut self, zspage: &Zspage<'p>, frame: usize, released: &mut Released) {
        let word = zspage.frame(frame);
        let Some(pfn) = frame_at(self.pool.env.frames(), word) else { return };
        if word.live() != 0 || word.is_isolated() || released.is_full() {
            return;
        }
        self.pool.disclaim_frame(pfn);
        zspage.set_frame(frame, FrameWord(0));
        self.state.frames -= 1;
        let (start, end) = zspage.shape().slots_of(frame);
        self.edit(zspage, |inner| inner.clear_range(start, end));
        released.push_frame(pfn);
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
        if list_of(&inner, &self.class.shape) != inner.list as usize {
            self.unlink(number)?;
            self.enlist(number, zspage)?;
        }
        Ok(())
    }

    /// Whether a zspage has no frame.
    pub(crate) fn is_bare(&self, zspage: &Zspage<'p>) -> bool {
        (0..zspage.shape().frames()).all(|frame| !zspage.frame(frame).is_backed())
    }

    pub(crate) fn retire_record(&mut self, number: u32, zspage: &Zspage<'p>, released: &mut Released) {
        zspage.class().store(NO_CLASS, Ordering::Relaxed);
        self.state.zspages -= 1;
        released.push_record(number);
    }

    /// Puts an unlisted zspage on the list it belongs on.
    #[inline]
    pub(crate) fn enlist(&mut self, number: u32, zspage: &Zspage<'p>) -> Result<(), Corruption> {
        let list = list_of(&self.inner(zspage), &self.class.shape);
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

    /// Takes a zspage off wherever it is and makes it the one that compaction empties.
    pub(crate) fn make_source(&mut self, number: u32) -> Result<(), Corruption> {
        self.unlink(number)?;
        let zspage = self.view(number)?;
        self.edit(&zspage, |inner| inner.list = SOURCE);
        self.state.source = number;
        self.state.source_end = u8::MAX;
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
