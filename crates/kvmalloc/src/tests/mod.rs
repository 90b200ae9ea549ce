//! Tests of kvmalloc over two toy allocators.

mod toys;

#[cfg(not(loom))]
mod failures;
#[cfg(not(loom))]
mod frees;
#[cfg(loom)]
mod loom;
#[cfg(not(loom))]
mod plan;
#[cfg(not(loom))]
mod properties;
#[cfg(not(loom))]
mod realloc;
#[cfg(not(loom))]
mod tries;
