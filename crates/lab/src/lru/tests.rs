//! The goal: the generations miss no more often than the classic lists on any bundled trace.

use super::trace::References;
use super::{bundled, measure};

#[test]
fn generations_miss_no_more_than_the_classic_lists_on_each_bundled_trace() {
    for input in bundled() {
        let trace = References::read(&input).unwrap();
        let report = measure(&trace, &[]).unwrap();
        let sum = |of: fn(&super::SizeRow) -> u64| report.sizes.iter().map(of).sum::<u64>();
        let (generations, classic) = (sum(|row| row.generations), sum(|row| row.classic));
        assert!(generations <= classic, "{}: {generations} > {classic}\n{}", report.name, report.table());
        for row in &report.sizes {
            assert!(row.optimum <= row.generations.min(row.classic).min(row.lru).min(row.clock), "{row:?}");
        }
    }
}
