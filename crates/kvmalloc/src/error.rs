//! Why there is no memory, or why an address was not freed or resized.

use kmem_gfp::AllocError;
use kmem_kmalloc::{KfreeError, KreallocError};
use kmem_vmalloc::{VfreeError, VmallocError};

/// Why kvmalloc gave no memory. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvmallocError {
    /// At most a page was asked for, and kmalloc has none; or the request cannot be met at all.
    #[error(transparent)]
    Kmalloc(#[from] AllocError),
    /// More than vmalloc is ever asked for ([`KVMALLOC_FALLBACK_MAX`](crate::KVMALLOC_FALLBACK_MAX)), or the size overflowed.
    #[error("{size_bytes} bytes are more than kvmalloc gives")]
    TooLarge {
        /// The size asked for; `usize::MAX` when the arithmetic overflowed.
        size_bytes: usize,
    },
    /// Neither of them has it.
    #[error("no {size_bytes} bytes, neither from kmalloc ({kmalloc}) nor from vmalloc ({vmalloc})")]
    Neither {
        /// The size asked for.
        size_bytes: usize,
        /// What kmalloc said.
        kmalloc: AllocError,
        /// What vmalloc said.
        vmalloc: VmallocError,
    },
}

/// Why an address was not freed. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvfreeError {
    /// Not a vmalloc address, and kmalloc does not know it either.
    #[error(transparent)]
    Kmalloc(#[from] KfreeError),
    /// A vmalloc address, but not that of an area in use.
    #[error(transparent)]
    Vmalloc(#[from] VfreeError),
    /// More bytes were to be cleared than the memory has.
    #[error("{len} bytes cannot be cleared at {address:#x}: there are {size_bytes}")]
    TooLong {
        /// The address given.
        address: usize,
        /// The length given.
        len: usize,
        /// How many bytes there are.
        size_bytes: usize,
    },
}

/// Why memory was not resized. It is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KvreallocError {
    /// No memory for the new size.
    #[error(transparent)]
    Alloc(#[from] KvmallocError),
    /// The address is not that of memory in use.
    #[error(transparent)]
    Free(#[from] KvfreeError),
    /// vmalloc could not resize its area.
    #[error(transparent)]
    Vmalloc(#[from] VmallocError),
    /// kmalloc could not resize its block, for another reason.
    #[error(transparent)]
    Krealloc(KreallocError),
}

impl From<KreallocError> for KvreallocError {
    fn from(error: KreallocError) -> Self {
        match error {
            KreallocError::Alloc(error) => Self::Alloc(error.into()),
            KreallocError::Block(error) => Self::Free(error.into()),
            other => Self::Krealloc(other),
        }
    }
}
