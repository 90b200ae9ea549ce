//! [`Zram`]: pages in, pages out.

use core::fmt;
use core::num::NonZeroU64;
use core::ops::Range;

use kmem::ZsPool;
use kmem_gfp::{Gfp, PAGE_SIZE};
use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_zsmalloc::{Handle, PoolStats, StoreError};

use super::slot::{HUGE, IDLE, Kind, Slot, SlotGuard};
use super::stats::{Count, Counters, bytes};
use super::{BackingDevice, BdStat, IoStat, MAX_SECONDARIES, MmStat, ZramCreateError, ZramError, ZramOptions};
use crate::compress::{Compressor, PageBytes, ZERO_PAGE, fill, same_filled};
use crate::{Host, HostCpu, Machine};

/// The flags of objects: no I/O for their sake, no report, frames that may be anywhere and may move.
pub(crate) const FLAGS: Gfp = Gfp::NOIO.union(Gfp::NOWARN).union(Gfp::HIGHMEM).union(Gfp::MOVABLE);

/// A block device in memory, whose pages are compressed objects of a machine's pool.
///
/// Any number of threads use it at once. A page is read and written as a whole: whoever writes parts of a page from
/// several threads sees to their order. Dropping the device frees all its pages.
///
/// ```
/// # #[cfg(feature = "lz4")] {
/// use kmem_hosted::{Lz4, Machine, Zram, ZramOptions};
///
/// let machine = Machine::builder().cpus(2).ram_bytes(64 << 20).boot()?;
/// let disk = Zram::new(machine, ZramOptions::new(16 << 20, Lz4))?;
/// disk.write_at(10_000, b"compressed")?;
/// let mut text = [0; 10];
/// disk.read_at(10_000, &mut text)?;
/// assert_eq!(&text, b"compressed");
/// print!("{}", disk.mm_stat());
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "zram")]
pub struct Zram {
    pub(super) pool: ZsPool<Host<HostCpu>>,
    pub(super) cpu: HostCpu,
    pub(super) slots: Box<[Slot]>,
    /// By priority: the primary compressor first.
    pub(super) compressors: Vec<Box<dyn Compressor>>,
    /// Objects of this size have a frame to themselves.
    pub(super) huge_bytes: usize,
    /// In frames; 0: none.
    limit: AtomicU64,
    pub(super) counters: Counters,
    pub(super) backing: Option<BackingDevice>,
}

impl fmt::Debug for Zram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zram").field("pages", &self.slots.len()).field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// Where a page's bytes are, while its slot is locked.
pub(super) enum Content<'a> {
    /// In `page`, complete.
    Done,
    /// On the backing device.
    Backed(&'a BackingDevice, u64),
}

impl Zram {
    /// A device in the memory of `machine`. Takes 16 bytes of the process's memory for each page.
    ///
    /// # Errors
    /// [`ZramCreateError`].
    pub fn new(machine: &Machine, options: ZramOptions) -> Result<Self, ZramCreateError> {
        let ZramOptions { size_bytes, compressors, limit_bytes, pool, backing } = options;
        let pages = usize::try_from(size_bytes.div_ceil(PAGE_SIZE as u64));
        let pages = pages.ok().filter(|pages| (1..1 << 40).contains(pages)).ok_or(ZramCreateError::Size(size_bytes))?;
        if compressors.len() > 1 + MAX_SECONDARIES {
            return Err(ZramCreateError::Secondaries(compressors.len().saturating_sub(1)));
        }
        let pool = machine.kmem().zs_create_pool(pool, Gfp::KERNEL)?;
        Ok(Self {
            huge_bytes: pool.huge_class_size(),
            pool,
            cpu: *machine.cpu(),
            slots: (0..pages).map(|_| Slot::new()).collect(),
            compressors,
            limit: AtomicU64::new(limit_bytes.div_ceil(PAGE_SIZE as u64)),
            counters: Counters::new(),
            backing,
        })
    }

