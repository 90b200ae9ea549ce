//! Times of calls: a histogram with sixteen steps for each power of two.

use serde::Serialize;
use std::time::{Duration, Instant};

/// Steps for each power of two.
const STEPS: usize = 16;
const BUCKETS: usize = 40 * STEPS;

/// How long calls took.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    failed: u64,
    longest: u64,
}

/// A histogram in a few numbers, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Quantiles {
    /// Calls that succeeded.
    pub calls: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Half of them took no longer.
    pub p50_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1000.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

fn bucket(ns: u64) -> usize {
    if ns < STEPS as u64 {
        return ns as usize;
    }
    let power = ns.ilog2() as usize;
    let step = (ns >> (power - 4)) as usize & (STEPS - 1);
    ((power - 3) * STEPS + step).min(BUCKETS - 1)
}

/// The largest time of a bucket.
fn top(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let (power, step) = (bucket / STEPS + 3, bucket % STEPS);
    ((STEPS + step + 1) as u64) << (power - 4)
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; BUCKETS], failed: 0, longest: 0 }
    }

    /// Runs a call and notes its time, or that it failed.
    pub(super) fn time<T, E>(&mut self, call: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let begun = Instant::now();
        let result = call();
        self.note(begun.elapsed(), result.is_ok());
        result
    }

    fn note(&mut self, took: Duration, succeeded: bool) {
        if !succeeded {
            self.failed += 1;
            return;
        }
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.longest = self.longest.max(ns);
        if let Some(count) = self.counts.get_mut(bucket(ns)) {
            *count += 1;
        }
    }

    /// Adds another one's calls.
    pub(super) fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.failed += other.failed;
        self.longest = self.longest.max(other.longest);
    }

    fn quantile(&self, share: f64) -> u64 {
        let calls: u64 = self.counts.iter().sum();
        let wanted = (calls as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return top(at).min(self.longest);
            }
        }
        self.longest
    }

    pub(super) fn quantiles(&self) -> Quantiles {
        Quantiles {
            calls: self.counts.iter().sum(),
            failed: self.failed,
            p50_ns: self.quantile(0.5),
            p99_ns: self.quantile(0.99),
            p999_ns: self.quantile(0.999),
            max_ns: self.longest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_sixteenth() {
        let mut times = Histogram::new();
        for ns in 1..=10_000u64 {
            times.note(Duration::from_nanos(ns), true);
        }
        let q = times.quantiles();
        assert_eq!((q.calls, q.failed, q.max_ns), (10_000, 0, 10_000));
        assert!((5_000..5_400).contains(&q.p50_ns), "{q:?}");
        assert!((9_900..=10_000).contains(&q.p99_ns), "{q:?}");
    }
}
