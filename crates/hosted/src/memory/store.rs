//! [`PageStore`]: pages with contents, which reclaim may take and which come back when they are used.
//!
//! ```text
//! index ─▶ Slot (a lock each) ─┬─ frame     where the page is at the moment, or none
//!                              ├─ place     where its copy lies: a place of swap      (anonymous)
//!                              ├─ shadow    what reclaim left when it took it
//!                              └─ dirty, mapped, accessed
//! file-like: the copy lies at the same index of a file; a flusher writes dirty pages
//! anonymous: reclaim writes dirty pages to swap itself
//! ```
//!
//! **Locking:** a slot's lock is held while its page is used, read or written. Whoever holds one may allocate, and so
//! reclaim; reclaim never waits for a slot's lock: a page whose slot is locked is in use.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kmem::Kmem;
use kmem::reclaim::lru::{AddError, NewPage, OwnerId, PageKind, Shadow};
use kmem::reclaim::{GroupId, Groups};
use kmem_gfp::{AllocError, Gfp, PAGE_SIZE, Pfn};
use kmem_sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::setup::HostMm;
use super::swap::Swap;
use super::task;
use crate::HostCpu;
use crate::host::Host;

/// The bytes of a page.
pub(super) type Bytes = [u8; PAGE_SIZE];

/// Why a page could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store has fewer pages.
    #[error("page {index} of {pages}")]
    OutOfRange {
        /// The page asked for.
        index: u64,
        /// How many there are.
        pages: u64,
    },
    /// No frame could be had.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The group of the running task is over its limit.
    #[error("the memory cgroup has no room for a page")]
    OverLimit,
    /// The page lists refused the page.
    #[error(transparent)]
    Lists(#[from] AddError),
    /// The file or the swap device failed.
    #[error("the page's copy cannot be read")]
    Io(#[from] io::Error),
    /// The frame lies in memory that is not mapped.
    #[error("{0} is not mapped")]
    Unmapped(Pfn),
    /// The running task has been killed.
    #[error("killed")]
    Killed,
}

/// How a page is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Looked at.
    Read,
    /// Changed: its copy is out of date.
    Write,
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    pub(super) frame: Option<Pfn>,
    pub(super) place: Option<u64>,
    pub(super) shadow: Option<Shadow>,
    pub(super) dirty: bool,
    pub(super) mapped: bool,
    pub(super) accessed: bool,
}

/// Where copies lie.
#[derive(Debug)]
pub(super) enum Backing {
    File(File),
    Swap(&'static Swap),
    /// Anonymous pages of a machine without swap stay.
    Nothing,
}

/// Figures of a store, in pages and times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageStoreStats {
    /// Pages in memory.
    pub resident: u64,
    /// Of these, changed since they were last written.
    pub dirty: u64,
    /// Pages that have a place of swap.
    pub swapped: u64,
    /// Pages brought in.
    pub faults: u64,
    /// Of these, pages that reclaim had taken before.
    pub refaults: u64,
    /// Pages that reclaim has taken.
    pub evictions: u64,
    /// Pages written to their file or to swap.
    pub writebacks: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) resident: AtomicU64,
    pub(super) dirty: AtomicU64,
    pub(super) swapped: AtomicU64,
    pub(super) faults: AtomicU64,
    pub(super) refaults: AtomicU64,
    pub(super) evictions: AtomicU64,
    pub(super) writebacks: AtomicU64,
}

/// Pages with contents, by index: the page cache of a file, or anonymous memory.
#[derive(Debug)]
pub struct PageStore {
    pub(super) kmem: &'static Kmem<Host<HostCpu>>,
    pub(super) mm: &'static HostMm,
    pub(super) id: OwnerId,
    pub(super) kind: PageKind,
    pub(super) slots: Box<[Mutex<Slot>]>,
    pub(super) backing: Backing,
    pub(super) counters: Counters,
    /// Where the flusher goes on.
    pub(super) flush_at: AtomicUsize,
    /// Above so many dirty pages whoever writes helps the flusher.
    pub(super) dirty_limit: u64,
}

pub(super) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

pub(super) fn sub(counter: &AtomicU64, n: u64) {
    counter.fetch_sub(n, Ordering::Relaxed);
}

/// Pages that the flusher writes at a time.
const FLUSH_BATCH: u64 = 64;

