//! Two toy allocators, as different from kmalloc and vmalloc as the traits allow: a list of host blocks of a power of two, and
//! first fit over the pages of one arena. Both count, can be told to fail, and remember what they were asked for.

#![cfg_attr(loom, allow(dead_code))]

use core::ptr::NonNull;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use kmem_gfp::{AllocContext, AllocError, Gfp, NodeId, Order, PAGE_SIZE, TaskFlags};
use kmem_kmalloc::{KfreeError, KreallocError, ObjectAllocator, RcuHead, ZERO_SIZE_PTR, is_zero_or_null};
use kmem_sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use kmem_sync::{Cpu, CpuId, Grace, GracePeriod, IrqState, SpinLock};
use kmem_vmalloc::{VfreeError, VirtAllocator, VmallocError};

use crate::KvmallocEnv;

/// The largest block that the toy gives: four pages.
pub(super) const LARGEST_BLOCK: usize = 4 * PAGE_SIZE;

/// One CPU for everybody: no allocator here keeps anything per CPU.
#[derive(Debug)]
pub(super) struct ToyCpu;

// SAFETY: never pins (1, 3); handlers do not exist (2, 4); the fence is a full one (5).
unsafe impl Cpu for ToyCpu {
    const REENTRANT: bool = false;
    fn nr_cpus(&self) -> u32 {
        1
    }
    fn try_pin(&self) -> Option<CpuId> {
        None
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {
        kmem_sync::atomic::fence(Ordering::SeqCst);
    }
}

/// Lets one call fail, or every one.
#[derive(Debug)]
pub(super) struct Faults {
    calls: AtomicUsize,
    from: AtomicUsize,
    to: AtomicUsize,
}

impl Faults {
    fn new() -> Self {
        Self { calls: AtomicUsize::new(0), from: AtomicUsize::new(usize::MAX), to: AtomicUsize::new(usize::MAX) }
    }

    /// Calls `range` from here on fail.
    pub(super) fn fail(&self, range: core::ops::Range<usize>) {
        self.calls.store(0, Ordering::Relaxed);
        self.from.store(range.start, Ordering::Relaxed);
        self.to.store(range.end, Ordering::Relaxed);
    }

    pub(super) fn none(&self) {
        self.fail(usize::MAX..usize::MAX);
    }

    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }

    fn now(&self) -> bool {
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        call >= self.from.load(Ordering::Relaxed) && call < self.to.load(Ordering::Relaxed)
    }
}

/// What an allocator was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) size: usize,
    pub(super) align: usize,
    pub(super) gfp: Gfp,
    pub(super) node: Option<NodeId>,
    pub(super) huge: bool,
}

/// Blocks of a power of two.
#[derive(Debug)]
pub(super) struct ToyObjects {
    /// Size and whether it waits for readers, by address.
    blocks: SpinLock<BTreeMap<usize, (usize, bool)>>,
    pub(super) asked: SpinLock<Vec<Asked>>,
    pub(super) faults: Faults,
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, size).unwrap()
}

fn pointer(address: usize) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(address)
}

impl ToyObjects {
    fn new() -> Self {
        Self { blocks: SpinLock::new(BTreeMap::new()), asked: SpinLock::new(Vec::new()), faults: Faults::new() }
    }

    pub(super) fn in_use(&self) -> usize {
        self.blocks.with(&ToyCpu, |blocks| blocks.len())
    }

    fn find(&self, block: *const u8) -> Result<usize, KfreeError> {
        let found = self.blocks.with(&ToyCpu, |blocks| blocks.get(&block.addr()).copied());
        found.map(|(size, _)| size).ok_or(KfreeError::NotMemory { address: block.addr() })
    }
}

// SAFETY: host blocks of a power of two, aligned to themselves, each handed out once; the map knows them.
unsafe impl ObjectAllocator for ToyObjects {
    fn alloc(&self, size: usize, gfp: Gfp, node: Option<NodeId>) -> Result<NonNull<u8>, AllocError> {
        self.asked.with(&ToyCpu, |asked| asked.push(Asked { size, align: 1, gfp, node, huge: false }));
        if size == 0 {
            return Ok(ZERO_SIZE_PTR);
        }
        if size > LARGEST_BLOCK {
            return Err(AllocError::TooLarge { size_bytes: size });
        }
        if self.faults.now() && !gfp.contains(Gfp::NOFAIL) {
            return Err(AllocError::NoMemory { order: Order::ZERO, gfp });
        }
        let usable = size.next_power_of_two().max(16);
        // SAFETY: not of size zero.
        let block = NonNull::new(unsafe { alloc(layout(usable)) }).unwrap();
        // SAFETY: new, of that size.
        unsafe { block.write_bytes(if gfp.contains(Gfp::ZERO) { 0 } else { 0xcc }, usable) };
        self.blocks.with(&ToyCpu, |blocks| blocks.insert(block.as_ptr().expose_provenance(), (usable, false)));
        Ok(block)
    }

