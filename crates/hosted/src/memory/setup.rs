//! Putting memory under pressure together: at boot, and what a machine offers for it afterwards.

use core::alloc::Layout;
use core::ptr::NonNull;
use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use kmem::reclaim::PageLists;
use kmem::reclaim::lru::{OwnerId, PageKind, PageOwner};
use kmem::{Kmem, Mm, MmConfig, MmError, Platform};
use kmem_gfp::{NodeId, OwnerTag, PAGE_SIZE};

use super::services::Services;
use super::store::{Backing, Counters, PageStore};
use super::swap::Swap;
use super::task::{Task, TaskList};
use crate::host::Host;
use crate::{HostCpu, Machine, SwapDevice, SwapFile, sys};

/// Reclaim of a machine in this process.
pub type HostMm = Mm<Host<HostCpu>>;

/// How a machine reclaims; given to [`MachineBuilder::reclaim`](crate::MachineBuilder::reclaim).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReclaimOptions {
    /// Places for memory cgroups, the root's included; 1: none, and nothing is charged.
    pub groups: u32,
    /// Bytes of swap in a file in memory; 0: none, unless [`Machine::swap_on`] adds some.
    pub swap_bytes: u64,
    /// Whether a thread for each node reclaims in the background.
    pub kswapd: bool,
    /// Whether a thread writes dirty file-like pages.
    pub flusher: bool,
}

impl Default for ReclaimOptions {
    /// 64 groups, no swap, all threads.
    fn default() -> Self {
        Self { groups: 64, swap_bytes: 0, kswapd: true, flusher: true }
    }
}

/// Why a part of reclaim is not to be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The machine was booted without [`MachineBuilder::reclaim`](crate::MachineBuilder::reclaim).
    #[error("the machine does not reclaim")]
    NoReclaim,
    /// Reclaim itself could not be set up.
    #[error(transparent)]
    SetUp(#[from] MmError),
    /// The host refused a file or a thread.
    #[error("the host refused a file or a thread")]
    Host(#[from] io::Error),
    /// The machine has swap already.
    #[error("the machine has swap already")]
    SwapIsOn,
    /// There are as many owners of pages as numbers for them.
    #[error("all {0} owners of pages are in use")]
    TooManyOwners(u16),
}

/// Memory of the host for reclaim's own state, given back on drop.
#[derive(Debug, Default)]
pub(crate) struct Regions(Vec<(NonNull<u8>, Layout)>);

// SAFETY: plain memory.
unsafe impl Send for Regions {}
// SAFETY: shared references do nothing.
unsafe impl Sync for Regions {}

impl Regions {
    fn add(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        if layout.size() == 0 {
            return Some(layout.dangling_ptr());
        }
        // SAFETY: not of size zero.
        let memory = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
        self.0.push((memory, layout));
        Some(memory)
    }
}

impl Drop for Regions {
    fn drop(&mut self) {
        for (memory, layout) in self.0.drain(..) {
            // SAFETY: allocated above with this layout.
            unsafe { std::alloc::dealloc(memory.as_ptr(), layout) };
        }
    }
}

/// What a machine with reclaim has beside its [`Mm`].
///
/// # Invariants
/// `stores` are boxes of ours that live as long as this value.
#[derive(Debug)]
pub(crate) struct HostMemory {
    pub(crate) mm: &'static HostMm,
    pub(crate) tasks: TaskList,
    owners: Box<[OnceLock<&'static dyn PageOwnerRef>]>,
    stores: Mutex<Vec<&'static PageStore>>,
    /// Anonymous stores that nobody uses.
    spare: Mutex<Vec<&'static PageStore>>,
    swap: OnceLock<Swap>,
    services: Services,
    /// Dropped last: the parts of `mm`.
    _regions: Regions,
}

/// A page owner that can be printed.
pub(crate) trait PageOwnerRef: PageOwner + core::fmt::Debug {}
impl<T: PageOwner + core::fmt::Debug> PageOwnerRef for T {}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HostMemory {
    /// Reclaim for a machine whose allocators run. Threads are started by [`start`](Self::start).
    ///
    /// # Safety
    /// The machine ends before this value is dropped, and its pages are nobody's then.
    pub(crate) unsafe fn new(
        kmem: &'static Kmem<Host<HostCpu>>,
        options: &ReclaimOptions,
        compaction: bool,
    ) -> Result<Box<Self>, MemoryError> {
        let mut regions = Regions::default();
        let frames = kmem.platform().ram.plan().span();
        let config = MmConfig { groups: options.groups.max(1), frames, compaction };
        // SAFETY: fresh memory of the host that lives as long as this value; called once, at boot.
        let mm = unsafe { Mm::set_up(kmem, config, |layout| regions.add(layout)) }?;
        let swap = OnceLock::new();
        if options.swap_bytes > 0 {
            let file = File::from(sys::memory_file(options.swap_bytes)?);
            let _ = swap.set(Swap::new(Box::new(SwapFile::new(file)), options.swap_bytes / PAGE_SIZE as u64));
        }
        Ok(Box::new(Self {
            mm,
            tasks: TaskList::new(),
            owners: (0..OwnerId::LIMIT).map(|_| OnceLock::new()).collect(),
            stores: Mutex::new(Vec::new()),
            spare: Mutex::new(Vec::new()),
            swap,
            services: Services::default(),
            _regions: regions,
        }))
    }

    /// Installs reclaim and starts its threads.
    pub(crate) fn start(&'static self, options: &ReclaimOptions) -> io::Result<()> {
        let host = self.mm.kmem().platform();
        let _ = host.memory.set(self);
        host.set_movable_owner(OwnerTag::Lru, self.mm.lists());
        host.reclaimer().mm().install(self.mm);
        let nodes = if options.kswapd { kmem_gfp::PageAllocator::nr_nodes(self.mm.kmem().pages()) } else { 0 };
        self.services.start(self, (0..nodes).map(NodeId), options.flusher)
    }

    /// Stops the threads.
    pub(crate) fn stop(&self) {
        self.services.stop(self.mm);
    }

    pub(crate) fn owner(&self, id: OwnerId) -> Option<&dyn PageOwner> {
        let owner: &'static dyn PageOwnerRef = *self.owners.get(usize::from(id.0))?.get()?;
        Some(owner)
    }

    /// Swap, if there is any.
    pub(crate) fn swap(&self) -> Option<&Swap> {
        self.swap.get()
    }

    /// Calls `visit` with every store of files.
    pub(super) fn for_each_file(&self, visit: impl Fn(&'static PageStore)) {
        let stores = locked(&self.stores).clone();
        stores.into_iter().filter(|store| store.kind == PageKind::File).for_each(visit);
    }

    fn add_store(
        &'static self,
        kind: PageKind,
        pages: u64,
        backing: Backing,
    ) -> Result<&'static PageStore, MemoryError> {
        let mut stores = locked(&self.stores);
        let id = stores.len();
        let place = self.owners.get(id).ok_or(MemoryError::TooManyOwners(OwnerId::LIMIT))?;
        let kmem = self.mm.kmem();
        let store: &'static PageStore = Box::leak(Box::new(PageStore {
            kmem,
            mm: self.mm,
            id: OwnerId(id as u16),
            kind,
            slots: (0..pages).map(|_| Mutex::default()).collect(),
            backing,
            counters: Counters::default(),
            flush_at: 0.into(),
            dirty_limit: if kind == PageKind::File { kmem.pages().managed_pages() / 10 } else { u64::MAX },
        }));
        let _ = place.set(store);
        stores.push(store);
        Ok(store)
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        for store in locked(&self.stores).drain(..) {
            // SAFETY: a leaked box of ours; nothing uses the machine any more.
            drop(unsafe { Box::from_raw(core::ptr::from_ref(store).cast_mut()) });
        }
    }
}

