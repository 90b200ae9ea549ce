//! The machine of the tests: zones, lists, groups, a task and a clock, all scripted, and a log of what was asked of them.

use core::cell::Cell;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::vec::Vec;

use kmem_gfp::{
    AllocContext, CompactOutcome, CompactPriority, Gfp, MigrateType, NodeId, OomOutcome, Order, ReclaimRequest,
    TaskFlags, Watermark, ZoneKind,
};
use kmem_sync::SingleCpu;

use crate::{
    GroupId, Groups, ListCounts, Node, OomKiller, PageLists, Park, PressureLevel, Protection, Reclaim, ReclaimEnv,
    Scan, StallKind, VmPressure, Wait, WaitQueue, Zones,
};

pub(super) const N0: NodeId = NodeId(0);
pub(super) const N1: NodeId = NodeId(1);
pub(super) const NORMAL: ZoneKind = ZoneKind::Normal;

/// Something that the engine did.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Did {
    Age(NodeId, GroupId, u8),
    Shrink { node: NodeId, group: GroupId, priority: u8, target: u64 },
    Park(Option<u64>),
    WakeCompaction(NodeId, Order, ZoneKind),
    ResetHints(NodeId),
    LowerBoost(NodeId, ZoneKind, u64),
    StallEnter(StallKind),
    StallLeave(StallKind),
    Pressure(GroupId, PressureLevel),
    Compact(CompactPriority),
    Oom,
    Drain,
}

/// One zone.
#[derive(Clone, Debug)]
pub(super) struct Zone {
    pub(super) managed: u64,
    pub(super) free: u64,
    pub(super) marks: [u64; 4],
    pub(super) boost: u64,
    /// The largest free block.
    pub(super) largest: Order,
    pub(super) fragmentation: Option<u32>,
}

impl Zone {
    pub(super) fn new(managed: u64, free: u64, min: u64) -> Self {
        let marks = [min, min + min / 4, min + min / 2, min + min / 4 * 3];
        Self { managed, free, marks, boost: 0, largest: Order::MAX, fragmentation: None }
    }
}

/// What happens to the pages of a group that reclaim looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// They are freed.
    Free,
    /// They stay.
    Stay,
    /// They are under writeback.
    Writeback,
    /// They are dirty.
    Dirty,
    /// They are active and freed only by force.
    Active,
}

/// The file pages of a group on a node, and where they came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    pub(super) zone: ZoneKind,
    pub(super) pages: u64,
    pub(super) anon: u64,
    pub(super) kind: Pages,
    pub(super) isolated: u64,
}

