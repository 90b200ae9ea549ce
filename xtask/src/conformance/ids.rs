//! Fact ids (`SL-73`), the lists and ranges that cite them, and contract row ids (`G05`).
//!
//! ```text
//! SL-73            one fact
//! B-44, B-46       two
//! B-44..B-48       every defined fact from B-44 to B-48, both ends included (also `B-44..48`, `B-44..=B-48`)
//! ```

use std::fmt;

/// A fact of the reference: family and number.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct FactId {
    /// `SL`
    pub(crate) family: String,
    /// 73
    pub(crate) number: u32,
}

impl fmt::Display for FactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:02}", self.family, self.number)
    }
}

/// One citation: a single fact, or a range with both ends.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Cited {
    /// The first fact.
    pub(crate) first: FactId,
    /// The last number of a range.
    pub(crate) last: Option<u32>,
}

impl Cited {
    /// Whether the citation covers `fact`.
    pub(crate) fn covers(&self, fact: &FactId) -> bool {
        fact.family == self.first.family
            && (self.first.number..=self.last.unwrap_or(self.first.number)).contains(&fact.number)
    }

    /// The ids that the citation names literally: the ends of a range.
    pub(crate) fn named(&self) -> impl Iterator<Item = FactId> {
        let last = self.last.map(|number| FactId { family: self.first.family.clone(), number });
        std::iter::once(self.first.clone()).chain(last)
    }
}

/// Every citation in `text`, in order. A family is one or two capitals; a number has two or three digits.
pub(crate) fn citations(text: &str) -> Vec<Cited> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        if let Some((first, after)) = fact_at(bytes, i) {
            let (last, end) = range_end(bytes, after, &first.family);
            found.push(Cited { first, last });
            i = end;
        } else {
            i += 1;
        }
    }
    found
}

/// The fact id that begins exactly at `i` and is a word of its own, and the index behind it.
fn fact_at(bytes: &[u8], i: usize) -> Option<(FactId, usize)> {
    let boundary = i == 0 || !(bytes[i - 1].is_ascii_alphanumeric() || matches!(bytes[i - 1], b'-' | b'_'));
    if !boundary {
        return None;
    }
    let capitals = bytes[i..].iter().take_while(|b| b.is_ascii_uppercase()).count();
    if !(1..=2).contains(&capitals) || bytes.get(i + capitals) != Some(&b'-') {
        return None;
    }
    let (number, end) = number_at(bytes, i + capitals + 1)?;
    let family = String::from_utf8_lossy(&bytes[i..i + capitals]).into_owned();
    Some((FactId { family, number }, end))
}

/// Two or three digits at `i` that no further letter or digit follows.
fn number_at(bytes: &[u8], i: usize) -> Option<(u32, usize)> {
    let digits = bytes.get(i..)?.iter().take_while(|b| b.is_ascii_digit()).count();
    let end = i + digits;
    let ends = bytes.get(end).is_none_or(|b| !(b.is_ascii_alphanumeric() || *b == b'_'));
    if !(2..=3).contains(&digits) || !ends {
        return None;
    }
    Some((std::str::from_utf8(&bytes[i..end]).ok()?.parse().ok()?, end))
}

/// The end of a range that `..` opens right behind a fact.
fn range_end(bytes: &[u8], after: usize, family: &str) -> (Option<u32>, usize) {
    let Some(rest) = bytes.get(after..).and_then(|rest| rest.strip_prefix(b"..")) else { return (None, after) };
    let rest = rest.strip_prefix(b"=").unwrap_or(rest);
    let start = bytes.len() - rest.len();
    let number_start = match rest.strip_prefix(family.as_bytes()).and_then(|rest| rest.strip_prefix(b"-")) {
        Some(rest) => bytes.len() - rest.len(),
        None => start,
    };
    match number_at(bytes, number_start) {
        Some((number, end)) => (Some(number), end),
        None => (None, after),
    }
}

/// Every contract row id (`G05`: a capital and two digits) in `text`.
pub(crate) fn rows(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')) {
        if let [letter, tens, ones] = word.as_bytes()
            && letter.is_ascii_uppercase()
            && tens.is_ascii_digit()
            && ones.is_ascii_digit()
        {
            found.push(word.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{citations, rows};

    fn spelled(text: &str) -> Vec<String> {
        citations(text)
            .iter()
            .map(|c| match c.last {
                Some(last) => format!("{}..{last:02}", c.first),
                None => c.first.to_string(),
            })
            .collect()
    }

    #[test]
    fn lists_and_ranges_are_found() {
        assert_eq!(
            spelled(" SL-73, B-44..B-48 and G-01..107; KM-02..=KM-04."),
            ["SL-73", "B-44..48", "G-01..107", "KM-02..04"]
        );
    }

    #[test]
    fn look_alikes_are_not_ids() {
        assert_eq!(spelled("UTF-16 N-1 x86-64 AB-1234 SL-73a GFP-12 a-B-12 SL-7"), Vec::<String>::new());
    }

    #[test]
    fn a_broken_range_is_its_first_id() {
        assert_eq!(spelled("B-44.. and B-50..KM-02"), ["B-44", "B-50", "KM-02"]);
    }

    #[test]
    fn rows_have_no_hyphen() {
        assert_eq!(rows("G05, H01..H07 and G-05, SL73, F6"), ["G05", "H01", "H07"]);
    }
}
