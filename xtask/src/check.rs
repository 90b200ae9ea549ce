//! `cargo xtask check` and `cargo xtask long`: what must hold before a change goes in, and what takes longer.

use crate::steps::{self, Step};
use crate::workspace::{Workspace, cargo};
use crate::{boot, deny, say};
use anyhow::bail;
use clap::Args;
use std::path::Path;
use std::process::Command;

/// Which steps to run.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// Only these steps (may be given several times).
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Leave these steps out.
    #[arg(long, value_name = "STEP")]
    skip: Vec<String>,
    /// Stop at the first failure.
    #[arg(long)]
    fail_fast: bool,
    /// Also look up known vulnerabilities (needs a network).
    #[arg(long)]
    advisories: bool,
    /// Name the steps and stop.
    #[arg(long)]
    list: bool,
}

/// Runs the checks.
pub(crate) fn run(workspace: &Workspace, options: &Options, this: &Path) -> anyhow::Result<()> {
    let mut steps = checks(workspace, this, options.advisories);
    if options.list {
        for step in &steps {
            say!("{:<12} {}", step.name, step.about);
        }
        return Ok(());
    }
    for name in options.only.iter().chain(&options.skip) {
        if !steps.iter().any(|step| step.name == name) {
            let names: Vec<_> = steps.iter().map(|step| step.name).collect();
            bail!("there is no step `{name}`: the steps are {}", names.join(", "));
        }
    }
    let named = |list: &[String], step: &Step| list.iter().any(|name| name == step.name);
    steps.retain(|step| (options.only.is_empty() || named(&options.only, step)) && !named(&options.skip, step));
    if steps.iter().any(|step| step.name == "deny") {
        let reason = deny::ensure_installed();
        for step in steps.iter_mut().filter(|step| matches!(step.name, "deny" | "advisories")) {
            step.skip.clone_from(&reason);
        }
    }
    steps::run_all(workspace, steps, Some("cargo xtask check --only"), options.fail_fast)
}

/// The steps of `check`, cheap ones first.
fn checks(workspace: &Workspace, this: &Path, advisories: bool) -> Vec<Step> {
    let step = |name, about, advice, commands| Step { name, about, advice, commands, skip: None, tests: false };
    let cargo_run = |args: &[&str]| in_root(workspace, &cargo(), args);
    let own = |args: &[&str]| in_root(workspace, &this.to_string_lossy(), args);
    let mut doc = cargo_run(&["doc", "--workspace", "--no-deps", "--all-features"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    let mut steps = vec![
        step(
            "fmt",
            "formatting is rustfmt's",
            "run `cargo fmt --all`",
            vec![cargo_run(&["fmt", "--all", "--", "--check", "--files-with-diff"])],
        ),
        step(
            "tidy",
            "layers, headers, no_std, panics, leftovers",
            "each line above names a file and what to do; the rules stand in xtask/src/tidy/mod.rs",
            vec![own(&["tidy"])],
        ),
        step(
            "conformance",
            "every fact of the reference has a verdict",
            "cite the ids in tests or give a verdict in docs/conformance; docs/conformance/README.md says how",
            vec![own(&["conformance"])],
        ),
        step(
            "clippy",
            "lints, every target and feature, warnings denied",
            "mend the code; an `#[expect]` needs a reason beside it",
            vec![cargo_run(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])],
        ),
        Step {
            tests: true,
            ..step(
                "test",
                "unit, property, integration and documentation tests",
                "run the named test alone: cargo test -p CRATE NAME -- --nocapture",
                vec![cargo_run(&["test", "--workspace", "--all-features", "--no-fail-fast"])],
            )
        },
        step("doc", "documentation builds without a warning", "mend the named doc comment", vec![doc]),
        step(
            "features",
            "each crate alone, with no feature and with each feature alone",
            "gate what the feature needs behind that feature",
            vec![own(&["features"])],
        ),
        step(
            "no-std",
            "each crate below hosted links without std and without an allocator",
            "something in the crate or its dependencies needs `alloc` or `std`: cargo tree -e normal -p CRATE",
            vec![own(&["no-std"])],
        ),
        step(
            "loom",
            "concurrency models, at most two preemptions",
            "run the crate's models alone: cargo xtask loom --crate CRATE",
            vec![own(&["loom"])],
        ),
        Step {
            skip: boot::missing(),
            ..step(
                "boot",
                "the kernel of tests/kernel on 1, 2 and 4 CPUs, its tests inside",
                "boot it alone: cargo xtask boot --cpus N --test NAME",
                std::iter::once(own(&["boot", "--lint"]))
                    .chain(["1", "2", "4"].map(|cpus| own(&["boot", "--cpus", cpus])))
                    .collect(),
            )
        },
        step(
            "deny",
            "licences, bans and sources of dependencies",
            "deny.toml has the rules: allow a licence there only with a reason",
            vec![deny::fetch(workspace), deny::check(workspace, true, &["bans", "licenses", "sources"])],
        ),
    ];
    if advisories {
        steps.push(step(
            "advisories",
            "known vulnerabilities of dependencies",
            "update the dependency that the advisory names",
            vec![deny::check(workspace, false, &["advisories"])],
        ));
    }
    steps
}

/// Runs what takes longer: ignored tests in release builds, and the models with one more preemption.
pub(crate) fn long(workspace: &Workspace, this: &Path, fail_fast: bool) -> anyhow::Result<()> {
    let steps = vec![
        Step {
            name: "test",
            about: "the tests that `cargo test` ignores, in a release build",
            advice: "run the named test alone: cargo test --release -p CRATE NAME -- --ignored --nocapture",
            commands: vec![in_root(
                workspace,
                &cargo(),
                &[
                    "test",
                    "--release",
                    "--workspace",
                    "--all-features",
                    "--no-fail-fast",
                    "--lib",
                    "--bins",
                    "--tests",
                    "--",
                    "--ignored",
                ],
            )],
            skip: None,
            tests: true,
        },
        Step {
            name: "loom",
            about: "every concurrency model, the long ones as well",
            advice: "run the crate's models alone: cargo xtask loom --full --crate CRATE",
            commands: vec![in_root(workspace, &this.to_string_lossy(), &["loom", "--full"])],
            skip: None,
            tests: false,
        },
    ];
    steps::run_all(workspace, steps, None, fail_fast)
}

/// A command that runs in the workspace's root.
pub(crate) fn in_root(workspace: &Workspace, program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.current_dir(&workspace.root).args(args);
    command
}