    /// Pages of the device.
    pub fn nr_pages(&self) -> u64 {
        self.slots.len() as u64
    }

    pub(super) fn slot(&self, page: u64) -> Result<&Slot, ZramError> {
        let slot = usize::try_from(page).ok().and_then(|page| self.slots.get(page));
        slot.ok_or(ZramError::OutOfRange { page, pages: self.nr_pages() })
    }

    pub(super) fn count(&self, count: Count, n: i64) {
        self.counters.add(&self.cpu, count, n);
    }

    /// Writes a page. What was there before goes only when the new one is stored.
    ///
    /// # Errors
    /// [`ZramError`]: `OutOfRange`, `Store`, `OverLimit`; the page is as before.
    pub fn write_page(&self, page: u64, data: &PageBytes) -> Result<(), ZramError> {
        let slot = self.slot(page)?;
        let written = self.store_page(slot, data);
        if written.is_err() {
            self.count(Count::FailedWrites, 1);
        }
        written
    }

    fn store_page(&self, slot: &Slot, data: &PageBytes) -> Result<(), ZramError> {
        if let Some(word) = same_filled(data) {
            let mut slot = slot.lock(&self.cpu);
            self.clear(&mut slot);
            slot.set(Kind::Same, word, 0, 0);
            self.count(Count::Pages, 1);
            self.count(Count::Same, 1);
            return Ok(());
        }
        let mut buffer = ZERO_PAGE;
        let len = self.compressors.first().and_then(|primary| primary.compress(data, &mut buffer));
        // What takes a frame to itself anyway is kept whole.
        let small = len.filter(|len| *len < self.huge_bytes).and_then(|len| buffer.get(..len));
        let (object, flags) = small.map_or((&data[..], HUGE), |small| (small, 0));
        let handle = self.store_object(object)?;
        let mut slot = slot.lock(&self.cpu);
        self.clear(&mut slot);
        slot.set(Kind::Object, handle.to_bits().get(), flags, 0);
        self.count(Count::Pages, 1);
        self.count(Count::Bytes, object.len() as i64);
        if flags & HUGE != 0 {
            self.count(Count::Huge, 1);
            self.count(Count::HugeSince, 1);
        }
        Ok(())
    }

    /// Stores an object within the limit.
    pub(super) fn store_object(&self, object: &[u8]) -> Result<Handle, ZramError> {
        let handle = self.pool.store(object, FLAGS)?;
        let used = self.pool.total_pages();
        self.counters.note_frames(used);
        let limit = self.limit.load(Ordering::Relaxed);
        if limit != 0 && used > limit {
            self.pool.free(handle)?;
            return Err(ZramError::OverLimit { used, limit });
        }
        Ok(handle)
    }

    /// Empties a slot and takes what was in it out of the figures.
    pub(super) fn clear(&self, slot: &mut SlotGuard<'_>) {
        match slot.kind() {
            Kind::Empty => return,
            Kind::Same => self.count(Count::Same, -1),
            Kind::Object => self.free_object(slot),
            Kind::Backed => {
                if let Some(backing) = &self.backing {
                    backing.free(slot.word());
                    self.count(Count::Backed, -1);
                }
            }
        }
        self.count(Count::Pages, -1);
        slot.set(Kind::Empty, 0, 0, 0);
    }

    /// Frees a slot's object and takes it out of the figures.
    pub(super) fn free_object(&self, slot: &SlotGuard<'_>) {
        let Some(handle) = handle_of(slot) else { return };
        let len = self.pool.len_of(handle).unwrap_or(0);
        let freed = self.pool.free(handle);
        debug_assert!(freed.is_ok(), "{freed:?}");
        self.count(Count::Bytes, -(len as i64));
        if slot.has(HUGE) {
            self.count(Count::Huge, -1);
        }
    }

