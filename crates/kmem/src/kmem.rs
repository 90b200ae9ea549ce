//! [`Kmem`]: one machine's allocators, and the familiar names in one place.
//!
//! Every method here is a line that calls the layer that does the work; that layer's documentation says more.

use core::fmt;
use core::ptr::NonNull;

use kmem_cma::{Cma, Dma};
use kmem_gfp::{AllocError, FrameTable, FreeError, Gfp, NodeId, Order, PageAllocator, Pages, Pfn};
use kmem_kmalloc::Kmalloc;
use kmem_kvmalloc::Kvmalloc;
use kmem_slab::Slabs;
use kmem_vmalloc::Vmalloc;

use crate::zsmalloc_names::ZsPools;
use crate::{CmaSide, DmaSide, EitherSide, ObjectSide, PageSource, Platform, VirtualSide};

/// The allocators of one machine. Made by [`KmemCell::init`](crate::KmemCell::init).
///
/// The names that C kernels know are methods: those for pages are here, those for [kmalloc](Self#kmalloc), for
/// [caches](Self#caches), for [vmalloc](Self#vmalloc), for [kvmalloc](Self#kvmalloc), for
/// [compressed objects](Self#compressed-objects) and for [contiguous areas and devices](Self#contiguous-areas-and-devices) further
/// down. The layers themselves
/// are [`pages`](Self::pages), [`slabs`](Self::slabs), [`kmalloc_layer`](Self::kmalloc_layer),
/// [`vmalloc_layer`](Self::vmalloc_layer) and [`kvmalloc_layer`](Self::kvmalloc_layer).
#[repr(C)]
pub struct Kmem<P: Platform> {
    pub(crate) kmalloc: Kmalloc<'static, ObjectSide<P>>,
    pub(crate) slabs: Slabs<ObjectSide<P>>,
    pub(crate) vmalloc: Vmalloc<VirtualSide<P>>,
    pub(crate) kvmalloc: Kvmalloc<EitherSide<P>>,
    pub(crate) pages: PageSource<P>,
    pub(crate) platform: P,
    pub(crate) zs_pools: ZsPools<P>,
    pub(crate) cma: Cma<CmaSide<P>>,
    pub(crate) dma: Dma<DmaSide<P>>,
}

impl<P: Platform> fmt::Debug for Kmem<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kmem").finish_non_exhaustive()
    }
}

/// # The layers
impl<P: Platform> Kmem<P> {
    /// What the machine supplies.
    #[inline(always)]
    pub fn platform(&self) -> &P {
        &self.platform
    }

    /// The page allocator.
    #[inline(always)]
    pub fn pages(&self) -> &PageSource<P> {
        &self.pages
    }

    /// The object caches.
    #[inline(always)]
    pub fn slabs(&'static self) -> &'static Slabs<ObjectSide<P>> {
        &self.slabs
    }

    /// kmalloc.
    #[inline(always)]
    pub fn kmalloc_layer(&'static self) -> &'static Kmalloc<'static, ObjectSide<P>> {
        &self.kmalloc
    }
}

/// # Pages
impl<P: Platform> Kmem<P> {
    /// Allocates `1 << order` contiguous frames from the zones that `gfp` allows.
    ///
    /// # Errors
    /// Those of [`PageAllocator::alloc_pages`].
    #[inline(always)]
    pub fn alloc_pages(&self, gfp: Gfp, order: Order) -> Result<Pfn, AllocError> {
        self.pages.alloc_pages(gfp, order, None)
    }

    /// As [`alloc_pages`](Self::alloc_pages), preferably on `node`.
    ///
    /// # Errors
    /// Those of [`PageAllocator::alloc_pages`].
    #[inline]
    pub fn alloc_pages_node(&self, node: NodeId, gfp: Gfp, order: Order) -> Result<Pfn, AllocError> {
        self.pages.alloc_pages(gfp, order, Some(node))
    }

