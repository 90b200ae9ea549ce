//! Arrays in the memory that the owner gave for bookkeeping, and how they are laid out there.
//!
//! ```text
//! memory ─▶ ┌ table 0 ──┬ table 1 ──┬ ... ┐     each aligned for its element
//!           └───────────┴───────────┴─────┘
//! ```
//!
//! A [`Carver`] runs twice over the same requests: once without memory, to learn size and alignment, and once with it.

use core::alloc::Layout;
use core::ops::Deref;
use core::ptr::NonNull;

/// A fixed array in bookkeeping memory.
///
/// # Invariants
/// `first` points to `len` initialised elements that live as long as this value and are reached through shared
/// references only.
#[derive(Debug)]
pub(crate) struct Table<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: gives out shared references only.
unsafe impl<T: Sync> Sync for Table<T> {}
// SAFETY: as above; nothing is tied to the creating thread.
unsafe impl<T: Sync> Send for Table<T> {}

impl<T> Table<T> {
    /// No elements.
    pub(crate) const fn empty() -> Self {
        Self { first: NonNull::dangling(), len: 0 }
    }

    /// The address of the first element.
    #[inline(always)]
    pub(crate) const fn start(&self) -> NonNull<T> {
        self.first
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised elements that are only shared (type invariant).
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

/// Places tables one behind the other, or only adds up what they need.
#[derive(Debug)]
pub(crate) struct Carver {
    memory: Option<NonNull<u8>>,
    used: usize,
    align: usize,
    overflow: bool,
}

impl Carver {
    /// Only measures: every table stays empty.
    pub(crate) const fn measuring() -> Self {
        Self { memory: None, used: 0, align: 64, overflow: false }
    }

    /// Places tables in `memory`.
    ///
    /// # Safety
    /// `memory` has the [`layout`](Self::layout) that measuring the same requests gave, is unused, and stays the tables'
    /// alone for as long as one of them is used.
    pub(crate) const unsafe fn placing(memory: NonNull<u8>) -> Self {
        Self { memory: Some(memory), used: 0, align: 64, overflow: false }
    }

    /// A table of `len` elements, each with the value `init` gives it.
    pub(crate) fn table<T>(&mut self, len: usize, mut init: impl FnMut(usize) -> T) -> Table<T> {
        let align = align_of::<T>();
        let start = self.used.checked_next_multiple_of(align);
        let end = start.and_then(|start| start.checked_add(size_of::<T>().checked_mul(len)?));
        let (Some(start), Some(end)) = (start, end) else {
            self.overflow = true;
            return Table::empty();
        };
        self.used = end;
        self.align = self.align.max(align);
        let Some(memory) = self.memory else {
            return Table::empty();
        };
        // SAFETY: inside the memory by the promise of `placing`; aligned, because the memory's alignment is the largest.
        let first = unsafe { memory.add(start) }.cast::<T>();
        for i in 0..len {
            // SAFETY: as above, `i < len`.
            unsafe { first.add(i).write(init(i)) };
        }
        // INVARIANT: all elements have just been written; the memory is ours for good.
        Table { first, len }
    }

    /// Unwritten memory, aligned to 64 bytes; dangling while measuring.
    pub(crate) fn bytes(&mut self, size: Option<usize>) -> NonNull<u8> {
        #[derive(Clone, Copy)]
        #[repr(align(64))]
        struct Unit;
        let start = self.used.checked_next_multiple_of(align_of::<Unit>());
        let end = start.and_then(|start| start.checked_add(size?));
        let (Some(start), Some(end)) = (start, end) else {
            self.overflow = true;
            return NonNull::<Unit>::dangling().cast();
        };
        self.used = end;
        match self.memory {
            // SAFETY: inside the memory by the promise of `placing`.
            Some(memory) => unsafe { memory.add(start) },
            None => NonNull::<Unit>::dangling().cast(),
        }
    }

    /// Whether tables are written.
    pub(crate) const fn is_placing(&self) -> bool {
        self.memory.is_some()
    }

    /// Size and alignment of everything so far; `None` if it does not fit the address space.
    pub(crate) fn layout(&self) -> Option<Layout> {
        if self.overflow {
            return None;
        }
        Layout::from_size_align(self.used, self.align).ok()
    }

    /// Bytes so far.
    pub(crate) const fn used_bytes(&self) -> usize {
        self.used
    }
}
