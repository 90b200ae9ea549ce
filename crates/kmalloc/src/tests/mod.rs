//! Tests of kmalloc.

mod classes;
mod resize;

#[cfg(not(loom))]
mod blocks;
#[cfg(not(loom))]
mod extras;
#[cfg(not(loom))]
mod frees;
#[cfg(loom)]
mod loom;
mod machine;
#[cfg(not(loom))]
mod properties;
#[cfg(not(loom))]
mod realloc;
