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
use crate::lock_word::LockWord;
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

/// The part of a record that belongs to its owner's section.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Inner {
    /// Free slots whose frames are there.
    pub(crate) avail: [u64; 2],
    pub(crate) next: u32,
    pub(crate) prev: u32,
    /// Slots with an owner.
    pub(crate) inuse: u8,
    /// Which list the zspage is on.
    pub(crate) list: u8,
    /// Frames that are there.
    pub(crate) nr_frames: u8,
}

impl Inner {
    pub(crate) const fn new(list: u8) -> Self {
        Self { avail: [0; 2], next: NONE, prev: NONE, inuse: 0, list, nr_frames: 0 }
    }

    /// Free slots whose frames are there, counted.
    #[inline(always)]
    pub(crate) fn nr_avail(&self) -> u32 {
        self.avail[0].count_ones() + self.avail[1].count_ones()
    }

    #[inline(always)]
    pub(crate) fn has_avail(&self) -> bool {
        self.avail[0] | self.avail[1] != 0
    }

    #[inline(always)]
    pub(crate) fn first_avail(&self) -> Option<usize> {
        if self.avail[0] != 0 {
            Some(self.avail[0].trailing_zeros() as usize)
        } else if self.avail[1] != 0 {
            Some(64 + self.avail[1].trailing_zeros() as usize)
        } else {
            None
        }
    }

    /// Takes the first usable slot into use.
    #[inline(always)]
    pub(crate) fn take_first(&mut self) -> Option<usize> {
        let [low, high] = &mut self.avail;
        let slot = if *low != 0 {
            let slot = low.trailing_zeros();
            *low &= *low - 1;
            slot
        } else if *high != 0 {
            let slot = high.trailing_zeros() + 64;
            *high &= *high - 1;
            slot
        } else {
            return None;
        };
        self.inuse = self.inuse.wrapping_add(1);
        Some(slot as usize)
    }

    #[inline(always)]
    pub(crate) fn is_avail(&self, slot: usize) -> bool {
        self.avail.get(slot >> 6).is_some_and(|word| word >> (slot & 63) & 1 != 0)
    }

    #[inline(always)]
    pub(crate) fn set_avail(&mut self, slot: usize) {
        // A slot's number has seven bits.
        self.avail[slot >> 6 & 1] |= 1 << (slot & 63);
    }

    /// The bits of a word of `avail` that stand for slots `start..end`.
    #[inline(always)]
    fn bits(word: usize, start: usize, end: usize) -> u64 {
        let below = |slot: usize| match slot.saturating_sub(64 * word) {
            nr @ 0..64 => (1_u64 << nr) - 1,
            _ => u64::MAX,
        };
        below(end) & !below(start)
    }

    #[inline(always)]
    pub(crate) fn set_range(&mut self, start: usize, end: usize) {
        for (index, word) in self.avail.iter_mut().enumerate() {
            *word |= Self::bits(index, start, end);
        }
    }

    #[inline(always)]
    pub(crate) fn clear_range(&mut self, start: usize, end: usize) {
        for (index, word) in self.avail.iter_mut().enumerate() {
            *word &= !Self::bits(index, start, end);
        }
    }

    /// A sum over all fields.
    pub(crate) fn sum(&self) -> u32 {
        let words = [
            self.avail[0],
            self.avail[1],
            u64::from(self.next) | u64::from(self.prev) << 32,
            u64::from(self.inuse) | u64::from(self.list) << 16 | u64::from(self.nr_frames) << 32,
        ];
        words.iter().fold(1, |sum, &word| crate::handle::mix(sum ^ word)) as u32
    }
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

/// Where an object's bytes are: one or two runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Runs {
    pub(crate) first: *mut u8,
    pub(crate) first_len: usize,
    pub(crate) second: *mut u8,
    pub(crate) second_len: usize,
}

impl Runs {
    /// Copies `data` in.
    ///
    /// # Safety
    /// The runs are the caller's to write and are as long as `data` together.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, data: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe {
            self.first.copy_from_nonoverlapping(data.as_ptr(), self.first_len);
            if self.second_len != 0 {
                self.second.copy_from_nonoverlapping(data.as_ptr().add(self.first_len), self.second_len);
            }
        }
    }

    /// Copies the bytes out to `to`.
    ///
    /// # Safety
    /// Nobody writes the runs; `to` has room for both.
    #[inline(always)]
    pub(crate) unsafe fn read(&self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe {
            to.copy_from_nonoverlapping(self.first, self.first_len);
            if self.second_len != 0 {
                to.add(self.first_len).copy_from_nonoverlapping(self.second, self.second_len);
            }
        }
    }

    /// Copies the bytes of `from`, which has the same length, split wherever it is.
    ///
    /// # Safety
    /// Nobody writes `from`'s runs, these are the caller's to write, and they do not overlap.
    #[inline(always)]
    pub(crate) unsafe fn copy_from(&self, from: &Runs) {
        let head = self.first_len.min(from.first_len);
        // SAFETY: each piece lies in one run of either side; lengths add up to the object's.
        unsafe {
            self.first.copy_from_nonoverlapping(from.first, head);
            if from.first_len > head {
                let more = from.first_len - head;
                self.second.copy_from_nonoverlapping(from.first.add(head), more);
                if from.second_len != 0 {
                    self.second.add(more).copy_from_nonoverlapping(from.second, from.second_len);
                }
            } else if self.first_len > head {
                let more = self.first_len - head;
                self.first.add(head).copy_from_nonoverlapping(from.second, more);
                if self.second_len != 0 {
                    self.second.copy_from_nonoverlapping(from.second.add(more), self.second_len);
                }
            } else if self.second_len != 0 {
                self.second.copy_from_nonoverlapping(from.second, self.second_len);
            }
        }
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
