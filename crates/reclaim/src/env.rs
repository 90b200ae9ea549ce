//! What reclaim needs from the machine around it.
//!
//! ```text
//! Reclaim<E> ──▶ E: ReclaimEnv ─┬─ cpu()      waiting in spin locks                 kmem_sync::Cpu
//!                               ├─ context()  the running task of kswapd            kmem_gfp::AllocContext
//!                               ├─ zones()    free pages and marks of the nodes     Zones      (any page allocator)
//!                               ├─ lists()    the pages that can be taken           PageLists  (generations, classic, toy)
//!                               ├─ groups()   the tree of memory cgroups            Groups     (NoGroups)
//!                               ├─ park()     how a task sleeps                     Park       (Polled)
//!                               ├─ oom()      who decides about a kill              OomKiller  (NoOom)
//!                               └─ nodes()    the engine's own state of each node   [Node]
//! ```

use kmem_gfp::{
    AllocContext, CompactOutcome, CompactPriority, NodeId, OomOutcome, Order, ReclaimRequest, Watermark, ZoneKind,
};
use kmem_sync::Cpu;

use crate::node::Node;
use crate::vmpressure::{PressureLevel, VmPressure};
use crate::wait::Park;
use crate::{GroupId, Groups, PageLists};

/// What a task is held up by, for stall accounting (R-18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallKind {
    /// It reclaims itself.
    DirectReclaim,
    /// It compacts itself.
    Compaction,
    /// It is the background thread at work.
    Background,
    /// It waits for the background thread to get the reserve filled.
    Throttled,
}

/// The surroundings of a [`Reclaim`](crate::Reclaim): usually a reference to the machine, or a zero-sized type.
///
/// Each accessor returns the same part every time.
pub trait ReclaimEnv {
    /// The machine's CPUs.
    type Cpu: Cpu;
    /// The running context.
    type Context: AllocContext;
    /// The page allocator as reclaim sees it.
    type Zones: Zones;
    /// The pages that reclaim may take.
    type Lists: PageLists;
    /// The memory cgroups.
    type Groups: Groups;
    /// How a task sleeps.
    type Park: Park;
    /// Who decides about a kill.
    type Oom: OomKiller;

    /// The CPUs.
    fn cpu(&self) -> &Self::Cpu;
    /// The running context.
    fn context(&self) -> &Self::Context;
    /// The page allocator.
    fn zones(&self) -> &Self::Zones;
    /// The page lists.
    fn lists(&self) -> &Self::Lists;
    /// The memory cgroups.
    fn groups(&self) -> &Self::Groups;
    /// How a task sleeps.
    fn park(&self) -> &Self::Park;
    /// Who decides about a kill.
    fn oom(&self) -> &Self::Oom;
    /// The engine's state of each node, in the order of their numbers, each made with [`Node::new`]. Nodes beyond the end of
    /// the slice are never reclaimed.
    fn nodes(&self) -> &[Node];

    /// Whether anonymous pages of `group` have somewhere to go. Any context.
    fn can_swap(&self, group: GroupId) -> bool {
        let _ = group;
        true
    }

    /// Whether anything compacts memory here.
    fn can_compact(&self) -> bool {
        false
    }

    /// Direct compaction, which [`Reclaim`](crate::Reclaim) forwards to.
    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        let _ = (context, request, priority);
        CompactOutcome::Skipped
    }

    /// Whether memory tiering is on: background reclaim then goes on to the promo mark (R-03).
    fn memory_tiering(&self) -> bool {
        false
    }

    /// Whether kernel memory is charged to groups; where it is not, groups have no slab objects of their own (R-42).
    fn accounts_kernel_memory(&self) -> bool {
        true
    }

    /// Pages of a node that lie in reclaimable slabs; decides whether node reclaim is worth while (B-67). Any context.
    fn reclaimable_slab_pages(&self, node: NodeId) -> u64 {
        let _ = node;
        0
    }

    /// The length of a scheduler tick in milliseconds, at least 1.
    fn tick_ms(&self) -> u64 {
        4
    }

    /// A stall begins; what it returns is given to [`stall_leave`](Self::stall_leave) of the same task.
    fn stall_enter(&self, context: &dyn AllocContext, kind: StallKind) -> usize {
        let _ = (context, kind);
        0
    }

    /// The stall ends.
    fn stall_leave(&self, context: &dyn AllocContext, kind: StallKind, token: usize) {
        let _ = (context, kind, token);
    }

    /// The pressure gauge of a group; the engine keeps that of the root. Any context.
    fn pressure_of(&self, group: GroupId) -> Option<&VmPressure> {
        let _ = group;
        None
    }

    /// A window of scanned pages is full, and this is how hard it was (R-47). Never called for levels nobody reached.
    fn pressure(&self, group: GroupId, level: PressureLevel) {
        let _ = (group, level);
    }
}

