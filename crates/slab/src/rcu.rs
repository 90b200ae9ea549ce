//! Frees that wait for readers: objects freed through RCU, and slabs of typesafe caches.
//!
//! ```text
//! CPU's rcu sheaf ──full──▶ ┐
//! object with its own head ─┼─▶ Pending: oldest ▶ ... ▶ newest, each with the grace period it waits for
//! empty typesafe slab ──────┘        │ polled by slow calls, `rcu_poll`, `rcu_barrier`
//!                                    ▼
//!                             barn / slabs / page source
//! ```

use core::panic::Location;
use core::ptr::{self, NonNull};

use kmem_gfp::{AllocContext, FrameTable, Gfp, OwnerTag, Pfn};
use kmem_sync::atomic::{AtomicU32, Ordering};
use kmem_sync::{Cpu, Grace, GracePeriod, IrqLock, Pinned, const_fn};

use crate::backend::Locking;
use crate::sheaf::Sheaf;
use crate::slab::{Slab, local_owner_word, owner_cache, owner_node};
use crate::{KmemCache, ObjectError, SlabEnv, Slabs};

/// A place inside an object that lets it wait for a grace period on a list: 16 bytes that readers do not look at.
#[doc(alias = "rcu_head")]
#[derive(Debug)]
#[repr(C)]
pub struct RcuHead {
    next: *mut RcuHead,
    grace: Grace,
}

impl RcuHead {
    /// A head that waits for nothing.
    pub const fn new() -> Self {
        Self { next: ptr::null_mut(), grace: Grace(0) }
    }
}

impl Default for RcuHead {
    fn default() -> Self {
        Self::new()
    }
}

/// Frame numbers that mean "no slab".
const NO_SLAB: u64 = u64::MAX;

/// Three queues, oldest first.
#[derive(Debug)]
struct Queues {
    sheaves: (*mut Sheaf, *mut Sheaf),
    heads: (*mut RcuHead, *mut RcuHead),
    slabs: (u64, u64),
}

// SAFETY: everything queued belongs to the queues.
unsafe impl Send for Queues {}

impl Queues {
    const EMPTY: Self = Self {
        sheaves: (ptr::null_mut(), ptr::null_mut()),
        heads: (ptr::null_mut(), ptr::null_mut()),
        slabs: (NO_SLAB, NO_SLAB),
    };
}

/// What waits for readers, of one cache.
#[derive(Debug)]
pub(crate) struct Pending {
    queues: IrqLock<Queues>,
    waiting: AtomicU32,
}

impl Pending {
    const_fn! {
        pub(crate) fn new() -> Self {
            Self { queues: IrqLock::new(Queues::EMPTY), waiting: AtomicU32::new(0) }
        }
    }

    /// Whether anything waits, read without the lock.
    pub(crate) fn any(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    fn with<C: Cpu, R>(&self, cpu: &C, f: impl FnOnce(&mut Queues) -> R) -> R {
        self.queues.with(cpu, |queues| {
            let result = f(queues);
            let waiting = !queues.sheaves.0.is_null() || !queues.heads.0.is_null() || queues.slabs.0 != NO_SLAB;
            self.waiting.store(u32::from(waiting), Ordering::Relaxed);
            result
        })
    }
}

/// One thing whose readers have finished.
enum Ready {
    Sheaf(*mut Sheaf),
    Head(*mut RcuHead),
    Slab(Pfn),
}

impl<E: SlabEnv> Slabs<E> {
    /// Frees an object after every reader now running has finished. Never fails for want of memory, never sleeps; any
    /// context but NMI.
    ///
    /// # Safety
    /// Only readers inside read-side sections of the family's [`GracePeriod`] use the object, and they do not look at
    /// `head`, which lies inside it.
    ///
    /// # Errors
    /// [`ObjectError::NotSlab`] for memory that is no cache's; nothing has happened then.
    #[doc(alias("kfree_rcu", "kvfree_rcu"))]
    pub unsafe fn free_rcu(&self, object: NonNull<u8>, head: NonNull<RcuHead>) -> Result<(), ObjectError> {
        let address = object.addr().get();
        let (_, words) = self.env.frames().lookup(address).ok_or(ObjectError::NotSlab { address })?;
        // Relaxed: whoever has the object got it after the slab was made.
        let owner = words.owner.load(Ordering::Relaxed);
        if OwnerTag::of(owner) != OwnerTag::Slab {
            return Err(ObjectError::NotSlab { address });
        }
        // SAFETY: the frame belongs to a slab, so its cache lives.
        let cache = unsafe { owner_cache(owner) };
        // SAFETY: `hot` keeps invariant 2 of `KmemCache`; pinned; in the section the RCU sheaf is this CPU's, and it has
        // room left afterwards, as it always must. The word says that the object is this cache's.
        let pushed = unsafe {
            Pinned::quick(self.env.cpu()).and_then(|pin| {
                (*cache.hot.load(Ordering::Relaxed).add(pin.id().index())).on_rcu::<E::Cpu, _>(|rcu, local| {
                    local == owner && !rcu.is_null() && (*rcu).len + 1 < (*rcu).cap && Sheaf::push(rcu, object)
                })
            })
        };
        if pushed == Some(true) {
            return Ok(());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.free_rcu_slow(cache, owner, object, head) };
        Ok(())
    }

