//! Tests of the hosted machine, part by part.

#[cfg(loom)]
mod loom;
#[cfg(loom)]
mod loom_movable;
#[cfg(loom)]
mod loom_zram;

#[cfg(not(loom))]
mod cpu;
#[cfg(not(loom))]
mod grace;
#[cfg(not(loom))]
mod heap;
#[cfg(not(loom))]
mod machine;
#[cfg(not(loom))]
mod movable;
#[cfg(not(loom))]
mod pagers;
#[cfg(not(loom))]
mod plan;
#[cfg(not(loom))]
mod ram;
#[cfg(not(loom))]
mod space;
#[cfg(not(loom))]
mod zram;
#[cfg(not(loom))]
mod zswap;
