//! Object caches: sheaves, barns, slabs, bulk, RCU frees, mempools, debugging.
#![no_std]

mod args;
mod env;
mod error;
mod flags;

pub use args::{CacheArgs, Ctor, SlabConfig};
pub use env::SlabEnv;
pub use error::{BulkFreeError, CreateError, DestroyError, ObjectError, UsercopyError};
pub use flags::SlabFlags;

/// The longest name of a cache, in bytes.
pub const NAME_MAX: usize = 63;
