//! Triggers: an event when more than so much time is lost within a window.
//!
//! ```text
//! "some 150000 1000000"      150 ms lost within any second
//! growth = lost since the window began + what the window before it lost × what is left of this one
//! ```

use core::str::FromStr;

use crate::psi::Pressure;

/// Windows, in microseconds.
const WINDOWS_US: core::ops::RangeInclusive<u64> = 500_000..=10_000_000;

/// A watch on the time lost. Owned by its poller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    full: bool,
    threshold_us: u64,
    window_us: u64,
    begun_us: u64,
    begun_total_us: u64,
    growth_before_us: u64,
    last_event_us: Option<u64>,
}

/// Why a line is no trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseTriggerError {
    /// Not `some|full <threshold us> <window us>`.
    #[error("a trigger is `some` or `full`, a threshold and a window in microseconds")]
    BadForm,
    /// A window outside half a second to ten seconds.
    #[error("a window of {0} us is not within 500000..=10000000")]
    BadWindow(u64),
    /// A threshold of zero, or above the window.
    #[error("a threshold of {0} us is not within the window")]
    BadThreshold(u64),
}

impl FromStr for Trigger {
    type Err = ParseTriggerError;

    fn from_str(line: &str) -> Result<Self, ParseTriggerError> {
        let mut words = line.split_ascii_whitespace();
        let mut next = || words.next().ok_or(ParseTriggerError::BadForm);
        let full = match next()? {
            "some" => false,
            "full" => true,
            _ => return Err(ParseTriggerError::BadForm),
        };
        let threshold_us: u64 = next()?.parse().map_err(|_| ParseTriggerError::BadForm)?;
        let window_us: u64 = next()?.parse().map_err(|_| ParseTriggerError::BadForm)?;
        if words.next().is_some() {
            return Err(ParseTriggerError::BadForm);
        }
        if !WINDOWS_US.contains(&window_us) {
            return Err(ParseTriggerError::BadWindow(window_us));
        }
        if threshold_us == 0 || threshold_us > window_us {
            return Err(ParseTriggerError::BadThreshold(threshold_us));
        }
        Ok(Self {
            full,
            threshold_us,
            window_us,
            begun_us: 0,
            begun_total_us: 0,
            growth_before_us: 0,
            last_event_us: None,
        })
    }
}

impl Trigger {
    /// Begins to watch: what was lost before `now_us` does not count.
    pub fn arm(&mut self, pressure: &Pressure, now_us: u64) {
        self.begun_us = now_us;
        self.begun_total_us = self.total(pressure);
        self.growth_before_us = 0;
        self.last_event_us = None;
    }

    fn total(&self, pressure: &Pressure) -> u64 {
        if self.full { pressure.full_total_us } else { pressure.some_total_us }
    }

    /// Whether the threshold has been passed, at most once in a window. `pressure` is from [`Psi::update`](crate::psi::Psi)
    /// at `now_us`; to be called several times in a window.
    pub fn poll(&mut self, pressure: &Pressure, now_us: u64) -> bool {
        let total = self.total(pressure);
        let elapsed = now_us.saturating_sub(self.begun_us);
        let mut growth = total.saturating_sub(self.begun_total_us);
        if elapsed > self.window_us {
            self.begun_us = now_us;
            self.begun_total_us = total;
            self.growth_before_us = growth;
        } else {
            let left = u128::from(self.window_us - elapsed);
            let share = u128::from(self.growth_before_us) * left / u128::from(self.window_us);
            growth = growth.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
        }
        let quiet = self.last_event_us.is_none_or(|last| now_us.saturating_sub(last) >= self.window_us);
        if growth < self.threshold_us || !quiet {
            return false;
        }
        self.last_event_us = Some(now_us);
        true
    }
}
