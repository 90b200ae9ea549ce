//! The record of a zspage: everything known about it, outside its frames.
//!
//! ```text
//! Header 40 bytes        lock word, owner; inner: which slots can be used, list links, counts
//! slots  4 bytes each    the index of the handle that owns the slot, or why nobody does
//! frames 8 bytes each    address of the frame | backed | isolated | objects on it
//! shadow                 verifying pools only: a sum of inner, the length of each object
//! ```
//! | field | written | read |
//! | --- | --- | --- |
//! | lock word | anybody, by compare-and-swap | anybody |
//! | owner | inside its owner's section | anybody, as a hint to check again inside that section |
//! | inner | inside its owner's section | inside its owner's section |
//! | a slot | inside its owner's section | inside its owner's section |
//! | a frame | inside its owner's section; the address changes with the lock word exclusive | there, or with a pin |
//!
//! The *owner* of a zspage is a class's state: that of a CPU, whose [section](crate::shard) is entered without an atomic
//! instruction there, or the shared one, under the class lock.
//!
//! The memory of a record is never used for anything but records as long as the pool lives, so that a thread with an old
//! number still finds a lock word.

use core::ptr::{self, NonNull};

use kmem_gfp::{FrameTable, PAGE_SHIFT, PAGE_SIZE, Pfn};
use kmem_sync::UnsafeCell;
use kmem_sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::class::Class;
use crate::geometry::Shape;
pub(crate) use crate::inner::Inner;
use crate::lock_word::LockWord;
pub(crate) use crate::runs::Runs;
use crate::shard::ShardId;

/// No zspage, no handle; the owner of a free slot.
pub(crate) const NONE: u32 = (1 << crate::handle::INDEX_BITS) - 1;
/// The owner of a slot whose object has been freed while a reader held the zspage.
pub(crate) const PENDING_FREE: u32 = NONE - 1;
/// The first owner that is not a handle's index.
pub(crate) const FIRST_SPECIAL: u32 = PENDING_FREE;
/// The state that a zspage belongs to: a class, and whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) u32);

impl Owner {
    /// Of a record that is not in use.
    pub(crate) const NOBODY: Self = Self(u32::MAX);

    #[inline(always)]
    pub(crate) const fn new(shard: ShardId, class: u8) -> Self {
        Self(shard.0 << 8 | class as u32)
    }

    #[inline(always)]
    pub(crate) const fn shard(self) -> ShardId {
        ShardId(self.0 >> 8)
    }

    #[inline(always)]
    pub(crate) const fn class(self) -> u8 {
        self.0 as u8
    }
}

#[derive(Debug)]
#[repr(C)]
pub(crate) struct Header {
    pub(crate) lock: LockWord,
    pub(crate) owner: AtomicU32,
    pub(crate) inner: UnsafeCell<Inner>,
}

/// One slot's owner. The token stands for the object's bytes, so that loom sees who touches them; it has no size.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slot {
    pub(crate) owner: AtomicU32,
    pub(crate) token: UnsafeCell<()>,
}

/// The frame's flag: there is one.
const BACKED: u64 = 1 << 9;
/// The frame's flag: somebody is about to move it, so it must stay.
const ISOLATED: u64 = 1 << 8;
const LIVE: u64 = 0xff;

/// The value of a frame word: page-aligned address and flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FrameWord(pub(crate) u64);

