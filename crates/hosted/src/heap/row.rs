//! Rows: where each thread finds the sheaves of its CPU, one slot for each small class.
//!
//! ```text
//! thread-local ROW ─▶ row of CPU k ─▶ [class] ─▶ slot ─▶ sheaf          rows are filled when the heap is made
//!                └──▶ NO_ROW, on threads without a CPU: [class] ─▶ IDLE, which has nothing and takes nothing
//! ```
//!
//! So neither "is the heap up" nor "is this thread a CPU" is a test of its own on the fast path: both end in an empty sheaf.

use std::cell::{Cell, UnsafeCell};

use kmem_slab::{IdleSlot, KmemCache, SheafSlot};
use kmem_sync::CpuId;

use super::class::{SMALL_CLASSES, SmallClass};
use super::cpu::MAX_HEAP_CPUS;

static IDLE: IdleSlot = IdleSlot::new();

/// The slots of one CPU.
#[derive(Debug)]
#[repr(transparent)]
pub(super) struct Row([SheafSlot; SMALL_CLASSES]);

/// The row of threads that are no CPU.
static NO_ROW: Row = Row([IDLE.slot(); SMALL_CLASSES]);

impl Row {
    /// The slot of a class.
    #[inline(always)]
    pub(super) fn slot(&self, class: SmallClass) -> SheafSlot {
        // SAFETY: a small class is below `SMALL_CLASSES` (its invariant).
        unsafe { *self.0.get_unchecked(class.index()) }
    }
}

/// The rows of all CPUs. Zero until [`enter`] writes them: a null slot is `None`.
struct Rows(UnsafeCell<[[Option<SheafSlot>; SMALL_CLASSES]; MAX_HEAP_CPUS]>);

// SAFETY: written only while the heap is being made, by one thread; a thread reads the row of its CPU, which it gets only
// after that (`cpu::serve` releases, taking a slot acquires).
unsafe impl Sync for Rows {}

static ROWS: Rows = Rows(UnsafeCell::new([const { [None; SMALL_CLASSES] }; MAX_HEAP_CPUS]));

thread_local! {
    static ROW: Cell<&'static Row> = const { Cell::new(&NO_ROW) };
}

/// Enters the cache of a small class for the first `nr_cpus` CPUs.
///
/// # Safety
/// No thread is a CPU yet, and nobody else enters a cache.
pub(super) unsafe fn enter(class: usize, cache: &'static KmemCache, nr_cpus: u32) {
    for cpu in 0..nr_cpus.min(MAX_HEAP_CPUS as u32) {
        let slot = cache.sheaf_slot(CpuId(cpu)).unwrap_or(IDLE.slot());
        // SAFETY: the caller is alone with the rows.
        let rows = unsafe { &mut *ROWS.0.get() };
        if let Some(entry) = rows.get_mut(cpu as usize).and_then(|row| row.get_mut(class)) {
            *entry = Some(slot);
        }
    }
}

/// The calling thread is CPU `cpu` from now on, or none.
pub(super) fn set(cpu: Option<u32>) {
    // SAFETY: no longer written once a thread has a CPU (`Rows`).
    let rows = unsafe { &*ROWS.0.get() };
    let row = cpu.and_then(|cpu| rows.get(cpu as usize)).filter(|row| row.iter().all(Option::is_some));
    // SAFETY: `Row` is an array of slots, each the size of an `Option` of it that is `Some`, as all of these are.
    let row = row.map_or(&NO_ROW, |row| unsafe { &*std::ptr::from_ref(row).cast::<Row>() });
    ROW.with(|current| current.set(row));
}

/// The calling thread's slot of a class.
#[inline(always)]
pub(super) fn slot(class: SmallClass) -> SheafSlot {
    ROW.with(|row| row.get().slot(class))
}
