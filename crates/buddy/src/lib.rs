//! The page layer: nodes, zones and pageblocks; who gets which frames, and how they come back.
//!
//! ```text
//! Buddy ──▶ per-CPU page sets ──▶ zones ──▶ pageblocks: a cache line of 512 bits each
//!             pop, push            watermarks, boost, reserves       claimed by compare-and-swap
//! ```
//!
//! In reading order: [`MemoryMap`] says what there is; [`BuddyEnv`] is what the allocator takes from its surroundings;
//! [`Buddy`] is the allocator, and implements the traits of `kmem-gfp` ([`PageAllocator`](kmem_gfp::PageAllocator),
//! [`BulkPages`](kmem_gfp::BulkPages), [`ExactPages`](kmem_gfp::ExactPages), [`ContigRange`](kmem_gfp::ContigRange)). Inside: `bits` and `line` (a pageblock),
//! `record`, `block` and `arena` (many), `hints` (where to look), `zone`, `cpu`, `pcp` and `tuning` (per-CPU sets), `take` (the rules of
//! migratetypes), `alloc`, `slowpath` and `free` (a request's way), `isolate`, `migrate`, `contig` and `compact` (moving memory), `views`
//! (the kernel's text formats).
//!
//! The allocator works on frame numbers and never touches the memory that it hands out.
#![doc = include_str!("../README.md")]
#![no_std]

mod alloc;
mod arena;
mod bits;
mod block;
mod buddy;
mod bulk;
mod compact;
mod contig;
mod cpu;
mod drain;
mod env;
mod exact;
mod free;
mod highatomic;
mod hints;
mod isolate;
mod line;
mod map;
mod metadata;
mod migrate;
mod nolock;
mod options;
mod pcp;
mod places;
mod record;
mod report;
mod seams;
mod skips;
mod slowpath;
mod state;
mod stats;
mod table;
mod take;
mod tuning;
mod used;
pub mod views;
pub mod watermark;
mod zone;
mod zonelist;

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;

pub use buddy::Buddy;
pub use compact::index::FreeShape;
pub use compact::{Kcompactd, extfrag_percent, fragmentation_index};
pub use env::{BuddyEnv, Unmapped};
pub use highatomic::highatomic_limit;
pub use isolate::{IsolateMode, Isolation};
pub use map::{MapError, MemoryMap, Region, ZoneLimits};
pub use options::BuddyOptions;
pub use stats::{Event, ZoneStats};
pub use watermark::TuneError;
pub use zone::Zone;
