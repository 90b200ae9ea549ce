//! The subcommand.

use super::bench::Bench;
use super::report::html;
use crate::LabError;
use crate::app::{print, write};
use clap::Args;
use std::path::{Path, PathBuf};

/// How hard the machine has it.
#[derive(Clone, Debug, Args)]
pub struct PressureOptions {
    /// CPUs, each with a worker.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub cpus: u32,
    /// Memory of the machine, such as 64M; the work needs about three times as much.
    #[arg(long, value_name = "SIZE", default_value = "64M", value_parser = crate::cli::parse_size)]
    pub ram: u64,
    /// How long, in seconds.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// The number that all choices follow from.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write the figures as JSON; `-` is standard output.
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    /// Write a page of plots that needs no network.
    #[arg(long, value_name = "OUT")]
    pub html: Option<PathBuf>,
}

/// Runs a machine that is too small for its work; true if nothing was lost and every counter adds up.
///
/// # Errors
/// [`LabError`] if there can be no such machine, or the figures cannot be written.
pub fn run(options: &PressureOptions) -> Result<bool, LabError> {
    let to_stdout = options.json.as_deref() == Some(Path::new("-"));
    let report = Bench::boot(options)?.run(|line| {
        if !to_stdout {
            // Whoever closes the pipe early wants no more.
            let _ = print(&format!("{line}\n"));
        }
    })?;
    if !to_stdout {
        print(&report.text())?;
    }
    if let Some(path) = &options.json {
        let mut text = serde_json::to_string_pretty(&report)
            .map_err(|e| LabError::Write { path: path.display().to_string(), why: e.into() })?;
        text.push('\n');
        if to_stdout { print(&text)? } else { write(path, &text)? }
    }
    if let Some(path) = &options.html {
        write(path, &html(&report))?;
    }
    Ok(report.is_clean())
}
