//! The thread that finishes vmalloc's work for those who cannot: frees from interrupts, purges. Step 10 of a port.

use kmem::VirtualSide;
use kmem_sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use kmem_vmalloc::{Vmalloc, Work};

use crate::platform::{Machine, kmem};
use crate::thread::{self, Thread};
use crate::{percpu, sched};

static WORKER: AtomicPtr<Thread> = AtomicPtr::new(core::ptr::null_mut());
static FREE_DUE: AtomicBool = AtomicBool::new(false);
static PURGE_DUE: AtomicBool = AtomicBool::new(false);

/// vmalloc, which is there from `memory::init` on.
#[inline(always)]
pub(crate) fn vmalloc() -> &'static Vmalloc<VirtualSide<Machine>> {
    kmem().vmalloc_layer()
}

/// Wakes the worker; `false` if there is none yet, or none may be woken from here.
pub(crate) fn schedule(work: Work) -> bool {
    let worker = WORKER.load(Ordering::Acquire);
    if worker.is_null() || percpu::in_nmi() {
        return false;
    }
    match work {
        Work::Free => FREE_DUE.store(true, Ordering::Release),
        Work::Purge => PURGE_DUE.store(true, Ordering::Release),
    }
    // SAFETY: the worker never ends.
    unsafe { sched::unpark(worker) };
    true
}

/// Starts the worker.
pub(crate) fn start_worker() {
    let worker = thread::spawn("vmalloc", None, || {
        loop {
            if FREE_DUE.swap(false, Ordering::AcqRel) {
                vmalloc().run_deferred();
            }
            if PURGE_DUE.swap(false, Ordering::AcqRel) {
                vmalloc().purge();
            }
            sched::park();
        }
    });
    WORKER.store(worker.into_raw(), Ordering::Release);
}
