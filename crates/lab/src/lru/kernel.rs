//! The page lists of `kmem-reclaim`, over a machine that has frames and nothing else.
//!
//! Pages are mapped, as a program's are: a reference sets the accessed mark, and the lists learn of it when they look. Pages that
//! are ever written are anonymous, the others a file's. Reclaim runs when no frame is free, as direct reclaim does.

use super::References;
use kmem::gfp::{
    AllocError, FrameTable, FrameWords, FreeError, Gfp, NodeId, Order, PageAllocator, Pfn, PlainContext, ZoneKind,
};
use kmem::sync::SingleCpu;
use kmem_reclaim::lru::{
    Lists, Look, LruEnv, NewPage, OwnerId, Page, PageKind, PageOwner, Policy, Refused, SetupError, Shadow, WriteBack,
};
use kmem_reclaim::{GroupId, NoGroups, PageLists, Protection, Scan, ScanLimits, Swappiness};
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The owner's number.
const OWNER: OwnerId = OwnerId(0);
/// No frame, no page.
const NONE: u32 = u32::MAX;
/// Most pages that one run of reclaim frees.
const TARGET: u32 = 32;

/// A page of the trace.
#[derive(Clone, Copy, Debug)]
struct PageState {
    frame: u32,
    accessed: bool,
    dirty: bool,
    shadow: Option<Shadow>,
}

#[derive(Debug)]
struct State {
    free: Vec<u32>,
    pages: Vec<PageState>,
    /// Frame to page.
    holds: Vec<u32>,
}

/// Frames, and an owner that has all pages of the trace.
#[derive(Debug)]
struct Toy {
    cpu: SingleCpu,
    words: Vec<FrameWords>,
    state: Mutex<State>,
}

