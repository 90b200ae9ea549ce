//! A list of frames, doubly linked through their words.
//!
//! **Locking:** the caller holds the lock of the vector that the list belongs to, and every frame on it is `Listed` there.

use kmem_gfp::{FrameTable, FrameWords, Pfn};
use kmem_sync::atomic::Ordering;

/// The ends of a list: frame numbers plus one, 0 for none. The head is where new pages go, the tail where they are taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Chain {
    head: u32,
    tail: u32,
    len: u64,
}

/// Frame numbers are below this.
pub(crate) const PFN_LIMIT: u64 = u32::MAX as u64;

const fn link(pfn: Pfn) -> u32 {
    (pfn.0 as u32).wrapping_add(1)
}

fn words<F: FrameTable>(frames: &F, link: u32) -> Option<&FrameWords> {
    frames.words(Pfn(u64::from(link.checked_sub(1)?)))
}

fn split(words: &FrameWords) -> (u32, u32) {
    let links = words.links.load(Ordering::Relaxed);
    ((links >> 32) as u32, links as u32)
}

fn store(words: &FrameWords, prev: u32, next: u32) {
    words.links.store(u64::from(prev) << 32 | u64::from(next), Ordering::Relaxed);
}

impl Chain {
    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    /// The page at the tail.
    pub(crate) fn last(&self) -> Option<Pfn> {
        self.tail.checked_sub(1).map(|pfn| Pfn(u64::from(pfn)))
    }

    /// The page at the head.
    pub(crate) fn first(&self) -> Option<Pfn> {
        self.head.checked_sub(1).map(|pfn| Pfn(u64::from(pfn)))
    }

    pub(crate) fn push_head<F: FrameTable>(&mut self, frames: &F, pfn: Pfn, of: &FrameWords) {
        store(of, 0, self.head);
        match words(frames, self.head) {
            Some(old) => store(old, link(pfn), split(old).1),
            None => self.tail = link(pfn),
        }
        self.head = link(pfn);
        self.len += 1;
    }

    pub(crate) fn push_tail<F: FrameTable>(&mut self, frames: &F, pfn: Pfn, of: &FrameWords) {
        store(of, self.tail, 0);
        match words(frames, self.tail) {
            Some(old) => store(old, split(old).0, link(pfn)),
            None => self.head = link(pfn),
        }
        self.tail = link(pfn);
        self.len += 1;
    }

    pub(crate) fn unlink<F: FrameTable>(&mut self, frames: &F, of: &FrameWords) {
        let (prev, next) = split(of);
        match words(frames, prev) {
            Some(before) => store(before, split(before).0, next),
            None => self.head = next,
        }
        match words(frames, next) {
            Some(behind) => store(behind, prev, split(behind).1),
            None => self.tail = prev,
        }
        self.len = self.len.saturating_sub(1);
    }
}
