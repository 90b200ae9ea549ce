//! The machine of the models: frames, page tables and translation caches as plain structures.

use core::cell::RefCell;
use core::ops::Range;
use core::ptr::NonNull;
use std::collections::{BTreeMap, BTreeSet};

use kmem_gfp::{
    AllocContext, AllocError, BulkPages, ExactPages, FrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE,
    PageAllocator, Pfn, PfnRange, TaskFlags,
};
use kmem_sync::{Cpu, CpuId, IrqState};
use loom::thread;

use crate::{AddressSpace, CpuSet, Granule, MapError, Prot, Run, TableSource, VmallocEnv};

pub(super) const BASE: usize = 1 << 30;
const FRAMES: usize = 400;

loom::thread_local! {
    static CPU: RefCell<u32> = RefCell::new(0);
    static TASK: RefCell<TaskFlags> = RefCell::new(TaskFlags::empty());
}

pub(super) fn become_cpu(cpu: u32) {
    CPU.with(|mine| *mine.borrow_mut() = cpu);
}

pub(super) fn become_task(flags: TaskFlags) {
    TASK.with(|mine| *mine.borrow_mut() = flags);
}

#[derive(Default)]
struct Inside {
    taken: BTreeSet<u64>,
    mapped: BTreeMap<usize, Pfn>,
    tlbs: BTreeMap<(u32, usize), Pfn>,
}

pub(super) struct Machine {
    arena: NonNull<u8>,
    nr_cpus: u32,
    inside: std::sync::Mutex<Inside>,
}

// SAFETY: the arena is written by whoever owns a frame only.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

impl Machine {
    pub(super) fn new(nr_cpus: u32) -> Self {
        let layout = std::alloc::Layout::from_size_align(FRAMES * PAGE_SIZE, 1 << 20).unwrap();
        // SAFETY: the layout is not empty.
        let arena = NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
        Self { arena, nr_cpus, inside: std::sync::Mutex::default() }
    }

    pub(super) fn reach(&self, cpu: u32, at: usize) -> Option<Pfn> {
        let mut inside = self.inside.lock().unwrap();
        if let Some(&pfn) = inside.tlbs.get(&(cpu, at)) {
            return Some(pfn);
        }
        let pfn = *inside.mapped.get(&at)?;
        inside.tlbs.insert((cpu, at), pfn);
        Some(pfn)
    }

    pub(super) fn nr_mapped(&self) -> usize {
        self.inside.lock().unwrap().mapped.len()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let layout = std::alloc::Layout::from_size_align(FRAMES * PAGE_SIZE, 1 << 20).unwrap();
        // SAFETY: from `new`, with the same layout.
        unsafe { std::alloc::dealloc(self.arena.as_ptr(), layout) };
    }
}

// SAFETY: each model thread has a number of its own (1, 3); nothing interrupts (2, 4); a full fence (5).
unsafe impl Cpu for Machine {
    const REENTRANT: bool = false;

