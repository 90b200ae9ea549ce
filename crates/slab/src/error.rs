//! Errors of caches and objects. Each variant is a different next step for the caller.

use kmem_gfp::{AllocError, Gfp};

/// Why an object was not taken back, or could not be looked at. The object is left alone: a wrong free leaks it on
/// purpose rather than corrupting a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The address belongs to no slab: another allocator's memory, or nobody's.
    #[error("{address:#x} does not belong to a slab")]
    NotSlab {
        /// The address given.
        address: usize,
    },
    /// The object belongs to another cache.
    #[error("{address:#x} belongs to another cache")]
    WrongCache {
        /// The address given.
        address: usize,
    },
    /// The object is free already.
    #[error("{address:#x} is already free")]
    DoubleFree {
        /// The address given.
        address: usize,
    },
    /// The address points into a slab but not to the start of an object.
    #[error("{address:#x} is not the start of an object")]
    NotAnObject {
        /// The address given.
        address: usize,
    },
    /// A check found the object or its slab overwritten; the object is not reused.
    #[error("the object at {address:#x} or its slab is corrupted")]
    Corrupted {
        /// The address given.
        address: usize,
    },
}

/// Why a bulk free stopped noticing objects: some were refused, all others were taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{refused} objects were refused, the first because {first}")]
pub struct BulkFreeError {
    /// How many objects were refused (and leaked).
    pub refused: usize,
    /// Why the first of them was.
    pub first: ObjectError,
}

/// Why a cache was not created. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// Empty, longer than [`NAME_MAX`](crate::NAME_MAX) bytes, or with a space or control character in it.
    #[error("a cache's name has 1 to {max} printable characters without space", max = crate::NAME_MAX)]
    BadName,
    /// A cache of that name exists and cannot be shared.
    #[error("a cache of this name exists")]
    NameTaken,
    /// Zero, or above the largest block.
    #[error("objects of {0} bytes cannot be cached")]
    BadSize(usize),
    /// Not zero or a power of two, or larger than a page.
    #[error("alignment {0} is not supported")]
    BadAlign(usize),
    /// Flags that only the allocator sets, or that exclude one another.
    #[error("cache flags {0:#x} are not permitted")]
    BadFlags(u32),
    /// The free-pointer offset is outside the object, unaligned, or the cache neither typesafe nor constructed.
    #[error("free pointer offset {0} is not permitted")]
    BadFreePointer(usize),
    /// No memory for the descriptor.
    #[error(transparent)]
    NoMemory(#[from] AllocError),
}

/// Why a cache was not destroyed. It works on as before, and destroying it can be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DestroyError {
    /// Objects are still in use. Each has been reported through
    /// [`AllocContext::report`](kmem_gfp::AllocContext::report);
    /// [`Slabs::for_each_live_object`](crate::Slabs::for_each_live_object) lists them.
    #[error("{live} objects in {slabs} slabs are still in use, the first at {first:#x}")]
    ObjectsRemain {
        /// How many objects.
        live: usize,
        /// How many slabs hold them.
        slabs: usize,
        /// The address of one of them.
        first: usize,
    },
    /// The cache belongs to another family, or has been destroyed.
    #[error("not a cache of this family")]
    UnknownCache,
}

/// Why a copy to or from user space must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UsercopyError {
    /// The range is longer than any copy may be, wraps around, or starts at null or the zero-size pointer.
    #[error("{len} bytes at {address:#x} are not a range")]
    BadRange {
        /// Where the range starts.
        address: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// The range is not inside the window that the object's cache declared.
    #[error("{len} bytes at offset {offset} of a slab object lie outside its usercopy window")]
    OutsideWindow {
        /// Where the range starts, from the object's start.
        offset: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// The address belongs to no slab object: another check is responsible.
    #[error("{address:#x} does not belong to a slab object")]
    NotSlab {
        /// Where the range starts.
        address: usize,
    },
}

pub(crate) const fn no_memory(gfp: Gfp) -> AllocError {
    AllocError::NoMemory { order: kmem_gfp::Order::ZERO, gfp }
}
