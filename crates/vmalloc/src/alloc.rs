//! `vmalloc` itself: a range, frames, a mapping.
//!
//! ```text
//!   check ─▶ reserve range ─▶ gather frames ─▶ map ─▶ publish
//!                 │                 │            │
//!                 │                 │            └─ fails: unmap, frees frames, range to the lazy list
//!                 │                 └─ fails: frees frames, range back
//!                 └─ fails: nothing to undo
//! ```

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, AllocError, Gfp, Order, PAGE_SHIFT, PAGE_SIZE, PageAllocator};

use crate::address_space::AddressSpace;
use crate::area::{Area, Owned};
use crate::frames::Short;
use crate::node::Pools;
use crate::tree::Wanted;
use crate::vmalloc::{Once, Shared, Vmalloc};
use crate::{Granule, Prot, Run, VmFlags, VmRequest, VmallocEnv, VmallocError};

/// The flags that a request for memory honours. Others are dropped.
pub const SUPPORTED: Gfp = Gfp::KERNEL
    .union(Gfp::USER)
    .union(Gfp::ATOMIC)
    .union(Gfp::NOWAIT)
    .union(Gfp::ACCOUNT)
    .union(Gfp::ZERO)
    .union(Gfp::NOFAIL)
    .union(Gfp::NORETRY)
    .union(Gfp::RETRY_MAYFAIL)
    .union(Gfp::THISNODE)
    .union(Gfp::MEMALLOC)
    .union(Gfp::NOMEMALLOC);

/// What a new area is to be, beside its range.
pub(crate) struct Kind {
    pub(crate) flags: VmFlags,
    pub(crate) prot: Prot,
    pub(crate) granule: Granule,
    pub(crate) requested: usize,
    pub(crate) mapped: u64,
    pub(crate) phys: u64,
    pub(crate) caller: &'static Location<'static>,
}

impl Kind {
    /// Writes it into a descriptor.
    #[inline(always)]
    pub(crate) fn fill(self, area: &mut Owned) {
        area.body(|body| {
            body.flags = self.flags;
            body.prot = self.prot;
            body.granule = self.granule;
            body.requested = self.requested;
            body.mapped = self.mapped;
            body.phys = self.phys;
            body.caller = self.caller;
        });
    }
}

impl<E: VmallocEnv> Vmalloc<E> {
    /// Allocates virtually contiguous memory as `request` says. The raw call beneath all forms; free it with
    /// [`vfree`](Self::vfree), or use [`area`](Self::area) for a handle that does.
    ///
    /// Contexts: task context; sleeps if `gfp` may block. With preemption off it may be called with flags that do not
    /// block, and may then fail. Never in interrupts. Cost: constant for the addresses, plus the frames.
    ///
    /// # Errors
    /// A [`VmallocError`]; nothing is left behind.
    #[doc(alias = "__vmalloc_node_range")]
    #[track_caller]
    #[inline(always)]
    pub fn alloc(&self, request: &VmRequest) -> Result<NonNull<u8>, VmallocError> {
        let gfp = self.supported(request.gfp);
        self.alloc_any(request, gfp, Location::caller())
    }

    /// Drops flags that a request cannot have, with a message once.
    #[inline]
    fn supported(&self, gfp: Gfp) -> Gfp {
        if SUPPORTED.contains(gfp) { gfp } else { self.drop_unsupported(gfp) }
    }

    #[cold]
    #[inline(never)]
    fn drop_unsupported(&self, gfp: Gfp) -> Gfp {
        if self.try_shared().is_some_and(|shared| shared.first_time(Once::Flags)) {
            self.report(format_args!("vmalloc: {} cannot be asked for and is dropped", gfp.difference(SUPPORTED)));
        }
        gfp.intersection(SUPPORTED)
    }