    /// [`free_rcu`](Self::free_rcu) when the sheaf is missing, becomes full, or is not the object's.
    ///
    /// # Safety
    /// As for [`free_rcu`](Self::free_rcu); the object's frame has the owner word `owner`.
    #[cold]
    #[inline(never)]
    unsafe fn free_rcu_slow(&self, cache: &KmemCache, owner: u64, object: NonNull<u8>, head: NonNull<RcuHead>) {
        // Before the object is out of our hands: after that the cache may be destroyed.
        self.poll_pending(cache);
        // SAFETY: given up by the caller.
        if !unsafe { self.push_rcu(cache, owner, object) } {
            let grace = self.env.grace().snapshot();
            // SAFETY: the head is in the object, ours to write.
            unsafe { head.write(RcuHead { next: ptr::null_mut(), grace }) };
            cache.pending.with(self.env.cpu(), |queues| {
                let head = head.as_ptr();
                match NonNull::new(queues.heads.1) {
                    // SAFETY: queued heads belong to the queue.
                    Some(last) => unsafe { (*last.as_ptr()).next = head },
                    None => queues.heads.0 = head,
                }
                queues.heads.1 = head;
            });
        }
    }

    /// Frees an object that has no [`RcuHead`] after every reader now running has finished. May sleep: without memory to
    /// note the object, it waits for the readers.
    ///
    /// # Safety
    /// As for [`free_rcu`](Self::free_rcu).
    ///
    /// # Errors
    /// As for [`free_rcu`](Self::free_rcu).
    #[doc(alias = "kvfree_rcu_mightsleep")]
    #[track_caller]
    pub unsafe fn free_rcu_mightsleep(&self, object: NonNull<u8>) -> Result<(), ObjectError> {
        let address = object.addr().get();
        let (owner, _) = Slab::find(self.env.frames(), object).ok_or(ObjectError::NotSlab { address })?;
        // SAFETY: the frame belongs to a slab, so its cache lives.
        let cache = unsafe { owner_cache(owner) };
        self.poll_pending(cache);
        // SAFETY: given up by the caller.
        if unsafe { self.push_rcu(cache, owner, object) } {
            return Ok(());
        }
        self.env.grace().synchronize();
        // SAFETY: given up by the caller, and the readers have finished.
        unsafe { self.free_slow(cache, object, Location::caller()) }
    }

    /// Notes an object in the CPU's RCU sheaf; a sheaf that is full then starts to wait.
    ///
    /// # Safety
    /// The caller gives up the object if the result is `true`.
    unsafe fn push_rcu(&self, cache: &KmemCache, owner: u64, object: NonNull<u8>) -> bool {
        let node = self.env.context().local_node().index();
        if !cache.frees_plainly() || local_owner_word(cache, node) != Some(owner) {
            return false;
        }
        let cpu = self.env.cpu();
        let mut new = None;
        for attempt in 0..2 {
            let pushed = cache.slots.try_with(cpu, |slot, _| {
                slot.owner = owner;
                if slot.rcu.is_null() {
                    let sheaf = new.take().or_else(|| cache.node(node)?.barn.take_empty(cpu, Locking::Wait))?;
                    slot.rcu = sheaf;
                }
                // Before the object is out of our hands: after that the cache may be destroyed.
                new = new.take().and_then(|sheaf| self.offer_empty(cache, node, sheaf, Locking::Wait));
                // SAFETY: the slot holds its RCU sheaf, which has room: a full one starts to wait below.
                let pushed = unsafe { Sheaf::push(slot.rcu, object) };
                // SAFETY: as above.
                if unsafe { (*slot.rcu).len == (*slot.rcu).cap } {
                    // Still inside the section: whoever flushes this CPU later finds the sheaf waiting.
                    self.pend_sheaf(cache, core::mem::replace(&mut slot.rcu, ptr::null_mut()));
                }
                Some(pushed)
            });
            match pushed {
                Some(Some(pushed)) => {
                    if let Some(sheaf) = new {
                        self.free_sheaf(sheaf, Locking::Wait);
                    }
                    return pushed;
                }
                Some(None) if attempt == 0 => {
                    new = self.new_sheaf(cache, Gfp::NOWAIT.nested(), Locking::Wait);
                    if new.is_none() {
                        return false;
                    }
                }
                _ => break,
            }
        }
        if let Some(sheaf) = new {
            self.keep_empty(cache, node, sheaf, Locking::Wait);
        }
        false
    }

