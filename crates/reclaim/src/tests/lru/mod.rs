//! Tests of the page lists over a machine made for them.

mod machine;

#[cfg(loom)]
mod loom;

#[cfg(not(loom))]
mod classic;
#[cfg(not(loom))]
mod failures;
#[cfg(not(loom))]
mod generations;
#[cfg(not(loom))]
mod groups;
#[cfg(not(loom))]
mod moving;
#[cfg(not(loom))]
mod pages;
#[cfg(not(loom))]
mod properties;
