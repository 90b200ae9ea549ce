//! Mapping what the caller has: given frames, device memory, ranges that are populated later. And changing protection.

use core::ops::Range;
use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, Gfp, PAGE_SHIFT, PAGE_SIZE, Pfn, TaskFlags};

use crate::address_space::AddressSpace;
use crate::alloc::Kind;
use crate::tree::Wanted;
use crate::vmalloc::{Once, Vmalloc};
use crate::{Granule, MapError, Prot, Run, VfreeError, VmFlags, VmallocEnv, VmallocError};

/// I/O areas are aligned to their size, up to this many pages.
const IO_ALIGN_PAGES: u64 = 128;

impl<E: VmallocEnv> Vmalloc<E> {
    /// Maps `frames`, one after the other, into one area. The frames stay the caller's, except with
    /// [`VmFlags::MAP_PUT_PAGES`], which hands them to the area once this has succeeded: [`vfree`](Self::vfree) then frees
    /// them. The mapping is never executable. Task context; sleeps.
    ///
    /// # Safety
    /// The frames are the caller's to map for as long as the mapping lives; with [`VmFlags::MAP_PUT_PAGES`] they came one
    /// by one, or as parts of blocks, from this environment's page source, and are given away.
    ///
    /// # Errors
    /// [`VmallocError::ZeroSize`] without frames, [`VmallocError::TooLarge`] with more than there is memory,
    /// [`VmallocError::BadFlags`] with [`VmFlags::FLUSH_RESET_PERMS`] or flags of other calls; else as for
    /// [`alloc`](Self::alloc). The frames are the caller's then.
    #[track_caller]
    pub unsafe fn vmap(&self, frames: &[Pfn], flags: VmFlags, prot: Prot) -> Result<NonNull<u8>, VmallocError> {
        let shared = self.shared()?;
        let gfp = Gfp::KERNEL;
        self.check_context(gfp)?;
        let allowed = VmFlags::MAP
            .union(VmFlags::MAP_PUT_PAGES)
            .union(VmFlags::USERMAP)
            .union(VmFlags::DMA_COHERENT)
            .union(VmFlags::NO_GUARD)
            .union(VmFlags::ALLOW_HUGE);
        if !allowed.contains(flags) {
            return Err(VmallocError::BadFlags(flags.difference(allowed)));
        }
        if flags.contains(VmFlags::NO_GUARD) && shared.first_time(Once::NoGuard) {
            self.report(format_args!("vmap: every mapping has a guard page; NO_GUARD is dropped"));
        }
        let size = frames.len().checked_mul(PAGE_SIZE).ok_or_else(Self::overflow)?;
        let nr_pages = self.check_size(shared, size)?;
        let granule = if flags.contains(VmFlags::ALLOW_HUGE) { self.largest_granule() } else { Granule::BASE };
        let kind = Kind {
            flags: flags.difference(VmFlags::NO_GUARD) | VmFlags::MAP,
            prot: prot.difference(Prot::EXECUTE),
            granule,
            requested: size,
            mapped: nr_pages,
            phys: 0,
            caller: Location::caller(),
        };
        let wanted = Wanted { pages: nr_pages + 1, align: 1, lo: 0, hi: shared.nr_pages };
        let mut area = self.new_area(shared, wanted, kind, gfp)?;
        let address = shared.address(area.page());
        let outcome = area.body(|body| {
            if flags.contains(VmFlags::MAP_PUT_PAGES) {
                for &pfn in frames {
                    let run = Run::new(pfn, 1).ok_or(VmallocError::TooLarge { size_bytes: size })?;
                    let pushed = body.runs.push(&self.env, gfp, run);
                    pushed.map_err(|source| Self::no_memory(nr_pages, source))?;
                }
            }
            // SAFETY: a range of ours in which nothing is mapped.
            let mapped = unsafe { self.map_frames(address, frames, body.prot, granule, gfp) };
            mapped.map_err(|source| VmallocError::NotMapped { nr_pages, source })
        });
        if let Err(error) = outcome {
            // The frames are not the area's after all.
            area.body(|body| body.runs.pop_all(&self.env, |_| ()));
            self.undo_mapped(shared, area);
            return Err(error);
        }
        area.publish();
        self.pointer(address)
    }

