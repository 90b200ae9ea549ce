//! Models of what meets on several CPUs. `cargo xtask loom --crate vmalloc`.
//!
//! The page source and the page tables are plain structures that no model thread leaves half-way: their order of
//! events is the schedule's. What is explored are vmalloc's own words and locks.

use core::cell::RefCell;
use core::ops::Range;
use core::ptr::NonNull;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use kmem_gfp::{
    AllocContext, AllocError, BulkPages, ExactPages, FrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PAGE_SIZE,
    PageAllocator, Pfn, PfnRange, TaskFlags,
};
use kmem_sync::{Cpu, CpuId, IrqState};
use loom::sync::Arc;
use loom::thread;

use crate::area::{Area, Owned, State};
use crate::node::AreaStack;
use crate::{AddressSpace, CpuSet, Granule, MapError, Prot, Run, TableSource, VmFlags, Vmalloc, VmallocEnv};

const BASE: usize = 1 << 30;
const FRAMES: usize = 400;

loom::thread_local! {
    static CPU: RefCell<u32> = RefCell::new(0);
    static TASK: RefCell<TaskFlags> = RefCell::new(TaskFlags::empty());
}

fn become_cpu(cpu: u32) {
    CPU.with(|mine| *mine.borrow_mut() = cpu);
}

fn become_task(flags: TaskFlags) {
    TASK.with(|mine| *mine.borrow_mut() = flags);
}

#[derive(Default)]
struct Inside {
    taken: BTreeSet<u64>,
    mapped: BTreeMap<usize, Pfn>,
    tlbs: BTreeMap<(u32, usize), Pfn>,
}

struct Machine {
    arena: NonNull<u8>,
    nr_cpus: u32,
    inside: std::sync::Mutex<Inside>,
}

// SAFETY: the arena is written by whoever owns a frame only.
unsafe impl Sync for Machine {}
// SAFETY: as above.
unsafe impl Send for Machine {}

impl Machine {
    fn new(nr_cpus: u32) -> Self {
        let layout = std::alloc::Layout::from_size_align(FRAMES * PAGE_SIZE, 1 << 20).unwrap();
        // SAFETY: the layout is not empty.
        let arena = NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
        Self { arena, nr_cpus, inside: std::sync::Mutex::default() }
    }

    fn reach(&self, cpu: u32, at: usize) -> Option<Pfn> {
        let mut inside = self.inside.lock().unwrap();
        if let Some(&pfn) = inside.tlbs.get(&(cpu, at)) {
            return Some(pfn);
        }
        let pfn = *inside.mapped.get(&at)?;
        inside.tlbs.insert((cpu, at), pfn);
        Some(pfn)
    }

    fn nr_mapped(&self) -> usize {
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

fn window(nr_cpus: u32, nr_pages: usize) -> Arc<Vmalloc<Machine>> {
    let vmalloc = Vmalloc::new(Machine::new(nr_cpus));
    // SAFETY: the addresses are only numbers.
    unsafe { vmalloc.init(BASE..BASE + nr_pages * PAGE_SIZE) }.unwrap();
    Arc::new(vmalloc)
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.max_branches = 20_000;
    builder.check(f);
}

fn alloc(vmalloc: &Vmalloc<Machine>) -> usize {
    vmalloc.vmalloc(1).unwrap().addr().get()
}

fn free(vmalloc: &Vmalloc<Machine>, at: usize) -> bool {
    // SAFETY: models use nothing after this.
    unsafe { vmalloc.vfree(at as *mut u8) }.is_ok()
}

#[test]
fn a_range_is_handed_out_again_only_after_its_flush() {
    model(|| {
        let vmalloc = window(1, 4);
        let old = alloc(&vmalloc);
        alloc(&vmalloc);
        vmalloc.env().reach(1, old).unwrap();
        assert!(free(&vmalloc, old));
        // So that the new area has another frame than the old one.
        vmalloc.env().alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        let purger = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || vmalloc.purge()
        });
        // The window is full but for the freed range: it comes from the pool, or after a purge of our own.
        let new = alloc(&vmalloc);
        assert_eq!(new, old);
        assert_eq!(vmalloc.env().reach(1, new), vmalloc.env().translate(new), "an old translation is left");
        purger.join().unwrap();
    });
}

