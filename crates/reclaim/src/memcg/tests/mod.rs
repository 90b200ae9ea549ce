//! Tests of memory cgroups: each fact, plain models as oracles, several CPUs, models of the races.

mod rig;

#[cfg(not(loom))]
mod charge;
#[cfg(not(loom))]
mod events;
#[cfg(not(loom))]
mod lifecycle;
#[cfg(not(loom))]
mod limits;
#[cfg(not(loom))]
mod objects;
#[cfg(not(loom))]
mod pages;
#[cfg(not(loom))]
mod property;
#[cfg(not(loom))]
mod protection;
#[cfg(not(loom))]
mod stress;
#[cfg(not(loom))]
mod walk;

#[cfg(loom)]
mod loom;