    /// [`alloc`](Self::alloc) with flags that have been looked at, which may name a zone. Inlined into each form, whose
    /// request is constant but for the size.
    #[inline(always)]
    pub(crate) fn alloc_any(
        &self,
        request: &VmRequest,
        gfp: Gfp,
        caller: &'static Location<'static>,
    ) -> Result<NonNull<u8>, VmallocError> {
        let shared = self.shared()?;
        self.check_context(gfp)?;
        let nr_pages = self.check_size(shared, request.size)?;
        if nr_pages == 1
            && request.align <= PAGE_SIZE
            && request.flags.is_empty()
            && request.range.is_none()
            && let Some(outcome) = self.alloc_pooled_page(shared, request, gfp, caller)
        {
            return outcome;
        }
        // Written out here and not before, so that the shortest way needs no request in memory.
        let request = VmRequest {
            size: request.size,
            align: request.align,
            gfp: request.gfp,
            node: request.node,
            flags: request.flags,
            prot: request.prot,
            range: request.range.clone(),
        };
        self.alloc_in_full(shared, &request, gfp, caller, nr_pages)
    }

    #[inline(never)]
    fn alloc_in_full(
        &self,
        shared: &Shared,
        request: &VmRequest,
        gfp: Gfp,
        caller: &'static Location<'static>,
        nr_pages: u64,
    ) -> Result<NonNull<u8>, VmallocError> {
        if !request.align.is_power_of_two() {
            return Err(VmallocError::BadAlign(request.align));
        }
        let allowed = VmFlags::USERMAP
            .union(VmFlags::NO_GUARD)
            .union(VmFlags::FLUSH_RESET_PERMS)
            .union(VmFlags::ALLOW_HUGE)
            .union(VmFlags::DMA_COHERENT);
        if !allowed.contains(request.flags) {
            return Err(VmallocError::BadFlags(request.flags.difference(allowed)));
        }
        if request.flags.contains(VmFlags::ALLOW_HUGE)
            && let Some(memory) = self.alloc_huge(shared, request, gfp, caller, nr_pages)
        {
            return Ok(memory);
        }
        let (lo, hi) = self.bounds(shared, request)?;
        let align = (request.align >> PAGE_SHIFT) as u64;
        self.alloc_with(shared, request, gfp, caller, nr_pages, align, Granule::BASE, (lo, hi)).inspect_err(|error| {
            if gfp.reports_failure() {
                self.report(format_args!("vmalloc: {} bytes, mode {gfp}: {error}", request.size));
            }
        })
    }

    /// The shortest way, for the commonest request: one page, in a range out of the CPU's pool. `None` if there is no such
    /// range or the mapping fails; nothing has changed then, but for a range that goes to the lazy list.
    #[inline(always)]
    fn alloc_pooled_page(
        &self,
        shared: &Shared,
        request: &VmRequest,
        gfp: Gfp,
        caller: &'static Location<'static>,
    ) -> Option<Result<NonNull<u8>, VmallocError>> {
        if !request.align.is_power_of_two() {
            return None;
        }
        let here = self.local_node();
        let node = shared.node(here);
        let mut area = node.pools.with(self.env.cpu(), Pools::pop_page)?;
        let zone = if gfp.intersects(Gfp::DMA.union(Gfp::DMA32)) { gfp } else { gfp | Gfp::HIGHMEM };
        let pfn = match self.env.pages().alloc_pages(zone, Order::ZERO, request.node) {
            Ok(pfn) => pfn,
            Err(source) => return Some(Err(self.repool(shared, area, source))),
        };
        let run = Run::page(pfn);
        area.body(|body| {
            body.runs.set_single(run);
            body.flags = VmFlags::ALLOC;
            body.prot = request.prot;
            body.granule = Granule::BASE;
            body.requested = request.size;
            body.mapped = 1;
            body.caller = caller;
        });
        area.set_node(here);
        let page = area.page();
        let address = shared.address(page);
        // SAFETY: a range of ours in which nothing is mapped.
        if unsafe { self.map_runs(address, &[run], request.prot, Granule::BASE, gfp) }.is_err() {
            self.undo_mapped(shared, area);
            return None;
        }
        node.count_used(1);
        node.count_pool_hit();
        area.publish_at(page);
        match NonNull::new(core::ptr::with_exposed_provenance_mut(address)) {
            Some(memory) => Some(Ok(memory)),
            None => Some(Err(no_pointer())),
        }
    }

