//! Tests of the page allocator.

#[cfg(not(loom))]
mod basic;
#[cfg(not(loom))]
mod calls;
#[cfg(not(loom))]
mod compaction;
#[cfg(not(loom))]
mod contig;
#[cfg(not(loom))]
mod daemon;
#[cfg(not(loom))]
mod isolation;
#[cfg(loom)]
mod loom;
#[cfg(loom)]
mod loom_moving;
#[cfg(not(loom))]
mod marks;
#[cfg(not(loom))]
mod moving;
#[cfg(not(loom))]
mod numa;
#[cfg(not(loom))]
mod packing;
#[cfg(not(loom))]
mod properties;
#[cfg(not(loom))]
mod pure;
pub(crate) mod rig;
#[cfg(not(loom))]
mod sets;
#[cfg(not(loom))]
mod slow;
pub(crate) mod tenants;
#[cfg(not(loom))]
mod types;
#[cfg(not(loom))]
mod views;
