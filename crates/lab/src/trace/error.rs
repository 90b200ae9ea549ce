//! What can be wrong with a trace, always with the line at which it was found.

use super::FieldFault;

/// A trace that cannot be read (further), and where.
#[derive(Debug, thiserror::Error)]
#[error("{name}, line {line}: {why}")]
pub struct TraceError {
    /// The file as the user named it.
    pub name: String,
    /// The line, counted from 1, at which reading stopped.
    pub line: u64,
    /// What is wrong.
    pub why: Why,
}

/// The reasons for which a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Why {
    /// The file cannot be opened or read.
    #[error("cannot read: {0}")]
    Io(std::io::Error),
    /// The compressed data end in the middle or are damaged.
    #[error("the compressed data are truncated or damaged ({0})")]
    Compressed(std::io::Error),
    /// The text ends in the middle of a line.
    #[error("the file is truncated: it ends in the middle of this line: {0:?}")]
    Truncated(String),
    /// This is another kind of file.
    #[error("{0}")]
    Foreign(&'static str),
    /// The first line that should be an event is none.
    #[error("not a trace in ftrace's text format; expected `TASK-PID [CPU] FLAGS SECONDS: event: ...`, found {0:?}")]
    NotATrace(String),
    /// A line in the middle is no event.
    #[error("malformed line, expected `TASK-PID [CPU] FLAGS SECONDS: event: ...`, found {0:?}")]
    NotAnEvent(String),
    /// An event lacks a field, or a field has a value that it cannot have.
    #[error("malformed event `{event}`: {fault}, in {line:?}")]
    Field {
        /// The name of the event.
        event: String,
        /// Which field, and what is wrong with it.
        fault: FieldFault,
        /// The line.
        line: String,
    },
    /// A line of a page-reference trace is none.
    #[error("expected `PAGE[,w]` or a page-fault event of ftrace, found {0:?}")]
    NotAReference(String),
    /// No line break within a megabyte.
    #[error("a line of more than {0} bytes: this is no text")]
    LineTooLong(usize),
    /// Not a single event.
    #[error("the trace holds no events")]
    Empty,
}

/// At most 120 characters of a line, for an error message.
pub(crate) fn excerpt(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line.get(..line.len().min(480)).unwrap_or(line));
    let mut out: String = text.chars().take(120).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out
}
