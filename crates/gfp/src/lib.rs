//! The vocabulary of kmem, in reading order:
//!
//! - units: [`Pfn`], [`PfnRange`], [`Order`], [`NodeId`], [`ZoneKind`], [`MigrateType`], [`Watermark`];
//! - requests: [`Gfp`] and what it selects and permits, the context's [`TaskFlags`], scopes, size arithmetic;
//! - errors: [`AllocError`], [`FreeError`];
//! - seams, the traits at which the allocators meet: [`PageAllocator`] and its extensions, [`FrameTable`],
//!   [`Reclaimer`], [`AllocContext`], [`MovableOwner`], [`ContigRange`].
#![doc = include_str!("../README.md")]
#![no_std]

mod context;
mod error;
mod flags;
mod frame;
mod frame_table;
mod movable;
mod page_allocator;
mod reclaimer;
pub mod size;
mod zone;

pub use context::{AllocContext, PlainContext, TaskFlags};
pub use error::{AllocError, FreeError};
pub use flags::{Gfp, ParseGfpError};
pub use frame::{NodeId, Order, PAGE_SHIFT, PAGE_SIZE, Pfn, PfnRange};
pub use frame_table::{FlatFrameTable, FrameTable, FrameWords, OwnerTag};
pub use movable::{MigrateError, MovableOwner};
pub use page_allocator::{BulkPages, ContigRange, ExactPages, PageAllocator, Pages};
pub use reclaimer::{CompactOutcome, CompactPriority, NoReclaim, OomOutcome, ReclaimRequest, Reclaimer};
pub use zone::{MigrateType, Watermark, ZoneKind};