    unsafe fn free(&self, block: *mut u8) -> Result<(), KfreeError> {
        if is_zero_or_null(block.addr()) {
            return Ok(());
        }
        let found = self.blocks.with(&ToyCpu, |blocks| blocks.remove(&block.addr()));
        let (usable, _) = found.ok_or(KfreeError::NotMemory { address: block.addr() })?;
        // SAFETY: from `alloc`, taken out of the map once; the caller's promise.
        unsafe {
            block.write_bytes(0xdd, usable);
            dealloc(pointer(block.addr()), layout(usable));
        }
        Ok(())
    }

    unsafe fn free_rcu(&self, block: *mut u8, _: NonNull<RcuHead>) -> Result<(), KfreeError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.free_rcu_mightsleep(block) }
    }

    unsafe fn free_rcu_mightsleep(&self, block: *mut u8) -> Result<(), KfreeError> {
        if is_zero_or_null(block.addr()) {
            return Ok(());
        }
        self.blocks.with(&ToyCpu, |blocks| match blocks.get_mut(&block.addr()) {
            Some((_, waits)) if !*waits => {
                *waits = true;
                Ok(())
            }
            _ => Err(KfreeError::NotMemory { address: block.addr() }),
        })
    }

    fn rcu_barrier(&self) {
        let waiting: Vec<usize> = self
            .blocks
            .with(&ToyCpu, |blocks| blocks.iter().filter(|(_, (_, waits))| *waits).map(|(at, _)| *at).collect());
        for block in waiting {
            // SAFETY: given up.
            unsafe { self.free(pointer(block)) }.unwrap();
        }
    }

    unsafe fn resize(
        &self,
        block: *mut u8,
        new_bytes: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<NonNull<u8>, KreallocError> {
        if is_zero_or_null(block.addr()) {
            return Ok(self.alloc(new_bytes, gfp, node)?);
        }
        let usable = self.find(block)?;
        if new_bytes == 0 {
            // SAFETY: the caller's promise is the same.
            unsafe { self.free(block)? };
            return Ok(ZERO_SIZE_PTR);
        }
        if new_bytes <= usable && block.addr().is_multiple_of(align) {
            if gfp.contains(Gfp::ZERO) {
                // SAFETY: inside the block.
                unsafe { block.add(new_bytes).write_bytes(0, usable - new_bytes) };
            }
            return Ok(NonNull::new(block).unwrap());
        }
        let new = self.alloc(new_bytes, gfp, node)?;
        // SAFETY: two blocks in use.
        unsafe { new.as_ptr().copy_from_nonoverlapping(block, usable.min(new_bytes)) };
        // SAFETY: the caller's promise is the same.
        unsafe { self.free(block)? };
        Ok(new)
    }

    unsafe fn usable_size(&self, block: *const u8) -> Result<usize, KfreeError> {
        if is_zero_or_null(block.addr()) { Ok(0) } else { self.find(block) }
    }
}

/// Pages of one arena.
#[derive(Debug)]
pub(super) struct ToyAreas {
    base: usize,
    nr_pages: usize,
    /// Bytes asked for and pages, by first page; what was put off is still there.
    areas: SpinLock<BTreeMap<usize, (usize, usize)>>,
    put_off: SpinLock<Vec<usize>>,
    pub(super) asked: SpinLock<Vec<Asked>>,
    pub(super) faults: Faults,
}

impl ToyAreas {
    fn new(nr_pages: usize) -> Self {
        // SAFETY: not of size zero.
        let base = unsafe { alloc(Self::layout(nr_pages)) }.expose_provenance();
        assert_ne!(base, 0);
        Self {
            base,
            nr_pages,
            areas: SpinLock::new(BTreeMap::new()),
            put_off: SpinLock::new(Vec::new()),
            asked: SpinLock::new(Vec::new()),
            faults: Faults::new(),
        }
    }

