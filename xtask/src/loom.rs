//! `cargo xtask loom`: the concurrency models of each crate, and how long they take.
//!
//! A model is a test that is compiled only under loom, in a module called `loom`. Models run with `--cfg loom`, optimised, in a
//! target folder of their own, so that the flag does not throw away the ordinary build.

use crate::check::in_root;
use crate::process;
use crate::say;
use crate::source;
use crate::steps::count_before;
use crate::table::Table;
use crate::workspace::{Package, Workspace, cargo};
use anyhow::bail;
use clap::Args;
use std::process::Command;
use std::time::{Duration, Instant};

/// Which models, and how far.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Only this crate (`slab` or `kmem-slab`).
    #[arg(long = "crate", value_name = "CRATE")]
    package: Option<String>,
    /// Also the models marked `#[ignore]`, which take longer.
    #[arg(long)]
    full: bool,
    /// How often a thread may be interrupted in one execution. Two take minutes for all crates; three take an hour or more,
    /// most of it in `slab`.
    #[arg(long, value_name = "N", default_value_t = 2)]
    max_preemptions: u32,
}

/// Runs the models; an error if one fails or if there is none.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let mut packages = with_models(workspace)?;
    if let Some(wanted) = &options.package {
        packages.retain(|(package, _)| package.name == *wanted || package.short_name() == wanted);
    }
    if packages.is_empty() {
        bail!(
            "no crate{} has loom models",
            options.package.as_deref().map(|name| format!(" `{name}`")).unwrap_or_default()
        );
    }
    let mut table = Table::new(["crate", "models", "ignored", "failed", "seconds"]);
    let (mut models, mut failures) = (0, Vec::new());
    let started = Instant::now();
    for (package, written) in packages {
        let mut build = command(workspace, package, options);
        build.arg("--no-run");
        let built = process::watch(package.short_name(), &mut build, |_| false)?;
        let (lines, time, success) = if built.success {
            let mut models = command(workspace, package, options);
            models.arg("loom");
            if options.full {
                models.args(["--", "--include-ignored"]);
            }
            let finished = process::watch(package.short_name(), &mut models, |line| line.ends_with("... FAILED"))?;
            (finished.lines, finished.time, finished.success)
        } else {
            (built.lines, Duration::ZERO, false)
        };
        let count = |word: &str| lines.iter().map(|line| count_before(line, word)).sum::<usize>();
        if !success {
            for line in lines.iter().filter(|line| !process::is_progress(line)) {
                say!("    {line}");
            }
            failures.push(package.name.as_str());
        }
        if success && count("passed") + count("ignored") < written {
            say!("    {written} models are written: one that did not run is not in a module called `loom`");
            failures.push(package.name.as_str());
        }
        say!("{:<12} {} models, {:.1} s", package.short_name(), count("passed"), time.as_secs_f64());
        models += count("passed") + count("failed");
        let cells = [count("passed"), count("ignored"), count("failed")].map(|count| count.to_string());
        let [passed, ignored, failed] = cells;
        table.row([package.name.clone(), passed, ignored, failed, format!("{:.1}", time.as_secs_f64())]);
    }
    say!("\n{table}");
    if !failures.is_empty() {
        bail!("models fail in {}", failures.join(", "));
    }
    if models == 0 {
        bail!("no model ran");
    }
    say!(
        "{models} models, at most {} preemptions, {:.0} s with building",
        options.max_preemptions,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The crates with models, and how many each has.
fn with_models(workspace: &Workspace) -> anyhow::Result<Vec<(&Package, usize)>> {
    let mut found = Vec::new();
    for package in workspace.crates() {
        let folder = package.folder().strip_prefix(&workspace.root).unwrap_or(package.folder()).join("src");
        let files = workspace.rust_files(&[&folder.to_string_lossy()])?;
        let sources = source::scan_all(&workspace.root, &files)?;
        let models = sources.iter().map(|source| source.models().len()).sum();
        if models > 0 {
            found.push((package, models));
        }
    }
    Ok(found)
}

fn command(workspace: &Workspace, package: &Package, options: &Options) -> Command {
    let target = workspace.target.join("loom");
    let mut command = in_root(workspace, &cargo(), &["test", "--profile", "loom", "--lib", "-p", &package.name]);
    command.arg("--target-dir").arg(target);
    command.env("RUSTFLAGS", "--cfg loom").env("LOOM_MAX_PREEMPTIONS", options.max_preemptions.to_string());
    command
}
