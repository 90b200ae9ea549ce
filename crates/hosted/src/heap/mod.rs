//! The global heap: one machine for the whole process, behind `#[global_allocator]`.
//!
//! - `alloc`: [`HostedAlloc`], the fast path; `class`: its size classes; `large`: everything above them;
//! - `env`, `start`: the allocators as statics, and how they are made on first use;
//! - `cpu`: threads as the heap's CPUs; `row`: where each finds its sheaves; `fork`: what a fork needs;
//! - `grow`: giving memory to the page allocator as it is needed; `limit`: giving it back to the host.

mod alloc;
mod class;
mod cpu;
mod env;
mod fork;
mod grow;
mod large;
mod limit;
mod row;
mod start;

pub use alloc::HostedAlloc;
pub use cpu::HeapCpu;
pub(crate) use cpu::leave;
