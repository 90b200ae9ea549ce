//! `cargo xtask tidy`: what the compiler cannot see.
//!
//! | rule | where it holds |
//! | --- | --- |
//! | layers: a crate depends only on what stands before it in the picture, for tests too | `crates/` |
//! | every file opens with a `//!` header | every `.rs` file |
//! | `no_std`, and neither `std` nor `alloc` outside tests and feature adapters | below `hosted` |
//! | atomics, `UnsafeCell` and the loom switch come from `kmem-sync` | below `hosted` |
//! | nothing that can panic by design: `unwrap`, `expect`, `panic!`, `unreachable!`, ... | below `hosted`, outside tests |
//! | a README that is compiled as the crate's documentation | `crates/` |
//! | each loom model has a row with its mutation in `docs/loom/<crate>.md` | `crates/` |
//! | relative links lead somewhere | every Markdown file |
//! | no path of somebody's machine, no mark of unfinished work | every text file |
//! | at most 600 lines a file (a warning) | every `.rs` file outside tests |
//!
//! A deliberate panic (a documented flag that asks for one, a check in a debug build, a constant that the compiler
//! evaluates) carries `// PANIC: why` on its
//! line or the line above.

mod layers;
mod rules;

use crate::say;
use crate::source;
use crate::table::Table;
use crate::workspace::Workspace;
use anyhow::bail;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Something that a rule objects to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Finding {
    /// The file, relative to the workspace.
    path: PathBuf,
    /// The line, if it is about one.
    line: Option<usize>,
    /// The rule's name, for the table.
    rule: &'static str,
    /// What is wrong and what to do.
    message: String,
    /// Reported, but no failure.
    warning: bool,
}

impl Finding {
    /// A finding that fails the check.
    fn new(path: impl Into<PathBuf>, line: Option<usize>, rule: &'static str, message: impl Into<String>) -> Self {
        Self { path: path.into(), line, rule, message: message.into(), warning: false }
    }
}

/// Runs every rule; an error if one objects.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let mut findings = layers::check(workspace);
    let sources = source::scan_all(&workspace.root, &workspace.rust_files(&["crates", "tests", "xtask", "benches"])?)?;
    for source in &sources {
        rules::check_source(source, &mut findings);
    }
    for package in workspace.crates() {
        rules::check_crate(workspace, package, &sources, &mut findings);
        rules::check_models(workspace, package, &sources, &mut findings);
    }
    for path in workspace.files(&[""], &["rs", "md", "toml", "sh", "html", "json"])? {
        if let Ok(text) = std::fs::read_to_string(workspace.root.join(&path)) {
            rules::check_text(&path, &text, &mut findings);
            if path.extension().is_some_and(|extension| extension == "md") {
                rules::check_links(&workspace.root, &path, &text, &mut findings);
            }
        }
    }

    let mut by_rule: BTreeMap<&str, usize> = BTreeMap::new();
    for finding in &findings {
        *by_rule.entry(finding.rule).or_default() += 1;
        let line = finding.line.map(|line| format!(":{line}")).unwrap_or_default();
        let level = if finding.warning { "warning" } else { "error" };
        say!("{}{line}: {level}: {}", finding.path.display(), finding.message);
    }
    let errors = findings.iter().filter(|finding| !finding.warning).count();
    if !findings.is_empty() {
        let mut table = Table::new(["rule", "findings"]);
        for (rule, count) in by_rule {
            table.row([rule.to_owned(), count.to_string()]);
        }
        say!("\n{table}");
    }
    if errors > 0 {
        bail!("{errors} findings");
    }
    say!("tidy: {} files of Rust in order", sources.len());
    Ok(())
}