impl PageStore {
    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        self.slots.len() as u64
    }

    /// Whether its pages are anonymous or a file's.
    pub fn kind(&self) -> PageKind {
        self.kind
    }

    /// Figures of this moment.
    pub fn stats(&self) -> PageStoreStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        PageStoreStats {
            resident: of(&counters.resident),
            dirty: of(&counters.dirty),
            swapped: of(&counters.swapped),
            faults: of(&counters.faults),
            refaults: of(&counters.refaults),
            evictions: of(&counters.evictions),
            writebacks: of(&counters.writebacks),
        }
    }

    pub(super) fn lock(&self, index: u64) -> Option<MutexGuard<'_, Slot>> {
        Some(self.slots.get(usize::try_from(index).ok()?)?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The bytes of a frame that the slot's lock makes the caller's.
    pub(super) fn address(&self, pfn: Pfn) -> Option<core::ptr::NonNull<Bytes>> {
        Some(self.kmem.page_address(pfn)?.cast())
    }

    /// Uses a page: brings it in if it is not in memory, with `gfp` for the frame, and runs `f` on its bytes. Where sleeping is
    /// allowed, as far as `gfp` says.
    ///
    /// # Errors
    /// [`StoreError`]; the page is as before.
    pub fn with_page<R>(
        &self,
        index: u64,
        access: Access,
        gfp: Gfp,
        f: impl FnOnce(&mut Bytes) -> R,
    ) -> Result<R, StoreError> {
        let mut slot = self.lock(index).ok_or(StoreError::OutOfRange { index, pages: self.pages() })?;
        let pfn = match slot.frame {
            Some(pfn) => pfn,
            None if task::current_task_killed() => return Err(StoreError::Killed),
            None => self.bring_in(&mut slot, index, gfp)?,
        };
        slot.accessed = true;
        match self.kind {
            PageKind::Anon => slot.mapped = true,
            PageKind::File => self.mm.lists().mark_accessed(pfn),
        }
        if access == Access::Write && !slot.dirty {
            slot.dirty = true;
            add(&self.counters.dirty, 1);
            self.forget_copy(&mut slot);
        }
        let mut page = self.address(pfn).ok_or(StoreError::Unmapped(pfn))?;
        // SAFETY: the frame is this page's, and all who touch its bytes hold the slot's lock.
        let result = f(unsafe { page.as_mut() });
        drop(slot);
        if access == Access::Write && self.counters.dirty.load(Ordering::Relaxed) > self.dirty_limit {
            self.flush(FLUSH_BATCH);
        }
        Ok(result)
    }

    /// The copy on swap is out of date.
    fn forget_copy(&self, slot: &mut Slot) {
        if let (Backing::Swap(swap), Some(place)) = (&self.backing, slot.place.take()) {
            swap.release(place);
            sub(&self.counters.swapped, 1);
        }
    }

    fn bring_in(&self, slot: &mut Slot, index: u64, gfp: Gfp) -> Result<Pfn, StoreError> {
        let groups = self.mm.groups();
        let paying = task::current().map_or(GroupId::ROOT, |task| task.group());
        let group = groups.charge_listed(paying, gfp, 1).map_err(|_| StoreError::OverLimit)?;
        let pfn = self.kmem.alloc_page(gfp).inspect_err(|_| Groups::uncharge(groups, group, 1))?;
        let undo = |error: StoreError| {
            Groups::uncharge(groups, group, 1);
            // SAFETY: allocated above, and nobody has seen it.
            let _ = unsafe { self.kmem.free_page(pfn) };
            error
        };
        let mut page = self.address(pfn).ok_or(StoreError::Unmapped(pfn)).map_err(undo)?;
        // SAFETY: allocated above, ours alone.
        let bytes = unsafe { page.as_mut() };
        self.read_copy(slot, index, bytes).map_err(|error| undo(error.into()))?;
        let new = NewPage {
            group,
            faulted: self.kind == PageKind::Anon,
            shadow: slot.shadow,
            ..NewPage::new(self.id, index, self.kind)
        };
        // Reclaim that finds the page now finds its slot locked.
        self.mm.lists().add(pfn, new).map_err(|error| undo(error.into()))?;
        add(&self.counters.faults, 1);
        if slot.shadow.take().is_some() {
            add(&self.counters.refaults, 1);
        }
        add(&self.counters.resident, 1);
        slot.frame = Some(pfn);
        slot.dirty = false;
        Ok(pfn)
    }

    fn read_copy(&self, slot: &Slot, index: u64, bytes: &mut Bytes) -> io::Result<()> {
        match (&self.backing, slot.place) {
            (Backing::File(file), _) => file.read_exact_at(bytes, index * PAGE_SIZE as u64),
            (Backing::Swap(swap), Some(place)) => swap.load(place, bytes),
            _ => {
                bytes.fill(0);
                Ok(())
            }
        }
    }

    /// Writes up to `pages` dirty pages of a file; returns how many. Anonymous pages are written by reclaim only.
    pub fn flush(&self, pages: u64) -> u64 {
        let Backing::File(file) = &self.backing else { return 0 };
        let nr = self.slots.len();
        let mut written = 0;
        for _ in 0..nr {
            if written >= pages || self.counters.dirty.load(Ordering::Relaxed) == 0 {
                break;
            }
            let at = self.flush_at.fetch_add(1, Ordering::Relaxed) % nr.max(1);
            let Some(Ok(mut slot)) = self.slots.get(at).map(Mutex::try_lock) else { continue };
            let (true, Some(pfn)) = (slot.dirty, slot.frame) else { continue };
            let Some(page) = self.address(pfn) else { continue };
            // SAFETY: the slot is locked.
            if file.write_all_at(unsafe { page.as_ref() }, at as u64 * PAGE_SIZE as u64).is_ok() {
                slot.dirty = false;
                sub(&self.counters.dirty, 1);
                add(&self.counters.writebacks, 1);
                written += 1;
            }
        }
        written
    }

    /// Throws a page away with its copy.
    fn clear_slot(&self, slot: &mut Slot) {
        if let Some(pfn) = slot.frame.take() {
            // SAFETY: the frame is this page's; the slot does not name it any more and nobody else uses it.
            let released = unsafe { self.mm.lists().release(pfn) };
            debug_assert!(released.is_ok(), "{released:?}");
            sub(&self.counters.resident, 1);
            if slot.dirty {
                sub(&self.counters.dirty, 1);
            }
        }
        self.forget_copy(slot);
        *slot = Slot::default();
    }

    /// Throws every page away with its copy: all read as zeroes afterwards, or as what the file has.
    pub fn clear(&self) {
        for slot in &self.slots {
            self.clear_slot(&mut slot.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// As [`clear`](Self::clear), leaving out pages that are in use; whether there were none.
    pub(super) fn try_clear(&self) -> bool {
        let mut all = true;
        for slot in &self.slots {
            match slot.try_lock() {
                Ok(mut slot) => self.clear_slot(&mut slot),
                Err(_) => all = false,
            }
        }
        all
    }
}
