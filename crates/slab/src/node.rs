//! What a cache keeps for each NUMA node: its slabs on two lists, and its barn.
//!
//! ```text
//! Node ─┬─ partial ──▶ slab ◀──▶ slab        slabs with a free slot; empty ones among them
//!       ├─ full    ──▶ slab ◀──▶ slab        all slots in use, or frozen after a failed check
//!       └─ barn                              see `barn`
//! ```
//!
//! Links are frame numbers in the head frames' words, 32 bits each; they and the lists belong to the list lock.

use kmem_gfp::{FrameTable, Pfn};
use kmem_sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kmem_sync::{Cpu, IrqLock, const_fn};

use crate::backend::Locking;
use crate::barn::Barn;
use crate::slab::Slab;

const NIL: u32 = u32::MAX;

/// How many slabs from the list's head are compared when one is chosen to allocate from.
const SCAN: usize = 8;

/// Whether a slab in this frame can be linked: frame numbers on lists have 32 bits (16 TiB of memory).
pub(crate) const fn linkable(pfn: Pfn) -> bool {
    pfn.0 < NIL as u64
}

/// A doubly linked list of slabs.
///
/// # Invariants
/// Following `next` from `head` visits exactly `len` head frames and ends at `tail`.
#[derive(Debug)]
pub(crate) struct List {
    head: u32,
    tail: u32,
    pub(crate) len: u32,
}

impl List {
    pub(crate) const fn new() -> Self {
        Self { head: NIL, tail: NIL, len: 0 }
    }

    fn links<F: FrameTable>(frames: &F, at: u32) -> (u32, u32) {
        let links = frames.words(Pfn(at as u64)).map_or(u64::MAX, |words| words.links.load(Ordering::Relaxed));
        ((links >> 32) as u32, links as u32)
    }

    fn set_links<F: FrameTable>(frames: &F, at: u32, prev: u32, next: u32) {
        if let Some(words) = frames.words(Pfn(at as u64)) {
            words.links.store((prev as u64) << 32 | next as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn push_head<F: FrameTable>(&mut self, frames: &F, slab: &Slab<'_>) {
        let at = slab.pfn.0 as u32;
        Self::set_links(frames, at, NIL, self.head);
        if self.head == NIL {
            self.tail = at;
        } else {
            let (_, next) = Self::links(frames, self.head);
            Self::set_links(frames, self.head, at, next);
        }
        self.head = at;
        self.len += 1;
    }

    pub(crate) fn push_tail<F: FrameTable>(&mut self, frames: &F, slab: &Slab<'_>) {
        let at = slab.pfn.0 as u32;
        Self::set_links(frames, at, self.tail, NIL);
        if self.tail == NIL {
            self.head = at;
        } else {
            let (prev, _) = Self::links(frames, self.tail);
            Self::set_links(frames, self.tail, prev, at);
        }
        self.tail = at;
        self.len += 1;
    }

    pub(crate) fn unlink<F: FrameTable>(&mut self, frames: &F, slab: &Slab<'_>) {
        let (prev, next) = Self::links(frames, slab.pfn.0 as u32);
        if prev == NIL {
            self.head = next;
        } else {
            let (before, _) = Self::links(frames, prev);
            Self::set_links(frames, prev, before, next);
        }
        if next == NIL {
            self.tail = prev;
        } else {
            let (_, behind) = Self::links(frames, next);
            Self::set_links(frames, next, prev, behind);
        }
        self.len = self.len.saturating_sub(1);
    }

    /// The slabs from the tail backwards.
    pub(crate) fn iter_back<'f, F: FrameTable>(&self, frames: &'f F) -> impl Iterator<Item = Slab<'f>> + use<'f, F> {
        let mut at = self.tail;
        let mut left = self.len;
        core::iter::from_fn(move || {
            if at == NIL || left == 0 {
                return None;
            }
            let slab = Slab::at(frames, Pfn(at as u64))?;
            (at, _) = Self::links(frames, at);
            left -= 1;
            Some(slab)
        })
    }

    /// The slabs from the head on. The one it is at may be unlinked.
    pub(crate) fn iter<'f, F: FrameTable>(&self, frames: &'f F) -> impl Iterator<Item = Slab<'f>> + use<'f, F> {
        let mut at = self.head;
        let mut left = self.len;
        core::iter::from_fn(move || {
            if at == NIL || left == 0 {
                return None;
            }
            let slab = Slab::at(frames, Pfn(at as u64))?;
            (_, at) = Self::links(frames, at);
            left -= 1;
            Some(slab)
        })
    }
}

/// The slabs of a node.
///
/// # Invariants
/// Every slab that is not in the hands of its maker or releaser is on exactly one list: on `partial` if and only if its
/// state says `LISTED`. `nr_empty` counts the slabs on `partial` without an object in use.
#[derive(Debug)]
pub(crate) struct Slabs {
    pub(crate) partial: List,
    pub(crate) full: List,
    pub(crate) nr_empty: u32,
}

impl Slabs {
    /// The slab to allocate from: the fullest of the first few, so that emptier ones may drain.
    pub(crate) fn pick<'f, F: FrameTable>(&self, frames: &'f F) -> Option<Slab<'f>> {
        let mut best = None;
        let mut least = usize::MAX;
        for slab in self.partial.iter(frames).take(SCAN) {
            let free = slab.state().free();
            if free < least {
                least = free;
                best = Some(slab);
            }
        }
        best
    }
}

/// A cache's part on one node.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Node {
    slabs: IrqLock<Slabs>,
    nr_partial: AtomicU32,
    /// Slabs that exist. Dropping to zero is a releaser's last access to the cache (see `destroy`).
    pub(crate) nr_slabs: AtomicU64,
    pub(crate) nr_pages: AtomicU64,
    pub(crate) nr_objects: AtomicU64,
    pub(crate) barn: Barn,
}

impl Node {
    const_fn! {
        /// A node without slabs, whose barn has room for `barn_full` full sheaves.
        pub(crate) fn new(barn_full: u32) -> Self {
            Self {
                slabs: IrqLock::new(Slabs { partial: List::new(), full: List::new(), nr_empty: 0 }),
                nr_partial: AtomicU32::new(0),
                nr_slabs: AtomicU64::new(0),
                nr_pages: AtomicU64::new(0),
                nr_objects: AtomicU64::new(0),
                barn: Barn::new(barn_full),
            }
        }
    }

    /// Slabs on the partial list, read without the lock.
    pub(crate) fn nr_partial(&self) -> u32 {
        self.nr_partial.load(Ordering::Relaxed)
    }

    /// Runs `f` with the list lock held; `None` if it is only to be tried and is taken.
    pub(crate) fn with<C: Cpu, R>(&self, cpu: &C, how: Locking, f: impl FnOnce(&mut Slabs) -> R) -> Option<R> {
        let update = |slabs: &mut Slabs| {
            let result = f(slabs);
            self.nr_partial.store(slabs.partial.len, Ordering::Relaxed);
            result
        };
        match how {
            Locking::Wait => Some(self.slabs.with(cpu, update)),
            Locking::Try => self.slabs.try_with(cpu, update),
        }
    }
}
