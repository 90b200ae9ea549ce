//! The platform's CPUs, seen from an allocator.

use core::fmt;
use core::marker::PhantomData;

/// The number of a CPU, `0..Cpu::nr_cpus()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct CpuId(pub u32);

impl CpuId {
    /// The number as an index.
    #[inline(always)]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for CpuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cpu{}", self.0)
    }
}

/// What [`Cpu::irq_save`] found, for [`Cpu::irq_restore`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IrqState(pub usize);

/// Which CPU runs this code, how to stay on it, and how to keep its interrupts out.
///
/// Usually a zero-sized type whose methods read a register or a thread-local word. All calls are legal in every
/// context, NMI included.
///
/// # Safety
/// Implementors promise:
/// 1. Between a successful [`try_pin`](Cpu::try_pin) (or [`try_pin_quick`](Cpu::try_pin_quick), or
///    [`try_pin_number`](Cpu::try_pin_number)) and its [`unpin`](Cpu::unpin) no other context of execution
///    is pinned to the same [`CpuId`], except one that interrupts the pinned context and runs to completion (or to
///    its own unpin) before that one continues. The id is below [`nr_cpus`](Cpu::nr_cpus).
/// 2. If [`REENTRANT`](Cpu::REENTRANT) is `false`, such interruptions never pin.
/// 3. Everything done while pinned to a CPU happens before everything done by the next context pinned to it.
/// 4. Between [`irq_save`](Cpu::irq_save) and [`irq_restore`](Cpu::irq_restore) no interrupt handler (NMI excepted)
///    that uses an allocator runs on this CPU.
/// 5. When [`barrier_all_cpus`](Cpu::barrier_all_cpus) returns, every CPU has executed a full memory barrier since
///    the call (an inter-processor interrupt, or the host's `membarrier`), the calling one included.
pub unsafe trait Cpu {
    /// Whether a pinned section can be interrupted by code that pins the same CPU. With `false` the local trylock
    /// saves its re-entry test.
    const REENTRANT: bool = true;

    /// How many CPUs there are or ever will be; constant.
    fn nr_cpus(&self) -> u32;

    /// Stays on the current CPU and says which it is. `None` if this context has no CPU of its own at the moment
    /// (a hosted thread without a slot): the caller takes its shared path, as after a failed trylock.
    fn try_pin(&self) -> Option<CpuId>;

    /// As [`try_pin`](Cpu::try_pin), but `None` as well if finding the CPU takes more than a look: fast paths ask this way
    /// and leave the rest to their slower path, which asks again in full.
    #[inline(always)]
    fn try_pin_quick(&self) -> Option<CpuId> {
        self.try_pin()
    }

    /// As [`try_pin_quick`](Cpu::try_pin_quick), as a plain number: the CPU's if the context is pinned behind the call,
    /// and otherwise any that is not below [`nr_cpus`](Cpu::nr_cpus). Whoever compares it with a number of CPUs anyway saves a
    /// comparison.
    #[inline(always)]
    fn try_pin_number(&self) -> usize {
        self.try_pin_quick().map_or(usize::MAX, CpuId::index)
    }

    /// Ends the innermost pinned section.
    ///
    /// # Safety
    /// `cpu` came from the innermost [`try_pin`](Cpu::try_pin), [`try_pin_quick`](Cpu::try_pin_quick) or
    /// [`try_pin_number`](Cpu::try_pin_number) of this context that has not been unpinned.
    unsafe fn unpin(&self, cpu: CpuId);

    /// Switches this CPU's interrupts off and returns how they were.
    fn irq_save(&self) -> IrqState;

    /// Restores what [`irq_save`](Cpu::irq_save) returned.
    ///
    /// # Safety
    /// `state` is from the innermost [`irq_save`](Cpu::irq_save) not yet restored, on the same CPU.
    unsafe fn irq_restore(&self, state: IrqState);

    /// Waits a moment inside a spin loop.
    #[inline]
    fn relax(&self) {
        crate::hint::spin_loop();
    }

    /// Makes every CPU execute a full memory barrier. Slow (microseconds); may be called with interrupts on only.
    fn barrier_all_cpus(&self);

    /// Whether every local section of every CPU is closed at the moment, so that callers take their shared path. Asked on
    /// entering, after the section has been marked as held: whoever closes them, makes a
    /// [barrier](Self::barrier_all_cpus) and then [revokes](crate::CpuSlot::with_revoked) a slot once, knows that nobody is
    /// inside it or enters it until they are opened. Sections entered
    /// [without a look for a revoker](crate::LocalLock::try_enter_unrevoked) do not ask: each step of theirs must leave a
    /// state that another context can go on from. A process that forks wants this; for all others it is constant.
    #[inline(always)]
    fn sections_closed() -> bool {
        false
    }
}

