//! One slab: a block of frames cut into slots, and the packed word that counts them.
//!
//! ```text
//! head frame's words   owner  cache pointer │ far │ node │ tag          (the same in every frame of the slab)
//!                      state  flags │ order │ total │ in use │ head      one compare-and-swap changes it
//!                      links  previous │ next frame number on the node's list
//! tail frame's state   TAIL │ distance to the head frame
//!
//! state.head ──▶ slot ──(next, encoded)──▶ slot ──▶ ... ──▶ null
//! ```
//!
//! **Protocol.** Anyone may *push* free slots by compare-and-swap without a lock, unless that makes the slab partial
//! (it was full) or empty: those pushes happen under the node's list lock. *Taking* slots always happens under the list
//! lock, so the chain below a head that was read under the lock cannot change: pushes only put slots in front.
//! The flag `LISTED` (on the partial list) changes only under the list lock and is set exactly while the slab has a
//! free slot, except in slabs that nobody else knows yet.

use core::ptr::{self, NonNull};

use kmem_gfp::{FrameTable, FrameWords, Order, OwnerTag, PAGE_SHIFT, PAGE_SIZE, Pfn};
use kmem_sync::atomic::Ordering;

use crate::KmemCache;

const NONE: u64 = 0xffff;
const LISTED: u64 = 1 << 52;
const FROZEN: u64 = 1 << 53;
const TAIL: u64 = 1 << 63;

/// The packed state of a slab. See the drawing at the top of the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlabState(pub(crate) u64);

impl SlabState {
    pub(crate) const fn new(total: usize, order: Order) -> Self {
        Self(NONE | (total as u64) << 16 | (total as u64) << 32 | (order.get() as u64) << 48)
    }
    pub(crate) const fn head(self) -> Option<usize> {
        if self.0 & NONE == NONE { None } else { Some((self.0 & NONE) as usize) }
    }
    pub(crate) const fn inuse(self) -> usize {
        (self.0 >> 16 & 0xffff) as usize
    }
    pub(crate) const fn total(self) -> usize {
        (self.0 >> 32 & 0xffff) as usize
    }
    pub(crate) fn order(self) -> Order {
        Order::new((self.0 >> 48 & 0xf) as u32).unwrap_or(Order::ZERO)
    }
    pub(crate) const fn free(self) -> usize {
        self.total().saturating_sub(self.inuse())
    }
    pub(crate) const fn is_full(self) -> bool {
        self.inuse() >= self.total()
    }
    pub(crate) const fn is_listed(self) -> bool {
        self.0 & LISTED != 0
    }
    pub(crate) const fn is_frozen(self) -> bool {
        self.0 & FROZEN != 0
    }
    pub(crate) const fn with(self, head: Option<usize>, inuse: usize) -> Self {
        let head = match head {
            Some(index) => index as u64,
            None => NONE,
        };
        Self(self.0 & !0xffff_ffff | (inuse as u64) << 16 | head)
    }
    pub(crate) const fn listed(self, yes: bool) -> Self {
        Self(if yes { self.0 | LISTED } else { self.0 & !LISTED })
    }
    pub(crate) const fn frozen(self) -> Self {
        Self((self.0 | FROZEN) & !LISTED)
    }
}

/// Bits of an owner word below the cache pointer: caches are aligned to 512.
pub(crate) const OWNER_LOW: u64 = 511;
const NODE_SHIFT: u32 = 3;
const NODE_MANY: u64 = 31;

/// The owner word of the frames of a slab on node `node`.
pub(crate) fn owner_word(cache: &KmemCache, node: usize) -> u64 {
    let node = (node as u64).min(NODE_MANY);
    (ptr::from_ref(cache).expose_provenance() as u64) | node << NODE_SHIFT | OwnerTag::Slab as u64
}

/// The owner word for a CPU's sheaves: `None` on nodes that the word cannot name.
pub(crate) fn local_owner_word(cache: &KmemCache, node: usize) -> Option<u64> {
    if node as u64 >= NODE_MANY { None } else { Some(owner_word(cache, node)) }
}

/// The node in an owner word; `None` if it cannot name it.
pub(crate) fn owner_node(owner: u64) -> Option<usize> {
    let node = owner >> NODE_SHIFT & 31;
    if node == NODE_MANY { None } else { Some(node as usize) }
}

/// The cache in an owner word with the tag [`OwnerTag::Slab`].
///
/// # Safety
/// The word was read from a frame of a live slab, and the cache outlives `'a`.
pub(crate) unsafe fn owner_cache<'a>(owner: u64) -> &'a KmemCache {
    let cache = ptr::with_exposed_provenance::<KmemCache>((owner & !OWNER_LOW) as usize);
    // SAFETY: slabs are released before their cache is.
    unsafe { &*cache }
}

/// A slab in hand.
#[derive(Clone, Copy)]
pub(crate) struct Slab<'a> {
    pub(crate) pfn: Pfn,
    pub(crate) words: &'a FrameWords,
    pub(crate) base: NonNull<u8>,
}

