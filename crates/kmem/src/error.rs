//! Why a machine was not set up.

use kmem_buddy::MapError;
use kmem_gfp::AllocError;
use kmem_slab::CreateError;
use kmem_vmalloc::VmallocError;

/// Why [`KmemCell::init`](crate::KmemCell::init) failed. The cell is as before and may be initialised again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// It has been initialised, or another context is at it.
    #[error("this machine has been initialised already")]
    AlreadyInitialised,
    /// The page allocator refused the memory map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Too little memory for the first caches.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The vmalloc window could not be set up.
    #[error(transparent)]
    Window(#[from] VmallocError),
    /// A kmalloc cache could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
}
