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
use crate::handle::Handle;
use crate::locked::{Reserve, Reserved, Stash};
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
        let class = self.class_for(len).ok_or(StoreError::TooLarge { len })?;
        let reserved = match self.locked(class, |mut class| class.reserve_fast(len)) {
            Some(reserved) => reserved,
            None => self.reserve_slow(class, len, gfp, node)?,
        };
        self.finish_store(class, &reserved, data)
    }

    #[inline(always)]
    fn finish_store(&self, class: &Class, reserved: &Reserved<'_>, data: &[u8]) -> Result<Handle, StoreError> {
        let damaged = |what| StoreError::Corrupt(crate::Corruption { zspage: reserved.number, what });
        // SAFETY: slots that are reserved exist.
        let slot = unsafe { reserved.zspage.slot(reserved.slot) };
        // SAFETY: as above; the class's slots have room for the length.
        let runs = unsafe { reserved.zspage.runs_of(reserved.slot, data.len()) }.ok_or(damaged("frame word"))?;
        // SAFETY: the slot is reserved for us, and its frames stay under it.
        slot.token.with_mut(|_| unsafe { runs.write(data) });
        let entry = reserved.free.live(data.len(), reserved.slot, reserved.number);
        let publish = || {
            // Release pairs with the acquire of readers' loads of the entry.
            reserved.entry.store(entry.0, Ordering::Release);
            // Release pairs with the acquire in `Zspage::owner`: who finds the index finds bytes and entry.
            slot.owner.store(reserved.index, Ordering::Release);
        };
        if self.verify {
            self.publish_verified(class, reserved, data.len(), publish);
        } else {
            publish();
        }
        Ok(Handle::pack(self.tag, entry, reserved.index))
    }

    #[cold]
    fn publish_verified(&self, class: &Class, reserved: &Reserved<'_>, len: usize, publish: impl FnOnce()) {
        self.locked(class, |_| {
            // SAFETY: verifying pools set records up with lengths.
            if let Some(slot) = unsafe { reserved.zspage.lens() }.get(reserved.slot) {
                slot.store(len as u16, Ordering::Relaxed);
            }
            publish();
        });
    }

    /// Reserves a slot when memory is needed, or another zspage.
    #[cold]
    #[inline(never)]
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
