//! Errors that every layer shares. Small and `Copy`; each variant is a different next step for the caller.

use crate::{Gfp, NodeId, Order, Pfn};

/// Why an allocation did not happen. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocError {
    /// No memory that the flags allow; retry later, with stronger flags, or do without.
    #[error("out of memory: {order}, mode {gfp}")]
    NoMemory {
        /// The order asked for.
        order: Order,
        /// The flags asked with.
        gfp: Gfp,
    },
    /// Larger than the allocator can ever serve (sizes above [`Order::MAX`]).
    #[error("{size_bytes} bytes are more than one allocation can have")]
    TooLarge {
        /// The size asked for, in bytes; `usize::MAX` when the arithmetic saturated.
        size_bytes: usize,
    },
    /// A combination of flags, or of flags and context, that no allocation can satisfy.
    #[error("flags {0} cannot be honoured here")]
    BadFlags(Gfp),
    /// The node named does not exist.
    #[error("{0} does not exist")]
    NoSuchNode(NodeId),
    /// An alignment that is not a power of two, or larger than the allocator gives.
    #[error("alignment {0} is not supported")]
    BadAlign(usize),
    /// The charge to the memory cgroup failed.
    #[error("memory cgroup limit reached: {order}, mode {gfp}")]
    OverLimit {
        /// The order asked for.
        order: Order,
        /// The flags asked with.
        gfp: Gfp,
    },
    /// The allocator has not been initialised, or the part asked for has not.
    #[error("the allocator is not ready")]
    NotReady,
    /// A given range cannot be had: this frame of it is in use and cannot be moved, is not memory, or is being taken by
    /// somebody else. Another range may do, or the same one later.
    #[error("{0} cannot be had")]
    #[doc(alias = "EBUSY")]
    Busy(Pfn),
    /// The task was told to end while it waited.
    #[error("interrupted by a fatal signal")]
    #[doc(alias = "EINTR")]
    Interrupted,
    /// The fault injector said no.
    #[error("injected failure")]
    Injected,
}

/// Why something was not freed. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreeError {
    /// Some frame of the block is free already.
    #[error("{0} is already free")]
    AlreadyFree(Pfn),
    /// The block was allocated with another order.
    #[error("{pfn} was allocated with {allocated} but freed with {given}")]
    WrongOrder {
        /// The block's first frame.
        pfn: Pfn,
        /// The order it was allocated with.
        allocated: Order,
        /// The order it was freed with.
        given: Order,
    },
    /// The frame does not start a block of that order.
    #[error("{pfn} is not aligned to {order}")]
    Misaligned {
        /// The frame given.
        pfn: Pfn,
        /// The order given.
        order: Order,
    },
    /// The frame belongs to no zone of this allocator.
    #[error("{0} does not belong to this allocator")]
    Foreign(Pfn),
    /// The frame is a hole or was reserved at boot; it never was allocated.
    #[error("{0} is reserved")]
    Reserved(Pfn),
}