    /// Lets a sheaf of freed objects wait for the readers running now.
    pub(crate) fn pend_sheaf(&self, cache: &KmemCache, sheaf: *mut Sheaf) {
        // SAFETY: the sheaf is ours until it is queued.
        unsafe {
            (*sheaf).grace = self.env.grace().snapshot();
            (*sheaf).next = ptr::null_mut();
        }
        cache.pending.with(self.env.cpu(), |queues| {
            match NonNull::new(queues.sheaves.1) {
                // SAFETY: queued sheaves belong to the queue.
                Some(last) => unsafe { (*last.as_ptr()).next = sheaf },
                None => queues.sheaves.0 = sheaf,
            }
            queues.sheaves.1 = sheaf;
        });
    }

    /// Lets an empty slab of a typesafe cache wait for the readers running now. Its first object's free pointer, which
    /// typesafe caches keep apart from the object, holds the grace period; the frame's links hold the next slab.
    pub(crate) fn pend_slab(&self, cache: &KmemCache, slab: &Slab<'_>) {
        let grace = self.env.grace().snapshot();
        let object = slab.object(cache, 0);
        // SAFETY: the slab is empty and ours.
        unsafe { cache.set_next(object, object.as_ptr().with_addr(grace.0 as usize)) };
        slab.words.links.store(NO_SLAB, Ordering::Relaxed);
        cache.pending.with(self.env.cpu(), |queues| {
            match Slab::at(self.env.frames(), Pfn(queues.slabs.1)) {
                Some(last) if queues.slabs.1 != NO_SLAB => last.words.links.store(slab.pfn.0, Ordering::Relaxed),
                _ => queues.slabs.0 = slab.pfn.0,
            }
            queues.slabs.1 = slab.pfn.0;
        });
    }

    /// The oldest thing in `queues` whose readers have finished; all of them have, if `forced`.
    fn next_ready(&self, cache: &KmemCache, queues: &mut Queues, forced: bool) -> Option<Ready> {
        let passed = |grace| forced || self.env.grace().has_passed(grace);
        // SAFETY: what is queued belongs to the queues.
        if let Some(&Sheaf { next, grace, .. }) = unsafe { queues.sheaves.0.as_ref() }
            && passed(grace)
        {
            let sheaf = core::mem::replace(&mut queues.sheaves.0, next);
            if next.is_null() {
                queues.sheaves.1 = next;
            }
            return Some(Ready::Sheaf(sheaf));
        }
        // SAFETY: as above.
        if let Some(&RcuHead { next, grace }) = unsafe { queues.heads.0.as_ref() }
            && passed(grace)
        {
            let head = core::mem::replace(&mut queues.heads.0, next);
            if next.is_null() {
                queues.heads.1 = next;
            }
            return Some(Ready::Head(head));
        }
        if queues.slabs.0 != NO_SLAB {
            let slab = Slab::at(self.env.frames(), Pfn(queues.slabs.0))?;
            // SAFETY: `pend_slab` wrote the link.
            let grace = unsafe { cache.next(slab.object(cache, 0)) }.addr() as u64;
            if passed(Grace(grace)) {
                queues.slabs.0 = slab.words.links.load(Ordering::Relaxed);
                if queues.slabs.0 == NO_SLAB {
                    queues.slabs.1 = NO_SLAB;
                }
                return Some(Ready::Slab(slab.pfn));
            }
        }
        None
    }

