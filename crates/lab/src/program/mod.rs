//! From events to requests: what a replay has to ask of an allocator, in which order.
//!
//! ```text
//!   Event ──▶ Program ──▶ Op Op Op Op Op Op ──▶ replay
//!              │  │       └── delay line ──┘
//!              │  └ Census: what became of every event
//!              └ LinuxSlabs: the pages that Linux held for the same requests
//! ```
//!
//! A trace names memory by address; a program names it by *slot*, a small number that stands for one live object or one live
//! block of pages, and a *turn*, which tells the uses of a slot apart. An allocation and all its frees carry the same slot and
//! turn, so that a replay needs no address of the recorded machine, and one that runs on many threads can let a free wait
//! for its allocation.
//!
//! Whether a page allocation became a slab or a large kmalloc is told by a later event. Operations therefore
//! wait in a delay line of a thousand, from which such an allocation is withdrawn in time.

mod areas;
mod blocks;
mod caches;
mod census;
mod feed;
mod linux;
mod objects;
mod op;
mod pages;
mod tables;

pub use areas::LinuxAreas;
pub use caches::{CacheBook, CacheId, CacheSpec};
pub use census::{Census, Fate};
pub(crate) use feed::MARKS;
pub use feed::Program;
pub use linux::{LinuxFigures, LinuxSlabs};
pub use op::{Level, Mark, Op, OpKind, Ref};

#[cfg(test)]
mod tests;
