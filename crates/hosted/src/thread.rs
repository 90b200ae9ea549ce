//! What a host thread knows: which CPU it is, on which machine; its task flags; and how it says good-bye.
//!
//! ```text
//! ThreadWords (thread-local, const-initialised, no destructor: reading one is a load relative to the thread pointer)
//!   machine_cpu   base of a machine's CPU numbers + CPU      unique over all machines of the process
//!   heap_cpu      CPU of the global heap
//!   task          TaskFlags of the running task
//!   token         the thread's number for owning slots; 0 before the first, EXITED after the last
//! ```
//!
//! The words have no destructor, so that allocating is possible at any time in a thread's life. The hook at thread
//! exit, which gives slots back, is a `pthread` key: those run after Rust's own thread-local destructors, which may
//! still free memory on the fast path.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// No CPU of any machine.
pub(crate) const NO_MACHINE_CPU: u64 = u64::MAX;
/// No CPU of the global heap.
pub(crate) const NO_HEAP_CPU: u32 = u32::MAX;
/// The token of a thread whose exit hook has run.
const EXITED: u64 = u64::MAX;

/// The words of one thread; see the file's header.
#[derive(Debug)]
pub(crate) struct ThreadWords {
    pub(crate) machine_cpu: Cell<u64>,
    pub(crate) heap_cpu: Cell<u32>,
    pub(crate) task: Cell<u32>,
    /// How deep the thread is in sections of the global heap that may hold shared locks.
    pub(crate) shared_depth: Cell<u32>,
    /// Whether barriers on all CPUs are unnecessary for what the thread is doing: it is about to fork.
    pub(crate) barriers_made: Cell<bool>,
    /// How often [`relax`] was called.
    spins: Cell<u32>,
    /// The machine (by the base of its CPU numbers) that had no CPU for this thread when it last asked.
    pub(crate) denied_by: Cell<u64>,
    token: Cell<u64>,
    /// Whether the thread serves a machine and is none of its CPUs.
    pub(crate) is_service: Cell<bool>,
    /// Whether the thread ever owned a CPU of a machine that is not the heap.
    pub(crate) met_machines: Cell<bool>,
}

thread_local! {
    static THREAD: ThreadWords = const {
        ThreadWords {
            machine_cpu: Cell::new(NO_MACHINE_CPU),
            heap_cpu: Cell::new(NO_HEAP_CPU),
            task: Cell::new(0),
            shared_depth: Cell::new(0),
            barriers_made: Cell::new(false),
            spins: Cell::new(0),
            denied_by: Cell::new(NO_MACHINE_CPU),
            token: Cell::new(0),
            is_service: Cell::new(false),
            met_machines: Cell::new(false),
        }
    };
}

/// Runs `f` on the calling thread's words.
#[inline(always)]
pub(crate) fn with<R>(f: impl FnOnce(&ThreadWords) -> R) -> R {
    THREAD.with(f)
}

/// Waits a moment inside a spin loop: mostly a pause instruction, now and then the host's scheduler, because the
/// thread waited for may not be running.
#[inline]
pub(crate) fn relax() {
    let spins = with(|thread| {
        let spins = thread.spins.get().wrapping_add(1);
        thread.spins.set(spins);
        spins
    });
    if spins % 64 == 0 {
        crate::sys::sched_yield();
    } else {
        core::hint::spin_loop();
    }
}

/// The number under which the calling thread owns slots: unique in the process, never reused, never zero. `None` once
/// the thread's exit hook has run, or if no hook can be had; such a thread must not own anything.
pub(crate) fn token() -> Option<u64> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    with(|thread| match thread.token.get() {
        EXITED => None,
        0 => {
            // Set first: arming the hook may allocate, and so come back here.
            let token = NEXT.fetch_add(1, Ordering::Relaxed);
            thread.token.set(token);
            if !arm_exit_hook() {
                thread.token.set(EXITED);
                return None;
            }
            Some(token)
        }
        token => Some(token),
    })
}

/// The number that [`token`] has given this thread, if it has.
pub(crate) fn known_token() -> Option<u64> {
    with(|thread| Some(thread.token.get()).filter(|&token| token != 0 && token != EXITED))
}

/// Makes [`on_exit`] run when the calling thread ends.
fn arm_exit_hook() -> bool {
    static KEY: OnceLock<Option<libc::pthread_key_t>> = OnceLock::new();
    let key = *KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: `key` is a valid place; `on_exit` has the right signature and never unwinds.
        (unsafe { libc::pthread_key_create(&mut key, Some(on_exit)) } == 0).then_some(key)
    });
    // SAFETY: the key exists; any non-null value makes the destructor run.
    key.is_some_and(|key| unsafe { libc::pthread_setspecific(key, core::ptr::without_provenance(1)) } == 0)
}

/// Gives everything back that the thread owns. Objects that are freed later take the shared path.
extern "C" fn on_exit(_: *mut libc::c_void) {
    let Some(token) = known_token() else { return };
    let met_machines = with(|thread| {
        thread.token.set(EXITED);
        thread.machine_cpu.set(NO_MACHINE_CPU);
        thread.met_machines.get()
    });
    if met_machines {
        crate::cpu::release_all(token);
    }
    #[cfg(not(loom))]
    crate::heap::leave(token);
}
