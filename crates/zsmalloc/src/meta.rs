//! Metadata memory: frames of handle entries and frames of zspage records, shared by all classes of a pool.
//!
//! Handle entries form chains (an entry holds the next free index) that travel between here and the classes in batches.
//! Records come in sizes rounded up to a few *buckets*, each with a list of unused records and a frame to cut more from.
//! Metadata frames stay with the pool until it is destroyed, so numbers can be followed without a lock.

use core::ptr::NonNull;

use kmem_gfp::{FrameTable, Gfp, Order, OwnerTag, PAGE_SIZE, PageAllocator, Pfn};
use kmem_sync::UnsafeCell;
use kmem_sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::directory::per_frame;
use crate::handle::{Entry, INDEX_BITS};
use crate::lock_word::LockWord;
use crate::shard::LOCALS;
use crate::zspage::{Header, Inner, NONE, Owner};
use crate::{Corruption, Pool, StoreError, ZsEnv};

/// Entries in a frame.
pub(crate) const ENTRIES: usize = per_frame(size_of::<AtomicU64>());
const ENTRIES_SHIFT: u32 = ENTRIES.trailing_zeros();
/// How many free handles travel together.
pub(crate) const BATCH: u32 = 64;
/// A record starts at a multiple of this many bytes.
pub(crate) const UNIT: usize = 8;
pub(crate) const UNITS_SHIFT: u32 = (PAGE_SIZE / UNIT).trailing_zeros();
const UNITS_MASK: u32 = (PAGE_SIZE / UNIT) as u32 - 1;

/// The size of each bucket's records: steps of 8 to 256, of 64 to 1024, of 256 to 4096.
const NR_BUCKETS: usize = 32 + 12 + 12;

/// The bucket for records of `size` bytes.
pub(crate) const fn bucket_of(size: usize) -> u8 {
    (if size <= 256 {
        size.div_ceil(8) - 1
    } else if size <= 1024 {
        32 + (size - 256).div_ceil(64) - 1
    } else {
        44 + (size - 1024).div_ceil(256) - 1
    }) as u8
}

/// Bytes of a record in a bucket.
pub(crate) const fn bucket_size(bucket: u8) -> usize {
    let bucket = bucket as usize;
    if bucket < 32 {
        (bucket + 1) * 8
    } else if bucket < 44 {
        256 + (bucket - 31) * 64
    } else {
        1024 + (bucket - 43) * 256
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Unused records, linked through `Inner::next`.
    free: u32,
    /// The next record to cut, and how many are left.
    cut: u32,
    left: u32,
}

#[derive(Debug)]
pub(crate) struct Meta {
    free_handles: u32,
    nr_free_handles: u32,
    buckets: [Bucket; NR_BUCKETS],
    /// The frame that CPUs' states are cut from, and how many are left in it.
    locals: u32,
    locals_left: u32,
}

impl Meta {
    pub(crate) const fn new() -> Self {
        Self {
            free_handles: NONE,
            nr_free_handles: 0,
            buckets: [Bucket { free: NONE, cut: 0, left: 0 }; NR_BUCKETS],
            locals: 0,
            locals_left: 0,
        }
    }

    /// Cuts memory for a state: the index of its frame, and which one in it.
    pub(crate) fn cut_local(&mut self) -> Option<(u32, u32)> {
        self.locals_left = self.locals_left.checked_sub(1)?;
        Some((self.locals, self.locals_left))
    }

    pub(crate) fn wants_locals(&self) -> bool {
        self.locals_left == 0
    }

    /// Has states cut from a frame.
    pub(crate) fn set_locals(&mut self, frame: u32) {
        self.locals = frame;
        self.locals_left = LOCALS as u32;
    }
}

/// A chain of free handles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) head: u32,
    pub(crate) tail: u32,
    pub(crate) len: u32,
}

/// What a metadata frame holds, in the upper bits of its `state` word; object frames have zero there.
pub(crate) const META_STATE: u64 = 1 << 63;

/// Frames that may become metadata; what is left is given back on drop.
struct Fresh<'p, E: ZsEnv> {
    pool: &'p Pool<E>,
    frames: [Option<(Pfn, NonNull<u8>)>; 3],
}

impl<'p, E: ZsEnv> Fresh<'p, E> {
    fn new(pool: &'p Pool<E>, nr: usize, gfp: Gfp) -> Result<Self, StoreError> {
        let mut this = Self { pool, frames: [None; 3] };
        for frame in this.frames.iter_mut().take(nr) {
            *frame = Some(pool.alloc_frame(gfp.difference(Gfp::HIGHMEM.union(Gfp::MOVABLE)))?);
        }
        Ok(this)
    }

