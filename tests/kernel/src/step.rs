//! Executing code step by step: counting what CPUs do to memory that they share, and interrupting at a given instruction.
//!
//! kmem writes memory that several CPUs use under locks and by such instructions only, so their number says how often a
//! CPU needs a cache line for itself that another one may have.

use core::arch::asm;

use kmem_gfp::TaskFlags;
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use crate::percpu::{self, MAX_CPUS};
use crate::trap::{Frame, Hook};

/// Read-modify-writes that each CPU was about to execute, step by step.
static COUNTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];
/// All instructions.
static STEPS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Runs `f` step by step; how many read-modify-writes and instructions that took. `f` does not give its CPU up.
pub(crate) fn count<R>(cpu: usize, f: impl FnOnce() -> R) -> (R, u64, u64) {
    let read = |counts: &[AtomicU64; MAX_CPUS]| counts[cpu % MAX_CPUS].load(Ordering::Relaxed);
    let (before, steps) = (read(&COUNTS), read(&STEPS));
    // SAFETY: the trap flag makes every instruction end in an exception, which `stepped` handles.
    unsafe { asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq") };
    let result = f();
    // SAFETY: as above.
    unsafe { asm!("pushfq", "and qword ptr [rsp], ~0x100", "popfq") };
    (result, read(&COUNTS) - before, read(&STEPS) - steps)
}

/// Instructions until the handler is to run; zero: it is not.
static REMAINING: AtomicU64 = AtomicU64::new(0);
static HANDLER: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static AS_NMI: AtomicBool = AtomicBool::new(false);

/// Runs `f` with `handler` as an interrupt in front of its `n`-th instruction (or the next one at which interrupts are on),
/// or as an NMI in front of exactly that one. Whether `f` had so many. One caller at a time.
pub(crate) fn interrupt_at(cpu: usize, n: u64, nmi: bool, handler: Hook, f: impl FnOnce()) -> bool {
    HANDLER.store(handler as *mut (), Ordering::Relaxed);
    AS_NMI.store(nmi, Ordering::Relaxed);
    REMAINING.store(n, Ordering::Relaxed);
    count(cpu, f);
    REMAINING.swap(0, Ordering::Relaxed) == 0
}

/// Looks at the instruction that comes next. In the exception.
pub(crate) fn stepped(frame: &Frame) {
    let cpu = percpu::this().id().index();
    STEPS[cpu].fetch_add(1, Ordering::Relaxed);
    if is_atomic(frame.rip as usize) {
        COUNTS[cpu].fetch_add(1, Ordering::Relaxed);
    }
    let nmi = AS_NMI.load(Ordering::Relaxed);
    match REMAINING.load(Ordering::Relaxed) {
        0 => {}
        1 if !nmi && frame.rflags & 0x200 == 0 => {}
        1 => {
            REMAINING.store(0, Ordering::Relaxed);
            let before = percpu::flags();
            percpu::set_flags(before | if nmi { TaskFlags::IN_NMI } else { TaskFlags::IN_IRQ });
            // SAFETY: only `interrupt_at` writes it.
            let handler: Hook = unsafe { core::mem::transmute(HANDLER.load(Ordering::Relaxed)) };
            handler();
            percpu::set_flags(before);
        }
        more => REMAINING.store(more - 1, Ordering::Relaxed),
    }
}

/// Whether the instruction at an address is an atomic read-modify-write: one with the lock prefix, or an exchange with
/// memory.
fn is_atomic(mut at: usize) -> bool {
    loop {
        // SAFETY: code that is about to run is mapped.
        let byte = unsafe { core::ptr::with_exposed_provenance::<u8>(at).read() };
        match byte {
            0xf0 => return true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf2 | 0xf3 | 0x40..=0x4f => at += 1,
            0x86 | 0x87 => {
                // SAFETY: as above.
                let operands = unsafe { core::ptr::with_exposed_provenance::<u8>(at + 1).read() };
                return operands >> 6 != 3;
            }
            _ => return false,
        }
    }
}
