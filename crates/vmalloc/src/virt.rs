//! [`VirtAllocator`]: what a layer above needs of virtually contiguous memory, as a trait.

use core::ptr::NonNull;

use kmem_gfp::{Gfp, NodeId};

use crate::vmalloc::Vmalloc;
use crate::{VfreeError, VmFlags, VmRequest, VmallocEnv, VmallocError};

/// Hands out virtually contiguous memory. [`Vmalloc`] is one; a test, or a machine with another scheme, may bring its own.
///
/// # Safety
/// Memory handed out is the caller's alone until freed, page-aligned, and at least as large as asked for;
/// [`owns`](Self::owns) is true for every address in it and false for every address that this allocator never gives.
pub unsafe trait VirtAllocator {
    /// Whether an address is one of this allocator's. Any context; cheap.
    fn owns(&self, address: *const u8) -> bool;

    /// `size` bytes for `gfp`, preferably on `node`, in large entries if `allow_huge` says that that is welcome.
    /// Task context.
    ///
    /// # Errors
    /// A [`VmallocError`]; nothing has changed.
    fn alloc(
        &self,
        size: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
        allow_huge: bool,
    ) -> Result<NonNull<u8>, VmallocError>;

    /// Frees memory of this allocator. Any context but NMI.
    ///
    /// # Safety
    /// Nobody uses the memory any more.
    ///
    /// # Errors
    /// A [`VfreeError`] for an address that is not in use; nothing has changed.
    unsafe fn free(&self, memory: *mut u8) -> Result<(), VfreeError>;

    /// [`free`](Self::free) that never sleeps and puts all work off.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    ///
    /// # Errors
    /// As for [`free`](Self::free).
    unsafe fn free_atomic(&self, memory: *mut u8) -> Result<(), VfreeError>;

    /// Resizes memory of this allocator; see [`Vmalloc::vrealloc_node_align`].
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// As there.
    unsafe fn resize(
        &self,
        memory: *mut u8,
        size: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<Option<NonNull<u8>>, VmallocError>;

    /// Bytes asked for and bytes usable of memory of this allocator; `None` if nothing in use starts there. Any context.
    fn sizes(&self, memory: *const u8) -> Option<(usize, usize)>;
}

// SAFETY: areas do not overlap, start on pages, and lie inside the window, which is what `owns` tests.
unsafe impl<E: VmallocEnv> VirtAllocator for Vmalloc<E> {
    #[inline(always)]
    fn owns(&self, address: *const u8) -> bool {
        self.is_vmalloc_addr(address)
    }

    #[track_caller]
    fn alloc(
        &self,
        size: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
        allow_huge: bool,
    ) -> Result<NonNull<u8>, VmallocError> {
        let flags = if allow_huge { VmFlags::ALLOW_HUGE } else { VmFlags::empty() };
        Vmalloc::alloc(self, &VmRequest { align, node, flags, ..VmRequest::new(size, gfp) })
    }

    unsafe fn free(&self, memory: *mut u8) -> Result<(), VfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.vfree(memory) }
    }

    unsafe fn free_atomic(&self, memory: *mut u8) -> Result<(), VfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.vfree_atomic(memory) }
    }

    #[track_caller]
    unsafe fn resize(
        &self,
        memory: *mut u8,
        size: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<Option<NonNull<u8>>, VmallocError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.vrealloc_node_align(memory, size, align, gfp, node) }
    }

    fn sizes(&self, memory: *const u8) -> Option<(usize, usize)> {
        let info = self.find_vm_area(memory)?;
        if info.range.start != memory.addr() {
            return None;
        }
        Some((info.requested_size, bytes_mapped(&info)))
    }
}

fn bytes_mapped(info: &crate::AreaInfo) -> usize {
    crate::query::bytes(info.nr_pages)
}