impl<'a> Slab<'a> {
    /// The slab that holds `address`, and its owner word. `None` if no slab does.
    #[inline]
    pub(crate) fn find<F: FrameTable>(frames: &'a F, address: NonNull<u8>) -> Option<(u64, Self)> {
        let (pfn, words) = frames.lookup(address.addr().get())?;
        // Relaxed: whoever has a pointer to an object got it after the slab was made.
        let owner = words.owner.load(Ordering::Relaxed);
        if OwnerTag::of(owner) != OwnerTag::Slab {
            return None;
        }
        let state = words.state.load(Ordering::Relaxed);
        let distance = if state & TAIL != 0 { state & !TAIL } else { 0 };
        let in_page = address.addr().get() & (PAGE_SIZE - 1);
        let back = in_page + ((distance as usize) << PAGE_SHIFT);
        // SAFETY: the block is mapped contiguously (promise 2 of `FrameTable`) and starts `back` bytes below.
        let base = unsafe { address.sub(back) };
        if distance == 0 {
            return Some((owner, Self { pfn, words, base }));
        }
        let pfn = Pfn(pfn.0.checked_sub(distance)?);
        Some((owner, Self { pfn, words: frames.words(pfn)?, base }))
    }

    /// The slab whose head frame is `pfn`.
    pub(crate) fn at<F: FrameTable>(frames: &'a F, pfn: Pfn) -> Option<Self> {
        Some(Self { pfn, words: frames.words(pfn)?, base: frames.address_of(pfn)? })
    }

    pub(crate) fn state(&self) -> SlabState {
        // Acquire pairs with the release of every push: the links of the chain are visible.
        SlabState(self.words.state.load(Ordering::Acquire))
    }

    pub(crate) fn swap_state(&self, old: SlabState, new: SlabState) -> bool {
        self.words.state.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Writes the words of a new slab's frames; all its slots count as in use.
    pub(crate) fn claim<F: FrameTable>(&self, frames: &F, owner: u64, state: SlabState) {
        for distance in (0..state.order().nr_pages() as u64).rev() {
            if let Some(words) = self.pfn.checked_add(distance).and_then(|pfn| frames.words(pfn)) {
                let own = if distance == 0 { state.0 } else { TAIL | distance };
                words.state.store(own, Ordering::Relaxed);
                words.links.store(0, Ordering::Relaxed);
                words.owner.store(owner, Ordering::Release);
            }
        }
    }

    /// Clears the words of a slab that is going back to the page source.
    pub(crate) fn disclaim<F: FrameTable>(&self, frames: &F, order: Order) {
        for distance in 0..order.nr_pages() as u64 {
            if let Some(words) = self.pfn.checked_add(distance).and_then(|pfn| frames.words(pfn)) {
                words.owner.store(0, Ordering::Relaxed);
                words.state.store(0, Ordering::Relaxed);
                words.links.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The object in slot `index`.
    pub(crate) fn object(&self, cache: &KmemCache, index: usize) -> NonNull<u8> {
        let offset = index.wrapping_mul(cache.layout.stride).wrapping_add(cache.layout.left_pad);
        // SAFETY: `index` is below the slab's total, so the slot lies inside its block.
        unsafe { self.base.add(offset) }
    }

    /// The slot whose object starts at `object`; `None` if none of this slab's does.
    #[inline]
    pub(crate) fn index(&self, cache: &KmemCache, total: usize, object: *mut u8) -> Option<usize> {
        let offset = object.addr().wrapping_sub(self.base.addr().get()).wrapping_sub(cache.layout.left_pad);
        if offset >> (PAGE_SHIFT + Order::MAX.get()) != 0 {
            return None;
        }
        let index = cache.divide(offset);
        if index < total && index.wrapping_mul(cache.layout.stride) == offset { Some(index) } else { None }
    }

    /// The slot that `address` points into, wherever inside; `None` behind the last.
    pub(crate) fn index_within(&self, cache: &KmemCache, total: usize, address: usize) -> Option<usize> {
        let index = cache.divide(address.wrapping_sub(self.base.addr().get()));
        if index < total { Some(index) } else { None }
    }

    /// Walks the chain from slot `head`, filling `out`. Returns how many slots it filled and what follows them; `Err`
    /// with the count of good slots if a link is not an object of this slab.
    ///
    /// # Safety
    /// The chain's slots are free, and nobody takes them meanwhile.
    pub(crate) unsafe fn walk(
        &self,
        cache: &KmemCache,
        total: usize,
        head: Option<usize>,
        out: &mut [*mut u8],
    ) -> Result<(usize, Option<usize>), usize> {
        let mut at = head;
        for (count, place) in out.iter_mut().enumerate() {
            let Some(index) = at else {
                return Ok((count, None));
            };
            let object = self.object(cache, index);
            *place = object.as_ptr();
            // SAFETY: the slot is free and on the chain, so its link was written.
            let next = unsafe { cache.next(object) };
            at = match next.is_null() {
                true => None,
                false => Some(self.index(cache, total, next).ok_or(count)?),
            };
        }
        Ok((out.len(), at))
    }
}
