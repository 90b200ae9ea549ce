//! Values per CPU: the fast path's home.
//!
//! ```text
//! PerCpu ──▶ ┌ CpuSlot 0 ────────┐┌ CpuSlot 1 ────────┐ ...   one cache line (or more) each, never shared
//!            │ LocalLock │ value ││ LocalLock │ value │
//!            └───────────────────┘└───────────────────┘
//! ```

use core::alloc::Layout;
use core::ptr::NonNull;

use crate::{Cpu, CpuId, LocalLock, Pinned, UnsafeCell, const_fn};

/// One CPU's value behind its local trylock, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct CpuSlot<T> {
    lock: LocalLock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached only inside the lock's sections, of which at most one exists at a time (invariant 2 of
// `LocalLock`), and their order is a happens-before order (promise 3 of `Cpu`, acquire and release in `LocalLock`).
unsafe impl<T: Send> Sync for CpuSlot<T> {}
// SAFETY: moving a slot moves its value.
unsafe impl<T: Send> Send for CpuSlot<T> {}

impl<T> CpuSlot<T> {
    const_fn! {
        /// A slot with its first value.
        pub fn new(value: T) -> Self {
            Self { lock: LocalLock::new(), value: UnsafeCell::new(value) }
        }
    }

    /// Runs `f` on the value if the local trylock can be had; `None` if this CPU is inside already, or a revoker is.
    ///
    /// # Safety
    /// The caller is pinned to the CPU that this slot belongs to, for the whole call.
    #[inline(always)]
    pub unsafe fn try_with<C: Cpu, R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        // SAFETY: the caller is pinned to this slot's CPU.
        if !unsafe { self.lock.try_enter::<C>() } {
            return None;
        }
        // SAFETY: inside the section nobody else has a reference (invariant 2 of `LocalLock`).
        let result = self.value.with_mut(|value| f(unsafe { &mut *value }));
        // SAFETY: entered above. A panic in `f` leaves the section entered: this CPU then always takes its slower path.
        unsafe { self.lock.exit() };
        Some(result)
    }

    /// The value without entering, for models of who may be inside.
    #[cfg(all(loom, test))]
    pub(crate) fn peek(&self) -> T
    where
        T: Copy,
    {
        // SAFETY: loom checks that nobody writes meanwhile.
        self.value.with(|value| unsafe { *value })
    }

    /// Runs `f` on the value from any CPU, shutting its owner out meanwhile. Slow: a barrier on all CPUs.
    /// Same duties as [`LocalLock::revoke`].
    pub fn with_revoked<C: Cpu, R>(&self, cpu: &C, f: impl FnOnce(&mut T) -> R) -> R {
        self.lock.revoke(cpu);
        // SAFETY: revoked, so nobody else has a reference (invariant 2 of `LocalLock`).
        let result = self.value.with_mut(|value| f(unsafe { &mut *value }));
        // SAFETY: revoked above.
        unsafe { self.lock.unrevoke() };
        result
    }
}

/// An array of [`CpuSlot`]s in memory that the owner placed.
///
/// # Invariants
/// `slots` points to `nr` initialised slots that live as long as this value; slot `i` belongs to CPU `i`.
#[derive(Debug)]
pub struct PerCpu<T> {
    slots: NonNull<CpuSlot<T>>,
    nr: u32,
}

// SAFETY: gives out shared references to slots, which are `Sync` under the same bound.
unsafe impl<T: Send> Sync for PerCpu<T> {}
// SAFETY: as above; nothing is tied to the creating thread.
unsafe impl<T: Send> Send for PerCpu<T> {}

impl<T> PerCpu<T> {
    /// The memory that `nr` slots need.
    pub const fn layout(nr: u32) -> Option<Layout> {
        let one = Layout::new::<CpuSlot<T>>();
        match one.size().checked_mul(nr as usize) {
            Some(size) => match Layout::from_size_align(size, one.align()) {
                Ok(layout) => Some(layout),
                Err(_) => None,
            },
            None => None,
        }
    }

    const_fn! {
        /// No slots: every access fails and takes its slower path. For statics that are filled in later.
        pub fn empty() -> Self {
            Self { slots: NonNull::dangling(), nr: 0 }
        }
    }

    /// Writes `nr` slots into `memory`, each with the value `init` gives it.
    ///
    /// # Safety
    /// `memory` has [`layout(nr)`](Self::layout), is unused, and stays the result's alone for as long as it is used.
    pub unsafe fn init(memory: NonNull<u8>, nr: u32, mut init: impl FnMut(CpuId) -> T) -> Self {
        let slots = memory.cast::<CpuSlot<T>>();
        for id in 0..nr {
            // SAFETY: inside the memory that the caller gave, aligned by its layout.
            unsafe { slots.add(id as usize).write(CpuSlot::new(init(CpuId(id)))) };
        }
        // INVARIANT: all `nr` slots have just been written.
        Self { slots, nr }
    }

    /// How many slots there are.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.nr
    }

    /// Whether there is no slot at all.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.nr == 0
    }

    /// The memory given to [`init`](Self::init), for the owner who wants to give it back.
    pub fn memory(&self) -> NonNull<u8> {
        self.slots.cast()
    }

    /// The slot of `cpu`.
    #[inline(always)]
    pub fn slot(&self, cpu: CpuId) -> Option<&CpuSlot<T>> {
        if cpu.0 >= self.nr {
            return None;
        }
        // SAFETY: below `nr`, so it points to an initialised slot (type invariant).
        Some(unsafe { self.slots.add(cpu.index()).as_ref() })
    }

    /// Every slot, in CPU order.
    pub fn iter(&self) -> impl Iterator<Item = (CpuId, &CpuSlot<T>)> {
        (0..self.nr).filter_map(|id| self.slot(CpuId(id)).map(|slot| (CpuId(id), slot)))
    }

    /// Pins the running CPU and runs `f` on its value. `None` (with `f` not run) if there is no CPU, no slot for it,
    /// the section is being interrupted, or a revoker has it: take the slower path.
    #[inline(always)]
    pub fn try_with<C: Cpu, R>(&self, cpu: &C, f: impl FnOnce(&mut T, CpuId) -> R) -> Option<R> {
        let pin = Pinned::new(cpu)?;
        let id = pin.id();
        // SAFETY: pinned to `id` until `pin` is dropped, and slot `id` belongs to CPU `id` (type invariant).
        unsafe { self.slot(id)?.try_with::<C, R>(|value| f(value, id)) }
    }
}
