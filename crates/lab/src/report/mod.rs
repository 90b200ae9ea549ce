//! What came of a replay, for people and for programs: tables on the terminal, JSON, a page of plots.

mod chart;
mod html;
mod number;
mod summary;
mod terminal;

pub(crate) use chart::{Chart, Series, Shape, Unit, escape};
pub use html::html;
pub(crate) use number::{grouped, percent};
pub use summary::{CacheRow, LinuxSide, Report, Skipped, Timing, TraceFacts};
pub use terminal::terminal;

#[cfg(test)]
mod tests;
