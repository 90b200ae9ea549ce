//! Running a command with one live line on a terminal, a log on disk, and its interesting lines passed through.

use crate::say;
use anyhow::Context as _;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Exit status zero.
    pub(crate) success: bool,
    /// Everything that it printed, standard output and error in one order.
    pub(crate) lines: Vec<String>,
    /// How long it took.
    pub(crate) time: Duration,
}

/// Runs `command`, showing `label` with the seconds and the newest line while it works (on a terminal only), and
/// printing every line that `shown` accepts.
pub(crate) fn watch(label: &str, command: &mut Command, shown: fn(&str) -> bool) -> anyhow::Result<Finished> {
    let started = Instant::now();
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot run {}", spelled(command)))?;
    // Our own copies of the pipe's writing end would keep it open for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let mut live = Live::new(label);
    let mut lines: Vec<String> = Vec::new();
    loop {
        match receiver.recv_timeout(Duration::from_millis(250)) {
            Ok(line) => {
                if shown(&line) {
                    live.clear();
                    say!("    {}", line.trim_start());
                }
                lines.push(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        live.show(started.elapsed(), lines.last().map_or("", |line| line.trim()));
    }
    let status = child.wait()?;
    live.clear();
    Ok(Finished { success: status.success(), lines, time: started.elapsed() })
}

/// Whether a line is only cargo telling how far it is.
pub(crate) fn is_progress(line: &str) -> bool {
    let line = line.trim_start();
    ["Compiling ", "Checking ", "Downloading ", "Downloaded ", "Locking ", "Updating ", "Blocking "]
        .iter()
        .any(|start| line.starts_with(start))
}

/// Writes a log, creating its folder.
pub(crate) fn log(path: &Path, lines: &[String]) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, lines.join("\n") + "\n").with_context(|| format!("cannot write {}", path.display()))
}

/// A command as one would type it.
pub(crate) fn spelled(command: &Command) -> String {
    let mut words: Vec<String> = command
        .get_envs()
        .filter_map(|(key, value)| Some(format!("{}={:?}", key.to_string_lossy(), value?.to_string_lossy())))
        .collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let name = program.to_string_lossy();
    words.push(if name == "xtask" { "cargo xtask".to_owned() } else { name.into_owned() });
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    words.join(" ")
}

/// The line that is rewritten in place while a command runs.
struct Live {
    label: String,
    on: bool,
    last: Option<Instant>,
}

impl Live {
    fn new(label: &str) -> Self {
        Self { label: label.to_owned(), on: std::io::stdout().is_terminal(), last: None }
    }

    fn show(&mut self, elapsed: Duration, newest: &str) {
        if !self.on || self.last.is_some_and(|last| last.elapsed() < Duration::from_millis(100)) {
            return;
        }
        self.last = Some(Instant::now());
        let text: String =
            format!("{:<12} {:>4} s  {newest}", self.label, elapsed.as_secs()).chars().take(78).collect();
        print!("\r\x1b[2K{text}");
        let _ = std::io::stdout().flush();
    }

    fn clear(&mut self) {
        if self.on && self.last.take().is_some() {
            print!("\r\x1b[2K");
            let _ = std::io::stdout().flush();
        }
    }
}
