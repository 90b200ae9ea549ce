//! Whether any page is on its way, where neither a list nor a count shows it.
//!
//! ```text
//!            begun  │ CPU 0: 7 │ CPU 1: 4 │ off: 0 │    a stretch begins on one CPU and may end on another
//!            ended  │ CPU 0: 6 │ CPU 1: 4 │ off: 0 │    sums differ: somebody is inside
//! ```
//!
//! Two stretches use a group's number that stands in no place where a look for it would find it: a batch that has left its
//! CPU and is brought to the lists, and a page that has left the lists and is about to be uncharged. The number must not
//! be given out anew meanwhile. Each CPU counts how many stretches began and ended on it, without an atomic
//! read-modify-write.
//!
//! The ends are summed before the beginnings: if the sums are equal then at the moment between them nobody was inside.

use kmem_sync::atomic::Ordering;

use super::add::Batch;
use super::policy::Policy;
use super::{Lists, LruEnv};
use crate::GroupId;

/// What a CPU has of the lists.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuLists {
    pub(crate) batch: Batch,
    pub(crate) begun: u64,
    pub(crate) ended: u64,
}

impl CpuLists {
    /// Takes the batch away, for [`Lists::settle_taken`], which ends the stretch that begins here.
    pub(crate) fn take(&mut self) -> Batch {
        self.begun = self.begun.wrapping_add(1);
        core::mem::take(&mut self.batch)
    }
}

impl<E: LruEnv, P: Policy> Lists<E, P> {
    pub(crate) fn begin(&self) {
        if self.cpus.try_with(self.env.cpu(), |cpu, _| cpu.begun = cpu.begun.wrapping_add(1)).is_none() {
            self.off_cpu.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn end(&self) {
        if self.cpus.try_with(self.env.cpu(), |cpu, _| cpu.ended = cpu.ended.wrapping_add(1)).is_none() {
            self.off_cpu.1.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Runs `f`, during which a page of `group` leaves the lists and is uncharged: the group's number stays what it is until
    /// then. The root's always does.
    pub(crate) fn with_number_kept<R>(&self, group: GroupId, f: impl FnOnce() -> R) -> R {
        if group == GroupId::ROOT {
            return f();
        }
        self.begin();
        let result = f();
        self.end();
        result
    }

    /// Whether everybody who was on such a stretch has come to its end. Slow: reaches into each CPU, twice.
    pub(crate) fn hands_are_empty(&self) -> bool {
        let sum = |of: fn(&CpuLists) -> u64| {
            let cpus = self.cpus.iter().map(|(_, slot)| slot.with_revoked(self.env.cpu(), |cpu| of(cpu)));
            cpus.fold(0, u64::wrapping_add)
        };
        // Ends first. Acquire: what was done inside comes before this.
        let ended = sum(|cpu| cpu.ended).wrapping_add(self.off_cpu.1.load(Ordering::Acquire));
        let begun = sum(|cpu| cpu.begun).wrapping_add(self.off_cpu.0.load(Ordering::Acquire));
        ended == begun
    }
}
