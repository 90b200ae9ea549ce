//! A machine with frames, one owner of pages, and a swap that is only counted.
//!
//! The owner's index holds, for each key, nothing, a frame, or the shadow of a page that was evicted. Marks of mappings are plain
//! flags by frame.

use core::cell::RefCell;
use core::ptr::NonNull;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::vec::Vec;

use kmem_gfp::{
    AllocError, FrameTable, FrameWords, FreeError, Gfp, MigrateError, MigrateMode, NodeId, Order, PageAllocator, Pfn,
    PlainContext, ZoneKind,
};
use kmem_sync::{Cpu, CpuId, IrqState};

use crate::lru::Policy;
use crate::lru::{Lists, Look, LruEnv, NewPage, OwnerId, Page, PageKind, PageOwner, Refused, Shadow, WriteBack};
use crate::{GroupId, Groups, PageLists, Protection, Scan, ScanLimits, Swappiness};

/// Frames of a node.
pub(crate) const NODE_FRAMES: usize = 1 << 14;

/// What the owner remembers of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Slot {
    #[default]
    Absent,
    Here(Pfn),
    Gone(Shadow),
}

#[derive(Debug, Default)]
pub(crate) struct State {
    free: Vec<u32>,
    pub(crate) slots: BTreeMap<u64, Slot>,
    pub(crate) looks: BTreeMap<u64, Look>,
    pub(crate) writes: Vec<(u64, Gfp)>,
    /// Answers to the next writes; `Done` when there are none left.
    pub(crate) answers: Vec<Result<WriteBack, Refused>>,
    /// Keys that are not given up.
    pub(crate) pinned: Vec<u64>,
    pub(crate) unmapped: Vec<u64>,
    pub(crate) uncharged: BTreeMap<u32, u64>,
    pub(crate) swap_free: u64,
    pub(crate) shortfall: u64,
    pub(crate) now_ms: u64,
    pub(crate) offline: Vec<u32>,
    pub(crate) swappiness: Option<u8>,
    pub(crate) walk: bool,
    /// Calls of the owner until one is refused, and all behind it; below zero: none is.
    pub(crate) refuse_in: i64,
}

impl State {
    fn refuses(&mut self) -> bool {
        if self.refuse_in > 0 {
            self.refuse_in -= 1;
        }
        self.refuse_in == 0
    }
}

type AtUncharge = Box<dyn Fn(GroupId)>;

std::thread_local! {
    /// Done before each uncharge.
    pub(crate) static AT_UNCHARGE: RefCell<Option<AtUncharge>> = const { RefCell::new(None) };
}

#[derive(Debug)]
pub(crate) struct Machine {
    words: Vec<FrameWords>,
    nodes: u32,
    cpus: u32,
    state: Mutex<State>,
}

impl Machine {
    pub(crate) fn new(nr_frames: usize, nodes: u32, cpus: u32) -> &'static Self {
        Box::leak(Box::new(Self {
            words: (0..nr_frames).map(|_| FrameWords::new()).collect(),
            nodes,
            cpus,
            state: Mutex::new(State {
                free: (0..nr_frames as u32).rev().collect(),
                swap_free: 1 << 20,
                walk: true,
                refuse_in: -1,
                ..State::default()
            }),
        }))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn nr_free(&self) -> usize {
        self.state().free.len()
    }

    /// Words that are not as a free frame's should be.
    pub(crate) fn nr_owned(&self) -> usize {
        self.words.iter().filter(|w| w.owner.load(kmem_sync::atomic::Ordering::Relaxed) != 0).count()
    }

    pub(crate) fn look(&self, key: u64, change: impl FnOnce(&mut Look)) {
        change(self.state().looks.entry(key).or_default());
    }

    pub(crate) fn slot(&self, key: u64) -> Slot {
        self.state().slots.get(&key).copied().unwrap_or_default()
    }

    pub(crate) fn pfn(&self, key: u64) -> Pfn {
        match self.slot(key) {
            Slot::Here(pfn) => pfn,
            other => panic!("{key}: {other:?}"),
        }
    }

    pub(crate) fn is_here(&self, key: u64) -> bool {
        matches!(self.slot(key), Slot::Here(_))
    }

    /// Takes the owner's page out of its index; the caller removes it from the lists.
    pub(crate) fn forget(&self, key: u64) -> Option<Pfn> {
        let mut state = self.state();
        match state.slots.get(&key).copied() {
            Some(Slot::Here(pfn)) => {
                state.slots.remove(&key);
                Some(pfn)
            }
            _ => None,
        }
    }
}