/// # Memory under pressure
///
/// For machines with [`MachineBuilder::reclaim`](crate::MachineBuilder::reclaim).
impl Machine {
    fn memory(&self) -> Result<&'static HostMemory, MemoryError> {
        self.kmem().platform().memory.get().copied().ok_or(MemoryError::NoReclaim)
    }

    /// Reclaim: kswapd, direct and proactive reclaim, the page lists, memory cgroups, the OOM killer, the views.
    pub fn mm(&self) -> Option<&'static HostMm> {
        self.memory().ok().map(|memory| memory.mm)
    }

    /// Swap, if it is on.
    pub fn swap(&self) -> Option<&'static Swap> {
        self.memory().ok()?.swap()
    }

    /// Adds swap of `pages` pages on a device of the caller's. For anonymous memory made afterwards.
    ///
    /// # Errors
    /// [`MemoryError::NoReclaim`]; [`MemoryError::SwapIsOn`].
    #[doc(alias = "swapon")]
    pub fn swap_on(&self, device: Box<dyn SwapDevice>, pages: u64) -> Result<(), MemoryError> {
        self.memory()?.swap.set(Swap::new(device, pages)).map_err(|_| MemoryError::SwapIsOn)
    }

    /// A new task, in the root group.
    ///
    /// # Errors
    /// [`MemoryError::NoReclaim`].
    pub fn task(&'static self, name: &str) -> Result<Task, MemoryError> {
        Ok(Task::new(self, &self.memory()?.tasks, name))
    }

    /// The page cache of a file of `pages` pages; the file lies in the host's memory and is full of zeroes.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn file_pages(&self, pages: u64) -> Result<&'static PageStore, MemoryError> {
        let file = File::from(sys::memory_file(pages.saturating_mul(PAGE_SIZE as u64))?);
        self.memory()?.add_store(PageKind::File, pages, Backing::File(file))
    }

    /// Anonymous memory of `pages` pages, full of zeroes, with the machine's swap behind it.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn anonymous_pages(&self, pages: u64) -> Result<&'static PageStore, MemoryError> {
        let memory = self.memory()?;
        let mut spare = locked(&memory.spare);
        if let Some(at) = spare.iter().position(|store| store.pages() == pages) {
            return Ok(spare.swap_remove(at));
        }
        drop(spare);
        let backing = memory.swap().map_or(Backing::Nothing, Backing::Swap);
        memory.add_store(PageKind::Anon, pages, backing)
    }

    /// Keeps an anonymous store that has been cleared for whoever next wants one of its size.
    pub(super) fn give_back_store(&self, store: &'static PageStore) {
        if let Ok(memory) = self.memory() {
            locked(&memory.spare).push(store);
        }
    }

    /// Whether every page on the lists belongs to one of the stores, and the other way round: what a machine at rest shows.
    /// The numbers of pages on the lists and in the stores.
    pub fn count_pages(&self) -> Result<(u64, u64), MemoryError> {
        let memory = self.memory()?;
        let nodes = kmem_gfp::PageAllocator::nr_nodes(self.kmem().pages());
        memory.mm.lists().drain_all();
        let listed = (0..nodes).map(|node| {
            let counts = memory.mm.lists().counts(NodeId(node), None);
            counts.inactive_anon + counts.active_anon + counts.inactive_file + counts.active_file + counts.unevictable
        });
        let stored = locked(&memory.stores).iter().map(|store| store.stats().resident).sum();
        Ok((listed.sum(), stored))
    }
}
