//! `vrealloc`: in place where it can be, by moving otherwise.

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{AllocContext, ExactPages, Gfp, NodeId, PAGE_SHIFT, PAGE_SIZE, PageAllocator};

use crate::address_space::AddressSpace;
use crate::area::Owned;
use crate::vmalloc::{Shared, Vmalloc};
use crate::{Granule, VfreeError, VmFlags, VmRequest, VmallocEnv, VmallocError};

/// What ends a try in place.
enum InPlace {
    Done,
    Move { requested: usize },
}

impl<E: VmallocEnv> Vmalloc<E> {
    /// Resizes memory that a `vmalloc` form gave. A null `memory` allocates; `size` 0 frees and returns `None`. Shrinking
    /// keeps the address and gives whole pages at the end back where that is possible; growing keeps it as long as the pages
    /// are there, and otherwise moves: allocates, copies what was asked for before, frees the old area.
    ///
    /// Bytes that are gained are cleared only in new pages, and only with [`Gfp::ZERO`]. Task context; sleeps if `gfp` may
    /// block.
    ///
    /// # Safety
    /// Nobody uses the memory during the call, nor by the old address after it; what lies behind the new size is lost.
    ///
    /// # Errors
    /// [`VmallocError::BadAddress`] for an address that is not the start of such memory, [`VmallocError::BadAlign`] if it
    /// is aligned to less than `align`; else as for [`alloc`](Self::alloc). The old memory is as it was.
    #[track_caller]
    pub unsafe fn vrealloc_node_align(
        &self,
        memory: *mut u8,
        size: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<Option<NonNull<u8>>, VmallocError> {
        let caller = Location::caller();
        let gfp = gfp.intersection(crate::alloc::SUPPORTED);
        let new_request = VmRequest { align, node, ..VmRequest::new(size, gfp) };
        if memory.is_null() {
            return self.alloc_any(&new_request, gfp, caller).map(Some);
        }
        if size == 0 {
            // SAFETY: the caller's promise.
            unsafe { self.vfree(memory) }?;
            return Ok(None);
        }
        let shared = self.shared()?;
        self.check_context(gfp)?;
        if !align.is_power_of_two() || !memory.addr().is_multiple_of(align) {
            return Err(VmallocError::BadAlign(align));
        }
        let not_ours = VmFlags::MAP.union(VmFlags::IOREMAP).union(VmFlags::RAM).union(VmFlags::PERCPU);
        let mut area = self.claim(shared, memory.addr(), VmFlags::ALLOC, not_ours)?;
        if shared.address(area.page()) != memory.addr() {
            area.publish();
            return Err(VfreeError::NoArea(memory.addr()).into());
        }
        let outcome = self.resize_in_place(shared, &mut area, size, gfp, node);
        let request = area.body(|body| VmRequest {
            flags: body.flags.intersection(VmFlags::USERMAP),
            prot: body.prot,
            ..new_request
        });
        area.publish();
        match outcome {
            InPlace::Done => Ok(NonNull::new(memory)),
            InPlace::Move { requested } => {
                let moved = self.alloc_any(&request, gfp, caller)?;
                // SAFETY: two areas, each of that many bytes at least; nobody uses them meanwhile.
                unsafe { self.env.space().copy(memory.addr(), moved.addr().get(), requested.min(size)) };
                // SAFETY: the caller's promise.
                unsafe { self.vfree(memory) }?;
                Ok(Some(moved))
            }
        }
    }

    /// [`vrealloc_node_align`](Self::vrealloc_node_align) with page alignment and no preference.
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// As there.
    #[track_caller]
    pub unsafe fn vrealloc(&self, memory: *mut u8, size: usize, gfp: Gfp) -> Result<Option<NonNull<u8>>, VmallocError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.vrealloc_node_align(memory, size, 1, gfp, None) }
    }

    fn resize_in_place(
        &self,
        shared: &Shared,
        area: &mut Owned,
        size: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> InPlace {
        let address = shared.address(area.page());
        let home = shared.node(area.node());
        area.body(|body| {
            let elsewhere = gfp.contains(Gfp::THISNODE)
                && node.is_some_and(|node| {
                    body.runs.last().is_some_and(|run| self.env.pages().node_of(run.first()) != node)
                });
            let present = (body.mapped as usize) << PAGE_SHIFT;
            if elsewhere || size > present {
                return InPlace::Move { requested: body.requested };
            }
            let task = self.env.context().task_flags();
            let effective = kmem_gfp::current_gfp_context(gfp, task);
            let keep = size.div_ceil(PAGE_SIZE) as u64;
            let pinned_down = VmFlags::FLUSH_RESET_PERMS.union(VmFlags::USERMAP);
            if keep < body.mapped
                && body.granule == Granule::BASE
                && !body.flags.intersects(pinned_down)
                && effective.contains(Gfp::IO.union(Gfp::FS))
            {
                let gone = body.mapped - keep;
                let from = address + ((keep as usize) << PAGE_SHIFT);
                let len = (gone as usize) << PAGE_SHIFT;
                // SAFETY: the area's own pages; the caller of `vrealloc` gives them up.
                unsafe { self.env.space().unmap(from, len) };
                self.flush_now(shared, from, len);
                // Never as single frames: what is cut off may be a part of a block.
                body.runs.pop_pages(&self.env, gone, |run| {
                    // SAFETY: the area's own frames, which no CPU reaches any more.
                    let freed = unsafe { self.env.pages().free_range(run.range()) };
                    self.check_freed(freed);
                });
                body.mapped = keep;
                home.count_used(-(gone as i64));
            }
            let cleared_to = body.requested.min((body.mapped as usize) << PAGE_SHIFT);
            if size < cleared_to && (gfp.contains(Gfp::ZERO) || self.env.clears_memory()) {
                // SAFETY: mapped bytes of the area that its owner gives up.
                unsafe { self.env.space().zero(address + size, cleared_to - size) };
            }
            body.requested = size;
            InPlace::Done
        })
    }
}