/// Lists over a machine.
pub(crate) fn lists<P: Policy>(machine: &'static Machine, groups: u32) -> Lists<&'static Machine, P> {
    let layout = Lists::<_, P>::layout(&machine, groups).unwrap();
    // SAFETY: the size is not zero.
    let memory = NonNull::new(unsafe { std::alloc::alloc(layout) }).unwrap();
    // SAFETY: just allocated with this layout, and left to the lists for ever.
    unsafe { Lists::new(machine, memory, groups) }.unwrap()
}

/// Brings a page in, as a fault or a read would: with the shadow that was left of it, if there is one.
pub(crate) fn bring<P: Policy>(lists: &Lists<&'static Machine, P>, key: u64, kind: PageKind, group: GroupId) -> Pfn {
    let machine = *lists.env();
    let (pfn, shadow) = {
        let mut state = machine.state();
        let pfn = Pfn(u64::from(state.free.pop().expect("a free frame")));
        let old = state.slots.insert(key, Slot::Here(pfn));
        (pfn, if let Some(Slot::Gone(shadow)) = old { Some(shadow) } else { None })
    };
    let page = NewPage { group, shadow, ..NewPage::new(OwnerId(5), key, kind) };
    lists.add(pfn, page).unwrap();
    pfn
}

/// Brings in a row of pages and empties the batches.
pub(crate) fn bring_all<P: Policy>(
    lists: &Lists<&'static Machine, P>,
    keys: core::ops::Range<u64>,
    kind: PageKind,
) -> Vec<Pfn> {
    let pfns = keys.map(|key| bring(lists, key, kind, GroupId::ROOT)).collect();
    lists.drain_all();
    pfns
}

pub(crate) const LIMITS: ScanLimits = ScanLimits {
    gfp: Gfp::KERNEL,
    order: Order::ZERO,
    ceiling: ZoneKind::Movable,
    target: 32,
    root: GroupId::ROOT,
    background: false,
    may_write: true,
    may_unmap: true,
    may_swap: true,
    swappiness: Swappiness::Share(60),
};

#[cfg(not(loom))]
/// One pass at a priority; returns the run as it is then.
pub(crate) fn pass<P: Policy>(lists: &Lists<&'static Machine, P>, limits: ScanLimits, priority: u8) -> Scan<'static> {
    let mut scan = Scan::new(limits, &PlainContext);
    scan.priority = priority;
    lists.shrink(NodeId(0), limits.root, Protection::default(), &mut scan);
    scan
}

/// Passes from the first priority to the last, until the target is reached.
pub(crate) fn run<P: Policy>(lists: &Lists<&'static Machine, P>, limits: ScanLimits) -> Scan<'static> {
    let mut scan = Scan::new(limits, &PlainContext);
    loop {
        lists.shrink(NodeId(0), limits.root, Protection::default(), &mut scan);
        if scan.is_done() || scan.priority == 0 {
            return scan;
        }
        scan.priority -= 1;
    }
}

// SAFETY: pins are exclusive per thread in tests: each thread that pins is its own CPU. With one CPU, tests have one thread.
// Under loom, `LANE` numbers the threads.
unsafe impl Cpu for Machine {
    fn nr_cpus(&self) -> u32 {
        self.cpus
    }
    fn try_pin(&self) -> Option<CpuId> {
        let lane = lane();
        (lane < self.cpus).then_some(CpuId(lane))
    }
    unsafe fn unpin(&self, _cpu: CpuId) {}
    fn irq_save(&self) -> IrqState {
        IrqState(0)
    }
    unsafe fn irq_restore(&self, _state: IrqState) {}
    fn barrier_all_cpus(&self) {
        kmem_sync::atomic::fence(kmem_sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(not(loom))]
mod lanes {
    std::thread_local! {
        static LANE: core::cell::Cell<u32> = const { core::cell::Cell::new(0) };
    }
    pub(crate) fn lane() -> u32 {
        LANE.get()
    }
}
#[cfg(loom)]
mod lanes {
    loom::thread_local! {
        static LANE: core::cell::Cell<u32> = core::cell::Cell::new(0);
    }
    pub(crate) fn lane() -> u32 {
        LANE.with(|lane| lane.get())
    }
    /// Makes this thread another CPU.
    pub(crate) fn be_lane(lane: u32) {
        LANE.with(|cell| cell.set(lane));
    }
}
#[cfg(loom)]
pub(crate) use lanes::be_lane;
use lanes::lane;

// SAFETY: words by index; there is no direct map.
unsafe impl FrameTable for Machine {
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

// SAFETY: a frame is in `free` or handed out.
unsafe impl PageAllocator for Machine {
    fn alloc_pages(&self, gfp: Gfp, order: Order, _node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.state().free.pop().map(|pfn| Pfn(pfn.into())).ok_or(AllocError::NoMemory { order, gfp })
    }
    unsafe fn free_pages(&self, pfn: Pfn, _order: Order) -> Result<(), FreeError> {
        let owner = self.words[pfn.0 as usize].owner.load(kmem_sync::atomic::Ordering::Relaxed);
        assert_eq!(owner, 0, "{pfn} is freed with its words in use");
        let mut state = self.state();
        assert!(!state.free.contains(&(pfn.0 as u32)), "{pfn} is freed twice");
        state.free.push(pfn.0 as u32);
        Ok(())
    }
    fn nr_nodes(&self) -> u32 {
        self.nodes
    }
}

impl Groups for Machine {
    fn next_in_subtree(&self, root: GroupId, after: Option<GroupId>) -> Option<GroupId> {
        after.is_none().then_some(root)
    }
    fn protection(&self, _root: GroupId, _group: GroupId) -> Protection {
        Protection::default()
    }
    fn is_online(&self, group: GroupId) -> bool {
        !self.state().offline.contains(&group.0)
    }
    fn swappiness(&self, _group: GroupId) -> Option<u8> {
        self.state().swappiness
    }
    fn uncharge(&self, group: GroupId, pages: u64) {
        AT_UNCHARGE.with_borrow(|look| look.iter().for_each(|look| look(group)));
        *self.state().uncharged.entry(group.0).or_default() += pages;
    }
}

impl LruEnv for Machine {
    type Cpu = Self;
    type Frames = Self;
    type Pages = Self;
    type Groups = Self;

    fn cpu(&self) -> &Self {
        self
    }
    fn frames(&self) -> &Self {
        self
    }
    fn pages(&self) -> &Self {
        self
    }
    fn groups(&self) -> &Self {
        self
    }
    fn owner(&self, id: OwnerId) -> Option<&dyn PageOwner> {
        (id == OwnerId(5)).then_some(self as &dyn PageOwner)
    }
    fn zone_of(&self, pfn: Pfn) -> (NodeId, ZoneKind) {
        let node = if self.nodes > 1 { pfn.0 as usize / NODE_FRAMES } else { 0 };
        (NodeId(node as u32), if pfn.0 % NODE_FRAMES as u64 >= 1 << 13 { ZoneKind::Movable } else { ZoneKind::Normal })
    }
    fn swap_free(&self) -> u64 {
        self.state().swap_free
    }
    fn shortfall(&self, _node: NodeId) -> u64 {
        self.state().shortfall
    }
    fn now_ms(&self) -> u64 {
        self.state().now_ms
    }
    fn walk_accessed(&self, _node: NodeId, _group: GroupId, young: &mut dyn FnMut(Pfn)) {
        let found: Vec<Pfn> = {
            let state = &mut *self.state();
            let walk = state.walk;
            let looks = &mut state.looks;
            let accessed = state.slots.iter().filter_map(|(key, slot)| match slot {
                Slot::Here(pfn) if walk && looks.get(key).is_some_and(|look| look.accessed > 0) => {
                    looks.entry(*key).or_default().accessed = 0;
                    Some(*pfn)
                }
                _ => None,
            });
            accessed.collect()
        };
        found.into_iter().for_each(young);
    }
}

// SAFETY: the index is asked under its lock, so a page is evicted or moved only while the index has it, and `forget` takes it
// out before it is removed from the lists (1, 2, 3).
unsafe impl PageOwner for Machine {
    fn look(&self, page: Page) -> Look {
        let mut state = self.state();
        let look = state.looks.entry(page.key).or_default();
        let found = *look;
        look.accessed = 0;
        found
    }
    fn unmap(&self, page: Page, _gfp: Gfp) -> Result<(), Refused> {
        let mut state = self.state();
        if state.refuses() {
            return Err(Refused::Busy);
        }
        state.looks.entry(page.key).or_default().mapped = false;
        state.unmapped.push(page.key);
        Ok(())
    }
    fn write_back(&self, page: Page, gfp: Gfp) -> Result<WriteBack, Refused> {
        let mut state = self.state();
        if state.refuses() {
            return Err(Refused::Unwritable);
        }
        state.writes.push((page.key, gfp));
        let answer = if state.answers.is_empty() { Ok(WriteBack::Done) } else { state.answers.remove(0) };
        if answer.is_ok() {
            state.looks.entry(page.key).or_default().dirty = false;
        }
        answer
    }
    fn evict(&self, page: Page, shadow: Shadow, _gfp: Gfp) -> Result<(), Refused> {
        let mut state = self.state();
        if state.refuses() || state.pinned.contains(&page.key) {
            return Err(Refused::Busy);
        }
        match state.slots.get(&page.key) {
            Some(Slot::Here(pfn)) if *pfn == page.pfn => {
                assert!(!state.looks.get(&page.key).is_some_and(|look| look.dirty), "{} is dirty", page.key);
                state.slots.insert(page.key, Slot::Gone(shadow));
                Ok(())
            }
            _ => Err(Refused::Gone),
        }
    }
    fn migrate(&self, page: Page, target: Pfn, _mode: MigrateMode) -> Result<(), MigrateError> {
        let mut state = self.state();
        if state.pinned.contains(&page.key) {
            return Err(MigrateError::Again(page.pfn));
        }
        match state.slots.get_mut(&page.key) {
            Some(Slot::Here(pfn)) if *pfn == page.pfn => {
                *pfn = target;
                Ok(())
            }
            _ => Err(MigrateError::Permanent(page.pfn)),
        }
    }
}
