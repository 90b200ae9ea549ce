//! CPUs of the global heap: like a machine's, and cheaper to ask, because there is only one such machine.
//!
//! ```text
//! thread-local heap_cpu ─▶ k < MAX: this thread is the heap's CPU k        one load, one comparison with a constant
//!                          otherwise, out of line: is the heap up? is a CPU free?
//! ```
//!
//! A thread gets a number here only after the heap has been made, so a number also means that the heap is ready.
//!
//! **Fork.** The child gets the memory of all threads and one thread. So before a fork two doors are closed, one after the
//! other (see `fork`): that of the per-CPU sections ([`Cpu::sections_closed`]), and that of sections with a shared
//! lock held (`irq_save`, which every shared lock of the allocators passes). Pushes to and pops from a sheaf pass by both.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kmem_sync::{Cpu, CpuId, IrqState};

use super::row;
use crate::door::Door;
use crate::grace::SlotCpu;
use crate::slots::{Slot, SlotTable};
use crate::thread::{self, NO_HEAP_CPU, relax};
use crate::{barrier, sys};

/// The most CPUs that the heap can have.
pub(crate) const MAX_HEAP_CPUS: usize = 256;

static SLOTS: [Slot; MAX_HEAP_CPUS] = [const { Slot::new() }; MAX_HEAP_CPUS];
/// No slot is free before [`open`].
static TABLE: SlotTable<'static> = SlotTable::new(&SLOTS, 0);
/// How many CPUs the heap has; zero until [`open`].
static NR_CPUS: AtomicU32 = AtomicU32::new(0);

/// Whether per-CPU sections are closed.
static SECTIONS_CLOSED: AtomicBool = AtomicBool::new(false);
/// The door before sections that take shared locks.
static SHARED: Door = Door::new();

/// The CPUs of the global heap.
#[derive(Clone, Copy, Debug)]
pub struct HeapCpu(());

impl HeapCpu {
    /// The one value.
    pub(crate) const fn new() -> Self {
        Self(())
    }
}

/// Says how many CPUs the heap has, at most [`MAX_HEAP_CPUS`], and returns it; until [`serve`] nobody becomes one.
pub(super) fn prepare(nr_cpus: u32) -> u32 {
    let nr_cpus = nr_cpus.clamp(1, MAX_HEAP_CPUS as u32);
    NR_CPUS.store(nr_cpus, Ordering::Release);
    nr_cpus
}

/// The heap is ready: threads may become CPUs.
pub(super) fn serve() {
    TABLE.set_nr_free(NR_CPUS.load(Ordering::Relaxed));
}

/// Gives back the CPU of the ending thread with `token`.
pub(crate) fn leave(token: u64) {
    row::set(None);
    let cpu = thread::with(|thread| thread.heap_cpu.replace(NO_HEAP_CPU));
    if cpu != NO_HEAP_CPU {
        // SAFETY: the calling thread is ending and pinned nowhere.
        unsafe { TABLE.give_back_all(token) };
    }
}

/// The calling thread is no CPU of the heap yet: make it one if that is possible.
#[cold]
#[inline(never)]
fn find_cpu() -> Option<CpuId> {
    if !TABLE.may_have_free() {
        return None;
    }
    let token = thread::token()?;
    // Asking for the token may have come by here and found a CPU already.
    let known = thread::with(|thread| thread.heap_cpu.get());
    if known != NO_HEAP_CPU {
        return Some(CpuId(known));
    }
    let cpu = TABLE.take_any(token, NR_CPUS.load(Ordering::Acquire))?;
    thread::with(|thread| thread.heap_cpu.set(cpu));
    row::set(Some(cpu));
    Some(CpuId(cpu))
}

/// `irq_save` of a section inside another one.
const NESTED: IrqState = IrqState(0);
/// `irq_save` on a CPU: published in its slot.
const ON_CPU: IrqState = IrqState(1);
/// `irq_save` on a thread without a CPU: counted at the door.
const ON_THREAD: IrqState = IrqState(2);

fn slot(cpu: u32) -> Option<&'static Slot> {
    SLOTS.get(cpu as usize)
}

/// Begins a section that takes shared locks, or waits while those are closed.
#[inline]
fn enter_shared() -> IrqState {
    let (depth, cpu) = thread::with(|thread| {
        let depth = thread.shared_depth.get();
        thread.shared_depth.set(depth.wrapping_add(1));
        (depth, thread.heap_cpu.get())
    });
    if depth != 0 {
        return NESTED;
    }
    let slot = slot(cpu);
    while !SHARED.try_enter(slot) {
        wait_for_shared();
    }
    if slot.is_some() { ON_CPU } else { ON_THREAD }
}

