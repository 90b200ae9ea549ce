//! Where a trace comes from, and how it is cut into chunks of whole lines.
//!
//! Compressed input is known by its first bytes, not by its name. A chunk holds about a megabyte of text and the number of its
//! first line; the text of one chunk is dropped before the next but four is read, so a trace of any size runs in constant memory.

use super::error::{TraceError, Why};
use super::line::LineKind;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const CHUNK_BYTES: usize = 1 << 20;
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// A trace to read.
#[derive(Clone, Debug)]
pub enum Input {
    /// A file, compressed or not.
    File(PathBuf),
    /// Standard input, compressed or not.
    Stdin,
    /// Data that are part of this program.
    Bundled(&'static str, &'static [u8]),
}

/// A trace that has been opened.
pub struct Trace {
    /// The name that messages use.
    pub name: String,
    /// CPUs of the recorded machine, if the file's header tells.
    pub cpus: Option<u32>,
    /// How far reading has come.
    pub progress: Progress,
    /// Its text.
    pub chunks: Chunks,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace").field("name", &self.name).field("cpus", &self.cpus).finish_non_exhaustive()
    }
}

/// How far reading has come, in bytes as they stand in the file.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    done: Arc<AtomicU64>,
    /// The size of the file, if it is known.
    pub total: Option<u64>,
}

impl Progress {
    /// Bytes read up to now.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

/// Some whole lines of a trace.
#[derive(Debug)]
pub struct Chunk {
    /// The lines, each with its line break.
    pub text: Vec<u8>,
    /// Number of the first, counted from 1.
    pub first_line: u64,
}

impl Chunk {
    /// The lines with their numbers, without line breaks.
    pub fn lines(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let text = self.text.strip_suffix(b"\n").unwrap_or(&self.text);
        let mut rest = (!self.text.is_empty()).then_some(text);
        let mut number = self.first_line;
        std::iter::from_fn(move || {
            let text = rest?;
            let (line, behind) = match memchr::memchr(b'\n', text) {
                Some(end) => (text.get(..end)?, text.get(end + 1..)),
                None => (text, None),
            };
            rest = behind;
            number += 1;
            Some((number - 1, line.strip_suffix(b"\r").unwrap_or(line)))
        })
    }
}

struct Counted<R> {
    inner: R,
    done: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.done.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// The chunks of one trace, in order; ends after the first error.
pub struct Chunks {
    name: String,
    reader: Box<dyn Read + Send>,
    compressed: bool,
    rest: Vec<u8>,
    line: u64,
    over: bool,
    /// Read ahead.
    first: Option<Result<Chunk, TraceError>>,
}

impl Input {
    /// The name that messages use.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Stdin => "standard input".into(),
            Self::Bundled(name, _) => (*name).into(),
        }
    }

    /// Opens the trace.
    ///
    /// # Errors
    /// [`TraceError`] if it cannot be opened, or begins like something that is no text trace.
    pub fn open(&self) -> Result<Trace, TraceError> {
        let name = self.name();
        let fail = |why| TraceError { name: name.clone(), line: 1, why };
        let mut progress = Progress::default();
        let raw: Box<dyn Read + Send> = match self {
            Self::File(path) => {
                let file = File::open(path).map_err(|e| fail(Why::Io(e)))?;
                progress.total = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|m| m.len());
                Box::new(file)
            }
            Self::Stdin => Box::new(io::stdin()),
            Self::Bundled(_, data) => {
                progress.total = Some(data.len() as u64);
                Box::new(*data)
            }
        };
        let mut raw = Counted { inner: raw, done: progress.done.clone() };
        let mut head = Vec::with_capacity(8);
        (&mut raw).take(8).read_to_end(&mut head).map_err(|e| fail(Why::Io(e)))?;
        if let Some(what) = foreign(&head) {
            return Err(fail(Why::Foreign(what)));
        }
        let compressed = head.starts_with(&ZSTD_MAGIC);
        let whole = io::Cursor::new(head).chain(raw);
        let reader: Box<dyn Read + Send> = if compressed {
            Box::new(zstd::stream::read::Decoder::new(whole).map_err(|e| fail(Why::Compressed(e)))?)
        } else {
            Box::new(whole)
        };
        let mut chunks =
            Chunks { name: name.clone(), reader, compressed, rest: Vec::new(), line: 1, over: false, first: None };
        // The header is in the first chunk; an error in it is told when its turn comes.
        let first = chunks.next();
        let cpus = first.as_ref().and_then(|c| c.as_ref().ok()).and_then(recorded_cpus);
        chunks.first = first;
        Ok(Trace { name, cpus, progress, chunks })
    }
}

/// The number in `#P:2`, which ends a line of the header.
fn recorded_cpus(chunk: &Chunk) -> Option<u32> {
    let mut header = chunk.lines().map(|(_, line)| line).take_while(|line| line.starts_with(b"#"));
    header.find_map(|line| {
        let at = memchr::memmem::find(line, b"#P:")?;
        let number = super::fields::parse_dec(line.get(at + 3..)?.trim_ascii())?;
        u32::try_from(number).ok().filter(|n| *n > 0)
    })
}

