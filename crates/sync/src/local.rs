//! The local trylock: exclusion on one CPU by plain stores, revocable from other CPUs.
//!
//! ```text
//! owner (pinned)                      revoker (any other context)
//! held?  yes -> fail (re-entered)     take the revoker's turn
//! held = 1                            revoked = 1
//! -- compiler fence --                barrier on all CPUs
//! revoked?  yes -> held = 0, fail     wait until held == 0
//! ... section ...                     ... section ...
//! held = 0 (release)                  revoked = 0 (release)
//! ```
//!
//! The owner's side is two plain stores and two loads of its own cache line. The expensive half of the
//! store-load ordering that both sides need is paid by the revoker alone, through
//! [`Cpu::barrier_all_cpus`]: after it, either the owner's `held = 1` is visible to the revoker, or the owner's
//! later load sees `revoked = 1`.

use crate::atomic::{AtomicBool, Ordering};
use crate::{Cpu, const_fn};

/// Mutual exclusion between the context pinned to one CPU, contexts that interrupt it there, and rare revokers.
///
/// # Invariants
/// 1. `held` is written only by a context pinned to the lock's CPU.
/// 2. Of an owner inside its section and a revoker inside its section at most one exists at a time.
#[derive(Debug, Default)]
pub struct LocalLock {
    held: AtomicBool,
    revoked: AtomicBool,
}

impl LocalLock {
    const_fn! {
        /// An open lock.
        pub fn new() -> Self {
            Self { held: AtomicBool::new(false), revoked: AtomicBool::new(false) }
        }
    }

    /// Tries to enter as the owner; `false` if this CPU is inside already (an interrupt came in between) or a
    /// revoker has the lock. Never spins. Any context.
    ///
    /// # Safety
    /// The caller is pinned to the one CPU that this lock belongs to and stays so until [`exit`](Self::exit).
    #[inline(always)]
    pub unsafe fn try_enter<C: Cpu>(&self) -> bool {
        if C::REENTRANT && self.held.load(Ordering::Relaxed) {
            return false;
        }
        self.held.store(true, Ordering::Relaxed);
        light_barrier();
        // Acquire pairs with the release in `unrevoke`: the revoker's writes are seen. One branch for both.
        if self.revoked.load(Ordering::Acquire) | C::sections_closed() {
            self.held.store(false, Ordering::Release);
            return false;
        }
        true
    }

    /// Enters as the owner without looking for a revoker: for sections that reach their data through one pointer which
    /// every revoker takes away *before* it calls [`revoke`](Self::revoke). Behind that call's barrier such a section
    /// either finds the pointer gone, or is waited for. [`Cpu::sections_closed`] does not stop it. `false` if this CPU is
    /// inside already. Never spins. Any context.
    ///
    /// # Safety
    /// As for [`try_enter`](Self::try_enter). The section loads that pointer itself, behind this call, and touches nothing
    /// else that a revoker does.
    #[inline(always)]
    pub unsafe fn try_enter_unrevoked<C: Cpu>(&self) -> bool {
        if C::REENTRANT && self.held.load(Ordering::Relaxed) {
            return false;
        }
        self.held.store(true, Ordering::Relaxed);
        light_barrier();
        true
    }

    /// As the revoker: lets every section that the owner has entered by now end, once more.
    ///
    /// # Safety
    /// The caller holds the lock through [`revoke`](Self::revoke).
    pub unsafe fn wait_again<C: Cpu>(&self, cpu: &C) {
        heavy_barrier(cpu);
        while self.held.load(Ordering::Acquire) {
            cpu.relax();
        }
    }

    /// Leaves the section entered by [`try_enter`](Self::try_enter).
    ///
    /// # Safety
    /// The innermost successful `try_enter` of this context has not been exited.
    #[inline(always)]
    pub unsafe fn exit(&self) {
        // Release pairs with the acquire in `revoke`.
        self.held.store(false, Ordering::Release);
    }

    /// Shuts the owner out and waits until it has left its section. Slow: one barrier on all CPUs. Spins.
    /// Returns with the lock held by the caller, to be opened by [`unrevoke`](Self::unrevoke).
    ///
    /// Must not be called inside the same CPU's own section (it would wait for itself), nor with interrupts off.
    pub fn revoke<C: Cpu>(&self, cpu: &C) {
        while self.revoked.swap(true, Ordering::AcqRel) {
            cpu.relax();
        }
        heavy_barrier(cpu);
        while self.held.load(Ordering::Acquire) {
            cpu.relax();
        }
    }

    /// Opens the lock to its owner again.
    ///
    /// # Safety
    /// The caller holds the lock through [`revoke`](Self::revoke).
    pub unsafe fn unrevoke(&self) {
        // A swap, not a store: loom takes a store racing a swap for a lost update; the cost does not matter here.
        self.revoked.swap(false, Ordering::AcqRel);
    }
}

#[inline(always)]
fn light_barrier() {
    crate::atomic::compiler_fence(Ordering::SeqCst);
}

fn heavy_barrier<C: Cpu>(cpu: &C) {
    crate::atomic::fence(Ordering::SeqCst);
    cpu.barrier_all_cpus();
}
