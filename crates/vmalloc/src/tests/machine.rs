//! The machine of the tests: frames with an arena behind them, page tables in a map, one translation cache per CPU, a
//! context that tests set, failures on demand.

mod parts;

use core::cell::Cell;
use core::ops::Range;
use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::string::String;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};
use std::vec::Vec;

use kmem_gfp::{FrameTable, Gfp, NodeId, Order, PAGE_SIZE, PageAllocator, Pfn, TaskFlags};

use crate::{Granule, Prot, Run, Vmalloc, Work};

/// Where the window of most tests starts.
pub(super) const BASE: usize = 0xffff_c900_0000_0000;
pub(super) const FIRST: u64 = 0x1000;

std::thread_local! {
    static CPU: Cell<Option<u32>> = const { Cell::new(Some(0)) };
    static TASK: Cell<TaskFlags> = const { Cell::new(TaskFlags::empty()) };
}

/// Runs `f` as the given CPU.
pub(super) fn on_cpu<R>(cpu: u32, f: impl FnOnce() -> R) -> R {
    let before = CPU.replace(Some(cpu));
    let result = f();
    CPU.set(before);
    result
}

/// Runs `f` with task flags set.
pub(super) fn as_task<R>(flags: TaskFlags, f: impl FnOnce() -> R) -> R {
    let before = TASK.get();
    TASK.set(before | flags);
    let result = f();
    TASK.set(before);
    result
}

/// A request that the page source saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) gfp: Gfp,
    pub(super) order: u32,
    pub(super) bulk: usize,
    pub(super) node: Option<NodeId>,
    pub(super) task: TaskFlags,
}

#[derive(Debug, Default)]
pub(super) struct Frames {
    taken: Vec<bool>,
    in_use: usize,
    hint: usize,
    /// Single frames come from all over the place.
    pub(super) scattered: bool,
    /// Blocks above this order are never there.
    pub(super) largest: u32,
    /// The request with this number fails, and those after it if `fail_on`.
    pub(super) fail_at: Option<u64>,
    pub(super) fail_on: bool,
    pub(super) requests: u64,
    pub(super) log: Option<Vec<Seen>>,
}

#[derive(Debug, Default)]
pub(super) struct Tables {
    pages: BTreeMap<usize, (Pfn, Prot, u32)>,
    /// Page tables, one for each 2 MiB that was ever touched.
    pub(super) tables: BTreeSet<usize>,
    /// Translation caches.
    tlbs: BTreeMap<(u32, usize), Pfn>,
    pub(super) flushed: Vec<Range<usize>>,
    pub(super) map_calls: usize,
    pub(super) refuse: bool,
    pub(super) reset: Vec<Run>,
}

/// What stands behind the notifier: told how many pages are wanted, says how many came free.
pub(super) type Notifier = Box<dyn FnMut(u64) -> u64 + Send>;

pub(super) struct Machine {
    arena: NonNull<u8>,
    nr_frames: usize,
    pub(super) nr_cpus: u32,
    pub(super) nr_nodes: u32,
    pub(super) frames: Mutex<Frames>,
    pub(super) tables: Mutex<Tables>,
    pub(super) reports: Mutex<Vec<String>>,
    pub(super) granules: Vec<Granule>,
    pub(super) scheduled: Mutex<Vec<Work>>,
    pub(super) schedules: core::sync::atomic::AtomicBool,
    pub(super) notifier: Mutex<Option<Notifier>>,
    pub(super) notified: AtomicUsize,
    pub(super) clears: core::sync::atomic::AtomicBool,
    pub(super) yields: AtomicU64,
    pub(super) on_yield: Mutex<Option<Box<dyn FnMut() + Send>>>,
    pub(super) online: AtomicU32,
    pub(super) total_pages: AtomicU64,
    pub(super) shmlba: usize,
}

// SAFETY: the arena is written by whoever owns a frame only.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

impl Machine {
    pub(super) fn new(nr_frames: usize) -> Self {
        Self::with_cpus(nr_frames, 1)
    }

    pub(super) fn with_cpus(nr_frames: usize, nr_cpus: u32) -> Self {
        let layout = std::alloc::Layout::from_size_align(nr_frames * PAGE_SIZE, 1 << 22).unwrap();
        // SAFETY: the layout is not empty.
        let arena = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap();
        Self {
            arena,
            nr_frames,
            nr_cpus,
            nr_nodes: 1,
            frames: Mutex::new(Frames { taken: std::vec![false; nr_frames], largest: 10, ..Frames::default() }),
            tables: Mutex::default(),
            reports: Mutex::default(),
            granules: std::vec![Granule::BASE, Granule::MIB_2, Granule::GIB_1],
            scheduled: Mutex::default(),
            schedules: core::sync::atomic::AtomicBool::new(false),
            notifier: Mutex::new(None),
            notified: AtomicUsize::new(0),
            clears: core::sync::atomic::AtomicBool::new(false),
            yields: AtomicU64::new(0),
            on_yield: Mutex::new(None),
            online: AtomicU32::new(nr_cpus),
            total_pages: AtomicU64::new(nr_frames as u64),
            shmlba: 4 * PAGE_SIZE,
        }
    }

