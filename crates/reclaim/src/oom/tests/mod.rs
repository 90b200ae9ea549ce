//! Tests of the OOM killer over a scripted machine.

#[cfg(not(loom))]
mod decide;
#[cfg(loom)]
mod loom;
#[cfg(not(loom))]
mod reap;
#[cfg(not(loom))]
mod rig;
#[cfg(not(loom))]
mod select;
