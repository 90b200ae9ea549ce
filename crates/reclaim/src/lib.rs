//! Reclaim: who gives memory back when a machine runs short of it.
//!
//! ```text
//!  allocator short of pages ──▶ engine ──▶ page lists (generations or classic) ──▶ PageOwner: write back, unmap, drop
//!                                 │   └──▶ shrinkers: count, scan
//!                                 │   └──▶ OOM: candidates, badness, victim
//!  charge over a group's limit ───┘
//! ```
//!
//! The parts meet at the types of [`scan`] and [`group`] alone.
#![no_std]

pub mod group;
pub mod scan;

pub use group::{GroupId, Groups, NoGroups, Protection};
pub use scan::{ListCounts, PageLists, Scan, ScanLimits, Swappiness};
