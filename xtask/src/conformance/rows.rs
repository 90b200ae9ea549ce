//! Contract rows: each needs a test named after it and an example that the compiler runs.

use super::ROWS;
use super::ids;
use super::reference::Rows;
use crate::say;
use crate::source::{Comment, Fence, Source};
use crate::table::Table;
use crate::workspace::Workspace;
use std::collections::BTreeMap;

/// Places by row id.
type Places = BTreeMap<String, Vec<String>>;

/// Prints the rows; returns how many required ones lack a test or an example.
pub(crate) fn report(workspace: &Workspace, sources: &[Source], contract: &Rows, all: bool) -> anyhow::Result<usize> {
    let tests = named_tests(sources);
    let mut examples = doc_examples(sources);
    for (file, text) in compiled_markdown(workspace, sources)? {
        markdown_examples(&file, &text, &mut examples);
    }
    let mut lacking = Vec::new();
    let mut full = Table::new(["row", "tests", "examples", "promise"]);

    for row in ROWS {
        let count = |places: &Places| places.get(*row).map_or(0, Vec::len);
        let promise = contract.get(*row).map_or("not in contract.md", String::as_str);
        if count(&tests) == 0 || count(&examples) == 0 || !contract.contains_key(*row) {
            lacking.push((*row, count(&tests), count(&examples)));
        }
        let first =
            |places: &Places| places.get(*row).and_then(|p| p.first()).cloned().unwrap_or_else(|| "none".to_owned());
        full.row([(*row).to_owned(), first(&tests), first(&examples), super::abbreviated(promise, 60)]);
    }
    say!("contract rows: {} of {} tested, each with an example", ROWS.len() - lacking.len(), ROWS.len());
    if all {
        say!("{full}");
    }
    for (row, tests, examples) in &lacking {
        let word = |count: usize| if count == 0 { "no" } else { "has a" };
        say!(
            "{row:<7} LACKING       {} test `fn {}_...`, {} example",
            word(*tests),
            row.to_lowercase(),
            word(*examples)
        );
    }
    say!("");
    Ok(lacking.len())
}

/// Test functions named after a row: `fn g05_...`.
fn named_tests(sources: &[Source]) -> Places {
    let mut places = Places::new();
    for source in sources {
        for (index, line) in source.lines.iter().enumerate().filter(|(_, line)| line.under.test) {
            let Some((_, name)) = line.code.split_once("fn ") else { continue };
            if let (Some(prefix), Some(b'_')) = (name.get(..3), name.as_bytes().get(3))
                && let [row] = ids::rows(&prefix.to_uppercase()).as_slice()
            {
                places.entry(row.clone()).or_default().push(format!("{}:{}", source.path.display(), index + 1));
            }
        }
    }
    places
}

/// Rows named inside a compiled fence of a doc comment, or in a heading above one.
fn doc_examples(sources: &[Source]) -> Places {
    let mut places = Places::new();
    for source in sources {
        let mut heading = Vec::new();
        for (index, line) in source.lines.iter().enumerate() {
            let place = format!("{}:{}", source.path.display(), index + 1);
            match line.kind {
                Comment::Plain => heading.clear(),
                Comment::Doc => follow_heading(&line.comment, &mut heading),
                Comment::Example => note_example(&line.comment, &heading, &place, &mut places),
            }
        }
    }
    places
}

fn markdown_examples(file: &str, text: &str, places: &mut Places) {
    let mut fence = Fence::default();
    let mut heading = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if fence.feed(line) {
            note_example(line, &heading, &format!("{file}:{}", index + 1), places);
        } else {
            follow_heading(line, &mut heading);
        }
    }
}

/// A heading replaces the rows that the examples beneath it show.
fn follow_heading(line: &str, heading: &mut Vec<String>) {
    if line.trim_start().starts_with('#') {
        *heading = ids::rows(line);
    }
}

fn note_example(line: &str, heading: &[String], place: &str, places: &mut Places) {
    let named = line.split_once("//").map(|(_, comment)| ids::rows(comment)).unwrap_or_default();
    for row in named.iter().chain(heading) {
        let of_row = places.entry(row.clone()).or_default();
        if heading.contains(row) && !of_row.is_empty() && !named.contains(row) {
            continue;
        }
        of_row.push(place.to_owned());
    }
}

/// The Markdown files that some `include_str!` in a doc attribute brings into the documentation.
fn compiled_markdown(workspace: &Workspace, sources: &[Source]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for source in sources {
        for line in source.text.lines().filter(|line| line.contains("doc") && line.contains("include_str!")) {
            let Some(name) = line.split('"').nth(1).filter(|name| name.ends_with(".md")) else { continue };
            let path = workspace.root.join(&source.path).with_file_name(name);
            // The path goes up and down again: let the system resolve it.
            let Ok(resolved) = path.canonicalize() else { continue };
            let shown = resolved.strip_prefix(&workspace.root).unwrap_or(&resolved).display().to_string();
            found.insert(shown, std::fs::read_to_string(&resolved)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::{Places, doc_examples, markdown_examples, named_tests};
    use crate::source::{Source, Under, scan};
    use std::path::PathBuf;

    fn source(text: &str) -> Source {
        Source { path: PathBuf::from("x.rs"), text: text.to_owned(), lines: scan(text, Under::default()).0 }
    }

    #[test]
    fn a_test_is_named_after_its_row() {
        let text = "#[cfg(test)]\nmod tests {\n    #[test]\n    fn g05_scopes_nest() {}\n    fn g0x_() {}\n}\nfn h01_library() {}\n";
        let places = named_tests(&[source(text)]);
        assert_eq!(places.keys().collect::<Vec<_>>(), ["G05"]);
    }

    #[test]
    fn an_example_names_its_row_inside_or_above() {
        let mut places = Places::new();
        markdown_examples(
            "a.md",
            "## G05, G06\n```\nf();\n```\n## Other\n```\ng(); // K01\n```\n```text\n// K02\n```\n",
            &mut places,
        );
        assert_eq!(places.keys().collect::<Vec<_>>(), ["G05", "G06", "K01"]);
        let doc = doc_examples(&[source("/// ```\n/// f(); // F06\n/// ```\nfn f() {}\n")]);
        assert_eq!(doc.keys().collect::<Vec<_>>(), ["F06"]);
    }
}
