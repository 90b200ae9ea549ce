//! The peers: allocators of ranges of numbers, each behind a spin lock.

use std::collections::BTreeMap;

use range_alloc::RangeAllocator;
use spin::mutex::SpinMutex;
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use super::{Areas, Workload, subject};
use crate::measure::{Role, Subject};

const PAGE: usize = 4096;
/// The window: as large as kmem's.
const PAGES: usize = 1 << 33;

/// With more live areas vm-allocator, which visits all of them to find the first place, takes hours to be set up.
const TREE_MAX: usize = 10_000;

/// Everyone who runs `workload`.
pub(crate) fn subjects(workload: Workload) -> Vec<Subject> {
    let mut subjects = vec![
        subject::<Filled<Ranges>>("range-alloc", Role::Peer, workload),
        subject::<Filled<FirstFit>>("BTreeMap, first fit", Role::Peer, workload),
    ];
    if workload.live <= TREE_MAX {
        subjects.push(subject::<Filled<Tree>>("vm-allocator", Role::Peer, workload));
    }
    subjects
}

/// Takes and gives back pages, guard pages included.
pub(crate) trait Space: 'static {
    fn new() -> Self;
    fn take(&mut self, pages: usize) -> usize;
    fn give(&mut self, page: usize, pages: usize);
}

/// A space behind a lock, in which areas live.
pub(crate) struct Filled<S>(SpinMutex<S>);

impl<S: Space> Areas for Filled<S> {
    fn new(live: usize, holes: bool) -> Self {
        let mut space = S::new();
        let mut free = Vec::new();
        for _ in 0..live {
            space.take(2);
            if holes {
                free.push(space.take(1));
            }
        }
        free.into_iter().for_each(|hole| space.give(hole, 1));
        Self(SpinMutex::new(space))
    }
    fn alloc(&mut self, pages: usize) -> usize {
        self.0.lock().take(pages + 1)
    }
    fn free(&mut self, area: usize, pages: usize) {
        self.0.lock().give(area, pages + 1);
    }
}

pub(crate) struct Ranges(RangeAllocator<usize>);

impl Space for Ranges {
    fn new() -> Self {
        Self(RangeAllocator::new(0..PAGES))
    }
    fn take(&mut self, pages: usize) -> usize {
        self.0.allocate_range(pages).expect("addresses").start
    }
    fn give(&mut self, page: usize, pages: usize) {
        self.0.free_range(page..page + pages);
    }
}

pub(crate) struct Tree(AddressAllocator);

impl Space for Tree {
    fn new() -> Self {
        Self(AddressAllocator::new(0, (PAGES * PAGE) as u64).expect("a window"))
    }
    fn take(&mut self, pages: usize) -> usize {
        let range = self.0.allocate((pages * PAGE) as u64, PAGE as u64, AllocPolicy::FirstMatch).expect("addresses");
        range.start() as usize / PAGE
    }
    fn give(&mut self, page: usize, pages: usize) {
        let (from, to) = (page * PAGE, (page + pages) * PAGE - 1);
        let range = RangeInclusive::new(from as u64, to as u64).expect("a range");
        self.0.free(&range).expect("an area");
    }
}

/// Free ranges by their start; the first that is long enough is taken.
pub(crate) struct FirstFit(BTreeMap<usize, usize>);

impl Space for FirstFit {
    fn new() -> Self {
        Self(BTreeMap::from([(0, PAGES)]))
    }
    fn take(&mut self, pages: usize) -> usize {
        let (&start, &len) = self.0.iter().find(|(_, len)| **len >= pages).expect("addresses");
        self.0.remove(&start);
        if len > pages {
            self.0.insert(start + pages, len - pages);
        }
        start
    }
    fn give(&mut self, page: usize, pages: usize) {
        let (mut start, mut len) = (page, pages);
        if let Some((&before, &size)) = self.0.range(..page).next_back()
            && before + size == page
        {
            self.0.remove(&before);
            (start, len) = (before, size + pages);
        }
        if let Some(size) = self.0.remove(&(page + pages)) {
            len += size;
        }
        self.0.insert(start, len);
    }
}
