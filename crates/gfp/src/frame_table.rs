//! The frame table: what the owner of each frame wants to remember, and where its memory is mapped.
//!
//! ```text
//! address ──(subtract, shift)──▶ frame ──▶ FrameWords { owner, state, links }      24 bytes a frame
//! ```

use core::ptr::NonNull;

use kmem_sync::atomic::AtomicU64;
use kmem_sync::const_fn;

use crate::Pfn;

/// Three words per frame for whoever owns it. Free frames, and frames whose owner has nothing to say, have
/// [`owner`](Self::owner) zero.
///
/// The low three bits of `owner` say who wrote the words (see [`OwnerTag`]); the rest of it and the other words belong
/// to that owner. Only the owner of a frame writes its words; anybody may read them.
#[derive(Debug, Default)]
#[repr(C)]
pub struct FrameWords {
    /// The owner's tag in the low three bits and a pointer or number above them. Zero: nobody.
    pub owner: AtomicU64,
    /// The owner's state.
    pub state: AtomicU64,
    /// The owner's list links.
    pub links: AtomicU64,
}

impl FrameWords {
    const_fn! {
        /// Words of a frame without owner.
        pub fn new() -> Self {
            Self { owner: AtomicU64::new(0), state: AtomicU64::new(0), links: AtomicU64::new(0) }
        }
    }
}

/// Who owns a frame: the low three bits of [`FrameWords::owner`]. The numbers are given out here so that layers which do
/// not know one another cannot collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OwnerTag {
    /// Nobody has written the words.
    None = 0,
    /// A page of a slab; the pointer is its cache. Tag 1 so that the check and the subtraction fold.
    Slab = 1,
    /// The first page of a large kmalloc block; the number is its order.
    LargeKmalloc = 2,
    /// A later page of a large kmalloc block.
    LargeKmallocTail = 3,
    /// A page of a virtually contiguous area.
    Vmalloc = 4,
    /// A page of a compressed-object pool.
    Zsmalloc = 5,
    /// A page on a reclaim list or in a page cache.
    Lru = 6,
    /// Any other owner.
    Other = 7,
}

impl OwnerTag {
    /// The bits of [`FrameWords::owner`] that hold the tag.
    pub const MASK: u64 = 7;

    /// The tag of an owner word.
    #[inline(always)]
    pub const fn of(owner: u64) -> Self {
        match owner & Self::MASK {
            0 => Self::None,
            1 => Self::Slab,
            2 => Self::LargeKmalloc,
            3 => Self::LargeKmallocTail,
            4 => Self::Vmalloc,
            5 => Self::Zsmalloc,
            6 => Self::Lru,
            _ => Self::Other,
        }
    }
}

/// Finds a frame's words and its address in the direct map.
///
/// # Safety
/// 1. [`words`](Self::words) and [`lookup`](Self::lookup) return the same words for the same frame, other words for
///    another frame, for as long as the table exists.
/// 2. [`address_of`](Self::address_of) returns where the frame's [`PAGE_SIZE`](crate::PAGE_SIZE) bytes are mapped,
///    readable and writable, page-aligned; contiguous frames of one allocated block are mapped contiguously.
/// 3. [`frame_of`](Self::frame_of) inverts it.
pub unsafe trait FrameTable {
    /// The words of a frame; `None` if the table does not cover it.
    fn words(&self, pfn: Pfn) -> Option<&FrameWords>;

    /// Where the frame is mapped; `None` if it is not.
    fn address_of(&self, pfn: Pfn) -> Option<NonNull<u8>>;

    /// The frame that holds a direct-map address; `None` for any other address.
    fn frame_of(&self, address: usize) -> Option<Pfn>;

    /// Frame and words of a direct-map address in one step: the way of `kfree`.
    #[inline(always)]
    fn lookup(&self, address: usize) -> Option<(Pfn, &FrameWords)> {
        let pfn = self.frame_of(address)?;
        Some((pfn, self.words(pfn)?))
    }
}