#[test]
fn of_a_free_in_an_interrupt_and_one_in_a_task_one_succeeds() {
    model(|| {
        let vmalloc = window(2, 8);
        let area = alloc(&vmalloc);
        let other = alloc(&vmalloc);
        let interrupt = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || {
                become_cpu(1);
                become_task(TaskFlags::IN_IRQ);
                free(&vmalloc, area)
            }
        });
        let mine = free(&vmalloc, area);
        assert!(free(&vmalloc, other));
        let theirs = interrupt.join().unwrap();
        assert!(mine ^ theirs, "exactly one");
        assert_eq!(vmalloc.run_deferred(), usize::from(theirs));
        assert_eq!(vmalloc.env().nr_mapped(), 0);
    });
}

#[test]
fn frees_put_off_are_done_once() {
    model(|| {
        let vmalloc = window(1, 8);
        let [first, second] = [(); 2].map(|()| alloc(&vmalloc));
        let interrupt = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || {
                become_task(TaskFlags::IN_SOFTIRQ);
                assert!(free(&vmalloc, first));
            }
        });
        // Takes the list of its CPU over, if something is on it.
        assert!(free(&vmalloc, second));
        interrupt.join().unwrap();
        vmalloc.run_deferred();
        assert_eq!(vmalloc.env().nr_mapped(), 0);
        assert_eq!(vmalloc.stats().lazy_pages, 4);
    });
}

#[test]
fn ranges_that_change_nodes_have_one_owner() {
    model(|| {
        let vmalloc = window(2, 16);
        let made: Vec<usize> = (0..2).map(|_| alloc(&vmalloc)).collect();
        let other = thread::spawn({
            let (vmalloc, made) = (vmalloc.clone(), made.clone());
            move || {
                become_cpu(1);
                assert!(free(&vmalloc, made[0]));
                vmalloc.purge();
                alloc(&vmalloc)
            }
        });
        assert!(free(&vmalloc, made[1]));
        let mine = alloc(&vmalloc);
        let theirs = other.join().unwrap();
        assert_ne!(mine, theirs);
        assert_eq!(vmalloc.live_areas(), 2);
        assert_eq!(vmalloc.env().nr_mapped(), 2);
    });
}

#[test]
fn a_block_goes_once_and_comes_back_clean() {
    model(|| {
        let vmalloc = window(1, 128);
        let frame = vmalloc.env().alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        let frames = [frame; 64];
        // SAFETY: the frames are ours.
        let [low, high] = [(); 2].map(|()| unsafe { vmalloc.vm_map_ram(&frames, None) }.unwrap().addr().get());
        vmalloc.env().reach(1, low).unwrap();
        let other = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || {
                // SAFETY: not used any more.
                unsafe { vmalloc.vm_unmap_ram(high as *mut u8, 64) }.unwrap();
            }
        });
        // SAFETY: not used any more.
        unsafe { vmalloc.vm_unmap_ram(low as *mut u8, 64) }.unwrap();
        other.join().unwrap();
        assert_eq!(vmalloc.stats().lazy_pages, 128, "the block has gone, once");
        // The whole window was the block.
        let new_frame = vmalloc.env().alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        // SAFETY: the frame is ours.
        let again = unsafe { vmalloc.vm_map_ram(&[new_frame], None) }.unwrap().addr().get();
        assert_eq!(again, low);
        assert_eq!(vmalloc.env().reach(1, again), Some(new_frame), "an old translation is left");
    });
}

#[test]
fn a_purge_and_the_last_unmapping_do_not_both_take_a_block() {
    model(|| {
        let vmalloc = window(1, 128);
        let frame = vmalloc.env().alloc_pages(Gfp::KERNEL, Order::ZERO, None).unwrap();
        // SAFETY: the frames are ours.
        let at = unsafe { vmalloc.vm_map_ram(&[frame; 64], None) }.unwrap().addr().get();
        let other = thread::spawn({
            let vmalloc = vmalloc.clone();
            // Wants the whole window: purges under exhaustion.
            move || vmalloc.get_vm_area(128 * PAGE_SIZE, 1, VmFlags::NO_GUARD, None, Gfp::KERNEL).is_ok()
        });
        // SAFETY: not used any more.
        unsafe { vmalloc.vm_unmap_ram(at as *mut u8, 64) }.unwrap();
        let got_all = other.join().unwrap();
        assert_eq!(vmalloc.env().nr_mapped(), 0);
        assert_eq!(vmalloc.live_areas(), u64::from(got_all));
    });
}