    /// Reads a page; one that was never written, or discarded, is full of zeroes.
    ///
    /// # Errors
    /// [`ZramError`]: `OutOfRange`; `Access` or `Decompress` if memory is damaged; `Backing`. `data` then holds anything.
    pub fn read_page(&self, page: u64, data: &mut PageBytes) -> Result<(), ZramError> {
        let slot = self.slot(page)?;
        let read = self.load_page(slot, data);
        if read.is_err() {
            self.count(Count::FailedReads, 1);
        }
        read
    }

    fn load_page(&self, slot: &Slot, data: &mut PageBytes) -> Result<(), ZramError> {
        let mut slot = slot.lock(&self.cpu);
        slot.set_flag(IDLE, false);
        match self.load(&slot, data)? {
            Content::Done => Ok(()),
            Content::Backed(backing, place) => {
                // With the slot locked, so that the place stays the page's.
                backing.read(place, data)?;
                self.count(Count::BackedReads, 1);
                Ok(())
            }
        }
    }

    /// Fills `data` with what a slot holds in memory, or says where else it is.
    pub(super) fn load(&self, slot: &SlotGuard<'_>, data: &mut PageBytes) -> Result<Content<'_>, ZramError> {
        match slot.kind() {
            Kind::Empty => data.fill(0),
            Kind::Same => fill(data, slot.word()),
            Kind::Backed => {
                let backing = self.backing.as_ref().ok_or(ZramError::NoBacking("no backing device"))?;
                return Ok(Content::Backed(backing, slot.word()));
            }
            Kind::Object => {
                let handle = handle_of(slot).ok_or(ZramError::NoCompressor(slot.priority()))?;
                let mut buffer = ZERO_PAGE;
                let object = self.pool.read(handle, &mut buffer)?;
                if let Ok(whole) = <&PageBytes>::try_from(&*object) {
                    *data = *whole;
                } else {
                    let priority = slot.priority();
                    let compressor = self.compressors.get(usize::from(priority));
                    compressor.ok_or(ZramError::NoCompressor(priority))?.decompress(&object, data)?;
                }
            }
        }
        Ok(Content::Done)
    }

    /// Forgets pages; those beyond the device are left out.
    #[doc(alias = "slot_free_notify")]
    pub fn discard(&self, pages: Range<u64>) {
        let end = usize::try_from(pages.end).unwrap_or(usize::MAX).min(self.slots.len());
        let start = usize::try_from(pages.start).unwrap_or(usize::MAX).min(end);
        for slot in self.slots.get(start..end).unwrap_or(&[]) {
            self.clear(&mut slot.lock(&self.cpu));
            self.count(Count::NotifyFree, 1);
        }
    }

    /// Reads bytes from anywhere on the device.
    ///
    /// # Errors
    /// `BytesOutOfRange`, and those of [`read_page`](Self::read_page).
    pub fn read_at(&self, offset: u64, mut out: &mut [u8]) -> Result<(), ZramError> {
        let mut at = self.checked(offset, out.len())?;
        let mut page = ZERO_PAGE;
        while !out.is_empty() {
            self.read_page(at / PAGE_SIZE as u64, &mut page)?;
            let from = page.get((at % PAGE_SIZE as u64) as usize..).unwrap_or(&[]);
            let nr = from.len().min(out.len());
            let (now, later) = out.split_at_mut(nr);
            now.copy_from_slice(from.get(..nr).unwrap_or(&[]));
            (at, out) = (at + nr as u64, later);
        }
        Ok(())
    }

    /// Writes bytes to anywhere on the device; the rest of a page that they do not fill is read first.
    ///
    /// # Errors
    /// `BytesOutOfRange`, and those of [`read_page`](Self::read_page) and [`write_page`](Self::write_page): pages before the one that
    /// failed are written.
    pub fn write_at(&self, offset: u64, mut data: &[u8]) -> Result<(), ZramError> {
        let mut at = self.checked(offset, data.len())?;
        let mut page = ZERO_PAGE;
        while !data.is_empty() {
            let (number, within) = (at / PAGE_SIZE as u64, (at % PAGE_SIZE as u64) as usize);
            let nr = (PAGE_SIZE - within).min(data.len());
            if nr < PAGE_SIZE {
                self.read_page(number, &mut page)?;
            }
            let (now, later) = data.split_at(nr);
            if let Some(to) = page.get_mut(within..within + nr) {
                to.copy_from_slice(now);
            }
            self.write_page(number, &page)?;
            (at, data) = (at + nr as u64, later);
        }
        Ok(())
    }

    fn checked(&self, offset: u64, len: usize) -> Result<u64, ZramError> {
        let size = bytes(self.nr_pages());
        let end = offset.checked_add(len as u64).filter(|end| *end <= size);
        end.map(|_| offset).ok_or(ZramError::BytesOutOfRange { offset, len, size })
    }

    /// Moves objects together; returns how many frames that gave back.
    pub fn compact(&self) -> u64 {
        self.pool.compact()
    }

    /// Another limit, in bytes of frames; 0: none. Pages stored are kept whatever it is.
    #[doc(alias = "mem_limit")]
    pub fn set_limit(&self, limit_bytes: u64) {
        self.limit.store(limit_bytes.div_ceil(PAGE_SIZE as u64), Ordering::Relaxed);
    }

    /// Begins to look for the most frames anew.
    #[doc(alias = "mem_used_max")]
    pub fn reset_used_max(&self) {
        self.counters.set_most(self.pool.total_pages());
    }

    /// Marks all pages with an object as not accessed; reading or writing one takes the mark off.
    #[doc(alias = "idle")]
    pub fn mark_idle(&self) {
        for slot in &self.slots {
            let mut slot = slot.lock(&self.cpu);
            if slot.kind() == Kind::Object {
                slot.set_flag(IDLE, true);
            }
        }
    }

    /// Forgets all pages.
    pub fn reset(&self) {
        for slot in &self.slots {
            self.clear(&mut slot.lock(&self.cpu));
        }
    }

    /// What the device holds.
    pub fn mm_stat(&self) -> MmStat {
        // Frees of other CPUs' objects are outstanding until somebody settles them, and their frames with them.
        self.pool.settle_frees();
        let sum = |count| self.counters.sum(count);
        MmStat {
            orig_data_size: bytes(sum(Count::Pages)),
            compr_data_size: sum(Count::Bytes),
            mem_used_total: bytes(self.pool.total_pages()),
            mem_limit: bytes(self.limit.load(Ordering::Relaxed)),
            mem_used_max: bytes(self.counters.most()),
            same_pages: sum(Count::Same),
            pages_compacted: self.pool.pages_compacted(),
            huge_pages: sum(Count::Huge),
            huge_pages_since: sum(Count::HugeSince),
        }
    }

    /// What failed.
    pub fn io_stat(&self) -> IoStat {
        IoStat {
            failed_reads: self.counters.sum(Count::FailedReads),
            failed_writes: self.counters.sum(Count::FailedWrites),
            invalid_io: 0,
            notify_free: self.counters.sum(Count::NotifyFree),
        }
    }

    /// Traffic of the backing device.
    pub fn bd_stat(&self) -> BdStat {
        BdStat {
            count: self.counters.sum(Count::Backed),
            reads: self.counters.sum(Count::BackedReads),
            writes: self.counters.sum(Count::BackedWrites),
        }
    }

    /// What the pool holds.
    pub fn pool_stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// The pool: classes, statistics.
    pub fn pool(&self) -> &ZsPool<Host<HostCpu>> {
        &self.pool
    }
}

/// The handle in a slot that holds an object.
pub(super) fn handle_of(slot: &SlotGuard<'_>) -> Option<Handle> {
    NonZeroU64::new(slot.word()).map(Handle::from_bits)
}

impl Drop for Zram {
    fn drop(&mut self) {
        self.reset();
    }
}

impl ZramError {
    /// Whether there was no memory, or no more was allowed: the kernel's `ENOMEM`.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OverLimit { .. } | Self::Store(StoreError::Alloc(_) | StoreError::Full))
    }
}
