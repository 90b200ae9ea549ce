//! Modules in reading order:
//!
//! - what is asked for and by whom: [`VmRequest`], [`VmFlags`], [`VmallocError`], [`VfreeError`]; the seams
//!   [`VmallocEnv`] and [`AddressSpace`];
//! - the calls on [`Vmalloc`]: `forms` (the familiar names) over `alloc`, `free`, `vrealloc`, `vmap`, `map_ram`,
//!   `percpu_areas`; the owned handle [`VmArea`]; questions in `query`, views in `info`;
//! - the ranges: `reserve` over `node` (pools) and `tree` (`free_map`, `index`), `purge`;
//! - descriptors: `area`, `runs`; memory for all that: `meta`.
#![doc = include_str!("../README.md")]
#![no_std]

mod address_space;
mod alloc;
mod area;
mod env;
mod error;
mod forms;
mod frames;
mod free;
mod free_map;
mod handle;
mod index;
mod info;
mod map_ram;
mod mapping;
mod meta;
mod node;
mod percpu_areas;
mod purge;
mod query;
mod request;
mod reserve;
mod runs;
mod tree;
mod virt;
mod vmalloc;
mod vmap;
mod vrealloc;

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;

pub use address_space::{AddressSpace, CpuSet, Granule, MapError, NoMapping, Prot, Run, TableSource};
pub use alloc::SUPPORTED;
pub use env::{ExhaustionNotifier, NoNotifier, PoolShrinker, VmallocEnv, Work};
pub use error::{VfreeError, VmallocError};
pub use handle::VmArea;
pub use info::{VmallocInfo, VmallocStats};
pub use map_ram::RAM_PAGES_MAX;
pub use percpu_areas::PercpuArea;
pub use query::AreaInfo;
pub use request::{VmFlags, VmRequest};
pub use virt::VirtAllocator;
pub use vmalloc::Vmalloc;