    /// Gives a range that was not used back to the pool.
    #[cold]
    #[inline(never)]
    fn repool(&self, shared: &Shared, area: Owned, source: AllocError) -> VmallocError {
        let node = shared.node(area.node());
        if let Err(area) = node.pools.with(self.env.cpu(), |pools| pools.push(area)) {
            self.unreserve(shared, area);
        }
        VmallocError::NoMemory { nr_pages: 1, source }
    }

    /// One try with large entries only; `None` if that does not apply or did not work.
    #[cold]
    #[inline(never)]
    fn alloc_huge(
        &self,
        shared: &Shared,
        request: &VmRequest,
        gfp: Gfp,
        caller: &'static Location<'static>,
        nr_pages: u64,
    ) -> Option<NonNull<u8>> {
        let granule = self
            .env
            .space()
            .granules()
            .iter()
            .copied()
            .filter(|granule| *granule > Granule::BASE && granule.size_bytes() <= request.size)
            .filter(|granule| granule.order() <= Order::MAX.get())
            .max()?;
        let bounds = self.bounds(shared, request).ok()?;
        let align = granule.nr_pages().max((request.align >> PAGE_SHIFT) as u64);
        let nr_pages = nr_pages.checked_next_multiple_of(granule.nr_pages())?;
        let gfp = gfp.difference(Gfp::NOFAIL) | Gfp::NOWARN;
        self.alloc_with(shared, request, gfp, caller, nr_pages, align, granule, bounds).ok()
    }

    #[inline]
    #[expect(clippy::too_many_arguments, reason = "inlined twice: with large entries, and without")]
    fn alloc_with(
        &self,
        shared: &Shared,
        request: &VmRequest,
        gfp: Gfp,
        caller: &'static Location<'static>,
        nr_pages: u64,
        align: u64,
        granule: Granule,
        (lo, hi): (u64, u64),
    ) -> Result<NonNull<u8>, VmallocError> {
        let guard = u64::from(!request.flags.contains(VmFlags::NO_GUARD));
        let wanted = Wanted { pages: nr_pages + guard, align: align.max(1), lo, hi };
        let kind = Kind {
            flags: request.flags | VmFlags::ALLOC,
            prot: request.prot,
            granule,
            requested: request.size,
            mapped: nr_pages,
            phys: 0,
            caller,
        };
        let mut area = self.new_area(shared, wanted, kind, gfp)?;
        let gathered = area.body(|body| self.gather(&mut body.runs, nr_pages, gfp, request.node, granule));
        if let Err(short) = gathered {
            return Err(self.undo_unmapped(shared, area, nr_pages, short));
        }
        let address = shared.address(area.page());
        // SAFETY: a range of ours in which nothing is mapped.
        let mapped = area.body(|body| unsafe { self.map_body(address, body, gfp) });
        if let Err(source) = mapped {
            self.undo_mapped(shared, area);
            return Err(VmallocError::NotMapped { nr_pages, source });
        }
        shared.node(area.node()).count_used(nr_pages as i64);
        area.publish();
        self.pointer(address)
    }

    /// Reserves a range and fills its descriptor in; the area is invisible still.
    #[inline]
    pub(crate) fn new_area(
        &self,
        shared: &Shared,
        wanted: Wanted,
        kind: Kind,
        gfp: Gfp,
    ) -> Result<Owned, VmallocError> {
        let mut area = self.reserve(shared, wanted, gfp)?;
        area.set_node(self.local_node());
        kind.fill(&mut area);
        Ok(area)
    }

    #[cold]
    #[inline(never)]
    fn undo_unmapped(&self, shared: &Shared, mut area: Owned, nr_pages: u64, short: Short) -> VmallocError {
        // SAFETY: the frames are ours and were never mapped.
        let had = area.body(|body| {
            let had = body.runs.last().is_some();
            // SAFETY: the frames are ours and were never mapped.
            unsafe { self.free_frames(&mut body.runs) };
            had
        });
        self.unreserve(shared, area);
        match short {
            Short::Memory(source) => VmallocError::NoMemory { nr_pages, source },
            Short::Killed => VmallocError::Interrupted { nr_pages: u64::from(had) },
        }
    }

