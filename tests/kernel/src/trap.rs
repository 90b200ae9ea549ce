//! What happens at an interrupt or exception.

use core::arch::global_asm;

use kmem_gfp::TaskFlags;
use kmem_sync::CpuId;
use kmem_sync::atomic::{AtomicPtr, Ordering};

use crate::apic::{self, vector};
use crate::exit::{Exit, exit};
use crate::{console, fault, grace, ipi, percpu, sched, sleep, step, thread};

global_asm!(
    include_str!("trap.s"),
    trap = sym trap,
    preempted = sym sched::preempted,
    thread_main = sym thread::thread_main,
);

unsafe extern "C" {
    fn preempt_entry();
}

/// What `trap.s` saves, from the lowest address up.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Frame {
    registers: [u64; 15],
    vector: u64,
    /// What the processor says about a fault.
    pub(crate) error: u64,
    /// The interrupted instruction.
    pub(crate) rip: u64,
    cs: u64,
    /// The flags.
    pub(crate) rflags: u64,
    /// The interrupted stack.
    pub(crate) rsp: u64,
    ss: u64,
}

impl Frame {
    /// The `i`-th value of what `iretq` takes.
    fn iret(&self) -> [u64; 5] {
        [self.rip, self.cs, self.rflags, self.rsp, self.ss]
    }
}

const STEP: u64 = 1;
const NMI: u64 = 2;
const PAGE_FAULT: u64 = 14;
const TIMER: u64 = vector::TIMER as u64;
const MESSAGE: u64 = vector::MESSAGE as u64;
const WAKE: u64 = vector::WAKE as u64;
const SPURIOUS: u64 = vector::SPURIOUS as u64;

/// Something that a test wants done in every timer interrupt or NMI.
pub(crate) type Hook = fn();

static ON_TICK: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());
static ON_NMI: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// Sets or takes away what every timer interrupt does.
pub(crate) fn on_tick(hook: Option<Hook>) {
    ON_TICK.store(hook.map_or(core::ptr::null_mut(), |hook| hook as *mut ()), Ordering::Release);
}

/// Sets or takes away what every NMI does.
pub(crate) fn on_nmi(hook: Option<Hook>) {
    ON_NMI.store(hook.map_or(core::ptr::null_mut(), |hook| hook as *mut ()), Ordering::Release);
}

fn run(hook: &AtomicPtr<()>) {
    let hook = hook.load(Ordering::Acquire);
    if !hook.is_null() {
        // SAFETY: only `on_tick` and `on_nmi` write it.
        let hook: Hook = unsafe { core::mem::transmute(hook) };
        hook();
    }
}

/// Where every stub leads. Interrupts are off.
extern "C" fn trap(frame: &mut Frame) {
    let before = percpu::flags();
    match frame.vector {
        TIMER => {
            percpu::set_flags(before | TaskFlags::IN_IRQ);
            let this = percpu::this();
            this.ticks.store(this.ticks.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            if percpu::pins() == 0 {
                grace::quiescent();
            }
            run(&ON_TICK);
            if this.id() == CpuId(0) {
                sleep::tick();
            }
            apic::end_of_interrupt();
            percpu::set_flags(before);
            if sched::should_preempt() {
                preempt(frame);
            }
        }
        MESSAGE => {
            ipi::answer();
            apic::end_of_interrupt();
        }
        WAKE => apic::end_of_interrupt(),
        SPURIOUS => {}
        NMI => {
            percpu::set_flags(before | TaskFlags::IN_NMI);
            run(&ON_NMI);
            let this = percpu::this();
            this.nmis.store(this.nmis.load(Ordering::Relaxed) + 1, Ordering::Release);
            percpu::set_flags(before);
        }
        STEP => step::stepped(frame),
        PAGE_FAULT => {
            if !fault::page_fault(frame) {
                fatal(frame);
            }
        }
        _ => fatal(frame),
    }
}

/// Turns the interrupted thread's return into a call of the scheduler: a second frame goes onto its own stack, below the
/// red zone.
fn preempt(frame: &mut Frame) {
    let iret = frame.iret();
    let at = ((frame.rsp - 128) & !15) - 5 * 8;
    let words = core::ptr::with_exposed_provenance_mut::<u64>(at as usize);
    for (i, word) in iret.into_iter().enumerate() {
        // SAFETY: room on the stack of the interrupted thread, which has pages below it or faults like any other push.
        unsafe { words.add(i).write(word) };
    }
    frame.rip = preempt_entry as *const () as u64;
    frame.rsp = at;
    // Neither interrupts nor steps in the scheduler.
    frame.rflags &= !0x300;
}

/// Ends the machine for something that nobody expected.
pub(crate) fn fatal(frame: &Frame) -> ! {
    console::seize();
    println!(
        "exception {} (error {:#x}) at {:#x}, address {:#x}, stack {:#x}, flags {:?}, pins {}, cpu {}",
        frame.vector,
        frame.error,
        frame.rip,
        crate::asm::fault_address(),
        frame.rsp,
        percpu::flags(),
        percpu::pins(),
        percpu::this().id(),
    );
    exit(Exit::Fault)
}
