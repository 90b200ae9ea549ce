//! [`GfpAlloc`]: kmalloc as an allocator handle that carries its flags, for `Box`, `Vec` and maps.
//!
//! The crate `allocator-api2` is what collections speak on stable Rust; its versions 0.2 and 0.4 are different traits
//! to the compiler. Each is implemented behind a feature of its own, over the same four calls.

use core::fmt;

use kmem_gfp::Gfp;

use crate::{Kmem, Platform};

/// Allocates from a machine's kmalloc with fixed flags. `Copy`: a pointer and a word.
///
/// ```
/// use kmem::{Gfp, GfpAlloc, Kmem, Platform};
///
/// // let mut v = Vec::new_in(kmem.gfp_alloc(Gfp::KERNEL));
/// // v.try_reserve(1000)?;
/// fn for_interrupts<P: Platform>(kmem: &'static Kmem<P>) -> GfpAlloc<P> {
///     kmem.gfp_alloc(Gfp::ATOMIC)
/// }
/// ```
pub struct GfpAlloc<P: Platform> {
    kmem: &'static Kmem<P>,
    gfp: Gfp,
}

impl<P: Platform> Clone for GfpAlloc<P> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<P: Platform> Copy for GfpAlloc<P> {}

impl<P: Platform> fmt::Debug for GfpAlloc<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GfpAlloc").field(&self.gfp).finish()
    }
}

impl<P: Platform> GfpAlloc<P> {
    /// The flags it asks with.
    pub fn gfp(&self) -> Gfp {
        self.gfp
    }

    /// The machine it asks.
    pub fn kmem(&self) -> &'static Kmem<P> {
        self.kmem
    }

    /// The same machine with other flags. Memory may be grown and given back through either.
    #[must_use]
    pub fn with_gfp(self, gfp: Gfp) -> Self {
        Self { gfp, ..self }
    }
}

impl<P: Platform> Kmem<P> {
    /// A handle for collections that allocates with `gfp`.
    pub fn gfp_alloc(&'static self, gfp: Gfp) -> GfpAlloc<P> {
        GfpAlloc { kmem: self, gfp }
    }
}

#[cfg(any(feature = "allocator-api2-02", feature = "allocator-api2-04"))]
macro_rules! implement_allocator {
    ($version:ident) => {
        // SAFETY: blocks are kmalloc's and stay valid until freed, whichever copy of the handle frees them; copies are
        // interchangeable because kfree finds a block's cache by its address.
        unsafe impl<P: Platform> $version::alloc::Allocator for GfpAlloc<P> {
            #[inline]
            fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                let block = self.kmem.kmalloc.alloc_layout(layout, self.gfp);
                let block = block.map_err(|_| $version::alloc::AllocError)?;
                Ok(NonNull::slice_from_raw_parts(block, layout.size()))
            }

            #[inline]
            fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                self.with_gfp(self.gfp | Gfp::ZERO).allocate(layout)
            }

            #[inline]
            unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
                // SAFETY: by the caller's promise the block was given for this layout and nobody uses it any more.
                let freed = unsafe { self.kmem.kmalloc.free_layout(block, layout) };
                debug_assert!(freed.is_ok(), "{freed:?}");
            }

            #[inline]
            unsafe fn grow(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                // SAFETY: the caller's promise.
                unsafe { resize(self, block, old, new, self.gfp) }.ok_or($version::alloc::AllocError)
            }

            #[inline]
            unsafe fn grow_zeroed(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                // SAFETY: the caller's promise.
                unsafe { resize(self, block, old, new, self.gfp | Gfp::ZERO) }.ok_or($version::alloc::AllocError)
            }

            #[inline]
            unsafe fn shrink(
                &self,
                block: NonNull<u8>,
                old: Layout,
                new: Layout,
            ) -> Result<NonNull<[u8]>, $version::alloc::AllocError> {
                // SAFETY: the caller's promise.
                unsafe { resize(self, block, old, new, self.gfp) }.ok_or($version::alloc::AllocError)
            }
        }
    };
}

#[cfg(any(feature = "allocator-api2-02", feature = "allocator-api2-04"))]
mod collections {
    //! The bridge itself.

    use core::alloc::Layout;
    use core::ptr::NonNull;

    use kmem_gfp::Gfp;

    use super::GfpAlloc;
    use crate::Platform;

    /// Another layout for a block; `None` (and nothing changed) without memory.
    ///
    /// # Safety
    /// The caller owns the block, which was given for `old`.
    #[inline]
    unsafe fn resize<P: Platform>(
        alloc: &GfpAlloc<P>,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
        gfp: Gfp,
    ) -> Option<NonNull<[u8]>> {
        let kmalloc = &alloc.kmem.kmalloc;
        let moved = if old.align() == new.align() {
            // SAFETY: the caller's promise; `new` is a layout, so its size rounded up fits `isize`.
            unsafe { kmalloc.realloc_layout(block, old, new.size(), gfp) }.ok()?
        } else {
            let moved = kmalloc.alloc_layout(new, gfp).ok()?;
            // SAFETY: both blocks are in use and have that many bytes; blocks in use do not overlap.
            unsafe { moved.copy_from_nonoverlapping(block, old.size().min(new.size())) };
            // SAFETY: the caller's promise; the contents have moved.
            let freed = unsafe { kmalloc.free_layout(block, old) };
            debug_assert!(freed.is_ok(), "{freed:?}");
            moved
        };
        Some(NonNull::slice_from_raw_parts(moved, new.size()))
    }

    #[cfg(feature = "allocator-api2-02")]
    implement_allocator!(allocator_api2_02);
    #[cfg(feature = "allocator-api2-04")]
    implement_allocator!(allocator_api2_04);
}
