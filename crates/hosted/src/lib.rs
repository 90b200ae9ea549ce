//! A machine in a process, in reading order:
//!
//! - `plan`, `ram`: physical memory, laid out in zones and nodes, backed by host pages on first touch; `space`: the
//!   addresses at which vmalloc maps it a second time;
//! - `slots`, `thread`, `cpu`, `barrier`, `door`: threads as CPUs;
//! - `epoch`: grace periods;
//! - `context`: tasks, interrupts, reports;
//! - `movable`: memory that is moved while it is in use, and who compacts;
//! - `host`, `platform`: these parts as kmem wants them; `builder`, `machine`, `grow`: a machine, its boot, memory added later;
//! - `memory`: memory under pressure: reclaim, pages with contents, swap, tasks;
//! - `compress`, `zram`, `zswap`: compressed memory: a block device, a cache in front of swap;
//! - `heap`: the global heap of an ordinary program; `release`: free memory back to the host;
//! - `sys`: the host's system calls.
#![doc = include_str!("../README.md")]

mod barrier;
mod builder;
mod compress;
mod context;
mod cpu;
#[cfg_attr(loom, expect(dead_code, reason = "the heap, which uses it, needs statics that loom does not have"))]
mod door;
mod epoch;
mod grace;
mod grow;
#[cfg(not(loom))]
mod heap;
mod host;
mod machine;
mod memory;
mod movable;
mod plan;
mod platform;
mod ram;
mod release;
mod slots;
mod space;
mod sys;
mod thread;
mod zram;
mod zswap;

#[cfg(test)]
mod tests;

pub use builder::{BootError, MachineBuilder, VMALLOC_BYTES};
#[cfg(feature = "lz4")]
pub use compress::Lz4;
#[cfg(feature = "zstd")]
pub use compress::Zstd;
pub use compress::{Compressor, DecompressError, PageBytes};
pub use context::{CAPTURED_BYTES, Reports, in_context, task_flags};
pub use cpu::{BindError, Binding, HostCpu, MAX_CPUS};
pub use grace::{EpochGrace, RcuReadGuard};
#[cfg(not(loom))]
pub use heap::{HeapCpu, HostedAlloc};
pub use host::{Host, HostContext, HostReclaimer};
pub use machine::Machine;
pub use memory::{
    Access, HostMm, HostPark, MemoryError, PageStore, PageStoreStats, ReclaimOptions, StoreError, Swap, SwapFull, Task,
    TaskStats, current_task_killed,
};
pub use movable::{MovableError, MovableMemory, MovableStats, MoveFailure, PageMut, PageRef};
pub use plan::{MAX_NODES, MIN_RAM_BYTES, MemoryPlan, PlanError, Range, ZoneSplit};
pub use ram::{MapError, RamBacking};
pub use space::{HostSpace, SpaceStats};
pub use zram::{
    BackingDevice, BdStat, IoStat, MAX_SECONDARIES, MmStat, Recompress, Recompressed, Which, Zram, ZramCreateError,
    ZramError, ZramOptions,
};
pub use zswap::{Rejected, SwapDevice, SwapFile, Zswap, ZswapOptions, ZswapStats};

pub use kmem_gfp::{Gfp, TaskFlags};
pub use kmem_sync::{Cpu, CpuId};
