//! The memory report that accompanies a failed allocation.

use core::fmt;

use crate::state::State;

/// Calls `line` with each line of the report.
pub(crate) fn lines(state: &State, line: &mut dyn FnMut(fmt::Arguments<'_>)) {
    let _ = state;
    line(format_args!("Mem-Info:"));
}
