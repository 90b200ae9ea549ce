//! Synchronization for kmem: the one crate that knows whether it runs on hardware or inside the loom model checker.
//!
//! ```text
//! atomic, UnsafeCell      core's in a normal build, loom's under `--cfg loom`
//! SpinLock, TicketLock    shared structures; IrqLock where an interrupt handler may want the same lock
//! Cpu, Pinned             the platform: which CPU this is, how to stay on it
//! PerCpu, CpuSlot         a value per CPU behind a local trylock: two plain stores, no atomic read-modify-write
//! LocalCounter            a counter with one writing CPU
//! GracePeriod             "every reader now running has finished"
//! ```
//!
//! No other crate of the workspace says `cfg(loom)` outside its tests.
#![doc = include_str!("../README.md")]
#![cfg_attr(not(loom), no_std)]

mod cell;
mod counter;
mod cpu;
mod grace;
mod local;
mod lock;
mod percpu;

#[cfg(test)]
mod tests;

pub use cell::UnsafeCell;
pub use counter::{LocalCounter, ShardedCounter};
pub use cpu::{Cpu, CpuId, IrqGuard, IrqState, Pinned, SingleCpu};
pub use grace::{Grace, GracePeriod, NoReaders};
pub use local::LocalLock;
pub use lock::{IrqLock, SpinLock, TicketLock};
pub use percpu::{CpuSlot, PerCpu};

/// Atomics and fences: `core::sync::atomic`, or loom's under `--cfg loom`.
pub mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::{
        AtomicBool, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
        Ordering, compiler_fence, fence,
    };
    #[cfg(loom)]
    pub use loom::sync::atomic::{
        AtomicBool, AtomicI64, AtomicIsize, AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize,
        Ordering, fence,
    };

    /// Orders a read-modify-write (of any ordering) before later loads of other words: half of a store-load handshake.
    ///
    /// Costs nothing where such instructions are full barriers (x86-64); a full fence elsewhere, and under loom, which takes
    /// sequentially consistent accesses for acquire and release.
    #[inline(always)]
    pub fn fence_after_rmw() {
        if cfg!(all(target_arch = "x86_64", not(loom))) {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
    }

    /// A fence for the compiler only; a full fence under loom, whose coroutines share no program order.
    #[cfg(loom)]
    pub fn compiler_fence(order: Ordering) {
        fence(order);
    }
}

/// Spin-wait hints.
pub mod hint {
    #[cfg(not(loom))]
    pub use core::hint::spin_loop;

    /// Lets another model thread run.
    #[cfg(loom)]
    pub fn spin_loop() {
        loom::thread::yield_now();
    }
}

/// Declares a function that is `const` in a normal build and plain under loom, whose constructors are not `const`.
///
/// ```
/// kmem_sync::const_fn! {
///     /// Doubles.
///     pub fn twice(n: u32) -> u32 { n * 2 }
/// }
/// const FOUR: u32 = twice(2);
/// assert_eq!(FOUR, 4);
/// ```
#[macro_export]
macro_rules! const_fn {
    ($(#[$meta:meta])* $vis:vis fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$meta])*
        $vis const fn $($rest)*

        #[cfg(loom)]
        $(#[$meta])*
        $vis fn $($rest)*
    };
    ($(#[$meta:meta])* $vis:vis unsafe fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$meta])*
        $vis const unsafe fn $($rest)*

        #[cfg(loom)]
        $(#[$meta])*
        $vis unsafe fn $($rest)*
    };
}
