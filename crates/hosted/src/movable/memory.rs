//! [`MovableMemory`]: pages of a machine that may be moved while they are in use, and the guards through which they are used.

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use kmem::{AllocError, Kmem, VmallocError};
use kmem_gfp::{Gfp, PAGE_SIZE, Pfn};
use kmem_sync::Cpu;
use kmem_vmalloc::{Prot, VmFlags};

use super::slot::Slot;
use crate::HostCpu;
use crate::host::Host;
use crate::sys;

/// Why movable memory was not to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MovableError {
    /// No pages were asked for.
    #[error("no pages")]
    Empty,
    /// There are not enough pages.
    #[error("{nr_pages} movable pages")]
    Pages {
        /// How many were asked for.
        nr_pages: usize,
        /// What the page allocator said.
        source: AllocError,
    },
    /// They cannot be mapped a second time.
    #[error("a second mapping of {nr_pages} movable pages")]
    Mapping {
        /// How many were asked for.
        nr_pages: usize,
        /// What vmalloc said.
        source: VmallocError,
    },
}

/// Pages that compaction and contiguous allocations may move while they are in use. Freed on drop.
///
/// *Mapped* memory ([`Machine::movable_area`](crate::Machine::movable_area)) has a second mapping, at addresses that stay the same: when a
/// page moves, its contents are copied and the mapping is repointed, in one step for whoever reads. *Unmapped* memory
/// ([`Machine::movable_pages`](crate::Machine::movable_pages)) is reached by the direct map, at addresses that change.
///
/// Either is used through guards. [`read`](Self::read) shares a page with other readers, and with a move of a mapped page;
/// [`write`](Self::write) has it alone. A page with a guard that is in the way stays where it is; so guards should be short.
///
/// ```
/// use kmem_hosted::{Gfp, Machine};
///
/// let machine = Machine::builder().boot()?;
/// let memory = machine.movable_area(16, Gfp::HIGHUSER_MOVABLE)?;
/// memory.write(3)[..5].copy_from_slice(b"hello");
/// machine.kmem().compact_memory(1)?;
/// assert_eq!(&memory.read(3)[..5], b"hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct MovableMemory {
    kmem: &'static Kmem<Host<HostCpu>>,
    slots: NonNull<[Slot]>,
    /// The second mapping.
    area: Option<NonNull<u8>>,
}

// SAFETY: slots are atomics, and the pages are reached under their locks.
unsafe impl Send for MovableMemory {}
// SAFETY: as above.
unsafe impl Sync for MovableMemory {}

impl fmt::Debug for MovableMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MovableMemory").field("pages", &self.nr_pages()).field("area", &self.area).finish()
    }
}

/// Frames that are freed unless they are given a home.
struct Frames(&'static Kmem<Host<HostCpu>>, Vec<Pfn>);

impl Drop for Frames {
    fn drop(&mut self) {
        for &pfn in &self.1 {
            // SAFETY: allocated here, and nobody has seen it.
            let _ = unsafe { self.0.free_page(pfn) };
        }
    }
}

impl MovableMemory {
    /// Allocates pages one by one, from wherever `gfp` allows, and maps them a second time if they are to be `mapped`.
    pub(crate) fn new(
        kmem: &'static Kmem<Host<HostCpu>>,
        nr_pages: usize,
        gfp: Gfp,
        mapped: bool,
    ) -> Result<Self, MovableError> {
        if nr_pages == 0 {
            return Err(MovableError::Empty);
        }
        let mut frames = Frames(kmem, Vec::with_capacity(nr_pages));
        for _ in 0..nr_pages {
            let allocated = kmem.alloc_page(gfp | Gfp::MOVABLE);
            frames.1.push(allocated.map_err(|source| MovableError::Pages { nr_pages, source })?);
        }
        let area = if mapped { Some(Self::map(kmem, &frames.1)?) } else { None };
        let at = |i: usize| area.map_or(0, |area| area.as_ptr().expose_provenance() + i * PAGE_SIZE);
        let slots: Box<[Slot]> = (0..nr_pages).map(|i| Slot::new(at(i))).collect();
        let memory = Self { kmem, slots: NonNull::from(Box::leak(slots)), area };
        for (i, pfn) in core::mem::take(&mut frames.1).into_iter().enumerate() {
            // SAFETY: `i` is inside the slots, which stay until `drop` has released them all.
            unsafe { kmem.platform().movable.adopt(pfn, memory.slots.cast::<Slot>().add(i)) };
        }
        Ok(memory)
    }

    /// An area that leads to `frames`.
    fn map(kmem: &'static Kmem<Host<HostCpu>>, frames: &[Pfn]) -> Result<NonNull<u8>, MovableError> {
        let refused = |source| MovableError::Mapping { nr_pages: frames.len(), source };
        let vmalloc = kmem.vmalloc_layer();
        let size = frames.len().saturating_mul(PAGE_SIZE);
        let area = vmalloc.get_vm_area(size, 1, VmFlags::SPARSE, None, Gfp::KERNEL).map_err(refused)?;
        // SAFETY: all of an area of ours in which nothing is mapped, and frames of ours.
        if let Err(source) = unsafe { vmalloc.vm_area_map(area.as_ptr(), frames, Prot::KERNEL) } {
            // SAFETY: ours, and nobody has seen it.
            let _ = unsafe { vmalloc.vunmap(area.as_ptr()) };
            return Err(refused(source));
        }
        Ok(area)
    }

    fn slots(&self) -> &[Slot] {
        // SAFETY: leaked by `new`, taken back by `drop`.
        unsafe { self.slots.as_ref() }
    }

    /// How many pages.
    pub fn nr_pages(&self) -> usize {
        self.slots().len()
    }

    /// Where the second mapping begins, if there is one. Reading by these addresses needs no guard as long as nobody
    /// writes; writing without a guard is lost if the page is moved at that moment.
    pub fn area(&self) -> Option<NonNull<u8>> {
        self.area
    }

    /// Which frame a page is in at the moment; `None` for a number that is no page's.
    pub fn frame(&self, page: usize) -> Option<Pfn> {
        self.slots().get(page)?.frame()
    }

    /// A page, to be read. Waits for whoever writes to it, and for its move unless it is mapped.
    ///
    /// # Panics
    /// If there is no such page.
    #[track_caller]
    pub fn read(&self, page: usize) -> PageRef<'_> {
        let slot = self.slot(page);
        self.wait(|| slot.lock.try_read(slot.stays()));
        // INVARIANT: locked for reading.
        PageRef { slot, bytes: self.bytes(slot), _bytes: PhantomData }
    }

    /// A page, to be written. Waits for whoever reads or writes it, and for its move.
    ///
    /// # Panics
    /// If there is no such page.
    #[track_caller]
    pub fn write(&self, page: usize) -> PageMut<'_> {
        let slot = self.slot(page);
        self.wait(|| slot.lock.try_write());
        // INVARIANT: locked for writing.
        PageMut { slot, bytes: self.bytes(slot), _bytes: PhantomData }
    }

    #[track_caller]
    fn slot(&self, page: usize) -> &Slot {
        match self.slots().get(page) {
            Some(slot) => slot,
            // PANIC: as indexing.
            None => panic!("page {page} of {}", self.nr_pages()),
        }
    }

    fn wait(&self, done: impl Fn() -> bool) {
        while !done() {
            self.kmem.platform().cpu.relax();
            sys::sched_yield();
        }
    }

    fn bytes(&self, slot: &Slot) -> NonNull<[u8; PAGE_SIZE]> {
        // Every slot has had a frame of the machine's since `new`.
        slot.address(&self.kmem.platform().table).unwrap_or(NonNull::dangling())
    }
}

