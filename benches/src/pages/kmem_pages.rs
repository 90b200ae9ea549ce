//! kmem's page allocator in the page suite.

use super::Workload;
use crate::measure::Subject;

/// kmem's subjects for `workload`.
pub(crate) fn subjects(_workload: Workload, _seed: u64) -> Vec<Subject> {
    Vec::new()
}
