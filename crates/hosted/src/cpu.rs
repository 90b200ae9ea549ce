//! CPUs of a machine: which one the calling thread is.
//!
//! ```text
//! thread-local machine_cpu = 0x5_0003         machine A: base 0x5_0000, 8 CPUs
//!                 └─ minus base ─▶ 3 < 8: this thread is A's CPU 3        one load, one subtraction, one comparison
//!                                  otherwise, out of line: does it own a CPU of A all the same? can it have one?
//! ```
//!
//! Every machine has CPU numbers of its own in the process, so one word says both which machine and which CPU, and a word
//! left over from a machine that is gone means nothing to any other.

use core::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kmem_sync::{Cpu, CpuId, IrqState};

use crate::slots::{Slot, SlotTable};
use crate::thread::{self, NO_MACHINE_CPU};
use crate::{barrier, thread::relax};

/// log2 of the most CPUs that a machine can have.
const CPU_BITS: u32 = 16;

/// The most CPUs that a machine can have.
pub const MAX_CPUS: u32 = 1 << CPU_BITS;

/// Which threads become CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Binding {
    /// Every thread that needs a CPU takes the first free one and keeps it until it ends. Threads beyond the number of
    /// CPUs work on the shared structures, and take a CPU that becomes free when they next need one.
    #[default]
    OnDemand,
    /// Threads are CPUs only inside [`HostCpu::on_cpu`].
    ByName,
}

/// Why a thread cannot run as a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The machine has no such CPU.
    #[error("{cpu} does not exist: the machine has {nr_cpus} CPUs")]
    NoSuchCpu {
        /// The CPU asked for.
        cpu: CpuId,
        /// How many there are.
        nr_cpus: u32,
    },
    /// Another thread has become this CPU for the rest of its life ([`Binding::OnDemand`]).
    #[error("{0} belongs to another thread for the rest of its life; bind by name only")]
    Owned(CpuId),
    /// The calling thread is ending and can own nothing any more.
    #[error("the thread is ending")]
    Exiting,
}

/// The CPUs of one machine, as [`Cpu`] wants them.
///
/// Copies are handles to the same CPUs. Signal handlers must not allocate: [`REENTRANT`](Cpu::REENTRANT) is `false`.
#[derive(Clone, Copy)]
pub struct HostCpu {
    base: u64,
    nr_cpus: u32,
    binding: Binding,
    table: &'static SlotTable<'static>,
}

impl fmt::Debug for HostCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostCpu").field("nr_cpus", &self.nr_cpus).field("binding", &self.binding).finish()
    }
}

/// The machines whose CPUs a thread may own, and the next machine's number.
struct Machines {
    next: u64,
    tables: Vec<(u64, &'static SlotTable<'static>)>,
}

fn machines() -> MutexGuard<'static, Machines> {
    static MACHINES: Mutex<Machines> = Mutex::new(Machines { next: 1, tables: Vec::new() });
    // Nothing that holds the lock leaves the list half changed.
    MACHINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives back every CPU of every machine that the ending thread with `token` owns.
pub(crate) fn release_all(token: u64) {
    for (_, table) in &machines().tables {
        // SAFETY: the calling thread is ending, its stack is gone, and a guard that it forgot pins nothing any more.
        unsafe { table.give_back_all(token) };
    }
}

impl HostCpu {
    /// New CPUs over `table`, whose slots are all free.
    pub(crate) fn new(table: &'static SlotTable<'static>, binding: Binding) -> Self {
        let mut machines = machines();
        let base = machines.next << CPU_BITS;
        machines.next += 1;
        machines.tables.push((base, table));
        let nr_cpus = u32::try_from(table.slots().len()).unwrap_or(MAX_CPUS).min(MAX_CPUS);
        Self { base, nr_cpus, binding, table }
    }

    /// Forgets the machine: ending threads do not look at its table any more.
    ///
    /// # Safety
    /// No thread uses the machine any more.
    pub(crate) unsafe fn retire(&self) {
        machines().tables.retain(|(base, _)| *base != self.base);
    }

