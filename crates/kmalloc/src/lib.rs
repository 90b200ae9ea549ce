//! kmalloc, in reading order:
//!
//! - pure decisions: [`SizeClass`], [`KmallocKind`], [`size_roundup`], `resize`;
//! - [`Kmalloc`]: allocation (`kmalloc`), giving back (`free`), resizing (`krealloc`), and what a block has (`usable`);
//! - `large`: blocks above the classes;
//! - extras: frees that wait for readers (`rcu`), any-context forms (`nolock`), private sets of caches ([`KmemBuckets`]),
//!   copies (`duplicate`), blocks by type ([`KBox`]);
//! - the seam for a layer above: [`ObjectAllocator`].
#![doc = include_str!("../README.md")]
#![no_std]

#[cfg(test)]
extern crate std;

mod allocator;
mod buckets;
mod class;
mod classes;
mod config;
mod duplicate;
mod error;
mod free;
mod kind;
mod kmalloc;
mod krealloc;
mod large;
mod layout;
mod nolock;
mod object;
mod rcu;
mod resize;
mod usable;

#[cfg(test)]
mod tests;

pub use allocator::ObjectAllocator;
pub use buckets::{BucketArgs, KmemBuckets};
pub use class::{
    KMALLOC_MAX_CACHE_SIZE, KMALLOC_MAX_SIZE, KMALLOC_MINALIGN, MinAlign, SizeClass, natural_align, size_roundup,
};
pub use config::KmallocConfig;
pub use error::KfreeError;
pub use free::KfreeBulkError;
pub use kind::{KmallocKind, PartitionToken};
pub use kmalloc::{Kmalloc, ZERO_SIZE_PTR, is_zero_or_null};
pub use krealloc::KreallocError;
pub use object::KBox;
pub use rcu::RCU_HEAD_REACH;
pub use usable::USERCOPY_MAX;

pub use kmem_slab::RcuHead;
