//! The subcommand.

use super::report::{LruReport, SizeRow, html};
use super::simple::{StackDistances, clock, optimum};
use super::trace::References;
use super::{kernel, record};
use crate::LabError;
use crate::app::{input, print, write};
use crate::trace::Input;
use clap::Args;
use kmem_reclaim::lru::{ClassicPolicy, GenerationsPolicy};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How to count page faults.
#[derive(Clone, Debug, Args)]
pub struct LruOptions {
    /// Traces of `PAGE[,w]` lines or of ftrace's page-fault events, plain or compressed with zstd; `-` is standard input
    /// [default: the bundled traces].
    #[arg(value_name = "TRACE")]
    pub traces: Vec<PathBuf>,
    /// Memory sizes in frames, separated by commas [default: eight sizes up to the pages of the trace].
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub frames: Vec<u32>,
    /// Write the figures as JSON; `-` is standard output.
    #[arg(long, value_name = "OUT")]
    pub json: Option<PathBuf>,
    /// Write a page of plots that needs no network.
    #[arg(long, value_name = "OUT")]
    pub html: Option<PathBuf>,
    /// Record a trace instead, compressed with zstd: of the program behind `--`, with valgrind's lackey.
    #[arg(long, value_name = "OUT", requires = "program", conflicts_with_all = ["traces", "frames", "json", "html"])]
    pub record: Option<PathBuf>,
    /// Stop recording after so many references.
    #[arg(long, value_name = "N", default_value_t = 400_000, requires = "record")]
    pub most: u64,
    /// The program to record, and its arguments.
    #[arg(last = true, value_name = "PROGRAM")]
    pub program: Vec<String>,
}

/// The traces that are part of this program.
#[must_use]
pub fn bundled() -> [Input; 5] {
    macro_rules! data {
        ($name:literal) => {
            Input::Bundled($name, include_bytes!(concat!("../../data/lru/", $name, ".txt.zst")))
        };
    }
    [data!("sort"), data!("sqlite"), data!("cc"), data!("grep"), data!("python")]
}

/// Eight sizes: from an eighth of the pages to nearly all.
fn sizes(pages: u32) -> Vec<u32> {
    let mut sizes: Vec<u32> = (1..=8).map(|n| (u64::from(pages) * n / 9) as u32).filter(|n| *n >= 8).collect();
    sizes.dedup();
    if sizes.is_empty() { vec![pages.max(1)] } else { sizes }
}

/// Counts the misses of every way at the given sizes; at the default ones if there are none.
///
/// # Errors
/// [`LabError::Lists`] if the lists cannot be set up.
pub fn measure(trace: &References, frames: &[u32]) -> Result<LruReport, LabError> {
    let frames = if frames.is_empty() { sizes(trace.pages) } else { frames.to_vec() };
    let distances = StackDistances::of(trace);
    let row = |frames| {
        Ok(SizeRow {
            frames,
            generations: kernel::misses::<GenerationsPolicy>(trace, frames)?,
            classic: kernel::misses::<ClassicPolicy>(trace, frames)?,
            lru: distances.misses(frames),
            clock: clock(trace, frames),
            optimum: optimum(trace, frames),
        })
    };
    let sizes = frames.into_iter().map(row).collect::<Result<Vec<_>, LabError>>()?;
    Ok(LruReport { name: trace.name.clone(), references: trace.list.len() as u64, pages: trace.pages, sizes })
}

/// Runs the subcommand.
///
/// # Errors
/// [`LabError`] if a trace cannot be read, or recorded, or a report not be written.
pub fn run(options: &LruOptions) -> Result<(), LabError> {
    if let Some(out) = &options.record {
        return record_program(out, &options.program, options.most);
    }
    let inputs = if options.traces.is_empty() {
        bundled().to_vec()
    } else {
        options.traces.iter().map(|file| input(file)).collect()
    };
    let to_stdout = options.json.as_deref() == Some(Path::new("-"));
    let mut reports = Vec::new();
    for input in &inputs {
        let report = measure(&References::read(input)?, &options.frames)?;
        if !to_stdout {
            print(&format!("{}\n", report.table()))?;
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
    Ok(())
}

/// Runs a program under lackey and writes the reduced trace.
fn record_program(out: &Path, program: &[String], most: u64) -> Result<(), LabError> {
    let name = program.first().cloned().unwrap_or_default();
    let failed = |why| LabError::Record { program: name.clone(), why };
    // Lackey's lines come on the program's standard error; what the program itself writes there is passed over.
    let mut child = Command::new("valgrind")
        .args(["--tool=lackey", "--trace-mem=yes", "--trace-children=yes", "--log-fd=2"])
        .args(program)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let unwritable = |why| LabError::Write { path: out.display().to_string(), why };
    let file = std::fs::File::create(out).map_err(unwritable)?;
    let mut encoder = zstd::stream::write::Encoder::new(file, 19).map_err(unwritable)?;
    let mut written = 0;
    if let Some(lines) = child.stderr.take() {
        let mut text = BufWriter::new(&mut encoder);
        written = record::reduce(lines, &mut text, most).map_err(unwritable)?;
        text.flush().map_err(unwritable)?;
    }
    // Whoever has recorded enough does not wait for the program's end.
    let _ = child.kill();
    let _ = child.wait();
    encoder.finish().map_err(unwritable)?;
    print(&format!("{written} references in {}\n", out.display()))
}