    /// Every CPU's slot.
    #[inline(always)]
    pub(crate) fn slots(&self) -> &'static [Slot] {
        self.table.slots()
    }

    /// Which CPU the calling thread is at the moment, if it is one.
    #[inline(always)]
    fn current(&self) -> Option<CpuId> {
        let cpu = thread::with(|thread| thread.machine_cpu.get()).wrapping_sub(self.base);
        // A word with this machine's base names one of its CPUs, so the width of the numbers is all there is to compare.
        if cpu < 1 << CPU_BITS { Some(CpuId(cpu as u32)) } else { None }
    }

    /// The thread's last word was not about this machine: it may be a CPU here all the same, or become one.
    #[cold]
    #[inline(never)]
    fn find_cpu(&self) -> Option<CpuId> {
        if thread::with(|thread| thread.is_service.get()) {
            return None;
        }
        let denied = thread::with(|thread| thread.denied_by.get() == self.base);
        if denied && !self.table.may_have_free() {
            return None;
        }
        let cpu = self.owned_cpu().or_else(|| self.take_cpu());
        thread::with(|thread| match cpu {
            Some(cpu) => thread.machine_cpu.set(self.base + u64::from(cpu.0)),
            None => thread.denied_by.set(self.base),
        });
        cpu
    }

    /// A CPU that the thread owns; one taken by name comes first.
    fn owned_cpu(&self) -> Option<CpuId> {
        let token = thread::known_token()?;
        let mut owned = (0..).map(CpuId).zip(self.slots()).filter(|(_, slot)| slot.is_owned_by(token));
        let (first, slot) = owned.next()?;
        if slot.is_taken_by_name() {
            return Some(first);
        }
        owned.find(|(_, slot)| slot.is_taken_by_name()).map(|(cpu, _)| cpu).or(Some(first))
    }

    /// A free CPU for the rest of the thread's life.
    fn take_cpu(&self) -> Option<CpuId> {
        if self.binding == Binding::ByName {
            return None;
        }
        let token = thread::token()?;
        let cpu = self.table.take_any(token, self.nr_cpus)?;
        thread::with(|thread| thread.met_machines.set(true));
        Some(CpuId(cpu))
    }

    /// Runs `f` with the calling thread as CPU `cpu`, waiting while another thread is that CPU by name. Calls nest; the
    /// thread is what it was before when the call returns. About as dear as an uncontended lock.
    ///
    /// ```
    /// use kmem_hosted::{Binding, Machine};
    /// use kmem_hosted::{Cpu, CpuId};
    ///
    /// let machine = Machine::builder().cpus(4).binding(Binding::ByName).boot()?;
    /// // SAFETY: nothing stays pinned.
    /// let seen = unsafe { machine.cpu().on_cpu(CpuId(3), || machine.cpu().try_pin()) }?;
    /// assert_eq!(seen, Some(CpuId(3)));
    /// assert_eq!(machine.cpu().try_pin(), None, "no CPU outside");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Safety
    /// A [`Pinned`](kmem_sync::Pinned) or [`RcuReadGuard`](crate::RcuReadGuard) that `f` makes does not outlive the call:
    /// the CPU is another thread's afterwards.
    ///
    /// # Errors
    /// [`BindError::NoSuchCpu`]; [`BindError::Owned`] if the CPU can never be had; [`BindError::Exiting`].
    pub unsafe fn on_cpu<R>(&self, cpu: CpuId, f: impl FnOnce() -> R) -> Result<R, BindError> {
        let slot = self.slots().get(cpu.index()).ok_or(BindError::NoSuchCpu { cpu, nr_cpus: self.nr_cpus })?;
        let token = thread::token().ok_or(BindError::Exiting)?;
        let taken = !slot.is_owned_by(token);
        if taken {
            while !slot.try_take(token, true) {
                if slot.is_taken_for_life() {
                    return Err(BindError::Owned(cpu));
                }
                relax();
            }
        }
        let word = self.base + u64::from(cpu.0);
        let before = thread::with(|thread| {
            thread.met_machines.set(true);
            thread.machine_cpu.replace(word)
        });
        let _back = BackTo { slot: taken.then_some(slot), before };
        Ok(f())
    }
}

/// What the thread was before [`HostCpu::on_cpu`]; restored on drop, so also when the closure panics.
struct BackTo {
    slot: Option<&'static Slot>,
    before: u64,
}

impl Drop for BackTo {
    fn drop(&mut self) {
        thread::with(|thread| thread.machine_cpu.set(self.before));
        if let Some(slot) = self.slot {
            // SAFETY: taken by this thread in `on_cpu`, by whose contract nothing is pinned any more.
            unsafe { slot.give_back() };
        }
    }
}

// SAFETY: 1. A thread's word names a CPU of this machine only while it owns that slot (`take_cpu`, `on_cpu`), a slot has
// one owner, and slots are given back only at thread exit or at the end of `on_cpu`, when nothing is pinned. Ids are below
// `nr_cpus` by the comparison in `current` and the length of the table. 2. Signal handlers must not allocate, by the
// type's documentation. 3. Taking a slot acquires what giving it back released; one owner is one thread. 4. There are no
// interrupts. 5. `barrier::all_cpus`; threads that do not run have passed through the host's scheduler.
unsafe impl Cpu for HostCpu {
    const REENTRANT: bool = false;

    #[inline(always)]
    fn nr_cpus(&self) -> u32 {
        self.nr_cpus
    }
    #[inline(always)]
    fn try_pin(&self) -> Option<CpuId> {
        match self.current() {
            Some(cpu) => Some(cpu),
            None => self.find_cpu(),
        }
    }
    #[inline(always)]
    fn try_pin_quick(&self) -> Option<CpuId> {
        self.current()
    }
    #[inline(always)]
    fn try_pin_number(&self) -> usize {
        // Words of other machines, and of none, are at least `1 << CPU_BITS` away from this machine's base.
        thread::with(|thread| thread.machine_cpu.get()).wrapping_sub(self.base) as usize
    }
    #[inline(always)]
    unsafe fn unpin(&self, _cpu: CpuId) {}
    #[inline(always)]
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    #[inline(always)]
    unsafe fn irq_restore(&self, _state: IrqState) {}
    #[inline]
    fn relax(&self) {
        relax();
    }
    fn barrier_all_cpus(&self) {
        barrier::all_cpus();
    }
}

const _: () = assert!(NO_MACHINE_CPU == u64::MAX, "no machine's numbers reach the highest word");
