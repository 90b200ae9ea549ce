//! Counters that cannot drift: each word has one writer, readers add up.

use crate::atomic::{AtomicI64, Ordering};
use crate::const_fn;

/// A counter written by one CPU (inside its local section) and read by anyone. Adding is a plain load and store.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct LocalCounter(AtomicI64);

impl LocalCounter {
    const_fn! {
        /// A counter at zero.
        pub fn new() -> Self {
            Self(AtomicI64::new(0))
        }
    }

    /// Adds `n`, which may be negative. Only the owning CPU may call this, never nested: the caller is inside a
    /// [`CpuSlot`](crate::CpuSlot) section, or the count is off by the lost difference.
    #[inline(always)]
    pub fn add(&self, n: i64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The present value.
    #[inline(always)]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A shared count fed in batches: CPUs keep a small signed difference of their own and fold it in when it reaches a
/// threshold, so the shared word is written once per batch.
///
/// [`estimate`](Self::estimate) may be off by at most `CPUs x threshold`; adding the CPUs' differences makes it exact.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ShardedCounter(AtomicI64);

impl ShardedCounter {
    const_fn! {
        /// A counter that starts at `value`.
        pub fn new(value: i64) -> Self {
            Self(AtomicI64::new(value))
        }
    }

    /// Adds `n` to the CPU's `difference` and folds that into the shared count when it has grown to `threshold`.
    #[inline(always)]
    pub fn add_local(&self, difference: &mut i64, n: i64, threshold: i64) {
        *difference = difference.wrapping_add(n);
        if difference.wrapping_abs() >= threshold {
            self.fold(difference);
        }
    }

    /// Folds the CPU's `difference` into the shared count now.
    #[cold]
    pub fn fold(&self, difference: &mut i64) {
        self.add(core::mem::take(difference));
    }

    /// Adds to the shared count directly (an atomic add on a shared line).
    #[inline]
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The shared count without the CPUs' differences.
    #[inline(always)]
    pub fn estimate(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}