    /// Maps device memory: `size` bytes from the physical address `phys` on. The area is aligned to its size, up to 128
    /// pages, and uses the largest entries that fit. The result points to `phys`, page-aligned or not;
    /// [`iounmap`](Self::iounmap) ends it. Task context; sleeps.
    ///
    /// # Safety
    /// The physical range is a device's, and what `prot` permits does no harm there.
    ///
    /// # Errors
    /// As for [`alloc`](Self::alloc).
    #[track_caller]
    pub unsafe fn ioremap(&self, phys: u64, size: usize, prot: Prot) -> Result<NonNull<u8>, VmallocError> {
        let shared = self.shared()?;
        let gfp = Gfp::KERNEL;
        self.check_context(gfp)?;
        let offset = (phys % PAGE_SIZE as u64) as usize;
        if size == 0 {
            return Err(VmallocError::ZeroSize);
        }
        let bytes = size.checked_add(offset).ok_or_else(Self::overflow)?;
        let nr_pages = bytes.div_ceil(PAGE_SIZE) as u64;
        if nr_pages >= shared.nr_pages || nr_pages > Run::MAX_PAGES {
            return Err(VmallocError::TooLarge { size_bytes: size });
        }
        let granule = self.largest_granule();
        let align = nr_pages.next_power_of_two().min(IO_ALIGN_PAGES);
        let kind = Kind {
            flags: VmFlags::IOREMAP,
            prot: prot.difference(Prot::EXECUTE),
            granule,
            requested: size,
            mapped: nr_pages,
            phys,
            caller: Location::caller(),
        };
        let wanted = Wanted { pages: nr_pages + 1, align, lo: 0, hi: shared.nr_pages };
        let mut area = self.new_area(shared, wanted, kind, gfp)?;
        let address = shared.address(area.page());
        let run = Run::new(Pfn::containing(phys), nr_pages).ok_or(VmallocError::TooLarge { size_bytes: size })?;
        // SAFETY: a range of ours in which nothing is mapped.
        let mapped = area.body(|body| unsafe { self.map_runs(address, &[run], body.prot, granule, gfp) });
        if let Err(source) = mapped {
            self.undo_mapped(shared, area);
            return Err(VmallocError::NotMapped { nr_pages, source });
        }
        area.publish();
        self.pointer(address + offset)
    }

    /// Ends what [`ioremap`](Self::ioremap) made. Task context.
    ///
    /// # Safety
    /// Nobody uses the mapping any more.
    ///
    /// # Errors
    /// A [`VfreeError`]; nothing has changed.
    pub unsafe fn iounmap(&self, mapping: *mut u8) -> Result<(), VfreeError> {
        let shared = self.shared_to_free()?;
        self.task_or()?;
        let page_address = mapping.addr() & !(PAGE_SIZE - 1);
        let area = self.claim(shared, page_address, VmFlags::IOREMAP, VmFlags::empty())?;
        self.finish_free(shared, area);
        Ok(())
    }

