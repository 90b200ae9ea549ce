//! Tests on a simulated machine: real bookkeeping memory, simulated page tables and translation caches.

#![allow(clippy::single_range_in_vec_init, reason = "lists of flushed ranges, most of one")]

#[cfg(loom)]
mod loom;

#[cfg(not(loom))]
mod areas;
#[cfg(not(loom))]
mod failure;
#[cfg(not(loom))]
mod free_map;
#[cfg(not(loom))]
mod frees;
#[cfg(not(loom))]
mod info;
#[cfg(not(loom))]
mod machine;
#[cfg(not(loom))]
mod oracle;
#[cfg(not(loom))]
mod purge;
#[cfg(not(loom))]
mod ram;
#[cfg(not(loom))]
mod resize;
#[cfg(not(loom))]
mod seams;
#[cfg(not(loom))]
mod suites;
#[cfg(not(loom))]
mod vmap;
