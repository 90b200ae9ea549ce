//! Freeing behind the hot path: making room among the sheaves, or going to the slab.
//!
//! ```text
//! main ─▶ spare ─▶ barn (empty for full) ─▶ a new sheaf ─▶ flush the spare to its slabs
//! another node's object, no CPU, no sheaves ─▶ its slab
//! ```

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, Gfp};
use kmem_sync::CpuId;

use crate::backend::Locking;
use crate::sheaf::{CpuSheaves, Sheaf};
use crate::slab::{OWNER_LOW, Slab, local_owner_word};
use crate::{KmemCache, ObjectError, SlabEnv, SlabFlags, Slabs};

/// Flags of an allocation for a sheaf made while freeing: nothing is reclaimed for it, nobody is woken.
const SHEAF_FOR_FREE: Gfp = Gfp::NORETRY.union(Gfp::NOWARN).union(Gfp::NOMEMALLOC);

/// What a CPU's section came to when it looked for room.
enum Room {
    Done,
    DoubleFree,
    /// An empty sheaf would help.
    NoSheaf,
    /// Another node's object, or no sheaves here.
    Slab,
}

impl<E: SlabEnv> Slabs<E> {
    #[cold]
    #[inline(never)]
    pub(crate) unsafe fn free_slow(
        &self,
        cache: &KmemCache,
        object: NonNull<u8>,
        caller: &'static Location<'static>,
    ) -> Result<(), ObjectError> {
        // SAFETY: given up by the caller.
        let result = unsafe { self.free_checked(cache, object, Locking::Wait, caller) };
        if let Err(error) = result {
            self.report_refused(cache, error);
        }
        result
    }

    /// Frees with every check that the slab level can make.
    ///
    /// # Safety
    /// The caller gives up the object.
    pub(crate) unsafe fn free_checked(
        &self,
        cache: &KmemCache,
        object: NonNull<u8>,
        how: Locking,
        caller: &'static Location<'static>,
    ) -> Result<(), ObjectError> {
        let address = object.addr().get();
        let (owner, slab) = Slab::find(self.env.frames(), object).ok_or(ObjectError::NotSlab { address })?;
        if owner & !OWNER_LOW != core::ptr::from_ref(cache).addr() as u64 {
            return Err(ObjectError::WrongCache { address });
        }
        if cache.is_debug() {
            self.uncharge_found(cache, object);
            // SAFETY: given up by the caller.
            return unsafe { self.debug_free(cache, owner, &slab, object, how, caller) };
        }
        let state = slab.state();
        let index = slab.index(cache, state.total(), object.as_ptr()).ok_or(ObjectError::NotAnObject { address })?;
        if state.inuse() == 0 || state.head() == Some(index) {
            return Err(ObjectError::DoubleFree { address });
        }
        let keeps = cache.ctor.is_some() || cache.flags.contains(SlabFlags::TYPESAFE_BY_RCU);
        if cache.flags.contains(SlabFlags::INIT_ON_FREE) && !keeps {
            // SAFETY: an object has `object_size` bytes, given up by the caller.
            unsafe { object.write_bytes(0, cache.object_size()) };
        }
        self.uncharge(cache, &slab, index);
        if how == Locking::Wait {
            self.poll_slow(cache);
        }
        // SAFETY: given up by the caller, an object of the cache.
        if self.has_payers(cache) && unsafe { self.push_own(cache, owner, object) } {
            return Ok(());
        }
        // SAFETY: given up by the caller.
        match unsafe { self.free_to_sheaf(cache, owner, object, how) } {
            Room::Done => Ok(()),
            Room::DoubleFree => Err(ObjectError::DoubleFree { address }),
            // SAFETY: given up by the caller; a chain of one.
            _ => unsafe { self.put_chain(cache, owner, &slab, index, object, 1, how) },
        }
    }

