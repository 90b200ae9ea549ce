//! The vocabulary of kmem, in reading order:
//!
//! - units: [`Pfn`], [`PfnRange`], [`Order`], [`NodeId`], [`ZoneKind`], [`MigrateType`], [`Watermark`];
//! - requests: [`Gfp`], what it selects ([`select`]) and permits ([`alloc_flags`]), what makes no sense ([`verdict`]);
//!   the context's [`TaskFlags`], the scopes that weaken requests ([`scope`]), size arithmetic ([`size`]);
//! - errors: [`AllocError`], [`FreeError`];
//! - seams, the traits at which the allocators meet: [`PageAllocator`] and its extensions, [`FrameTable`],
//!   [`Reclaimer`], [`AllocContext`], [`MovableOwner`], [`ContigRange`].
#![doc = include_str!("../README.md")]
#![no_std]

#[forbid(unsafe_code)]
pub mod alloc_flags;
mod context;
mod error;
#[forbid(unsafe_code)]
mod flags;
mod frame;
mod frame_table;
mod movable;
mod page_allocator;
mod reclaimer;
#[forbid(unsafe_code)]
pub mod scope;
#[forbid(unsafe_code)]
pub mod select;
#[forbid(unsafe_code)]
pub mod size;
#[forbid(unsafe_code)]
pub mod verdict;
mod zone;

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;

/// The guide to the flags; its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/gfp.md")]
struct Guide;
/// The table of contexts.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/contexts.md")]
struct Contexts;

pub use context::{AllocContext, PlainContext, TaskFlags};
pub use error::{AllocError, FreeError};
pub use flags::{Gfp, ParseGfpError};
pub use frame::{NodeId, Order, PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange};
pub use frame_table::{FlatFrameTable, FrameTable, FrameWords, OwnerTag};
pub use movable::{MigrateError, MigrateMode, MovableOwner};
pub use page_allocator::{BulkPages, ContigRange, ExactPages, PageAllocator, Pages};
pub use reclaimer::{CompactOutcome, CompactPriority, NoReclaim, OomOutcome, ReclaimRequest, Reclaimer};
pub use scope::{CallerScope, NoFsScope, NoIoScope, NoReclaimScope, PinScope, current_gfp_context};
pub use zone::{MigrateType, Watermark, ZoneKind};
