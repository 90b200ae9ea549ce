//! Instructions that Rust has no words for.

use core::arch::asm;

/// Writes a byte to a port.
///
/// # Safety
/// The device behind the port does nothing to memory that is in use.
#[inline]
pub(crate) unsafe fn out8(port: u16, value: u8) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads a byte from a port.
///
/// # Safety
/// As for [`out8`].
#[inline]
pub(crate) unsafe fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a word of 32 bits to a port.
///
/// # Safety
/// As for [`out8`].
#[inline]
pub(crate) unsafe fn out32(port: u16, value: u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads a word of 32 bits from a port.
///
/// # Safety
/// As for [`out8`].
#[inline]
pub(crate) unsafe fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: the caller's promise.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a model-specific register.
///
/// # Safety
/// The register exists, and what the value does is what the caller wants.
#[inline]
pub(crate) unsafe fn write_msr(register: u32, value: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack, preserves_flags));
    }
}

/// The time stamp counter. With `-icount shift=0` it counts instructions.
#[inline(always)]
pub(crate) fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter. A fence for the compiler: what is measured stays between two reads.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags)) };
    u64::from(high) << 32 | u64::from(low)
}

/// The address whose access faulted last.
#[inline]
pub(crate) fn fault_address() -> usize {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Forgets the translation of one page.
#[inline(always)]
pub(crate) fn invalidate_page(address: usize) {
    // SAFETY: forgetting a translation changes nothing that is mapped.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) };
}

/// Forgets every translation.
#[inline]
pub(crate) fn invalidate_all() {
    // SAFETY: as above; no entry is global.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
}

/// Whether interrupts are on.
#[inline]
pub(crate) fn interrupts_on() -> bool {
    let flags: u64;
    // SAFETY: reads the flags.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags & 0x200 != 0
}

/// Switches interrupts on.
///
/// # Safety
/// The context may be interrupted and, if it is a thread that is not pinned, preempted.
#[inline]
pub(crate) unsafe fn enable_interrupts() {
    // SAFETY: the caller's promise.
    unsafe { asm!("sti", options(nostack)) };
}

/// Switches interrupts off.
#[inline]
pub(crate) fn disable_interrupts() {
    // SAFETY: fewer interruptions break nothing.
    unsafe { asm!("cli", options(nostack)) };
}

/// Waits for an interrupt with interrupts on, and switches them off again.
///
/// # Safety
/// As for [`enable_interrupts`].
#[inline]
pub(crate) unsafe fn wait_for_interrupt() {
    // SAFETY: the caller's promise.
    unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
}