    fn layout(nr_pages: usize) -> Layout {
        Layout::from_size_align(nr_pages * PAGE_SIZE, PAGE_SIZE).unwrap()
    }

    pub(super) fn in_use(&self) -> usize {
        self.areas.with(&ToyCpu, |areas| areas.len())
    }

    pub(super) fn nr_put_off(&self) -> usize {
        self.put_off.with(&ToyCpu, |put_off| put_off.len())
    }

    /// Does what was put off.
    pub(super) fn run_deferred(&self) {
        for page in self.put_off.with(&ToyCpu, core::mem::take) {
            self.areas.with(&ToyCpu, |areas| areas.remove(&page)).unwrap();
        }
    }

    fn page_of(&self, memory: *const u8) -> Result<usize, VfreeError> {
        if !memory.addr().is_multiple_of(PAGE_SIZE) {
            return Err(VfreeError::Misaligned(memory.addr()));
        }
        Ok((memory.addr() - self.base) / PAGE_SIZE)
    }
}

impl Drop for ToyAreas {
    fn drop(&mut self) {
        // SAFETY: from `new`.
        unsafe { dealloc(pointer(self.base), Self::layout(self.nr_pages)) };
    }
}

// SAFETY: ranges of pages of the arena that do not overlap.
unsafe impl VirtAllocator for ToyAreas {
    fn owns(&self, address: *const u8) -> bool {
        address.addr().wrapping_sub(self.base) < self.nr_pages * PAGE_SIZE
    }

    fn alloc(
        &self,
        size: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
        huge: bool,
    ) -> Result<NonNull<u8>, VmallocError> {
        self.asked.with(&ToyCpu, |asked| asked.push(Asked { size, align, gfp, node, huge }));
        let pages = size.div_ceil(PAGE_SIZE);
        let no_space = VmallocError::NoSpace { nr_pages: pages as u64 };
        if pages == 0 {
            return Err(VmallocError::ZeroSize);
        }
        if self.faults.now() && !gfp.contains(Gfp::NOFAIL) {
            return Err(no_space);
        }
        let align = align.max(PAGE_SIZE);
        let page = self.areas.with(&ToyCpu, |areas| {
            let fits = |at: usize| {
                (self.base + at * PAGE_SIZE).is_multiple_of(align)
                    && areas.range(..at + pages).next_back().is_none_or(|(start, (_, len))| start + len <= at)
            };
            let page = (0..(self.nr_pages + 1).saturating_sub(pages)).find(|&at| fits(at))?;
            areas.insert(page, (size, pages));
            Some(page)
        });
        let memory = NonNull::new(pointer(self.base + page.ok_or(no_space)? * PAGE_SIZE)).unwrap();
        // SAFETY: inside the arena, and nobody else's.
        unsafe { memory.write_bytes(if gfp.contains(Gfp::ZERO) { 0 } else { 0xcc }, pages * PAGE_SIZE) };
        Ok(memory)
    }

    unsafe fn free(&self, memory: *mut u8) -> Result<(), VfreeError> {
        let page = self.page_of(memory)?;
        let free_already = self.put_off.with(&ToyCpu, |put_off| put_off.contains(&page));
        let gone = !free_already
            && self.areas.with(&ToyCpu, |areas| {
                let pages = areas.get(&page).map(|(_, pages)| *pages);
                if let Some(pages) = pages {
                    // SAFETY: the area's; the caller's promise.
                    unsafe { pointer(memory.addr()).write_bytes(0xdd, pages * PAGE_SIZE) };
                    areas.remove(&page);
                }
                pages.is_some()
            });
        if gone { Ok(()) } else { Err(VfreeError::NoArea(memory.addr())) }
    }

    unsafe fn free_atomic(&self, memory: *mut u8) -> Result<(), VfreeError> {
        let page = self.page_of(memory)?;
        let present = self.areas.with(&ToyCpu, |areas| areas.contains_key(&page));
        self.put_off.with(&ToyCpu, |put_off| {
            if !present || put_off.contains(&page) {
                return Err(VfreeError::AlreadyFree(memory.addr()));
            }
            put_off.push(page);
            Ok(())
        })
    }

