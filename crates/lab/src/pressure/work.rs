//! What a worker does, step by step, by a number of its own.

use super::latency::Histogram;
use super::objects::ObjectCache;
use kmem::{Gfp, Order, Pfn};
use kmem_hosted::{Access, Machine, PageStore, TaskFlags, in_context};
use std::collections::VecDeque;
use std::ptr::NonNull;

/// What pages with contents are allocated with.
const USER: Gfp = Gfp::HIGHUSER_MOVABLE;
/// Blocks of kmalloc that a worker keeps.
const BLOCKS: usize = 2000;
/// Pages that it keeps in atomic context.
const ATOMIC_PAGES: usize = 64;

/// Random enough, and the same every time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Most often small: a working set that moves over time.
    fn near(&mut self, limit: u64, base: u64) -> u64 {
        let spread = if self.below(8) == 0 { limit } else { limit / 4 };
        (base + self.below(spread)) % limit.max(1)
    }
}

/// Pages with contents, each with the number that it was last written with.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) store: &'static PageStore,
    first: u64,
    versions: Vec<u32>,
    pub(super) damaged: u64,
}

fn word(index: u64, version: u32, at: usize) -> u64 {
    (index << 32 ^ u64::from(version) ^ (at as u64) << 50).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Book {
    pub(super) fn new(store: &'static PageStore, first: u64, pages: u64) -> Self {
        Self { store, first, versions: vec![0; pages as usize], damaged: 0 }
    }

    fn write(&mut self, nth: u64, times: &mut Histogram) -> bool {
        let Some(version) = self.versions.get_mut(nth as usize) else { return true };
        let (index, next) = (self.first + nth, *version + 1);
        let store = self.store;
        let written = times.time(|| {
            store.with_page(index, Access::Write, USER, |page| {
                for (at, bytes) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    *bytes = word(index, next, at).to_ne_bytes();
                }
            })
        });
        if written.is_ok() {
            *version = next;
        }
        written.is_ok()
    }

    /// Reads a page and checks every byte of it.
    fn check(&mut self, nth: u64, times: &mut Histogram) -> bool {
        let Some(&version) = self.versions.get(nth as usize) else { return true };
        let (index, store) = (self.first + nth, self.store);
        let read = times.time(|| {
            store.with_page(index, Access::Read, USER, |page| {
                let mut words = page.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).enumerate();
                if version == 0 {
                    words.all(|(_, have)| have == 0)
                } else {
                    words.all(|(at, have)| have == word(index, version, at))
                }
            })
        });
        self.damaged += u64::from(matches!(read, Ok(false)));
        read.is_ok()
    }

    /// Checks every page; how many could not be read.
    pub(super) fn check_all(&mut self) -> u64 {
        let mut times = Histogram::new();
        (0..self.versions.len() as u64).filter(|&nth| !self.check(nth, &mut times)).count() as u64
    }

    pub(super) fn pages(&self) -> u64 {
        self.versions.len() as u64
    }
}

/// Times of a worker's calls.
#[derive(Clone, Debug)]
pub(super) struct Times {
    pub(super) pages: Histogram,
    pub(super) atomic: Histogram,
    pub(super) kmalloc: Histogram,
    pub(super) faults: Histogram,
}

impl Times {
    pub(super) fn new() -> Self {
        let new = Histogram::new;
        Self { pages: new(), atomic: new(), kmalloc: new(), faults: new() }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.pages.add(&other.pages);
        self.atomic.add(&other.atomic);
        self.kmalloc.add(&other.kmalloc);
        self.faults.add(&other.faults);
    }
}

/// One worker.
pub(super) struct Worker<'a> {
    machine: &'static Machine,
    dice: Dice,
    pub(super) file: Book,
    pub(super) anon: Book,
    objects: &'a ObjectCache,
    /// Address, size, contents.
    blocks: VecDeque<(usize, usize, u8)>,
    atomic: Vec<Pfn>,
    pub(super) times: Times,
    pub(super) steps: u64,
    pub(super) damaged: u64,
}

