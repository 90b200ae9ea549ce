//! Fork: the child has one thread and a copy of all memory, so the copy must be made at a moment when no other thread
//! is in the middle of anything.
//!
//! ```text
//! prepare   1  close the per-CPU sections; from here on everybody takes the shared paths
//!           2  empty every CPU's sheaves and page sets: the revocation waits for whoever is still inside
//!           3  close the sections with shared locks, wait until the last one has ended
//! parent    open both
//! child     take back the CPUs of the threads that are not there, open both
//! ```
//!
//! What remains running between 3 and the fork are single compare-and-swap operations on free bits and slabs. A thread
//! that is between two of those when the child is made has taken objects or frames that nobody will ever give back
//! in the child: they are lost to the child, and nothing else happens.

use std::sync::atomic::{AtomicBool, Ordering};

use kmem_sync::{Cpu, CpuId};

use super::cpu::{self, HeapCpu};
use super::env::{BUDDY, SLABS, host};
use super::limit;

/// Registers the handlers; once.
pub(super) fn register() {
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        // SAFETY: the handlers neither unwind nor touch anything but the heap. Failure (no memory) leaves forks of programs
        // with several threads unprotected.
        let _ = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
    }
}

extern "C" fn prepare() {
    cpu::close_sections();
    for cpu in 0..HeapCpu::new().nr_cpus() {
        SLABS.cpu_dead(CpuId(cpu));
    }
    BUDDY.drain_all_pages();
    cpu::close_shared();
}

extern "C" fn parent() {
    cpu::open();
}

extern "C" fn child() {
    cpu::reclaim_orphans();
    limit::after_fork();
    host().grace.forget_shared();
    cpu::open();
}
