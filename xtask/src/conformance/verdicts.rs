//! The verdict tables in `docs/conformance/*.md`: what kmem does differently, and what it leaves out, each with why.

use super::ids::{Cited, FactId, citations};
use super::reference::Facts;
use std::collections::BTreeMap;
use std::path::Path;

/// What a table row says of a fact.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Ruling {
    /// kmem deliberately behaves otherwise.
    Different,
    /// These crates have no such thing.
    OutOfScope,
}

/// One fact's ruling with its reason and the file that holds the row.
#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    /// The ruling.
    pub(crate) ruling: Ruling,
    /// The row's last cell.
    pub(crate) why: String,
    /// `docs/conformance/SL.md:12`
    pub(crate) place: String,
}

/// A row as parsed, before it is matched with facts.
#[derive(Debug)]
struct Row {
    ids: Vec<Cited>,
    ruling: Ruling,
    why: String,
}

/// Reads every table of `folder`. Whatever cannot be understood is pushed on `errors`.
pub(crate) fn read(folder: &Path, facts: &Facts, errors: &mut Vec<String>) -> BTreeMap<FactId, Verdict> {
    let mut verdicts: BTreeMap<FactId, Verdict> = BTreeMap::new();
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|ext| ext == "md") && !path.ends_with("README.md"))
        .collect();
    files.sort();
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or("?");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        for (index, line) in text.lines().enumerate() {
            let place = format!("docs/conformance/{name}:{}", index + 1);
            match row(line) {
                Ok(None) => {}
                Ok(Some(row)) => settle(&row, &place, facts, &mut verdicts, errors),
                Err(error) => errors.push(format!("{place}: {error}")),
            }
        }
    }
    verdicts
}

/// Applies one row to every fact that it covers.
fn settle(row: &Row, place: &str, facts: &Facts, verdicts: &mut BTreeMap<FactId, Verdict>, errors: &mut Vec<String>) {
    for cited in &row.ids {
        for id in cited.named().filter(|id| !facts.contains_key(id)) {
            errors.push(format!("{place}: {id} is not in the reference"));
        }
        for id in facts.keys().filter(|id| cited.covers(id)) {
            let verdict = Verdict { ruling: row.ruling.clone(), why: row.why.clone(), place: place.to_owned() };
            if let Some(earlier) = verdicts.insert(id.clone(), verdict) {
                errors.push(format!("{place}: {id} has a verdict already, in {}", earlier.place));
            }
        }
    }
}

/// Parses one line; `None` if it is no verdict row.
fn row(line: &str) -> Result<Option<Row>, String> {
    let Some(inner) = line.trim().strip_prefix('|') else { return Ok(None) };
    let cells: Vec<&str> = inner.trim_end_matches('|').splitn(3, '|').map(str::trim).collect();
    let Some(first) = cells.first() else { return Ok(None) };
    let ids = citations(&first.replace(['`', '*'], ""));
    if ids.is_empty() {
        return Ok(None);
    }
    let [_, verdict, why] = cells.as_slice() else {
        return Err("a verdict row is `| ids | different or out of scope | why |`".to_owned());
    };
    let ruling = match verdict.to_ascii_lowercase().replace('-', " ").as_str() {
        "different" | "different on purpose" => Ruling::Different,
        "out of scope" => Ruling::OutOfScope,
        "tested" => return Err("`tested` needs no row: cite the id in the test".to_owned()),
        other => return Err(format!("`{other}` is no verdict: write `different` or `out of scope`")),
    };
    if why.is_empty() {
        return Err("a verdict needs a reason in its last cell".to_owned());
    }
    Ok(Some(Row { ids, ruling, why: (*why).to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::{Ruling, row};

    #[test]
    fn a_row_may_cover_lists_and_ranges() {
        let row =
            row("| B-18, B-70..B-72 | out of scope | no hot-remove, by design |").expect("parses").expect("a row");
        assert_eq!(row.ids.len(), 2);
        assert_eq!(row.ruling, Ruling::OutOfScope);
        assert_eq!(row.why, "no hot-remove, by design");
    }

    #[test]
    fn headers_and_prose_are_no_rows() {
        assert!(row("| id | verdict | why |").expect("parses").is_none());
        assert!(row("| --- | --- | --- |").expect("parses").is_none());
        assert!(row("B-18 is different").expect("parses").is_none());
    }

    #[test]
    fn a_verdict_needs_a_reason_and_a_known_name() {
        assert!(row("| B-18 | different | |").is_err());
        assert!(row("| B-18 | skipped | because |").is_err());
        assert!(row("| B-18 | tested | here |").is_err());
    }
}
