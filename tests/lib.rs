//! What the tests that cross crates share: hosted machines and a reclaimer that follows a script.
//!
//! The guide to the contract, `docs/contract.md`, is compiled and run as this crate's doctests.

mod script;

pub use script::{Heard, Script};

use kmem_gfp::{Gfp, Order, Pfn};
use kmem_hosted::{Machine, Reports, ZoneSplit};

/// The guide to the contract; its examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../docs/contract.md")]
struct Contract;
/// The front page.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
/// The guide to choosing an allocator.
#[cfg(doctest)]
#[doc = include_str!("../docs/choosing.md")]
struct Choosing;

/// The allocators of a hosted machine.
pub type Kmem = &'static kmem::Kmem<kmem_hosted::Host<kmem_hosted::HostCpu>>;

/// A machine with a bit of every zone and nobody to reclaim; reports are captured.
///
/// # Panics
/// If the host refuses memory.
pub fn machine() -> &'static Machine {
    Machine::builder().cpus(2).ram_bytes(256 << 20).reports(Reports::Capture).boot().expect("the machine boots")
}

/// A machine of 64 MiB in one zone whose shortages `script` hears of.
///
/// # Panics
/// If the host refuses memory.
pub fn short_machine(script: &'static Script) -> &'static Machine {
    let machine = Machine::builder()
        .cpus(1)
        .ram_bytes(64 << 20)
        .zones(ZoneSplit::NORMAL_ONLY)
        .reports(Reports::Capture)
        .reclaimer(script)
        .boot()
        .expect("the machine boots");
    script.serve(machine.kmem());
    machine
}

/// Takes single pages with `gfp` until none is left for it.
pub fn exhaust(kmem: Kmem, gfp: Gfp) -> Vec<Pfn> {
    core::iter::from_fn(|| kmem.alloc_pages(gfp | Gfp::NOWARN, Order::ZERO).ok()).collect()
}

/// Gives single pages back.
///
/// # Safety
/// The caller owns them, and nobody uses their memory any more.
///
/// # Panics
/// If one is refused.
pub unsafe fn free_all(kmem: Kmem, pages: Vec<Pfn>) {
    for page in pages {
        // SAFETY: the caller's promise.
        unsafe { kmem.free_pages(page, Order::ZERO) }.expect("the page is ours");
    }
}
