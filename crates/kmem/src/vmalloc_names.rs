//! The names of vmalloc on [`Kmem`].

use core::ptr::NonNull;

use kmem_gfp::{Gfp, NodeId, Pfn};
use kmem_vmalloc::{
    AreaInfo, PoolShrinker, Prot, VfreeError, VmArea, VmFlags, VmRequest, Vmalloc, VmallocError, VmallocInfo,
    VmallocStats,
};

use crate::{Kmem, Platform, VirtualSide};

macro_rules! forward {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;
    )*) => {
        $(
            $(#[$meta])*
            ///
            /// # Errors
            /// Those of [`Vmalloc::alloc`]; [`VmallocError::NotReady`] on a machine without a window.
            #[inline]
            #[track_caller]
            pub fn $name(&self, $($arg: $ty),*) -> $ret {
                self.vmalloc.$name($($arg),*)
            }
        )*
    };
}

macro_rules! forward_unsafe {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty;
    )*) => {
        $(
            $(#[$meta])*
            #[inline]
            #[track_caller]
            pub unsafe fn $name(&self, $($arg: $ty),*) -> $ret {
                // SAFETY: the caller's promise is the same.
                unsafe { self.vmalloc.$name($($arg),*) }
            }
        )*
    };
}

/// # vmalloc
impl<P: Platform> Kmem<P> {
    forward! {
        /// `size` bytes, contiguous in addresses only. Sleeps.
        fn vmalloc(size: usize) -> Result<NonNull<u8>, VmallocError>;
        /// As [`vmalloc`](Self::vmalloc), zeroed.
        fn vzalloc(size: usize) -> Result<NonNull<u8>, VmallocError>;
        /// As [`vmalloc`](Self::vmalloc), with flags of the caller's.
        #[doc(alias = "__vmalloc")]
        fn vmalloc_gfp(size: usize, gfp: Gfp) -> Result<NonNull<u8>, VmallocError>;
        /// As [`vmalloc`](Self::vmalloc), preferably on `node`.
        fn vmalloc_node(size: usize, node: NodeId) -> Result<NonNull<u8>, VmallocError>;
        /// As [`vzalloc`](Self::vzalloc), preferably on `node`.
        fn vzalloc_node(size: usize, node: NodeId) -> Result<NonNull<u8>, VmallocError>;
        /// As [`vmalloc`](Self::vmalloc), in frames below 4 GiB.
        fn vmalloc_32(size: usize) -> Result<NonNull<u8>, VmallocError>;
        /// Zeroed memory that user space may map as well.
        fn vmalloc_user(size: usize) -> Result<NonNull<u8>, VmallocError>;
        /// As [`vmalloc_user`](Self::vmalloc_user), in frames below 4 GiB.
        fn vmalloc_32_user(size: usize) -> Result<NonNull<u8>, VmallocError>;
        /// As [`vmalloc`](Self::vmalloc), mapped with large entries where that is possible.
        fn vmalloc_huge(size: usize, gfp: Gfp) -> Result<NonNull<u8>, VmallocError>;
        /// Room for `nr` elements of `size` bytes; an overflowing product fails.
        fn vmalloc_array(nr: usize, size: usize, gfp: Gfp) -> Result<NonNull<u8>, VmallocError>;
        /// Zeroed room for `nr` elements of `size` bytes; an overflowing product fails. Sleeps.
        fn vcalloc(nr: usize, size: usize) -> Result<NonNull<u8>, VmallocError>;
    }