    unsafe fn resize(
        &self,
        memory: *mut u8,
        size: usize,
        align: usize,
        gfp: Gfp,
        node: Option<NodeId>,
    ) -> Result<Option<NonNull<u8>>, VmallocError> {
        let (old, usable) = self.sizes(memory).ok_or(VfreeError::NoArea(memory.addr()))?;
        if size == 0 {
            // SAFETY: the caller's promise is the same.
            unsafe { self.free(memory)? };
            return Ok(None);
        }
        if size <= usable {
            if gfp.contains(Gfp::ZERO) && size < old {
                // SAFETY: inside the area.
                unsafe { memory.add(size).write_bytes(0, old - size) };
            }
            let page = self.page_of(memory)?;
            self.areas.with(&ToyCpu, |areas| areas.insert(page, (size, usable / PAGE_SIZE)));
            return Ok(NonNull::new(memory));
        }
        let new = VirtAllocator::alloc(self, size, align, gfp, node, false)?;
        // SAFETY: two areas in use.
        unsafe { new.as_ptr().copy_from_nonoverlapping(memory, old) };
        // SAFETY: the caller's promise is the same.
        unsafe { self.free(memory)? };
        Ok(Some(new))
    }

    fn sizes(&self, memory: *const u8) -> Option<(usize, usize)> {
        let page = self.page_of(memory).ok()?;
        let found = self.areas.with(&ToyCpu, |areas| areas.get(&page).copied());
        found.map(|(size, pages)| (size, pages * PAGE_SIZE))
    }
}

/// Keeps what is reported.
#[derive(Debug)]
pub(super) struct ToyContext(SpinLock<Vec<String>>);

impl AllocContext for ToyContext {
    fn task_flags(&self) -> TaskFlags {
        TaskFlags::empty()
    }
    fn update_task_flags(&self, _set: TaskFlags, _clear: TaskFlags) -> TaskFlags {
        TaskFlags::empty()
    }
    fn report(&self, line: core::fmt::Arguments<'_>) {
        self.0.with(&ToyCpu, |reports| reports.push(line.to_string()));
    }
}

/// Grace periods that pass when the test says so; waiting for one lets it pass.
#[derive(Debug)]
pub(super) struct ToyGrace(AtomicU64);

impl ToyGrace {
    pub(super) fn pass(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: tests have readers only while no period passes.
unsafe impl GracePeriod for ToyGrace {
    fn snapshot(&self) -> Grace {
        Grace(self.0.load(Ordering::SeqCst))
    }
    fn has_passed(&self, grace: Grace) -> bool {
        self.0.load(Ordering::SeqCst) > grace.0
    }
    fn synchronize(&self) {
        self.pass();
    }
}

/// Both, and what else there is.
#[derive(Debug)]
pub(super) struct Toys {
    pub(super) objects: ToyObjects,
    pub(super) areas: ToyAreas,
    pub(super) grace: ToyGrace,
    context: ToyContext,
}

impl Toys {
    /// With an arena of that many pages.
    pub(super) fn new(nr_pages: usize) -> Self {
        Self {
            objects: ToyObjects::new(),
            areas: ToyAreas::new(nr_pages),
            grace: ToyGrace(AtomicU64::new(0)),
            context: ToyContext(SpinLock::new(vec![])),
        }
    }

    /// Blocks and areas in use.
    pub(super) fn in_use(&self) -> (usize, usize) {
        (self.objects.in_use(), self.areas.in_use())
    }

    /// What both were asked for since the last call.
    pub(super) fn asked(&self) -> (Vec<Asked>, Vec<Asked>) {
        let take = |asked: &SpinLock<Vec<Asked>>| asked.with(&ToyCpu, core::mem::take);
        (take(&self.objects.asked), take(&self.areas.asked))
    }

    pub(super) fn reports(&self) -> Vec<String> {
        self.context.0.with(&ToyCpu, core::mem::take)
    }
}

// SAFETY: host blocks and an arena: disjoint, and all of it this program's memory.
unsafe impl KvmallocEnv for Toys {
    type Cpu = ToyCpu;
    type Objects = ToyObjects;
    type Areas = ToyAreas;
    type Context = ToyContext;
    type Grace = ToyGrace;
    fn cpu(&self) -> &ToyCpu {
        &ToyCpu
    }
    fn objects(&self) -> &ToyObjects {
        &self.objects
    }
    fn areas(&self) -> &ToyAreas {
        &self.areas
    }
    fn context(&self) -> &ToyContext {
        &self.context
    }
    fn grace(&self) -> &ToyGrace {
        &self.grace
    }
}
