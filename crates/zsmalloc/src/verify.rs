//! Checks of metadata before it is followed, for pools with [`DebugFlags::VERIFY`](crate::DebugFlags::VERIFY).
//!
//! | what | is checked against |
//! | --- | --- |
//! | number of a zspage | what the words of the metadata frame say it holds |
//! | inner part of a record | a sum beside it |
//! | a slot's owner | the entry it names, which names the slot |
//! | an entry | the slot's owner and the length kept with the record; free entries carry a check of their own |
//! | a frame's word | the frame's own words, which name the zspage; its count, against the slots' owners |

use kmem_gfp::FrameTable;
use kmem_sync::atomic::Ordering;

use crate::access::Found;
use crate::class::Class;
use crate::handle::Entry;
use crate::locked::{Locked, is_list};
use crate::shard::ShardId;
use crate::zspage::{FIRST_SPECIAL, NONE, Owner, Zspage};
use crate::{Corruption, Pool, ZsEnv};

fn check(zspage: u32, what: &'static str, sound: bool) -> Result<(), Corruption> {
    if sound { Ok(()) } else { Err(Corruption { zspage, what }) }
}

/// The owner of a class's zspages in a verifying pool.
fn shared_owner(class: &Class) -> u32 {
    Owner::new(ShardId::HOME, class.index).0
}

impl<'p, E: ZsEnv> Locked<'p, '_, E> {
    /// Writes the sum of a zspage's inner part.
    #[cold]
    pub(crate) fn seal(&self, zspage: &Zspage<'p>) {
        let sum = self.inner(zspage).sum();
        // SAFETY: this is a verifying pool, whose records were set up with a sum.
        unsafe { zspage.sum() }.store(sum, Ordering::Relaxed);
    }

    /// Checks everything known about a zspage.
    #[cold]
    #[inline(never)]
    pub(crate) fn verify(&self, number: u32) -> Result<(), Corruption> {
        check(number, "zspage number", self.pool.names_record(number, self.class.bucket))?;
        let zspage = self.view(number)?;
        check(number, "class", zspage.owner_word().load(Ordering::Relaxed) == Owner::new(self.id, self.class.index).0)?;
        let inner = self.inner(&zspage);
        // SAFETY: this is a verifying pool, whose records were set up with a sum.
        check(number, "sum", unsafe { zspage.sum() }.load(Ordering::Relaxed) == inner.sum())?;
        check(number, "list", is_list(inner.list))?;
        let mut inuse = 0;
        for slot in 0..zspage.shape().slots() {
            let owner = zspage.owner(slot);
            if owner < FIRST_SPECIAL {
                self.pool.verify_owner(number, &zspage, slot, owner)?;
            }
            inuse += usize::from(owner != NONE);
            let is_avail = owner == NONE && zspage.is_slot_backed(slot);
            check(number, "slot owner", inner.is_avail(slot) == is_avail)?;
        }
        check(number, "object count", inuse == inner.inuse as usize)?;
        (0..zspage.shape().frames()).try_for_each(|frame| self.pool.verify_frame(number, &zspage, frame))
    }
}

impl<E: ZsEnv> Pool<E> {
    fn verify_owner(&self, number: u32, zspage: &Zspage<'_>, slot: usize, owner: u32) -> Result<(), Corruption> {
        let entry = self.entry(owner).ok_or(Corruption { zspage: number, what: "slot owner" })?;
        let place = Entry(entry.load(Ordering::Acquire));
        // SAFETY: this is a verifying pool, whose records were set up with lengths.
        let len = unsafe { zspage.lens() }.get(slot).map_or(0, |len| len.load(Ordering::Relaxed));
        let names_us = place.is_live() && place.zspage() == number && place.slot() == slot;
        check(number, "slot owner or handle entry", names_us)?;
        check(number, "object length", place.len() == len as usize)
    }

    fn verify_frame(&self, number: u32, zspage: &Zspage<'_>, frame: usize) -> Result<(), Corruption> {
        let word = zspage.frame(frame);
        if !word.is_backed() {
            return check(number, "frame word", word.0 == 0);
        }
        let pfn = self.env.frames().frame_of(word.address());
        let state = pfn.and_then(|pfn| self.frame_state(pfn));
        check(number, "frame word", state == Some(u64::from(number) << 8 | frame as u64))?;
        let (start, end) = zspage.shape().slots_of(frame);
        let live = (start..end).filter(|&slot| zspage.owner(slot) != NONE).count();
        check(number, "frame count", word.live() == live as u64)
    }

    /// Checks a pinned object.
    #[cold]
    #[inline(never)]
    pub(crate) fn verify_object(&self, found: &Found<'_>, index: u32) -> Result<(), Corruption> {
        let (number, slot, zspage) = (found.place.zspage(), found.place.slot(), &found.zspage);
        check(number, "class", zspage.owner_word().load(Ordering::Relaxed) == shared_owner(found.class))?;
        check(number, "slot number", slot < zspage.shape().slots())?;
        check(number, "slot owner", zspage.owner(slot) == index)?;
        self.verify_owner(number, zspage, slot, index)?;
        let (first, last) = zspage.shape().frames_of(slot);
        for frame in first..=last {
            let word = zspage.frame(frame);
            let pfn = self.env.frames().frame_of(word.address()).filter(|_| word.is_backed());
            let state = pfn.and_then(|pfn| self.frame_state(pfn));
            check(number, "frame word", state == Some(u64::from(number) << 8 | frame as u64))?;
        }
        Ok(())
    }

    /// Checks an entry before its object is freed, under the lock of its length's class.
    #[cold]
    #[inline(never)]
    pub(crate) fn verify_place(&self, place: Entry, index: u32, class: &Class) -> Result<(), Corruption> {
        let number = place.zspage();
        check(number, "zspage number", self.names_record(number, class.bucket))?;
        let header = self.header(number).ok_or(Corruption { zspage: number, what: "zspage number" })?;
        // SAFETY: a record of the class's bucket; its class is checked next, before more than the header is used.
        let zspage = unsafe { Zspage::new(header, class) };
        check(number, "class", zspage.owner_word().load(Ordering::Relaxed) == shared_owner(class))?;
        check(number, "slot number", place.slot() < class.shape.slots())?;
        check(number, "slot owner", zspage.owner(place.slot()) == index)?;
        self.verify_owner(number, &zspage, place.slot(), index)
    }
}