    /// One frame, which from here on is metadata of the pool holding records of `record_size` bytes (or anything else: 0).
    fn take(&mut self, record_size: usize) -> Option<NonNull<u8>> {
        let (pfn, address) = self.frames.iter_mut().find_map(Option::take)?;
        self.pool.claim_frame(pfn, META_STATE | record_size as u64);
        self.pool.meta_frames.add(1);
        Some(address)
    }
}

impl<E: ZsEnv> Drop for Fresh<'_, E> {
    fn drop(&mut self) {
        for (pfn, _) in self.frames.iter_mut().filter_map(Option::take) {
            self.pool.give_frame(pfn);
        }
    }
}

impl<E: ZsEnv> Pool<E> {
    /// Allocates a frame for this pool and finds its address.
    pub(crate) fn alloc_frame(&self, gfp: Gfp) -> Result<(Pfn, NonNull<u8>), StoreError> {
        let pfn = self.env.pages().alloc_pages(gfp, Order::ZERO, None)?;
        match self.env.frames().address_of(pfn) {
            Some(address) if self.env.frames().words(pfn).is_some() => {
                let _ = address.as_ptr().expose_provenance();
                Ok((pfn, address))
            }
            _ => {
                self.give_frame(pfn);
                Err(StoreError::Unmapped(pfn))
            }
        }
    }

