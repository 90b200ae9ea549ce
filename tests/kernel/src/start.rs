//! The order in which everything comes to life. A port of kmem follows it from top to bottom.
//!
//! ```text
//! console ─▶ loader's map ─▶ per-CPU base ─▶ interrupts ─▶ how many CPUs ─▶ memory ─▶ APIC, timer
//!         ─▶ threads ─▶ the other CPUs ─▶ vmalloc's worker, kswapd, kcompactd ─▶ the suite, as a thread; this CPU idles
//! ```

use kmem_sync::CpuId;
use kmem_sync::UnsafeCell;
use kmem_sync::atomic::Ordering;

use crate::acpi::{self, Cpus};
use crate::descriptors::STACK_BYTES;
use crate::exit::{Exit, exit};
use crate::percpu::MAX_CPUS;
use crate::{apic, cmdline, console, ipi, memory, percpu, pvh, sched, smp, suite, thread};

/// The interrupt stacks of the CPU that boots.
#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; STACK_BYTES]; 3]>);
// SAFETY: used by one CPU, as stacks.
unsafe impl Sync for Stacks {}
static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_BYTES]; 3]));

/// Where `boot.s` leads, with interrupts off.
pub(crate) extern "C" fn kmain(info: usize) -> ! {
    console::init();
    // SAFETY: the first thing on this CPU, with what the loader passed.
    match unsafe { bring_up(info) } {
        Ok(()) => sched::idle(),
        Err(reason) => {
            println!("cannot boot: {reason}");
            exit(Exit::Panic)
        }
    }
}

/// # Safety
/// Once, first of all; `info` is the loader's.
unsafe fn bring_up(info: usize) -> Result<(), &'static str> {
    // SAFETY: the caller's promise.
    let loaded = unsafe { pvh::read(info) }.ok_or("the loader does not speak PVH")?;
    let base = STACKS.0.with_mut(|stacks| stacks.expose_provenance());
    // SAFETY: this CPU is number 0; the stacks are its alone.
    unsafe {
        percpu::init(CpuId(0));
        percpu::this().tables.load([1, 2, 3].map(|i: usize| base + i * STACK_BYTES));
    }
    // SAFETY: the firmware's tables are mapped.
    let cpus = unsafe { acpi::cpus(loaded.rsdp) }.filter(|cpus| cpus.nr > 0);
    let cpus = cpus.unwrap_or(Cpus { apic_ids: [0; MAX_CPUS], nr: 1 });
    percpu::set_nr_cpus(cpus.nr);

    // SAFETY: nothing but this image is in the memory of the map.
    unsafe { memory::init(&loaded)? };

    apic::init();
    let this = percpu::this();
    this.apic_id.store(u32::from(apic::id()), Ordering::Relaxed);
    ipi::join(this);
    this.online.store(true, Ordering::Release);
    sched::become_idle();

    let tick_us = cmdline::number("tick_us").unwrap_or(1000);
    if tick_us != 0 {
        sched::set_tick(tick_us);
        let ticks = u64::from(apic::calibrate()) * tick_us / 10_000;
        smp::start_timer(u32::try_from(ticks).unwrap_or(u32::MAX));
    }
    smp::start_others(&cpus)?;
    let _ = thread::spawn(suite::NAME, None, suite::main).into_raw();
    Ok(())
}
