//! The familiar names: each is one line over [`Vmalloc::alloc`].

use core::panic::Location;
use core::ptr::NonNull;

use kmem_gfp::{Gfp, NodeId};

use crate::vmalloc::Vmalloc;
use crate::{Prot, VmFlags, VmRequest, VmallocEnv, VmallocError};

macro_rules! forms {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),*) => $request:expr;)*) => {$(
        $(#[$meta])*
        ///
        /// Task context. See [`alloc`](Self::alloc).
        ///
        /// # Errors
        /// Those of [`alloc`](Self::alloc).
        #[track_caller]
        pub fn $name(&self, $($arg: $type),*) -> Result<NonNull<u8>, VmallocError> {
            self.alloc(&$request)
        }
    )*};
}

impl<E: VmallocEnv> Vmalloc<E> {
    forms! {
        /// `size` bytes; sleeps.
        fn vmalloc(size: usize) => VmRequest::new(size, Gfp::KERNEL);
        /// `size` zeroed bytes; sleeps.
        fn vzalloc(size: usize) => VmRequest::new(size, Gfp::KERNEL | Gfp::ZERO);
        /// `size` bytes with flags of the caller's.
        #[doc(alias = "__vmalloc")]
        fn vmalloc_gfp(size: usize, gfp: Gfp) => VmRequest::new(size, gfp);
        /// `size` bytes, preferably on a node; sleeps.
        fn vmalloc_node(size: usize, node: NodeId) => VmRequest { node: Some(node), ..VmRequest::new(size, Gfp::KERNEL) };
        /// `size` zeroed bytes, preferably on a node; sleeps.
        fn vzalloc_node(size: usize, node: NodeId) =>
            VmRequest { node: Some(node), ..VmRequest::new(size, Gfp::KERNEL | Gfp::ZERO) };
        /// `size` bytes, mapped with large entries if that is possible.
        fn vmalloc_huge(size: usize, gfp: Gfp) =>
            VmRequest { flags: VmFlags::ALLOW_HUGE, ..VmRequest::new(size, gfp) };
    }

    /// `size` zeroed bytes that may be mapped to user space: aligned as such memory has to be. Task context; sleeps.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    #[track_caller]
    pub fn vmalloc_user(&self, size: usize) -> Result<NonNull<u8>, VmallocError> {
        self.alloc(&VmRequest {
            align: self.env.shared_alignment(),
            flags: VmFlags::USERMAP,
            ..VmRequest::new(size, Gfp::KERNEL | Gfp::ZERO)
        })
    }

    /// `size` bytes in frames below 4 GiB. Task context; sleeps.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    #[track_caller]
    pub fn vmalloc_32(&self, size: usize) -> Result<NonNull<u8>, VmallocError> {
        let gfp = Gfp::KERNEL | Gfp::DMA32;
        self.alloc_any(&VmRequest::new(size, gfp), gfp, Location::caller())
    }

    /// [`vmalloc_user`](Self::vmalloc_user) in frames below 4 GiB. Task context; sleeps.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    #[track_caller]
    pub fn vmalloc_32_user(&self, size: usize) -> Result<NonNull<u8>, VmallocError> {
        let gfp = Gfp::KERNEL | Gfp::DMA32 | Gfp::ZERO;
        let request =
            VmRequest { align: self.env.shared_alignment(), flags: VmFlags::USERMAP, ..VmRequest::new(size, gfp) };
        self.alloc_any(&request, gfp, Location::caller())
    }

    /// Room for `nr` elements of `size` bytes. Task context.
    ///
    /// # Errors
    /// [`VmallocError::TooLarge`] if the product overflows; those of [`alloc`](Self::alloc).
    #[doc(alias = "__vmalloc_array")]
    #[track_caller]
    pub fn vmalloc_array(&self, nr: usize, size: usize, gfp: Gfp) -> Result<NonNull<u8>, VmallocError> {
        let bytes = nr.checked_mul(size).ok_or_else(Self::overflow)?;
        self.alloc(&VmRequest::new(bytes, gfp))
    }

    /// Zeroed room for `nr` elements of `size` bytes. Task context; sleeps.
    ///
    /// # Errors
    /// As for [`vmalloc_array`](Self::vmalloc_array).
    #[doc(alias = "__vcalloc")]
    #[track_caller]
    pub fn vcalloc(&self, nr: usize, size: usize) -> Result<NonNull<u8>, VmallocError> {
        self.vmalloc_array(nr, size, Gfp::KERNEL | Gfp::ZERO)
    }

    /// Executable memory inside a range of addresses, for code that is loaded: resets the frames' permissions when freed.
    /// Task context; sleeps.
    ///
    /// # Errors
    /// Those of [`alloc`](Self::alloc).
    #[doc(alias = "module_alloc")]
    #[track_caller]
    pub fn vmalloc_exec(
        &self,
        size: usize,
        range: Option<core::ops::Range<usize>>,
    ) -> Result<NonNull<u8>, VmallocError> {
        self.alloc(&VmRequest {
            prot: Prot::KERNEL_EXEC,
            flags: VmFlags::FLUSH_RESET_PERMS,
            range,
            ..VmRequest::new(size, Gfp::KERNEL)
        })
    }
}
