//! [`KmemCell`]: where a machine's allocators live, and how they come to life.
//!
//! ```text
//! KmemCell ── phase: empty ─▶ busy ─▶ ready
//!          └─ Kmem { platform ◀─ pages ◀─ vmalloc, slabs ◀─ kmalloc ◀─ kvmalloc, cma ◀─ dma }
//!             each part borrows those to its left, for good
//! ```
//!
//! The parts borrow one another, so they are written in place, left to right, and never move. A cell is `const`-made:
//! a kernel holds it in a `static`.

use core::alloc::Layout;
use core::fmt;
use core::mem::MaybeUninit;
use core::ptr::NonNull;

use kmem_buddy::{MapError, MemoryMap};
use kmem_cma::{Cma, Dma};
use kmem_gfp::PfnRange;
use kmem_kmalloc::Kmalloc;
use kmem_kvmalloc::Kvmalloc;
use kmem_slab::Slabs;
use kmem_sync::atomic::{AtomicU32, Ordering};
use kmem_sync::{UnsafeCell, const_fn};
use kmem_vmalloc::Vmalloc;

use crate::zsmalloc_names::ZsPools;
use crate::{CmaSide, DmaSide, EitherSide, InitError, Kmem, ObjectSide, PageSide, PageSource, Platform, VirtualSide};

const EMPTY: u32 = 0;
const BUSY: u32 = 1;
const READY: u32 = 2;

/// A place for a [`Kmem`], empty at first.
///
/// # Invariants
/// `kmem` is initialised when `phase` is `READY`, and is not touched again except through shared references. While
/// `phase` is `BUSY` it belongs to the one context that made it so.
pub struct KmemCell<P: Platform> {
    phase: AtomicU32,
    kmem: UnsafeCell<MaybeUninit<Kmem<P>>>,
}

// SAFETY: shared references give out a shared `Kmem`, which is `Sync`; the value is written by one context (invariant).
unsafe impl<P: Platform> Sync for KmemCell<P> where Kmem<P>: Sync {}

impl<P: Platform> fmt::Debug for KmemCell<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KmemCell").field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl<P: Platform> Default for KmemCell<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform> KmemCell<P> {
    const_fn! {
        /// An empty cell.
        pub fn new() -> Self {
            Self { phase: AtomicU32::new(EMPTY), kmem: UnsafeCell::new(MaybeUninit::uninit()) }
        }
    }

    /// The machine, once it is there. One load.
    #[inline(always)]
    pub fn get(&'static self) -> Option<&'static Kmem<P>> {
        // Acquire pairs with the release in `init`.
        if self.phase.load(Ordering::Acquire) != READY {
            return None;
        }
        // SAFETY: initialised, and only shared from here on (type invariant).
        Some(self.kmem.with(|kmem| unsafe { (*kmem).assume_init_ref() }))
    }

    /// Brings the machine to life: the page allocator over the memory of `map`, then the vmalloc window if there is one, then
    /// the object caches, then kmalloc.
    /// May sleep; called once, before anything allocates.
    ///
    /// `metadata` supplies the bookkeeping memory for the page allocator: it is called with the layout needed.
    ///
    /// # Errors
    /// [`InitError`]. The cell is then empty again, and what the caches had taken has gone back to the page allocator,
    /// which is gone with its bookkeeping.
    ///
    /// # Safety
    /// 1. Memory that `metadata` returns has the layout asked for, is used by nobody else for as long as the machine
    ///    exists, and is not in the map's unreserved frames.
    /// 2. The frames of the map that are not reserved exist and are used by nobody else.
    /// 3. The platform's [`frames`](Platform::frames) cover every such frame below the HIGHMEM zone.
    /// 4. The addresses of the platform's [`vmalloc_window`](Platform::vmalloc_window), if it has one, are used by nobody
    ///    else for as long as the machine exists, and are not those of its frames; whoever uses the machine can access what
    ///    its [`space`](Platform::space) maps there.
    pub unsafe fn init(
        &'static self,
        platform: P,
        map: &MemoryMap<'_>,
        metadata: impl FnOnce(Layout) -> Option<NonNull<u8>>,
    ) -> Result<&'static Kmem<P>, InitError> {
        if self.phase.compare_exchange(EMPTY, BUSY, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return Err(InitError::AlreadyInitialised);
        }
        let place = self.kmem.with_mut(|kmem| kmem.cast::<Kmem<P>>());
        // SAFETY: `place` is ours while the phase is `BUSY` (type invariant); the promises are the caller's.
        match unsafe { fill(place, platform, map, metadata) } {
            Ok(()) => {
                // Release pairs with the acquire in `get`.
                self.phase.store(READY, Ordering::Release);
                // SAFETY: `fill` has written every field.
                Ok(unsafe { &*place })
            }
            Err(error) => {
                self.phase.store(EMPTY, Ordering::Release);
                Err(error)
            }
        }
    }
}

