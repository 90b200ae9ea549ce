//! Which pages the cache has: by offset and by age, in shards with a lock each.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kmem_zsmalloc::Handle;

/// Shards: neighbouring offsets are in different ones.
const SHARDS: u64 = 64;

/// A page of the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) handle: Handle,
    /// When it was stored: smaller is older, no two are the same.
    pub(super) age: u64,
    /// Whether somebody writes it to the device: it stays until that is done.
    pub(super) is_leaving: bool,
}

/// The pages of a shard.
#[derive(Debug, Default)]
pub(super) struct Pages {
    by_offset: HashMap<u64, Entry>,
    by_age: BTreeMap<u64, u64>,
}

#[derive(Debug, Default)]
struct Shard {
    pages: Mutex<Pages>,
    /// Somebody has left off writing a page.
    left: Condvar,
}

/// All pages of the cache.
#[derive(Debug)]
pub(super) struct Index {
    shards: Box<[Shard]>,
}

impl Pages {
    pub(super) fn get(&mut self, offset: u64) -> Option<&mut Entry> {
        self.by_offset.get_mut(&offset)
    }

    pub(super) fn insert(&mut self, offset: u64, entry: Entry) -> Option<Entry> {
        let old = self.remove(offset);
        self.by_age.insert(entry.age, offset);
        self.by_offset.insert(offset, entry);
        old
    }

    pub(super) fn remove(&mut self, offset: u64) -> Option<Entry> {
        let old = self.by_offset.remove(&offset)?;
        self.by_age.remove(&old.age);
        Some(old)
    }

    /// The oldest page that nobody is writing: its age and offset.
    fn oldest(&self) -> Option<(u64, u64)> {
        let mut ages = self.by_age.iter();
        ages.find(|(_, offset)| self.by_offset.get(offset).is_some_and(|entry| !entry.is_leaving))
            .map(|(age, offset)| (*age, *offset))
    }
}

impl Index {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard::default()).collect() }
    }

    fn shard(&self, offset: u64) -> Option<&Shard> {
        self.shards.get((offset % SHARDS) as usize)
    }

    /// The pages of an offset's shard, locked, once nobody writes the page at this offset.
    pub(super) fn settled(&self, offset: u64) -> Option<MutexGuard<'_, Pages>> {
        let shard = self.shard(offset)?;
        let pages = shard.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = shard
            .left
            .wait_while(pages, |pages| pages.get(offset).is_some_and(|entry| entry.is_leaving))
            .unwrap_or_else(PoisonError::into_inner);
        Some(settled)
    }

    /// The pages of an offset's shard, locked.
    pub(super) fn lock(&self, offset: u64) -> Option<MutexGuard<'_, Pages>> {
        Some(self.shard(offset)?.pages.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Wakes whoever waits for the page at `offset`.
    pub(super) fn wake(&self, offset: u64) {
        if let Some(shard) = self.shard(offset) {
            shard.left.notify_all();
        }
    }

    /// The offset of the oldest page that nobody is writing, and its age.
    pub(super) fn oldest(&self) -> Option<(u64, u64)> {
        let pages = |shard: &Shard| shard.pages.lock().unwrap_or_else(PoisonError::into_inner).oldest();
        self.shards.iter().filter_map(pages).min()
    }

    /// Takes everything out; nobody else uses the index any more.
    pub(super) fn drain(&mut self, mut f: impl FnMut(Entry)) {
        for shard in &mut self.shards {
            let pages = shard.pages.get_mut().unwrap_or_else(PoisonError::into_inner);
            pages.by_age.clear();
            pages.by_offset.drain().for_each(|(_, entry)| f(entry));
        }
    }
}
