//! The machine of the tests: frames with an arena behind them, page tables in a map, one translation cache per CPU, a
//! context that tests set, failures on demand.

use core::cell::Cell;
use core::ops::Range;
use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::string::{String, ToString};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::vec::Vec;

use kmem_gfp::{
    AllocContext, AllocError, BulkPages, ExactPages, FrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE,
    PageAllocator, Pfn, PfnRange, TaskFlags,
};
use kmem_sync::{Cpu, CpuId, IrqState};

use crate::{
    AddressSpace, CpuSet, ExhaustionNotifier, Granule, MapError, Prot, Run, TableSource, Vmalloc, VmallocEnv, Work,
};

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

// SAFETY: each test thread has a number of its own (1, 3); nothing interrupts (2, 4); `SeqCst` for all (5).
unsafe impl Cpu for Machine {
    const REENTRANT: bool = false;

    fn nr_cpus(&self) -> u32 {
        self.nr_cpus
    }
    fn try_pin(&self) -> Option<CpuId> {
        CPU.get().map(CpuId)
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn relax(&self) {
        std::thread::yield_now();
    }
    fn barrier_all_cpus(&self) {
        core::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl AllocContext for Machine {
    fn task_flags(&self) -> TaskFlags {
        TASK.get()
    }
    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags {
        let before = TASK.get();
        TASK.set(before.union(set).difference(clear));
        before
    }
    fn yield_now(&self) {
        self.yields.fetch_add(1, Ordering::Relaxed);
        if let Some(f) = &mut *self.on_yield.lock().unwrap() {
            f();
        }
        std::thread::yield_now();
    }
    fn report(&self, line: core::fmt::Arguments<'_>) {
        self.reports.lock().unwrap().push(line.to_string());
    }
}

// SAFETY: frames are handed out once until given back.
unsafe impl PageAllocator for Machine {
    fn alloc_pages(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let error = AllocError::NoMemory { order, gfp };
        if !self.see(gfp, order.get(), 0, node) {
            return Err(error);
        }
        let pfn = self.take(order.get()).ok_or(error)?;
        if gfp.contains(Gfp::ZERO) {
            // SAFETY: the block is ours until handed out.
            unsafe { self.address_of(pfn).unwrap().write_bytes(0, order.size_bytes()) };
        }
        Ok(pfn)
    }
    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        // SAFETY: the caller's promise.
        unsafe { self.free_range(PfnRange::block(pfn, order).unwrap()) }
    }
    fn node_of(&self, pfn: Pfn) -> NodeId {
        NodeId(((pfn.0 - FIRST) * u64::from(self.nr_nodes) / self.nr_frames as u64) as u32)
    }
    fn nr_nodes(&self) -> u32 {
        self.nr_nodes
    }
}

// SAFETY: as above.
unsafe impl BulkPages for Machine {
    fn alloc_pages_bulk(&self, gfp: Gfp, node: Option<NodeId>, pages: &mut [Option<Pfn>]) -> usize {
        if !self.see(gfp, 0, pages.len(), node) {
            return 0;
        }
        for (i, slot) in pages.iter_mut().enumerate() {
            if slot.is_none() {
                *slot = self.take(0);
                if slot.is_none() {
                    return i;
                }
                if gfp.contains(Gfp::ZERO) {
                    // SAFETY: the frame is ours until handed out.
                    unsafe { self.address_of(slot.unwrap()).unwrap().write_bytes(0, PAGE_SIZE) };
                }
            }
        }
        pages.len()
    }
    unsafe fn free_pages_bulk(&self, pages: &mut [Option<Pfn>]) -> Result<(), FreeError> {
        for slot in pages {
            if let Some(pfn) = slot.take() {
                // SAFETY: the caller's promise.
                unsafe { self.free_pages(pfn, Order::ZERO) }?;
            }
        }
        Ok(())
    }
}

// SAFETY: as above.
unsafe impl ExactPages for Machine {
    fn alloc_pages_exact(&self, gfp: Gfp, _nr: usize, _node: Option<NodeId>) -> Result<PfnRange, AllocError> {
        Err(AllocError::NoMemory { order: Order::ZERO, gfp })
    }
    fn alloc_pages_at(&self, gfp: Gfp, _pfn: Pfn, order: Order) -> Result<(), AllocError> {
        Err(AllocError::NoMemory { order, gfp })
    }
    unsafe fn free_range(&self, range: PfnRange) -> Result<(), FreeError> {
        let mut frames = self.frames.lock().unwrap();
        for pfn in range.iter() {
            let i = (pfn.0 - FIRST) as usize;
            if !core::mem::replace(&mut frames.taken[i], false) {
                panic!("{pfn} is freed twice");
            }
            frames.in_use -= 1;
        }
        Ok(())
    }
}

static NO_WORDS: FrameWords = FrameWords::new();

// SAFETY: frames lie one after the other in the arena.
unsafe impl FrameTable for Machine {
    fn words(&self, _pfn: Pfn) -> Option<&FrameWords> {
        Some(&NO_WORDS)
    }
    fn address_of(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        let i = pfn.0.checked_sub(FIRST)? as usize;
        // SAFETY: inside the arena.
        (i < self.nr_frames).then(|| unsafe { self.arena.add(i * PAGE_SIZE) })
    }
    fn frame_of(&self, address: usize) -> Option<Pfn> {
        let offset = address.checked_sub(self.arena.addr().get())?;
        (offset < self.nr_frames * PAGE_SIZE).then(|| Pfn(FIRST + (offset / PAGE_SIZE) as u64))
    }
}

// SAFETY: pages are reached by the tables or by a translation that no flush has covered.
unsafe impl AddressSpace for Machine {
    fn granules(&self) -> &[Granule] {
        &self.granules
    }

    unsafe fn map(
        &self,
        at: usize,
        runs: &[Run],
        prot: Prot,
        largest: Granule,
        source: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        assert_eq!(at % PAGE_SIZE, 0);
        self.tables.lock().unwrap().map_calls += 1;
        let mut address = at;
        for run in runs {
            let mut pfn = run.first().0;
            let end = pfn + run.nr_pages();
            while pfn < end {
                let granule = self
                    .granules
                    .iter()
                    .rev()
                    .find(|g| {
                        **g <= largest
                            && address.is_multiple_of(g.size_bytes())
                            && pfn % g.nr_pages() == 0
                            && end - pfn >= g.nr_pages()
                    })
                    .unwrap();
                let region = address >> 21;
                let new_table = *granule == Granule::BASE && !self.tables.lock().unwrap().tables.contains(&region);
                if new_table {
                    // Outside of the lock, as a page table walk would be.
                    let table = source.table().map_err(MapError::NoTable)?;
                    if !self.tables.lock().unwrap().tables.insert(region) {
                        // SAFETY: ours, and somebody else was first.
                        unsafe { self.free_pages(table, Order::ZERO) }.unwrap();
                    }
                }
                let mut tables = self.tables.lock().unwrap();
                if tables.refuse {
                    return Err(MapError::Refused { address });
                }
                for i in 0..granule.nr_pages() {
                    let page = address + i as usize * PAGE_SIZE;
                    if tables.pages.insert(page, (Pfn(pfn + i), prot, granule.shift())).is_some() {
                        panic!("{page:#x} is mapped twice");
                    }
                }
                pfn += granule.nr_pages();
                address += granule.size_bytes();
            }
        }
        Ok(())
    }

    unsafe fn unmap(&self, at: usize, size_bytes: usize) {
        let mut tables = self.tables.lock().unwrap();
        let gone: Vec<usize> = tables.pages.range(at..at + size_bytes).map(|(&page, _)| page).collect();
        for page in gone {
            tables.pages.remove(&page);
        }
    }

    unsafe fn protect(
        &self,
        at: usize,
        size_bytes: usize,
        prot: Prot,
        _tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        let mut tables = self.tables.lock().unwrap();
        for page in (at..at + size_bytes).step_by(PAGE_SIZE) {
            tables.pages.get_mut(&page).ok_or(MapError::NotMapped { address: page })?.1 = prot;
        }
        Ok(())
    }

    fn flush(&self, range: Range<usize>, cpus: CpuSet<'_>) {
        let mut tables = self.tables.lock().unwrap();
        tables.tlbs.retain(|&(cpu, page), _| !(range.contains(&page) && cpus.contains(cpu)));
        tables.flushed.push(range);
    }

    fn translate(&self, at: usize) -> Option<Pfn> {
        self.tables.lock().unwrap().pages.get(&(at & !(PAGE_SIZE - 1))).map(|&(pfn, ..)| pfn)
    }

    unsafe fn read(&self, at: usize, to: NonNull<u8>, len: usize) {
        for i in 0..len {
            let value = self.load(at + i);
            // SAFETY: there is room by the caller's promise.
            unsafe { to.add(i).write(value) };
        }
    }
    unsafe fn copy(&self, from: usize, to: usize, len: usize) {
        (0..len).for_each(|i| self.store(to + i, self.load(from + i)));
    }
    unsafe fn zero(&self, at: usize, len: usize) {
        (0..len).for_each(|i| self.store(at + i, 0));
    }
    fn reset_direct_map(&self, runs: &[Run]) {
        self.tables.lock().unwrap().reset.extend_from_slice(runs);
    }
}

impl ExhaustionNotifier for Machine {
    fn address_space_exhausted(&self, nr_pages: u64) -> u64 {
        self.notified.fetch_add(1, Ordering::Relaxed);
        self.notifier.lock().unwrap().as_mut().map_or(0, |f| f(nr_pages))
    }
}

impl VmallocEnv for Machine {
    type Cpu = Self;
    type Pages = Self;
    type Frames = Self;
    type Context = Self;
    type Space = Self;

    fn cpu(&self) -> &Self {
        self
    }
    fn pages(&self) -> &Self {
        self
    }
    fn frames(&self) -> &Self {
        self
    }
    fn context(&self) -> &Self {
        self
    }
    fn space(&self) -> &Self {
        self
    }
    fn total_pages(&self) -> u64 {
        self.total_pages.load(Ordering::Relaxed)
    }
    fn online_cpus(&self) -> u32 {
        self.online.load(Ordering::Relaxed)
    }
    fn schedule(&self, work: Work) -> bool {
        self.scheduled.lock().unwrap().push(work);
        self.schedules.load(Ordering::Relaxed)
    }
    fn notifier(&self) -> &dyn ExhaustionNotifier {
        self
    }
    fn shared_alignment(&self) -> usize {
        self.shmlba
    }
    fn clears_memory(&self) -> bool {
        self.clears.load(Ordering::Relaxed)
    }
}