    /// Moves on what waited for readers that have finished. Any context but NMI.
    pub(crate) fn poll_pending(&self, cache: &KmemCache) {
        while cache.pending.any() {
            let ready = cache.pending.with(self.env.cpu(), |queues| self.next_ready(cache, queues, false));
            let Some(ready) = ready else { break };
            self.finish(cache, ready);
        }
    }

    fn finish(&self, cache: &KmemCache, ready: Ready) {
        match ready {
            Ready::Sheaf(sheaf) => self.finish_sheaf(cache, sheaf),
            Ready::Head(head) => {
                let Some(inside) = NonNull::new(head.cast::<u8>()) else { return };
                let Some((_, slab)) = Slab::find(self.env.frames(), inside) else { return };
                let total = slab.state().total();
                let Some(index) = slab.index_within(cache, total, inside.addr().get()) else { return };
                // SAFETY: the object was given up to `free_rcu`, and its readers have finished.
                let freed = unsafe { self.free_slow(cache, slab.object(cache, index), Location::caller()) };
                debug_assert!(freed.is_ok() || cache.is_debug(), "{freed:?}");
            }
            Ready::Slab(pfn) => {
                let Some(slab) = Slab::at(self.env.frames(), pfn) else { return };
                let owner = slab.words.owner.load(Ordering::Relaxed);
                if let Some(node) = self.node_of_slab(cache, owner, &slab) {
                    self.destroy_slab(cache, node, &slab);
                }
            }
        }
    }

    /// A sheaf whose objects are free at last: into the barn as a full one if there is room, else to the slabs.
    fn finish_sheaf(&self, cache: &KmemCache, sheaf: *mut Sheaf) {
        let cpu = self.env.cpu();
        // SAFETY: the sheaf was taken off the queue. Its objects are all of the node of the CPU that filled it.
        let first = unsafe { Sheaf::contents(sheaf) }.first().copied().and_then(NonNull::new);
        let home =
            first.and_then(|object| Slab::find(self.env.frames(), object)).and_then(|(owner, _)| owner_node(owner));
        let node = home.unwrap_or_else(|| self.env.context().local_node().index());
        if self.has_payers(cache) {
            // SAFETY: as above.
            for object in unsafe { Sheaf::contents(sheaf) }.iter().copied().filter_map(NonNull::new) {
                self.uncharge_found(cache, object);
            }
        }
        // SAFETY: the sheaf was taken off the queue.
        let full = unsafe { (*sheaf).len == (*sheaf).cap };
        if full && let Some(home) = cache.node(node) {
            // SAFETY: as above.
            if unsafe { home.barn.put_full(cpu, Locking::Wait, sheaf, home.barn.room(), false) }.is_ok() {
                return;
            }
        }
        // SAFETY: as above; the objects are free.
        unsafe {
            self.put_objects(cache, Sheaf::contents(sheaf), Locking::Wait);
            (*sheaf).len = 0;
        }
        self.keep_empty(cache, node, sheaf, Locking::Wait);
    }

    /// Moves on, in every cache, what waited for readers that have finished. Any context but NMI.
    pub fn rcu_poll(&self) {
        self.for_each_cache(|cache| self.poll_pending(cache));
    }

    /// Waits until everything freed through RCU before the call is really free, in every cache. May sleep; interrupts
    /// must be on; not inside a read-side section.
    #[doc(alias = "kvfree_rcu_barrier")]
    pub fn rcu_barrier(&self) {
        self.for_each_cache(|cache| self.rcu_barrier_cache(cache));
    }

    /// [`rcu_barrier`](Self::rcu_barrier) for one cache.
    #[doc(alias = "kvfree_rcu_barrier_on_cache")]
    pub fn rcu_barrier_cache(&self, cache: &KmemCache) {
        for slot in cache.slots.iter() {
            let sheaf = slot.take_rcu(self.env.cpu());
            if !sheaf.is_null() {
                self.pend_sheaf(cache, sheaf);
            }
        }
        self.finish_pending(cache);
    }

    /// Waits for the readers of everything pending now, and moves it on.
    pub(crate) fn finish_pending(&self, cache: &KmemCache) {
        if !cache.pending.any() {
            return;
        }
        let mut taken = cache.pending.with(self.env.cpu(), |queues| core::mem::replace(queues, Queues::EMPTY));
        self.env.grace().synchronize();
        while let Some(ready) = self.next_ready(cache, &mut taken, true) {
            self.finish(cache, ready);
        }
    }
}
