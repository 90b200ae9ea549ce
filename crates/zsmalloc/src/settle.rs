//! Settling: the slots of objects that were freed on another CPU than their owner's.
//!
//! ```text
//! free on CPU 1 of CPU 0's object    entry dead, handle noted in CPU 1's outbox      nobody waits
//! settling                           outbox ─▶ by owner ─▶ section of each owner once ─▶ slots free
//! ```
//! Until then the entry of a dead object keeps its place.

use kmem_sync::Pinned;
use kmem_sync::atomic::Ordering;

use crate::handle::Entry;
use crate::released::Released;
use crate::shard::{OUTBOX, Part, Shard, ShardId};
use crate::zspage::{Header, NONE, Owner};
use crate::{Corruption, Pool, ZsEnv};

/// Dead objects to be settled.
pub(crate) struct Dead {
    list: [u32; OUTBOX],
    nr: usize,
}

impl Dead {
    pub(crate) const fn new(list: [u32; OUTBOX], nr: usize) -> Self {
        Self { list, nr }
    }

    fn get(&self, at: usize) -> u32 {
        self.list.get(at).copied().unwrap_or(NONE)
    }

    fn swap_remove(&mut self, at: usize) {
        self.nr = self.nr.saturating_sub(1);
        let last = self.get(self.nr);
        if let Some(slot) = self.list.get_mut(at) {
            *slot = last;
        }
    }
}

impl<E: ZsEnv> Pool<E> {
    /// Settles the frees of other owners' objects that the running CPU has gathered.
    #[cold]
    #[inline(never)]
    pub(crate) fn settle_mine(&self) {
        let Some(pin) = Pinned::new(self.env.cpu()) else { return };
        let id = ShardId::of(pin.id());
        drop(pin);
        if let Some(dead) = self.with_shard(id, |_, shard| shard.take_dead()) {
            self.settle_dead(dead);
        }
    }

    /// Gives back the slots of objects that were freed on another CPU than they were stored on.
    ///
    /// Such an object is dead from the moment of its free: its handle is stale and nobody finds it. Its slot, and a frame that
    /// runs empty with it, stay with the pool until the CPU that freed it has gathered 64 of them and settles them together;
    /// so up to 63 for each CPU are outstanding, and [`total_pages`](Self::total_pages) counts their frames.
    /// [`stats`](Self::stats), [`class_stats`](Self::class_stats), [`nr_objects`](Self::nr_objects),
    /// [`compact`](Self::compact) and dropping the pool do this first. What a reader still holds waits for the reader.
    ///
    /// Reaches into every CPU that has used the pool: a barrier on all CPUs for each. Contexts: any with interrupts on.
    pub fn settle_frees(&self) {
        for (id, _) in self.parts() {
            let dead = self.with_shard(id, |part, shard| {
                for class in self.classes() {
                    // SAFETY: inside the part's section.
                    unsafe { self.in_shard(id, part, shard, class, |_| ()) };
                }
                shard.take_dead()
            });
            if let Some(dead) = dead {
                self.settle_dead(dead);
            }
        }
    }

    fn place_of_dead(&self, index: u32) -> Option<(&Header, Owner)> {
        let place = Entry(self.entry(index)?.load(Ordering::Acquire));
        let header = self.header(place.zspage())?;
        Some((header, Owner(header.owner.load(Ordering::Relaxed))))
    }

    fn settle_dead(&self, mut dead: Dead) {
        while let Some(last) = dead.nr.checked_sub(1) {
            let index = dead.get(last);
            let Some((header, owner)) = self.place_of_dead(index) else {
                dead.swap_remove(last);
                continue;
            };
            let Some(class) = self.class(owner.class()) else {
                dead.swap_remove(last);
                continue;
            };
            let mut released = Released::new();
            let result = if owner.shard() == ShardId::HOME {
                self.locked(class, |mut locked| {
                    if header.owner.load(Ordering::Relaxed) != owner.0 {
                        return Ok(());
                    }
                    dead.swap_remove(last);
                    locked.free_dead(index, &mut released)
                })
            } else {
                let settle =
                    |part, shard: &mut Shard| self.settle_in(owner.shard(), part, shard, &mut dead, &mut released);
                self.with_shard(owner.shard(), settle).unwrap_or(Ok(()))
            };
            self.release(&mut released);
            if let Err(damage) = result {
                self.report_damage(damage);
            }
        }
    }

    /// Settles those of some dead objects that lie in zspages of one CPU, as far as `released` has room.
    fn settle_in<'p>(
        &'p self,
        id: ShardId,
        part: &'p Part,
        shard: &mut Shard,
        dead: &mut Dead,
        released: &mut Released,
    ) -> Result<(), Corruption> {
        for at in (0..dead.nr).rev() {
            if !released.has_room_for_free() {
                break;
            }
            let index = dead.get(at);
            let Some((_, owner)) = self.place_of_dead(index).filter(|(_, owner)| owner.shard() == id) else { continue };
            let Some(class) = self.class(owner.class()) else { continue };
            dead.swap_remove(at);
            // SAFETY: the caller is inside the part's section.
            unsafe { self.in_shard(id, part, shard, class, |mut locked| locked.free_dead(index, released)) }
                .unwrap_or(Ok(()))?;
        }
        Ok(())
    }
}