#[cold]
fn wait_for_shared() {
    while SHARED.is_closed() {
        sys::sched_yield();
    }
}

/// Ends a section that [`enter_shared`] began.
#[inline]
fn leave_shared(state: IrqState) {
    let cpu = thread::with(|thread| {
        thread.shared_depth.set(thread.shared_depth.get().wrapping_sub(1));
        thread.heap_cpu.get()
    });
    match state {
        ON_CPU => SHARED.leave(slot(cpu)),
        // The thread may have become a CPU meanwhile; it is counted without one.
        ON_THREAD => SHARED.leave(None),
        _ => {}
    }
}

/// Closes the per-CPU sections: whoever enters one from now on finds that and leaves. Runs `wait`, which revokes every slot
/// once and so waits for those that are inside.
///
/// The barrier made here serves all those revocations: a section entered before it is seen to be held, one entered
/// after it sees the door closed.
pub(super) fn close_sections(wait: impl FnOnce()) {
    while SECTIONS_CLOSED.swap(true, Ordering::AcqRel) {
        sys::sched_yield();
    }
    barrier::all_cpus();
    thread::with(|thread| thread.barriers_made.set(true));
    wait();
    thread::with(|thread| thread.barriers_made.set(false));
}

/// Closes the sections with shared locks and waits until every other thread has left its own.
pub(super) fn close_shared() {
    SHARED.close(barrier::all_cpus);
    while !SHARED.is_empty(SLOTS.iter()) {
        relax();
    }
}

/// Opens the sections with shared locks.
pub(super) fn open_shared() {
    SHARED.open();
}

/// Opens the per-CPU sections.
pub(super) fn open_sections() {
    SECTIONS_CLOSED.store(false, Ordering::Release);
}

/// In the child of a fork: takes back the CPUs of the threads that are not there, each after `leave` has run as that
/// CPU. The per-CPU sections are closed, the shared ones open.
pub(super) fn reclaim_orphans(leave: impl Fn()) {
    let own = thread::known_token();
    let cpu = thread::with(|thread| thread.heap_cpu.get());
    let nr = NR_CPUS.load(Ordering::Relaxed);
    let mut nr_free = 0;
    SHARED.forget();
    for (orphan, slot) in (0..nr).zip(&SLOTS).filter(|(_, slot)| own.is_none_or(|own| !slot.is_owned_by(own))) {
        if !slot.is_free() {
            slot.set_inside_shared(false);
            thread::with(|thread| thread.heap_cpu.set(orphan));
            leave();
            thread::with(|thread| thread.heap_cpu.set(cpu));
            // SAFETY: the owner does not exist in this process, and nothing is pinned any more.
            unsafe { slot.give_back() };
        }
        nr_free += 1;
    }
    TABLE.set_nr_free(nr_free);
}

// SAFETY: 1. A thread's number names the slot that it owns from `find_cpu` until its end (or the end of its process's other
// threads in a fork's child); a slot has one owner; ids are below `NR_CPUS` by `take_any`'s limit. 2. Signal handlers must
// not allocate, by the documentation of `HostedAlloc`. 3. Taking a slot acquires what giving it back released. 4. There
// are no interrupts. 5. `barrier::all_cpus`; or `close_sections` has made one that serves.
unsafe impl Cpu for HeapCpu {
    const REENTRANT: bool = false;

    #[inline(always)]
    fn nr_cpus(&self) -> u32 {
        NR_CPUS.load(Ordering::Relaxed)
    }
    #[inline(always)]
    fn try_pin(&self) -> Option<CpuId> {
        let cpu = thread::with(|thread| thread.heap_cpu.get());
        if cpu < MAX_HEAP_CPUS as u32 { Some(CpuId(cpu)) } else { find_cpu() }
    }
    #[inline(always)]
    unsafe fn unpin(&self, _cpu: CpuId) {}
    #[inline]
    fn irq_save(&self) -> IrqState {
        enter_shared()
    }
    #[inline]
    unsafe fn irq_restore(&self, state: IrqState) {
        leave_shared(state);
    }
    #[inline]
    fn relax(&self) {
        relax();
    }
    fn barrier_all_cpus(&self) {
        if !thread::with(|thread| thread.barriers_made.get()) {
            barrier::all_cpus();
        }
    }
    #[inline(always)]
    fn sections_closed() -> bool {
        // Acquire pairs with the release in `open`.
        SECTIONS_CLOSED.load(Ordering::Acquire)
    }
}

impl SlotCpu for HeapCpu {
    fn slots(&self) -> &'static [Slot] {
        SLOTS.get(..self.nr_cpus() as usize).unwrap_or_default()
    }
}
