//! `cargo lab pressure`: a machine too small for its work.
//!
//! ```text
//! worker on each CPU ─▶ file-like pages, anonymous pages, kmalloc, a cache with a shrinker, atomic requests
//! now and then       ─▶ a hog that takes all it can get, until it is killed
//! a sampler          ─▶ free, cached, anonymous pages, reclaim, stalls, kills
//! at the end         ─▶ every page's bytes, every counter
//! ```
//!
//! - [`PressureOptions`], [`run`]: the subcommand (`command`);
//! - `bench`: the machine and the run; `work`: what a worker does; `objects`: the cache that a shrinker empties;
//! - `latency`: times of calls, in a histogram; `report`: the figures, as text, JSON and plots.

mod bench;
mod command;
mod latency;
mod objects;
mod report;
#[cfg(test)]
mod tests;
mod work;

pub use command::{PressureOptions, run};
pub use report::PressureReport;
