//! A small kernel for x86-64 whose only memory manager is kmem: `cargo xtask boot` builds and boots it.
//!
//! ```text
//! start     the order in which everything comes to life: read this first
//! machine   platform (what kmem asks of a machine) ─┬─ cpu      who runs, pin, interrupts off, barrier on all CPUs
//!                                                   ├─ context  may the running code sleep, its scopes, reports
//!                                                   ├─ grace    quiescent states of the scheduler
//!                                                   ├─ frames   frame table over the direct map
//!                                                   └─ reclaim  whom to ask in a shortage
//!           memory (the loader's map ─▶ kmem), page_table and vm (vmalloc), global (alloc's collections)
//! hardware  console, exit, asm, descriptors, trap, apic, acpi, pvh, smp, ipi, pci, disk
//! threads   sched, thread, sleep
//! pressure  daemons (kswapd, kcompactd), page_cache
//! suite     the tests that run inside, and the costs
//! ```
//!
//! `docs/porting.md` goes through the files in the order in which a new kernel needs them.
#![cfg_attr(bare_metal, no_std, no_main)]

#[cfg(bare_metal)]
extern crate alloc;

#[cfg(bare_metal)]
#[macro_use]
mod console;
#[cfg(bare_metal)]
mod acpi;
#[cfg(bare_metal)]
mod apic;
#[cfg(bare_metal)]
mod asm;
#[cfg(bare_metal)]
mod cmdline;
#[cfg(bare_metal)]
mod context;
#[cfg(bare_metal)]
mod cpu;
#[cfg(bare_metal)]
mod daemons;
#[cfg(bare_metal)]
mod descriptors;
#[cfg(bare_metal)]
mod disk;
#[cfg(bare_metal)]
mod exit;
#[cfg(bare_metal)]
mod fault;
#[cfg(bare_metal)]
mod frames;
#[cfg(bare_metal)]
mod global;
#[cfg(bare_metal)]
mod grace;
#[cfg(bare_metal)]
mod ipi;
#[cfg(bare_metal)]
mod late;
#[cfg(bare_metal)]
mod memory;
#[cfg(bare_metal)]
mod page_cache;
#[cfg(bare_metal)]
mod page_list;
#[cfg(bare_metal)]
mod page_table;
#[cfg(bare_metal)]
mod pci;
#[cfg(bare_metal)]
mod percpu;
#[cfg(bare_metal)]
mod platform;
#[cfg(bare_metal)]
mod pvh;
#[cfg(bare_metal)]
mod reclaim;
#[cfg(bare_metal)]
mod sched;
#[cfg(bare_metal)]
mod sleep;
#[cfg(bare_metal)]
mod smp;
#[cfg(bare_metal)]
mod start;
#[cfg(bare_metal)]
mod step;
#[cfg(bare_metal)]
mod suite;
#[cfg(bare_metal)]
mod symbols;
#[cfg(bare_metal)]
mod thread;
#[cfg(bare_metal)]
mod trap;
#[cfg(bare_metal)]
mod vm;

/// On the host there is nothing to run.
#[cfg(not(bare_metal))]
fn main() {
    println!("this is a kernel: boot it with `cargo xtask boot`");
}
