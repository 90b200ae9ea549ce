//! One CPU's part: how many tasks are stalled and working there, and for how long that has been so.

/// Times and counts of one CPU.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuPressure {
    pub(crate) stalled: u32,
    pub(crate) working: u32,
    since_us: u64,
    pub(crate) times: Times,
    /// What the last aggregation saw.
    pub(crate) seen: Times,
}

/// Microseconds spent in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) some: u64,
    pub(crate) full: u64,
    pub(crate) busy: u64,
}

impl CpuPressure {
    pub(crate) fn new(now_us: u64) -> Self {
        Self { since_us: now_us, ..Self::default() }
    }

    /// Books the time since the last change. A clock that steps back books nothing.
    pub(crate) fn book(&mut self, now_us: u64) {
        let elapsed = now_us.saturating_sub(self.since_us);
        self.since_us = self.since_us.max(now_us);
        if self.stalled > 0 {
            self.times.some = self.times.some.wrapping_add(elapsed);
            if self.working == 0 {
                self.times.full = self.times.full.wrapping_add(elapsed);
            }
        }
        if self.stalled > 0 || self.working > 0 {
            self.times.busy = self.times.busy.wrapping_add(elapsed);
        }
    }

    /// The times since the last aggregation.
    pub(crate) fn collect(&mut self, now_us: u64) -> Times {
        self.book(now_us);
        let news = Times {
            some: self.times.some.wrapping_sub(self.seen.some),
            full: self.times.full.wrapping_sub(self.seen.full),
            busy: self.times.busy.wrapping_sub(self.seen.busy),
        };
        self.seen = self.times;
        news
    }
}
