//! Counting instructions, and the table that they go into.

use alloc::vec::Vec;
use core::arch::asm;

use kmem_sync::{Cpu, Pinned, SpinLock};

use crate::asm::tsc;
use crate::cpu::KernelCpu;

/// Batches of which the median is taken.
const BATCHES: usize = 15;

/// The table: each row is printed at once.
#[derive(Debug)]
pub(super) struct Table {
    rows: u32,
    above_half: Vec<&'static str>,
    /// Whether rows are compared: those that only show that the meter is right are not.
    compares: bool,
}

impl Table {
    pub(super) fn new() -> Self {
        println!("{:<46} {:>10} {:>10} {:>7}", "operation", "kmem", "Linux", "share");
        Self { rows: 0, above_half: Vec::new(), compares: false }
    }

    /// A heading, from which on rows are compared.
    pub(super) fn section(&mut self, name: &str) {
        self.compares = true;
        println!("-- {name}");
    }

    /// One row. `tenths` are tenths of an instruction; so is `linux`, zero where Linux has no such row.
    pub(super) fn row(&mut self, name: &'static str, tenths: u64, linux: u64) {
        self.rows += u32::from(self.compares);
        let shown = |tenths: u64| (tenths / 10, tenths % 10);
        let (whole, tenth) = shown(tenths);
        if linux == 0 {
            println!("{name:<46} {whole:>8}.{tenth} {:>10} {:>7}", "-", "-");
            return;
        }
        let (linux_whole, linux_tenth) = shown(linux);
        let percent = tenths * 100 / linux;
        println!("{name:<46} {whole:>8}.{tenth} {linux_whole:>8}.{linux_tenth} {percent:>5} %");
        if self.compares && tenths * 2 > linux {
            self.above_half.push(name);
        }
    }

    /// The closing lines.
    pub(super) fn finish(self) {
        println!("{} rows, {} above half of Linux's", self.rows, self.above_half.len());
        for name in &self.above_half {
            println!("above half: {name}");
        }
    }
}

/// The value, of which the compiler knows nothing any more. Unlike `core::hint::black_box` it stays in its register, so nothing
/// is added to what is counted.
#[inline(always)]
pub(super) fn opaque(value: usize) -> usize {
    let mut value = value;
    // SAFETY: nothing.
    unsafe { asm!("/* {0} */", inout(reg) value, options(nostack, preserves_flags)) };
    value
}

/// As [`opaque`] for an address.
#[inline(always)]
pub(super) fn opaque_pointer(value: core::ptr::NonNull<u8>) -> core::ptr::NonNull<u8> {
    let mut address = value.as_ptr();
    // SAFETY: nothing; the address is the same.
    unsafe {
        asm!("/* {0} */", inout(reg) address, options(nostack, preserves_flags));
        core::ptr::NonNull::new_unchecked(address)
    }
}

/// What the loop itself takes for `n` rounds.
#[inline(never)]
fn empty_loop(n: usize) -> u64 {
    let start = tsc();
    for i in 0..n {
        opaque(i);
    }
    tsc() - start
}

fn median(mut counts: [u64; BATCHES]) -> u64 {
    counts.sort_unstable();
    counts[BATCHES / 2]
}

/// Tenths of an instruction a round of `f`, which runs `n` times a batch.
#[inline(always)]
pub(super) fn each(n: usize, mut f: impl FnMut(usize)) -> u64 {
    per_batch(
        n,
        || (),
        |()| {
            for i in 0..n {
                f(opaque(i));
            }
        },
    )
}

/// As [`each`] for a batch that is prepared before and has to run as a whole: `batch` is timed, `prepare` is not.
#[inline(always)]
pub(super) fn per_batch<T>(n: usize, mut prepare: impl FnMut() -> T, mut batch: impl FnMut(T)) -> u64 {
    let mut counts = [0; BATCHES];
    for count in &mut counts {
        let prepared = prepare();
        let start = tsc();
        batch(prepared);
        *count = tsc() - start;
    }
    // The first run warms everything up; the median passes over it.
    let loops = empty_loop(n);
    median(counts).saturating_sub(loops) * 10 / n as u64
}

/// Tenths of an instruction a round, over all rounds.
#[inline(always)]
pub(super) fn sustained(n: usize, mut f: impl FnMut(usize)) -> u64 {
    for i in 0..n / 4 {
        f(i);
    }
    let start = tsc();
    for i in 0..n {
        f(opaque(i));
    }
    (tsc() - start).saturating_sub(empty_loop(n)) * 10 / n as u64
}

/// Two batches that belong together, such as many allocations and then many frees, timed one by one.
#[inline(always)]
pub(super) fn both(n: usize, mut one: impl FnMut(), mut other: impl FnMut()) -> (u64, u64) {
    let (mut ones, mut others) = ([0; BATCHES], [0; BATCHES]);
    for (a, b) in ones.iter_mut().zip(&mut others) {
        let start = tsc();
        one();
        let middle = tsc();
        other();
        (*a, *b) = (middle - start, tsc() - middle);
    }
    let loops = empty_loop(n);
    let share = |counts| median(counts).saturating_sub(loops) * 10 / n as u64;
    (share(ones), share(others))
}

#[inline(never)]
fn called() {
    // SAFETY: nothing.
    unsafe { asm!("", options(nostack)) };
}

/// Rows that show that the meter is right.
pub(super) fn calibrate(table: &mut Table) {
    println!("-- calibration");
    table.row("empty loop", each(1000, |_| {}), 0);
    // SAFETY: nothing.
    table.row("10 x nop", each(1000, |_| unsafe { asm!(".rept 10", "nop", ".endr", options(nostack)) }), 100);
    table.row("call + ret of a function", each(1000, |_| called()), 20);
    table.row(
        "local_irq_save + restore",
        each(1000, |_| {
            let _off = kmem_sync::IrqGuard::new(&KernelCpu);
            called();
        }) - 20,
        60,
    );
    table.row(
        "preempt_disable + enable",
        each(1000, |_| {
            let _pin = Pinned::new(&KernelCpu);
        }),
        30,
    );
    let lock = SpinLock::new(0_u32);
    table.row("spin_lock + unlock", each(1000, |_| lock.with(&KernelCpu, |n| *n += 1)), 140);
    assert_eq!(KernelCpu.nr_cpus(), 1);
}
