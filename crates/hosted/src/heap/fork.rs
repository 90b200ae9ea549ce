//! Fork: the child has one thread and a copy of all memory, so the copy must be made at a moment when no other thread
//! is in the middle of anything.
//!
//! ```text
//! prepare   1  wait for the rare work that shuts CPUs out or adds memory, and keep it from starting again
//!           2  close the per-CPU sections; from here on everybody takes the shared paths
//!           3  wait for whoever is still inside one
//!           4  close the sections with shared locks, wait until the last one has ended
//! parent    undo all of it
//! child     open the shared sections, take back the CPUs of the threads that are not there, undo the rest
//! ```
//!
//! Three things may be under way at the fork. A thread that has just entered a per-CPU section and not yet found it closed
//! leaves it marked as entered; the child enters and leaves every section of an orphaned CPU, which clears the mark. A
//! push or a pop does not ask whether sections are closed: it writes the object, then the sheaf's length, in this order, so
//! the child has the sheaf as it was before or after, or with the object in neither; then that object is lost to the child. And
//! single compare-and-swap operations on free bits and slabs go on without a lock: a thread between two of those has taken
//! objects or frames that nobody gives back in the child. They are lost to the child, and nothing else happens.

use std::sync::atomic::{AtomicBool, Ordering};

use kmem_gfp::Order;

use super::env::{BUDDY, MEDIUM, SLABS, host};
use super::large::GFP;
use super::{alloc, cpu, grow, limit};

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
    limit::forbid();
    grow::forbid();
    cpu::close_sections(|| {
        SLABS.wait_sections();
        MEDIUM.wait_sections();
        BUDDY.drain_all_pages();
    });
    cpu::close_shared();
}

extern "C" fn parent() {
    cpu::open_shared();
    cpu::open_sections();
    grow::allow();
    limit::allow();
}

extern "C" fn child() {
    cpu::open_shared();
    host().grace.forget_shared();
    cpu::reclaim_orphans(|| {
        alloc::visit_every_section();
        if let Ok(page) = BUDDY.alloc_pages(GFP, Order::ZERO, None) {
            // SAFETY: ours, unused.
            let freed = unsafe { BUDDY.free_pages(page, Order::ZERO) };
            debug_assert!(freed.is_ok(), "{freed:?}");
        }
    });
    cpu::open_sections();
    grow::allow();
    limit::allow();
}
