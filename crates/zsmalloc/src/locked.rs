//! A class's state inside its section: finding slots, filling them, giving frames and zspages back.
//!
//! Nothing here allocates or frees memory: what is needed comes in with a [`Stash`], what is no longer needed leaves in a
//! [`Released`], and both are dealt with outside the section.

use core::ptr::NonNull;

use kmem_gfp::Pfn;
use kmem_sync::LocalCounter;
use kmem_sync::atomic::Ordering;

use crate::class::{AVAIL_LISTS, CURRENT, Class, Counts, FULL, GROW, GROW_LISTS, Handles, SOURCE, State, list_of};
use crate::handle::{Entry, Handle};
use crate::released::{Released, Stash};
use crate::shard::ShardId;
use crate::zspage::{FrameWord, Header, Inner, NONE, Owner, Zspage, frame_at};
use crate::{Corruption, Pool, ZsEnv};

/// The most objects that one section moves.
pub(crate) const MOVES_PER_SECTION: usize = 8;

/// How far a store got.
#[derive(Debug)]
pub(crate) enum Step {
    Done(Handle),
    /// It needs something: free handles, an unused record, so many frames.
    Handles,
    Record,
    Frames(usize),
}

/// A class's state, inside its section.
pub(crate) struct Locked<'p, 's, E: ZsEnv> {
    pub(crate) pool: &'p Pool<E>,
    pub(crate) class: &'p Class,
    /// Whose state it is.
    pub(crate) id: ShardId,
    pub(crate) counts: &'p Counts,
    /// Where the owner counts its frames of all classes; shared states do it in the pool.
    pub(crate) total: Option<&'p LocalCounter>,
    pub(crate) state: &'s mut State,
    pub(crate) handles: &'s mut Handles,
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
        // SAFETY: inside the section, and the closure makes no other call.
        unsafe { zspage.with_inner(|inner| *inner) }
    }

    /// Changes a zspage's inner part.
    #[inline(always)]
    pub(crate) fn edit<R>(&self, zspage: &Zspage<'p>, f: impl FnOnce(&mut Inner) -> R) -> R {
        // SAFETY: inside the section, and closures given to this make no other call.
        let result = unsafe { zspage.with_inner(f) };
        if self.pool.verify {
            self.seal(zspage);
        }
        result
    }

    /// Stores an object, taking memory from `stash`, or says what is missing.
    pub(crate) fn store(&mut self, data: &[u8], stash: &mut Stash) -> Result<Step, Corruption> {
        if self.handles.head == NONE {
            let Some(chain) = stash.handles.take() else { return Ok(Step::Handles) };
            *self.handles = Handles { head: chain.head, nr: chain.len };
            // The chain's tail may lead on to handles that are not ours.
            if let Some(entry) = self.pool.entry(chain.tail) {
                let tail = Entry(entry.load(Ordering::Relaxed));
                entry.store(self.pool.sealed(tail.chained(NONE)).0, Ordering::Relaxed);
            }
        }
        if self.pool.verify && self.pool.next_free(self.handles.head).is_none() {
            // The damaged chain is left alone; the next store takes another.
            *self.handles = Handles::new();
            return Err(self.pool.bad_entry());
        }
        let (number, zspage) = match self.destination_for_store()? {
            Some(number) => (number, self.zspage(number)?),
            None => {
                let Some(record) = stash.record.take() else { return Ok(Step::Record) };
                (record, self.new_zspage(record)?)
            }
        };
        if !self.inner(&zspage).has_avail()
            && let Err(missing) = self.grow(number, &zspage, stash)?
        {
            return Ok(Step::Frames(missing));
        }
        self.put(number, &zspage, data).map(Step::Done)
    }

    /// Stores an object in the first usable slot of a zspage that has one, under the first free handle.
    fn put(&mut self, number: u32, zspage: &Zspage<'p>, data: &[u8]) -> Result<Handle, Corruption> {
        let index = self.handles.head;
        let entry = self.pool.entry(index).ok_or(self.pool.bad_entry())?;
        let slot = self.edit(zspage, Inner::take_first).ok_or(self.damage(number, "free slots"))?;
        let free = Entry(entry.load(Ordering::Relaxed));
        *self.handles = Handles { head: free.next(), nr: self.handles.nr.wrapping_sub(1) };
        self.counts.inuse.add(1);
        self.counts.bytes.add(data.len() as i64);
        let live = free.live(data.len(), slot, number);
        // SAFETY: bits of `avail` stand for slots that exist and have their frames; the class is the length's.
        let place = unsafe {
            zspage.count_object(slot, 1);
            let (place, runs) = (zspage.slot(slot), zspage.runs_of(slot, data.len()));
            place.token.with_mut(|_| runs.write(data));
            place
        };
        if self.pool.verify
            // SAFETY: verifying pools set records up with lengths.
            && let Some(len) = unsafe { zspage.lens() }.get(slot)
        {
            len.store(data.len() as u16, Ordering::Relaxed);
        }
        place.owner.store(index, Ordering::Relaxed);
        // Release pairs with the acquire of readers' loads.
        entry.store(live.0, Ordering::Release);
        Ok(Handle::pack(self.pool.tag, live, index))
    }

    /// Counts frames that the owner got or gave back.
    pub(crate) fn count_frames(&self, nr: i64) {
        self.counts.frames.add(nr);
        match self.total {
            Some(total) => total.add(nr),
            None => self.pool.count_shared_frames(self.class, nr),
        }
    }

    pub(crate) fn nr_frames(&self) -> u64 {
        self.counts.frames.get().unsigned_abs()
    }

    pub(crate) fn damage(&self, zspage: u32, what: &'static str) -> Corruption {
        Corruption { zspage, what }
    }

    /// Makes the best zspage for a store the current one: with a slot that can be used at once, the fullest, first of the
    /// owner's and then of the shared ones; else one that could have another frame, the current one first. `None`: a new
    /// zspage is needed.
    fn destination_for_store(&mut self) -> Result<Option<u32>, Corruption> {
        if let Some(number) = self.destination()? {
            return Ok(Some(number));
        }
        if self.state.source != NONE {
            let zspage = self.zspage(self.state.source)?;
            if self.inner(&zspage).has_avail() {
                // All holes are in the zspage that was being emptied: it is a good one, then.
                let number = core::mem::replace(&mut self.state.source, NONE);
                self.make_current(number)?;
                return Ok(Some(number));
            }
        }
        if let Some(number) = self.adopt(false)? {
            return Ok(Some(number));
        }
        if let Some(number) = self.growable()? {
            return Ok(Some(number));
        }
        self.adopt(true)
    }

    /// Makes the fullest zspage that could have another frame the current one, unless the current one could.
    pub(crate) fn growable(&mut self) -> Result<Option<u32>, Corruption> {
        if self.state.current != NONE {
            let zspage = self.zspage(self.state.current)?;
            if (self.inner(&zspage).inuse as usize) < self.class.shape.slots() {
                return Ok(Some(self.state.current));
            }
        }
        let Some(number) = self.state.highest(GROW_LISTS) else { return Ok(None) };
        self.unlink(number)?;
        self.make_current(number)?;
        Ok(Some(number))
    }

    /// Makes the fullest zspage with a slot that can be used at once the current one, unless the current one has such a slot.
    pub(crate) fn destination(&mut self) -> Result<Option<u32>, Corruption> {
        if self.state.current != NONE {
            let zspage = self.zspage(self.state.current)?;
            // SAFETY: inside the section, and the closure makes no other call.
            if unsafe { zspage.with_inner(|inner| inner.has_avail()) } {
                return Ok(Some(self.state.current));
            }
        }
        let Some(number) = self.state.highest(AVAIL_LISTS) else { return Ok(None) };
        self.unlink(number)?;
        self.make_current(number)?;
        Ok(Some(number))
    }

    /// Makes an unlisted zspage the current one and puts the one before on its list.
    pub(crate) fn make_current(&mut self, number: u32) -> Result<(), Corruption> {
        let zspage = self.view(number)?;
        self.edit(&zspage, |inner| inner.list = CURRENT);
        let old = core::mem::replace(&mut self.state.current, number);
        self.set_current_header(if self.pool.verify { core::ptr::null() } else { zspage.header() });
        if old != NONE {
            let zspage = self.zspage(old)?;
            self.enlist(old, &zspage)?;
        }
        Ok(())
    }

    fn set_current_header(&mut self, header: *const Header) {
        self.state.current_header = header;
        let is_quiet = !header.is_null() && self.pool.config.moves_per_free == 0;
        self.state.quiet = if is_quiet { self.state.current } else { NONE };
    }

    /// Puts the current zspage back on a list.
    pub(crate) fn drop_current(&mut self) -> Result<(), Corruption> {
        let number = core::mem::replace(&mut self.state.current, NONE);
        if number != NONE {
            self.set_current_header(core::ptr::null());
            let zspage = self.zspage(number)?;
            self.enlist(number, &zspage)?;
        }
        Ok(())
    }

    fn new_zspage(&mut self, record: u32) -> Result<Zspage<'p>, Corruption> {
        let header = self.pool.header(record).ok_or(self.damage(record, "zspage number"))?;
        // SAFETY: the record is unused and large enough: it came from the class's bucket.
        let zspage = unsafe { Zspage::set_up(header, self.class, self.pool.verify) };
        zspage.owner_word().store(Owner::new(self.id, self.class.index).0, Ordering::Relaxed);
        self.edit(&zspage, |inner| *inner = Inner::new(CURRENT));
        self.counts.zspages.add(1);
        self.make_current(record)?;
        Ok(zspage)
    }

    /// Gives the current zspage the frames that its first free slot misses, or says how many these are.
    fn grow(&mut self, number: u32, zspage: &Zspage<'p>, stash: &mut Stash) -> Result<Result<(), usize>, Corruption> {
        let missing = self.missing_frames(number, zspage)?;
        let nr = usize::from(missing.0 != missing.1) + 1;
        if stash.nr_frames() < nr {
            return Ok(Err(nr));
        }
        for frame in missing.0..=missing.1 {
            if let Some((pfn, address)) = stash.take_frame() {
                self.back(number, zspage, frame, pfn, address);
            }
        }
        Ok(Ok(()))
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
        self.count_frames(1);
        let (start, end) = zspage.shape().slots_of(frame);
        // Slots that touch a frame that was missing are free; those at the edges may miss another one.
        let is_first_whole = zspage.is_slot_backed(start);
        let is_last_whole = zspage.is_slot_backed(end - 1);
        let start = start + usize::from(!is_first_whole);
        let end = end - usize::from(!is_last_whole);
        self.edit(zspage, |inner| {
            inner.set_range(start, end);
            inner.nr_frames = inner.nr_frames.wrapping_add(1);
        });
    }

    /// Takes an unused frame from under a zspage.
    pub(crate) fn unback(&mut self, zspage: &Zspage<'p>, frame: usize, released: &mut Released) {
        let word = zspage.frame(frame);
        if word.live() != 0 || word.is_isolated() || !word.is_backed() || released.is_full() {
            return;
        }
        let Some(pfn) = frame_at(self.pool.env.frames(), word) else { return };
        self.pool.disclaim_frame(pfn);
        zspage.set_frame(frame, FrameWord(0));
        self.count_frames(-1);
        let (start, end) = zspage.shape().slots_of(frame);
        self.edit(zspage, |inner| {
            inner.clear_range(start, end);
            inner.nr_frames = inner.nr_frames.wrapping_sub(1);
        });
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
        // SAFETY: inside the section, and the closure makes no other call.
        unsafe { zspage.with_inner(|inner| inner.nr_frames == 0) }
    }

    pub(crate) fn retire_record(&mut self, number: u32, zspage: &Zspage<'p>, released: &mut Released) {
        zspage.owner_word().store(Owner::NOBODY.0, Ordering::Relaxed);
        self.counts.zspages.add(-1);
        released.push_record(number, self.class.bucket);
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
        let inuse = self.counts.inuse.get().unsigned_abs();
        self.nr_frames().saturating_sub(self.class.shape.frames_for(inuse))
    }
}

/// Whether a list number is one of the lists.
pub(crate) fn is_list(list: u8) -> bool {
    (list as usize) < GROW + FULL || list == CURRENT || list == SOURCE
}