    /// Takes back an area whose mapping failed half-way. The range waits for a purge: translations may have been cached.
    #[cold]
    #[inline(never)]
    pub(crate) fn undo_mapped(&self, shared: &Shared, mut area: Owned) {
        let address = shared.address(area.page());
        area.body(|body| {
            // SAFETY: the range is ours and nobody has used it.
            unsafe { self.env.space().unmap(address, (body.mapped as usize) << PAGE_SHIFT) };
            // SAFETY: the frames are ours (or none) and unmapped.
            unsafe { self.free_frames(&mut body.runs) };
        });
        self.retire(shared, area);
    }

    /// Whether areas may be made here, with these flags.
    #[inline]
    pub(crate) fn check_context(&self, gfp: Gfp) -> Result<(), VmallocError> {
        let task = self.env.context().task_flags();
        if !task.in_task() || (gfp.allows_blocking() && !task.may_sleep()) {
            return Err(VmallocError::BadContext { gfp, task });
        }
        Ok(())
    }

    /// Pages for a size; refuses what cannot be.
    #[inline]
    pub(crate) fn check_size(&self, shared: &Shared, size: usize) -> Result<u64, VmallocError> {
        // In this form zero wraps to the largest number.
        let nr_pages = (size.wrapping_sub(1) >> PAGE_SHIFT) as u64 + 1;
        if nr_pages > self.env.total_pages().min(shared.nr_pages) {
            return Err(self.bad_size(shared, size));
        }
        Ok(nr_pages)
    }

    #[cold]
    #[inline(never)]
    fn bad_size(&self, shared: &Shared, size: usize) -> VmallocError {
        if size == 0 {
            if shared.first_time(Once::ZeroSize) {
                self.report(format_args!("vmalloc: an area of no bytes was asked for"));
            }
            return VmallocError::ZeroSize;
        }
        self.report(format_args!("vmalloc: {size} bytes are more than there is memory"));
        VmallocError::TooLarge { size_bytes: size }
    }

    /// The pages to choose from.
    #[inline]
    fn bounds(&self, shared: &Shared, request: &VmRequest) -> Result<(u64, u64), VmallocError> {
        match &request.range {
            None => Ok((0, shared.nr_pages)),
            Some(range) => self.bounds_of(shared, range),
        }
    }

    pub(crate) fn bounds_of(
        &self,
        shared: &Shared,
        range: &core::ops::Range<usize>,
    ) -> Result<(u64, u64), VmallocError> {
        let bad = VmallocError::BadRange { start: range.start, end: range.end };
        let window_end = shared.address(shared.nr_pages);
        if range.start < shared.base || range.end > window_end || range.start >= range.end {
            return Err(bad);
        }
        let lo = (range.start - shared.base).div_ceil(PAGE_SIZE) as u64;
        let hi = ((range.end - shared.base) >> PAGE_SHIFT) as u64;
        if lo < hi { Ok((lo, hi)) } else { Err(bad) }
    }

    /// The pointer to hand out for an address.
    #[inline]
    pub(crate) fn pointer(&self, address: usize) -> Result<NonNull<u8>, VmallocError> {
        NonNull::new(core::ptr::with_exposed_provenance_mut(address)).ok_or_else(no_pointer)
    }

    /// The area that an address belongs to, whatever its state.
    #[inline]
    pub(crate) fn area_at<'s>(&self, shared: &'s Shared, page: u64) -> Option<&'s Area> {
        // SAFETY: descriptors live as long as the window (invariant 3 of `Index`).
        shared.index.lookup(page).map(|area| unsafe { area.as_ref() })
    }

    /// The error that stands for a request whose size overflowed.
    pub(crate) fn overflow() -> VmallocError {
        VmallocError::TooLarge { size_bytes: usize::MAX }
    }

    /// The error for frames that are missing.
    pub(crate) fn no_memory(nr_pages: u64, source: AllocError) -> VmallocError {
        VmallocError::NoMemory { nr_pages, source }
    }
}

/// A window that begins at address zero has an area there that no pointer leads to.
#[cold]
#[inline(never)]
fn no_pointer() -> VmallocError {
    VmallocError::BadRange { start: 0, end: 0 }
}
