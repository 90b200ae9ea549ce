//! What is asked for: flags of an area and the request that carries them.

use core::ops::Range;

use kmem_gfp::{Gfp, NodeId};

use crate::Prot;

bitflags::bitflags! {
    /// What an area is and how it behaves.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct VmFlags: u32 {
        /// Maps device memory.
        #[doc(alias = "VM_IOREMAP")]
        const IOREMAP = 1 << 0;
        /// Owns frames that vmalloc got.
        #[doc(alias = "VM_ALLOC")]
        const ALLOC = 1 << 1;
        /// Maps frames that the caller gave.
        #[doc(alias = "VM_MAP")]
        const MAP = 1 << 2;
        /// May be mapped to user space.
        #[doc(alias = "VM_USERMAP")]
        const USERMAP = 1 << 3;
        /// Coherent memory for devices.
        #[doc(alias = "VM_DMA_COHERENT")]
        const DMA_COHERENT = 1 << 4;
        /// Has no unmapped page behind it.
        #[doc(alias = "VM_NO_GUARD")]
        const NO_GUARD = 1 << 6;
        /// Freeing resets the permissions of its frames in the direct map and flushes at once.
        #[doc(alias = "VM_FLUSH_RESET_PERMS")]
        const FLUSH_RESET_PERMS = 1 << 8;
        /// `vfree` also frees the frames that the caller gave.
        #[doc(alias = "VM_MAP_PUT_PAGES")]
        const MAP_PUT_PAGES = 1 << 9;
        /// May be mapped with large entries.
        #[doc(alias = "VM_ALLOW_HUGE_VMAP")]
        const ALLOW_HUGE = 1 << 10;
        /// Only partly populated, by [`vm_area_map`](crate::Vmalloc::vm_area_map).
        #[doc(alias = "VM_SPARSE")]
        const SPARSE = 1 << 12;
        /// From `vm_map_ram`.
        const RAM = 1 << 16;
        /// A block that `vm_map_ram` carves.
        const RAM_BLOCK = 1 << 17;
        /// One of a congruent set for per-CPU memory.
        const PERCPU = 1 << 18;
    }
}

/// A request for memory in full. [`VmRequest::new`] is `vmalloc`; change what differs.
///
/// ```
/// use kmem_gfp::{Gfp, NodeId};
/// use kmem_vmalloc::VmRequest;
///
/// let request = VmRequest { node: Some(NodeId(1)), ..VmRequest::new(10_000, Gfp::KERNEL | Gfp::ZERO) };
/// assert_eq!(request.align, 1);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRequest {
    /// Bytes; rounded up to pages.
    pub size: usize,
    /// Alignment in bytes, a power of two; anything up to a page means a page.
    pub align: usize,
    /// How to get frames.
    pub gfp: Gfp,
    /// The preferred node.
    pub node: Option<NodeId>,
    /// How the area behaves.
    pub flags: VmFlags,
    /// What the mapping permits.
    pub prot: Prot,
    /// Addresses to choose from; `None` for the whole window.
    pub range: Option<Range<usize>>,
}

impl VmRequest {
    /// `size` bytes of ordinary memory anywhere.
    #[inline]
    pub const fn new(size: usize, gfp: Gfp) -> Self {
        Self { size, align: 1, gfp, node: None, flags: VmFlags::empty(), prot: Prot::KERNEL, range: None }
    }
}