impl Toy {
    fn new(trace: &References, frames: u32) -> Self {
        let page = PageState { frame: NONE, accessed: false, dirty: false, shadow: None };
        Self {
            // SAFETY: one thread uses the machine; there are no interrupts.
            cpu: unsafe { SingleCpu::new() },
            words: (0..frames).map(|_| FrameWords::new()).collect(),
            state: Mutex::new(State {
                free: (0..frames).rev().collect(),
                pages: vec![page; trace.pages as usize],
                holds: vec![NONE; frames as usize],
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn page(&mut self, key: u64) -> Option<&mut PageState> {
        self.pages.get_mut(usize::try_from(key).ok()?)
    }
}

// SAFETY: words by index; there is no direct map.
unsafe impl FrameTable for Toy {
    fn words(&self, pfn: Pfn) -> Option<&FrameWords> {
        self.words.get(usize::try_from(pfn.0).ok()?)
    }
    fn address_of(&self, _pfn: Pfn) -> Option<NonNull<u8>> {
        None
    }
    fn frame_of(&self, _address: usize) -> Option<Pfn> {
        None
    }
}

// SAFETY: a frame is in `free` or handed out; there is no memory behind frames.
unsafe impl PageAllocator for Toy {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.state().free.pop().map(|frame| Pfn(frame.into())).ok_or(AllocError::NoMemory { order, gfp })
    }
    unsafe fn free_pages(&self, pfn: Pfn, _order: Order) -> Result<(), FreeError> {
        self.state().free.push(pfn.0 as u32);
        Ok(())
    }
}

impl LruEnv for Toy {
    type Cpu = SingleCpu;
    type Frames = Self;
    type Pages = Self;
    type Groups = NoGroups;

    fn cpu(&self) -> &SingleCpu {
        &self.cpu
    }
    fn frames(&self) -> &Self {
        self
    }
    fn pages(&self) -> &Self {
        self
    }
    fn groups(&self) -> &NoGroups {
        &NoGroups
    }
    fn owner(&self, id: OwnerId) -> Option<&dyn PageOwner> {
        (id == OWNER).then_some(self as &dyn PageOwner)
    }
    fn zone_of(&self, _pfn: Pfn) -> (NodeId, ZoneKind) {
        (NodeId(0), ZoneKind::Normal)
    }
    fn swap_free(&self) -> u64 {
        u64::MAX / 2
    }
    fn walk_accessed(&self, _node: NodeId, _group: GroupId, young: &mut dyn FnMut(Pfn)) {
        let mut found = Vec::new();
        for page in &mut self.state().pages {
            if page.frame != NONE && std::mem::take(&mut page.accessed) {
                found.push(Pfn(page.frame.into()));
            }
        }
        found.into_iter().for_each(young);
    }
}

// SAFETY: a page is evicted by taking its frame out of the table, under the lock; nothing else refers to it, and nothing removes
// or moves pages.
unsafe impl PageOwner for Toy {
    fn look(&self, page: Page) -> Look {
        let mut state = self.state();
        let Some(page) = state.page(page.key) else { return Look::default() };
        let accessed = u32::from(std::mem::take(&mut page.accessed));
        Look { accessed, mapped: true, dirty: page.dirty, ..Look::default() }
    }
    fn unmap(&self, _page: Page, _gfp: Gfp) -> Result<(), Refused> {
        Ok(())
    }
    fn write_back(&self, page: Page, _gfp: Gfp) -> Result<WriteBack, Refused> {
        self.state().page(page.key).ok_or(Refused::Gone)?.dirty = false;
        Ok(WriteBack::Done)
    }
    fn evict(&self, page: Page, shadow: Shadow, _gfp: Gfp) -> Result<(), Refused> {
        let mut state = self.state();
        let found = state.page(page.key).ok_or(Refused::Gone)?;
        found.frame = NONE;
        found.shadow = Some(shadow);
        if let Some(holds) = state.holds.get_mut(page.pfn.0 as usize) {
            *holds = NONE;
        }
        Ok(())
    }
}

/// Memory for the lists.
struct Memory(NonNull<u8>, Layout);

impl Memory {
    fn new(layout: Layout) -> Self {
        // SAFETY: lists of one group on one node have a size.
        match NonNull::new(unsafe { alloc(layout) }) {
            Some(memory) => Self(memory, layout),
            None => handle_alloc_error(layout),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.0.as_ptr(), self.1) }
    }
}

/// Misses of the lists with a policy.
///
/// # Errors
/// [`SetupError`] if there can be no such lists.
pub(crate) fn misses<P: Policy>(trace: &References, frames: u32) -> Result<u64, SetupError> {
    let toy = Toy::new(trace, frames);
    let memory = Memory::new(Lists::<&Toy, P>::layout(&&toy, 1)?);
    // SAFETY: just allocated with this layout; the lists are dropped before it. The machine's words are theirs alone.
    let lists = unsafe { Lists::<&Toy, P>::new(&toy, memory.0, 1) }?;
    let target = (frames / 32).clamp(1, TARGET);
    let mut misses = 0;
    for reference in &trace.list {
        let mut state = toy.state();
        let Some(page) = state.page(reference.page.into()) else { continue };
        page.accessed = true;
        page.dirty |= reference.write;
        if page.frame != NONE {
            continue;
        }
        misses += 1;
        let shadow = page.shadow.take();
        drop(state);
        let Some(frame) = take(&toy, &lists, target) else { continue };
        let kind =
            if trace.written.get(reference.page as usize) == Some(&true) { PageKind::Anon } else { PageKind::File };
        let page = NewPage { faulted: true, shadow, ..NewPage::new(OWNER, reference.page.into(), kind) };
        let mut state = toy.state();
        if let Some(found) = state.page(reference.page.into()) {
            found.frame = frame;
        }
        if let Some(holds) = state.holds.get_mut(frame as usize) {
            *holds = reference.page;
        }
        drop(state);
        if lists.add(Pfn(frame.into()), page).is_err() {
            break;
        }
    }
    drop(lists);
    drop(memory);
    Ok(misses)
}

/// A free frame; reclaims if there is none. `None` if nothing can be freed.
fn take<P: Policy>(toy: &Toy, lists: &Lists<&Toy, P>, target: u32) -> Option<u32> {
    if let Some(frame) = toy.state().free.pop() {
        return Some(frame);
    }
    lists.drain_local();
    let limits = ScanLimits {
        gfp: Gfp::KERNEL,
        order: Order::ZERO,
        ceiling: ZoneKind::Normal,
        target: target.into(),
        root: GroupId::ROOT,
        background: false,
        may_write: true,
        may_unmap: true,
        may_swap: true,
        swappiness: Swappiness::default(),
    };
    // Several runs, as the allocator makes: the first may only age.
    for _ in 0..16 {
        let mut scan = Scan::new(limits, &PlainContext);
        loop {
            lists.shrink(NodeId(0), GroupId::ROOT, Protection::default(), &mut scan);
            if scan.is_done() || scan.priority == 0 {
                break;
            }
            scan.priority -= 1;
        }
        if let Some(frame) = toy.state().free.pop() {
            return Some(frame);
        }
    }
    None
}
