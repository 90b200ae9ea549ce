//! kmem's typed cache in the cache suite.

use super::Workload;
use crate::measure::Subject;

/// kmem's subjects for `workload`.
pub(crate) fn subjects(_workload: Workload) -> Vec<Subject> {
    Vec::new()
}
