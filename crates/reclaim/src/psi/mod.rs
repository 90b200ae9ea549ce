//! Pressure stall accounting: how much time tasks lose because memory is short (R-18).
//!
//! ```text
//!  CPU 0  stalled ██████░░░░████      some: at least one task is stalled
//!         working ░░░████████░░░      full: some, and nobody works
//!                                     weighed by the time that the CPU was not idle
//!  Psi ─▶ cpus[cpu]: counts of tasks, times        under the CPU's lock
//!      ─▶ totals, averages over 10, 60 and 300 s   every 2 s, by whoever polls
//! ```
//!
//! Reclaim, compaction and background reclaim are bracketed by [`Psi::enter`] and [`Psi::leave`]. A [`Psi`] stands for the
//! machine; a platform that wants the pressure of its memory cgroups has one for each and brackets all on the way up
//! ([`enter_all`], [`leave_all`]).
//!
//! Platforms that do not count their working tasks get `full` equal to `some`.

mod average;
mod cpu;
mod stalls;
mod trigger;

#[cfg(test)]
mod tests;

pub use average::{Averages, PERIOD_US};
pub use stalls::{Pressure, Psi, Stall, enter_all, leave_all};
pub use trigger::{ParseTriggerError, Trigger};
