//! The machine's parts, as vmalloc's seams want them.

use core::ops::Range;
use core::ptr::NonNull;
use std::string::ToString;
use std::sync::atomic::Ordering;
use std::vec::Vec;

use kmem_gfp::{
    AllocContext, AllocError, BulkPages, ExactPages, FrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE,
    PageAllocator, Pfn, PfnRange, TaskFlags,
};
use kmem_sync::{Cpu, CpuId, IrqState};

use super::{CPU, FIRST, Machine, TASK};
use crate::{AddressSpace, CpuSet, ExhaustionNotifier, Granule, MapError, Prot, Run, TableSource, VmallocEnv, Work};

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
