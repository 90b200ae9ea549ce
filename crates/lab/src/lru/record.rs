//! Recording a page-reference trace of a real program, by way of valgrind's `lackey`.
//!
//! ```text
//! valgrind --tool=lackey --trace-mem=yes PROGRAM        " L 1ffeffe7c8,8"    every load, store and instruction
//!        │  address / 4096, numbered in order of appearance
//!        ▼
//! the 8 pages used last: a reference to one of them is left out, unless it is the page's first write since it came in
//!        ▼
//! "17", "4,w", ...
//! ```
//!
//! Leaving those out changes nothing for a memory of more than eight pages that replaces the least recently used one, and
//! nothing that an accessed bit would tell; it makes the trace a thousand times smaller.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};

/// Pages whose references are left out: those used last.
const RECENT: usize = 8;

/// Turns lackey's lines into references.
#[derive(Debug, Default)]
pub(crate) struct Reducer {
    numbers: HashMap<u64, u32>,
    /// The pages used last, the latest first, and whether each was written since it came in.
    recent: Vec<(u32, bool)>,
}

impl Reducer {
    /// The reference that one access makes: its page and whether it writes. `None` if it is left out.
    pub(crate) fn access(&mut self, address: u64, write: bool) -> Option<(u32, bool)> {
        let next = self.numbers.len() as u32;
        let page = *self.numbers.entry(address >> 12).or_insert(next);
        let mut written = write;
        let mut known = false;
        if let Some(at) = self.recent.iter().position(|(recent, _)| *recent == page) {
            let (_, before) = self.recent.remove(at);
            known = before || !write;
            written |= before;
        } else if self.recent.len() == RECENT {
            self.recent.pop();
        }
        self.recent.insert(0, (page, written));
        (!known).then_some((page, write))
    }
}

/// The address and kind of one of lackey's lines; `None` for any other line.
#[must_use]
pub(crate) fn lackey_line(line: &[u8]) -> Option<(u64, bool)> {
    let (kind, rest) = (line.get(..3)?, line.get(3..)?);
    let write = match kind {
        b"I  " | b" L " => false,
        b" S " | b" M " => true,
        _ => return None,
    };
    let digits = rest.split(|c| *c == b',').next()?;
    let address = u64::from_str_radix(std::str::from_utf8(digits).ok()?.trim(), 16).ok()?;
    Some((address, write))
}

/// Reads lackey's output and writes the trace; stops after `most` references. Returns how many were written.
///
/// # Errors
/// Those of reading and writing.
pub(crate) fn reduce(input: impl Read, mut output: impl Write, most: u64) -> std::io::Result<u64> {
    let mut input = BufReader::with_capacity(1 << 20, input);
    let (mut reducer, mut line, mut written) = (Reducer::default(), Vec::new(), 0);
    while written < most {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        let Some((address, write)) = lackey_line(&line) else { continue };
        if let Some((page, write)) = reducer.access(address, write) {
            writeln!(output, "{page}{}", if write { ",w" } else { "" })?;
            written += 1;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_the_pages_used_last_are_left_out() {
        let mut text =
            String::from("==1== Lackey\nI  0401000,3\n L 1ffe000,8\n S 1ffe008,8\n M 1ffe008,4\nI  0401003,5\n");
        for page in 0..8 {
            text.push_str(&format!(" L {:x},8\n", 0x5000_0000 + page * 4096));
        }
        text.push_str("I  0401003,5\n");
        let mut out = Vec::new();
        assert_eq!(reduce(text.as_bytes(), &mut out, u64::MAX).unwrap(), 12);
        assert_eq!(String::from_utf8(out).unwrap(), "0\n1\n1,w\n2\n3\n4\n5\n6\n7\n8\n9\n0\n");
    }
}
