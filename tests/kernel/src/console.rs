//! The serial port, and printing to it.

use core::fmt::{self, Write};

use kmem_sync::atomic::{AtomicBool, Ordering};

use crate::asm;
use crate::cpu::KernelCpu;

const COM1: u16 = 0x3f8;

/// Prints a line on the serial port.
macro_rules! println {
    ($($text:tt)*) => { $crate::console::line(format_args!($($text)*)) };
}

/// One line is printed at a time.
static BUSY: AtomicBool = AtomicBool::new(false);
/// Something is so wrong that nobody waits for anybody.
static SEIZED: AtomicBool = AtomicBool::new(false);

struct Port;

impl Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // SAFETY: the serial port touches no memory.
            unsafe {
                while asm::in8(COM1 + 5) & 0x20 == 0 {}
                asm::out8(COM1, byte);
            }
        }
        Ok(())
    }
}

/// Sets the port up: 8 bits, no parity, nobody interrupts.
pub(crate) fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 0xc7), (4, 3)] {
        // SAFETY: the serial port touches no memory.
        unsafe { asm::out8(COM1 + register, value) };
    }
}

/// Lets this CPU print even if another one is in the middle of a line.
pub(crate) fn seize() {
    SEIZED.store(true, Ordering::Relaxed);
}

/// Prints a line. Any context; from an NMI that comes in the middle of a line, into it.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    let _irqs_off = kmem_sync::IrqGuard::new(&KernelCpu);
    let mut tries = 0_u32;
    let owned = loop {
        if !BUSY.swap(true, Ordering::Acquire) {
            break true;
        }
        tries = tries.saturating_add(1);
        if SEIZED.load(Ordering::Relaxed) || (crate::percpu::in_nmi() && tries > 1000) {
            break false;
        }
        core::hint::spin_loop();
    };
    let _ = Port.write_fmt(text);
    let _ = Port.write_str("\n");
    if owned {
        BUSY.store(false, Ordering::Release);
    }
}

/// A byte that somebody typed, if any.
pub(crate) fn typed() -> Option<u8> {
    // SAFETY: the serial port touches no memory.
    unsafe { (asm::in8(COM1 + 5) & 1 != 0).then(|| asm::in8(COM1)) }
}
