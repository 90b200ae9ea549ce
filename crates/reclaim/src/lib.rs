//! In reading order:
//!
//! - [`scan`], [`group`]: the types at which the parts meet;
//! - [`ReclaimEnv`], [`Zones`], [`OomKiller`], [`Park`]: what the machine supplies; [`Node`], [`WaitQueue`]: what it keeps;
//! - [`Reclaim`]: background reclaim ([`kswapd_poll`](Reclaim::kswapd_poll)), direct reclaim (as a
//!   [`Reclaimer`](kmem_gfp::Reclaimer)), node reclaim, reclaim within a group ([`GroupReclaimer`]), proactive reclaim;
//! - [`shrinker`]: caches that give objects back; [`vmpressure`]: how hard it is; [`ReclaimStats`]: the counters.
#![doc = include_str!("../README.md")]
#![no_std]

#[forbid(unsafe_code)]
mod balance;
#[forbid(unsafe_code)]
mod direct;
#[forbid(unsafe_code)]
mod engine;
#[forbid(unsafe_code)]
mod env;
#[forbid(unsafe_code)]
mod events;
#[forbid(unsafe_code)]
pub mod group;
#[forbid(unsafe_code)]
mod group_reclaim;
#[forbid(unsafe_code)]
mod kswapd;
pub mod lru;
pub mod memcg;
#[forbid(unsafe_code)]
mod node;
#[forbid(unsafe_code)]
mod node_reclaim;
pub mod oom;
pub mod psi;
#[forbid(unsafe_code)]
pub mod scan;
#[forbid(unsafe_code)]
mod shrink_node;
pub mod shrinker;
#[forbid(unsafe_code)]
mod throttle;
#[forbid(unsafe_code)]
pub mod vmpressure;
#[forbid(unsafe_code)]
mod wait;
#[forbid(unsafe_code)]
mod wake_word;

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;

pub use engine::{Reclaim, TunableError};
pub use env::{NoOom, OomKiller, ReclaimEnv, StallKind, Zones};
pub use events::{ReclaimEvent, ReclaimStats};
pub use group::{GroupId, Groups, NoGroups, Protection};
pub use group_reclaim::{GroupReclaim, GroupReclaimer, ParseProactiveError, ProactiveError, ProactiveRequest};
pub use kswapd::KswapdStep;
pub use node::Node;
pub use scan::{ListCounts, PageLists, Scan, ScanLimits, Swappiness};
pub use shrinker::{RegisterError, ShrinkControl, ShrinkCount, ShrinkScan, Shrinker, ShrinkerSlot, Shrinkers};
pub use vmpressure::{PressureLevel, VmPressure};
pub use wait::{Park, Polled, Wait, WaitQueue};