    /// As [`alloc_pages`](Self::alloc_pages), from any context whatsoever.
    ///
    /// # Errors
    /// Those of [`PageAllocator::alloc_pages_nolock`].
    pub fn alloc_pages_nolock(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        PageAllocator::alloc_pages_nolock(&self.pages, gfp, order, node)
    }

    /// One frame.
    ///
    /// # Errors
    /// Those of [`PageAllocator::alloc_pages`].
    #[inline(always)]
    pub fn alloc_page(&self, gfp: Gfp) -> Result<Pfn, AllocError> {
        self.alloc_pages(gfp, Order::ZERO)
    }

    /// An owned block, given back on drop.
    ///
    /// # Errors
    /// Those of [`PageAllocator::alloc_pages`].
    #[inline]
    pub fn alloc_owned(&self, gfp: Gfp, order: Order) -> Result<Pages<&PageSource<P>>, AllocError> {
        Pages::new(&self.pages, gfp, order, None)
    }

    /// Takes back a block that one of the calls above gave, with the same order.
    ///
    /// # Safety
    /// The caller owns the block, and nobody uses its memory any more.
    ///
    /// # Errors
    /// A [`FreeError`]; nothing has changed.
    #[doc(alias("__free_pages", "put_page"))]
    #[inline(always)]
    pub unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.pages.free_pages(pfn, order) }
    }

    /// Takes back a single frame.
    ///
    /// # Safety
    /// As for [`free_pages`](Self::free_pages).
    ///
    /// # Errors
    /// A [`FreeError`]; nothing has changed.
    #[doc(alias = "__free_page")]
    #[inline(always)]
    pub unsafe fn free_page(&self, pfn: Pfn) -> Result<(), FreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.free_pages(pfn, Order::ZERO) }
    }

    /// As [`alloc_pages`](Self::alloc_pages), by address: never from memory that is not always mapped.
    ///
    /// # Errors
    /// Those of [`PageAllocator::alloc_pages`].
    #[doc(alias = "__get_free_pages")]
    pub fn get_free_pages(&self, gfp: Gfp, order: Order) -> Result<NonNull<u8>, AllocError> {
        let pfn = self.alloc_pages(gfp.addressable(), order)?;
        match self.page_address(pfn) {
            Some(address) => Ok(address),
            None => {
                // SAFETY: allocated above, and nobody has seen it.
                let _ = unsafe { self.free_pages(pfn, order) };
                Err(AllocError::NotReady)
            }
        }
    }

    /// One zeroed page, by address.
    ///
    /// # Errors
    /// Those of [`PageAllocator::alloc_pages`].
    pub fn get_zeroed_page(&self, gfp: Gfp) -> Result<NonNull<u8>, AllocError> {
        self.get_free_pages(gfp | Gfp::ZERO, Order::ZERO)
    }

    /// Takes back pages by address. Null does nothing.
    ///
    /// # Safety
    /// As for [`free_pages`](Self::free_pages).
    ///
    /// # Errors
    /// A [`FreeError`]; nothing has changed. An address that is no frame's counts as frame
    /// `u64::MAX`, [`FreeError::Foreign`].
    #[doc(alias = "free_pages")]
    pub unsafe fn free_pages_at(&self, address: *mut u8, order: Order) -> Result<(), FreeError> {
        if address.is_null() {
            return Ok(());
        }
        let pfn = self.virt_to_pfn(address).ok_or(FreeError::Foreign(Pfn(u64::MAX)))?;
        // SAFETY: the caller's promise is the same.
        unsafe { self.free_pages(pfn, order) }
    }

    /// Where a frame is mapped.
    #[doc(alias("page_to_virt", "pfn_to_kaddr"))]
    #[inline]
    pub fn page_address(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        self.platform.frames().address_of(pfn)
    }

    /// The frame that an address of the direct map lies in.
    #[doc(alias("virt_to_page", "virt_to_phys"))]
    #[inline]
    pub fn virt_to_pfn(&self, address: *const u8) -> Option<Pfn> {
        self.platform.frames().frame_of(address.addr())
    }
}