fn foreign(head: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 6] = [
        (b"\x17\x08Dtrac", "a binary trace.dat; print it first: trace-cmd report -i FILE"),
        (b"\x1f\x8b", "compressed with gzip; unpack it first: zcat FILE | cargo lab replay -"),
        (b"\xfd7zXZ", "compressed with xz; unpack it first: xzcat FILE | cargo lab replay -"),
        (b"BZh", "compressed with bzip2; unpack it first: bzcat FILE | cargo lab replay -"),
        (b"PERFILE2", "a perf.data file; print it first: perf script"),
        (b"\x7fELF", "a program, not a trace"),
    ];
    KINDS.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, what)| *what)
}

impl Chunks {
    fn fail(&mut self, why: Why) -> Option<Result<Chunk, TraceError>> {
        self.over = true;
        Some(Err(TraceError { name: self.name.clone(), line: self.line, why }))
    }

    /// Reads on until the buffer holds [`CHUNK_BYTES`] or the input is over; true if it is.
    fn fill(&mut self) -> io::Result<bool> {
        while self.rest.len() < CHUNK_BYTES {
            let have = self.rest.len();
            self.rest.resize(CHUNK_BYTES, 0);
            let read = self.rest.get_mut(have..).map_or(Ok(0), |room| self.reader.read(room));
            self.rest.truncate(have + read.as_ref().map_or(0, |&n| n));
            match read {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(false)
    }
}

impl Iterator for Chunks {
    type Item = Result<Chunk, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if self.over {
            return None;
        }
        let end = match self.fill() {
            Ok(end) => end,
            Err(e) => {
                self.line += memchr::memchr_iter(b'\n', &self.rest).count() as u64;
                let compressed = self.compressed;
                return self.fail(if compressed { Why::Compressed(e) } else { Why::Io(e) });
            }
        };
        match memchr::memrchr(b'\n', &self.rest) {
            Some(last) => {
                let behind = self.rest.split_off(last + 1);
                let text = std::mem::replace(&mut self.rest, behind);
                self.rest.reserve_exact(CHUNK_BYTES.saturating_sub(self.rest.len()));
                let first_line = self.line;
                self.line += memchr::memchr_iter(b'\n', &text).count() as u64;
                Some(Ok(Chunk { text, first_line }))
            }
            None if end && self.rest.is_empty() => {
                self.over = true;
                None
            }
            None if end => {
                let line = super::error::excerpt(&self.rest);
                let strange = self.line == 1 && LineKind::of(&self.rest) == LineKind::Malformed;
                self.fail(if strange { Why::NotATrace(line) } else { Why::Truncated(line) })
            }
            None => self.fail(Why::LineTooLong(CHUNK_BYTES)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &'static [u8]) -> Result<Vec<(u64, String)>, TraceError> {
        let trace = Input::Bundled("test", data).open()?;
        let mut out = Vec::new();
        for chunk in trace.chunks {
            let chunk = chunk?;
            out.extend(chunk.lines().map(|(n, l)| (n, String::from_utf8_lossy(l).into_owned())));
        }
        Ok(out)
    }

    #[test]
    fn lines_are_numbered_across_chunks() {
        let mut text = String::new();
        for n in 1..=60_000 {
            text.push_str(&format!("line {n} with some text to fill it\n"));
        }
        let lines = read(text.leak().as_bytes()).unwrap();
        assert_eq!(lines.len(), 60_000);
        assert!(lines.iter().enumerate().all(|(i, (n, l))| *n == i as u64 + 1 && l.starts_with(&format!("line {n} "))));
    }

    #[test]
    fn the_header_tells_the_cpus() {
        let cpus = |data| Input::Bundled("test", data).open().unwrap().cpus;
        assert_eq!(cpus(b"# tracer: nop\n# entries-in-buffer/entries-written: 9/9   #P:12\n# x\n"), Some(12));
        assert_eq!(cpus(b"# tracer: nop\n"), None);
        assert_eq!(cpus(b"a\n# #P:3\n"), None);
        assert_eq!(cpus(b""), None);
    }

    #[test]
    fn a_line_without_end_is_a_truncated_file() {
        let e = read(b"a\nb\nc").unwrap_err();
        assert_eq!(e.line, 3);
        assert!(matches!(e.why, Why::Truncated(_)), "{e}");
        assert_eq!(read(b"a\n\nb\r\n").unwrap().len(), 3);
        assert!(read(b"").unwrap().is_empty());
    }

    #[test]
    fn a_cut_compressed_file_names_the_line_it_reaches() {
        let text: String = (0..50_000).map(|n| format!("{:x} some text\n", n * 7919)).collect();
        let whole = zstd::encode_all(text.as_bytes(), 3).unwrap();
        let cut = whole[..whole.len() * 2 / 3].to_vec().leak();
        let e = read(cut).unwrap_err();
        assert!(matches!(e.why, Why::Compressed(_)) && e.line > 1000, "{e}");
        assert_eq!(read(whole.leak()).unwrap().len(), 50_000);
    }

    #[test]
    fn foreign_files_are_named_for_what_they_are() {
        for data in [&b"\x1f\x8b\x08"[..], b"\x7fELF\x02", b"PERFILE2...", b"\x17\x08Dtracing"] {
            assert!(matches!(read(data).unwrap_err().why, Why::Foreign(_)));
        }
        assert!(matches!(read(b"\x00\x01 noise").unwrap_err().why, Why::NotATrace(_)));
        let long = vec![b'x'; 3 << 20].leak();
        assert!(matches!(read(long).unwrap_err().why, Why::LineTooLong(_)));
        assert!(matches!(Input::File("/nonexistent".into()).open().map(|_| ()).unwrap_err().why, Why::Io(_)));
    }
}