impl FrameWord {
    pub(crate) fn backed(address: NonNull<u8>) -> Self {
        Self(address.as_ptr().expose_provenance() as u64 | BACKED)
    }
    #[inline(always)]
    pub(crate) fn is_backed(self) -> bool {
        self.0 & BACKED != 0
    }
    #[inline(always)]
    pub(crate) fn is_isolated(self) -> bool {
        self.0 & ISOLATED != 0
    }
    pub(crate) fn with_isolated(self, isolated: bool) -> Self {
        Self(if isolated { self.0 | ISOLATED } else { self.0 & !ISOLATED })
    }
    /// Objects that touch the frame.
    #[inline(always)]
    pub(crate) fn live(self) -> u64 {
        self.0 & LIVE
    }
    #[inline(always)]
    pub(crate) fn address(self) -> usize {
        (self.0 & !(PAGE_SIZE as u64 - 1)) as usize
    }
    pub(crate) fn at(self, address: NonNull<u8>) -> Self {
        Self(self.0 & (PAGE_SIZE as u64 - 1) | address.as_ptr().expose_provenance() as u64)
    }
}

/// Where the parts of a record lie and how large it is, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) frames: usize,
    shadow: usize,
    pub(crate) size: usize,
}

const SLOTS_AT: usize = size_of::<Header>().next_multiple_of(align_of::<Slot>());

impl Layout {
    #[inline(always)]
    pub(crate) const fn new(shape: Shape, verify: bool) -> Self {
        let frames = (SLOTS_AT + shape.slots() * size_of::<Slot>()).next_multiple_of(align_of::<AtomicU64>());
        let shadow = frames + shape.frames() * size_of::<AtomicU64>();
        let size =
            if verify { shadow + size_of::<AtomicU32>() + shape.slots() * size_of::<AtomicU16>() } else { shadow };
        Self { frames, shadow, size }
    }
}

/// A zspage's record, seen through its class.
///
/// # Invariants
/// `header` starts a record that was [`set up`](Self::set_up) for `class`, in memory that stays as long as the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zspage<'p> {
    header: &'p Header,
    class: &'p Class,
}

impl<'p> Zspage<'p> {
    /// # Safety
    /// The invariant. For uses of the header alone the record may belong to another class.
    #[inline(always)]
    pub(crate) unsafe fn new(header: &'p Header, class: &'p Class) -> Self {
        // INVARIANT: the caller's promise.
        Self { header, class }
    }

    /// Counts an object of `len` bytes on the frames of its slot, and returns the slot and where its bytes go. The fast form of
    /// [`count_object`](Self::count_object) and [`runs_of`](Self::runs_of).
    ///
    /// # Safety
    /// The record was [`set up`](Self::set_up) for a class of `size`-byte slots with its frame words at `frames_at`; the slot
    /// exists and has its frames; `len` is at most `size`; the caller is inside the section of the zspage's owner.
    #[inline(always)]
    pub(crate) unsafe fn occupy(
        header: &'p Header,
        slot: usize,
        size: u32,
        frames_at: u32,
        len: usize,
    ) -> (&'p Slot, Runs) {
        // The record is larger than its header: its address was exposed when its frame joined the pool.
        let base: *mut u8 = core::ptr::with_exposed_provenance_mut(ptr::from_ref(header).addr());
        let start = slot * size as usize;
        let offset = start & (PAGE_SIZE - 1);
        // SAFETY: the record has a word for each frame at `frames_at`, and a slot's first frame exists; likewise its slots.
        let (word, slot) = unsafe {
            let words = base.add(frames_at as usize).cast::<AtomicU64>();
            (&*words.add(start >> PAGE_SHIFT), &*base.add(SLOTS_AT).cast::<Slot>().add(slot))
        };
        let value = word.load(Ordering::Relaxed).wrapping_add(1);
        word.store(value, Ordering::Relaxed);
        let first = core::ptr::with_exposed_provenance_mut::<u8>(FrameWord(value).address() | offset);
        if offset + size as usize <= PAGE_SIZE {
            return (slot, Runs { first, first_len: len, second: ptr::null_mut(), second_len: 0 });
        }
        // SAFETY: the slot spans, so its second frame exists.
        let word = unsafe { &*ptr::from_ref(word).add(1) };
        let value = word.load(Ordering::Relaxed).wrapping_add(1);
        word.store(value, Ordering::Relaxed);
        let first_len = len.min(PAGE_SIZE - offset);
        let second = core::ptr::with_exposed_provenance_mut(FrameWord(value).address());
        (slot, Runs { first, first_len, second, second_len: len - first_len })
    }

