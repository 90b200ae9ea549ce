//! The subcommand.

use super::replay::pack;
use super::report::{FragmentReport, html};
use super::scenario::{Setting, Way};
use super::sequence::{Mix, Sequence};
use super::subjects::{self, HUGE};
use crate::LabError;
use crate::app::{input, print, write};
use crate::bundled;
use crate::cli::parse_size;
use clap::Args;
use kmem::PAGE_SIZE;
use std::path::{Path, PathBuf};

/// How to fragment a machine.
#[derive(Clone, Debug, Args)]
pub struct FragmentOptions {
    /// Traces whose page events are replayed, plain or compressed with zstd; `-` is standard input [default: the bundled trace].
    #[arg(value_name = "TRACE")]
    pub traces: Vec<PathBuf>,
    /// CPUs of the machines [default: as many as occur in the trace].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cpus: Option<u32>,
    /// Memory of the machine that is filled and thinned out, and of the one that the events are replayed on from empty: such as 512M
    /// or 2G. The latter is made larger if the trace needs more.
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    pub ram: u64,
    /// Where random choices begin.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Write the figures as JSON; `-` is standard output.
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    /// Write a page of plots that needs no network.
    #[arg(long, value_name = "OUT")]
    pub html: Option<PathBuf>,
}

/// Machines are multiples of 4 MiB, and at least 32 MiB.
fn frames(bytes: u64) -> usize {
    (bytes.max(32 << 20) as usize / PAGE_SIZE).next_multiple_of(2 * HUGE)
}

/// Replays and fragments.
///
/// # Errors
/// [`LabError::Target`] if a machine cannot be set up.
pub fn measure(sequence: &Sequence, cpus: Option<u32>, ram_bytes: u64, seed: u64) -> Result<FragmentReport, LabError> {
    let cpus = cpus.unwrap_or(sequence.cpus).clamp(1, 1024);
    // A quarter more than the trace ever had in use.
    let nr_frames = frames(ram_bytes.max(sequence.peak_pages() * 5 / 4 * PAGE_SIZE as u64));
    let (mut empty, notices) = subjects::all(nr_frames, cpus);
    let from_empty = empty.iter_mut().map(|subject| pack(&mut **subject, sequence, nr_frames, None)).collect();
    drop(empty);
    let mut from_linux = Vec::new();
    if let Some(in_use) = &sequence.in_use {
        let nr_frames = in_use.len() / (2 * HUGE) * (2 * HUGE);
        for mut subject in subjects::all(nr_frames, cpus).0 {
            from_linux.push(pack(&mut *subject, sequence, nr_frames, Some(in_use)));
        }
    }
    let mix = Mix::of(sequence);
    let ram_bytes = (frames(ram_bytes) * PAGE_SIZE) as u64;
    let setting = Setting { cpus, ram_bytes, mix: &mix, seed };
    let outcomes = Way::ALL.into_iter().map(|way| setting.run(way)).collect::<Result<Vec<_>, LabError>>()?;
    Ok(FragmentReport {
        name: sequence.name.clone(),
        events: sequence.events.len() as u64,
        movable_share: mix.movable_share(),
        huge_frames: (nr_frames / HUGE) as u64,
        from_empty,
        from_linux,
        linux_huge: sequence.linux_huge,
        cpus,
        ram_bytes,
        outcomes,
        notices,
    })
}

/// Runs the subcommand; true if no page lost its contents.
///
/// # Errors
/// [`LabError`] if a trace cannot be read, a machine not be set up, or a report not be written.
pub fn run(options: &FragmentOptions) -> Result<bool, LabError> {
    let inputs = if options.traces.is_empty() {
        vec![bundled::BOOT]
    } else {
        options.traces.iter().map(|file| input(file)).collect()
    };
    let to_stdout = options.json.as_deref() == Some(Path::new("-"));
    let mut reports = Vec::new();
    for input in &inputs {
        let report = measure(&Sequence::read(input)?, options.cpus, options.ram, options.seed)?;
        if !to_stdout {
            print(&format!("{}\n", report.tables()))?;
        }
        reports.push(report);
    }
    if let Some(path) = &options.json {
        let mut text = serde_json::to_string_pretty(&reports)
            .map_err(|e| LabError::Write { path: path.display().to_string(), why: e.into() })?;
        text.push('\n');
        if to_stdout { print(&text)? } else { write(path, &text)? }
    }
    if let Some(path) = &options.html {
        write(path, &html(&reports))?;
    }
    Ok(reports.iter().all(FragmentReport::is_sound))
}
