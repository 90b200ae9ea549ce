//! Tests of the synchronization primitives.

#[cfg(loom)]
mod loom;
#[cfg(not(loom))]
mod unit;
