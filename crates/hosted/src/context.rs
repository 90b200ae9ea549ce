//! The running task as allocators see it: a host thread with task flags, a clock, and a place for reports.
//!
//! Task flags belong to the thread, not to a machine: a thread inside a `NOFS` scope is so on every machine. Tests play
//! interrupts by [`in_context`].

use core::fmt::{self, Write as _};

use kmem_gfp::TaskFlags;
use kmem_sync::SpinLock;

use crate::{sys, thread};

/// The calling thread's task flags.
#[inline(always)]
pub fn task_flags() -> TaskFlags {
    TaskFlags::from_bits_retain(thread::with(|thread| thread.task.get()))
}

/// Sets and clears scope flags of the calling thread; returns the flags as they were.
#[inline]
pub(crate) fn update_task_flags(set: TaskFlags, clear: TaskFlags) -> TaskFlags {
    let scopes = TaskFlags::SCOPES;
    let before = task_flags();
    let after = (before - (clear & scopes)) | (set & scopes);
    thread::with(|thread| thread.task.set(after.bits()));
    before
}

/// Runs `f` with `flags` added to what the calling thread is: in an interrupt handler, atomic, a kernel thread, dying.
///
/// ```
/// use kmem_hosted::{TaskFlags, in_context, task_flags};
///
/// in_context(TaskFlags::IN_IRQ, || assert!(!task_flags().may_sleep()));
/// assert!(task_flags().may_sleep());
/// ```
pub fn in_context<R>(flags: TaskFlags, f: impl FnOnce() -> R) -> R {
    /// Restores the flags on drop, so also when the closure panics.
    struct Restore(TaskFlags);
    impl Drop for Restore {
        fn drop(&mut self) {
            thread::with(|thread| thread.task.set(self.0.bits()));
        }
    }
    let before = task_flags();
    thread::with(|thread| thread.task.set((before | flags).bits()));
    let _restore = Restore(before);
    f()
}

/// Where a machine's diagnostic lines go.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum Reports {
    /// To standard error, each line with `kmem: ` in front.
    #[default]
    Stderr,
    /// Nowhere.
    Discard,
    /// Into a buffer of [`CAPTURED_BYTES`], for [`Machine::take_reports`](crate::Machine::take_reports). What does not fit
    /// is cut off.
    Capture,
    /// To a function, which must not allocate from the machine.
    To(fn(fmt::Arguments<'_>)),
}

/// Bytes of reports that [`Reports::Capture`] holds until they are taken.
pub const CAPTURED_BYTES: usize = 16 << 10;

/// Takes a machine's diagnostic lines. Never allocates.
#[derive(Debug)]
pub(crate) struct ReportSink {
    to: Reports,
    captured: SpinLock<Text<CAPTURED_BYTES>>,
}

impl ReportSink {
    kmem_sync::const_fn! {
        /// A sink.
        pub(crate) fn new(to: Reports) -> Self {
            Self { to, captured: SpinLock::new(Text::new()) }
        }
    }

    /// Takes one line.
    pub(crate) fn line(&self, cpu: &impl kmem_sync::Cpu, line: fmt::Arguments<'_>) {
        match self.to {
            Reports::Stderr => {
                let mut text = Text::<1024>::new();
                let _ = write!(text, "kmem: {line}");
                text.end_line();
                sys::write_stderr(text.bytes());
            }
            Reports::Discard => {}
            Reports::Capture => self.captured.with(cpu, |captured| {
                let _ = write!(captured, "{line}");
                captured.end_line();
            }),
            Reports::To(take) => take(line),
        }
    }

    /// Hands over what has been captured since the last call.
    pub(crate) fn take(&self, cpu: &impl kmem_sync::Cpu) -> String {
        // Copied out under the lock, turned into a string outside: the string may come from the same machine.
        let mut copy = Text::<CAPTURED_BYTES>::new();
        self.captured.with(cpu, |captured| core::mem::swap(captured, &mut copy));
        String::from_utf8_lossy(copy.bytes()).into_owned()
    }
}

/// Text of at most `N` bytes; the rest is cut off.
#[derive(Debug)]
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Ends the line, in place of the last byte if the text is full.
    fn end_line(&mut self) {
        self.len = self.len.min(N.saturating_sub(1));
        let _ = self.write_str("\n");
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let len = room.len().min(s.len());
        if let (Some(room), Some(bytes)) = (room.get_mut(..len), s.as_bytes().get(..len)) {
            room.copy_from_slice(bytes);
            self.len += len;
        }
        if len == s.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
