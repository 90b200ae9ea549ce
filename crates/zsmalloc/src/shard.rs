//! CPUs: each has its own states of the classes it uses, so that stores and frees of different CPUs share no cache line.
//!
//! ```text
//! Pool ─▶ Part of a CPU (a frame)
//!           slot   local trylock ─▶ Shard: free handles, objects of other CPUs that were freed here
//!           table  class ─▶ Local: counts, State          reached inside the slot's section
//! ```
//! **Sections.** A state is used inside its owner's *section*. For a CPU's state that is the slot's: two plain stores for
//! the CPU itself; anybody else [revokes](kmem_sync::LocalLock) the slot, which takes a barrier on all CPUs. For the
//! shared state of a class it is the class lock, which may be taken inside a CPU's section, never the other way round.
//!
//! **Frees on another CPU.** The entry is made dead at once, wherever the object lies. The slot goes through the freeing
//! CPU's outbox: up to [`OUTBOX`] such objects are settled together, with one revocation for each owner.
//!
//! Parts and local states come when a CPU first stores an object (of a class), and stay as long as the pool. A context
//! without a CPU, and a CPU whose part could not be allocated, use the shared states.

use core::ptr;

use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_sync::atomic::{AtomicPtr, Ordering};
use kmem_sync::{Cpu, CpuId, CpuSlot, LocalCounter, Pinned};

use crate::class::{AVAIL_LISTS, Class, Counts, FULL, GROW_LISTS, Handles, Local, NR_LISTS};
use crate::directory::per_frame;
use crate::locked::Locked;
use crate::meta::Meta;
use crate::settle::Dead;
use crate::zspage::{Header, NONE, Owner, Zspage};
use crate::{Corruption, Pool, StoreError, ZsEnv};

/// Whose states: 0 are the shared ones, a CPU's number plus one that CPU's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardId(pub(crate) u32);

impl ShardId {
    /// The shared states.
    pub(crate) const HOME: Self = Self(0);

    #[inline(always)]
    pub(crate) const fn of(cpu: CpuId) -> Self {
        Self(cpu.0 + 1)
    }

    pub(crate) const fn cpu(self) -> Option<CpuId> {
        match self.0.checked_sub(1) {
            Some(cpu) => Some(CpuId(cpu)),
            None => None,
        }
    }
}

/// How many objects of other owners a CPU frees before it settles them.
pub(crate) const OUTBOX: usize = 64;
/// Entries of a CPU's table of classes: one for each number a class can have. A model checker's atomics are larger, and its
/// pools have few classes.
const TABLE: usize = if size_of::<AtomicPtr<Local>>() == 8 { 256 } else { 8 };
/// CPUs whose parts are found in one load.
const NEAR: usize = if size_of::<AtomicPtr<Part>>() == 8 { 64 } else { 4 };
const FAR: usize = if size_of::<AtomicPtr<Part>>() == 8 { 16 } else { 1 };
const PARTS_IN_FRAME: usize = per_frame(size_of::<AtomicPtr<Part>>());
/// Local states in a frame.
pub(crate) const LOCALS: usize = PAGE_SIZE / size_of::<Local>();

/// What a CPU has besides its states.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) handles: Handles,
    nr_dead: u32,
    /// Handles of objects freed here whose slots belong to others; their entries keep the place.
    dead: [u32; OUTBOX],
}

impl Shard {
    /// Notes the handle of a dead object. `true`: it is time to settle.
    #[inline(always)]
    pub(crate) fn push_dead(&mut self, index: u32) -> bool {
        if let Some(slot) = self.dead.get_mut(self.nr_dead as usize) {
            *slot = index;
            self.nr_dead += 1;
        }
        self.nr_dead as usize >= OUTBOX
    }

    pub(crate) fn take_dead(&mut self) -> Dead {
        Dead::new(self.dead, core::mem::take(&mut self.nr_dead) as usize)
    }
}

/// A CPU's part of a pool; a frame of its own.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Part {
    pub(crate) slot: CpuSlot<Shard>,
    /// Frames under the CPU's zspages. Written inside the CPU's section.
    pub(crate) frames: LocalCounter,
    table: [AtomicPtr<Local>; TABLE],
}

const _: () = assert!(size_of::<Part>() <= PAGE_SIZE && size_of::<Local>() <= PAGE_SIZE / 4);

impl Part {
    fn new() -> Self {
        Self {
            slot: CpuSlot::new(Shard { handles: Handles::new(), nr_dead: 0, dead: [NONE; OUTBOX] }),
            frames: LocalCounter::new(),
            table: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        }
    }

