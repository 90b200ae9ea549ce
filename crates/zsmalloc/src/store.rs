//! Storing: reserve a slot under the class lock, copy outside of it, publish.
//!
//! ```text
//! class lock   slot RESERVED, handle taken      compaction and migration keep away from reserved slots
//! no lock      copy the bytes
//!              entry := live                    the handle works
//!              slot's owner := index            the object can be moved
//! ```

use kmem_gfp::{FrameTable, Gfp, NodeId, Order, PAGE_SIZE, PageAllocator};
use kmem_sync::atomic::Ordering;

use crate::class::Class;
use crate::handle::{Entry, Handle};
use crate::locked::{Reserve, Reserved};
use crate::released::Stash;
use crate::zspage::Slot;
use crate::{Pool, StoreError, ZsEnv};

impl<E: ZsEnv> Pool<E> {
    /// Stores a copy of `data`, 1 to 4096 bytes, and returns its handle.
    ///
    /// Constant time. Contexts: any that `gfp` allows, except interrupt handlers and NMI. `gfp` is used when a frame is
    /// needed, one in some objects; `HIGHMEM` and `MOVABLE` apply to frames of objects only (highmem must be mapped).
    ///
    /// # Errors
    /// [`StoreError`]; nothing has changed.
    #[doc(alias("zs_malloc", "zs_obj_write"))]
    #[inline]
    pub fn store(&self, data: &[u8], gfp: Gfp) -> Result<Handle, StoreError> {
        self.store_on(data, gfp, None)
    }

    /// [`store`](Self::store), with new frames preferably on `node`.
    ///
    /// # Errors
    /// Those of [`store`](Self::store).
    #[inline]
    pub fn store_on(&self, data: &[u8], gfp: Gfp, node: Option<NodeId>) -> Result<Handle, StoreError> {
        let len = data.len();
        if len.wrapping_sub(1) >= PAGE_SIZE {
            return Err(if len == 0 { StoreError::Empty } else { StoreError::TooLarge { len } });
        }
        // SAFETY: the length has just been compared.
        let class = unsafe { self.class_of_length(len) };
        let Some(reserved) = self.locked(class, |mut class| class.reserve_fast(len)) else {
            return self.store_slow(class, data, gfp, node);
        };
        // SAFETY: reserved for us, in a class for this length.
        let slot = unsafe { fill(&reserved, data) };
        let entry = reserved.free.live(len, reserved.slot, reserved.number);
        publish(&reserved, slot, entry);
        Ok(Handle::pack(self.tag, entry, reserved.index))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&self, class: &Class, data: &[u8], gfp: Gfp, node: Option<NodeId>) -> Result<Handle, StoreError> {
        let reserved = self.reserve_slow(class, data.len(), gfp, node)?;
        // SAFETY: reserved for us, in a class for this length.
        let slot = unsafe { fill(&reserved, data) };
        let entry = reserved.free.live(data.len(), reserved.slot, reserved.number);
        if self.verify {
            self.locked(class, |_| {
                // SAFETY: verifying pools set records up with lengths.
                if let Some(len) = unsafe { reserved.zspage.lens() }.get(reserved.slot) {
                    len.store(data.len() as u16, Ordering::Relaxed);
                }
                publish(&reserved, slot, entry);
            });
        } else {
            publish(&reserved, slot, entry);
        }
        Ok(Handle::pack(self.tag, entry, reserved.index))
    }

    /// Reserves a slot when memory is needed, or another zspage.
    fn reserve_slow<'p>(
        &'p self,
        class: &'p Class,
        len: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<Reserved<'p>, StoreError> {
        let mut stash = Stash::empty();
        let result = loop {
            let needs = match self.locked(class, |mut class| class.reserve(len, &mut stash)) {
                Ok(Reserve::Done(reserved)) => break Ok(reserved),
                Ok(needs) => needs,
                Err(damage) => break Err(damage.into()),
            };
            let got = match needs {
                Reserve::Handles => self.take_handles(gfp).map(|chain| stash.handles = Some(chain)),
                Reserve::Record => self.take_record(class.bucket, gfp).map(|record| stash.record = Some(record)),
                Reserve::Frames(nr) => self.fill_stash(&mut stash, nr, gfp, node),
                Reserve::Done(_) => Ok(()),
            };
            if let Err(error) = got {
                break Err(error);
            }
        };
        self.drop_stash(&mut stash, class);
        result
    }

    fn fill_stash(&self, stash: &mut Stash, nr: usize, gfp: Gfp, node: Option<NodeId>) -> Result<(), StoreError> {
        for frame in stash.frames.iter_mut().take(nr).filter(|frame| frame.is_none()) {
            let pfn = self.env.pages().alloc_pages(gfp, Order::ZERO, node)?;
            let Some(address) = self.env.frames().address_of(pfn) else {
                self.give_frame(pfn);
                return Err(StoreError::Unmapped(pfn));
            };
            *frame = Some((pfn, address));
        }
        Ok(())
    }
}

/// Copies an object into its slot.
///
/// # Safety
/// The slot was reserved for the caller by a class for objects of this length, and has not been published.
#[inline(always)]
unsafe fn fill<'p>(reserved: &Reserved<'p>, data: &[u8]) -> &'p Slot {
    // SAFETY: slots that are reserved exist, and their frames stay under them; the length is the class's (the caller).
    let (slot, runs) =
        unsafe { (reserved.zspage.slot(reserved.slot), reserved.zspage.runs_of(reserved.slot, data.len())) };
    // SAFETY: the slot is the caller's alone, and `runs` are as long as `data`.
    slot.token.with_mut(|_| unsafe { runs.write(data) });
    slot
}

/// Makes the handle work and the object movable.
#[inline(always)]
fn publish(reserved: &Reserved<'_>, slot: &Slot, entry: Entry) {
    // Release pairs with the acquire of readers' loads of the entry.
    reserved.entry.store(entry.0, Ordering::Release);
    // Release pairs with the acquire in `Zspage::owner`: who finds the index finds bytes and entry.
    slot.owner.store(reserved.index, Ordering::Release);
}
