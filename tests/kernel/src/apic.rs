//! The local APIC: messages between CPUs, and each CPU's timer.

use crate::asm;

/// Vectors that are ours.
pub(crate) mod vector {
    /// The timer's.
    pub(crate) const TIMER: u8 = 32;
    /// A message in `ipi`.
    pub(crate) const MESSAGE: u8 = 33;
    /// Only wakes a CPU that waits for an interrupt.
    pub(crate) const WAKE: u8 = 34;
    /// What the APIC sends for an interrupt that went away.
    pub(crate) const SPURIOUS: u8 = 35;
}

const BASE: usize = 0xfee0_0000;
const ID: usize = 0x20;
const EOI: usize = 0xb0;
const SPURIOUS_VECTOR: usize = 0xf0;
const COMMAND: usize = 0x300;
const COMMAND_TARGET: usize = 0x310;
const TIMER: usize = 0x320;
const TIMER_START: usize = 0x380;
const TIMER_NOW: usize = 0x390;
const TIMER_DIVIDE: usize = 0x3e0;

const PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;

fn register(offset: usize) -> *mut u32 {
    core::ptr::with_exposed_provenance_mut(BASE + offset)
}

fn read(offset: usize) -> u32 {
    // SAFETY: registers of this CPU's APIC, mapped one to one.
    unsafe { register(offset).read_volatile() }
}

fn write(offset: usize, value: u32) {
    // SAFETY: as above; what is written here touches no memory.
    unsafe { register(offset).write_volatile(value) };
}

/// Switches this CPU's APIC on, and the old interrupt controllers off.
pub(crate) fn init() {
    // SAFETY: masks the lines of both controllers.
    unsafe {
        asm::out8(0x21, 0xff);
        asm::out8(0xa1, 0xff);
    }
    write(SPURIOUS_VECTOR, 0x100 | u32::from(vector::SPURIOUS));
}

/// This CPU's APIC id.
pub(crate) fn id() -> u8 {
    (read(ID) >> 24) as u8
}

/// Says that an interrupt has been dealt with.
#[inline]
pub(crate) fn end_of_interrupt() {
    write(EOI, 0);
}

fn command(target: u8, low: u32) {
    // The two halves belong together.
    let _irqs_off = kmem_sync::IrqGuard::new(&crate::cpu::KernelCpu);
    write(COMMAND_TARGET, u32::from(target) << 24);
    write(COMMAND, low);
    while read(COMMAND) & (1 << 12) != 0 {
        core::hint::spin_loop();
    }
}

/// Interrupts another CPU.
pub(crate) fn send(target: u8, vector: u8) {
    command(target, 0x4000 | u32::from(vector));
}

/// Interrupts another CPU (or this one) even with its interrupts off.
pub(crate) fn send_nmi(target: u8) {
    command(target, 0x4400);
}

/// Puts another CPU into its state after power-on.
pub(crate) fn send_init(target: u8) {
    command(target, 0x4500);
}

/// Starts a CPU at page `page` of the first megabyte.
pub(crate) fn send_startup(target: u8, page: u8) {
    command(target, 0x4600 | u32::from(page));
}

/// Ticks of the timer in about ten milliseconds, by the old timer's clock.
pub(crate) fn calibrate() -> u32 {
    const PIT_HZ: u32 = 1_193_182;
    let count = (PIT_HZ / 100) as u16;
    write(TIMER_DIVIDE, 0b11);
    write(TIMER, MASKED);
    // SAFETY: channel 2 of the old timer, which drives the speaker's gate and nothing else.
    unsafe {
        asm::out8(0x61, (asm::in8(0x61) & !2) | 1);
        asm::out8(0x43, 0b1011_0000);
        asm::out8(0x42, count as u8);
        asm::out8(0x42, (count >> 8) as u8);
        let gate = asm::in8(0x61) & !1;
        asm::out8(0x61, gate);
        asm::out8(0x61, gate | 1);
        write(TIMER_START, u32::MAX);
        while asm::in8(0x61) & 0x20 == 0 {}
    }
    u32::MAX - read(TIMER_NOW)
}

/// Interrupts this CPU every `ticks` ticks.
pub(crate) fn start_timer(ticks: u32) {
    write(TIMER_DIVIDE, 0b11);
    write(TIMER, PERIODIC | u32::from(vector::TIMER));
    write(TIMER_START, ticks.max(1));
}