/// The zones of a page allocator, by node and kind. Every method may be called in any context unless it says otherwise.
///
/// A kind of zone that a node does not have manages no pages.
pub trait Zones: Sync {
    /// How many nodes there are.
    fn nr_nodes(&self) -> u32 {
        1
    }

    /// The `n`-th node that a request that prefers `from` should use, nearest first; `None` after the last one.
    fn nth_node(&self, from: NodeId, n: u32) -> Option<NodeId> {
        let nodes = self.nr_nodes();
        if n >= nodes || from.0 >= nodes {
            return None;
        }
        Some(NodeId(((u64::from(from.0) + u64::from(n)) % u64::from(nodes)) as u32))
    }

    /// Whether the running task may use a node for this request (its cpuset).
    fn node_allowed(&self, node: NodeId, request: &ReclaimRequest) -> bool {
        let _ = (node, request);
        true
    }

    /// Pages that the allocator manages in a zone; 0 if there is no such zone.
    fn managed(&self, node: NodeId, zone: ZoneKind) -> u64;

    /// Free pages of a zone.
    fn free(&self, node: NodeId, zone: ZoneKind) -> u64;

    /// A mark of a zone in pages, its boost included (B-49).
    fn mark(&self, node: NodeId, zone: ZoneKind, mark: Watermark) -> u64;

    /// The present watermark boost of a zone in pages.
    fn boost(&self, node: NodeId, zone: ZoneKind) -> u64 {
        let _ = (node, zone);
        0
    }

    /// Takes up to `pages` off a boost: they have been worked for (R-08).
    fn lower_boost(&self, node: NodeId, zone: ZoneKind, pages: u64) {
        let _ = (node, zone, pages);
    }

    /// What a zone keeps back from requests with this ceiling, in pages.
    fn lowmem_reserve(&self, node: NodeId, zone: ZoneKind, ceiling: ZoneKind) -> u64 {
        let _ = (node, zone, ceiling);
        0
    }

    /// Whether a zone passes the watermark check for a request without any privilege (alloc flags 0).
    fn watermark_ok(&self, node: NodeId, zone: ZoneKind, order: Order, mark: Watermark, ceiling: ZoneKind) -> bool;

    /// The check that decides whether background reclaim may stop. An allocator that defragments counts pages in whole
    /// pageblocks here for orders above 0.
    fn balanced(&self, node: NodeId, zone: ZoneKind, order: Order, mark: Watermark, ceiling: ZoneKind) -> bool {
        self.watermark_ok(node, zone, order, mark, ceiling)
    }

    /// The fragmentation index of a zone for an order, 0..=1000; `None` if it does not apply (a block is there, or nothing
    /// is free).
    fn fragmentation_index(&self, node: NodeId, zone: ZoneKind, order: Order) -> Option<u32> {
        let _ = (node, zone, order);
        None
    }

    /// Empties the per-CPU sets: a background run has freed nothing, and their pages do not count as free. Only where
    /// sleeping is allowed.
    fn drain(&self) {}

    /// Wakes the node's background compaction for an order. Never sleeps.
    fn wake_compaction(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        let _ = (node, order, ceiling);
    }

    /// Makes compaction forget which pageblocks it had given up on: background reclaim has finished its work (R-04).
    fn reset_compaction_hints(&self, node: NodeId) {
        let _ = node;
    }
}