// SAFETY: forwards to an implementation that keeps the promises.
unsafe impl<F: FrameTable> FrameTable for &F {
    #[inline(always)]
    fn words(&self, pfn: Pfn) -> Option<&FrameWords> {
        (**self).words(pfn)
    }
    #[inline(always)]
    fn address_of(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        (**self).address_of(pfn)
    }
    #[inline(always)]
    fn frame_of(&self, address: usize) -> Option<Pfn> {
        (**self).frame_of(address)
    }
    #[inline(always)]
    fn lookup(&self, address: usize) -> Option<(Pfn, &FrameWords)> {
        (**self).lookup(address)
    }
}

/// A frame table over one span of frames that is mapped contiguously: a base address and an array.
///
/// Holes inside the span cost their words' address space; an array in lazily backed memory makes that free.
#[derive(Clone, Copy, Debug)]
pub struct FlatFrameTable {
    words: NonNull<FrameWords>,
    base: usize,
    first: Pfn,
    nr_frames: u64,
}

// SAFETY: shared access to atomics only.
unsafe impl Sync for FlatFrameTable {}
// SAFETY: as above.
unsafe impl Send for FlatFrameTable {}

impl FlatFrameTable {
    /// Bytes of words for `nr_frames` frames; `None` on overflow.
    pub const fn words_size(nr_frames: u64) -> Option<usize> {
        if nr_frames > usize::MAX as u64 {
            return None;
        }
        (nr_frames as usize).checked_mul(size_of::<FrameWords>())
    }

    /// A table for `nr_frames` frames from `first` on, mapped from address `base` on.
    ///
    /// # Safety
    /// 1. `words` points to `nr_frames` initialised [`FrameWords`] (all-zero bytes are) that live as long as any copy of
    ///    the table and are used through it alone.
    /// 2. Frame `first + i` is mapped at `base + i * PAGE_SIZE` for every `i` whose frame an allocator hands out.
    pub const unsafe fn new(words: NonNull<FrameWords>, base: usize, first: Pfn, nr_frames: u64) -> Self {
        Self { words, base, first, nr_frames }
    }

    /// A table over nothing, for statics that are filled in later.
    pub const fn empty() -> Self {
        Self { words: NonNull::dangling(), base: 0, first: Pfn(0), nr_frames: 0 }
    }
}

// SAFETY: (1) the index is the frame's distance from `first`, injective; (2), (3) by the promises of `new`.
unsafe impl FrameTable for FlatFrameTable {
    #[inline(always)]
    fn words(&self, pfn: Pfn) -> Option<&FrameWords> {
        let index = pfn.0.wrapping_sub(self.first.0);
        if index >= self.nr_frames {
            return None;
        }
        // SAFETY: inside the array (promise 1 of `new`).
        Some(unsafe { self.words.add(index as usize).as_ref() })
    }

    #[inline(always)]
    fn address_of(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let index = pfn.0.wrapping_sub(self.first.0);
        if index >= self.nr_frames {
            return None;
        }
        NonNull::new(core::ptr::with_exposed_provenance_mut(
            self.base.wrapping_add((index as usize) << crate::PAGE_SHIFT),
        ))
    }

    #[inline(always)]
    fn frame_of(&self, address: usize) -> Option<Pfn> {
        let index = (address.wrapping_sub(self.base) >> crate::PAGE_SHIFT) as u64;
        if index >= self.nr_frames { None } else { Some(Pfn(self.first.0.wrapping_add(index))) }
    }

    #[inline(always)]
    fn lookup(&self, address: usize) -> Option<(Pfn, &FrameWords)> {
        let index = (address.wrapping_sub(self.base) >> crate::PAGE_SHIFT) as u64;
        if index >= self.nr_frames {
            return None;
        }
        // SAFETY: inside the array (promise 1 of `new`).
        Some((Pfn(self.first.0.wrapping_add(index)), unsafe { self.words.add(index as usize).as_ref() }))
    }
}
