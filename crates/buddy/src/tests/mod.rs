//! Tests of the page allocator.

mod basic;
pub(crate) mod rig;
