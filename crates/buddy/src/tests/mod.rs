//! Tests of the page allocator.

mod basic;
mod calls;
mod marks;
mod numa;
mod properties;
mod pure;
pub(crate) mod rig;
mod sets;
mod slow;
mod types;
mod views;