    /// A slot of a record.
    ///
    /// # Safety
    /// The record was set up, and the slot exists.
    #[inline(always)]
    pub(crate) unsafe fn slot_of(header: &'p Header, slot: usize) -> &'p Slot {
        let base: *mut u8 = core::ptr::with_exposed_provenance_mut(ptr::from_ref(header).addr());
        // SAFETY: the slots of the record begin at `SLOTS_AT`.
        unsafe { &*base.add(SLOTS_AT).cast::<Slot>().add(slot) }
    }

    /// The first byte of a slot that lies in one frame, with another object on that frame.
    ///
    /// # Safety
    /// As for [`occupy`](Self::occupy).
    #[inline(always)]
    pub(crate) unsafe fn bytes_beside_others(
        header: &'p Header,
        slot: usize,
        size: u32,
        frames_at: u32,
    ) -> Option<*mut u8> {
        let base: *mut u8 = core::ptr::with_exposed_provenance_mut(ptr::from_ref(header).addr());
        let start = slot * size as usize;
        let offset = start & (PAGE_SIZE - 1);
        // SAFETY: the record has a word for each frame at `frames_at`, and a slot's first frame exists.
        let word = unsafe { &*base.add(frames_at as usize).cast::<AtomicU64>().add(start >> PAGE_SHIFT) };
        let word = FrameWord(word.load(Ordering::Relaxed));
        if offset + size as usize > PAGE_SIZE || word.live() <= 1 {
            return None;
        }
        Some(core::ptr::with_exposed_provenance_mut(word.address() | offset))
    }

    /// Takes an object off the frames of its slot and returns how many objects the emptier of them has left. The fast form
    /// of [`count_object`](Self::count_object).
    ///
    /// # Safety
    /// As for [`occupy`](Self::occupy).
    #[inline(always)]
    pub(crate) unsafe fn vacate(header: &'p Header, slot: usize, size: u32, frames_at: u32) -> u64 {
        let base: *mut u8 = core::ptr::with_exposed_provenance_mut(ptr::from_ref(header).addr());
        let start = slot * size as usize;
        // SAFETY: the record has a word for each frame at `frames_at`, and a slot's first frame exists.
        let word = unsafe { &*base.add(frames_at as usize).cast::<AtomicU64>().add(start >> PAGE_SHIFT) };
        let value = word.load(Ordering::Relaxed).wrapping_sub(1);
        word.store(value, Ordering::Relaxed);
        let left = value & LIVE;
        if (start & (PAGE_SIZE - 1)) + size as usize <= PAGE_SIZE {
            return left;
        }
        // SAFETY: the slot spans, so its second frame exists.
        let word = unsafe { &*ptr::from_ref(word).add(1) };
        let value = word.load(Ordering::Relaxed).wrapping_sub(1);
        word.store(value, Ordering::Relaxed);
        left.min(value & LIVE)
    }

    /// How it is cut.
    #[inline(always)]
    pub(crate) fn shape(&self) -> &'p Shape {
        &self.class.shape
    }

