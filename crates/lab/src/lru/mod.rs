//! `cargo lab lru`: how often each way of replacing pages has to bring one back in, on a trace of page references.
//!
//! ```text
//! trace ─▶ References ─┬─▶ kernel: kmem-reclaim's generations and classic lists over a toy page source
//!                      └─▶ simple: least recently used, CLOCK, Belady's optimum
//!                      at several memory sizes ─▶ Report: table, JSON, plots
//! ```

mod command;
mod kernel;
mod record;
mod report;
mod simple;
mod trace;

pub use command::{LruOptions, bundled, measure, run};
pub use report::{LruReport, SizeRow};
pub use trace::{Reference, References};

#[cfg(test)]
mod tests;