#[test]
fn a_reader_sees_an_area_whole_or_not_at_all() {
    model(|| {
        let vmalloc = window(1, 8);
        let at = alloc(&vmalloc);
        let reader = thread::spawn({
            let vmalloc = vmalloc.clone();
            move || {
                let mut bytes = [9; 1];
                assert_eq!(vmalloc.vread(at as *const u8, &mut bytes), 1);
                assert!(bytes[0] <= 1);
                if let Some(info) = vmalloc.find_vm_area(at as *const u8) {
                    assert!(info.range.start == at && (info.nr_pages == 1 && info.requested_size <= 2), "{info:?}");
                }
            }
        });
        assert!(free(&vmalloc, at));
        vmalloc.purge();
        let again = vmalloc.vmalloc(2).unwrap().addr().get();
        assert_eq!(again, at, "the same range, another area");
        reader.join().unwrap();
    });
}

#[test]
fn a_claim_waits_for_readers_and_publishing_shows_everything() {
    loom::model(|| {
        let area: &'static Area = std::boxed::Box::leak(std::boxed::Box::new(Area::new()));
        // SAFETY: made here, on no list.
        let mut owned = unsafe { Owned::from_list(NonNull::from(area)) };
        owned.assign(7, 2);
        owned.body(|body| body.requested = 1);
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                if let Some(pinned) = area.pin(8) {
                    let seen = pinned.with(|body| body.requested);
                    assert!(seen == 1 || seen == 2, "{seen}");
                }
            }
        });
        owned.publish();
        let pinned = area.pin(7).unwrap();
        let mut owned = pinned.claim().unwrap();
        area.wait_for_readers(&kmem_sync_cpu());
        owned.body(|body| body.requested = 2);
        owned.publish();
        reader.join().unwrap();
    });
}

/// A CPU for spinning only.
fn kmem_sync_cpu() -> kmem_sync::SingleCpu {
    // SAFETY: nothing but `relax` is called.
    unsafe { kmem_sync::SingleCpu::new() }
}

#[test]
fn of_two_claims_one_succeeds() {
    loom::model(|| {
        let area: &'static Area = std::boxed::Box::leak(std::boxed::Box::new(Area::new()));
        // SAFETY: made here, on no list.
        let mut owned = unsafe { Owned::from_list(NonNull::from(area)) };
        owned.assign(7, 2);
        owned.publish();
        let other = thread::spawn(move || area.claim_exact(7).is_some());
        let mine = area.claim_exact(7).is_some();
        assert!(mine ^ other.join().unwrap(), "exactly one");
    });
}

#[test]
fn a_claim_sees_what_was_published() {
    loom::model(|| {
        let area: &'static Area = std::boxed::Box::leak(std::boxed::Box::new(Area::new()));
        let publisher = thread::spawn(move || {
            // SAFETY: made above, on no list.
            let mut owned = unsafe { Owned::from_list(NonNull::from(area)) };
            owned.assign(7, 2);
            owned.body(|body| body.requested = 5);
            owned.publish();
        });
        let mut owned = loop {
            match area.claim_exact(7) {
                Some(owned) => break owned,
                None => thread::yield_now(),
            }
        };
        assert_eq!(owned.body(|body| body.requested), 5);
        publisher.join().unwrap();
    });
}

#[test]
fn a_stack_hands_each_area_to_one_taker_with_its_contents() {
    loom::model(|| {
        let stack = Arc::new(AreaStack::new());
        let areas: [&'static Area; 2] = [(); 2].map(|()| &*std::boxed::Box::leak(std::boxed::Box::new(Area::new())));
        fn count(stack: &AreaStack) -> usize {
            let mut nr = 0;
            for mut area in stack.take() {
                assert_eq!(area.body(|body| body.requested), 3);
                nr += 1;
            }
            nr
        }
        let taker = thread::spawn({
            let stack = stack.clone();
            move || {
                let first = count(&stack);
                first + count(&stack)
            }
        });
        for area in areas {
            // SAFETY: made above, on no list.
            let mut owned = unsafe { Owned::from_list(NonNull::from(area)) };
            owned.assign(1, 1);
            owned.body(|body| body.requested = 3);
            owned.set_state(State::Lazy);
            stack.push(owned);
        }
        let early = taker.join().unwrap();
        assert_eq!(early + count(&stack), 2);
    });
}