    unsafe fn free_to_sheaf(&self, cache: &KmemCache, owner: u64, object: NonNull<u8>, how: Locking) -> Room {
        let node = self.env.context().local_node().index();
        let section = |slot: &mut CpuSheaves, _: CpuId| {
            // SAFETY: given up by the caller.
            unsafe { self.find_room(cache, slot, node, owner, object, how) }
        };
        match cache.slots.try_with(self.env.cpu(), section) {
            Some(Room::NoSheaf) => {}
            Some(room) => return room,
            None => return Room::Slab,
        }
        let Some(sheaf) = self.new_sheaf(cache, SHEAF_FOR_FREE, how) else { return Room::Slab };
        let mut sheaf = Some(sheaf);
        let room = cache.slots.try_with(self.env.cpu(), |slot, id| {
            // The CPU may be another, and others may have been here.
            if !slot.has_main() {
                slot.main = sheaf.take().unwrap_or(slot.main);
            } else if slot.spare.is_null() {
                slot.spare = slot.main;
                slot.main = sheaf.take().unwrap_or(slot.main);
            }
            // Before the object is out of our hands: after that the cache may be destroyed.
            sheaf = sheaf.take().and_then(|sheaf| self.offer_empty(cache, node, sheaf, how));
            section(slot, id)
        });
        if let Some(sheaf) = sheaf {
            self.free_sheaf(sheaf, how);
        }
        match room {
            Some(Room::NoSheaf) | None => Room::Slab,
            Some(room) => room,
        }
    }

    /// Inside a CPU's section: everything within reach that makes room for `object`.
    ///
    /// # Safety
    /// The caller gives up the object, whose frame has the owner word `owner`; unless the result is `Done` it gets it
    /// back.
    unsafe fn find_room(
        &self,
        cache: &KmemCache,
        slot: &mut CpuSheaves,
        node: usize,
        owner: u64,
        object: NonNull<u8>,
        how: Locking,
    ) -> Room {
        let cpu = self.env.cpu();
        let local = local_owner_word(cache, node);
        if cache.frees_plainly()
            && let Some(word) = local
        {
            slot.owner = word;
        }
        if local != Some(owner) {
            return Room::Slab;
        }
        // SAFETY: the slot holds its sheaves; what the barn gives is ours, what it takes it may keep.
        if unsafe { Sheaf::tops(slot.main, object) } {
            return Room::DoubleFree;
        }
        // SAFETY: as above.
        if unsafe { Sheaf::push(slot.main, object) } {
            return Room::Done;
        }
        let Some(home) = cache.node(node) else { return Room::Slab };
        if !slot.has_main() || slot.spare.is_null() {
            let Some(empty) = home.barn.take_empty(cpu, how) else { return Room::NoSheaf };
            if slot.has_main() {
                slot.spare = slot.main;
            }
            slot.main = empty;
        } else {
            // SAFETY: as above.
            let spare_is_full = unsafe { (*slot.spare).len == (*slot.spare).cap };
            if !spare_is_full {
                core::mem::swap(&mut slot.main, &mut slot.spare);
            } else {
                // SAFETY: as above.
                match unsafe { home.barn.put_full(cpu, how, slot.main, home.barn.room(), true) } {
                    Ok(Some(empty)) => slot.main = empty,
                    Ok(None) => {
                        slot.main = slot.spare;
                        slot.spare = core::ptr::null_mut();
                        return Room::NoSheaf;
                    }
                    Err(()) if how == Locking::Try => return Room::Slab,
                    Err(()) => {
                        // SAFETY: the spare's objects are free and leave it.
                        unsafe {
                            self.put_objects(cache, Sheaf::contents(slot.spare), how);
                            (*slot.spare).len = 0;
                        }
                        slot.batch = 0;
                        if home.barn.note_overflow()
                            && let Some(excess) = home.barn.take_full(cpu, how)
                        {
                            self.empty_sheaf(cache, excess);
                        }
                        core::mem::swap(&mut slot.main, &mut slot.spare);
                    }
                }
            }
        }
        // SAFETY: as above.
        if unsafe { Sheaf::push(slot.main, object) } { Room::Done } else { Room::Slab }
    }
}
