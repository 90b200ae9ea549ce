//! Compaction: moving objects so that frames become free.
//!
//! ```text
//! source        the emptiest zspage of the class, from its last object down ─┐
//! destination   the fullest zspage with a hole ◀── lowest hole ──────────────┘
//! ```
//! Frames are given back one by one as they run empty, so a half-emptied source is a gain, too. A source with a reader inside
//! is left alone; nobody waits. When one zspage is left, its last objects move into its own holes.
//!
//! The same step serves whole compaction ([`Pool::compact`]), a few moves after a free, and a [`Shrinker`].

use kmem_gfp::{FrameTable, Gfp};
use kmem_sync::atomic::Ordering;

use crate::class::Class;
use crate::handle::Entry;
use crate::locked::{Locked, MOVES_PER_SECTION};
use crate::released::Released;
use crate::zspage::{FIRST_SPECIAL, Inner, NONE, Zspage};
use crate::{Corruption, Pool, ZsEnv};

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// So many objects were moved.
    Moved(usize),
    /// There is nothing to gain, or nothing can be moved.
    Done,
    /// All holes are without frames; with this many frames, objects could be moved together and more frames given back.
    Frames(usize),
}

/// Something that can give memory back when asked; what reclaim calls in times of shortage.
pub trait Shrinker {
    /// How many pages it could give back; an estimate. Never sleeps.
    fn count_objects(&self) -> usize;

    /// Gives back about `nr` pages and says how many it was; `None` if trying again is of no use.
    fn scan_objects(&self, nr: usize) -> Option<usize>;
}

