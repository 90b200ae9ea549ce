//! Tests of pools over a small machine made for them.

mod machine;

#[cfg(loom)]
mod loom;

#[cfg(not(loom))]
mod corruption;
#[cfg(not(loom))]
mod cpus;
#[cfg(not(loom))]
mod failures;
#[cfg(not(loom))]
mod geometry;
#[cfg(not(loom))]
mod moving;
#[cfg(not(loom))]
mod objects;
#[cfg(not(loom))]
mod properties;
#[cfg(not(loom))]
mod recorded;
#[cfg(not(loom))]
mod threads;