    forward_unsafe! {
        /// Another size for an area, keeping its contents; zero bytes free it and give `None`.
        ///
        /// # Safety
        /// As for [`Vmalloc::vrealloc`].
        ///
        /// # Errors
        /// Those of [`Vmalloc::vrealloc`]; the old area is as it was.
        fn vrealloc(memory: *mut u8, size: usize, gfp: Gfp) -> Result<Option<NonNull<u8>>, VmallocError>;
        /// Frees what a vmalloc form gave, or unmaps what [`vmap`](Self::vmap) gave; null does nothing. Any context but NMI.
        ///
        /// # Safety
        /// As for [`Vmalloc::vfree`].
        ///
        /// # Errors
        /// A [`VfreeError`] that says what the address is instead; nothing has changed.
        fn vfree(memory: *mut u8) -> Result<(), VfreeError>;
        /// As [`vfree`](Self::vfree); never sleeps.
        ///
        /// # Safety
        /// As for [`Vmalloc::vfree`].
        ///
        /// # Errors
        /// As for [`vfree`](Self::vfree).
        fn vfree_atomic(memory: *mut u8) -> Result<(), VfreeError>;
        /// Maps frames of the caller's, one after the other.
        ///
        /// # Safety
        /// As for [`Vmalloc::vmap`].
        ///
        /// # Errors
        /// Those of [`Vmalloc::vmap`].
        fn vmap(frames: &[Pfn], flags: VmFlags, prot: Prot) -> Result<NonNull<u8>, VmallocError>;
        /// Unmaps what [`vmap`](Self::vmap) mapped; the frames stay the caller's.
        ///
        /// # Safety
        /// As for [`Vmalloc::vunmap`].
        ///
        /// # Errors
        /// A [`VfreeError`]; nothing has changed.
        fn vunmap(mapping: *mut u8) -> Result<(), VfreeError>;
        /// Maps frames of the caller's for a short while.
        ///
        /// # Safety
        /// As for [`Vmalloc::vm_map_ram`].
        ///
        /// # Errors
        /// Those of [`Vmalloc::vm_map_ram`].
        fn vm_map_ram(frames: &[Pfn], node: Option<NodeId>) -> Result<NonNull<u8>, VmallocError>;
        /// Ends what [`vm_map_ram`](Self::vm_map_ram) made, with the same number of pages.
        ///
        /// # Safety
        /// As for [`Vmalloc::vm_unmap_ram`].
        ///
        /// # Errors
        /// A [`VfreeError`]; nothing has changed.
        fn vm_unmap_ram(mapping: *mut u8, nr_pages: usize) -> Result<(), VfreeError>;
        /// Maps device memory.
        ///
        /// # Safety
        /// As for [`Vmalloc::ioremap`].
        ///
        /// # Errors
        /// Those of [`Vmalloc::ioremap`].
        fn ioremap(phys: u64, size: usize, prot: Prot) -> Result<NonNull<u8>, VmallocError>;
        /// Ends what [`ioremap`](Self::ioremap) made.
        ///
        /// # Safety
        /// As for [`Vmalloc::iounmap`].
        ///
        /// # Errors
        /// A [`VfreeError`]; nothing has changed.
        fn iounmap(mapping: *mut u8) -> Result<(), VfreeError>;
    }

    /// An owned area, freed on drop.
    ///
    /// # Errors
    /// Those of [`Vmalloc::alloc`].
    #[track_caller]
    pub fn vm_area(&self, request: &VmRequest) -> Result<VmArea<'_, VirtualSide<P>>, VmallocError> {
        self.vmalloc.area(request)
    }

    /// Whether an address lies in vmalloc's window. Any context.
    #[inline(always)]
    pub fn is_vmalloc_addr(&self, address: *const u8) -> bool {
        self.vmalloc.is_vmalloc_addr(address)
    }

    /// The frame behind a mapped address of the window. Any context.
    #[doc(alias = "vmalloc_to_page")]
    pub fn vmalloc_to_pfn(&self, address: *const u8) -> Option<Pfn> {
        self.vmalloc.vmalloc_to_pfn(address)
    }

    /// The area in use that an address belongs to. Any context.
    pub fn find_vm_area(&self, address: *const u8) -> Option<AreaInfo> {
        self.vmalloc.find_vm_area(address)
    }

    /// Makes sure that no CPU reaches freed memory through any address of the window, and finishes frees that were put off.
    /// Task context; may sleep.
    pub fn vm_unmap_aliases(&self) {
        self.vmalloc.vm_unmap_aliases();
    }

    /// Ranges of addresses that can be taken back from vmalloc's pools: what the machine's shrinkers call.
    pub fn vmalloc_shrinker(&self) -> &dyn PoolShrinker {
        &self.vmalloc
    }

    /// vmalloc's counters.
    pub fn vmalloc_stats(&self) -> VmallocStats {
        self.vmalloc.stats()
    }

    /// `/proc/vmallocinfo`: every area.
    #[doc(alias = "/proc/vmallocinfo")]
    pub fn vmallocinfo(&self) -> VmallocInfo<'_, VirtualSide<P>> {
        self.vmalloc.vmallocinfo()
    }

    /// vmalloc.
    #[inline(always)]
    pub fn vmalloc_layer(&self) -> &Vmalloc<VirtualSide<P>> {
        &self.vmalloc
    }
}
