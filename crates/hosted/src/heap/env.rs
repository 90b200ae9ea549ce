//! The global heap's allocators: everything in statics, so that each access is to an address known when the program is
//! linked.
//!
//! ```text
//! RAM    memory      HOST  frame table, epochs, context        written once by `start`
//! BUDDY  pages of HOST                     SLABS  objects on pages of BUDDY
//! ```

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use kmem_buddy::{Buddy, BuddyEnv};
use kmem_gfp::{FlatFrameTable, PfnRange};
use kmem_slab::{SlabConfig, SlabEnv, Slabs};
use kmem_sync::CpuId;

use super::cpu::HeapCpu;
use crate::grace::EpochGrace;
use crate::host::{Host, HostContext, HostReclaimer};
use crate::ram::Ram;

/// A value that is written once, before anybody reads it.
pub(super) struct Late<T>(UnsafeCell<MaybeUninit<T>>);

// SAFETY: after the one write, which happens before every read (`get`'s contract), there is only shared access.
unsafe impl<T: Sync> Sync for Late<T> {}

impl<T> Late<T> {
    const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Writes the value.
    ///
    /// # Safety
    /// Called once, before any [`get`](Self::get), by one thread.
    pub(super) unsafe fn set(&self, value: T) {
        // SAFETY: nobody else accesses the cell yet.
        unsafe { (*self.0.get()).write(value) };
    }

    /// The value.
    ///
    /// # Safety
    /// [`set`](Self::set) happened before.
    #[inline(always)]
    pub(super) unsafe fn get(&self) -> &T {
        // SAFETY: written, and only shared since.
        unsafe { (*self.0.get()).assume_init_ref() }
    }
}

/// The memory.
pub(super) static RAM: Late<Ram> = Late::new();
/// What the allocators stand on.
pub(super) static HOST: Late<Host<HeapCpu>> = Late::new();
/// The page allocator.
pub(super) static BUDDY: Buddy<HeapEnv> = Buddy::new(HeapEnv(()));
/// The caches of the small classes. Sheaves and barns may hold many of their objects.
pub(super) static SLABS: Slabs<HeapEnv> = Slabs::with_config(
    HeapEnv(()),
    SlabConfig { min_objects: 8, barn_full: 20, barn_empty: 20, merge: false, randomize: false, ..SlabConfig::DEFAULT },
);

/// The caches of the medium classes. Each object is worth pages, so little is held back.
pub(super) static MEDIUM: Slabs<HeapEnv> = Slabs::with_config(
    HeapEnv(()),
    SlabConfig {
        max_order: 5,
        min_objects: 1,
        max_sheaf_capacity: 4,
        barn_full: 4,
        barn_empty: 4,
        merge: false,
        randomize: false,
        ..SlabConfig::DEFAULT
    },
);

static CPU: HeapCpu = HeapCpu::new();

/// The environment of the global heap's allocators.
///
/// # Invariants
/// Its methods are called only after [`HOST`] has been set: by `start`, or by a thread that found a cache or an address
/// that came from `start`.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeapEnv(());

/// What the allocators stand on.
#[inline(always)]
pub(super) fn host() -> &'static Host<HeapCpu> {
    // SAFETY: only reached through `HeapEnv` and by those who know the heap to be up (invariant of `HeapEnv`).
    unsafe { HOST.get() }
}

impl BuddyEnv for HeapEnv {
    type Cpu = HeapCpu;
    type Context = HostContext<HeapCpu>;
    type Reclaimer = HostReclaimer;

    #[inline(always)]
    fn cpu(&self) -> &HeapCpu {
        &CPU
    }
    #[inline(always)]
    fn context(&self) -> &HostContext<HeapCpu> {
        &host().context
    }
    #[inline(always)]
    fn reclaimer(&self) -> &HostReclaimer {
        &host().reclaimer
    }
    unsafe fn zero_frames(&self, range: PfnRange) {
        // SAFETY: the caller's promise is the same.
        unsafe { host().ram.zero(range) }
    }
    fn node_of_cpu(&self, _cpu: CpuId) -> kmem_gfp::NodeId {
        kmem_gfp::NodeId(0)
    }
}

impl SlabEnv for HeapEnv {
    type Cpu = HeapCpu;
    type Pages = Buddy<Self>;
    type Frames = FlatFrameTable;
    type Context = HostContext<HeapCpu>;
    type Grace = EpochGrace<HeapCpu>;

    #[inline(always)]
    fn cpu(&self) -> &HeapCpu {
        &CPU
    }
    #[inline(always)]
    fn pages(&self) -> &Buddy<Self> {
        &BUDDY
    }
    #[inline(always)]
    fn frames(&self) -> &FlatFrameTable {
        &host().table
    }
    #[inline(always)]
    fn context(&self) -> &HostContext<HeapCpu> {
        &host().context
    }
    #[inline(always)]
    fn grace(&self) -> &EpochGrace<HeapCpu> {
        &host().grace
    }
    fn entropy(&self) -> u64 {
        host().tunables.entropy.unwrap_or_default()
    }
}