    /// Reserves a range without mapping anything, to be populated with [`vm_area_map`](Self::vm_area_map). Ends with
    /// [`vunmap`](Self::vunmap). Task context; sleeps if `gfp` may block.
    ///
    /// # Errors
    /// As for [`alloc`](Self::alloc).
    #[track_caller]
    pub fn get_vm_area(
        &self,
        size: usize,
        align: usize,
        flags: VmFlags,
        range: Option<Range<usize>>,
        gfp: Gfp,
    ) -> Result<NonNull<u8>, VmallocError> {
        let shared = self.shared()?;
        self.check_context(gfp)?;
        if size == 0 {
            return Err(VmallocError::ZeroSize);
        }
        if !align.is_power_of_two() {
            return Err(VmallocError::BadAlign(align));
        }
        let allowed = VmFlags::IOREMAP
            .union(VmFlags::SPARSE)
            .union(VmFlags::USERMAP)
            .union(VmFlags::DMA_COHERENT)
            .union(VmFlags::NO_GUARD);
        if !allowed.contains(flags) {
            return Err(VmallocError::BadFlags(flags.difference(allowed)));
        }
        let (lo, hi) = match &range {
            Some(range) => self.bounds_of(shared, range)?,
            None => (0, shared.nr_pages),
        };
        let nr_pages = size.div_ceil(PAGE_SIZE) as u64;
        let io_align =
            if flags.contains(VmFlags::IOREMAP) { nr_pages.next_power_of_two().min(IO_ALIGN_PAGES) } else { 1 };
        let guard = u64::from(!flags.contains(VmFlags::NO_GUARD));
        let wanted = Wanted {
            pages: nr_pages.saturating_add(guard),
            align: ((align >> PAGE_SHIFT) as u64).max(io_align),
            lo,
            hi,
        };
        let kind = Kind {
            flags: flags | VmFlags::SPARSE,
            prot: Prot::KERNEL,
            granule: Granule::BASE,
            requested: size,
            mapped: 0,
            phys: 0,
            caller: Location::caller(),
        };
        let area = self.new_area(shared, wanted, kind, gfp)?;
        let address = shared.address(area.page());
        area.publish();
        self.pointer(address)
    }

    /// Maps frames into a part of a [reserved](Self::get_vm_area) range. Task context; sleeps.
    ///
    /// # Safety
    /// The range is the caller's, nothing is mapped in that part, and the frames are the caller's to map.
    ///
    /// # Errors
    /// [`VmallocError::BadRange`] if the part is not inside the area, its guard page excepted;
    /// [`VmallocError::NotMapped`], and then nothing of the part is mapped.
    #[doc(alias = "vm_area_map_pages")]
    pub unsafe fn vm_area_map(&self, at: *mut u8, frames: &[Pfn], prot: Prot) -> Result<(), VmallocError> {
        let shared = self.shared()?;
        self.check_context(Gfp::KERNEL)?;
        let nr_pages = frames.len() as u64;
        let address = self.sparse_part(at, nr_pages)?;
        // SAFETY: inside the caller's area, and unmapped by the caller's promise.
        let mapped =
            unsafe { self.map_frames(address, frames, prot.difference(Prot::EXECUTE), Granule::BASE, Gfp::KERNEL) };
        mapped.map_err(|source| {
            let size = (nr_pages as usize) << PAGE_SHIFT;
            // SAFETY: as above; nobody has used it.
            unsafe { self.env.space().unmap(address, size) };
            self.flush_now(shared, address, size);
            VmallocError::NotMapped { nr_pages, source }
        })
    }

    /// Unmaps a part of a [reserved](Self::get_vm_area) range and flushes it. Task context; sleeps.
    ///
    /// # Safety
    /// Nobody uses that part any more.
    ///
    /// # Errors
    /// [`VmallocError::BadRange`] if the part is not inside the area.
    #[doc(alias = "vm_area_unmap_pages")]
    pub unsafe fn vm_area_unmap(&self, at: *mut u8, nr_pages: u64) -> Result<(), VmallocError> {
        let shared = self.shared()?;
        let address = self.sparse_part(at, nr_pages)?;
        let size = (nr_pages as usize) << PAGE_SHIFT;
        // SAFETY: inside the caller's area, and unused by the caller's promise.
        unsafe { self.env.space().unmap(address, size) };
        self.flush_now(shared, address, size);
        Ok(())
    }

    /// The address of a part of a sparse area, checked against its bounds.
    fn sparse_part(&self, at: *mut u8, nr_pages: u64) -> Result<usize, VmallocError> {
        let shared = self.shared()?;
        let address = at.addr();
        let bad = VmallocError::BadRange {
            start: address,
            end: address.saturating_add((nr_pages as usize).saturating_mul(PAGE_SIZE)),
        };
        let page = shared.page_of(address).filter(|_| address.is_multiple_of(PAGE_SIZE)).ok_or(bad)?;
        let pinned = self.area_at(shared, page).and_then(|area| area.pin(page)).ok_or(bad)?;
        let (flags, requested) = pinned.with(|body| (body.flags, body.requested));
        let usable = requested.div_ceil(PAGE_SIZE) as u64;
        let fits = (page - pinned.page()).checked_add(nr_pages).is_some_and(|end| end <= usable);
        if nr_pages > 0 && fits && flags.contains(VmFlags::SPARSE) { Ok(address) } else { Err(bad) }
    }

