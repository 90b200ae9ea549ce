//! Tests of pools over a small machine made for them.

mod machine;
#[cfg(not(loom))]
mod recorded;
