//! Memory cgroups: who pays for which page, and what happens at a limit.
//!
//! ```text
//!                     fast, this CPU only                    once a batch                      at a limit
//! charge(g, n) ─▶ stock of g on this CPU ──empty──▶ usage + 64 in g and every ancestor ──over──▶ failure path
//!                 (local trylock)                   roll back at the first over its max        reclaim, drain, retry,
//! uncharge(p, n) ─▶ stock ──full──▶ usage − in every level                                     OOM, refuse or force
//!
//! Memcg ─▶ State ─▶ slots[group]      counters, settings, links, events (`slot.rs`)
//!                ─▶ stocks[cpu]       pages and bytes charged in advance (`stock.rs`)
//!                ─▶ tree              links and creation order, under a lock (`tree.rs`)
//! ```
//!
//! A table that has not been given memory charges nobody and costs a load and a branch.
//!
//! Two kinds of charge differ in who keeps the group's number alive. Pages that carry a [`Payer`] hold references, so that
//! the number is not given to another group before the last of them is uncharged. Pages on reclaim lists
//! ([`charge_listed`](Memcg::charge_listed)) hold none: the lists move them to the parent when the group goes.

mod charge;
mod env;
mod events;
mod limits;
mod objects;
mod pages;
mod pressure;
mod protection;
mod slot;
mod stock;
mod table;
mod throttle;
mod tree;
mod views;

#[cfg(test)]
mod tests;

pub use charge::{OverLimit, Payer};
pub use env::MemcgEnv;
pub use events::{Event, Events};
pub use limits::{LimitChange, Wait};
pub use objects::{OBJECT_OVERHEAD_BYTES, ObjectPayers};
pub use pages::PagePayers;
pub use protection::{ParentShare, effective_protection};
pub use table::{GroupError, Memcg, MemcgConfig, PAGES_MAX};
pub use throttle::throttle_ticks;
pub use views::Stat;
