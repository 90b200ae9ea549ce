//! Memory under pressure: reclaim on the machine, with pages that have contents, swap, tasks and groups.
//!
//! ```text
//! MachineBuilder::reclaim(ReclaimOptions) ─▶ Mm on this host
//!    kswapd threads (one a node) ── flusher ── reaper                          `services`
//!    PageStore: file-like pages over a file, anonymous pages over swap         `store`, `owner`
//!    Swap: slots of a SwapDevice                                               `swap`
//!    Task: who can be killed, and which group pays                             `task`
//!    HostPark: sleeping on the host                                            `park`
//! ```
//!
//! `setup` puts them together at boot; `platform` is the machine as [`ReclaimPlatform`](kmem::ReclaimPlatform).

mod owner;
mod park;
mod platform;
mod services;
mod setup;
mod store;
mod swap;
mod task;

pub(crate) use setup::HostMemory;

pub use park::HostPark;
pub use setup::{HostMm, MemoryError, ReclaimOptions};
pub use store::{Access, PageStore, PageStoreStats, StoreError};
pub use swap::{Swap, SwapFull};
pub(crate) use task::deliver_signals;
pub use task::{Task, TaskStats, current_task_killed};
