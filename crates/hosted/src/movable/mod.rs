//! Movable memory: pages that are in use and may be moved all the same.
//!
//! ```text
//! MovableMemory ─ guards ─▶ page_lock ◀─ owner: Movable ◀─ Platform::movable_owner ◀─ compaction, contiguous ranges
//!       │                                    │
//!       └── second mapping ◀── repoint ──────┘     frame words: tag Other, the slot, the owner
//! ```
//!
//! `daemon` compacts: on behalf of requests on machines whose reclaimer does not, and in the background.

mod daemon;
mod inject;
mod memory;
mod owner;
mod page_lock;
mod slot;

pub(crate) use daemon::Compactor;
pub use inject::MoveFailure;
pub use memory::{MovableError, MovableMemory, PageMut, PageRef};
pub(crate) use owner::Movable;
pub use owner::MovableStats;
#[cfg(all(test, loom))]
pub(crate) use page_lock::PageLock;
