//! kvmalloc, in reading order:
//!
//! - what it is built over: [`KvmallocEnv`], an [`ObjectAllocator`](kmem_kmalloc::ObjectAllocator) and a
//!   [`VirtAllocator`](kmem_vmalloc::VirtAllocator);
//! - the decisions, pure: `plan`;
//! - [`Kvmalloc`]: allocation (`kvmalloc`, `forms`), freeing (`free`), resizing (`kvrealloc`), frees that wait for readers
//!   (`rcu`); memory that frees itself ([`KvBlock`]).
#![doc = include_str!("../README.md")]
#![no_std]

#[cfg(test)]
extern crate std;

mod block;
mod env;
mod error;
mod forms;
mod free;
mod kvmalloc;
mod kvrealloc;
mod plan;
mod rcu;

#[cfg(test)]
mod tests;

pub use block::KvBlock;
pub use env::KvmallocEnv;
pub use error::{KvfreeError, KvmallocError, KvreallocError};
pub use kvmalloc::Kvmalloc;
pub use plan::{KVMALLOC_FALLBACK_MAX, object_gfp};

pub use kmem_kmalloc::RcuHead;