    /// The CPU's state of a class.
    #[inline(always)]
    pub(crate) fn local(&self, class: u8) -> Option<&Local> {
        // SAFETY: null, or a state that stays as long as the pool; acquire pairs with the release in `install`.
        unsafe { self.table.get(class as usize)?.load(Ordering::Acquire).as_ref() }
    }
}

/// Where parts are found: the first CPUs' at once, others' through a frame of pointers.
pub(crate) struct Parts {
    near: [AtomicPtr<Part>; NEAR],
    far: [AtomicPtr<AtomicPtr<Part>>; FAR],
}

impl Parts {
    pub(crate) fn new() -> Self {
        Self {
            near: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
            far: core::array::from_fn(|_| AtomicPtr::new(ptr::null_mut())),
        }
    }

    #[inline(always)]
    fn get(&self, cpu: CpuId) -> Option<&Part> {
        let part = match self.near.get(cpu.index()) {
            Some(place) => place.load(Ordering::Acquire),
            None => self.far(cpu)?.load(Ordering::Acquire),
        };
        // SAFETY: null, or a part that stays as long as the pool; acquire pairs with the release in `make_part`.
        unsafe { part.as_ref() }
    }

    #[cold]
    fn far(&self, cpu: CpuId) -> Option<&AtomicPtr<Part>> {
        let index = cpu.index().checked_sub(NEAR)?;
        let frame = self.far.get(index / PARTS_IN_FRAME)?.load(Ordering::Acquire);
        if frame.is_null() {
            return None;
        }
        // SAFETY: a frame of `PARTS_IN_FRAME` pointers, which stays as long as the pool.
        Some(unsafe { &*frame.add(index % PARTS_IN_FRAME) })
    }
}

/// How an attempt to use the running CPU's state ended.
pub(crate) enum Entered<R> {
    Done(R),
    /// The CPU has no part.
    NoPart(CpuId),
    /// The CPU has no state of that class, and there is no memory at hand for one.
    NoLocal,
}

impl<E: ZsEnv> Pool<E> {
    /// The part of a CPU. Verifying pools have none.
    #[inline(always)]
    pub(crate) fn part(&self, cpu: CpuId) -> Option<&Part> {
        self.parts.get(cpu)
    }

