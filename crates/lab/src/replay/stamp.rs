//! A clock for single calls: the processor's time stamp counter, or the system's clock where there is none.
//!
//! Two readings in a row are some nanoseconds apart; that much is measured beforehand and taken off each call.

use std::time::Instant;

/// A clock whose unit and own cost are known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    ns_per_tick: f64,
    overhead: u64,
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn ticks() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

impl Clock {
    /// Compares the counter with the system's clock for some milliseconds.
    pub(crate) fn calibrate() -> Self {
        let (start, first) = (Instant::now(), ticks());
        let mut gaps: Vec<u64> = Vec::with_capacity(4096);
        while start.elapsed().as_millis() < 4 {
            let a = ticks();
            let b = ticks();
            if gaps.len() < 4096 {
                gaps.push(b.wrapping_sub(a));
            }
        }
        let (ns, counted) = (start.elapsed().as_nanos() as f64, ticks().wrapping_sub(first));
        gaps.sort_unstable();
        let overhead = gaps.get(gaps.len() / 2).copied().unwrap_or(0);
        Self { ns_per_tick: if counted == 0 { 0.0 } else { ns / counted as f64 }, overhead }
    }

    /// Nanoseconds of `ticks` spent in `calls` calls, each read with two stamps.
    pub(crate) fn ns(&self, ticks: u64, calls: u64) -> f64 {
        ticks.saturating_sub(self.overhead.saturating_mul(calls)) as f64 * self.ns_per_tick
    }
}
