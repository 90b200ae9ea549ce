//! Tests of the crate, on a machine made of host memory.

#[cfg(not(loom))]
mod basic;
mod env;
