//! [`KernelContext`]: the running code as kmem sees it. Step 2 of a port.

use core::fmt::{self, Write};

use kmem_gfp::{AllocContext, TaskFlags};
use kmem_sync::atomic::{AtomicBool, AtomicU64, Ordering};
use kmem_sync::{IrqGuard, UnsafeCell};

use crate::cpu::KernelCpu;
use crate::{percpu, sched};

/// The running code. No state: its flags are behind GS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KernelContext;

impl AllocContext for KernelContext {
    #[inline(always)]
    fn task_flags(&self) -> TaskFlags {
        let flags = percpu::flags();
        if percpu::pins() != 0 { flags | TaskFlags::ATOMIC } else { flags }
    }

    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags {
        let _irqs_off = IrqGuard::new(&KernelCpu);
        let before = percpu::flags();
        percpu::set_flags((before - (clear & TaskFlags::SCOPES)) | (set & TaskFlags::SCOPES));
        before
    }

    fn yield_now(&self) {
        sched::yield_now();
    }

    fn now_ms(&self) -> u64 {
        sched::now_ms()
    }

    fn report(&self, line: fmt::Arguments<'_>) {
        REPORTS.fetch_add(1, Ordering::Relaxed);
        if !CAPTURED.append(line) {
            println!("kmem: {line}");
        }
    }
}

/// Runs `f` with `flags` added to what the calling thread is: atomic, a kernel thread, dying.
pub(crate) fn with_flags<R>(flags: TaskFlags, f: impl FnOnce() -> R) -> R {
    let before = percpu::flags();
    percpu::set_flags(before | flags);
    let result = f();
    percpu::set_flags(before);
    result
}

/// Lines of reports so far.
pub(crate) static REPORTS: AtomicU64 = AtomicU64::new(0);

const CAPTURED_BYTES: usize = 8 << 10;

/// Reports that a test wants to read instead of printing them.
///
/// # Invariants
/// `text` belongs to whoever made `busy` true.
struct Captured {
    on: AtomicBool,
    busy: AtomicBool,
    text: UnsafeCell<([u8; CAPTURED_BYTES], usize)>,
}

// SAFETY: `busy` hands `text` to one context at a time (invariant).
unsafe impl Sync for Captured {}

static CAPTURED: Captured = Captured {
    on: AtomicBool::new(false),
    busy: AtomicBool::new(false),
    text: UnsafeCell::new(([0; CAPTURED_BYTES], 0)),
};

struct Cursor<'a>(&'a mut ([u8; CAPTURED_BYTES], usize));

impl Write for Cursor<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let (bytes, len) = &mut *self.0;
        for byte in text.bytes() {
            let Some(place) = bytes.get_mut(*len) else { return Err(fmt::Error) };
            *place = byte;
            *len += 1;
        }
        Ok(())
    }
}

impl Captured {
    fn with<R>(&self, f: impl FnOnce(&mut ([u8; CAPTURED_BYTES], usize)) -> R) -> Option<R> {
        let _irqs_off = IrqGuard::new(&KernelCpu);
        if self.busy.swap(true, Ordering::Acquire) {
            return None;
        }
        // SAFETY: ours (invariant).
        let result = self.text.with_mut(|text| f(unsafe { &mut *text }));
        self.busy.store(false, Ordering::Release);
        Some(result)
    }

    fn append(&self, line: fmt::Arguments<'_>) -> bool {
        self.on.load(Ordering::Relaxed)
            && self
                .with(|text| {
                    let _ = Cursor(text).write_fmt(line);
                    let _ = Cursor(text).write_str("\n");
                })
                .is_some()
    }
}

/// What was reported while something ran.
pub(crate) struct Reported {
    bytes: [u8; CAPTURED_BYTES],
    len: usize,
}

impl Reported {
    /// The text; of a line that was cut in the middle of a character, what is whole.
    pub(crate) fn text(&self) -> &str {
        let bytes = &self.bytes[..self.len];
        core::str::from_utf8(bytes)
            .unwrap_or_else(|error| core::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or(""))
    }
}

/// Runs `f` and returns what was reported meanwhile, by anybody. Needs no memory: there may be none.
pub(crate) fn capture<R>(f: impl FnOnce() -> R) -> (R, Reported) {
    CAPTURED.with(|text| text.1 = 0);
    CAPTURED.on.store(true, Ordering::Relaxed);
    let result = f();
    CAPTURED.on.store(false, Ordering::Relaxed);
    let mut reported = Reported { bytes: [0; CAPTURED_BYTES], len: 0 };
    CAPTURED.with(|text| {
        reported.bytes = text.0;
        reported.len = text.1;
    });
    (result, reported)
}