impl Drop for MovableMemory {
    fn drop(&mut self) {
        let movable = &self.kmem.platform().movable;
        // No guard is left, and from here on nobody moves them.
        let frames: Vec<Pfn> = self.slots().iter().filter_map(|slot| movable.release(slot)).collect();
        if let Some(area) = self.area {
            let vmalloc = self.kmem.vmalloc_layer();
            // SAFETY: our area, which nobody uses any more. Unmapped and flushed before the frames are somebody else's.
            unsafe {
                let _ = vmalloc.vm_area_unmap(area.as_ptr(), self.nr_pages() as u64);
                let _ = vmalloc.vunmap(area.as_ptr());
            }
        }
        drop(Frames(self.kmem, frames));
        // SAFETY: leaked by `new`; released, so nobody finds a slot any more.
        drop(unsafe { Box::from_raw(self.slots.as_ptr()) });
    }
}

/// A page that is being read.
///
/// # Invariants
/// `slot` is locked for reading, and `bytes` is where its page is until that ends.
#[derive(Debug)]
pub struct PageRef<'m> {
    slot: &'m Slot,
    bytes: NonNull<[u8; PAGE_SIZE]>,
    _bytes: PhantomData<&'m [u8; PAGE_SIZE]>,
}

// SAFETY: shared access to bytes.
unsafe impl Sync for PageRef<'_> {}

impl Deref for PageRef<'_> {
    type Target = [u8; PAGE_SIZE];
    fn deref(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: mapped, and nobody writes (type invariant).
        unsafe { self.bytes.as_ref() }
    }
}

impl Drop for PageRef<'_> {
    fn drop(&mut self) {
        self.slot.lock.end_read();
    }
}

/// A page that is being written.
///
/// # Invariants
/// `slot` is locked for writing, and `bytes` is where its page is until that ends.
#[derive(Debug)]
pub struct PageMut<'m> {
    slot: &'m Slot,
    bytes: NonNull<[u8; PAGE_SIZE]>,
    _bytes: PhantomData<&'m mut [u8; PAGE_SIZE]>,
}

// SAFETY: shared access to bytes.
unsafe impl Sync for PageMut<'_> {}

impl Deref for PageMut<'_> {
    type Target = [u8; PAGE_SIZE];
    fn deref(&self) -> &[u8; PAGE_SIZE] {
        // SAFETY: mapped, and nobody else is here (type invariant).
        unsafe { self.bytes.as_ref() }
    }
}

impl DerefMut for PageMut<'_> {
    fn deref_mut(&mut self) -> &mut [u8; PAGE_SIZE] {
        // SAFETY: as above.
        unsafe { self.bytes.as_mut() }
    }
}

impl Drop for PageMut<'_> {
    fn drop(&mut self) {
        self.slot.lock.end_write();
    }
}
