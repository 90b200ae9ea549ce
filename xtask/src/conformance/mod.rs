//! `cargo xtask conformance`: each fact of the reference and each row of the contract with its verdict.
//!
//! ```text
//! docs/reference/linux-*.md ──▶ facts ──┐
//! comments in test code ──────▶ places ─┼──▶ tested | different | out of scope | UNCLASSIFIED
//! docs/conformance/*.md ──────▶ verdicts┘
//! docs/reference/contract.md ─▶ rows ──────▶ tested (a named test and an example) | lacking
//! ```
//! `docs/conformance/README.md` has the rules in prose.

mod ids;
mod reference;
mod rows;
mod verdicts;

use crate::say;
use crate::source::{self, Source};
use crate::table::Table;
use crate::workspace::Workspace;
use anyhow::bail;
use clap::Args;
use ids::FactId;
use reference::Facts;
use std::collections::BTreeMap;
use verdicts::{Ruling, Verdict};

/// The families whose every fact must be classified: those that the crates of this workspace serve.
pub(crate) const FAMILIES: [&str; 18] =
    ["G", "S", "B", "C", "M", "SL", "KM", "VM", "KV", "RC", "UC", "MP", "DB", "D", "R", "O", "A", "ZS"];

/// The contract rows that must be tested.
pub(crate) const ROWS: &[&str] = &[
    "G01", "G02", "G03", "G04", "G05", "G06", "G07", "G08", "G09", "H01", "H02", "H03", "H04", "H05", "H06", "H07",
    "K01", "K02", "K03", "K04", "K05", "K06", "V01", "V02", "C01", "C02", "C03", "P01", "P02", "P03", "F01", "F02",
    "F03", "F04", "F05", "F06",
];

/// What to print.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// Print every fact and row, with where it is tested or why it is not.
    #[arg(long)]
    all: bool,
    /// Only this family (also one that nothing serves yet), with the text of each unclassified fact.
    #[arg(long, value_name = "FAMILY")]
    family: Option<String>,
}

/// What is known about one fact.
struct Status<'a> {
    id: &'a FactId,
    text: &'a str,
    places: &'a [String],
    verdict: Option<&'a Verdict>,
}

impl Status<'_> {
    fn word(&self) -> &'static str {
        match (self.verdict.map(|v| &v.ruling), self.places.is_empty()) {
            (Some(Ruling::Different), _) => "different",
            (Some(Ruling::OutOfScope), _) => "out of scope",
            (None, false) => "tested",
            (None, true) => "UNCLASSIFIED",
        }
    }
}

/// Prints the report; an error if anything required lacks a verdict or anything cited does not exist.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    let facts = reference::facts(&workspace.root.join("docs/reference"))?;
    let contract = reference::contract(&workspace.root.join("docs/reference/contract.md"))?;
    let sources = source::scan_all(&workspace.root, &workspace.rust_files(&["crates", "tests"])?)?;
    let mut errors = Vec::new();
    let places = cited_in_tests(&sources, &facts, &mut errors);
    let verdicts = verdicts::read(&workspace.root.join("docs/conformance"), &facts, &mut errors);
    for (id, verdict) in &verdicts {
        if let (Ruling::OutOfScope, Some(places)) = (&verdict.ruling, places.get(id)) {
            errors.push(format!("{}: {id} is out of scope, yet {} cites it", verdict.place, places.join(", ")));
        }
    }

    let families: Vec<&str> = options.family.as_deref().map_or(FAMILIES.to_vec(), |family| vec![family]);
    let empty = Vec::new();
    let statuses: Vec<Status<'_>> = facts
        .iter()
        .filter(|(id, _)| families.contains(&id.family.as_str()))
        .map(|(id, text)| Status { id, text, places: places.get(id).unwrap_or(&empty), verdict: verdicts.get(id) })
        .collect();
    if statuses.is_empty() {
        bail!("the reference has no family {}", families.join(", "));
    }
    print_facts(&families, &statuses, options);

    let mut lacking = 0;
    if options.family.is_none() {
        lacking = rows::report(workspace, &sources, &contract, options.all)?;
    }
    for error in &errors {
        say!("error: {error}");
    }
    let unclassified = statuses.iter().filter(|status| status.word() == "UNCLASSIFIED").count();
    if unclassified + lacking + errors.len() > 0 {
        bail!("{unclassified} facts unclassified, {lacking} contract rows lacking, {} errors", errors.len());
    }
    say!("every fact is classified and every contract row is tested");
    Ok(())
}

