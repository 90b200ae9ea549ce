//! The lock of one movable page: who looks at it, who writes to it, who is moving it.
//!
//! ```text
//! word   │ gone │ isolated │ moving │ writer │ readers: 24 bits │
//!
//! owner   read ······· shared with readers; with `moving` too if the page's address stays the same
//!         write ······ alone
//! mover   isolate ─▶ begin_move (no writer) ─ copy, repoint ─▶ end_move     or put_back
//! owner   retire ····· only while nobody has isolated it; nobody does afterwards
//! ```
//!
//! A page whose address stays the same (it is mapped a second time) is read while it is moved: its two frames have the same
//! contents, and the mapping leads to the one or to the other. Writers keep out of the way, and are kept out.

use kmem_sync::atomic::{AtomicU32, Ordering};
use kmem_sync::const_fn;

const READER: u32 = 1;
const READERS: u32 = (1 << 24) - 1;
const WRITER: u32 = 1 << 24;
const MOVING: u32 = 1 << 25;
const ISOLATED: u32 = 1 << 26;
const GONE: u32 = 1 << 27;

/// See the file's header.
#[derive(Debug, Default)]
pub(crate) struct PageLock(AtomicU32);

impl PageLock {
    const_fn! {
        /// A page that nobody uses.
        pub(crate) fn new() -> Self {
            Self(AtomicU32::new(0))
        }
    }

    /// Applies `change` to the word, unless it says `None`.
    fn update(&self, change: impl Fn(u32) -> Option<u32>) -> bool {
        let mut word = self.0.load(Ordering::Relaxed);
        while let Some(new) = change(word) {
            // Acquire: what whoever was here before wrote, and which frame it is, are seen.
            match self.0.compare_exchange_weak(word, new, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Begins to read, unless somebody writes, or moves a page whose address changes by that (`stays` says that it does not).
    pub(crate) fn try_read(&self, stays: bool) -> bool {
        let closed = if stays { WRITER } else { WRITER | MOVING };
        self.update(|word| (word & closed == 0 && word & READERS != READERS).then_some(word + READER))
    }

    /// Ends what [`try_read`](Self::try_read) began.
    pub(crate) fn end_read(&self) {
        // Release: the reader has seen all it wanted before somebody writes or moves.
        self.0.fetch_sub(READER, Ordering::Release);
    }

    /// Begins to write, unless anybody reads, writes or moves.
    pub(crate) fn try_write(&self) -> bool {
        self.update(|word| (word & (READERS | WRITER | MOVING) == 0).then_some(word | WRITER))
    }

    /// Ends what [`try_write`](Self::try_write) began.
    pub(crate) fn end_write(&self) {
        // Release: whoever reads or copies next sees what was written.
        self.0.fetch_and(!WRITER, Ordering::Release);
    }

    /// Isolates the page, unless somebody has, or it is gone.
    pub(crate) fn isolate(&self) -> bool {
        self.update(|word| (word & (ISOLATED | GONE) == 0).then_some(word | ISOLATED))
    }

    /// Ends an isolation without a move.
    pub(crate) fn put_back(&self) {
        // Nothing has changed that anybody would have to see.
        self.0.fetch_and(!ISOLATED, Ordering::Relaxed);
    }

    /// Begins to copy the isolated page, unless somebody writes, or reads one whose address changes by the move.
    pub(crate) fn begin_move(&self, stays: bool) -> bool {
        let closed = if stays { WRITER } else { WRITER | READERS };
        self.update(|word| (word & closed == 0).then_some(word | MOVING))
    }

    /// Ends the copying; the isolation too if the page has `moved`.
    pub(crate) fn end_move(&self, moved: bool) {
        let end = if moved { MOVING | ISOLATED } else { MOVING };
        // Release: whoever comes next finds the new frame.
        self.0.fetch_and(!end, Ordering::Release);
    }

    /// Takes the page out of use, unless it is isolated. Its owner calls this when nobody reads or writes any more.
    pub(crate) fn retire(&self) -> bool {
        self.update(|word| (word & ISOLATED == 0).then_some(word | GONE))
    }
}
