//! Object caches, in reading order:
//!
//! - [`Slabs`], the family of caches over one page source; what it needs: [`SlabEnv`];
//! - the hot path (`fast`), what is behind it (`slow`, `slow_free`, `barn`, `sheaf`), and the slab level (`backend`, `pages`, `slab`,
//!   `node`);
//! - making and emptying a cache: `create`, `layout`, `order`, `destroy`;
//! - many objects at once: `bulk`, `prefilled`; any context: `nolock`; readers: `rcu`; reserves: `mempool`;
//! - objects that somebody pays for: `account`, `payers`;
//! - typed objects: `typed`; questions: `object`, `info`; trouble: `debug`, `inject`.
#![doc = include_str!("../README.md")]
#![no_std]

#[cfg(test)]
extern crate std;

mod account;
mod args;
mod backend;
mod barn;
mod bulk;
mod cache;
mod create;
mod debug;
mod destroy;
mod direct;
mod env;
mod error;
mod family;
mod fast;
mod flags;
mod flush;
mod info;
mod inject;
mod layout;
mod mempool;
mod node;
mod nolock;
mod object;
mod order;
mod pages;
mod payers;
mod prefilled;
mod rcu;
mod sheaf;
mod slab;
mod slots;
mod slow;
mod slow_free;
mod typed;

#[cfg(test)]
mod tests;

pub use args::{CacheArgs, Ctor, SlabConfig};
pub use cache::{CacheName, KmemCache};
pub use debug::{
    CacheDebug, DebugOptions, POISON_END, POISON_FREE, POISON_INUSE, RED_ACTIVE, RED_INACTIVE, Track, TrackKind,
};
pub use direct::{IdleSlot, SheafSlot};
pub use env::SlabEnv;
pub use error::{BulkFreeError, CreateError, DestroyError, ObjectError, UsercopyError};
pub use family::{SlabStats, Slabs};
pub use flags::SlabFlags;
pub use info::{CacheStats, NodeStats, SLABINFO_HEADER, SharedId, SlabInfo};
pub use inject::FaultInjection;
pub use layout::MIN_ALIGN;
pub use mempool::{CacheElements, ElementSource, Mempool, PoolBox};
pub use object::Object;
pub use prefilled::PrefilledSheaf;
pub use rcu::RcuHead;
pub use typed::{Cache, CacheBox, UninitBox};

/// The longest name of a cache, in bytes.
pub const NAME_MAX: usize = 63;