    /// Writes slots, frames and shadow of an unused record; the header stays.
    ///
    /// # Safety
    /// The record at `header` has room for `layout`, and nobody uses more of it than its lock word and class.
    pub(crate) unsafe fn set_up(header: &'p Header, class: &'p Class, verify: bool) -> Self {
        let shape = &class.shape;
        let layout = Layout::new(*shape, verify);
        let this = Self { header, class };
        let base = this.base();
        for i in 0..shape.slots() {
            let slot = Slot { owner: AtomicU32::new(NONE), token: UnsafeCell::new(()) };
            // SAFETY: inside the record; nobody else uses it (the caller's promise).
            unsafe { base.add(SLOTS_AT).cast::<Slot>().add(i).write(slot) };
        }
        for i in 0..shape.frames() {
            // SAFETY: as above.
            unsafe { base.add(layout.frames).cast::<AtomicU64>().add(i).write(AtomicU64::new(0)) };
        }
        if verify {
            // SAFETY: as above.
            unsafe { base.add(layout.shadow).cast::<AtomicU32>().write(AtomicU32::new(0)) };
            for i in 0..shape.slots() {
                let lens = base.wrapping_add(layout.shadow + size_of::<AtomicU32>()).cast::<AtomicU16>();
                // SAFETY: as above.
                unsafe { lens.add(i).write(AtomicU16::new(0)) };
            }
        }
        this
    }

    #[inline(always)]
    fn base(&self) -> *mut u8 {
        // The record is larger than its header: its address was exposed when its frame joined the pool.
        core::ptr::with_exposed_provenance_mut((&raw const *self.header).addr())
    }

