//! Reclaim over this machine's allocators: [`Mm`], set up once the allocators run, and what a platform adds for it.
//!
//! ```text
//! Platform::reclaimer ─▶ MmReclaimer ─(installed)─▶ Mm ─┬─ engine     kswapd, direct reclaim, shrinkers
//!                        before: nobody reclaims        ├─ lists      the pages that can be taken, in generations
//!                                                       ├─ groups     memory cgroups; payers of pages
//!                                                       ├─ killer     the OOM killer
//!                                                       ├─ pressure   stalls
//!                                                       └─ drains     empty slabs, ranges that vmalloc keeps
//!                  each part ──▶ ReclaimSide: platform, page allocator, the other parts
//! ```
//!
//! In reading order: [`ReclaimPlatform`] is what a platform supplies; [`Mm`] (`mm`) the parts put together, `charging` who
//! pays for pages; [`ReclaimSide`] (`side`, `zones`, `pages`, `groups`, `killing`) the machine as each part sees it; `drains` what
//! the allocators themselves give back; `views` the figures; [`MmReclaimer`] (`seam`) what the page allocator calls.
//!
//! A platform without all this says [`NoReclaim`](kmem_gfp::NoReclaim) and pays nothing.

mod charging;
mod drains;
mod groups;
mod killing;
mod mm;
mod pages;
mod platform;
mod seam;
mod side;
mod views;
mod zones;

pub use mm::{Mm, MmConfig, MmError};
pub use platform::ReclaimPlatform;
pub use seam::MmReclaimer;
pub use side::ReclaimSide;
pub use views::MemInfo;