    /// The parts there are.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (ShardId, &Part)> {
        (0..self.env.cpu().nr_cpus()).filter_map(|cpu| Some((ShardId::of(CpuId(cpu)), self.part(CpuId(cpu))?)))
    }

    /// The counts of all states of a class.
    pub(crate) fn counts_of<'a>(&'a self, class: &'a Class) -> impl Iterator<Item = &'a Counts> {
        let locals = self.parts().filter_map(|(_, part)| part.local(class.index));
        core::iter::once(&class.counts).chain(locals.map(|local| &local.counts))
    }

    /// Runs `f` on a CPU's state of a class, if there is one. No slot is kept hot there.
    ///
    /// # Safety
    /// The caller is inside the section of `part`, which is `id`'s, and got `shard` there.
    #[inline(always)]
    pub(crate) unsafe fn in_shard<'p, R>(
        &'p self,
        id: ShardId,
        part: &'p Part,
        shard: &mut Shard,
        class: &'p Class,
        f: impl FnOnce(Locked<'p, '_, E>) -> R,
    ) -> Option<R> {
        let local = part.local(class.index)?;
        let (counts, total, handles) = (&local.counts, Some(&part.frames), &mut shard.handles);
        Some(local.state.with_mut(|state| {
            // SAFETY: inside the section nobody else reaches the state (the caller's promise), and calls do not nest: `f`
            // gets no way to the shard.
            let state = unsafe { &mut *state };
            let mut locked = Locked { pool: self, class, id, counts, total, state, handles };
            if !locked.state.hot.is_empty() {
                locked.end_hot();
            }
            f(locked)
        }))
    }

    /// Runs `f` inside the section of a CPU: by the trylock on that CPU, by revocation from elsewhere.
    pub(crate) fn with_shard<'p, R>(&'p self, id: ShardId, f: impl FnOnce(&'p Part, &mut Shard) -> R) -> Option<R> {
        let cpu = id.cpu()?;
        let part = self.part(cpu)?;
        let mut f = Some(f);
        let mut run = |shard: &mut Shard| f.take().map(|f| f(part, shard));
        if let Some(pin) = Pinned::new(self.env.cpu())
            && pin.id() == cpu
        {
            // SAFETY: pinned to the CPU that the part belongs to.
            if let Some(result) = unsafe { part.slot.try_with::<E::Cpu, _>(&mut run) } {
                return result;
            }
        }
        part.slot.with_revoked(self.env.cpu(), run)
    }

    /// Runs `f` on a CPU's state of a class, if there is one, inside its section.
    pub(crate) fn with_local<'p, R>(
        &'p self,
        id: ShardId,
        class: &'p Class,
        f: impl FnOnce(Locked<'p, '_, E>) -> R,
    ) -> Option<R> {
        // SAFETY: inside the section of the part.
        self.with_shard(id, |part, shard| unsafe { self.in_shard(id, part, shard, class, f) })?
    }

    /// Runs `f` on the state that a zspage belongs to, inside its section; `None` if the record is not in use.
    pub(crate) fn with_owner<'p, R>(&'p self, header: &Header, f: impl FnOnce(Locked<'p, '_, E>) -> R) -> Option<R> {
        let mut f = Some(f);
        loop {
            let owner = Owner(header.owner.load(Ordering::Relaxed));
            if owner == Owner::NOBODY {
                return None;
            }
            let class = self.class(owner.class())?;
            let run = |locked: Locked<'p, '_, E>| {
                // Zspages change hands in sections of both sides.
                if header.owner.load(Ordering::Relaxed) == owner.0 { f.take().map(|f| f(locked)) } else { None }
            };
            let result = if owner.shard() == ShardId::HOME {
                self.locked(class, run)
            } else {
                self.with_local(owner.shard(), class, run)?
            };
            if result.is_some() {
                return result;
            }
            self.env.cpu().relax();
        }
    }

    /// Runs `f` on the running CPU's state of a class, or on the shared one: for contexts without a CPU, inside an
    /// interrupted section, under a revoker, or if `shared` asks for it.
    pub(crate) fn enter_mine<'p, R>(
        &'p self,
        class: &'p Class,
        shared: bool,
        f: impl FnOnce(Locked<'p, '_, E>) -> R,
    ) -> Entered<R> {
        let mut f = Some(f);
        let mut run = |locked: Locked<'p, '_, E>| f.take().map(|f| f(locked));
        if !shared
            && !self.verify
            && let Some(pin) = Pinned::new(self.env.cpu())
        {
            let Some(part) = self.part(pin.id()) else { return Entered::NoPart(pin.id()) };
            let id = ShardId::of(pin.id());
            // SAFETY: pinned to the CPU that the part belongs to; inside its section.
            let entered = unsafe {
                part.slot.try_with::<E::Cpu, _>(|shard| {
                    if part.local(class.index).is_none() {
                        self.install(part, class);
                    }
                    self.in_shard(id, part, shard, class, &mut run)
                })
            };
            match entered {
                Some(Some(Some(result))) => return Entered::Done(result),
                Some(_) => return Entered::NoLocal,
                None => {}
            }
        }
        self.locked(class, run).map_or(Entered::NoLocal, Entered::Done)
    }

    /// Gives a CPU a state of a class, if there is memory at hand. The caller is inside the part's section.
    #[cold]
    fn install(&self, part: &Part, class: &Class) {
        let Some(place) = part.table.get(class.index as usize) else { return };
        let Some(memory) = self.meta.with(self.env.cpu(), Meta::cut_local).and_then(|(frame, nr)| {
            // SAFETY: `LOCALS` states fit in a frame; this one has been cut for us.
            self.kept.get(frame).map(|frame| unsafe { frame.cast::<Local>().add(nr as usize) })
        }) else {
            return;
        };
        // SAFETY: as above; frames are aligned and so is each state in one.
        unsafe { memory.write(Local::new(class)) };
        place.store(memory.as_ptr(), Ordering::Release);
    }

    /// Gets a frame from which states are cut.
    #[cold]
    pub(crate) fn add_locals(&self, gfp: Gfp) -> Result<(), StoreError> {
        self.keep_frame(gfp, Meta::wants_locals, |meta, index, _| meta.set_locals(index))
    }

    /// Gives a CPU its part.
    #[cold]
    pub(crate) fn make_part(&self, cpu: CpuId, gfp: Gfp) -> Result<(), StoreError> {
        if let Some(index) = cpu.index().checked_sub(NEAR) {
            let Some(place) = self.parts.far.get(index / PARTS_IN_FRAME) else { return Err(StoreError::Full) };
            let is_missing = || place.load(Ordering::Acquire).is_null();
            if is_missing() {
                self.keep_frame(
                    gfp,
                    |_| is_missing(),
                    |_, _, frame| {
                        let pointers = frame.cast::<AtomicPtr<Part>>();
                        for i in 0..PARTS_IN_FRAME {
                            // SAFETY: they fit in the frame, which is ours.
                            unsafe { pointers.add(i).write(AtomicPtr::new(ptr::null_mut())) };
                        }
                        place.store(pointers.as_ptr(), Ordering::Release);
                    },
                )?;
            }
        }
        let place = match self.parts.near.get(cpu.index()) {
            Some(place) => place,
            None => self.parts.far(cpu).ok_or(StoreError::Full)?,
        };
        self.keep_frame(
            gfp,
            |_| place.load(Ordering::Acquire).is_null(),
            |_, _, frame| {
                let part = frame.cast::<Part>();
                // SAFETY: a part fits in a frame, which is ours.
                unsafe { part.write(Part::new()) };
                place.store(part.as_ptr(), Ordering::Release);
            },
        )
    }

    /// Makes a CPU's zspages of a class shared ones: those with room for objects, or all of them.
    pub(crate) fn gather(&self, id: ShardId, class: &Class, all: bool) -> Result<(), Corruption> {
        self.with_local(id, class, |mut locked| locked.hand_over(all)).unwrap_or(Ok(()))
    }
}

