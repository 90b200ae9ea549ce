//! In reading order:
//!
//! - [`Config`], [`geometry`]: size classes and how zspages are cut;
//! - [`Handle`]: the name of an object, and the entry behind it;
//! - [`Pool`]: [`store`](Pool::store), [`read`](Pool::read), [`write`](Pool::write), [`free`](Pool::free),
//!   [`compact`](Pool::compact), the figures ([`PoolStats`], [`ClassStats`]);
//! - seams: [`ZsEnv`] is what a pool needs, [`Shrinker`] and [`MovableOwner`](kmem_gfp::MovableOwner) what it offers.
#![doc = include_str!("../README.md")]
#![no_std]

mod access;
mod carry;
mod class;
mod compact;
#[forbid(unsafe_code)]
mod config;
mod directory;
#[forbid(unsafe_code)]
mod env;
#[forbid(unsafe_code)]
mod error;
mod freeing;
#[forbid(unsafe_code)]
pub mod geometry;
mod handle;
mod inner;
mod lock_word;
mod locked;
mod meta;
mod migrate;
mod pool;
mod released;
mod runs;
mod settle;
mod shard;
#[forbid(unsafe_code)]
mod stats;
mod store;
mod verify;
mod zspage;

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;

pub use access::{PartsGuard, ReadGuard};
pub use compact::Shrinker;
pub use config::{Config, DebugFlags};
pub use env::ZsEnv;
pub use error::{AccessError, Corruption, CreateError, NotEmpty, StoreError};
pub use handle::Handle;
pub use pool::Pool;
pub use stats::{ClassStats, PoolStats};
