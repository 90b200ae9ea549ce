//! `cargo deny`: installed when missing, and run without a network.

use crate::check::in_root;
use crate::say;
use crate::workspace::{Workspace, cargo};
use std::process::{Command, Stdio};

/// Installs `cargo-deny` unless it is there. Returns why it cannot be used, if it cannot.
pub(crate) fn ensure_installed() -> Option<String> {
    if quiet(&["deny", "--version"]) {
        return None;
    }
    say!("deny         installing cargo-deny, once on this machine: takes some minutes");
    if quiet(&["install", "--locked", "--quiet", "cargo-deny", "--version", "^0.20"]) {
        return None;
    }
    Some("cargo-deny is missing and cannot be installed: cargo install --locked cargo-deny".to_owned())
}

fn quiet(args: &[&str]) -> bool {
    let status =
        Command::new(cargo()).args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Downloads what the graph names, so that the check itself needs no network.
pub(crate) fn fetch(workspace: &Workspace) -> Command {
    in_root(workspace, &cargo(), &["fetch", "--quiet", "--target", TARGET])
}

/// The target that `deny.toml` looks at.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The command that checks `what`.
pub(crate) fn check(workspace: &Workspace, offline: bool, what: &[&str]) -> Command {
    let mut command = in_root(workspace, &cargo(), &["deny"]);
    if offline {
        command.arg("--offline");
    }
    command.arg("check").args(what);
    command
}
