//! A trace of page references: one `page-number[,w]` a line, or the page-fault events of ftrace.

use crate::trace::{Input, TraceError, Why};
use std::collections::HashMap;

/// One use of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The page, numbered in order of appearance.
    pub page: u32,
    /// Whether it was written.
    pub write: bool,
}

/// A trace in memory.
#[derive(Clone, Debug, Default)]
pub struct References {
    /// What it is called.
    pub name: String,
    /// The references in order.
    pub list: Vec<Reference>,
    /// Pages that occur; their numbers are below this.
    pub pages: u32,
    /// By page: whether it is ever written. Such pages are taken for anonymous ones, the others for pages of files.
    pub written: Vec<bool>,
}

impl References {
    /// Reads a whole trace. Lines that begin with `#` and empty lines are passed over, and so are other events of ftrace.
    ///
    /// # Errors
    /// [`TraceError`] with the line that is neither form, or [`Why::Empty`].
    pub fn read(input: &Input) -> Result<Self, TraceError> {
        let trace = input.open()?;
        let mut this = Self { name: trace.name.clone(), ..Self::default() };
        let mut numbers: HashMap<u64, u32> = HashMap::new();
        for chunk in trace.chunks {
            for (line, text) in chunk?.lines() {
                let text = text.trim_ascii();
                if text.is_empty() || text.starts_with(b"#") {
                    continue;
                }
                let Some(found) = parse(text) else {
                    let why = Why::NotAReference(crate::trace::excerpt(text));
                    return Err(TraceError { name: trace.name, line, why });
                };
                if let Some((page, write)) = found {
                    let next = numbers.len() as u32;
                    let page = *numbers.entry(page).or_insert(next);
                    this.push(Reference { page, write });
                }
            }
        }
        if this.list.is_empty() {
            return Err(TraceError { name: trace.name, line: 1, why: Why::Empty });
        }
        Ok(this)
    }

    /// Adds a reference.
    pub fn push(&mut self, reference: Reference) {
        let page = reference.page as usize;
        if self.written.len() <= page {
            self.written.resize(page + 1, false);
            self.pages = page as u32 + 1;
        }
        if let Some(written) = self.written.get_mut(page) {
            *written |= reference.write;
        }
        self.list.push(reference);
    }
}

/// One line: `None` if it is neither form, `Some(None)` if it is an event that is no page fault.
fn parse(line: &[u8]) -> Option<Option<(u64, bool)>> {
    let text = std::str::from_utf8(line).ok()?;
    let (number, rest) = text.split_once(',').map_or((text, None), |(n, rest)| (n, Some(rest)));
    if let Some(page) = parse_number(number) {
        return match rest.map(str::trim) {
            None | Some("r") => Some(Some((page, false))),
            Some("w") => Some(Some((page, true))),
            Some(_) => None,
        };
    }
    // `TASK-PID [CPU] FLAGS SECONDS: page_fault_user: address=0x7f.. ip=.. error_code=0x6`
    let (_, fields) = text.split_once(": ")?;
    if !fields.starts_with("page_fault") {
        return fields.contains(": ").then_some(None);
    }
    let field =
        |name: &str| fields.split_whitespace().find_map(|field| field.strip_prefix(name)).and_then(parse_number);
    let address = field("address=")?;
    // Bit 1 of the error code: a write.
    Some(Some((address >> 12, field("error_code=").is_some_and(|code| code & 2 != 0))))
}

fn parse_number(text: &str) -> Option<u64> {
    match text.trim().strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.trim().parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> Result<References, TraceError> {
        References::read(&Input::Bundled("test", text.as_bytes()))
    }

    #[test]
    fn both_forms_are_read() {
        let plain = read("# pages\n10\n0x20,w\n\n10,w\n").unwrap();
        let pages: Vec<_> = plain.list.iter().map(|r| (r.page, r.write)).collect();
        assert_eq!((pages, plain.pages, plain.written), (vec![(0, false), (1, true), (0, true)], 2, vec![true, true]));
        let faults = read(
            "  cc1-77 [001] d..1.  12.5: page_fault_user: address=0x7f0012345678 ip=0x401000 error_code=0x6\n\
  cc1-77 [001] d..1.  12.6: kmalloc: call_site=x ptr=0x1 bytes_req=8\n\
  cc1-77 [001] d..1.  12.7: page_fault_user: address=0x7f0012345000 ip=0x401000 error_code=0x4\n",
        )
        .unwrap();
        let pages: Vec<_> = faults.list.iter().map(|r| (r.page, r.write)).collect();
        assert_eq!(pages, [(0, true), (0, false)]);
    }

    #[test]
    fn a_line_that_is_neither_is_named() {
        for (text, line) in [("1\n2,x\n", 2), ("12 13\n", 1), ("1\n\nhello\n", 3)] {
            assert_eq!(read(text).unwrap_err().line, line, "{text}");
        }
        assert!(matches!(read("# nothing\n").unwrap_err().why, Why::Empty));
    }
}
