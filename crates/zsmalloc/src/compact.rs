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
use crate::locked::{Locked, MOVES_PER_SECTION, Released};
use crate::zspage::{FIRST_SPECIAL, NONE, Zspage};
use crate::{Corruption, Pool, ZsEnv};

/// What one step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// An object was moved.
    Moved,
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
    pub(crate) fn is_sparse(&self) -> bool {
        self.freeable() * 100 > self.state.frames * u64::from(self.pool.config.slack_percent)
    }

    /// The moves of one free.
    pub(crate) fn compact_a_little(&mut self, released: &mut Released) -> Result<(), Corruption> {
        for _ in 0..self.pool.config.moves_per_free.min(MOVES_PER_SECTION as u8) {
            if self.step(released)? != Step::Moved || !self.is_sparse() {
                break;
            }
        }
        Ok(())
    }

    /// Moves one object, if that gets the class nearer to giving back a frame.
    fn step(&mut self, released: &mut Released) -> Result<Step, Corruption> {
        if self.state.source == NONE {
            // The destination first: it must not become the source.
            let _ = self.destination()?;
            if let Some(number) = self.state.emptiest() {
                self.make_source(number)?;
            }
        }
        let destination = self.destination()?;
        if self.state.source == NONE {
            return match destination {
                Some(number) => self.tighten(number, released),
                None => Ok(Step::Done),
            };
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
        let from = self.zspage(source)?;
        if let Some(slot) = self.last_movable(&from) {
            let to = self.zspage(destination)?;
            let hole = self.inner(&to).first_avail();
            if let Some(hole) = hole
                && self.move_object((source, from, slot), (destination, to, hole), released)?
            {
                return Ok(Step::Moved);
            }
        }
        // A reader, an object just being stored, or one whose last reader has not left.
        self.drop_source()?;
        Ok(Step::Done)
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
                // `back` counts it again.
                self.pool.frames.add(-1);
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
        if let (Some(slot), Some(hole)) = (self.last_movable(&zspage), hole)
            && hole < slot
            && self.move_object((number, zspage, slot), (number, zspage, hole), released)?
        {
            return Ok(Step::Moved);
        }
        Ok(Step::Done)
    }

    /// Moves an object to a free slot; `false` if a reader is inside.
    fn move_object(
        &mut self,
        (source, from, slot): (u32, Zspage<'p>, usize),
        (destination, to, hole): (u32, Zspage<'p>, usize),
        released: &mut Released,
    ) -> Result<bool, Corruption> {
        let damaged = self.damage(source, "slot owner");
        let index = from.owner(slot);
        let (true, Some(entry)) = (index < FIRST_SPECIAL, self.pool.entry(index)) else { return Err(damaged) };
        if !from.lock().try_exclusive() {
            return Ok(false);
        }
        let place = Entry(entry.load(Ordering::Relaxed));
        let runs = (from.runs(slot, place.len()), to.runs(hole, place.len()));
        let slots = (from.slots().get(slot), to.slots().get(hole));
        let ((Some(old), Some(new)), (Some(old_slot), Some(new_slot))) = (runs, slots) else {
            let _ = from.lock().end_exclusive();
            return Err(damaged);
        };
        old_slot.token.with(|_| {
            // SAFETY: nobody is inside the source, the object is alive there; the hole is free, both slots are of one size
            // and differ.
            new_slot.token.with_mut(|_| unsafe { new.copy_from(&old) })
        });
        // Release pairs with the acquire of readers' loads.
        entry.store(place.moved(place.len(), hole, destination).0, Ordering::Release);
        let _ = from.lock().end_exclusive();
        if self.pool.verify {
            // SAFETY: verifying pools set records up with lengths.
            if let Some(len) = unsafe { to.lens() }.get(hole) {
                len.store(place.len() as u16, Ordering::Relaxed);
            }
        }
        new_slot.owner.store(index, Ordering::Relaxed);
        // SAFETY: the hole's slot was found above.
        unsafe { to.count_object(hole, 1) };
        self.edit(&to, |inner| {
            inner.clear_avail(hole);
            inner.inuse = inner.inuse.wrapping_add(1);
        });
        self.state.inuse += 1;
        // SAFETY: the object was there.
        unsafe { self.free_slot(&from, slot, released) };
        self.settle(source, &from, released)?;
        Ok(true)
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
        if self.compacting.swap(true, Ordering::Acquire) {
            return 0;
        }
        let mut total = 0;
        for class in self.classes().rev() {
            if total >= goal {
                break;
            }
            total += self.compact_class(class, goal - total);
        }
        self.pages_compacted.fetch_add(total, Ordering::Relaxed);
        self.compacting.swap(false, Ordering::Release);
        total
    }

    fn compact_class(&self, class: &Class, goal: u64) -> u64 {
        let goal = i64::try_from(goal).unwrap_or(i64::MAX);
        let mut gained = 0_i64;
        // Each object moves at most once or twice; the bound is for states that nobody has thought of.
        let mut moves_left = 4 * self.locked(class, |class| class.state.inuse) + 16;
        let mut released = Released::new();
        loop {
            let step = self.locked(class, |mut class| {
                for _ in 0..MOVES_PER_SECTION {
                    if class.freeable() == 0 || moves_left == 0 || gained >= goal {
                        return Ok(Step::Done);
                    }
                    moves_left -= 1;
                    let before = class.state.frames.cast_signed();
                    let step = class.step(&mut released)?;
                    gained += before - class.state.frames.cast_signed();
                    if step != Step::Moved {
                        return Ok(step);
                    }
                }
                Ok(Step::Moved)
            });
            // Two frames are kept: they may be needed where all holes are without frames.
            self.release_but(&mut released, class, if step == Ok(Step::Done) { 0 } else { 2 });
            match step {
                Ok(Step::Moved) => {}
                Ok(Step::Frames(nr)) if self.borrow_frames(&mut released, nr) => {}
                Ok(_) => break,
                Err(damage) => {
                    self.report_damage(damage);
                    break;
                }
            }
        }
        self.release_but(&mut released, class, 0);
        if let Err(damage) = self.locked(class, |mut class| class.drop_source()) {
            self.report_damage(damage);
        }
        u64::try_from(gained).unwrap_or(0)
    }

    /// Allocates the few frames that get a compaction going when it has not freed any itself.
    fn borrow_frames(&self, released: &mut Released, nr: usize) -> bool {
        while released.nr_frames() < nr {
            let Ok((pfn, _)) = self.alloc_frame(Gfp::NOWAIT.union(Gfp::MOVABLE)) else { return false };
            self.frames.add(1);
            released.push_frame(pfn);
        }
        true
    }

    /// How many frames [`compact`](Self::compact) could give back at most. Takes every class's lock in turn.
    pub fn freeable_pages(&self) -> u64 {
        self.classes().map(|class| self.locked(class, |class| class.freeable())).sum()
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