// SAFETY: forwards to an implementation that keeps the promises.
unsafe impl<C: Cpu> Cpu for &C {
    const REENTRANT: bool = C::REENTRANT;

    #[inline(always)]
    fn nr_cpus(&self) -> u32 {
        (**self).nr_cpus()
    }
    #[inline(always)]
    fn try_pin(&self) -> Option<CpuId> {
        (**self).try_pin()
    }
    #[inline(always)]
    fn try_pin_quick(&self) -> Option<CpuId> {
        (**self).try_pin_quick()
    }
    #[inline(always)]
    fn try_pin_number(&self) -> usize {
        (**self).try_pin_number()
    }
    #[inline(always)]
    unsafe fn unpin(&self, cpu: CpuId) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).unpin(cpu) }
    }
    #[inline(always)]
    fn irq_save(&self) -> IrqState {
        (**self).irq_save()
    }
    #[inline(always)]
    unsafe fn irq_restore(&self, state: IrqState) {
        // SAFETY: the caller's promise is the same.
        unsafe { (**self).irq_restore(state) }
    }
    #[inline(always)]
    fn relax(&self) {
        (**self).relax();
    }
    fn barrier_all_cpus(&self) {
        (**self).barrier_all_cpus();
    }
    #[inline(always)]
    fn sections_closed() -> bool {
        C::sections_closed()
    }
}

/// A section pinned to one CPU; unpins on drop. Not `Send`.
#[derive(Debug)]
pub struct Pinned<'a, C: Cpu> {
    cpu: &'a C,
    id: CpuId,
    not_send: PhantomData<*mut ()>,
}

impl<'a, C: Cpu> Pinned<'a, C> {
    /// Pins the running context, or `None` if it has no CPU (see [`Cpu::try_pin`]).
    #[inline(always)]
    pub fn new(cpu: &'a C) -> Option<Self> {
        let id = cpu.try_pin()?;
        Some(Self { cpu, id, not_send: PhantomData })
    }

    /// As [`new`](Self::new) by way of [`Cpu::try_pin_quick`].
    #[inline(always)]
    pub fn quick(cpu: &'a C) -> Option<Self> {
        let id = cpu.try_pin_quick()?;
        Some(Self { cpu, id, not_send: PhantomData })
    }

    /// The CPU this context stays on.
    #[inline(always)]
    pub fn id(&self) -> CpuId {
        self.id
    }
}

impl<C: Cpu> Drop for Pinned<'_, C> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `id` came from `try_pin` in `new`; guards are dropped innermost first because they are not `Send`
        // and hold a borrow. A forgotten guard leaves the context pinned, which is safe.
        unsafe { self.cpu.unpin(self.id) }
    }
}

/// Interrupts of this CPU are off until drop. Not `Send`.
#[derive(Debug)]
pub struct IrqGuard<'a, C: Cpu> {
    cpu: &'a C,
    state: IrqState,
    not_send: PhantomData<*mut ()>,
}

impl<'a, C: Cpu> IrqGuard<'a, C> {
    /// Switches interrupts off.
    #[inline(always)]
    pub fn new(cpu: &'a C) -> Self {
        Self { cpu, state: cpu.irq_save(), not_send: PhantomData }
    }
}

impl<C: Cpu> Drop for IrqGuard<'_, C> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: `state` came from `irq_save` in `new`, on this CPU: interrupts off means no migration, and the guard
        // is not `Send`.
        unsafe { self.cpu.irq_restore(self.state) }
    }
}

/// A machine with one CPU and no interrupts: firmware, boot loaders, examples.
#[derive(Clone, Copy, Debug, Default)]
pub struct SingleCpu(());

impl SingleCpu {
    /// One CPU.
    ///
    /// # Safety
    /// Only one context of execution ever uses allocators built over any copy of this value, and interrupt handlers
    /// do not.
    pub const unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY: by the promise of `SingleCpu::new` there is one context, so pins never overlap (1, 2, 3), no handler
// allocates (4), and program order is the only order there is (5).
unsafe impl Cpu for SingleCpu {
    const REENTRANT: bool = false;

    #[inline(always)]
    fn nr_cpus(&self) -> u32 {
        1
    }
    #[inline(always)]
    fn try_pin(&self) -> Option<CpuId> {
        Some(CpuId(0))
    }
    #[inline(always)]
    unsafe fn unpin(&self, _cpu: CpuId) {}
    #[inline(always)]
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    #[inline(always)]
    unsafe fn irq_restore(&self, _state: IrqState) {}
    #[inline(always)]
    fn barrier_all_cpus(&self) {}
}
