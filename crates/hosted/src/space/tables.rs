//! The page tables of a window: which frame is where, as the machine says.
//!
//! ```text
//! root  ─▶ │ leaf │ -- │ leaf │ ...        a word for every 2 MiB of the window, in sparse memory of the host
//!             └─▶ [512 entries]            a frame of the machine, from its page source; kept as long as the machine
//!
//! entry   │ frame: 52 bits │ ... │ X │ W │ R │ present │
//! ```
//!
//! Anybody reads without a lock. Entries are written under the mirror's lock; leaves are added without one, before it.

use core::ops::Range;
use core::ptr::NonNull;

use kmem_gfp::{FrameTable, PAGE_SHIFT, Pfn};
use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::{Cpu, SpinLock};
use kmem_vmalloc::{MapError, Prot, TableSource};

use crate::ram::{self, Mapping, Ram};
use crate::sys::Access;

const FAN: u64 = 512;

/// What is mapped at one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Entry(u64);

impl Entry {
    /// Nothing.
    pub(super) const NONE: Self = Self(0);
    /// Something of somebody else's, who took the address from the host in an unlucky moment.
    pub(super) const LOST: Self = Self(u64::MAX);

    const PRESENT: u64 = 1;
    const READ: u64 = 1 << 1;
    const WRITE: u64 = 1 << 2;
    const EXECUTE: u64 = 1 << 3;

    pub(super) fn new(pfn: Pfn, prot: Prot) -> Self {
        Self(pfn.0 << PAGE_SHIFT | Self::PRESENT).with_prot(prot)
    }

    /// The same frame with another protection.
    pub(super) fn with_prot(self, prot: Prot) -> Self {
        let bit = |flag, bit| if prot.contains(flag) { bit } else { 0 };
        let bits = bit(Prot::READ, Self::READ) | bit(Prot::WRITE, Self::WRITE) | bit(Prot::EXECUTE, Self::EXECUTE);
        Self(self.0 & !(Self::READ | Self::WRITE | Self::EXECUTE) | bits)
    }

    /// Another frame with the same protection.
    pub(super) fn with_frame(self, pfn: Pfn) -> Self {
        Self(self.0 & ((1 << PAGE_SHIFT) - 1) | pfn.0 << PAGE_SHIFT)
    }

    /// The frame, if there is one.
    pub(super) fn frame(self) -> Option<Pfn> {
        (self != Self::NONE && self != Self::LOST).then_some(Pfn(self.0 >> PAGE_SHIFT))
    }

    /// The protection, as the host is asked for it.
    pub(super) fn access(self) -> Access {
        let has = |bit| self.0 & bit != 0;
        Access::Of { read: has(Self::READ), write: has(Self::WRITE), execute: has(Self::EXECUTE) }
    }

    /// The frame `n` further on, with the same protection.
    pub(super) fn after(self, n: u64) -> Self {
        Self(self.0.wrapping_add(n << PAGE_SHIFT))
    }

    /// Whether the host keeps this page and the `next` one in one mapping.
    pub(super) fn joins(self, next: Self) -> bool {
        if self == Self::NONE || next == Self::NONE {
            return self == next;
        }
        next.0.wrapping_sub(self.0) == 1 << PAGE_SHIFT
    }
}

/// # Invariants
/// 1. `root` is the start of `roots` and holds a word for every [`FAN`] pages of the window.
/// 2. A word of the root is zero, or the number of a frame that the page source gave for good, whose words are entries.
/// 3. `spare` is zero or such a frame, unused, whose first word is zero or the next one.
pub(super) struct Tables {
    ram: &'static Ram,
    root: NonNull<AtomicU64>,
    nr_roots: usize,
    _roots: Mapping,
    spare: SpinLock<u64>,
    frames: AtomicU64,
}

// SAFETY: shared access is to atomics and a lock.
unsafe impl Sync for Tables {}
// SAFETY: nothing is tied to a thread.
unsafe impl Send for Tables {}