    /// Gives a frame back to the page source.
    pub(crate) fn give_frame(&self, pfn: Pfn) {
        // SAFETY: the pool owns the frame, and nothing refers to it any more: it was never used, or its words and its
        // zspage's word were cleared.
        let freed = unsafe { self.env.pages().free_pages(pfn, Order::ZERO) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    /// Notes in a frame's words that it is ours and what it holds.
    pub(crate) fn claim_frame(&self, pfn: Pfn, state: u64) {
        if let Some(words) = self.env.frames().words(pfn) {
            words.state.store(state, Ordering::Relaxed);
            // Release pairs with the acquire in `frame_state`.
            words.owner.store(self.owner_word(), Ordering::Release);
        }
    }

    /// Notes that nobody owns the frame.
    pub(crate) fn disclaim_frame(&self, pfn: Pfn) {
        if let Some(words) = self.env.frames().words(pfn) {
            words.owner.store(0, Ordering::Relaxed);
        }
    }

    /// What a frame holds, if it is ours.
    pub(crate) fn frame_state(&self, pfn: Pfn) -> Option<u64> {
        let words = self.env.frames().words(pfn)?;
        if words.owner.load(Ordering::Acquire) != self.owner_word() {
            return None;
        }
        Some(words.state.load(Ordering::Relaxed))
    }

    fn owner_word(&self) -> u64 {
        self.id << 3 | OwnerTag::Zsmalloc as u64
    }

    /// The entry with this index.
    #[inline(always)]
    pub(crate) fn entry(&self, index: u32) -> Option<&AtomicU64> {
        let frame = self.handles.get(index >> ENTRIES_SHIFT)?.cast::<AtomicU64>();
        // SAFETY: frames of this directory hold `ENTRIES` initialised entries, and stay as long as the pool.
        Some(unsafe { frame.add(index as usize & (ENTRIES - 1)).as_ref() })
    }

    /// The header of a zspage's record, for a number that is known to name one.
    #[inline(always)]
    pub(crate) fn header(&self, zspage: u32) -> Option<&Header> {
        let frame = self.records.get(zspage >> UNITS_SHIFT)?;
        // SAFETY: frames of this directory hold records, the number names one (its unit is where a record starts), and
        // records keep an initialised header as long as the pool.
        Some(unsafe { frame.add((zspage & UNITS_MASK) as usize * UNIT).cast::<Header>().as_ref() })
    }

    /// Whether a number that may be damaged names a record of the given bucket.
    pub(crate) fn names_record(&self, zspage: u32, bucket: u8) -> bool {
        let Some(frame) = self.records.get(zspage >> UNITS_SHIFT) else { return false };
        let Some(pfn) = self.env.frames().frame_of(frame.addr().get()) else { return false };
        let Some(state) = self.frame_state(pfn) else { return false };
        let size = bucket_size(bucket);
        let offset = (zspage & UNITS_MASK) as usize * UNIT;
        state == META_STATE | size as u64 && offset.is_multiple_of(size) && offset + size <= PAGE_SIZE
    }

    /// The record that a frame's state word names, if it can be one.
    pub(crate) fn header_from_state(&self, state: u64) -> Option<(u32, usize, &Header)> {
        if state & META_STATE != 0 || state >> 8 >= 1 << INDEX_BITS {
            return None;
        }
        let zspage = (state >> 8) as u32;
        let frame = self.records.get(zspage >> UNITS_SHIFT)?;
        let pfn = self.env.frames().frame_of(frame.addr().get())?;
        let size = (self.frame_state(pfn)? & !META_STATE) as usize;
        let offset = (zspage & UNITS_MASK) as usize * UNIT;
        if size == 0 || !offset.is_multiple_of(size) || offset + size > PAGE_SIZE {
            return None;
        }
        Some((zspage, (state & 0xff) as usize, self.header(zspage)?))
    }

    /// Adds a frame that stays as long as the pool, if `wanted` still says so under the lock, and tells `then` its index
    /// and address.
    pub(crate) fn keep_frame(
        &self,
        gfp: Gfp,
        wanted: impl Fn(&Meta) -> bool,
        then: impl Fn(&mut Meta, u32, NonNull<u8>),
    ) -> Result<(), StoreError> {
        loop {
            let nodes = self.kept.nodes_needed().ok_or(StoreError::Full)?;
            let mut fresh = Fresh::new(self, nodes + 1, gfp)?;
            let is_done = self.meta.with(self.env.cpu(), |meta| {
                if !wanted(meta) {
                    return true;
                }
                if self.kept.nodes_needed() != Some(nodes) {
                    return false;
                }
                let Some(frame) = fresh.take(0) else { return false };
                // SAFETY: the meta lock excludes other calls; the frames are ours from `fresh`.
                let Some(index) = (unsafe { self.kept.push(frame, || fresh.take(0)) }) else { return false };
                then(meta, index, frame);
                true
            });
            if is_done {
                return Ok(());
            }
        }
    }

    /// A batch of free handles.
    #[cold]
    pub(crate) fn take_handles(&self, gfp: Gfp) -> Result<Chain, StoreError> {
        loop {
            let nodes = self.handles.nodes_needed();
            if let Some(chain) = self.meta.with(self.env.cpu(), |meta| self.cut_chain(meta)) {
                return Ok(chain);
            }
            let nodes = nodes.ok_or(StoreError::Full)?;
            if self.handles.len() >= (NONE >> ENTRIES_SHIFT) {
                return Err(StoreError::Full);
            }
            let mut fresh = Fresh::new(self, nodes + 1, gfp)?;
            self.meta.with(self.env.cpu(), |meta| {
                // Someone may have been faster, and the directory may need other nodes by now: look again.
                if meta.nr_free_handles == 0 && self.handles.nodes_needed() == Some(nodes) {
                    self.add_entries(meta, &mut fresh);
                }
            });
        }
    }

    fn add_entries(&self, meta: &mut Meta, fresh: &mut Fresh<'_, E>) {
        let Some(frame) = fresh.take(0) else { return };
        let first = self.handles.len() << ENTRIES_SHIFT;
        for i in 0..ENTRIES as u32 {
            let next = if i + 1 == ENTRIES as u32 { NONE } else { first + i + 1 };
            let entry = self.sealed(Entry::first(self.id, next));
            // SAFETY: the frame is ours and holds `ENTRIES` entries.
            unsafe { frame.cast::<AtomicU64>().add(i as usize).write(AtomicU64::new(entry.0)) };
        }
        // SAFETY: the meta lock excludes other calls; the frames are ours from `fresh`.
        if unsafe { self.handles.push(frame, || fresh.take(0)) }.is_some() {
            meta.free_handles = first;
            meta.nr_free_handles = ENTRIES as u32;
        }
    }

    /// A free entry as this pool keeps it.
    #[inline(always)]
    pub(crate) fn sealed(&self, entry: Entry) -> Entry {
        if self.verify { entry.sealed() } else { entry }
    }

    fn cut_chain(&self, meta: &mut Meta) -> Option<Chain> {
        let len = meta.nr_free_handles.min(BATCH);
        if len == 0 {
            return None;
        }
        let (head, mut tail) = (meta.free_handles, meta.free_handles);
        for _ in 1..len {
            tail = self.next_free(tail)?;
        }
        let next = self.next_free(tail)?;
        meta.free_handles = next;
        meta.nr_free_handles -= len;
        Some(Chain { head, tail, len })
    }

    /// The entry behind a free one; `None` (and the rest of the chain lost) if the entry is damaged.
    pub(crate) fn next_free(&self, index: u32) -> Option<u32> {
        let entry = Entry(self.entry(index)?.load(Ordering::Relaxed));
        if self.verify && !entry.is_sound_free() { None } else { Some(entry.next()) }
    }

    /// Takes a batch of free handles back.
    #[cold]
    pub(crate) fn give_handles(&self, chain: Chain) {
        self.meta.with(self.env.cpu(), |meta| {
            let Some(entry) = self.entry(chain.tail) else { return };
            let tail = Entry(entry.load(Ordering::Relaxed));
            entry.store(self.sealed(tail.chained(meta.free_handles)).0, Ordering::Relaxed);
            meta.free_handles = chain.head;
            meta.nr_free_handles += chain.len;
        });
    }

    /// An unused record for a class's bucket.
    #[cold]
    pub(crate) fn take_record(&self, bucket: u8, gfp: Gfp) -> Result<u32, StoreError> {
        loop {
            let nodes = self.records.nodes_needed();
            if let Some(record) = self.meta.with(self.env.cpu(), |meta| self.cut_record(meta, bucket)) {
                return Ok(record);
            }
            let nodes = nodes.ok_or(StoreError::Full)?;
            if self.records.len() >= NONE >> UNITS_SHIFT {
                return Err(StoreError::Full);
            }
            let mut fresh = Fresh::new(self, nodes + 1, gfp)?;
            self.meta.with(self.env.cpu(), |meta| {
                if self.records.nodes_needed() == Some(nodes) {
                    self.add_records(meta, bucket, &mut fresh);
                }
            });
        }
    }

    fn add_records(&self, meta: &mut Meta, bucket: u8, fresh: &mut Fresh<'_, E>) {
        let Some(slot) = meta.buckets.get_mut(bucket as usize).filter(|slot| slot.left == 0) else { return };
        let size = bucket_size(bucket);
        let nr = PAGE_SIZE / size;
        let Some(frame) = fresh.take(size) else { return };
        for i in 0..nr {
            let header = Header {
                lock: LockWord::new(),
                owner: AtomicU32::new(Owner::NOBODY.0),
                inner: UnsafeCell::new(Inner::new(0)),
            };
            // SAFETY: inside the frame, which is ours; `UNIT` is aligned for headers and sizes are multiples of it.
            unsafe { frame.add(i * size).cast::<Header>().write(header) };
        }
        // SAFETY: the meta lock excludes other calls; the frames are ours from `fresh`.
        if let Some(index) = unsafe { self.records.push(frame, || fresh.take(0)) } {
            slot.cut = index << UNITS_SHIFT;
            slot.left = nr as u32;
        }
    }

    fn cut_record(&self, meta: &mut Meta, bucket: u8) -> Option<u32> {
        let slot = meta.buckets.get_mut(bucket as usize)?;
        if slot.free != NONE {
            let record = slot.free;
            if self.verify && !self.names_record(record, bucket) {
                // The damaged list is left alone.
                slot.free = NONE;
                return None;
            }
            let header = self.header(record)?;
            // SAFETY: unused records are under the meta lock, and nobody else reads their inner part.
            slot.free = header.inner.with(|inner| unsafe { (*inner).next });
            return Some(record);
        }
        if slot.left == 0 {
            return None;
        }
        let record = slot.cut;
        slot.left -= 1;
        slot.cut += (bucket_size(bucket) / UNIT) as u32;
        Some(record)
    }

    /// Takes a record back that no zspage uses.
    #[cold]
    pub(crate) fn give_record(&self, record: u32, bucket: u8) {
        self.meta.with(self.env.cpu(), |meta| {
            let (Some(slot), Some(header)) = (meta.buckets.get_mut(bucket as usize), self.header(record)) else {
                return;
            };
            let next = core::mem::replace(&mut slot.free, record);
            // SAFETY: unused records are under the meta lock.
            header.inner.with_mut(|inner| unsafe { (*inner).next = next });
        });
    }

    /// Damage to a handle's entry.
    pub(crate) fn bad_entry(&self) -> Corruption {
        Corruption { zspage: NONE, what: "handle entry" }
    }
}
