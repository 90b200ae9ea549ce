//! The commands, on any machine.

use crate::LabError;
use crate::bundled;
use crate::cli::{Cli, Command, Options};
use crate::proc::Snapshots;
use crate::program::Level;
use crate::replay::{Outcome, Plan, replay, time};
use crate::report::{Report, html, terminal};
use crate::target::{MachineShape, ReplayTarget};
use crate::trace::{Input, Progress};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// A view of a machine: the name of the file in `/proc`, and its text.
pub type View = (&'static str, String);

/// A machine that has views, and how to boot one.
pub trait Bench {
    /// The machine.
    type Machine: ReplayTarget;

    /// Boots a machine.
    ///
    /// # Errors
    /// [`LabError::Target`] if there can be no such machine.
    fn boot(&self, shape: MachineShape) -> Result<Self::Machine, LabError>;

    /// What the machine shows of itself.
    fn views(&self, machine: &Self::Machine) -> Vec<View>;
}

/// Runs a command; true if everything was found sound.
///
/// # Errors
/// [`LabError`] if it cannot be carried out.
pub fn run<B: Bench>(bench: &B, cli: Cli) -> Result<bool, LabError> {
    match cli.command {
        None => report(bench, &bundled::BOOT, &cli.options),
        Some(Command::Replay { file, options }) => report(bench, &input(&file), &options),
        Some(Command::Fragment { options }) => crate::fragment::run(&options),
        Some(Command::Pressure { options }) => crate::pressure::run(&options),
        Some(Command::Lru { options }) => crate::lru::run(&options).map(|()| true),
        Some(Command::Zram { options }) => crate::zram::run(&options),
        Some(Command::Machine { file, view, options }) => {
            let input = file.map_or(bundled::BOOT, |f| self::input(&f));
            machine(bench, &input, view.as_deref(), &options)
        }
    }
}

pub(crate) fn input(file: &Path) -> Input {
    if file == Path::new("-") { Input::Stdin } else { Input::File(file.to_owned()) }
}

/// What Linux showed of itself at the end of the trace: bundled, or in `proc` beside the file.
fn snapshots(input: &Input) -> Snapshots {
    match input {
        Input::Bundled(..) => bundled::boot_snapshots(),
        Input::File(path) => path.parent().map(|p| Snapshots::read(&p.join("proc"))).unwrap_or_default(),
        Input::Stdin => Snapshots::default(),
    }
}

fn report<B: Bench>(bench: &B, input: &Input, options: &Options) -> Result<bool, LabError> {
    let (outcome, shape) = watched(bench, input, options, |_| {})?;
    let times = if outcome.ops.is_empty() {
        None
    } else {
        let round = spinner("measuring the calls alone");
        let times = time(&bench.boot(shape)?, &outcome.ops, &outcome.specs)?;
        round.finish_and_clear();
        Some(times)
    };
    let how = (options.level, options.order());
    let report = Report::new(input.name(), how, shape, outcome, times, &snapshots(input));
    let json_to_stdout = options.json.as_deref() == Some(Path::new("-"));
    if !json_to_stdout {
        print(&terminal(&report))?;
    }
    if let Some(path) = &options.json {
        let mut text = serde_json::to_string_pretty(&report)
            .map_err(|e| LabError::Write { path: path.display().to_string(), why: e.into() })?;
        text.push('\n');
        if json_to_stdout { print(&text)? } else { write(path, &text)? }
    }
    if let Some(path) = &options.html {
        write(path, &html(&report))?;
    }
    Ok(report.integrity.is_clean())
}

fn machine<B: Bench>(bench: &B, input: &Input, view: Option<&str>, options: &Options) -> Result<bool, LabError> {
    let mut views = Vec::new();
    let (outcome, _) = watched(bench, input, options, |machine| views = bench.views(machine))?;
    if let Some(name) = view {
        let known = |v: &&View| v.0 == name;
        let Some((_, text)) = views.iter().find(known) else {
            let names: Vec<&str> = views.iter().map(|v| v.0).collect();
            return Err(LabError::NoView { name: name.into(), known: names.join(", ") });
        };
        print(text)?;
    } else {
        for (name, text) in &views {
            print(&format!("==> /proc/{name} <==\n{text}\n"))?;
        }
    }
    Ok(outcome.integrity.is_clean())
}

/// Replays with a progress bar, if standard error is a terminal.
fn watched<B: Bench>(
    bench: &B,
    input: &Input,
    options: &Options,
    look: impl FnOnce(&B::Machine),
) -> Result<(Outcome, MachineShape), LabError> {
    let trace = input.open()?;
    let shape = options.shape(&trace, matches!(input, Input::Bundled(..)));
    let machine = bench.boot(shape)?;
    let second = if options.level == Level::Pages { None } else { Some(bench.boot(shape)?) };
    let bar = ProgressBar::with_draw_target(None, target());
    let watch = |progress: &Progress| {
        if bar.position() == 0 {
            let style = if progress.total.is_some() {
                "{spinner} replaying [{bar:40}] {percent:>3} %  {elapsed}"
            } else {
                "{spinner} replaying {binary_bytes}  {elapsed}"
            };
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("━━ "));
            }
            if let Some(total) = progress.total {
                bar.set_length(total);
            }
        }
        bar.set_position(progress.done());
    };
    let plan = Plan { trace, level: options.level, order: options.order(), book: bundled::cache_book() };
    let outcome = replay(plan, &machine, second.as_ref(), watch, look);
    bar.finish_and_clear();
    Ok((outcome?, shape))
}

/// Where progress bars go: nowhere, unless somebody watches.
pub(crate) fn target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() && std::io::stdout().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    }
}

fn spinner(message: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, target());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    bar.set_message(message);
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

/// Prints; whoever closes the pipe early wants no more.
pub(crate) fn print(text: &str) -> Result<(), LabError> {
    match std::io::stdout().write_all(text.as_bytes()).and_then(|()| std::io::stdout().flush()) {
        Err(why) if why.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(LabError::Write { path: "standard output".into(), why })
        }
        _ => Ok(()),
    }
}

pub(crate) fn write(path: &PathBuf, text: &str) -> Result<(), LabError> {
    std::fs::write(path, text).map_err(|why| LabError::Write { path: path.display().to_string(), why })
}