impl<'a> Worker<'a> {
    pub(super) fn new(machine: &'static Machine, seed: u64, file: Book, anon: Book, objects: &'a ObjectCache) -> Self {
        Self {
            machine,
            dice: Dice::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            file,
            anon,
            objects,
            blocks: VecDeque::with_capacity(BLOCKS + 1),
            atomic: Vec::with_capacity(ATOMIC_PAGES + 1),
            times: Times::new(),
            steps: 0,
            damaged: 0,
        }
    }

    /// One step; `false` if the worker's task has been killed.
    pub(super) fn step(&mut self) -> bool {
        self.steps += 1;
        let base = self.steps / 200;
        let faults = &mut self.times.faults;
        match self.dice.below(20) {
            0..6 => _ = self.file.check(self.dice.near(self.file.pages(), base), faults),
            6..8 => _ = self.file.write(self.dice.near(self.file.pages(), base), faults),
            8..12 => _ = self.anon.check(self.dice.near(self.anon.pages(), base / 2), faults),
            12..15 => _ = self.anon.write(self.dice.near(self.anon.pages(), base / 2), faults),
            15..17 => self.block(),
            17 => self.page(),
            18 => self.interrupt(),
            _ => {
                let (objects, seed) = (self.objects, self.dice.next());
                let _ = self.times.kmalloc.time(|| objects.make(Gfp::KERNEL | Gfp::NOWARN, seed));
            }
        }
        !kmem_hosted::current_task_killed()
    }

    /// kmalloc of some size, filled; the oldest block goes.
    fn block(&mut self) {
        let size = 8usize << self.dice.below(9) | self.dice.below(8) as usize;
        let fill = self.dice.next() as u8;
        let kmem = self.machine.kmem();
        if let Ok(block) = self.times.kmalloc.time(|| kmem.kmalloc(size, Gfp::KERNEL | Gfp::NOWARN)) {
            // SAFETY: just allocated with this size.
            unsafe { block.write_bytes(fill, size) };
            self.blocks.push_back((block.as_ptr().expose_provenance(), size, fill));
        }
        if self.blocks.len() > BLOCKS {
            self.free_oldest();
        }
    }

    fn free_oldest(&mut self) {
        let Some((block, size, fill)) = self.blocks.pop_front() else { return };
        let Some(block) = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(block)) else { return };
        // SAFETY: a block of ours.
        let whole = unsafe { NonNull::slice_from_raw_parts(block, size).as_ref() }.iter().all(|have| *have == fill);
        // SAFETY: as above; not used any more.
        let freed = unsafe { self.machine.kmem().kfree(block.as_ptr()) };
        self.damaged += u64::from(!whole || freed.is_err());
    }

    /// A block of pages where sleeping is allowed, given back at once.
    fn page(&mut self) {
        let order = Order::new(self.dice.below(4) as u32 / 2).unwrap_or_default();
        let kmem = self.machine.kmem();
        if let Ok(pages) = self.times.pages.time(|| kmem.alloc_pages(Gfp::KERNEL | Gfp::NOWARN, order)) {
            // SAFETY: allocated above.
            let freed = unsafe { kmem.free_pages(pages, order) };
            self.damaged += u64::from(freed.is_err());
        }
    }

    /// A page in an interrupt; all go when there are many.
    fn interrupt(&mut self) {
        let kmem = self.machine.kmem();
        let page =
            in_context(TaskFlags::IN_IRQ, || self.times.atomic.time(|| kmem.alloc_page(Gfp::ATOMIC | Gfp::NOWARN)));
        self.atomic.extend(page.ok());
        if self.atomic.len() >= ATOMIC_PAGES {
            self.free_atomic();
        }
    }

    fn free_atomic(&mut self) {
        for page in self.atomic.drain(..) {
            // SAFETY: allocated in `interrupt`.
            let freed = unsafe { self.machine.kmem().free_page(page) };
            self.damaged += u64::from(freed.is_err());
        }
    }

    /// Gives back what it keeps besides pages with contents.
    pub(super) fn finish(&mut self) {
        while !self.blocks.is_empty() {
            self.free_oldest();
        }
        self.free_atomic();
    }
}
