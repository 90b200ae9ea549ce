//! The host's limit on mappings, and how far machines go.
//!
//! Each run of neighbouring pages is a mapping of the host's, and a process may have some 65 thousand of them
//! (`vm.max_map_count`). At the limit nothing works: heaps cannot grow, threads cannot start, and unmapping a part of a
//! mapping fails as well. So all machines of a process together keep to a part of it.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What machines allow themselves, unless the host's limit is so low that half of it is less.
const BUDGET: usize = 32 << 10;
/// Linux's default limit.
const HOST_LIMIT: usize = 65_530;

/// Mappings in the windows of all machines of this process.
static IN_USE: AtomicUsize = AtomicUsize::new(0);

/// The budget of a machine that was not given one.
pub(crate) fn default_budget() -> usize {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    let limit = text.trim().parse().unwrap_or(HOST_LIMIT);
    BUDGET.min(limit / 2)
}

/// One window's share.
#[derive(Debug)]
pub(super) struct Mappings {
    own: usize,
    budget: usize,
}

impl Mappings {
    /// A share of one: the reservation.
    pub(super) fn new(budget: usize) -> Self {
        IN_USE.fetch_add(1, Ordering::Relaxed);
        Self { own: 1, budget }
    }

    pub(super) fn own(&self) -> usize {
        self.own
    }

    pub(super) fn budget(&self) -> usize {
        self.budget
    }

    /// Takes `more`; if that is too many, the number there would be. Nothing has changed then.
    pub(super) fn take(&mut self, more: usize) -> Result<(), usize> {
        let in_all = IN_USE.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        if in_all > self.budget {
            IN_USE.fetch_sub(more, Ordering::Relaxed);
            return Err(in_all);
        }
        self.own += more;
        Ok(())
    }

    /// Corrects the share to what it has become, whatever the budget.
    pub(super) fn correct(&mut self, own: usize) {
        if own >= self.own {
            IN_USE.fetch_add(own - self.own, Ordering::Relaxed);
        } else {
            IN_USE.fetch_sub(self.own - own, Ordering::Relaxed);
        }
        self.own = own;
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        self.correct(0);
    }
}
