//! The per-CPU slots of a cache: who may touch which sheaf, and how a CPU is shut out.
//!
//! ```text
//! Slot │ lock │ main ──▶ sheaf │ owner word │ rest: spare, rcu, batch │      one cache line a CPU
//!
//! fast section   held = 1; main = load; pop or push; held = 0              no look for a revoker
//! slow section   local trylock; main = swap(none); anything; swap back
//! revoker        local lock revoked; main = swap(none); barrier; wait for held == 0; again if a slow section put one back
//! ```
//!
//! A sheaf is reached by a fast section only through `main`, so whoever swaps `main` for the sheaf without room and then
//! waits for sections to end has the sheaf alone. That spares the fast section the test for a revoker.

use core::alloc::Layout;
use core::ptr::NonNull;

use kmem_sync::atomic::{AtomicPtr, Ordering};
use kmem_sync::{Cpu, CpuId, LocalLock, Pinned, UnsafeCell, const_fn};

use crate::sheaf::{self, CpuSheaves, Sheaf};

/// One CPU's sheaves of one cache.
///
/// # Invariants
/// 1. `main` points to a sheaf that the slot holds, or to the sheaf without room.
/// 2. `owner` and `rest` are written only in slow sections; `rest` also by a revoker.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Slot {
    main: AtomicPtr<Sheaf>,
    owner: UnsafeCell<u64>,
    lock: LocalLock,
    rest: UnsafeCell<CpuSheaves>,
}

// SAFETY: `rest` is reached only in sections of the lock that exclude one another; `owner` only by the slot's CPU, whose
// sections are ordered; a sheaf belongs to whoever took it out of `main`, or to the CPU while it is there.
unsafe impl Sync for Slot {}
// SAFETY: nothing is tied to a thread.
unsafe impl Send for Slot {}

/// What a revoker took away from a CPU.
pub(crate) struct Taken {
    /// Sheaves with free objects; null or without room where there was none.
    pub(crate) sheaves: [*mut Sheaf; 3],
    /// The sheaf of objects that wait for readers, or null.
    pub(crate) rcu: *mut Sheaf,
}

impl Slot {
    const_fn! {
        pub(crate) fn new() -> Self {
            let rest = CpuSheaves::new();
            Self {
                main: AtomicPtr::new(rest.main),
                owner: UnsafeCell::new(rest.owner),
                lock: LocalLock::new(),
                rest: UnsafeCell::new(rest),
            }
        }
    }

    /// Runs `f` on the main sheaf and the owner word; `None` if this CPU is inside already. `f` touches nothing else.
    ///
    /// # Safety
    /// The caller is pinned to the slot's CPU for the whole call.
    #[inline(always)]
    pub(crate) unsafe fn fast<C: Cpu, R>(&self, f: impl FnOnce(*mut Sheaf, &u64) -> Option<R>) -> Option<R> {
        // SAFETY: pinned; a revoker takes `main` away before it touches the sheaf, and `owner` it never touches.
        if !unsafe { self.lock.try_enter_unrevoked::<C>() } {
            return None;
        }
        // Acquire pairs with the swap that put the sheaf here.
        let main = self.main.load(Ordering::Acquire);
        // SAFETY: only this CPU's sections touch `owner` (invariant 2), and we are in one.
        let result = self.owner.with(|owner| f(main, unsafe { &*owner }));
        // SAFETY: entered above.
        unsafe { self.lock.exit() };
        result
    }

    /// Runs `f` on everything; `None` if this CPU is inside already, or a revoker is.
    ///
    /// # Safety
    /// The caller is pinned to the slot's CPU for the whole call.
    unsafe fn slow<C: Cpu, R>(&self, f: impl FnOnce(&mut CpuSheaves) -> R) -> Option<R> {
        // SAFETY: pinned.
        if !unsafe { self.lock.try_enter::<C>() } {
            return None;
        }
        let result = self.rest.with_mut(|rest| {
            // SAFETY: inside a section nobody else has a reference.
            let rest = unsafe { &mut *rest };
            // A revoker that comes now finds nothing here, and what we put back when it looks again.
            rest.main = self.main.swap(sheaf::none(), Ordering::AcqRel);
            let result = f(rest);
            // SAFETY: as in `fast`.
            self.owner.with_mut(|owner| unsafe { *owner = rest.owner });
            self.main.swap(rest.main, Ordering::AcqRel);
            rest.main = sheaf::none();
            result
        });
        // SAFETY: entered above.
        unsafe { self.lock.exit() };
        Some(result)
    }

