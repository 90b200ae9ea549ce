//! Machines that are too small for their work: real reclaim, no script.

mod contents;
mod contract;
mod groups;
mod kills;
mod rig;
