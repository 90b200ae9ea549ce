//! What the shim costs over `core`: pairs of functions that should compile to the same instructions.
//!
//! ```sh
//! cargo rustc --release -p kmem-sync --example costs -- --emit asm -C lto=no -C codegen-units=1
//! ```
//!
//! Look for the function names in the `.s` file that appears beside the example in `target/release/examples`. Functions with
//! the same code are merged by the compiler: the second name is then an alias (`.set`) of the first.

use std::cell;
use std::sync::atomic::{AtomicU64, Ordering};

use kmem_sync::atomic::AtomicU64 as ShimU64;
use kmem_sync::{CpuSlot, SingleCpu, SpinLock, UnsafeCell};

/// A cell through the shim.
///
/// # Safety
/// Nobody else uses the cell.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cell_through_the_shim(cell: &UnsafeCell<u64>) -> u64 {
    // SAFETY: the caller's promise.
    cell.with_mut(|value| unsafe {
        *value += 1;
        *value
    })
}

/// The same with `core`'s cell.
///
/// # Safety
/// Nobody else uses the cell.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cell_of_core(cell: &cell::UnsafeCell<u64>) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        *cell.get() += 1;
        *cell.get()
    }
}

/// An atomic through the shim.
#[unsafe(no_mangle)]
pub extern "C" fn atomic_through_the_shim(word: &ShimU64) -> u64 {
    word.fetch_add(2, Ordering::AcqRel)
}

/// The same with `core`'s atomic.
#[unsafe(no_mangle)]
pub extern "C" fn atomic_of_core(word: &AtomicU64) -> u64 {
    word.fetch_add(2, Ordering::AcqRel)
}

/// A trylock through the shim.
#[unsafe(no_mangle)]
pub extern "C" fn trylock_through_the_shim(lock: &SpinLock<u64>) -> bool {
    lock.try_with(|value| *value += 3).is_some()
}

/// The same with `spin`'s lock.
#[unsafe(no_mangle)]
pub extern "C" fn trylock_of_spin(lock: &spin::mutex::SpinMutex<u64>) -> bool {
    lock.try_lock().map(|mut value| *value += 3).is_some()
}

/// A whole local section on the only CPU: the floor of every fast path.
///
/// # Safety
/// The caller is pinned to the slot's CPU.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn local_section(slot: &CpuSlot<u64>) -> bool {
    // SAFETY: the caller's promise.
    unsafe { slot.try_with::<SingleCpu, _>(|value| *value += 4) }.is_some()
}

fn main() {
    println!("Read this example's assembly; see the top of its source.");
}
