//! Averages over 10, 60 and 300 seconds, in fixed point with 11 bits behind the point.
//!
//! ```text
//! average' = average × e + share × (1 − e)      e = exp(−2 s / window); share in per cent
//! ```

/// One in fixed point.
const ONE: u64 = 1 << 11;

/// The time between two updates.
pub const PERIOD_US: u64 = 2_000_000;

/// `exp(-2/10)`, `exp(-2/60)` and `exp(-2/300)` in fixed point.
const DECAY: [u64; 3] = [1677, 1981, 2034];

/// The share of time lost, in per cent, averaged over three windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Averages([u64; 3]);

impl Averages {
    /// The averages over 10, 60 and 300 s, in hundredths of a per cent.
    pub fn hundredths(&self) -> [u64; 3] {
        self.0.map(|value| value.saturating_mul(100) / ONE)
    }

    /// The whole and the two digits behind the point, as the kernel prints them.
    pub(crate) fn digits(&self) -> [(u64, u64); 3] {
        self.0.map(|value| (value / ONE, (value % ONE) * 100 / ONE))
    }

    /// After `missed` periods in which nothing was lost, one in which `lost_us` of `period_us` were.
    pub(crate) fn update(&mut self, missed: u64, lost_us: u64, period_us: u64) {
        let share = lost_us.min(period_us).saturating_mul(100) / period_us.max(1) * ONE;
        for (value, decay) in self.0.iter_mut().zip(DECAY) {
            if missed > 0 {
                *value = *value * power(decay, missed) / ONE;
            }
            let sum = *value * decay + share * (ONE - decay);
            // Rounded up while it grows, so that it reaches the share.
            *value = (sum + if share >= *value { ONE - 1 } else { 0 }) / ONE;
        }
    }
}

/// `base` to the power of `n`, in fixed point.
fn power(base: u64, mut n: u64) -> u64 {
    let (mut base, mut result) = (base, ONE);
    while n > 0 {
        if n & 1 == 1 {
            result = (result * base + ONE / 2) / ONE;
        }
        base = (base * base + ONE / 2) / ONE;
        n >>= 1;
    }
    result
}
