//! Tests of the block device in memory.

mod properties;
mod rules;
mod threads;

use crate::{Machine, Reports};

/// A machine of 32 MiB.
pub(super) fn machine() -> &'static Machine {
    Machine::builder().cpus(4).ram_bytes(32 << 20).reports(Reports::Capture).boot().unwrap()
}
