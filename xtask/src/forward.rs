//! `cargo xtask bench` and `cargo xtask fuzz`: packages of their own, outside the workspace because what they pull in
//! is heavy to build.

use crate::check::in_root;
use crate::workspace::{Workspace, cargo};
use anyhow::{Context as _, bail};
use std::process::Command;

/// Runs the benchmarks.
pub(crate) fn bench(workspace: &Workspace, args: &[String]) -> anyhow::Result<()> {
    need(workspace, "benches")?;
    let mut command = in_root(workspace, &cargo(), &["run", "--release", "--manifest-path", "benches/Cargo.toml"]);
    command.arg("--target-dir").arg(workspace.target.join("bench")).arg("--").args(args);
    finish(command)
}

/// Runs the soak; each round says how long the run has been clean.
pub(crate) fn soak(workspace: &Workspace, minutes: u64, seed: u64) -> anyhow::Result<()> {
    let args = ["test", "--release", "-p", "kmem-tests", "--test", "soak", "--", "--ignored", "--nocapture"];
    let mut command = in_root(workspace, &cargo(), &args);
    command.env("KMEM_SOAK_SECONDS", (minutes * 60).to_string()).env("KMEM_SOAK_SEED", seed.to_string());
    finish(command)
}

/// Runs `cargo fuzz`.
pub(crate) fn fuzz(workspace: &Workspace, args: &[String]) -> anyhow::Result<()> {
    need(workspace, "fuzz")?;
    // A toolchain's own cargo knows no `+nightly`: ask the one on the path, which is rustup's.
    let mut command = in_root(workspace, "cargo", &["+nightly", "fuzz"]);
    command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN").args(args);
    finish(command)
}

fn need(workspace: &Workspace, folder: &str) -> anyhow::Result<()> {
    if !workspace.root.join(folder).join("Cargo.toml").is_file() {
        bail!("this checkout has no package `{folder}`");
    }
    Ok(())
}

fn finish(mut command: Command) -> anyhow::Result<()> {
    let status = command.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}
