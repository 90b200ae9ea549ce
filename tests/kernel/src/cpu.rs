//! [`KernelCpu`]: the CPUs as kmem wants them. Step 1 of a port.

use core::arch::asm;

use kmem_sync::{Cpu, CpuId, IrqState};

use crate::{ipi, percpu};

/// The CPU that runs this code. No state: everything is in registers and behind GS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelCpu;

// SAFETY: 1, 3. While `pins` is above zero the scheduler switches to no other thread, so only interrupts come in between,
// and they run to completion; the run queue's lock orders what one thread did before what the next does. Numbers are
// below `nr_cpus`. 4. The interrupt flag is off. 5. Every other CPU answers a message (`ipi`), which is an interrupt and so
// serialises; the caller executes a fence.
unsafe impl Cpu for KernelCpu {
    #[inline(always)]
    fn nr_cpus(&self) -> u32 {
        percpu::nr_cpus()
    }

    #[inline(always)]
    fn try_pin(&self) -> Option<CpuId> {
        Some(percpu::pin())
    }

    #[inline(always)]
    unsafe fn unpin(&self, _cpu: CpuId) {
        percpu::unpin();
    }

    #[inline(always)]
    fn irq_save(&self) -> IrqState {
        let flags: usize;
        // SAFETY: reads the flags and switches interrupts off.
        unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
        IrqState(flags)
    }

    #[inline(always)]
    unsafe fn irq_restore(&self, state: IrqState) {
        if state.0 & 0x200 != 0 {
            // SAFETY: they were on before.
            unsafe { asm!("sti", options(nostack)) };
        }
    }

    fn barrier_all_cpus(&self) {
        ipi::barrier();
    }
}
