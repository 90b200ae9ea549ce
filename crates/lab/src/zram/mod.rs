//! `cargo lab zram`: real pages in a compressed block device, beside what Linux's zram did.
//!
//! ```text
//! files, cut into pages ─┐                     ┌─ filled ─▶ half discarded ─▶ compacted     mm_stat, density, every page verified
//! recorded sizes ────────┴─▶ kmem_hosted::Zram ┴─ classes, speed
//! ```
//! - `pages`: where pages come from; `recorded`: the sizes of 102,912 pages as Linux stored them, and its result;
//! - `measure`: the stages; `report`: tables, JSON, a plot.

mod measure;
mod pages;
mod recorded;
mod report;
#[cfg(test)]
mod tests;

use crate::LabError;
use crate::app::{print, write};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};

pub use measure::{ClassRow, Speed, Stage, ZramReport, measure};
pub use pages::Source;
pub use recorded::LinuxStage;

/// Which compressor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Algorithm {
    /// LZ4.
    #[default]
    Lz4,
    /// Zstandard, level 3.
    Zstd,
}

impl Algorithm {
    /// Its name in zram.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// What to store, and how.
#[derive(Clone, Debug, Args)]
pub struct ZramOptions {
    /// Files, or folders of files, to cut into pages of 4 KiB [default: the bundled sizes of 102,912 pages, as Linux's zram
    /// compressed them, in the order in which it stored them].
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// The compressor; without files, whose sizes.
    #[arg(long, value_enum, default_value_t)]
    pub algorithm: Algorithm,
    /// Recompress everything with zstd once it is stored, and keep what gets smaller; with files only.
    #[arg(long, requires = "files")]
    pub recompress: bool,
    /// How many objects a discard may move to fill holes; 0: only compaction moves objects.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub moves: u8,
    /// The longest zspage in frames, 4 to 16.
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u8).range(4..=16))]
    pub chain: u8,
    /// Print the table of all classes as the kernel does, too.
    #[arg(long)]
    pub classes: bool,
    /// Write the figures as JSON; `-` is standard output.
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    /// Write a page of plots that needs no network.
    #[arg(long, value_name = "OUT")]
    pub html: Option<PathBuf>,
}

/// Runs the subcommand; true if every page came back.
///
/// # Errors
/// [`LabError`] if a file cannot be read, the machine not be set up, or a report not be written.
pub fn run(options: &ZramOptions) -> Result<bool, LabError> {
    let source = Source::new(options)?;
    let report = measure(&source, options)?;
    let to_stdout = options.json.as_deref() == Some(Path::new("-"));
    if !to_stdout {
        print(&report.text(options.classes))?;
    }
    if let Some(path) = &options.json {
        let mut text = serde_json::to_string_pretty(&report)
            .map_err(|e| LabError::Write { path: path.display().to_string(), why: e.into() })?;
        text.push('\n');
        if to_stdout { print(&text)? } else { write(path, &text)? }
    }
    if let Some(path) = &options.html {
        write(path, &report::html(&report))?;
    }
    Ok(report.damaged == 0)
}
