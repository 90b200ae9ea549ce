//! The rules that look at lines.

use super::Finding;
use crate::source::{Line, Source};
use crate::workspace::{Package, Workspace};
use std::path::Path;

/// The longest file that a reader takes in at one sitting.
const LONGEST_FILE: usize = 600;

/// Longer files, each with the reason why it is not cut.
const LONG_FILES: [(&str, &str); 0] = [];

/// Beginnings of paths that mean one particular machine. Spelled in two halves, so that this file passes.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/tmp/", "target"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

/// Marks of unfinished work, spelled likewise.
const MARKS: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX"), concat!("HA", "CK")];

/// What ends a program where a `Result` belongs.
const PANICS: [&str; 6] = [".unwrap()", ".expect(", "panic!", "todo!", "unimplemented!", "unreachable!"];

/// The crate under `crates/` that a file belongs to, if it is one below `hosted`.
fn no_std_crate(path: &Path) -> Option<&str> {
    let mut parts = path.components().filter_map(|part| part.as_os_str().to_str());
    let name = (parts.next() == Some("crates")).then(|| parts.next()).flatten()?;
    (!matches!(name, "hosted" | "lab")).then_some(name)
}

/// Checks one Rust file.
pub(crate) fn check_source(source: &Source, findings: &mut Vec<Finding>) {
    let path = &source.path;
    if !source.text.starts_with("//!") {
        findings.push(Finding::new(path, Some(1), "header", "open the file with a `//!` header that tells what it is"));
    }
    let count = source.lines.len();
    let listed = LONG_FILES.iter().any(|(name, _)| path == Path::new(name));
    let all_test = source.lines.first().is_some_and(|line| line.under.test);
    if count > LONGEST_FILE && !all_test && !listed {
        let message = format!("{count} lines: cut it by idea, or list it with a reason");
        findings.push(Finding { warning: true, ..Finding::new(path, None, "length", message) });
    }
    let Some(name) = no_std_crate(path) else { return };
    for (index, line) in source.lines.iter().enumerate().filter(|(_, line)| !line.under.test) {
        let above = index.checked_sub(1).and_then(|above| source.lines.get(above));
        for (rule, message) in objections(name, line, above) {
            findings.push(Finding::new(path, Some(index + 1), rule, message));
        }
    }
}

/// What the rules for library code below `hosted` say of one line outside tests.
fn objections(name: &str, line: &Line, above: Option<&Line>) -> Vec<(&'static str, String)> {
    let code = line.code.as_str();
    let mut found = Vec::new();
    if name != "sync" {
        if code.contains("cfg") && has_word(code, "loom") {
            found.push(("loom", "only kmem-sync says `cfg(loom)` outside tests".to_owned()));
        }
        for path in ["core::sync::atomic", "std::sync::atomic", "core::cell::UnsafeCell", "std::cell::UnsafeCell"] {
            if code.contains(path) {
                found.push(("sync", format!("`{path}` is not seen by loom: take it from kmem_sync")));
            }
        }
    }
    if !line.under.feature {
        for item in ["extern crate std", "extern crate alloc"] {
            if code.contains(item) {
                found.push(("no_std", format!("`{item}` outside tests and feature adapters")));
            }
        }
        if begins_name(code, "std::") {
            found.push(("no_std", "`std::` outside tests and feature adapters: take it from `core`".to_owned()));
        }
    }
    let explained = [Some(line), above].into_iter().flatten().any(|line| line.comment.contains("PANIC:"));
    for call in PANICS {
        let called = if call.starts_with('.') { code.contains(call) } else { begins_name(code, call) };
        if called && !explained {
            let message = format!("`{call}` in library code: return an error, or explain it with `// PANIC: why`");
            found.push(("panic", message));
        }
    }
    found
}

/// Whether `start` begins a name in `code`.
fn begins_name(code: &str, start: &str) -> bool {
    code.match_indices(start).any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            && !text[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
    })
}

/// Checks what a crate must have.
pub(crate) fn check_crate(workspace: &Workspace, package: &Package, sources: &[Source], findings: &mut Vec<Finding>) {
    let folder = package.folder().strip_prefix(&workspace.root).unwrap_or(package.folder());
    if !package.folder().join("README.md").is_file() {
        findings.push(Finding::new(folder, None, "readme", "the crate has no README.md"));
    }
    let manifest = std::fs::read_to_string(&package.manifest_path).unwrap_or_default();
    if !manifest.contains("[lints]\nworkspace = true") {
        findings.push(Finding::new(folder.join("Cargo.toml"), None, "lints", "add `[lints] workspace = true`"));
    }
    let root = folder.join("src/lib.rs");
    let Some(source) = sources.iter().find(|source| source.path == root) else { return };
    if !source.text.contains("include_str!(\"../README.md\")") {
        let message = "compile the README: `#![doc = include_str!(\"../README.md\")]`";
        findings.push(Finding::new(&root, None, "readme", message));
    }
    if no_std_crate(&root).is_some() && !source.lines.iter().any(|line| line.code.contains("no_std")) {
        findings.push(Finding::new(&root, None, "no_std", "the crate is not `#![no_std]`"));
    }
}