/// Where each fact is cited by test code. Ids that the reference lacks are errors wherever a comment names them.
fn cited_in_tests(sources: &[Source], facts: &Facts, errors: &mut Vec<String>) -> BTreeMap<FactId, Vec<String>> {
    let mut places: BTreeMap<FactId, Vec<String>> = BTreeMap::new();
    let known = |family: &str| facts.keys().any(|id| id.family == family);
    for source in sources {
        for (index, line) in source.lines.iter().enumerate().filter(|(_, line)| !line.comment.is_empty()) {
            let place = format!("{}:{}", source.path.display(), index + 1);
            for cited in ids::citations(&line.comment) {
                if !known(&cited.first.family) {
                    continue;
                }
                for id in cited.named().filter(|id| !facts.contains_key(id)) {
                    errors.push(format!("{place}: {id} is not in the reference"));
                }
                if Source::cites(line) {
                    for id in facts.keys().filter(|id| cited.covers(id)) {
                        places.entry(id.clone()).or_default().push(place.clone());
                    }
                }
            }
        }
    }
    places
}

fn print_facts(families: &[&str], statuses: &[Status<'_>], options: &Options) {
    let mut table = Table::new(["family", "facts", "tested", "different", "out of scope", "unclassified"]);
    for family in families {
        let of_family: Vec<_> = statuses.iter().filter(|status| status.id.family == *family).collect();
        let count = |word: &str| of_family.iter().filter(|status| status.word() == word).count().to_string();
        let cells = ["tested", "different", "out of scope", "UNCLASSIFIED"].map(count);
        let [tested, different, out, unclassified] = cells;
        table.row([(*family).to_owned(), of_family.len().to_string(), tested, different, out, unclassified]);
    }
    say!("{table}");
    if options.all || options.family.is_some() {
        for status in statuses.iter().filter(|status| options.all || status.word() == "UNCLASSIFIED") {
            let detail = match status.verdict {
                Some(verdict) if status.places.is_empty() => verdict.why.clone(),
                Some(verdict) => format!("{} ({})", verdict.why, status.places.join(", ")),
                None if status.places.is_empty() => abbreviated(status.text, 90),
                None => status.places.join(", "),
            };
            say!("{:<7} {:<13} {detail}", status.id.to_string(), status.word());
        }
    } else {
        for family in families {
            let lacking = runs(statuses, family);
            if !lacking.is_empty() {
                say!("UNCLASSIFIED {}", lacking.join(", "));
            }
        }
    }
    say!("");
}

/// The unclassified facts of a family, those that follow one another as a range.
fn runs(statuses: &[Status<'_>], family: &str) -> Vec<String> {
    let mut runs: Vec<(&FactId, &FactId)> = Vec::new();
    let mut unbroken = false;
    for status in statuses.iter().filter(|status| status.id.family == family) {
        let lacking = status.word() == "UNCLASSIFIED";
        match runs.last_mut() {
            Some((_, last)) if lacking && unbroken => *last = status.id,
            _ if lacking => runs.push((status.id, status.id)),
            _ => {}
        }
        unbroken = lacking;
    }
    runs.iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}..{last}") })
        .collect()
}

/// The first `limit` characters, cut with an ellipsis.
fn abbreviated(text: &str, limit: usize) -> String {
    if text.chars().count() <= limit {
        return text.to_owned();
    }
    text.chars().take(limit - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::{FactId, Facts, cited_in_tests};
    use crate::source::{Source, Under, scan};
    use std::path::PathBuf;

    fn facts(numbers: &[u32]) -> Facts {
        numbers.iter().map(|&number| (FactId { family: "B".to_owned(), number }, String::new())).collect()
    }

    fn source(text: &str) -> Source {
        Source { path: PathBuf::from("x.rs"), text: text.to_owned(), lines: scan(text, Under::default()).0 }
    }

    #[test]
    fn only_test_code_cites_and_ranges_skip_gaps() {
        let text = "// B-10\nfn a() {}\n#[cfg(test)]\nmod tests {\n    // B-11..B-14\n}\n";
        let mut errors = Vec::new();
        let places = cited_in_tests(&[source(text)], &facts(&[10, 11, 14]), &mut errors);
        let ids: Vec<String> = places.keys().map(ToString::to_string).collect();
        assert_eq!(ids, ["B-11", "B-14"]);
        assert!(errors.is_empty());
    }

    #[test]
    fn an_unknown_id_is_an_error_even_in_library_code() {
        let mut errors = Vec::new();
        cited_in_tests(&[source("// B-99 and ZZ-99\n")], &facts(&[10]), &mut errors);
        assert_eq!(errors, ["x.rs:1: B-99 is not in the reference"]);
    }
}
