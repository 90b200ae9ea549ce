//! Grace periods of one machine: the epoch, its readers, and the guard that a reader holds.

use core::marker::PhantomData;

use kmem_sync::{Cpu, Grace, GracePeriod};

use crate::epoch::{Epoch, Reader};
use crate::slots::Slot;

/// CPUs that are slots.
pub(crate) trait SlotCpu: Cpu {
    /// Every CPU's slot.
    fn slots(&self) -> &'static [Slot];
}

impl SlotCpu for crate::HostCpu {
    #[inline(always)]
    fn slots(&self) -> &'static [Slot] {
        Self::slots(self)
    }
}

/// Epoch-based grace periods over the CPUs `C`.
///
/// Readers pay two plain stores to a cache line of their CPU's own and no fence; who waits for them pays with a barrier on
/// all CPUs. Grace periods advance when somebody asks ([`has_passed`](GracePeriod::has_passed)): no thread runs in the
/// background.
#[derive(Debug)]
pub struct EpochGrace<C> {
    cpu: C,
    epoch: Epoch,
}

#[expect(private_bounds, reason = "the slots are this crate's business; only its own CPUs have them")]
impl<C: SlotCpu> EpochGrace<C> {
    kmem_sync::const_fn! {
        /// No readers yet.
        pub(crate) fn new(cpu: C) -> Self {
            Self { cpu, epoch: Epoch::new() }
        }
    }

    /// The CPUs whose readers these are.
    pub fn cpu(&self) -> &C {
        &self.cpu
    }

    /// Begins a read-side section: what it can reach when it begins stays valid until the guard is dropped.
    /// Sections nest. Sleeping inside is allowed and holds up every grace period. Never fails; a thread without a CPU pays
    /// an atomic addition.
    #[doc(alias = "rcu_read_lock")]
    #[inline]
    pub fn read_lock(&self) -> RcuReadGuard<'_> {
        let slot = self.cpu.try_pin().and_then(|cpu| self.cpu.slots().get(cpu.index()));
        let place = match slot {
            Some(slot) => {
                self.epoch.enter(&slot.reader);
                Place::Cpu(&slot.reader)
            }
            None => Place::Shared(self.epoch.enter_shared()),
        };
        RcuReadGuard { epoch: &self.epoch, place, not_send: PhantomData }
    }

    /// Forgets readers on threads without a CPU, after a fork.
    #[cfg(not(loom))]
    pub(crate) fn forget_shared(&self) {
        self.epoch.forget_shared();
    }
}

// SAFETY: by the argument of `Epoch`: an epoch two steps on is reached only when every section that ran at the snapshot
// has ended, and `has_passed` acquires the ends of those sections.
unsafe impl<C: SlotCpu> GracePeriod for EpochGrace<C> {
    fn snapshot(&self) -> Grace {
        self.epoch.snapshot()
    }

    fn has_passed(&self, grace: Grace) -> bool {
        let readers = || self.cpu.slots().iter().map(|slot| &slot.reader);
        self.epoch.has_passed(grace, readers, || self.cpu.barrier_all_cpus())
    }

    fn synchronize(&self) {
        let now = self.snapshot();
        while !self.has_passed(now) {
            crate::sys::sched_yield();
        }
    }
}

/// A running read-side section; ends on drop. Not `Send`.
#[derive(Debug)]
#[must_use = "the section ends when the guard is dropped"]
pub struct RcuReadGuard<'a> {
    epoch: &'a Epoch,
    place: Place<'a>,
    not_send: PhantomData<*mut ()>,
}

/// Where a section is counted.
#[derive(Debug)]
enum Place<'a> {
    /// On the CPU that the thread was when it began. It still is: threads keep their CPU until they end, and guards do not
    /// outlive the `on_cpu` call that they were made in.
    Cpu(&'a Reader),
    /// Among the threads without a CPU, under this epoch.
    Shared(u64),
}

impl Drop for RcuReadGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        match self.place {
            Place::Cpu(reader) => self.epoch.exit(reader),
            Place::Shared(epoch) => self.epoch.exit_shared(epoch),
        }
    }
}
