//! Storing: on a CPU that has used the class before, the slot that was kept hot, or the first free slot of its current
//! zspage under its first free handle.
//!
//! ```text
//! section   slot out of `avail`, handle off the stack
//!           copy the bytes
//!           slot's owner := index, entry := live      the handle works
//! ```
//! No other CPU's data is touched, and there is no atomic instruction. What needs memory leaves the section to get it and
//! enters again.

use core::ptr;

use kmem_gfp::{FrameTable, Gfp, NodeId, Order, PAGE_SIZE, PageAllocator};
use kmem_sync::Pinned;
use kmem_sync::atomic::Ordering;

use crate::class::{Handles, Local, State};
use crate::handle::{Entry, Handle};
use crate::locked::Step;
use crate::released::Stash;
use crate::shard::{Entered, Part, Shard};
use crate::zspage::{Inner, Zspage};
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
    #[inline(always)]
    pub fn store(&self, data: &[u8], gfp: Gfp) -> Result<Handle, StoreError> {
        self.store_on(data, gfp, None)
    }

    /// [`store`](Self::store), with new frames preferably on `node`.
    ///
    /// # Errors
    /// Those of [`store`](Self::store).
    #[inline(always)]
    pub fn store_on(&self, data: &[u8], gfp: Gfp, node: Option<NodeId>) -> Result<Handle, StoreError> {
        match self.store_fast(data) {
            Some(handle) => Ok(handle),
            None => self.store_slow(data, gfp, node),
        }
    }

    /// Stores on the running CPU, if that takes no memory.
    #[inline]
    fn store_fast(&self, data: &[u8]) -> Option<Handle> {
        if data.len().wrapping_sub(1) >= PAGE_SIZE {
            return None;
        }
        let pin = Pinned::quick(self.env.cpu())?;
        let part = self.part(pin.id())?;
        // SAFETY: pinned to the CPU that the part belongs to.
        unsafe { part.slot.try_with::<E::Cpu, _>(|shard| self.store_local(part, shard, data)) }?
    }

    /// Stores in the slot that was kept hot, or in the current zspage of the running CPU, whose section this is.
    #[inline(always)]
    fn store_local(&self, part: &Part, shard: &mut Shard, data: &[u8]) -> Option<Handle> {
        let len = data.len();
        let local = part.local(self.geometry.class_of(len))?;
        // SAFETY: inside the section nobody else reaches the state, and nothing else is called before `state` is done with.
        let state = local.state.with_mut(|state| unsafe { &mut *state });
        let hot = &mut state.hot;
        // SAFETY: null, or an entry, which stays as long as the pool.
        let Some(entry) = (unsafe { hot.entry.as_ref() }) else { return self.store_cold(local, shard, data) };
        hot.entry = ptr::null();
        local.counts.bytes.add(len as i64);
        let (handle, life, bytes) = (hot.handle, hot.life, hot.bytes);
        // SAFETY: a hot slot exists, has its frame, and holds lengths of its class; it is ours alone, and so is its entry.
        unsafe {
            Zspage::slot_of(&*hot.header, life.slot())
                .token
                .with_mut(|_| bytes.copy_from_nonoverlapping(data.as_ptr(), len))
        };
        // Release pairs with the acquire of readers' loads.
        entry.store(life.with_len(len).0, Ordering::Release);
        // SAFETY: they were made by `next_life`.
        Some(unsafe { Handle::of_bits(handle) })
    }

    /// Stores in the current zspage of the running CPU, whose section this is.
    #[inline(never)]
    fn store_cold(&self, local: &Local, shard: &mut Shard, data: &[u8]) -> Option<Handle> {
        let len = data.len();
        // SAFETY: inside the section nobody else reaches the state.
        let state: &State = local.state.with(|state| unsafe { &*state });
        // SAFETY: null, or the header of the current zspage, whose record stays as long as the pool.
        let header = unsafe { state.current_header.as_ref() }?;
        let index = shard.handles.head;
        // There is no entry with the index `NONE`.
        let entry = self.entry(index)?;
        // SAFETY: inside the section, and the closure makes no other call.
        let slot = header.inner.with_mut(|inner| Inner::take_first(unsafe { &mut *inner }))?;
        let free = Entry(entry.load(Ordering::Relaxed));
        shard.handles = Handles { head: free.next(), nr: shard.handles.nr.wrapping_sub(1) };
        local.counts.inuse.add(1);
        local.counts.bytes.add(len as i64);
        let live = free.live(len, slot, state.current);
        // SAFETY: the current zspage is one of this class, whose slot size and layout the state has; bits of `avail` stand
        // for slots that exist and have their frames; the class is the length's.
        unsafe {
            let (place, runs) = Zspage::occupy(header, slot, state.size, state.frames_at, len);
            place.owner.store(index, Ordering::Relaxed);
            place.token.with_mut(|_| runs.write(data));
        }
        // Release pairs with the acquire of readers' loads.
        entry.store(live.0, Ordering::Release);
        Some(Handle::pack(self.tag, live, index))
    }

    #[cold]
    #[inline(never)]
    fn store_slow(&self, data: &[u8], gfp: Gfp, node: Option<NodeId>) -> Result<Handle, StoreError> {
        let len = data.len();
        if len.wrapping_sub(1) >= PAGE_SIZE {
            return Err(if len == 0 { StoreError::Empty } else { StoreError::TooLarge { len } });
        }
        // SAFETY: the length has just been compared.
        let class = unsafe { self.class_of_length(len) };
        let mut stash = Stash::empty();
        let mut shared = false;
        let result = loop {
            let got = match self.enter_mine(class, shared, |mut state| state.store(data, &mut stash)) {
                Entered::Done(Ok(Step::Done(handle))) => break Ok(handle),
                Entered::Done(Ok(Step::Handles)) => self.take_handles(gfp).map(|chain| stash.handles = Some(chain)),
                Entered::Done(Ok(Step::Record)) => {
                    self.take_record(class.bucket, gfp).map(|record| stash.record = Some(record))
                }
                Entered::Done(Ok(Step::Frames(nr))) => self.fill_stash(&mut stash, nr, gfp, node),
                Entered::Done(Err(damage)) => Err(damage.into()),
                // Without memory for its own, a CPU uses the shared states.
                Entered::NoPart(cpu) => {
                    shared = self.make_part(cpu, gfp).is_err();
                    Ok(())
                }
                Entered::NoLocal => {
                    shared = self.add_locals(gfp).is_err();
                    Ok(())
                }
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
