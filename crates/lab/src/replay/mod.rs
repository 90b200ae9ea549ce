//! The replay: a program's operations on an allocator, with every byte checked.
//!
//! ```text
//!   reader thread                parser thread                 this thread (or one per CPU)
//!   bytes ─▶ chunks of lines ──▶ events ─▶ operations ──────▶ execute: allocate, fill, check, free
//!                                                               │
//!                                                               ├─ slots: where each object is
//!                                                               ├─ integrity: pattern, overlap, double free
//!                                                               └─ samples: what the machine looks like, over time
//! ```
//!
//! A second machine gets, on a thread of its own and unchecked, only the objects that can be compared with Linux page by page.
//!
//! Time is not measured here: filling and checking memory costs more than allocating it. [`time`] replays the same operations once
//! more, on a fresh machine, and times the allocator's calls alone.

mod drive;
mod execute;
mod integrity;
mod lanes;
mod parse;
mod rounds;
mod sample;
mod slots;
mod stamp;
mod strict;

pub use drive::{AreaFigures, Kept, Order, Outcome, Peak, Plan, replay};
pub use integrity::{Integrity, IntegrityCounts};
pub(crate) use parse::feed;
pub use rounds::{Times, time};
pub use sample::{Sample, Samples, unusable_index};
pub use strict::SameRequests;

#[cfg(test)]
mod tests;