    #[inline(always)]
    pub(crate) fn header(&self) -> &'p Header {
        self.header
    }

    #[inline(always)]
    pub(crate) fn lock(&self) -> &'p LockWord {
        &self.header.lock
    }

    #[inline(always)]
    pub(crate) fn owner_word(&self) -> &'p AtomicU32 {
        &self.header.owner
    }

    /// Calls `f` with the inner part.
    ///
    /// # Safety
    /// The caller is inside the section of the zspage's owner, and does not nest calls for one zspage.
    #[inline(always)]
    pub(crate) unsafe fn with_inner<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        // SAFETY: the section excludes everybody else, and there is no other call (the caller's promise).
        self.header.inner.with_mut(|inner| f(unsafe { &mut *inner }))
    }

    #[inline(always)]
    pub(crate) fn slots(&self) -> &'p [Slot] {
        // SAFETY: the slots of the shape were written by `set_up` (type invariant); `SLOTS_AT` is aligned for them.
        unsafe { core::slice::from_raw_parts(self.base().add(SLOTS_AT).cast(), self.class.shape.slots()) }
    }

    /// A slot that exists.
    ///
    /// # Safety
    /// `index` is below the shape's number of slots.
    #[inline(always)]
    pub(crate) unsafe fn slot(&self, index: usize) -> &'p Slot {
        debug_assert!(index < self.class.shape.slots());
        // SAFETY: the caller's promise.
        unsafe { self.slots().get_unchecked(index) }
    }

    #[inline(always)]
    pub(crate) fn frames(&self) -> &'p [AtomicU64] {
        // SAFETY: as for `slots`; `Layout` aligns them.
        unsafe {
            core::slice::from_raw_parts(self.base().add(self.class.frames_at.into()).cast(), self.class.shape.frames())
        }
    }

    /// A frame's word that exists.
    ///
    /// # Safety
    /// `index` is below the shape's number of frames.
    #[inline(always)]
    unsafe fn word(&self, index: usize) -> &'p AtomicU64 {
        debug_assert!(index < self.class.shape.frames());
        // SAFETY: the caller's promise.
        unsafe { self.frames().get_unchecked(index) }
    }

    /// The sum of inner, in a verifying pool.
    ///
    /// # Safety
    /// The record was set up with `verify`.
    pub(crate) unsafe fn sum(&self) -> &'p AtomicU32 {
        // SAFETY: written by `set_up` with `verify` (the caller's promise).
        unsafe { &*self.base().add(Layout::new(self.class.shape, true).shadow).cast() }
    }

    /// The lengths of the objects, in a verifying pool.
    ///
    /// # Safety
    /// The record was set up with `verify`.
    pub(crate) unsafe fn lens(&self) -> &'p [AtomicU16] {
        let at = Layout::new(self.class.shape, true).shadow + size_of::<AtomicU32>();
        // SAFETY: written by `set_up` with `verify` (the caller's promise).
        unsafe { core::slice::from_raw_parts(self.base().add(at).cast(), self.class.shape.slots()) }
    }

    /// The word of a frame; without a frame for an index out of range.
    #[inline(always)]
    pub(crate) fn frame(&self, index: usize) -> FrameWord {
        FrameWord(self.frames().get(index).map_or(0, |word| word.load(Ordering::Relaxed)))
    }

    /// Sets the word of a frame. The caller is inside its owner's section.
    #[inline(always)]
    pub(crate) fn set_frame(&self, index: usize, word: FrameWord) {
        if let Some(frame) = self.frames().get(index) {
            frame.store(word.0, Ordering::Relaxed);
        }
    }

    /// Counts an object on its frames, by 1 or -1, and tells whether one of them has none now. The caller is inside
    /// its owner's section.
    ///
    /// # Safety
    /// `slot` is below the shape's number of slots.
    #[inline(always)]
    pub(crate) unsafe fn count_object(&self, slot: usize, difference: i64) -> bool {
        let (first, last) = self.class.shape.frames_of(slot);
        // SAFETY: the frames of a slot exist.
        let word = unsafe { self.word(first) };
        let value = word.load(Ordering::Relaxed).wrapping_add_signed(difference);
        word.store(value, Ordering::Relaxed);
        let mut empty = value & LIVE == 0;
        if last != first {
            // SAFETY: as above.
            let word = unsafe { self.word(last) };
            let value = word.load(Ordering::Relaxed).wrapping_add_signed(difference);
            word.store(value, Ordering::Relaxed);
            empty |= value & LIVE == 0;
        }
        empty
    }

    /// Whether both frames of a slot are there.
    pub(crate) fn is_slot_backed(&self, slot: usize) -> bool {
        let (first, last) = self.class.shape.frames_of(slot);
        self.frame(first).is_backed() && self.frame(last).is_backed()
    }

    pub(crate) fn owner(&self, slot: usize) -> u32 {
        self.slots().get(slot).map_or(NONE, |slot| slot.owner.load(Ordering::Acquire))
    }

    /// Where the first `len` bytes of a slot are; `None` if they are more than the slot or a frame is missing.
    #[inline(always)]
    pub(crate) fn runs(&self, slot: usize, len: usize) -> Option<Runs> {
        if slot >= self.class.shape.slots() || len > self.class.shape.size() || !self.is_slot_backed(slot) {
            return None;
        }
        // SAFETY: just compared.
        Some(unsafe { self.runs_of(slot, len) })
    }

    /// [`runs`](Self::runs) of a slot that is known to exist.
    ///
    /// # Safety
    /// `slot` is below the shape's number of slots, its frames are there, and `len` is not more than its size.
    #[inline(always)]
    pub(crate) unsafe fn runs_of(&self, slot: usize, len: usize) -> Runs {
        let start = slot * self.class.shape.size();
        let offset = start & (PAGE_SIZE - 1);
        let frame = start >> PAGE_SHIFT;
        // SAFETY: the frames of a slot exist.
        let word = FrameWord(unsafe { self.word(frame) }.load(Ordering::Relaxed));
        let first = core::ptr::with_exposed_provenance_mut::<u8>(word.address() | offset);
        if offset + len <= PAGE_SIZE {
            return Runs { first, first_len: len, second: core::ptr::null_mut(), second_len: 0 };
        }
        // SAFETY: as above.
        let next = FrameWord(unsafe { self.word(frame + 1) }.load(Ordering::Relaxed));
        let first_len = PAGE_SIZE - offset;
        let second = core::ptr::with_exposed_provenance_mut(next.address());
        Runs { first, first_len, second, second_len: len - first_len }
    }
}

/// The frame at an address that a frame word holds.
pub(crate) fn frame_at<F: FrameTable>(table: &F, word: FrameWord) -> Option<Pfn> {
    table.frame_of(word.address())
}
