//! Tests of the engine over a machine made for them.

#[cfg(not(loom))]
mod toy;

#[cfg(loom)]
mod loom;

#[cfg(not(loom))]
mod direct;
#[cfg(not(loom))]
mod failures;
#[cfg(not(loom))]
mod kswapd;
mod lru;
#[cfg(not(loom))]
mod proactive;
#[cfg(not(loom))]
mod pure;
#[cfg(not(loom))]
mod shrinkers;
#[cfg(not(loom))]
mod threads;
