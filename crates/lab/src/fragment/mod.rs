//! Fragmentation: how many large blocks are left after a kernel's page events, and how many can be made again.
//!
//! ```text
//! trace ──▶ Sequence ─┬─▶ replay on kmem, frame-alloc, LLFree ──▶ free huge frames         (beside Linux's buddyinfo)
//!                     └─▶ Mix ──▶ fill, free by random / age / owner, ask, compact, ask    (kmem: movable pages really move)
//! ```
//!
//! A *huge frame* is 2 MiB, aligned. It is free if nothing in it is in use, whichever lists or stacks its pages are on.

mod command;
mod fill;
mod plugin;
mod replay;
mod report;
mod scenario;
mod sequence;
mod subjects;

#[cfg(test)]
mod tests;

pub use command::{FragmentOptions, measure, run};
pub use replay::Packing;
pub use report::FragmentReport;
pub use scenario::{Outcome, Round, Way};
pub use sequence::{Mix, PageEvent, Sequence};
