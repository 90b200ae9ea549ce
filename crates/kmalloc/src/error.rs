//! Why a block was not freed: each variant names what the address turned out to be.

use kmem_gfp::{FreeError, OwnerTag, Pfn};
use kmem_slab::ObjectError;

/// Why `kfree` refused an address. Nothing has changed: the block, if there is one, is as allocated as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KfreeError {
    /// The address lies outside of the memory that this machine's allocators manage.
    #[error("{address:#x} is no address of allocator memory")]
    NotMemory {
        /// The address given.
        address: usize,
    },
    /// Nobody has allocated the page through kmalloc or a cache: it is free, or came straight from the page allocator.
    #[error("{address:#x} in {pfn} belongs to no kmalloc block and to no cache")]
    NotAllocated {
        /// The address given.
        address: usize,
        /// The frame it lies in.
        pfn: Pfn,
    },
    /// The page belongs to another allocator.
    #[error("{address:#x} in {pfn} belongs to another allocator ({owner:?})")]
    OtherOwner {
        /// The address given.
        address: usize,
        /// The frame it lies in.
        pfn: Pfn,
        /// Whose it is.
        owner: OwnerTag,
    },
    /// The address lies inside a large block, but is not its start.
    #[error("{address:#x} lies inside the large block at {start:#x}")]
    InsideBlock {
        /// The address given.
        address: usize,
        /// Where the block starts.
        start: usize,
    },
    /// The cache refused the object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The page allocator refused the block.
    #[error(transparent)]
    Pages(#[from] FreeError),
}