    /// Changes what `nr_pages` pages of an area from `at` on permit, and flushes them (`set_memory_ro` and its
    /// relatives). Task context; sleeps.
    ///
    /// # Safety
    /// Nobody uses those pages in a way that `prot` forbids, and what it permits does no harm.
    ///
    /// # Errors
    /// [`VmallocError::BadRange`] if the pages are not all mapped pages of one area; [`VmallocError::NotMapped`].
    #[doc(alias("set_memory_ro", "set_memory_rw", "set_memory_x"))]
    pub unsafe fn protect(&self, at: *mut u8, nr_pages: u64, prot: Prot) -> Result<(), VmallocError> {
        let shared = self.shared()?;
        self.check_context(Gfp::KERNEL)?;
        let address = at.addr();
        let size = (nr_pages as usize).saturating_mul(PAGE_SIZE);
        let bad = VmallocError::BadRange { start: address, end: address.saturating_add(size) };
        let page = shared.page_of(address).filter(|_| address.is_multiple_of(PAGE_SIZE)).ok_or(bad)?;
        let pinned = self.area_at(shared, page).and_then(|area| area.pin(page)).ok_or(bad)?;
        let mapped = pinned.with(|body| body.mapped);
        if nr_pages == 0 || (page - pinned.page()).saturating_add(nr_pages) > mapped {
            return Err(bad);
        }
        let changed = self.with_tables(|tables| {
            // SAFETY: mapped pages of one area, which the pin keeps; the caller's promise.
            unsafe { self.env.space().protect(address, size, prot, tables) }
        });
        self.flush_now(shared, address, size);
        changed.map_err(|source: MapError| VmallocError::NotMapped { nr_pages, source })
    }

    /// Whether `len` bytes from `at` on may be mapped to user space: an area that allows it, whole pages, inside what was
    /// asked for. The mapping itself is the platform's; [`vmalloc_to_pfn`](Self::vmalloc_to_pfn) gives the frames.
    /// Any context.
    ///
    /// # Errors
    /// [`VmallocError::BadRange`] or [`VmallocError::BadFlags`].
    #[doc(alias = "remap_vmalloc_range")]
    pub fn check_user_range(&self, at: *const u8, len: usize) -> Result<(), VmallocError> {
        let shared = self.shared()?;
        let address = at.addr();
        let bad = VmallocError::BadRange { start: address, end: address.saturating_add(len) };
        let page = shared.page_of(address).filter(|_| (address | len).is_multiple_of(PAGE_SIZE)).ok_or(bad)?;
        let pinned = self.area_at(shared, page).and_then(|area| area.pin(page)).ok_or(bad)?;
        let (flags, requested) = pinned.with(|body| (body.flags, body.requested));
        if !flags.intersects(VmFlags::USERMAP.union(VmFlags::DMA_COHERENT)) {
            return Err(VmallocError::BadFlags(flags));
        }
        let usable = requested.div_ceil(PAGE_SIZE) as u64;
        let end = (page - pinned.page()).saturating_add((len >> PAGE_SHIFT) as u64);
        if len > 0 && end <= usable { Ok(()) } else { Err(bad) }
    }

    pub(crate) fn largest_granule(&self) -> Granule {
        self.env.space().granules().iter().copied().max().unwrap_or(Granule::BASE)
    }

    /// Whether the running context is a task.
    pub(crate) fn task_or(&self) -> Result<(), VfreeError> {
        let task: TaskFlags = self.env.context().task_flags();
        if task.in_task() { Ok(()) } else { Err(VfreeError::BadContext(task)) }
    }
}
