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
//! Time is not measured here: filling and checking memory costs more than allocating it. [`time`] replays the same operations once
//! more, on a fresh machine, and times the allocator's calls alone.

mod drive;
mod execute;
mod integrity;
mod rounds;
mod sample;
mod slots;
mod stamp;

pub use drive::{Order, Outcome, Peak, replay};
pub use integrity::{Integrity, IntegrityCounts};
pub use rounds::{SameSlabs, Times, same_slabs, time};
pub use sample::{Sample, Samples, unusable_index};

#[cfg(test)]
mod tests;
