//! Starting the other CPUs, one by one. Step 11 of a port: kmem needs nothing for a CPU that starts later.

use core::arch::global_asm;

use kmem_gfp::{Gfp, Order};
use kmem_sync::CpuId;
use kmem_sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::acpi::Cpus;
use crate::descriptors::STACK_BYTES;
use crate::platform::kmem;
use crate::{apic, asm, ipi, percpu, sched, start};

global_asm!(
    include_str!("boot.s"),
    kmain = sym start::kmain,
    ap_main = sym ap_main,
    ap_stack = sym AP_STACK,
);

/// Where the trampoline is copied to.
const TRAMPOLINE: usize = 0x8000;

unsafe extern "C" {
    static tramp_start: [u8; 0];
    static tramp_end: [u8; 0];
}

/// The upper end of the stack of the CPU that is being started.
static AP_STACK: AtomicUsize = AtomicUsize::new(0);
/// The upper ends of its interrupt stacks.
static AP_INTERRUPT_STACKS: [AtomicUsize; 3] = [const { AtomicUsize::new(0) }; 3];
/// Its number.
static AP_ID: AtomicU32 = AtomicU32::new(0);
/// Ticks of the APIC timer between two interrupts; zero: no timer.
static TIMER_TICKS: AtomicU32 = AtomicU32::new(0);

/// The upper end of a new stack.
fn stack() -> Result<usize, &'static str> {
    let order = Order::for_size(STACK_BYTES).ok_or("a stack is too large")?;
    let stack = kmem().get_free_pages(Gfp::KERNEL, order).map_err(|_| "no memory for a stack")?;
    Ok(stack.expose_provenance().get() + STACK_BYTES)
}

/// Starts this CPU's timer as every CPU's will be.
pub(crate) fn start_timer(ticks: u32) {
    TIMER_TICKS.store(ticks, Ordering::Relaxed);
    if ticks != 0 {
        apic::start_timer(ticks);
    }
}

/// Starts every CPU but the one that runs this.
///
/// # Errors
/// What is missing, in words.
pub(crate) fn start_others(cpus: &Cpus) -> Result<(), &'static str> {
    let own = apic::id();
    let from = &raw const tramp_start;
    let len = (&raw const tramp_end).addr() - from.addr();
    // SAFETY: the trampoline's page is reserved and nobody's.
    unsafe {
        core::ptr::copy_nonoverlapping(from.cast::<u8>(), core::ptr::with_exposed_provenance_mut(TRAMPOLINE), len);
    }
    let mut id = 0;
    for &apic_id in cpus.apic_ids.iter().take(cpus.nr).filter(|&&apic_id| apic_id != own) {
        id += 1;
        AP_ID.store(id, Ordering::Relaxed);
        AP_STACK.store(stack()?, Ordering::Relaxed);
        for place in &AP_INTERRUPT_STACKS {
            place.store(stack()?, Ordering::Relaxed);
        }
        percpu::of(CpuId(id)).apic_id.store(u32::from(apic_id), Ordering::Release);
        apic::send_init(apic_id);
        pause();
        apic::send_startup(apic_id, (TRAMPOLINE >> 12) as u8);
        let online = &percpu::of(CpuId(id)).online;
        let mut waited = 0_u32;
        while !online.load(Ordering::Acquire) {
            pause();
            waited += 1;
            if waited == 20 {
                apic::send_startup(apic_id, (TRAMPOLINE >> 12) as u8);
            }
            if waited > 20_000 {
                return Err("a CPU does not start");
            }
        }
    }
    Ok(())
}

fn pause() {
    for _ in 0..20_000 {
        core::hint::spin_loop();
    }
}

/// Where a CPU comes from the trampoline.
extern "C" fn ap_main() -> ! {
    let id = CpuId(AP_ID.load(Ordering::Relaxed));
    let stacks = [0, 1, 2].map(|i: usize| AP_INTERRUPT_STACKS[i].load(Ordering::Relaxed));
    // SAFETY: every CPU has a number of its own and comes here once; the stacks are its alone.
    unsafe {
        percpu::init(id);
        percpu::this().tables.load(stacks);
    }
    apic::init();
    sched::become_idle();
    let this = percpu::this();
    ipi::join(this);
    crate::grace::quiescent();
    asm::invalidate_all();
    this.online.store(true, Ordering::Release);
    let ticks = TIMER_TICKS.load(Ordering::Relaxed);
    if ticks != 0 {
        apic::start_timer(ticks);
    }
    sched::idle()
}
