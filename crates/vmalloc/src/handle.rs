//! [`VmArea`]: memory that frees itself.

use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use kmem_gfp::Gfp;

use crate::vmalloc::Vmalloc;
use crate::{VfreeError, VmRequest, VmallocEnv, VmallocError};

/// An owned area; freed on drop.
///
/// It cannot outlive the window that it lies in:
///
/// ```compile_fail
/// use kmem_vmalloc::{Vmalloc, VmArea, VmRequest, VmallocEnv};
///
/// fn leak<E: VmallocEnv>(vmalloc: Vmalloc<E>) -> VmArea<'static, E> {
///     vmalloc.area(&VmRequest::new(4096, kmem_gfp::Gfp::KERNEL)).unwrap()
/// }
/// ```
///
/// # Invariants
/// `memory` is the start of an area in use of `vmalloc` that holds `size` bytes and that nobody else frees.
#[derive(Debug)]
#[must_use = "dropping a `VmArea` frees it"]
pub struct VmArea<'v, E: VmallocEnv> {
    vmalloc: &'v Vmalloc<E>,
    memory: NonNull<u8>,
    size: usize,
}

// SAFETY: owns its memory; freeing is a shared call of `Vmalloc`, which is `Sync` under this bound.
unsafe impl<E: VmallocEnv + Sync> Send for VmArea<'_, E> {}
// SAFETY: shared access is to the address and the size only.
unsafe impl<E: VmallocEnv + Sync> Sync for VmArea<'_, E> {}

impl<E: VmallocEnv> Vmalloc<E> {
    /// Allocates memory as [`alloc`](Self::alloc) does, with a handle that frees it.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    #[track_caller]
    pub fn area(&self, request: &VmRequest) -> Result<VmArea<'_, E>, VmallocError> {
        let memory = self.alloc(request)?;
        // INVARIANT: just made for us.
        Ok(VmArea { vmalloc: self, memory, size: request.size })
    }
}

impl<'v, E: VmallocEnv> VmArea<'v, E> {
    /// Where it starts; page-aligned. Whether the memory can be accessed through the pointer is up to the
    /// [`AddressSpace`](crate::AddressSpace): it can in a kernel and on the hosted machine.
    pub fn as_ptr(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Bytes asked for.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Resizes it; the address may change. See [`Vmalloc::vrealloc`]. `size` is not zero.
    ///
    /// # Errors
    /// Those of [`Vmalloc::vrealloc`], and [`VmallocError::ZeroSize`]; the area is as it was.
    #[track_caller]
    pub fn resize(&mut self, size: usize, gfp: Gfp) -> Result<(), VmallocError> {
        if size == 0 {
            return Err(VmallocError::ZeroSize);
        }
        // SAFETY: ours alone (type invariant), borrowed alone, and the old pointer is replaced.
        if let Some(memory) = unsafe { self.vmalloc.vrealloc(self.memory.as_ptr(), size, gfp) }? {
            // INVARIANT: what `vrealloc` gives replaces the old area.
            (self.memory, self.size) = (memory, size);
        }
        Ok(())
    }

    /// Gives up ownership: the caller frees it with [`Vmalloc::vfree`], or never.
    pub fn into_raw(self) -> NonNull<u8> {
        ManuallyDrop::new(self).memory
    }

    /// Takes ownership of memory that a `vmalloc` form gave.
    ///
    /// # Safety
    /// `memory` is what `vmalloc` gave, nobody else frees it, and it is accessed only under this handle from here on.
    ///
    /// # Errors
    /// [`VfreeError::NoArea`] if no area in use starts there.
    pub unsafe fn from_raw(vmalloc: &'v Vmalloc<E>, memory: NonNull<u8>) -> Result<Self, VfreeError> {
        match vmalloc.find_vm_area(memory.as_ptr()) {
            Some(info) if info.range.start == memory.addr().get() => {
                // INVARIANT: an area in use, the caller's by his promise.
                Ok(Self { vmalloc, memory, size: info.requested_size })
            }
            _ => Err(VfreeError::NoArea(memory.addr().get())),
        }
    }
}

impl<E: VmallocEnv> Drop for VmArea<'_, E> {
    fn drop(&mut self) {
        // SAFETY: ours alone (type invariant), and gone after this.
        let freed = unsafe { self.vmalloc.vfree(self.memory.as_ptr()) };
        debug_assert!(freed.is_ok(), "{freed:?}");
    }
}
