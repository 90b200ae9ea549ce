//! [`Slot`]: one movable page as its owner knows it, wherever it is at the moment.

use core::ptr::NonNull;

use kmem_gfp::{FlatFrameTable, FrameTable, PAGE_SIZE, Pfn};
use kmem_sync::atomic::{AtomicU64, Ordering};

use super::page_lock::PageLock;

/// Nowhere yet.
const NO_FRAME: u64 = u64::MAX;

/// One page.
///
/// # Invariants
/// `frame` changes only while the lock says that the page is being moved, or before anybody knows the slot.
#[derive(Debug)]
#[repr(align(8))]
pub(crate) struct Slot {
    pub(crate) lock: PageLock,
    frame: AtomicU64,
    /// Where it is mapped a second time; zero: nowhere, and its address is that of its frame.
    at: usize,
}

impl Slot {
    pub(crate) fn new(at: usize) -> Self {
        Self { lock: PageLock::new(), frame: AtomicU64::new(NO_FRAME), at }
    }

    /// Whether its address is the same wherever it is.
    pub(crate) fn stays(&self) -> bool {
        self.at != 0
    }

    /// Where it is mapped a second time, if it is.
    pub(crate) fn second(&self) -> Option<usize> {
        (self.at != 0).then_some(self.at)
    }

    /// Which frame it is in; a moment's answer for whoever does not hold the lock.
    pub(crate) fn frame(&self) -> Option<Pfn> {
        let frame = self.frame.load(Ordering::Acquire);
        (frame != NO_FRAME).then_some(Pfn(frame))
    }

    /// It is in another frame from here on.
    pub(crate) fn set_frame(&self, pfn: Pfn) {
        self.frame.store(pfn.0, Ordering::Release);
    }

    /// Where its bytes are, for whoever holds the lock.
    pub(crate) fn address(&self, table: &FlatFrameTable) -> Option<NonNull<[u8; PAGE_SIZE]>> {
        let address = match self.second() {
            Some(at) => NonNull::new(core::ptr::with_exposed_provenance_mut(at)),
            None => table.address_of(self.frame()?),
        };
        address.map(NonNull::cast)
    }
}
