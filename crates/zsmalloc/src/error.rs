//! What can go wrong, each a different next step for the caller.

use kmem_gfp::{AllocError, Pfn};

use crate::Handle;

/// Damaged metadata, found by [`DebugFlags::VERIFY`](crate::DebugFlags::VERIFY) before anything followed it. The zspage
/// named is best left alone; other zspages of the pool are unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zspage {zspage:#x}: damaged {what}")]
pub struct Corruption {
    /// The number of the zspage.
    pub zspage: u32,
    /// Which part of its metadata is wrong.
    pub what: &'static str,
}

/// Why a pool was not created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The chain length or the distance of classes is out of range.
    #[error("chain {chain} or granule {granule} is out of range")]
    BadConfig {
        /// The chain length given.
        chain: u8,
        /// The distance of classes given.
        granule: u16,
    },
    /// No memory for the class table.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The page source gave a frame that the frame table does not map.
    #[error("{0} is not mapped")]
    Unmapped(Pfn),
}

/// Why an object was not stored. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An object has at least one byte.
    #[error("an object has at least one byte")]
    Empty,
    /// An object has at most one page.
    #[error("{len} bytes are more than one page")]
    TooLarge {
        /// The length given, in bytes.
        len: usize,
    },
    /// No memory.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// The page source gave a frame that the frame table does not map.
    #[error("{0} is not mapped")]
    Unmapped(Pfn),
    /// All numbers of handles or zspages are in use.
    #[error("the pool holds as many objects as it has numbers for")]
    Full,
    /// Metadata is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
}

/// Why an object was not reached. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The handle belongs to another pool.
    #[error("{0} belongs to another pool")]
    Foreign(Handle),
    /// The object has been freed.
    #[error("{0} has been freed")]
    Stale(Handle),
    /// The object spans two frames and the buffer is shorter than the object.
    #[error("the object has {needed} bytes, the buffer {given}")]
    BufferTooSmall {
        /// The object's length.
        needed: usize,
        /// The buffer's length.
        given: usize,
    },
    /// A reader holds the object's zspage; trying again may help.
    #[error("the object's zspage is being read")]
    Busy,
    /// The bytes written do not belong to the object's size class.
    #[error("{len} bytes belong to another size class than the object's {old}")]
    WrongClass {
        /// The length given.
        len: usize,
        /// The object's length.
        old: usize,
    },
    /// Metadata is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
}

/// Why a pool was not destroyed; it is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{objects} objects are left in the pool")]
pub struct NotEmpty {
    /// How many.
    pub objects: u64,
}
