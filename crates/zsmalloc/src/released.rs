//! What goes into a section and what comes out of it: memory.
//!
//! Sections neither allocate nor free. A store brings a [`Stash`] of what it has been told to bring; frees and moves
//! leave a [`Released`] of what is no longer needed.

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use kmem_gfp::Pfn;

use crate::class::Class;
use crate::locked::MOVES_PER_SECTION;
use crate::meta::Chain;
use crate::{Corruption, Pool, ZsEnv};

/// A free empties at most two frames, and so does a move; two more are kept from section to section of a compaction.
const MAX_RELEASED: usize = 2 + 2 * MOVES_PER_SECTION;

/// What a section leaves to be given back.
///
/// # Invariants
/// The first `nr_frames` of `frames` and the first `nr_records` of `records` are written.
#[derive(Debug)]
pub(crate) struct Released {
    pub(crate) is_used: bool,
    nr_frames: u8,
    nr_records: u8,
    frames: [MaybeUninit<Pfn>; MAX_RELEASED],
    /// With their buckets.
    records: [MaybeUninit<(u32, u8)>; MAX_RELEASED],
    pub(crate) handles: Option<Chain>,
    /// Damage found on the way.
    damage: Option<Corruption>,
}

impl Released {
    #[inline(always)]
    pub(crate) const fn new() -> Self {
        // INVARIANT: nothing is written, and none is said to be.
        Self {
            is_used: false,
            nr_frames: 0,
            nr_records: 0,
            frames: [const { MaybeUninit::uninit() }; MAX_RELEASED],
            records: [const { MaybeUninit::uninit() }; MAX_RELEASED],
            handles: None,
            damage: None,
        }
    }

    pub(crate) fn set_damage(&mut self, damage: Corruption) {
        self.damage = Some(damage);
        self.is_used = true;
    }

    pub(crate) fn take_damage(&mut self) -> Option<Corruption> {
        self.damage.take()
    }

    pub(crate) fn push_frame(&mut self, pfn: Pfn) {
        if let Some(frame) = self.frames.get_mut(self.nr_frames as usize) {
            // INVARIANT: written, then counted.
            frame.write(pfn);
            self.nr_frames += 1;
            self.is_used = true;
        }
    }

    pub(crate) fn push_record(&mut self, record: u32, bucket: u8) {
        if let Some(slot) = self.records.get_mut(self.nr_records as usize) {
            // INVARIANT: written, then counted.
            slot.write((record, bucket));
            self.nr_records += 1;
            self.is_used = true;
        }
    }

    /// Whether what one more free leaves will fit in.
    pub(crate) fn has_room_for_free(&self) -> bool {
        self.nr_frames as usize + 2 <= MAX_RELEASED
            && (self.nr_records as usize) < MAX_RELEASED
            && self.handles.is_none()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.nr_frames as usize == MAX_RELEASED
    }

    pub(crate) fn nr_frames(&self) -> usize {
        self.nr_frames.into()
    }

    /// Takes a frame out again, to put it to another use.
    pub(crate) fn pop_frame(&mut self) -> Option<Pfn> {
        self.nr_frames = self.nr_frames.checked_sub(1)?;
        // SAFETY: it was among the written (type invariant).
        self.frames.get(self.nr_frames as usize).map(|frame| unsafe { frame.assume_init() })
    }

    fn pop_record(&mut self) -> Option<(u32, u8)> {
        self.nr_records = self.nr_records.checked_sub(1)?;
        // SAFETY: it was among the written (type invariant).
        self.records.get(self.nr_records as usize).map(|record| unsafe { record.assume_init() })
    }
}

/// What a store brings into the section: memory that it allocated before.
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

    pub(crate) fn nr_frames(&self) -> usize {
        self.frames.iter().flatten().count()
    }

    pub(crate) fn take_frame(&mut self) -> Option<(Pfn, NonNull<u8>)> {
        self.frames.iter_mut().find_map(Option::take)
    }
}

impl<E: ZsEnv> Pool<E> {
    /// Gives back what a section left.
    #[inline(always)]
    pub(crate) fn release(&self, released: &mut Released) {
        if released.is_used {
            self.release_slow(released);
        }
    }

    /// Gives back what a section left, but for some frames.
    pub(crate) fn release_but(&self, released: &mut Released, keep: usize) {
        let mut rest = core::mem::replace(released, Released::new());
        for _ in 0..keep {
            if let Some(pfn) = rest.pop_frame() {
                released.push_frame(pfn);
            }
        }
        self.release(&mut rest);
    }

    #[cold]
    #[inline(never)]
    fn release_slow(&self, released: &mut Released) {
        while let Some(pfn) = released.pop_frame() {
            self.give_frame(pfn);
        }
        while let Some((record, bucket)) = released.pop_record() {
            self.give_record(record, bucket);
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
