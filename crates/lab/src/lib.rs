//! What `cargo lab` is made of: reading traces, turning them into requests, replaying and checking them, reporting.

#![doc = include_str!("../README.md")]

pub mod app;
pub mod bundled;
pub mod cli;
pub mod fragment;
pub mod hosted;
pub mod lru;
pub mod model;
pub mod pressure;
pub mod proc;
pub mod program;
pub mod replay;
pub mod report;
pub mod target;
pub mod trace;
pub mod zram;

/// Why a replay does not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] trace::TraceError),
    /// The machine cannot be set up.
    #[error("the machine: {0}")]
    Target(target::TargetError),
    /// A machine under pressure cannot be set up.
    #[error("the machine: {0}")]
    Machine(Box<dyn std::error::Error + Send + Sync>),
    /// The page lists cannot be set up.
    #[error("the page lists: {0}")]
    Lists(#[from] kmem_reclaim::lru::SetupError),
    /// A program cannot be recorded.
    #[error("cannot record {program:?}: {why}")]
    Record {
        /// The program.
        program: String,
        /// What the system said.
        why: std::io::Error,
    },
    /// The replay was given up without a reason of its own.
    #[error("the replay was given up")]
    Stopped,
    /// A file cannot be read.
    #[error("cannot read {path}: {why}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        why: std::io::Error,
    },
    /// The files have no bytes to store.
    #[error("the files are empty")]
    NoPages,
    /// The compressed device cannot be set up.
    #[error("the device: {0}")]
    Device(String),
    /// The compressed device does not take or give a page.
    #[error("the device: {0}")]
    Zram(#[from] kmem_hosted::ZramError),
    /// There is no view of this name.
    #[error("no view {name:?}; there are {known}")]
    NoView {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A report cannot be written.
    #[error("cannot write {path}: {why}")]
    Write {
        /// The file.
        path: String,
        /// What the system said.
        why: std::io::Error,
    },
}