impl<'p, E: ZsEnv> Locked<'p, '_, E> {
    /// Whether the class has more holes than a free leaves alone.
    #[inline(always)]
    fn is_sparse(&self) -> bool {
        self.freeable() * 100 > self.nr_frames() * u64::from(self.pool.config.slack_percent)
    }

    /// The moves of one free.
    #[inline(never)]
    pub(crate) fn compact_a_little(&mut self, released: &mut Released) -> Result<(), Corruption> {
        let mut left = usize::from(self.pool.config.moves_per_free).min(MOVES_PER_SECTION);
        while left != 0 && self.is_sparse() {
            match self.step(left, released)? {
                Step::Moved(nr) => left = left.saturating_sub(nr),
                _ => break,
            }
        }
        Ok(())
    }

    /// Moves up to `limit` objects from one zspage to another, as long as that gets the class nearer to giving back a frame.
    fn step(&mut self, limit: usize, released: &mut Released) -> Result<Step, Corruption> {
        // The destination first: it must not become the source.
        let destination = self.destination()?;
        if self.state.source == NONE {
            let Some(number) = self.state.emptiest() else {
                return match destination {
                    Some(number) => self.tighten(number, released),
                    None => Ok(Step::Done),
                };
            };
            self.make_source(number)?;
        }
        let source = self.state.source;
        let destination = match destination {
            Some(destination) => destination,
            None => match self.grow_destination(released)? {
                Ok(destination) => destination,
                Err(0) => {
                    // Every other zspage is full.
                    let result = self.tighten(source, released)?;
                    if result == Step::Done {
                        self.drop_source()?;
                    }
                    return Ok(result);
                }
                Err(missing) => return Ok(Step::Frames(missing)),
            },
        };
        let (from, to) = (self.zspage(source)?, self.zspage(destination)?);
        let moved = self.move_run(source, from, destination, to, limit, released)?;
        if moved == 0 {
            // A reader is inside, or all objects are dead already. The destination may have been given frames for them.
            self.drop_source()?;
            for frame in 0..to.shape().frames() {
                if to.frame(frame).is_backed() && to.frame(frame).live() == 0 {
                    self.unback(&to, frame, released);
                }
            }
            return Ok(Step::Done);
        }
        Ok(Step::Moved(moved))
    }

    /// Moves objects of the source, from the last one down, into holes of another zspage, until one of the two is through,
    /// a class has no frame to gain, or `limit` objects were moved. Returns how many were.
    fn move_run(
        &mut self,
        source: u32,
        from: Zspage<'p>,
        destination: u32,
        to: Zspage<'p>,
        limit: usize,
        released: &mut Released,
    ) -> Result<usize, Corruption> {
        let mut slot = usize::from(self.state.source_end).min(from.shape().slots());
        let (mut moved, mut frames) = (0, self.nr_frames());
        if !from.lock().try_exclusive() {
            return Ok(0);
        }
        if !self.pool.verify {
            // SAFETY: the destination is not the source, whose lock word is ours.
            let (moved, slot) = unsafe { self.carry(&from, slot, destination, &to, limit, released) };
            self.state.source_end = slot as u8;
            let _ = from.lock().end_exclusive();
            self.settle(source, &from, released)?;
            return Ok(moved);
        }
        let mut result = Ok(true);
        while moved < limit && slot > 0 {
            // SAFETY: below the number of slots.
            if unsafe { from.slot(slot - 1) }.owner.load(Ordering::Acquire) >= FIRST_SPECIAL {
                slot -= 1;
                continue;
            }
            let Some(hole) = self.edit(&to, Inner::take_first) else { break };
            // SAFETY: both slots exist, the other has just been taken.
            result = unsafe { self.move_object(source, (from, slot - 1), destination, (to, hole), released) };
            slot -= 1;
            match result {
                Ok(has_moved) => moved += usize::from(has_moved),
                Err(_) => break,
            }
            if self.nr_frames() != frames {
                frames = self.nr_frames();
                if self.freeable() == 0 {
                    break;
                }
            }
        }
        self.state.source_end = slot as u8;
        let _ = from.lock().end_exclusive();
        result?;
        self.settle(source, &from, released)?;
        Ok(moved)
    }

    /// Puts frames that have just become free under the first hole of the fullest zspage, and makes that the destination;
    /// else says how many frames that takes, none if all zspages are full.
    fn grow_destination(&mut self, released: &mut Released) -> Result<Result<u32, usize>, Corruption> {
        let Some(number) = self.growable()? else { return Ok(Err(0)) };
        let zspage = self.zspage(number)?;
        let (first, last) = self.missing_frames(number, &zspage)?;
        let missing = usize::from(first != last) + 1;
        if released.nr_frames() < missing {
            return Ok(Err(missing));
        }
        for frame in first..=last {
            if let Some(pfn) = released.pop_frame() {
                match self.pool.env.frames().address_of(pfn) {
                    Some(address) => self.back(number, &zspage, frame, pfn, address),
                    None => return Ok(Err(0)),
                }
            }
        }
        Ok(Ok(number))
    }

    /// Moves the last object of a zspage into an earlier hole of its own.
    fn tighten(&mut self, number: u32, released: &mut Released) -> Result<Step, Corruption> {
        let zspage = self.zspage(number)?;
        let hole = self.inner(&zspage).first_avail();
        let last = (0..zspage.shape().slots()).rev().find(|&slot| zspage.owner(slot) < FIRST_SPECIAL);
        let (Some(slot), Some(hole)) = (last, hole) else { return Ok(Step::Done) };
        if hole > slot || !zspage.lock().try_exclusive() {
            return Ok(Step::Done);
        }
        let _ = self.edit(&zspage, Inner::take_first);
        // SAFETY: both slots exist, the other has just been taken.
        let result = unsafe { self.move_object(number, (zspage, slot), number, (zspage, hole), released) };
        let _ = zspage.lock().end_exclusive();
        let has_moved = result?;
        self.settle(number, &zspage, released)?;
        Ok(if has_moved { Step::Moved(1) } else { Step::Done })
    }

    /// Moves an object to a slot that was taken for it. `false`: the object is dead, so the slot has been given back.
    ///
    /// # Safety
    /// Both slots exist, the source's lock word is exclusively ours, and an entry names the slot there.
    #[inline(always)]
    unsafe fn move_object(
        &mut self,
        source: u32,
        (from, slot): (Zspage<'p>, usize),
        destination: u32,
        (to, hole): (Zspage<'p>, usize),
        released: &mut Released,
    ) -> Result<bool, Corruption> {
        // SAFETY: they exist (the caller's promise).
        let (old_slot, new_slot) = unsafe { (from.slot(slot), to.slot(hole)) };
        let index = old_slot.owner.load(Ordering::Relaxed);
        let entry = self.pool.entry(index).ok_or(self.damage(source, "slot owner"))?;
        let place = Entry(entry.load(Ordering::Relaxed));
        if !place.is_live() {
            self.give_hole_back(&to, hole);
            return Ok(false);
        }
        let len = place.len();
        old_slot.token.with(|_| {
            // SAFETY: nobody is inside the source, the object is alive there; the hole is ours; both have their frames, are
            // of one size, and differ.
            new_slot.token.with_mut(|_| unsafe { to.runs_of(hole, len).copy_from(&from.runs_of(slot, len)) });
        });
        // Release pairs with the acquire of readers' loads. Another CPU may free the object meanwhile.
        let moved = place.moved(len, hole, destination);
        if entry.compare_exchange(place.0, moved.0, Ordering::Release, Ordering::Relaxed).is_err() {
            self.give_hole_back(&to, hole);
            return Ok(false);
        }
        if self.pool.verify {
            // SAFETY: verifying pools set records up with lengths.
            if let Some(shadow) = unsafe { to.lens() }.get(hole) {
                shadow.store(len as u16, Ordering::Relaxed);
            }
        }
        new_slot.owner.store(index, Ordering::Relaxed);
        self.counts.inuse.add(1);
        // SAFETY: they exist (the caller's promise).
        unsafe {
            to.count_object(hole, 1);
            self.free_slot(&from, slot, released);
        }
        Ok(true)
    }

    /// Makes a slot usable again that was taken for an object.
    #[cold]
    pub(crate) fn give_hole_back(&mut self, zspage: &Zspage<'p>, hole: usize) {
        self.edit(zspage, |inner| {
            inner.set_avail(hole);
            inner.inuse = inner.inuse.wrapping_sub(1);
        });
    }
}

impl<E: ZsEnv> Pool<E> {
    /// Moves objects until no class can give back another frame, and returns how many frames were given back.
    ///
    /// Only one compaction runs at a time; a second caller gets 0 at once. Stores, reads and frees go on meanwhile: a class
    /// is locked for a few moves at a time. Classes go from the largest to the smallest. Contexts: any but interrupt handlers
    /// and NMI; takes time in proportion to the objects moved.
    #[doc(alias = "zs_compact")]
    pub fn compact(&self) -> u64 {
        self.compact_until(u64::MAX)
    }

    /// [`compact`](Self::compact) that stops when about `goal` frames have been given back.
    pub fn compact_until(&self, goal: u64) -> u64 {
        // Acquire and release: what one compaction left, the next finds.
        if self.compacting.swap(true, Ordering::Acquire) {
            return 0;
        }
        let total = self.compactor.with_mut(|_| {
            let total = self.compact_classes(goal);
            self.pages_compacted.add(i64::try_from(total).unwrap_or(i64::MAX));
            total
        });
        self.compacting.swap(false, Ordering::Release);
        total
    }

    fn compact_classes(&self, goal: u64) -> u64 {
        self.settle_frees();
        let mut total = 0;
        for class in self.classes().rev() {
            if total >= goal {
                break;
            }
            total += self.compact_class(class, goal - total);
        }
        total
    }

    fn compact_class(&self, class: &Class, goal: u64) -> u64 {
        let goal = i64::try_from(goal).unwrap_or(i64::MAX);
        let mut gained = 0_i64;
        if self.totals(class).freeable == 0 {
            return 0;
        }
        for (id, _) in self.parts() {
            if let Err(damage) = self.gather(id, class, false) {
                self.report_damage(damage);
            }
        }
        // Each object moves at most once or twice; the bound is for states that nobody has thought of.
        let mut moves_left = 4 * self.locked(class, |class| class.counts.inuse.get().unsigned_abs()) + 16;
        let mut released = Released::new();
        loop {
            let step = self.locked(class, |mut class| {
                let mut left = MOVES_PER_SECTION;
                while left != 0 {
                    if class.freeable() == 0 || moves_left == 0 || gained >= goal {
                        return Ok(Step::Done);
                    }
                    let before = class.counts.frames.get();
                    let step = class.step(left, &mut released)?;
                    gained += before - class.counts.frames.get();
                    let Step::Moved(nr) = step else { return Ok(step) };
                    left = left.saturating_sub(nr);
                    moves_left = moves_left.saturating_sub(nr as u64);
                }
                Ok(Step::Moved(MOVES_PER_SECTION))
            });
            // Two frames are kept: they may be needed where all holes are without frames.
            self.release_but(&mut released, if step == Ok(Step::Done) { 0 } else { 2 });
            match step {
                Ok(Step::Moved(_)) => {}
                Ok(Step::Frames(nr)) if self.borrow_frames(&mut released, nr) => {}
                Ok(_) => break,
                Err(damage) => {
                    self.report_damage(damage);
                    break;
                }
            }
        }
        self.release_but(&mut released, 0);
        if let Err(damage) = self.locked(class, |mut class| class.drop_source()) {
            self.report_damage(damage);
        }
        u64::try_from(gained).unwrap_or(0)
    }

    /// Allocates the few frames that get a compaction going when it has not freed any itself.
    fn borrow_frames(&self, released: &mut Released, nr: usize) -> bool {
        while released.nr_frames() < nr {
            let Ok((pfn, _)) = self.alloc_frame(Gfp::NOWAIT.union(Gfp::MOVABLE)) else { return false };
            released.push_frame(pfn);
        }
        true
    }

    /// How many frames [`compact`](Self::compact) could give back at most: some loads for each class.
    pub fn freeable_pages(&self) -> u64 {
        self.classes().map(|class| self.totals(class).freeable).sum()
    }
}

impl<E: ZsEnv> Shrinker for Pool<E> {
    fn count_objects(&self) -> usize {
        usize::try_from(self.freeable_pages()).unwrap_or(usize::MAX)
    }

    fn scan_objects(&self, nr: usize) -> Option<usize> {
        let freed = self.compact_until(nr as u64);
        if freed == 0 { None } else { Some(usize::try_from(freed).unwrap_or(usize::MAX)) }
    }
}