impl List {
    pub(super) fn new(pages: u64, kind: Pages) -> Self {
        Self { zone: NORMAL, pages, anon: 0, kind, isolated: 0 }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    pub(super) parent: Option<GroupId>,
    pub(super) protection: Protection,
}

type OnPark = Box<dyn FnMut(&Toy, Wait) + Send>;
type OnShrink = Box<dyn FnMut(&Toy, &Scan<'_>) + Send>;

#[derive(Default)]
pub(super) struct State {
    pub(super) zones: BTreeMap<(NodeId, ZoneKind), Zone>,
    pub(super) lists: BTreeMap<(NodeId, GroupId), List>,
    pub(super) groups: Vec<Group>,
    pub(super) log: Vec<Did>,
    pub(super) task: TaskFlags,
    pub(super) now_ms: u64,
    pub(super) local: NodeId,
    pub(super) can_compact: bool,
    pub(super) can_swap: bool,
    pub(super) tiering: bool,
    pub(super) kernel_memory: bool,
    pub(super) slab_pages: u64,
    /// Pages in the per-CPU sets of node 0.
    pub(super) in_sets: u64,
    pub(super) forbidden: Vec<NodeId>,
    pub(super) oom: Option<OomOutcome>,
    pub(super) parks: u32,
    pub(super) last_limits: Vec<(u8, bool, bool, bool)>,
}

pub(super) struct Toy {
    state: Mutex<State>,
    on_park: Mutex<Option<OnPark>>,
    on_shrink: Mutex<Option<OnShrink>>,
    nodes: Vec<Node>,
    cpu: SingleCpu,
    pub(super) gauge: VmPressure,
}

std::thread_local! {
    /// Whether this thread is inside a park's script, which may park no more.
    static IN_SCRIPT: Cell<bool> = const { Cell::new(false) };
}

/// Root only.
pub(super) fn machine(nodes: u32) -> Reclaim<Toy> {
    Reclaim::new(Toy::new(nodes))
}

pub(super) fn request(gfp: Gfp, order: u32) -> ReclaimRequest {
    ReclaimRequest {
        gfp,
        order: Order::new(order).unwrap(),
        ceiling: NORMAL,
        node: N0,
        this_node_only: false,
        migratetype: MigrateType::Unmovable,
    }
}

impl Toy {
    pub(super) fn new(nodes: u32) -> Self {
        let root = Group { id: GroupId::ROOT, parent: None, protection: Protection::default() };
        let state =
            State { groups: std::vec![root], can_swap: true, kernel_memory: true, now_ms: 1, ..State::default() };
        Self {
            state: Mutex::new(state),
            on_park: Mutex::new(None),
            on_shrink: Mutex::new(None),
            nodes: (0..nodes).map(|_| Node::new()).collect(),
            // SAFETY: the engine takes its spin locks for mutual exclusion; nothing here is pinned.
            cpu: unsafe { SingleCpu::new() },
            gauge: VmPressure::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Adds a zone of 10000 pages with marks 100, 125, 150, 175.
    pub(super) fn zone(&self, node: NodeId, kind: ZoneKind, free: u64) {
        self.state().zones.insert((node, kind), Zone::new(10_000, free, 100));
    }

    pub(super) fn list(&self, node: NodeId, group: GroupId, list: List) {
        self.state().lists.insert((node, group), list);
    }

    pub(super) fn group(&self, id: u32, parent: u32, protection: Protection) {
        let group = Group { id: GroupId(id), parent: Some(GroupId(parent)), protection };
        self.state().groups.push(group);
    }

    pub(super) fn free(&self, node: NodeId) -> u64 {
        self.state().zones.get(&(node, NORMAL)).unwrap().free
    }

    pub(super) fn set_free(&self, node: NodeId, free: u64) {
        self.state().zones.get_mut(&(node, NORMAL)).unwrap().free = free;
    }

    pub(super) fn on_park(&self, script: impl FnMut(&Toy, Wait) + Send + 'static) {
        *self.on_park.lock().unwrap() = Some(Box::new(script));
    }

    pub(super) fn on_shrink(&self, script: impl FnMut(&Toy, &Scan<'_>) + Send + 'static) {
        *self.on_shrink.lock().unwrap() = Some(Box::new(script));
    }

    pub(super) fn task(&self, flags: TaskFlags) {
        self.state().task = flags;
    }

    pub(super) fn take_log(&self) -> Vec<Did> {
        core::mem::take(&mut self.state().log)
    }

    pub(super) fn shrinks(&self) -> Vec<(NodeId, GroupId, u8)> {
        let log = self.take_log();
        let shrinks = log.into_iter().filter_map(|did| match did {
            Did::Shrink { node, group, priority, .. } => Some((node, group, priority)),
            _ => None,
        });
        shrinks.collect()
    }

    fn did(&self, did: Did) {
        self.state().log.push(did);
    }

    fn is_below(state: &State, mut group: GroupId, root: GroupId) -> bool {
        loop {
            if group == root {
                return true;
            }
            match state.groups.iter().find(|one| one.id == group).and_then(|one| one.parent) {
                Some(parent) => group = parent,
                None => return false,
            }
        }
    }
}

impl Zones for Toy {
    fn nr_nodes(&self) -> u32 {
        self.nodes.len() as u32
    }
    fn node_allowed(&self, node: NodeId, _request: &ReclaimRequest) -> bool {
        !self.state().forbidden.contains(&node)
    }
    fn managed(&self, node: NodeId, zone: ZoneKind) -> u64 {
        self.state().zones.get(&(node, zone)).map_or(0, |zone| zone.managed)
    }
    fn free(&self, node: NodeId, zone: ZoneKind) -> u64 {
        self.state().zones.get(&(node, zone)).map_or(0, |zone| zone.free)
    }
    fn mark(&self, node: NodeId, zone: ZoneKind, mark: Watermark) -> u64 {
        self.state().zones.get(&(node, zone)).map_or(0, |zone| zone.marks[mark as usize] + zone.boost)
    }
    fn boost(&self, node: NodeId, zone: ZoneKind) -> u64 {
        self.state().zones.get(&(node, zone)).map_or(0, |zone| zone.boost)
    }
    fn lower_boost(&self, node: NodeId, zone: ZoneKind, pages: u64) {
        self.did(Did::LowerBoost(node, zone, pages));
        if let Some(zone) = self.state().zones.get_mut(&(node, zone)) {
            zone.boost = zone.boost.saturating_sub(pages);
        }
    }
    fn watermark_ok(&self, node: NodeId, zone: ZoneKind, order: Order, mark: Watermark, _ceiling: ZoneKind) -> bool {
        self.state().zones.get(&(node, zone)).is_some_and(|zone| {
            let usable = zone.free.saturating_sub((1 << order.get()) - 1);
            usable > zone.marks[mark as usize] + zone.boost && zone.largest >= order
        })
    }
    fn fragmentation_index(&self, node: NodeId, zone: ZoneKind, _order: Order) -> Option<u32> {
        self.state().zones.get(&(node, zone)).and_then(|zone| zone.fragmentation)
    }
    fn drain(&self) {
        self.did(Did::Drain);
        let mut state = self.state();
        let pages = core::mem::take(&mut state.in_sets);
        if let Some(zone) = state.zones.get_mut(&(N0, NORMAL)) {
            zone.free += pages;
        }
    }
    fn wake_compaction(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        self.did(Did::WakeCompaction(node, order, ceiling));
    }
    fn reset_compaction_hints(&self, node: NodeId) {
        self.did(Did::ResetHints(node));
    }
}

impl PageLists for Toy {
    fn shrink(&self, node: NodeId, group: GroupId, _protection: Protection, scan: &mut Scan<'_>) {
        self.did(Did::Shrink { node, group, priority: scan.priority, target: scan.limits.target });
        if let Some(script) = &mut *self.on_shrink.lock().unwrap() {
            script(self, scan);
        }
        let mut state = self.state();
        let limits = scan.limits;
        state.last_limits.push((scan.priority, limits.may_write, limits.may_unmap, limits.may_swap));
        let Some(list) = state.lists.get_mut(&(node, group)) else { return };
        let looked_at = list.pages.min((list.pages >> scan.priority).max(32));
        scan.scanned += looked_at;
        match list.kind {
            Pages::Stay => {}
            Pages::Writeback => scan.writeback += looked_at,
            Pages::Dirty => scan.dirty += looked_at,
            Pages::Active if !scan.force_deactivate => scan.spared_active = true,
            Pages::Free | Pages::Active => {
                list.pages -= looked_at;
                scan.reclaimed += looked_at;
                let zone = list.zone;
                if let Some(zone) = state.zones.get_mut(&(node, zone)) {
                    zone.free += looked_at;
                }
            }
        }
    }

    fn age(&self, node: NodeId, group: GroupId, scan: &mut Scan<'_>) {
        self.did(Did::Age(node, group, scan.priority));
    }

    fn counts(&self, node: NodeId, zone: Option<ZoneKind>) -> ListCounts {
        let state = self.state();
        let mut counts = ListCounts::default();
        for (_, list) in state.lists.iter().filter(|((at, _), list)| *at == node && zone.is_none_or(|z| z == list.zone))
        {
            counts.inactive_file += list.pages;
            counts.inactive_anon += list.anon;
            counts.isolated_file += list.isolated;
        }
        counts
    }

    fn group_counts(&self, node: NodeId, group: GroupId) -> ListCounts {
        let pages = self.state().lists.get(&(node, group)).map_or(0, |list| list.pages);
        ListCounts { inactive_file: pages, ..ListCounts::default() }
    }

    fn reparent(&self, _group: GroupId, _parent: GroupId) {}
}

impl Groups for Toy {
    fn next_in_subtree(&self, root: GroupId, after: Option<GroupId>) -> Option<GroupId> {
        let state = self.state();
        let mut below = state.groups.iter().map(|group| group.id).filter(|&id| Self::is_below(&state, id, root));
        match after {
            None => Some(root),
            Some(after) => {
                below.by_ref().find(|&id| id == after)?;
                below.next()
            }
        }
    }
    fn protection(&self, root: GroupId, group: GroupId) -> Protection {
        if root == group {
            return Protection::default();
        }
        self.state().groups.iter().find(|one| one.id == group).map_or(Protection::default(), |one| one.protection)
    }
    fn is_online(&self, _group: GroupId) -> bool {
        true
    }
    fn swappiness(&self, _group: GroupId) -> Option<u8> {
        None
    }
    fn uncharge(&self, _group: GroupId, _pages: u64) {}
}

impl AllocContext for Toy {
    fn task_flags(&self) -> TaskFlags {
        self.state().task
    }
    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags {
        let mut state = self.state();
        let before = state.task;
        state.task = (before | set) - clear;
        before
    }
    fn local_node(&self) -> NodeId {
        self.state().local
    }
    fn now_ms(&self) -> u64 {
        self.state().now_ms
    }
}

impl Park for Toy {
    fn park(&self, _context: &dyn AllocContext, _queue: &WaitQueue, _seen: u32, wait: Wait) {
        let mut state = self.state();
        state.log.push(Did::Park(wait.timeout_ms));
        state.parks += 1;
        assert!(state.parks < 1000, "a task waits for ever");
        drop(state);
        if !IN_SCRIPT.replace(true) {
            let script = self.on_park.lock().unwrap().take();
            if let Some(mut script) = script {
                script(self, wait);
                self.on_park.lock().unwrap().get_or_insert(script);
            }
            IN_SCRIPT.set(false);
        }
        self.state().now_ms += wait.timeout_ms.unwrap_or(0);
    }
}

impl OomKiller for Toy {
    fn out_of_memory(&self, _context: &dyn AllocContext, _request: &ReclaimRequest) -> OomOutcome {
        self.did(Did::Oom);
        self.state().oom.unwrap_or(OomOutcome::NoVictim)
    }
}

impl ReclaimEnv for Toy {
    type Cpu = SingleCpu;
    type Context = Self;
    type Zones = Self;
    type Lists = Self;
    type Groups = Self;
    type Park = Self;
    type Oom = Self;

    fn cpu(&self) -> &SingleCpu {
        &self.cpu
    }
    fn context(&self) -> &Self {
        self
    }
    fn zones(&self) -> &Self {
        self
    }
    fn lists(&self) -> &Self {
        self
    }
    fn groups(&self) -> &Self {
        self
    }
    fn park(&self) -> &Self {
        self
    }
    fn oom(&self) -> &Self {
        self
    }
    fn nodes(&self) -> &[Node] {
        &self.nodes
    }
    fn can_swap(&self, _group: GroupId) -> bool {
        self.state().can_swap
    }
    fn can_compact(&self) -> bool {
        self.state().can_compact
    }
    fn compact(
        &self,
        _context: &dyn AllocContext,
        _request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        self.did(Did::Compact(priority));
        CompactOutcome::Complete
    }
    fn memory_tiering(&self) -> bool {
        self.state().tiering
    }
    fn accounts_kernel_memory(&self) -> bool {
        self.state().kernel_memory
    }
    fn reclaimable_slab_pages(&self, _node: NodeId) -> u64 {
        self.state().slab_pages
    }
    fn tick_ms(&self) -> u64 {
        4
    }
    fn stall_enter(&self, _context: &dyn AllocContext, kind: StallKind) -> usize {
        self.did(Did::StallEnter(kind));
        kind as usize
    }
    fn stall_leave(&self, _context: &dyn AllocContext, kind: StallKind, token: usize) {
        assert_eq!(token, kind as usize, "stalls nest");
        self.did(Did::StallLeave(kind));
    }
    fn pressure_of(&self, group: GroupId) -> Option<&VmPressure> {
        (group == GroupId(1)).then_some(&self.gauge)
    }
    fn pressure(&self, group: GroupId, level: PressureLevel) {
        self.did(Did::Pressure(group, level));
    }
}

impl Toy {
    pub(super) fn cpu_of(&self) -> &SingleCpu {
        &self.cpu
    }
}