    /// A window of so many pages on this machine.
    pub(super) fn window(&self, nr_pages: usize) -> Vmalloc<&Self> {
        self.window_at(BASE, nr_pages)
    }

    pub(super) fn window_at(&self, base: usize, nr_pages: usize) -> Vmalloc<&Self> {
        let vmalloc = Vmalloc::new(self);
        // SAFETY: the addresses mean nothing outside of the machine.
        unsafe { vmalloc.init(base..base + nr_pages * PAGE_SIZE) }.unwrap();
        vmalloc
    }

    pub(super) fn in_use(&self) -> usize {
        self.frames.lock().unwrap().in_use
    }

    /// Frames in use that are not page tables.
    pub(super) fn in_use_but_tables(&self) -> usize {
        self.in_use() - self.tables.lock().unwrap().tables.len()
    }

    pub(super) fn nr_mapped(&self) -> usize {
        self.tables.lock().unwrap().pages.len()
    }

    pub(super) fn fail_at(&self, request: Option<u64>) {
        let mut frames = self.frames.lock().unwrap();
        frames.requests = 0;
        frames.fail_at = request;
    }

    pub(super) fn watch(&self) {
        self.frames.lock().unwrap().log = Some(Vec::new());
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.frames.lock().unwrap().log.take().unwrap_or_default()
    }

    pub(super) fn flushes(&self) -> Vec<Range<usize>> {
        core::mem::take(&mut self.tables.lock().unwrap().flushed)
    }

    pub(super) fn reports(&self) -> Vec<String> {
        core::mem::take(&mut self.reports.lock().unwrap())
    }

    /// How a page is mapped: with which protection and entries of which size.
    pub(super) fn entry(&self, at: usize) -> Option<(Prot, u32)> {
        self.tables.lock().unwrap().pages.get(&(at & !(PAGE_SIZE - 1))).map(|&(_, prot, shift)| (prot, shift))
    }

    /// The frame that the running CPU reaches at an address: by its translation cache if that knows one.
    pub(super) fn reach(&self, at: usize) -> Option<Pfn> {
        let page = at & !(PAGE_SIZE - 1);
        let cpu = CPU.get().unwrap_or(0);
        let mut tables = self.tables.lock().unwrap();
        if let Some(&pfn) = tables.tlbs.get(&(cpu, page)) {
            return Some(pfn);
        }
        let pfn = tables.pages.get(&page)?.0;
        tables.tlbs.insert((cpu, page), pfn);
        Some(pfn)
    }

    fn byte(&self, at: usize) -> Option<*mut u8> {
        let pfn = self.reach(at)?;
        let frame = self.address_of(pfn)?;
        Some(frame.as_ptr().wrapping_add(at % PAGE_SIZE))
    }

    pub(super) fn store(&self, at: usize, value: u8) {
        let byte = self.byte(at).unwrap_or_else(|| panic!("fault at {at:#x}"));
        // SAFETY: inside the arena; tests write what they own.
        unsafe { byte.write(value) };
    }

    pub(super) fn load(&self, at: usize) -> u8 {
        let byte = self.byte(at).unwrap_or_else(|| panic!("fault at {at:#x}"));
        // SAFETY: inside the arena; tests read what they own.
        unsafe { byte.read() }
    }

    /// Frames of the test's own; never fails on demand.
    pub(super) fn take_frames(&self, nr: usize) -> Vec<Pfn> {
        (0..nr).map(|_| self.take(0).unwrap()).collect()
    }

    pub(super) fn give_frames(&self, frames: &[Pfn]) {
        for &pfn in frames {
            // SAFETY: tests give back what they took.
            unsafe { self.free_pages(pfn, Order::ZERO) }.unwrap();
        }
    }

    fn see(&self, gfp: Gfp, order: u32, bulk: usize, node: Option<NodeId>) -> bool {
        let mut frames = self.frames.lock().unwrap();
        let seen = Seen { gfp, order, bulk, node, task: TASK.get() };
        if let Some(log) = &mut frames.log {
            log.push(seen);
        }
        frames.requests += 1;
        let failing =
            frames.fail_at.is_some_and(|at| frames.requests == at || (frames.fail_on && frames.requests >= at));
        !failing || gfp.contains(Gfp::NOFAIL)
    }

    fn take(&self, order: u32) -> Option<Pfn> {
        let mut frames = self.frames.lock().unwrap();
        if order > frames.largest {
            return None;
        }
        let nr = 1_usize << order;
        let blocks = self.nr_frames / nr;
        let start =
            if frames.scattered && order == 0 { frames.hint.wrapping_mul(7) % blocks } else { frames.hint / nr };
        let found = (0..blocks)
            .map(|i| (start + i) % blocks)
            .find(|block| !frames.taken[block * nr..(block + 1) * nr].contains(&true))?;
        frames.taken[found * nr..(found + 1) * nr].fill(true);
        frames.in_use += nr;
        frames.hint = if frames.scattered { frames.hint + 13 } else { 0 };
        Some(Pfn(FIRST + (found * nr) as u64))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let layout = std::alloc::Layout::from_size_align(self.nr_frames * PAGE_SIZE, 1 << 22).unwrap();
        // SAFETY: from `new`, with the same layout.
        unsafe { std::alloc::dealloc(self.arena.as_ptr(), layout) };
    }
}
