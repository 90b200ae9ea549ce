//! The parser's thread: chunks of lines in, steps of operations out.

use super::drive::{Batch, Step};
use crate::program::{CacheBook, Level, Program};
use crate::trace::{Chunk, LineKind, TraceError, Why};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

/// Parses until the chunks are over or one cannot be read, or nobody listens any more.
pub(crate) fn parse(
    name: &str,
    level: Level,
    book: CacheBook,
    chunks: &Receiver<Result<Chunk, TraceError>>,
    out: &SyncSender<Batch>,
    watch: impl Fn(),
) {
    let mut program = Program::new(level, book);
    for chunk in chunks {
        let fed = chunk.and_then(|chunk| feed(name, &mut program, &chunk));
        let batch = match fed {
            Err(e) => Batch::Failed(e),
            Ok(()) => {
                let mut ops = Vec::with_capacity(8192);
                program.drain(&mut ops, false);
                Batch::Ops(step(ops, &program))
            }
        };
        let failed = matches!(batch, Batch::Failed(_));
        if out.send(batch).is_err() || failed {
            return;
        }
        watch();
    }
    if program.census().events == 0 {
        let _ = out.send(Batch::Failed(TraceError { name: name.into(), line: 1, why: Why::Empty }));
        return;
    }
    let mut ops = Vec::new();
    program.finish(&mut ops);
    // A send fails only if the replay has been given up.
    let _ = out.send(Batch::Ops(step(ops, &program)));
    let _ = out.send(Batch::Over(Box::new(program)));
}

fn step(ops: Vec<crate::program::Op>, program: &Program) -> Arc<Step> {
    Arc::new(Step { ops, specs: program.caches().all().to_vec() })
}

/// Feeds a chunk to a program.
///
/// # Errors
/// [`TraceError`] at the first line that cannot be read.
pub(crate) fn feed(name: &str, program: &mut Program, chunk: &Chunk) -> Result<(), TraceError> {
    for (number, line) in chunk.lines() {
        let why = match LineKind::of(line) {
            LineKind::Event(event) => match program.event(&event) {
                Ok(()) => continue,
                Err(fault) => Why::Field {
                    event: String::from_utf8_lossy(event.event).into_owned(),
                    fault,
                    line: crate::trace::excerpt(line),
                },
            },
            LineKind::Skip => continue,
            LineKind::Lost(events) => {
                program.lost(events);
                continue;
            }
            LineKind::Malformed if program.census().events == 0 => Why::NotATrace(crate::trace::excerpt(line)),
            LineKind::Malformed => Why::NotAnEvent(crate::trace::excerpt(line)),
        };
        return Err(TraceError { name: name.into(), line: number, why });
    }
    Ok(())
}
