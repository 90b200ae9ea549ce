//! How hard it is to find pages: what share of the pages looked at could not be freed (`vmpressure`).
//!
//! ```text
//! unreclaimed share of a window of 512 scanned pages:   0 ..... 60 % ..... 95 % ..... 100 %
//!                                                        low      medium     critical
//! ```

use kmem_gfp::Gfp;
use kmem_sync::{Cpu, SpinLock, const_fn};

/// How hard reclaim has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PressureLevel {
    /// Memory is being reclaimed, and easily.
    Low,
    /// Something is evicted that is still of use.
    Medium,
    /// The machine is about to run out.
    Critical,
}

/// Scanned pages after which a level is computed.
pub const PRESSURE_WINDOW: u64 = 512;
/// The share in percent from which the level is medium.
pub const MEDIUM_PERCENT: u64 = 60;
/// The share in percent from which the level is critical.
pub const CRITICAL_PERCENT: u64 = 95;
/// At this priority and below the level is critical whatever was found.
pub const CRITICAL_PRIORITY: u8 = 3;

/// The level of a window. Pure.
pub const fn pressure_level(scanned: u64, reclaimed: u64) -> PressureLevel {
    if scanned == 0 || reclaimed >= scanned {
        return PressureLevel::Low;
    }
    let unreclaimed = (scanned - reclaimed) as u128 * 100 / scanned as u128;
    if unreclaimed >= CRITICAL_PERCENT as u128 {
        PressureLevel::Critical
    } else if unreclaimed >= MEDIUM_PERCENT as u128 {
        PressureLevel::Medium
    } else {
        PressureLevel::Low
    }
}

/// Sums up scanned and freed pages until a window is full.
#[derive(Debug, Default)]
pub struct VmPressure {
    window: SpinLock<Window>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    scanned: u64,
    reclaimed: u64,
}

impl VmPressure {
    const_fn! {
        /// An empty window.
        pub fn new() -> Self {
            Self { window: SpinLock::new(Window { scanned: 0, reclaimed: 0 }) }
        }
    }

    /// Adds a pass of a run with flags `gfp`. The level, if that filled the window, which starts anew then. Runs that may
    /// neither start I/O nor enter a filesystem say nothing about pressure unless they serve movable or high memory. Task
    /// context; a short spin lock.
    pub fn note<C: Cpu>(&self, cpu: &C, gfp: Gfp, scanned: u64, reclaimed: u64) -> Option<PressureLevel> {
        if scanned == 0 || !gfp.intersects(Gfp::HIGHMEM | Gfp::MOVABLE | Gfp::IO | Gfp::FS) {
            return None;
        }
        self.window.with(cpu, |window| {
            window.scanned = window.scanned.saturating_add(scanned);
            window.reclaimed = window.reclaimed.saturating_add(reclaimed);
            if window.scanned < PRESSURE_WINDOW {
                return None;
            }
            let full = core::mem::take(window);
            Some(pressure_level(full.scanned, full.reclaimed))
        })
    }

    /// A run has come down to `priority`: at 3 and below that counts as a full window without any page freed.
    pub fn note_priority<C: Cpu>(&self, cpu: &C, gfp: Gfp, priority: u8) -> Option<PressureLevel> {
        if priority > CRITICAL_PRIORITY {
            return None;
        }
        self.note(cpu, gfp, PRESSURE_WINDOW, 0)
    }
}
