//! Questions about addresses: which frame, which area, what is in it.

use core::ops::Range;
use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{PAGE_SHIFT, PAGE_SIZE, Pfn};

use crate::address_space::AddressSpace;
use crate::area::State;
use crate::vmalloc::{Shared, Vmalloc};
use crate::{VmFlags, VmallocEnv};

/// What is known about an area in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AreaInfo {
    /// Its addresses, guard page included.
    pub range: Range<usize>,
    /// Bytes asked for.
    pub requested_size: usize,
    /// Pages that are mapped.
    pub nr_pages: u64,
    /// What it is.
    pub flags: VmFlags,
    /// Who made it.
    pub caller: &'static Location<'static>,
}

impl AreaInfo {
    /// Bytes that may be used: the range without its guard page.
    pub fn usable_size(&self) -> usize {
        let guard = if self.has_guard() { PAGE_SIZE } else { 0 };
        (self.range.end - self.range.start).saturating_sub(guard)
    }

    fn has_guard(&self) -> bool {
        !self.flags.intersects(VmFlags::NO_GUARD.union(VmFlags::RAM).union(VmFlags::PERCPU))
    }
}

impl<E: VmallocEnv> Vmalloc<E> {
    /// The frame behind any mapped address of the window; `None` where nothing is mapped. Any context.
    #[doc(alias = "vmalloc_to_page")]
    pub fn vmalloc_to_pfn(&self, address: *const u8) -> Option<Pfn> {
        self.try_shared()?.page_of(address.addr())?;
        self.env.space().translate(address.addr())
    }

    /// The area in use that an address belongs to, its guard page included. Any context; no lock.
    pub fn find_vm_area(&self, address: *const u8) -> Option<AreaInfo> {
        let shared = self.try_shared()?;
        let page = shared.page_of(address.addr())?;
        let pinned = self.area_at(shared, page)?.pin(page)?;
        let range = shared.address(pinned.page())..shared.address(pinned.page() + pinned.pages());
        Some(pinned.with(|body| AreaInfo {
            range,
            requested_size: body.requested,
            nr_pages: body.mapped,
            flags: body.flags,
            caller: body.caller,
        }))
    }

    /// Copies memory from the window, across areas: holes, device memory, sparse areas and guard pages read as zeroes. An area
    /// cannot be freed while it is being read, and one that is under construction is passed over. Returns how many bytes of
    /// `into` were filled: all those inside the window. Any context but NMI; holds an area up for one page at a time.
    #[doc(alias = "vread_iter")]
    pub fn vread(&self, from: *const u8, into: &mut [u8]) -> usize {
        let Some(shared) = self.try_shared() else { return 0 };
        let start = from.addr();
        let mut done = 0;
        while done < into.len() {
            let Some(address) = start.checked_add(done) else { break };
            let Some(page) = shared.page_of(address) else { break };
            let len = (PAGE_SIZE - address % PAGE_SIZE).min(into.len() - done);
            let Some(piece) = into.get_mut(done..done + len) else { break };
            if !self.read_page(shared, page, address, piece) {
                piece.fill(0);
            }
            done += len;
        }
        done
    }

    /// Copies inside one page; `false` if it holds nothing to be read.
    fn read_page(&self, shared: &Shared, page: u64, address: usize, into: &mut [u8]) -> bool {
        let Some(area) = self.area_at(shared, page) else { return false };
        let Some(pinned) = area.pin(page) else { return false };
        let (flags, mapped) = pinned.with(|body| (body.flags, body.mapped));
        let len = into.len();
        let to = NonNull::from(into).cast::<u8>();
        let copy = || {
            // SAFETY: mapped, which the pin keeps (a block: its lock); `into` has room for `len`.
            unsafe { self.env.space().read(address, to, len) }
        };
        if flags.contains(VmFlags::RAM_BLOCK) {
            return self.read_block(shared, &pinned, area.node_number(), page, copy);
        }
        if flags.intersects(VmFlags::IOREMAP.union(VmFlags::SPARSE).union(VmFlags::PERCPU))
            || page - pinned.page() >= mapped
        {
            return false;
        }
        copy();
        true
    }

    /// The areas in use, lowest first, each seen under a pin.
    pub(crate) fn for_areas(&self, shared: &Shared, mut f: impl FnMut(&crate::area::Pinned<'_>)) {
        let mut page = 0;
        while let Some((at, area)) = shared.index.next(page, shared.nr_pages) {
            // SAFETY: descriptors live as long as the window (invariant 3 of `Index`).
            let area = unsafe { area.as_ref() };
            page = at + 1;
            if let Some(pinned) = area.pin(at) {
                if pinned.page() == at {
                    f(&pinned);
                }
                page = page.max(pinned.page() + pinned.pages());
            }
        }
    }

    /// The areas that wait for a purge, lowest first, as pages.
    pub(crate) fn for_lazy(&self, shared: &Shared, mut f: impl FnMut(Range<u64>)) {
        let mut page = 0;
        while let Some((at, area)) = shared.index.next(page, shared.nr_pages) {
            // SAFETY: descriptors live as long as the window (invariant 3 of `Index`).
            let area = unsafe { area.as_ref() };
            let pages = area.pages().max(1);
            page = at + 1;
            let (state, start) = area.peek();
            if start == at {
                if state == State::Lazy {
                    f(at..at + pages);
                }
                page = at + pages;
            }
        }
    }

    /// How many areas are in use: visits each of them. Any context but NMI.
    pub fn live_areas(&self) -> u64 {
        let Some(shared) = self.try_shared() else { return 0 };
        let mut areas = 0;
        self.for_areas(shared, |pinned| {
            // Blocks without mappings are ours, not somebody's.
            areas += u64::from(!pinned.with(|body| body.flags.contains(VmFlags::RAM_BLOCK)));
        });
        areas
    }

    /// The number of the window's page that an address lies in, for messages.
    pub fn page_index(&self, address: *const u8) -> Option<u64> {
        self.try_shared()?.page_of(address.addr())
    }
}

/// Bytes in so many pages.
pub(crate) const fn bytes(pages: u64) -> usize {
    (pages as usize) << PAGE_SHIFT
}
