//! Stalls of a machine or of a group: brackets, aggregation, the view.

use core::alloc::Layout;
use core::fmt;
use core::ptr::NonNull;

use kmem_sync::{Cpu, CpuId, IrqLock};

use crate::psi::average::{Averages, PERIOD_US};
use crate::psi::cpu::CpuPressure;

/// What aggregation keeps.
#[derive(Debug, Default)]
struct Aggregate {
    some_total_us: u64,
    full_total_us: u64,
    some_averaged_us: u64,
    full_averaged_us: u64,
    some: Averages,
    full: Averages,
    last_us: u64,
}

/// A CPU's part on cache lines of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Slot(IrqLock<CpuPressure>);

/// A stall that has begun; given back to [`Psi::leave`]. Fits a word ([`to_raw`](Self::to_raw)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the stall lasts until it is given to `Psi::leave`"]
pub struct Stall {
    cpu: CpuId,
    /// Whether the task counted as working before.
    worked: bool,
}

impl Stall {
    /// The stall as a word.
    pub fn to_raw(self) -> usize {
        (self.cpu.index() << 1) | usize::from(self.worked)
    }

    /// The stall of a word from [`to_raw`](Self::to_raw).
    pub fn from_raw(raw: usize) -> Self {
        Self { cpu: CpuId((raw >> 1) as u32), worked: raw & 1 == 1 }
    }
}

/// The pressure at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Averages of the time in which somebody was stalled.
    pub some: Averages,
    /// Averages of the time in which everybody was.
    pub full: Averages,
    /// All time in which somebody was stalled, in microseconds.
    pub some_total_us: u64,
    /// All time in which everybody was.
    pub full_total_us: u64,
}

impl fmt::Display for Pressure {
    /// The two lines of `/proc/pressure/memory`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = [("some", &self.some, self.some_total_us), ("full", &self.full, self.full_total_us)];
        for (name, averages, total) in lines {
            let [(a, a2), (b, b2), (c, c2)] = averages.digits();
            writeln!(f, "{name} avg10={a}.{a2:02} avg60={b}.{b2:02} avg300={c}.{c2:02} total={total}")?;
        }
        Ok(())
    }
}

/// The stalls of a machine, or of a memory cgroup.
///
/// All calls are legal in every context but NMI, cost a lock of one CPU's own (reading: of each CPU in turn), and take the
/// time from the caller, in microseconds of a monotonic clock.
///
/// # Invariants
/// `slots` points to `nr_cpus` initialised slots that live as long as this value.
#[derive(Debug)]
pub struct Psi<C> {
    cpu: C,
    slots: NonNull<Slot>,
    nr_cpus: u32,
    aggregate: IrqLock<Aggregate>,
}

// SAFETY: gives out shared references to slots, which are locks around plain data.
unsafe impl<C: Sync> Sync for Psi<C> {}
// SAFETY: nothing is tied to the creating thread.
unsafe impl<C: Send> Send for Psi<C> {}

impl<C: Cpu> Psi<C> {
    /// The memory for `nr_cpus` CPUs; `None` on overflow.
    pub fn layout(nr_cpus: u32) -> Option<Layout> {
        Layout::array::<Slot>(nr_cpus as usize).ok()
    }

    /// No stalls so far.
    ///
    /// # Safety
    /// `memory` has the [`layout`](Self::layout) for as many CPUs as `cpu` has, and is the result's alone for as long as
    /// that is used.
    pub unsafe fn new(cpu: C, memory: NonNull<u8>, now_us: u64) -> Self {
        let nr_cpus = cpu.nr_cpus();
        let slots = memory.cast::<Slot>();
        for index in 0..nr_cpus as usize {
            // SAFETY: inside the memory that the caller gave, aligned by its layout.
            unsafe { slots.add(index).write(Slot(IrqLock::new(CpuPressure::new(now_us)))) };
        }
        // INVARIANT: all slots have just been written.
        let aggregate = Aggregate { last_us: now_us, ..Aggregate::default() };
        Self { cpu, slots, nr_cpus, aggregate: IrqLock::new(aggregate) }
    }

    /// Books the time so far and changes a CPU's counts.
    fn change<R>(&self, id: CpuId, now_us: u64, change: impl FnOnce(&mut CpuPressure) -> R) -> Option<R> {
        if id.0 >= self.nr_cpus {
            return None;
        }
        // SAFETY: below `nr_cpus` (type invariant).
        let slot = unsafe { self.slots.add(id.index()).as_ref() };
        Some(slot.0.with(&self.cpu, |pressure| {
            pressure.book(now_us);
            change(pressure)
        }))
    }

