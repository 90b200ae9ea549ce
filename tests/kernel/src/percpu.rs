//! What each CPU has for itself, found through the GS base.
//!
//! ```text
//! gs:[0]  this structure's address     gs:[8] number     gs:[12] pins     gs:[16] what the running code is
//! ```

use core::arch::asm;
use core::mem::offset_of;
use core::ptr::NonNull;

use kmem_gfp::TaskFlags;
use kmem_sync::CpuId;
use kmem_sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::asm as instructions;
use crate::descriptors::Tables;
use crate::thread::Thread;

/// The most CPUs.
pub(crate) const MAX_CPUS: usize = 8;

/// One CPU's own. Fields are written by that CPU alone unless they say otherwise.
#[derive(Debug)]
#[repr(C, align(128))]
pub(crate) struct PerCpu {
    this: AtomicUsize,
    id: AtomicU32,
    /// Pinned sections that are open; zero: the running thread may be preempted.
    pins: AtomicU32,
    /// [`TaskFlags`] of the running code.
    flags: AtomicU32,
    /// Its APIC's id.
    pub(crate) apic_id: AtomicU32,
    /// The running thread.
    pub(crate) current: AtomicPtr<Thread>,
    /// The thread that runs when no other can.
    pub(crate) idle: AtomicPtr<Thread>,
    /// The thread that has just been switched away from; for whoever runs next.
    pub(crate) previous: AtomicPtr<Thread>,
    /// The last epoch that a quiescent state here has seen; read by all.
    pub(crate) seen_epoch: AtomicU64,
    /// Whether it is up; read by all.
    pub(crate) online: AtomicBool,
    /// Whether it waits for an interrupt with nothing to do; read by all.
    pub(crate) idling: AtomicBool,
    /// The last message that it has dealt with; read by all.
    pub(crate) answered: AtomicU64,
    /// Timer interrupts so far; read by all.
    pub(crate) ticks: AtomicU64,
    /// NMIs so far; read by all.
    pub(crate) nmis: AtomicU64,
    /// Whether an interrupt's own allocations go on at the moment, so that another one leaves them alone.
    pub(crate) in_handler: AtomicBool,
    pub(crate) tables: Tables,
}

impl PerCpu {
    const fn new() -> Self {
        Self {
            this: AtomicUsize::new(0),
            id: AtomicU32::new(0),
            pins: AtomicU32::new(0),
            flags: AtomicU32::new(0),
            apic_id: AtomicU32::new(0),
            current: AtomicPtr::new(core::ptr::null_mut()),
            idle: AtomicPtr::new(core::ptr::null_mut()),
            previous: AtomicPtr::new(core::ptr::null_mut()),
            seen_epoch: AtomicU64::new(0),
            online: AtomicBool::new(false),
            idling: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            nmis: AtomicU64::new(0),
            in_handler: AtomicBool::new(false),
            tables: Tables::new(),
        }
    }

    /// Its number.
    pub(crate) fn id(&self) -> CpuId {
        CpuId(self.id.load(Ordering::Relaxed))
    }
}

static CPUS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];
static NR_CPUS: AtomicU32 = AtomicU32::new(1);

const ID: usize = offset_of!(PerCpu, id);
const PINS: usize = offset_of!(PerCpu, pins);
const FLAGS: usize = offset_of!(PerCpu, flags);

/// Says how many CPUs there are. Before the second one starts, and before any allocator asks.
pub(crate) fn set_nr_cpus(nr: usize) {
    NR_CPUS.store(nr.clamp(1, MAX_CPUS) as u32, Ordering::Relaxed);
}

/// How many CPUs there are.
#[inline(always)]
pub(crate) fn nr_cpus() -> u32 {
    NR_CPUS.load(Ordering::Relaxed)
}

/// Every CPU's own.
pub(crate) fn all() -> &'static [PerCpu] {
    &CPUS[..nr_cpus() as usize]
}

/// A CPU's own.
pub(crate) fn of(cpu: CpuId) -> &'static PerCpu {
    &CPUS[cpu.index() % MAX_CPUS]
}

/// Makes the running CPU number `id`.
///
/// # Safety
/// No other CPU is, and nothing on this one has asked for its number before.
pub(crate) unsafe fn init(id: CpuId) {
    let this = of(id);
    this.id.store(id.0, Ordering::Relaxed);
    let address = NonNull::from(this).expose_provenance().get();
    this.this.store(address, Ordering::Relaxed);
    // SAFETY: the base of GS, which nothing else uses.
    unsafe { instructions::write_msr(0xc000_0101, address as u64) };
}

/// The running CPU's own. Only where the caller stays on it: pinned, or with interrupts off.
#[inline(always)]
pub(crate) fn this() -> &'static PerCpu {
    let address: usize;
    // SAFETY: reads the pointer that `init` wrote.
    unsafe { asm!("mov {}, gs:[0]", out(reg) address, options(nostack, preserves_flags)) };
    // SAFETY: it points to a static.
    unsafe { &*core::ptr::with_exposed_provenance::<PerCpu>(address) }
}

/// One pinned section more, and on which CPU that is. An increment and a load.
#[inline(always)]
pub(crate) fn pin() -> CpuId {
    let id: u64;
    // SAFETY: both are one instruction on this CPU's own memory, so a thread that moves in between is pinned by then. Writing
    // the lower half of a register clears the upper.
    unsafe {
        asm!(
            "inc dword ptr gs:[{pins}]",
            "mov {id:e}, dword ptr gs:[{at}]",
            pins = const PINS, at = const ID, id = out(reg) id, options(nostack),
        );
        core::hint::assert_unchecked(id < MAX_CPUS as u64);
    }
    CpuId(id as u32)
}

/// One pinned section less.
#[inline(always)]
pub(crate) fn unpin() {
    // SAFETY: one instruction on this CPU's own memory.
    unsafe { asm!("dec dword ptr gs:[{pins}]", pins = const PINS, options(nostack)) };
}

/// How many pinned sections are open.
#[inline(always)]
pub(crate) fn pins() -> u32 {
    let pins: u32;
    // SAFETY: a read of this CPU's own memory.
    unsafe { asm!("mov {:e}, dword ptr gs:[{at}]", out(reg) pins, at = const PINS, options(nostack, preserves_flags)) };
    pins
}

/// What the running code is, but for being pinned.
#[inline(always)]
pub(crate) fn flags() -> TaskFlags {
    let flags: u32;
    // SAFETY: a read of this CPU's own memory.
    unsafe {
        asm!("mov {:e}, dword ptr gs:[{at}]", out(reg) flags, at = const FLAGS, options(nostack, preserves_flags))
    };
    TaskFlags::from_bits_retain(flags)
}

/// Says what the running code is.
#[inline(always)]
pub(crate) fn set_flags(flags: TaskFlags) {
    // SAFETY: one instruction on this CPU's own memory.
    unsafe {
        asm!("mov dword ptr gs:[{at}], {:e}", in(reg) flags.bits(), at = const FLAGS, options(nostack, preserves_flags));
    }
}

/// Whether the running code serves an NMI.
pub(crate) fn in_nmi() -> bool {
    flags().contains(TaskFlags::IN_NMI)
}