impl<Z: Zones> Zones for &Z {
    fn nr_nodes(&self) -> u32 {
        (**self).nr_nodes()
    }
    fn nth_node(&self, from: NodeId, n: u32) -> Option<NodeId> {
        (**self).nth_node(from, n)
    }
    fn node_allowed(&self, node: NodeId, request: &ReclaimRequest) -> bool {
        (**self).node_allowed(node, request)
    }
    fn managed(&self, node: NodeId, zone: ZoneKind) -> u64 {
        (**self).managed(node, zone)
    }
    fn free(&self, node: NodeId, zone: ZoneKind) -> u64 {
        (**self).free(node, zone)
    }
    fn mark(&self, node: NodeId, zone: ZoneKind, mark: Watermark) -> u64 {
        (**self).mark(node, zone, mark)
    }
    fn boost(&self, node: NodeId, zone: ZoneKind) -> u64 {
        (**self).boost(node, zone)
    }
    fn lower_boost(&self, node: NodeId, zone: ZoneKind, pages: u64) {
        (**self).lower_boost(node, zone, pages);
    }
    fn lowmem_reserve(&self, node: NodeId, zone: ZoneKind, ceiling: ZoneKind) -> u64 {
        (**self).lowmem_reserve(node, zone, ceiling)
    }
    fn watermark_ok(&self, node: NodeId, zone: ZoneKind, order: Order, mark: Watermark, ceiling: ZoneKind) -> bool {
        (**self).watermark_ok(node, zone, order, mark, ceiling)
    }
    fn balanced(&self, node: NodeId, zone: ZoneKind, order: Order, mark: Watermark, ceiling: ZoneKind) -> bool {
        (**self).balanced(node, zone, order, mark, ceiling)
    }
    fn fragmentation_index(&self, node: NodeId, zone: ZoneKind, order: Order) -> Option<u32> {
        (**self).fragmentation_index(node, zone, order)
    }
    fn drain(&self) {
        (**self).drain();
    }
    fn wake_compaction(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        (**self).wake_compaction(node, order, ceiling);
    }
    fn reset_compaction_hints(&self, node: NodeId) {
        (**self).reset_compaction_hints(node);
    }
}

/// Decides what happens when nothing could be reclaimed for a request.
pub trait OomKiller: Sync {
    /// The last resort for a request of the whole machine. Called only where the request may sleep, after the page
    /// allocator has found that the request may have something killed (O-01..O-05).
    fn out_of_memory(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> OomOutcome;
}

/// Nothing is ever killed.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOom;

impl OomKiller for NoOom {
    fn out_of_memory(&self, _context: &dyn AllocContext, _request: &ReclaimRequest) -> OomOutcome {
        OomOutcome::NoVictim
    }
}

impl<O: OomKiller> OomKiller for &O {
    fn out_of_memory(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> OomOutcome {
        (**self).out_of_memory(context, request)
    }
}

impl<T: ReclaimEnv> ReclaimEnv for &T {
    type Cpu = T::Cpu;
    type Context = T::Context;
    type Zones = T::Zones;
    type Lists = T::Lists;
    type Groups = T::Groups;
    type Park = T::Park;
    type Oom = T::Oom;

    fn cpu(&self) -> &Self::Cpu {
        (**self).cpu()
    }
    fn context(&self) -> &Self::Context {
        (**self).context()
    }
    fn zones(&self) -> &Self::Zones {
        (**self).zones()
    }
    fn lists(&self) -> &Self::Lists {
        (**self).lists()
    }
    fn groups(&self) -> &Self::Groups {
        (**self).groups()
    }
    fn park(&self) -> &Self::Park {
        (**self).park()
    }
    fn oom(&self) -> &Self::Oom {
        (**self).oom()
    }
    fn nodes(&self) -> &[Node] {
        (**self).nodes()
    }
    fn can_swap(&self, group: GroupId) -> bool {
        (**self).can_swap(group)
    }
    fn can_compact(&self) -> bool {
        (**self).can_compact()
    }
    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        (**self).compact(context, request, priority)
    }
    fn memory_tiering(&self) -> bool {
        (**self).memory_tiering()
    }
    fn accounts_kernel_memory(&self) -> bool {
        (**self).accounts_kernel_memory()
    }
    fn reclaimable_slab_pages(&self, node: NodeId) -> u64 {
        (**self).reclaimable_slab_pages(node)
    }
    fn tick_ms(&self) -> u64 {
        (**self).tick_ms()
    }
    fn stall_enter(&self, context: &dyn AllocContext, kind: StallKind) -> usize {
        (**self).stall_enter(context, kind)
    }
    fn stall_leave(&self, context: &dyn AllocContext, kind: StallKind, token: usize) {
        (**self).stall_leave(context, kind, token);
    }
    fn pressure_of(&self, group: GroupId) -> Option<&VmPressure> {
        (**self).pressure_of(group)
    }
    fn pressure(&self, group: GroupId, level: PressureLevel) {
        (**self).pressure(group, level);
    }
}