impl Tables {
    /// Empty tables for a window of `nr_pages`.
    pub(super) fn new(ram: &'static Ram, nr_pages: u64) -> Result<Self, ram::MapError> {
        let nr_roots = nr_pages.div_ceil(FAN) as usize;
        let roots = Mapping::sparse("page tables", nr_roots.saturating_mul(size_of::<AtomicU64>()))?;
        // INVARIANT: fresh zeroed memory of that size (1), so no leaves (2); no spare (3).
        let root = roots.start().cast();
        Ok(Self { ram, root, nr_roots, _roots: roots, spare: SpinLock::new(0), frames: AtomicU64::new(0) })
    }

    /// Frames in use as tables.
    pub(super) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    fn roots(&self) -> &[AtomicU64] {
        // SAFETY: that many words, zeroed at first, live as long as `self` (1).
        unsafe { core::slice::from_raw_parts(self.root.as_ptr(), self.nr_roots) }
    }

    fn words(&self, frame: u64) -> Option<&[AtomicU64; FAN as usize]> {
        if frame == 0 {
            return None;
        }
        let page = self.ram.table().address_of(Pfn(frame))?;
        // SAFETY: a frame that is ours for good (2, 3): 512 words, only ever accessed as atomics.
        Some(unsafe { page.cast().as_ref() })
    }

    fn entry(&self, page: u64) -> Option<&AtomicU64> {
        // Acquire pairs with the release in `provide`: the leaf's words are zero, or newer.
        let frame = self.roots().get((page / FAN) as usize)?.load(Ordering::Acquire);
        self.words(frame)?.get((page % FAN) as usize)
    }

    /// What is mapped at `page`. Any context.
    pub(super) fn get(&self, page: u64) -> Entry {
        self.entry(page).map_or(Entry::NONE, |entry| Entry(entry.load(Ordering::Acquire)))
    }

    /// Changes what is mapped at `page`; a table is there, or there is nothing to change. Under the mirror's lock.
    pub(super) fn set(&self, page: u64, entry: Entry) {
        if let Some(place) = self.entry(page) {
            place.store(entry.0, Ordering::Release);
        }
    }

    /// Sees to tables for all of `pages`. May sleep, if `source` may.
    ///
    /// # Errors
    /// [`MapError::NoTable`]. The tables that were had stay for the next one.
    pub(super) fn provide(
        &self,
        pages: Range<u64>,
        cpu: &impl Cpu,
        source: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        if pages.is_empty() {
            return Ok(());
        }
        let roots = pages.start / FAN..(pages.end - 1) / FAN + 1;
        for root in self.roots().get(roots.start as usize..roots.end as usize).unwrap_or(&[]) {
            if root.load(Ordering::Relaxed) != 0 {
                continue;
            }
            let frame = match self.take_spare(cpu) {
                0 => {
                    let frame = source.table().map_err(MapError::NoTable)?.0;
                    self.frames.fetch_add(1, Ordering::Relaxed);
                    frame
                }
                spare => spare,
            };
            // INVARIANT: a zeroed frame that is ours (2). Release pairs with the acquire in `entry`.
            if root.compare_exchange(0, frame, Ordering::Release, Ordering::Relaxed).is_err() {
                self.put_spare(cpu, frame);
            }
        }
        Ok(())
    }

    fn take_spare(&self, cpu: &impl Cpu) -> u64 {
        self.spare.with(cpu, |spare| {
            let frame = *spare;
            if let Some([first, ..]) = self.words(frame) {
                *spare = first.swap(0, Ordering::Relaxed);
            }
            frame
        })
    }

    /// Somebody else was faster: keeps an unused, zeroed table for the next one.
    fn put_spare(&self, cpu: &impl Cpu, frame: u64) {
        self.spare.with(cpu, |spare| {
            if let Some([first, ..]) = self.words(frame) {
                first.store(*spare, Ordering::Relaxed);
                *spare = frame;
            }
        });
    }
}
