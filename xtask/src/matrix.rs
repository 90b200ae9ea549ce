//! `cargo xtask features` and `cargo xtask no-std`: each crate by itself.

use crate::check::in_root;
use crate::process;
use crate::say;
use crate::table::Table;
use crate::workspace::{Package, Workspace, cargo};
use anyhow::{Context as _, bail};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

/// Lints every crate with no feature and with each feature alone, nothing else of the workspace selected.
pub(crate) fn features(workspace: &Workspace) -> anyhow::Result<()> {
    let mut table = Table::new(["crate", "builds", "seconds"]);
    let mut failed = Vec::new();
    let mut builds = 0;
    for package in workspace.crates().filter(|package| package.folder().join("src/lib.rs").is_file()) {
        let single =
            package.features.keys().filter(|feature| *feature != "default").map(|feature| vec![feature.as_str()]);
        let mut seconds = 0.0;
        let mut count = 0;
        for features in std::iter::once(Vec::new()).chain(single) {
            let mut command =
                in_root(workspace, &cargo(), &["clippy", "--lib", "-p", &package.name, "--no-default-features"]);
            if !features.is_empty() {
                command.args(["--features", &features.join(",")]);
            }
            command.args(["--", "-D", "warnings"]);
            let finished = process::watch(package.short_name(), &mut command, |_| false)?;
            seconds += finished.time.as_secs_f64();
            count += 1;
            if !finished.success {
                for line in finished.lines.iter().filter(|line| !process::is_progress(line)) {
                    say!("    {line}");
                }
                failed.push(process::spelled(&command));
            }
        }
        builds += count;
        table.row([package.name.clone(), count.to_string(), format!("{seconds:.1}")]);
    }
    say!("{table}");
    if !failed.is_empty() {
        bail!("these fail:\n    {}", failed.join("\n    "));
    }
    say!("{builds} combinations build");
    Ok(())
}

/// Links every crate below `hosted` into a static library that has neither `std` nor a global allocator. The compiler
/// refuses that library if anything in it names the `alloc` crate ("no global memory allocator found"), and `std`
/// brings a second panic handler.
pub(crate) fn no_std(workspace: &Workspace) -> anyhow::Result<()> {
    let packages: Vec<&Package> = workspace.no_std_crates().collect();
    let folder = workspace.target.join("xtask/probe");
    write_probe(workspace, &packages, &folder)?;
    let mut failed = Vec::new();
    for package in &packages {
        let finished = process::watch(package.short_name(), &mut link(&folder, &package.name), |_| false)?;
        let word = if finished.success { "links" } else { "FAILS" };
        say!("{:<14} {word}", package.name);
        if !finished.success {
            for line in finished.lines.iter().filter(|line| !process::is_progress(line)) {
                say!("    {line}");
            }
            failed.push(package.name.as_str());
        }
    }
    // The proof is worth something only if the probe can fail.
    if process::watch("alloc", &mut link(&folder, "needs-alloc"), |_| false)?.success {
        bail!("the probe links even with `alloc`: it proves nothing");
    }
    if !failed.is_empty() {
        bail!("these do not link without std and alloc: {}", failed.join(", "));
    }
    say!("{} crates link without std and alloc", packages.len());
    Ok(())
}

fn link(folder: &Path, feature: &str) -> Command {
    let mut command = Command::new(cargo());
    command.current_dir(folder).args(["build", "--features", feature, "--target-dir"]).arg(folder.join("target"));
    command
}

/// Writes the static library's package: one optional dependency for each crate.
fn write_probe(workspace: &Workspace, packages: &[&Package], folder: &Path) -> anyhow::Result<()> {
    let mut manifest = String::from(
        "[package]\nname = \"kmem-probe\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n\
         [lib]\ncrate-type = [\"staticlib\"]\n\n[profile.dev]\npanic = \"abort\"\n\n[features]\nneeds-alloc = []\n\n[dependencies]\n",
    );
    let mut code = String::from(
        "//! Links crates without `std` and without a global allocator.\n#![no_std]\n\n\
         #[cfg(feature = \"needs-alloc\")]\nextern crate alloc;\n\n",
    );
    for package in packages {
        writeln!(manifest, "{} = {{ path = {:?}, optional = true }}", package.name, package.folder())?;
        writeln!(code, "#[cfg(feature = {:?})]\nextern crate {} as _;", package.name, package.name.replace('-', "_"))?;
    }
    code += "\n#[panic_handler]\nfn panic(_: &core::panic::PanicInfo<'_>) -> ! {\n    loop {}\n}\n";
    std::fs::create_dir_all(folder.join("src"))?;
    std::fs::write(folder.join("Cargo.toml"), manifest)?;
    std::fs::write(folder.join("src/lib.rs"), code)?;
    // The same versions as everywhere else.
    std::fs::copy(workspace.root.join("Cargo.lock"), folder.join("Cargo.lock")).context("cannot copy Cargo.lock")?;
    Ok(())
}