/// Writes the fields of `place` from left to right; on failure drops those written.
///
/// # Safety
/// `place` is valid for writes and stays where it is for good; the rest as for [`KmemCell::init`].
unsafe fn fill<P: Platform>(
    place: *mut Kmem<P>,
    platform: P,
    map: &MemoryMap<'_>,
    metadata: impl FnOnce(Layout) -> Option<NonNull<u8>>,
) -> Result<(), InitError> {
    // SAFETY: fields of the caller's place, each written before it is borrowed; nothing borrows them mutably again
    // unless this function fails, and then in reverse order after the last borrower is gone.
    unsafe {
        (&raw mut (*place).platform).write(platform);
        let platform: &'static P = &(*place).platform;
        let undo_platform = OnFailure(&raw mut (*place).platform);

        (&raw mut (*place).zs_pools).write(ZsPools::new(platform));
        let zs_pools: &'static ZsPools<P> = &(*place).zs_pools;

        (&raw mut (*place).pages)
            .write(PageSource::with_options(PageSide::new(platform, zs_pools), platform.buddy_options()));
        let pages: &'static PageSource<P> = &(*place).pages;
        let undo_pages = OnFailure(&raw mut (*place).pages);
        let layout = pages.metadata_layout(map)?;
        let metadata =
            metadata(layout).ok_or(MapError::NotEnoughMetadata { size_bytes: layout.size(), align: layout.align() })?;
        pages.init(map, metadata)?;

        (&raw mut (*place).vmalloc).write(Vmalloc::new(VirtualSide::new(platform, pages)));
        let undo_vmalloc = OnFailure(&raw mut (*place).vmalloc);
        if let Some(window) = platform.vmalloc_window() {
            (*place).vmalloc.init(window)?;
        }

        let slabs = Slabs::with_config(ObjectSide::new(platform, pages), platform.slab_config());
        (&raw mut (*place).slabs).write(slabs);
        let slabs: &'static Slabs<ObjectSide<P>> = &(*place).slabs;
        let undo_slabs = OnFailure(&raw mut (*place).slabs);
        slabs.init()?;

        let mut kmalloc = platform.kmalloc_config();
        kmalloc.cgroup |= P::CHARGES;
        (&raw mut (*place).kmalloc).write(Kmalloc::new(slabs, kmalloc)?);
        let either = EitherSide::new(platform, &(*place).kmalloc, &(*place).vmalloc);
        (&raw mut (*place).kvmalloc).write(Kvmalloc::new(either));

        let ranges = map.regions.iter().map(|region| region.range);
        let span = ranges.reduce(|a, b| PfnRange::new(a.start.min(b.start), a.end.max(b.end)));
        (&raw mut (*place).cma).write(Cma::new(CmaSide::new(platform, pages, span.unwrap_or_default())));
        (&raw mut (*place).dma).write(Dma::new(DmaSide::new(platform, pages, &(*place).cma)));
        core::mem::forget((undo_slabs, undo_vmalloc, undo_pages, undo_platform));
    }
    Ok(())
}

/// Drops a field again, unless forgotten.
struct OnFailure<T>(*mut T);

impl<T> Drop for OnFailure<T> {
    fn drop(&mut self) {
        // SAFETY: made by `fill` for a field that it has just written; the guards of later fields have been dropped.
        unsafe { self.0.drop_in_place() };
    }
}
