//! The reference as a list of facts, and the contract as a list of rows.
//!
//! A fact is defined by the line that its id opens: a list item (`- B-01 ...`, `- **SL-01** ...`) or a table row
//! (`| G-01 | ...`, `| **SL-10** | ...`). An id anywhere else is a mention.

use super::ids::{FactId, citations, rows};
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::path::Path;

/// Facts by id, each with the start of its text.
pub(crate) type Facts = BTreeMap<FactId, String>;

/// Contract rows by id, each with its promise.
pub(crate) type Rows = BTreeMap<String, String>;

/// Reads every fact of `docs/reference/linux-*.md`.
pub(crate) fn facts(folder: &Path) -> anyhow::Result<Facts> {
    let mut facts = Facts::new();
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("linux-")))
        .collect();
    files.sort();
    for file in files {
        for line in std::fs::read_to_string(&file)?.lines() {
            if let Some((id, text)) = definition(line)
                && facts.insert(id.clone(), text).is_some()
            {
                bail!("{} defines {id} a second time", file.display());
            }
        }
    }
    Ok(facts)
}

/// The fact that `line` defines.
fn definition(line: &str) -> Option<(FactId, String)> {
    let body = line.strip_prefix("- ").or_else(|| line.strip_prefix("| "))?.trim_start_matches("**");
    let first = body.split_whitespace().next()?;
    let cited = citations(first.trim_end_matches("**"));
    let [one] = cited.as_slice() else { return None };
    let text = body[first.len()..].trim_start_matches(['|', ' ']).trim_end_matches(['|', ' ']);
    (one.last.is_none() && first.starts_with(one.first.family.as_str())).then(|| (one.first.clone(), text.to_owned()))
}

/// Reads the rows of `docs/reference/contract.md`.
pub(crate) fn contract(file: &Path) -> anyhow::Result<Rows> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut found = Rows::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let mut cells = line.trim_matches('|').split(" | ").map(str::trim);
        let id = cells.next().map(rows).unwrap_or_default();
        if let ([id], Some(promise)) = (id.as_slice(), cells.next()) {
            found.insert(id.clone(), promise.to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::definition;

    fn id(line: &str) -> Option<String> {
        definition(line).map(|(id, _)| id.to_string())
    }

    #[test]
    fn each_form_of_definition_is_read() {
        assert_eq!(id("- B-88 restart: counters"), Some("B-88".to_owned()));
        assert_eq!(id("- **SL-01** A cache"), Some("SL-01".to_owned()));
        assert_eq!(id("| G-01 | DMA | 0x1 |"), Some("G-01".to_owned()));
        assert_eq!(id("| **SL-10** | HWCACHE |"), Some("SL-10".to_owned()));
    }

    #[test]
    fn a_mention_defines_nothing() {
        assert_eq!(id("see B-88"), None);
        assert_eq!(id("- as B-88 says"), None);
        assert_eq!(id("| B-18..B-23 | different |"), None);
        assert_eq!(id("| Id | Flag |"), None);
    }

    #[test]
    fn the_text_follows_the_id() {
        assert_eq!(definition("| G-01 | DMA | 0x1 |").map(|(_, text)| text), Some("DMA | 0x1".to_owned()));
    }
}