    /// A task begins or wakes to work on `cpu`; the scheduler says so, if it does at all.
    pub fn start_work(&self, cpu: CpuId, now_us: u64) {
        self.change(cpu, now_us, |pressure| pressure.working = pressure.working.saturating_add(1));
    }

    /// A task that worked on `cpu` sleeps, ends or moves.
    pub fn end_work(&self, cpu: CpuId, now_us: u64) {
        self.change(cpu, now_us, |pressure| pressure.working = pressure.working.saturating_sub(1));
    }

    /// The running task on `cpu` is held up by a shortage of memory from here on. It counts as stalled there until
    /// [`leave`](Self::leave), wherever it is by then.
    #[doc(alias = "psi_memstall_enter")]
    pub fn enter(&self, cpu: CpuId, now_us: u64) -> Stall {
        let worked = self.change(cpu, now_us, |pressure| {
            pressure.stalled = pressure.stalled.saturating_add(1);
            let worked = pressure.working > 0;
            pressure.working -= u32::from(worked);
            worked
        });
        Stall { cpu, worked: worked.unwrap_or(false) }
    }

    /// The stall is over. `cpu` is where the task runs now.
    #[doc(alias = "psi_memstall_leave")]
    pub fn leave(&self, stall: Stall, cpu: CpuId, now_us: u64) {
        self.change(stall.cpu, now_us, |pressure| pressure.stalled = pressure.stalled.saturating_sub(1));
        if stall.worked {
            self.start_work(cpu, now_us);
        }
    }

    /// Adds up the CPUs' times and, when a period has passed, the averages; returns the pressure. Called by readers, and
    /// every two seconds by whoever wants averages without gaps.
    pub fn update(&self, now_us: u64) -> Pressure {
        self.aggregate.with(&self.cpu, |sum| {
            // Each CPU counts as much as it was busy: an idle one neither loses nor saves time.
            let (mut some, mut full, mut busy) = (0u128, 0u128, 0u128);
            for id in (0..self.nr_cpus).map(CpuId) {
                if let Some(news) = self.change(id, now_us, |pressure| pressure.collect(now_us)) {
                    some += u128::from(news.some) * u128::from(news.busy);
                    full += u128::from(news.full) * u128::from(news.busy);
                    busy += u128::from(news.busy);
                }
            }
            let weighed = |time: u128| u64::try_from(time / busy.max(1)).unwrap_or(u64::MAX);
            sum.some_total_us = sum.some_total_us.wrapping_add(weighed(some));
            sum.full_total_us = sum.full_total_us.wrapping_add(weighed(full));
            let elapsed = now_us.saturating_sub(sum.last_us);
            if elapsed >= PERIOD_US {
                let missed = elapsed / PERIOD_US - 1;
                let period = elapsed - missed * PERIOD_US;
                let some_lost = sum.some_total_us.wrapping_sub(sum.some_averaged_us);
                let full_lost = sum.full_total_us.wrapping_sub(sum.full_averaged_us);
                sum.some.update(missed, some_lost, period);
                sum.full.update(missed, full_lost, period);
                sum.some_averaged_us = sum.some_total_us;
                sum.full_averaged_us = sum.full_total_us;
                sum.last_us = now_us;
            }
            Pressure {
                some: sum.some,
                full: sum.full,
                some_total_us: sum.some_total_us,
                full_total_us: sum.full_total_us,
            }
        })
    }
}

/// Begins a stall in each of several places: the machine, and the groups from the task's own up. Stalls are written to
/// `stalls`, one for each place that it has room for.
pub fn enter_all<'a, C: Cpu + 'a>(
    places: impl Iterator<Item = &'a Psi<C>>,
    cpu: CpuId,
    now_us: u64,
    stalls: &mut [Option<Stall>],
) {
    for (place, stall) in places.zip(stalls) {
        *stall = Some(place.enter(cpu, now_us));
    }
}

/// Ends what [`enter_all`] began in the same places.
pub fn leave_all<'a, C: Cpu + 'a>(
    places: impl Iterator<Item = &'a Psi<C>>,
    cpu: CpuId,
    now_us: u64,
    stalls: &mut [Option<Stall>],
) {
    for (place, stall) in places.zip(stalls) {
        if let Some(stall) = stall.take() {
            place.leave(stall, cpu, now_us);
        }
    }
}