    /// Runs `f` on the RCU sheaf and the owner word, and leaves the main sheaf where it is; `None` if this CPU is inside
    /// already, or a revoker is.
    ///
    /// # Safety
    /// The caller is pinned to the slot's CPU for the whole call.
    #[inline(always)]
    pub(crate) unsafe fn on_rcu<C: Cpu, R>(&self, f: impl FnOnce(*mut Sheaf, u64) -> R) -> Option<R> {
        // SAFETY: pinned.
        if !unsafe { self.lock.try_enter::<C>() } {
            return None;
        }
        // SAFETY: in this section nobody else reaches `rest`; `owner` is this CPU's (invariant 2).
        let (rcu, owner) = unsafe { (self.rest.with(|rest| (*rest).rcu), self.owner.with(|owner| *owner)) };
        let result = f(rcu, owner);
        // SAFETY: entered above.
        unsafe { self.lock.exit() };
        Some(result)
    }

    /// Takes everything away from the slot's CPU, from any CPU. Same duties as [`LocalLock::revoke`].
    pub(crate) fn take_all<C: Cpu>(&self, cpu: &C) -> Taken {
        let first = self.main.swap(sheaf::none(), Ordering::AcqRel);
        self.lock.revoke(cpu);
        // A slow section that was under way has ended and may have put a sheaf back; the next cannot begin.
        let second = self.main.swap(sheaf::none(), Ordering::AcqRel);
        if second != sheaf::none() {
            // Fast sections may have begun on it since.
            // SAFETY: revoked above.
            unsafe { self.lock.wait_again(cpu) };
        }
        let taken = self.rest.with_mut(|rest| {
            // SAFETY: revoked, so no slow section runs, and fast ones do not touch `rest`.
            let rest = unsafe { &mut *rest };
            rest.batch = 0;
            let spare = core::mem::replace(&mut rest.spare, core::ptr::null_mut());
            Taken { sheaves: [first, second, spare], rcu: core::mem::replace(&mut rest.rcu, core::ptr::null_mut()) }
        });
        // SAFETY: revoked above.
        unsafe { self.lock.unrevoke() };
        taken
    }

    /// Waits until the slot's CPU is outside of every section that it is in now.
    pub(crate) fn wait<C: Cpu>(&self, cpu: &C) {
        self.lock.revoke(cpu);
        // SAFETY: revoked above.
        unsafe { self.lock.unrevoke() };
    }

    /// Takes the RCU sheaf away, or null.
    pub(crate) fn take_rcu<C: Cpu>(&self, cpu: &C) -> *mut Sheaf {
        self.lock.revoke(cpu);
        // SAFETY: revoked, so no slow section runs, and fast ones do not touch `rest`.
        let rcu = self.rest.with_mut(|rest| unsafe { core::mem::replace(&mut (*rest).rcu, core::ptr::null_mut()) });
        // SAFETY: revoked above.
        unsafe { self.lock.unrevoke() };
        rcu
    }
}

/// A slot for every CPU, in memory that the cache's block gives; or none.
///
/// # Invariants
/// `slots` points to `nr` slots that live as long as this value; slot `i` belongs to CPU `i`.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: NonNull<Slot>,
    nr: u32,
}

impl Slots {
    /// No slots.
    pub(crate) const fn empty() -> Self {
        Self { slots: NonNull::dangling(), nr: 0 }
    }

    /// Bytes of `nr` slots.
    pub(crate) fn bytes(nr: u32) -> Option<usize> {
        Layout::array::<Slot>(nr as usize).ok().map(|layout| layout.size())
    }

    /// Writes `nr` slots into `memory`.
    ///
    /// # Safety
    /// `memory` has [`bytes(nr)`](Self::bytes), aligned to a cache line, and stays this value's alone.
    pub(crate) unsafe fn init(memory: NonNull<u8>, nr: u32) -> Self {
        let slots = memory.cast::<Slot>();
        for index in 0..nr as usize {
            // SAFETY: inside the caller's memory.
            unsafe { slots.add(index).write(Slot::new()) };
        }
        // INVARIANT: all slots have just been written.
        Self { slots, nr }
    }

    /// The first slot.
    pub(crate) fn first(&self) -> NonNull<Slot> {
        self.slots
    }

    pub(crate) fn len(&self) -> u32 {
        self.nr
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nr == 0
    }

    /// The slot of `cpu`.
    pub(crate) fn slot(&self, cpu: CpuId) -> Option<&Slot> {
        if cpu.0 >= self.nr {
            return None;
        }
        // SAFETY: below `nr` (type invariant).
        Some(unsafe { self.slots.add(cpu.index()).as_ref() })
    }

    /// Every slot, in CPU order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Slot> {
        (0..self.nr).filter_map(|id| self.slot(CpuId(id)))
    }

    /// Pins the running CPU and runs `f` in a slow section. `None` (with `f` not run) if there is no CPU, no slot for it,
    /// or it is inside already, or revoked.
    pub(crate) fn try_with<C: Cpu, R>(&self, cpu: &C, f: impl FnOnce(&mut CpuSheaves, CpuId) -> R) -> Option<R> {
        let pin = Pinned::new(cpu)?;
        let id = pin.id();
        // SAFETY: pinned to `id` until `pin` is dropped, and slot `id` belongs to CPU `id` (type invariant).
        unsafe { self.slot(id)?.slow::<C, R>(|sheaves| f(sheaves, id)) }
    }
}
