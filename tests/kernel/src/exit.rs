//! Ending the emulator with a status, and what a panic does.
//!
//! | status of QEMU | meaning |
//! | --- | --- |
//! | 33 | passed |
//! | 3, 5, 35 | panic outside of a test, fault, failed tests |
//! | 0 | a triple fault |

use core::panic::PanicInfo;

use crate::{asm, console, sched};

/// How it ends. The emulator's status is twice the number, plus one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Exit {
    /// Something panicked where nothing can go on.
    Panic = 1,
    /// A fault nobody expected.
    Fault = 2,
    /// Every test passed.
    Passed = 0x10,
    /// A test failed.
    Failed = 0x11,
}

/// Ends the emulator.
pub(crate) fn exit(how: Exit) -> ! {
    loop {
        // SAFETY: the port of QEMU's exit device; on a machine without it nothing is there.
        unsafe { asm::out32(0xf4, how as u32) };
    }
}

/// A panic ends the test whose thread it is in; anywhere else it ends the machine.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if sched::may_die() {
        println!("panic: {info}");
        sched::die();
    }
    console::seize();
    println!("panic where nothing can go on: {info}");
    exit(Exit::Panic)
}
