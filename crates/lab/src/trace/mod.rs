//! Reading traces: the text format of ftrace's `trace` file, which `trace-cmd report` prints alike.
//!
//! ```text
//!   bytes ──▶ source ──▶ chunks of whole lines ──▶ line ──▶ event
//!   (file, stdin,        (1 MiB, numbered)         task, pid, CPU,   (typed fields,
//!    bundled; zstd                                 name, fields       borrowed from the line)
//!    seen by magic)
//! ```
//!
//! Nothing is copied per line: an [`Event`] borrows its names and flags from the chunk it stands in. Whatever cannot be
//! read is a [`TraceError`] that names the line.

mod error;
mod event;
mod fields;
mod gfp;
mod line;
mod source;

pub(crate) use error::excerpt;
pub use error::{TraceError, Why};
pub use event::{Event, Known};
pub use fields::{FieldFault, Fields, hex_list};
pub use gfp::{GfpNames, TraceGfp};
pub use line::{Line, LineKind};
pub use source::{Chunk, Chunks, Input, Progress, Trace};
