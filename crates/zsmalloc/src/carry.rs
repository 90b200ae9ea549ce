//! The inner loop of compaction: objects from the end of one zspage into the holes of another.
//!
//! Everything that does not change from object to object is looked up once; per object there remain the entry, two slots, two
//! frame words and the copy. Pools that verify their metadata move objects one by one, with all checks
//! ([`compact`](crate::compact)).

use kmem_sync::atomic::Ordering;

use crate::ZsEnv;
use crate::handle::Entry;
use crate::locked::Locked;
use crate::released::Released;
use crate::zspage::{FIRST_SPECIAL, Inner, NONE, Zspage};

impl<'p, E: ZsEnv> Locked<'p, '_, E> {
    /// Moves objects of `from`, from below slot `end` down, into holes of `to`, until one of the two is through, `limit`
    /// objects were moved or the class has no frame to gain. Returns how many were moved, and the slot reached.
    ///
    /// # Safety
    /// Both are zspages of this state, not the same; the lock word of `from` is exclusively ours; the pool does not verify.
    pub(crate) unsafe fn carry(
        &mut self,
        from: &Zspage<'p>,
        end: usize,
        destination: u32,
        to: &Zspage<'p>,
        limit: usize,
        released: &mut Released,
    ) -> (usize, usize) {
        let (size, frames_at) = (self.state.size, self.state.frames_at);
        let slots = from.slots();
        let mut slot = end.min(slots.len());
        let mut moved = 0;
        while moved < limit && slot > 0 {
            slot -= 1;
            let Some(old) = slots.get(slot) else { break };
            let index = old.owner.load(Ordering::Relaxed);
            if index >= FIRST_SPECIAL {
                continue;
            }
            let Some(entry) = self.pool.entry(index) else { continue };
            let place = Entry(entry.load(Ordering::Relaxed));
            if !place.is_live() {
                continue;
            }
            let len = place.len();
            // SAFETY: inside the section, and the closure makes no other call.
            let Some(hole) = (unsafe { to.with_inner(Inner::take_first) }) else {
                slot += 1;
                break;
            };
            // SAFETY: the zspages are of this class, whose slot size and layout these are; both slots exist and have their
            // frames, the one holds an object of that length, and the other is ours alone.
            let (new, runs) = unsafe { Zspage::occupy(to.header(), hole, size, frames_at, len) };
            old.token.with(|_| {
                // SAFETY: nobody is inside `from`; the hole is ours; both are of one size, and differ.
                new.token.with_mut(|_| unsafe { runs.copy_from(&from.runs_of(slot, len)) });
            });
            // Release pairs with the acquire of readers' loads. Another CPU may free the object meanwhile.
            let next = place.moved(len, hole, destination);
            if entry.compare_exchange(place.0, next.0, Ordering::Release, Ordering::Relaxed).is_err() {
                // SAFETY: as above.
                unsafe { Zspage::vacate(to.header(), hole, size, frames_at) };
                self.give_hole_back(to, hole);
                continue;
            }
            new.owner.store(index, Ordering::Relaxed);
            old.owner.store(NONE, Ordering::Relaxed);
            moved += 1;
            // SAFETY: inside the section, and the closure makes no other call; the slot exists.
            let left = unsafe {
                from.with_inner(|inner| {
                    inner.set_avail(slot);
                    inner.inuse = inner.inuse.wrapping_sub(1);
                });
                Zspage::vacate(from.header(), slot, size, frames_at)
            };
            if left == 0 {
                self.unback_empty(from, slot, released);
                if self.freeable() == 0 {
                    break;
                }
            }
        }
        (moved, slot)
    }
}