impl<'p, E: ZsEnv> Locked<'p, '_, E> {
    /// Makes zspages of this CPU's state shared ones.
    fn hand_over(&mut self, all: bool) -> Result<(), Corruption> {
        self.drop_source()?;
        self.drop_current()?;
        let class = self.class;
        self.pool.locked(class, |mut home| {
            for list in (0..NR_LISTS).filter(|&list| all || list != FULL) {
                self.hand_over_list(list, &mut home)?;
            }
            Ok(())
        })
    }

    /// Puts a whole list before the shared one.
    fn hand_over_list(&mut self, list: usize, home: &mut Locked<'p, '_, E>) -> Result<(), Corruption> {
        let first = self.state.head(list);
        let (mut number, mut last) = (first, NONE);
        let (mut inuse, mut frames, mut zspages) = (0_i64, 0_i64, 0_i64);
        while number != NONE {
            let zspage = self.view(number)?;
            zspage.owner_word().store(Owner::new(home.id, self.class.index).0, Ordering::Relaxed);
            // SAFETY: inside the section, and the closure makes no other call.
            let next = unsafe {
                zspage.with_inner(|inner| {
                    inuse += i64::from(inner.inuse);
                    frames += i64::from(inner.nr_frames);
                    inner.next
                })
            };
            zspages += 1;
            (last, number) = (number, next);
        }
        if last == NONE {
            return Ok(());
        }
        let behind = home.state.head(list);
        let zspage = home.view(last)?;
        home.edit(&zspage, |inner| inner.next = behind);
        if behind != NONE {
            let behind = home.view(behind)?;
            home.edit(&behind, |inner| inner.prev = last);
        }
        home.state.set_head(list, first);
        self.state.set_head(list, NONE);
        self.count(-inuse, -frames, -zspages);
        home.count(inuse, frames, zspages);
        Ok(())
    }

    fn count(&self, inuse: i64, frames: i64, zspages: i64) {
        self.counts.inuse.add(inuse);
        self.counts.zspages.add(zspages);
        self.count_frames(frames);
    }

    /// Takes a shared zspage with a slot that can be used at once, or else (if `growing`) one that could have one more
    /// frame, and makes it the current one.
    #[inline(always)]
    pub(crate) fn adopt(&mut self, growing: bool) -> Result<Option<u32>, Corruption> {
        let lists = if growing { GROW_LISTS } else { AVAIL_LISTS };
        if self.id == ShardId::HOME || self.class.hint.load(Ordering::Relaxed) & lists == 0 {
            return Ok(None);
        }
        self.adopt_from(lists)
    }

    #[inline(never)]
    fn adopt_from(&mut self, lists: u32) -> Result<Option<u32>, Corruption> {
        let class = self.class;
        let adopted = self.pool.locked(class, |mut home| {
            let Some(number) = home.state.highest(lists) else { return Ok(None) };
            home.unlink(number)?;
            let zspage = home.view(number)?;
            home.pass_on(&zspage, self);
            Ok(Some(number))
        })?;
        if let Some(number) = adopted {
            self.make_current(number)?;
        }
        Ok(adopted)
    }

    /// Gives an unlisted zspage to another state of the class.
    fn pass_on(&mut self, zspage: &Zspage<'p>, to: &mut Locked<'p, '_, E>) {
        let inner = self.inner(zspage);
        let (inuse, frames) = (i64::from(inner.inuse), i64::from(inner.nr_frames));
        self.count(-inuse, -frames, -1);
        to.count(inuse, frames, 1);
        zspage.owner_word().store(Owner::new(to.id, to.class.index).0, Ordering::Relaxed);
    }
}
