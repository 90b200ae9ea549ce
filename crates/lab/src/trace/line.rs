//! One line of a trace: `TASK-PID [CPU] FLAGS SECONDS.MICROS: event: fields`.
//!
//! The task's name may hold blanks, `-` and even `[`; the line is therefore read from the CPU in brackets outwards, and the
//! first `[digits]` that has `-PID` before it and a time stamp behind it wins.

use super::fields::{parse_dec, parse_hex};
use memchr::memchr;

/// An event's line, cut into its parts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Line<'a> {
    /// Process id of the current task.
    pub pid: u32,
    /// The CPU on which the event happened.
    pub cpu: u32,
    /// Time stamp as printed, without the colon.
    pub stamp: &'a [u8],
    /// Name of the event.
    pub event: &'a [u8],
    /// What follows the name.
    pub fields: &'a [u8],
}

/// What a line of a trace file may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LineKind<'a> {
    /// An event.
    Event(Line<'a>),
    /// A comment, a blank line, `trace-cmd report`'s first lines, or a frame of a stack trace.
    Skip,
    /// A notice that the recorder lost this many events.
    Lost(u64),
    /// None of these.
    Malformed,
}

impl<'a> LineKind<'a> {
    /// Tells what `line`, without its line break, is.
    #[inline]
    #[must_use]
    pub fn of(line: &'a [u8]) -> Self {
        let mut from = 0;
        while let Some(found) = line.get(from..).and_then(|rest| memchr(b'[', rest)) {
            if let Some(event) = at_bracket(line, from + found) {
                return Self::Event(event);
            }
            from += found + 1;
        }
        other(line)
    }
}

#[cold]
fn other(line: &[u8]) -> LineKind<'_> {
    let text = line.trim_ascii();
    if text.is_empty()
        || text.starts_with(b"#")
        || text.starts_with(b"=>")
        || text.starts_with(b"cpus=")
        || text.starts_with(b"version = ")
    {
        return LineKind::Skip;
    }
    if text.starts_with(b"CPU:") && text.ends_with(b"]") {
        let lost = text.split(|b| b" [".contains(b)).find_map(parse_dec);
        if memchr::memmem::find(text, b"LOST").is_some() || memchr::memmem::find(text, b"DROPPED").is_some() {
            return LineKind::Lost(lost.unwrap_or(0));
        }
    }
    LineKind::Malformed
}

/// The event of `line` if its CPU stands in the bracket at `open`.
#[inline]
fn at_bracket(line: &[u8], open: usize) -> Option<Line<'_>> {
    let (before, after) = (line.get(..open)?, line.get(open + 1..)?);
    let close = after.iter().take(6).position(|&b| b == b']')?;
    let cpu = u32::try_from(parse_dec(after.get(..close)?)?).ok()?;

    let mut task = before.trim_ascii_end();
    if task.ends_with(b")") {
        // The thread group, which some recorders print between the pid and the CPU.
        task = task.get(..task.iter().rposition(|&b| b == b'(')?)?.trim_ascii_end();
    }
    let dash = task.iter().rposition(|&b| b == b'-')?;
    let pid = u32::try_from(parse_dec(task.get(dash + 1..)?)?).ok()?;

    let rest = after.get(close + 1..)?.strip_prefix(b" ")?.trim_ascii_start();
    let (first, behind) = word(rest)?;
    let (stamp, behind) = match stamp(first) {
        Some(stamp) => (stamp, behind),
        None => {
            let (second, behind) = word(behind.trim_ascii_start())?;
            (stamp(second)?, behind)
        }
    };
    let behind = behind.trim_ascii_start();
    let colon = memchr(b':', behind)?;
    let (event, fields) = (behind.get(..colon)?, behind.get(colon + 1..)?);
    if event.is_empty() || !event.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_') {
        return None;
    }
    Some(Line { pid, cpu, stamp, event, fields: fields.strip_prefix(b" ").unwrap_or(fields) })
}

#[inline]
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    text.split_at_checked(memchr(b' ', text)?)
}

/// `123.456789:`, or `123456:` from a recorder that counts, or a hexadecimal counter.
#[inline]
fn stamp(word: &[u8]) -> Option<&[u8]> {
    let stamp = word.strip_suffix(b":")?;
    let ok = match memchr(b'.', stamp) {
        Some(dot) => parse_dec(stamp.get(..dot)?).is_some() && parse_dec(stamp.get(dot + 1..)?).is_some(),
        None => parse_hex(stamp).is_some(),
    };
    ok.then_some(stamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> Line<'_> {
        match LineKind::of(line.as_bytes()) {
            LineKind::Event(e) => e,
            other => panic!("{other:?}: {line}"),
        }
    }

    #[test]
    fn a_line_is_cut_into_its_parts() {
        let e = event("   gcc-212      [001] .....    33.120444: kmalloc: call_site=a ptr=10");
        assert_eq!(
            (e.pid, e.cpu, e.stamp, e.event, e.fields),
            (212, 1, &b"33.120444"[..], &b"kmalloc"[..], &b"call_site=a ptr=10"[..])
        );
    }

    #[test]
    fn task_names_may_hold_anything() {
        for task in ["<idle>", "a b", "a-b-3", "kworker/u8:1-ev", "x [007] y", "[k]", "("] {
            let line = format!("  {task}-17    [003] d..1.     0.000000: kfree: call_site=f ptr=0");
            let e = event(&line);
            assert_eq!((e.pid, e.cpu, e.event), (17, 3, &b"kfree"[..]), "{task}");
        }
    }

    #[test]
    fn forms_of_other_recorders_are_read() {
        assert_eq!(event(" sh-9 (    9) [000] ..... 1.000001: kfree: ptr=0").pid, 9);
        assert_eq!(event(" sh-9 (-------) [000] ..... 1.000001: kfree: ptr=0").pid, 9);
        assert_eq!(event(" sh-9     [000]  1.000001: kfree:    ptr=0").event, b"kfree");
        assert_eq!(event(" sh-9     [128] ..... 12345678: kfree: ptr=0").cpu, 128);
        assert_eq!(event(" sh-9     [000] ...1. 24.291839: tracing_mark_write: userspace").fields, b"userspace");
    }

    #[test]
    fn what_is_no_event_is_told_apart() {
        for skip in ["", "   ", "# tracer: nop", "cpus=2", "version = 7", " => __kmalloc"] {
            assert_eq!(LineKind::of(skip.as_bytes()), LineKind::Skip, "{skip}");
        }
        assert_eq!(LineKind::of(b"CPU:1 [LOST 44 EVENTS]"), LineKind::Lost(44));
        for bad in [
            "hello",
            "<html>[1]</html>",
            "a-1 [000]",
            "a-1 [000] ..... 1.0: ",
            "-1 [x] ..... 1.0: k: a",
            "a-1 [000] .... 1.0 k: a",
        ] {
            assert_eq!(LineKind::of(bad.as_bytes()), LineKind::Malformed, "{bad}");
        }
    }
}