/// Checks that `docs/loom/<crate>.md` has a row for each model of the crate, and no row for a model that is gone.
pub(crate) fn check_models(workspace: &Workspace, package: &Package, sources: &[Source], findings: &mut Vec<Finding>) {
    let folder = package.folder().strip_prefix(&workspace.root).unwrap_or(package.folder());
    let page = Path::new("docs/loom").join(format!("{}.md", package.short_name()));
    let text = std::fs::read_to_string(workspace.root.join(&page)).unwrap_or_default();
    let rows: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let mut written = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with(folder)) {
        for (line, name) in source.models() {
            written.push(name);
            if !rows.contains(&name) {
                let message = format!("{} has no row `{name}`: which mutation makes it fail?", page.display());
                findings.push(Finding::new(&source.path, Some(line), "models", message));
            }
        }
    }
    for row in rows.iter().filter(|row| !written.contains(row)) {
        findings.push(Finding::new(&page, None, "models", format!("there is no model `{row}`")));
    }
}

/// Checks that the relative links of a Markdown file lead somewhere.
pub(crate) fn check_links(root: &Path, path: &Path, text: &str, findings: &mut Vec<Finding>) {
    let folder = root.join(path).parent().unwrap_or(root).to_owned();
    for (index, line) in text.lines().enumerate() {
        for target in links(line) {
            if !folder.join(target).exists() {
                let message = format!("`{target}` leads nowhere");
                findings.push(Finding::new(path, Some(index + 1), "links", message));
            }
        }
    }
}

/// The targets of inline links that are files: neither a web address, nor an anchor, nor the path of an item.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', '#', ' ']).next()?;
        let file = target.contains('/') || target.ends_with(".md");
        (file && !target.contains("://") && !target.contains("::")).then_some(target)
    })
}

/// Checks any text file.
pub(crate) fn check_text(path: &Path, text: &str, findings: &mut Vec<Finding>) {
    for (index, line) in text.lines().enumerate() {
        for start in MACHINE_PATHS.iter().filter(|start| begins_path(line, start)) {
            let message = format!("`{start}` is a place on one machine");
            findings.push(Finding::new(path, Some(index + 1), "machine path", message));
        }
        // The reference quotes the kernel's own words.
        for mark in MARKS.iter().filter(|mark| has_word(line, mark) && !path.starts_with("docs/reference")) {
            findings.push(Finding::new(
                path,
                Some(index + 1),
                "unfinished",
                format!("`{mark}`: finish it or remove it"),
            ));
        }
    }
}

/// Whether an absolute path begins with `start` on this line (`https://host/root/` has none).
fn begins_path(line: &str, start: &str) -> bool {
    line.match_indices(start)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | '*')))
}

#[cfg(test)]
mod tests {
    use super::{check_source, check_text, links};
    use crate::source::{Source, Under, scan};
    use std::path::{Path, PathBuf};

    fn rules_broken(path: &str, text: &str) -> Vec<&'static str> {
        let source = Source { path: PathBuf::from(path), text: text.to_owned(), lines: scan(text, Under::default()).0 };
        let mut findings = Vec::new();
        check_source(&source, &mut findings);
        findings.iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn library_code_below_hosted_is_strict() {
        let rules = |line: &str| rules_broken("crates/slab/src/a.rs", &format!("//! A.\n{line}\n"));
        assert_eq!(rules("let a = b.unwrap();"), ["panic"]);
        assert_eq!(rules("core::panic!(\"x\");"), ["panic"]);
        assert_eq!(rules("use ::std::vec::Vec;"), ["no_std"]);
        assert_eq!(rules("use std::sync::atomic::AtomicU32;"), ["sync", "no_std"]);
        assert_eq!(rules("#[cfg(loom)]"), ["loom"]);
        assert_eq!(rules("extern crate alloc;"), ["no_std"]);
        assert_eq!(rules("kmem_std::f(); a.unwrap_or(1); debug_assert!(x);"), Vec::<&str>::new());
    }

    #[test]
    fn tests_features_and_explained_panics_are_free() {
        let rules = |text: &str| rules_broken("crates/slab/src/a.rs", &format!("//! A.\n{text}\n"));
        assert!(
            rules("#[cfg(test)]\nmod tests {\n    #[cfg(loom)]\n    use std::vec;\n    fn f() { a.unwrap() }\n}")
                .is_empty()
        );
        assert!(rules("#[cfg(feature = \"std\")]\nextern crate std;").is_empty());
        assert!(rules("// PANIC: the flag asks for it.\npanic!(\"no memory\");").is_empty());
        assert!(rules("/// Like `x.unwrap()` and `panic!`.\nfn f() {}").is_empty());
    }

    #[test]
    fn only_links_to_files_are_followed() {
        let line = "[a](../a.md#x) [b](https://x.org/b.md) [c](crate::C) [d](#d) [e](e.md) `f](g)`";
        assert_eq!(links(line).collect::<Vec<_>>(), ["../a.md", "e.md"]);
    }

    #[test]
    fn hosted_and_lab_may_use_std() {
        assert!(rules_broken("crates/hosted/src/a.rs", "//! A.\nuse std::vec;\nlet a = b.unwrap();\n").is_empty());
    }

    #[test]
    fn a_file_needs_a_header() {
        assert_eq!(rules_broken("crates/lab/src/a.rs", "use x;\n"), ["header"]);
    }

    #[test]
    fn machine_paths_and_marks_are_found_in_any_text() {
        let mut findings = Vec::new();
        let text = concat!("see /wo", "rk/main\nhttps://x.org/ro", "ot/a\nTO", "DO later\n");
        check_text(Path::new("README.md"), text, &mut findings);
        let rules: Vec<_> = findings.iter().map(|finding| (finding.rule, finding.line)).collect();
        assert_eq!(rules, [("machine path", Some(1)), ("unfinished", Some(3))]);
    }
}