    fn nr_cpus(&self) -> u32 {
        self.nr_cpus
    }
    fn try_pin(&self) -> Option<CpuId> {
        Some(CpuId(CPU.with(|cpu| *cpu.borrow())))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {
        loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
    }
}

impl AllocContext for Machine {
    fn task_flags(&self) -> TaskFlags {
        TASK.with(|task| *task.borrow())
    }
    fn update_task_flags(&self, _set: TaskFlags, _clear: TaskFlags) -> TaskFlags {
        TaskFlags::empty()
    }
    fn yield_now(&self) {
        thread::yield_now();
    }
}

// SAFETY: frames are handed out once until given back.
unsafe impl PageAllocator for Machine {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let nr = order.nr_pages() as u64;
        let mut inside = self.inside.lock().unwrap();
        let first = (1..(FRAMES as u64 - nr) / nr)
            .map(|block| block * nr)
            .find(|first| (*first..first + nr).all(|frame| !inside.taken.contains(&frame)))
            .ok_or(AllocError::NoMemory { order, gfp })?;
        inside.taken.extend(first..first + nr);
        Ok(Pfn(first))
    }
    unsafe fn free_pages(&self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        // SAFETY: the caller's promise.
        unsafe { self.free_range(PfnRange::block(pfn, order).unwrap()) }
    }
}
// SAFETY: as above.
unsafe impl BulkPages for Machine {
    fn alloc_pages_bulk(&self, _gfp: Gfp, _node: Option<NodeId>, _pages: &mut [Option<Pfn>]) -> usize {
        0
    }
    unsafe fn free_pages_bulk(&self, pages: &mut [Option<Pfn>]) -> Result<(), FreeError> {
        for pfn in pages.iter_mut().filter_map(Option::take) {
            // SAFETY: the caller's promise.
            unsafe { self.free_pages(pfn, Order::ZERO) }?;
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
        let mut inside = self.inside.lock().unwrap();
        for pfn in range.iter() {
            assert!(inside.taken.remove(&pfn.0), "{pfn} is freed twice");
        }
        Ok(())
    }
}
// SAFETY: frames lie one after the other in the arena.
unsafe impl FrameTable for Machine {
    fn words(&self, _pfn: Pfn) -> Option<&FrameWords> {
        None
    }
    fn address_of(&self, pfn: Pfn) -> Option<NonNull<u8>> {
        // SAFETY: inside the arena.
        Some(unsafe { self.arena.add(pfn.0 as usize * PAGE_SIZE) })
    }
    fn frame_of(&self, address: usize) -> Option<Pfn> {
        Some(Pfn((address.checked_sub(self.arena.addr().get())? / PAGE_SIZE) as u64))
    }
}
// SAFETY: pages are reached by the tables or by a translation that no flush has covered.
unsafe impl AddressSpace for Machine {
    fn granules(&self) -> &[Granule] {
        &[Granule::BASE]
    }
    unsafe fn map(
        &self,
        at: usize,
        runs: &[Run],
        _prot: Prot,
        _largest: Granule,
        _tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        let mut inside = self.inside.lock().unwrap();
        let frames = runs.iter().flat_map(|run| run.range().iter());
        for (i, pfn) in frames.enumerate() {
            assert_eq!(inside.mapped.insert(at + i * PAGE_SIZE, pfn), None, "mapped twice");
        }
        Ok(())
    }
    unsafe fn unmap(&self, at: usize, size_bytes: usize) {
        let mut inside = self.inside.lock().unwrap();
        inside.mapped.retain(|page, _| !(at..at + size_bytes).contains(page));
    }
    unsafe fn protect(
        &self,
        _at: usize,
        _size_bytes: usize,
        _prot: Prot,
        _tables: &mut dyn TableSource,
    ) -> Result<(), MapError> {
        Ok(())
    }
    fn flush(&self, range: Range<usize>, _cpus: CpuSet<'_>) {
        // Other CPUs run while a flush is on its way.
        thread::yield_now();
        self.inside.lock().unwrap().tlbs.retain(|(_, page), _| !range.contains(page));
    }
    fn translate(&self, at: usize) -> Option<Pfn> {
        self.inside.lock().unwrap().mapped.get(&(at & !(PAGE_SIZE - 1))).copied()
    }
    unsafe fn read(&self, at: usize, to: NonNull<u8>, len: usize) {
        let look = || {
            let inside = self.inside.lock().unwrap();
            let pfn = inside.mapped.get(&(at & !(PAGE_SIZE - 1))).copied();
            assert!(pfn.is_some_and(|pfn| inside.taken.contains(&pfn.0)), "reads what is gone");
            pfn
        };
        let before = look();
        // Anybody else may run in the middle of a copy.
        thread::yield_now();
        assert_eq!(look(), before, "changes while it is read");
        // SAFETY: there is room by the caller's promise.
        unsafe { to.write_bytes(1, len) };
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
}
