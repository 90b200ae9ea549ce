//! What a machine supplies: the parts of this crate, put together for the allocators.
//!
//! ```text
//! Host<C> ─┬─ cpu        C: HostCpu (a machine) or HeapCpu (the global heap)
//!          ├─ context    the thread's task flags, the node of its CPU, reports
//!          ├─ grace      epochs over the CPUs' slots
//!          ├─ reclaimer  what the builder was given, or none
//!          ├─ frames     one flat table over the span
//!          ├─ movable    pages that move while they are in use, and who owns the others that do
//!          ├─ ram        zeroing, giving back to the host
//!          └─ space      the window in which vmalloc maps frames a second time
//! ```

use core::fmt;
use std::sync::OnceLock;

use kmem::MmReclaimer;
use kmem_gfp::{
    AllocContext, CompactOutcome, CompactPriority, FlatFrameTable, FrameTable, MovableOwner, NodeId, OomOutcome, Order,
    OwnerTag, Pfn, ReclaimRequest, Reclaimer, TaskFlags, ZoneKind,
};
use kmem_sync::atomic::{AtomicU64, Ordering};
use kmem_sync::{Cpu, CpuId};

use crate::builder::Tunables;
use crate::context::{self, ReportSink, Reports};
use crate::grace::{EpochGrace, SlotCpu};
use crate::grow::Rest;
use crate::memory::HostMemory;
use crate::movable::{Compactor, Movable};
use crate::ram::Ram;
use crate::space::HostSpace;
use crate::{HostCpu, sys};

/// The running host thread as a task of the machine.
#[derive(Debug)]
pub struct HostContext<C> {
    cpu: C,
    nodes: u32,
    reports: ReportSink,
}

impl<C: Cpu> HostContext<C> {
    /// The node of a CPU: CPUs are dealt out to the nodes in blocks.
    pub(crate) fn node_of(&self, cpu: CpuId) -> NodeId {
        let node = u64::from(cpu.0) * u64::from(self.nodes) / u64::from(self.cpu.nr_cpus().max(1));
        NodeId(node as u32)
    }

    /// What has been reported since the last call, if reports are captured.
    pub(crate) fn take_reports(&self) -> String {
        self.reports.take(&self.cpu)
    }
}

impl<C: Cpu> AllocContext for HostContext<C> {
    #[inline(always)]
    fn task_flags(&self) -> TaskFlags {
        context::task_flags()
    }
    #[inline]
    fn update_task_flags(&self, set: TaskFlags, clear: TaskFlags) -> TaskFlags {
        context::update_task_flags(set, clear)
    }
    #[inline(always)]
    fn local_node(&self) -> NodeId {
        if self.nodes == 1 {
            return NodeId(0);
        }
        self.cpu.try_pin().map_or(NodeId(0), |cpu| self.node_of(cpu))
    }
    fn yield_now(&self) {
        crate::memory::deliver_signals();
        sys::sched_yield();
    }
    fn now_ms(&self) -> u64 {
        sys::now_ms()
    }
    fn report(&self, line: fmt::Arguments<'_>) {
        self.reports.line(&self.cpu, line);
    }
}

/// The machine's reclaimer: memory that the page allocator has not been given yet, then the reclaimer that the builder was
/// given, if any. Compaction is the given reclaimer's if it does it, else the machine's own.
pub struct HostReclaimer {
    given: Option<&'static (dyn Reclaimer + Sync)>,
    rest: OnceLock<&'static Rest>,
    /// Reclaim of the machine itself, once it is installed.
    mm: MmReclaimer<Host<HostCpu>>,
    compactor: OnceLock<&'static Compactor>,
}

impl fmt::Debug for HostReclaimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostReclaimer").field("given", &self.given.is_some()).finish_non_exhaustive()
    }
}

impl HostReclaimer {
    /// Says where more memory is to be had.
    pub(crate) fn set_rest(&self, rest: &'static Rest) {
        // Set once, at boot; a second value would be a mistake without consequences.
        let _ = self.rest.set(rest);
    }

    /// Reclaim of the machine itself.
    #[inline(always)]
    pub(crate) fn mm(&self) -> &MmReclaimer<Host<HostCpu>> {
        &self.mm
    }

    /// Whoever reclaims here.
    fn who(&self) -> Option<&dyn Reclaimer> {
        match self.given {
            Some(given) => Some(given),
            None if self.mm.can_reclaim() => Some(&self.mm),
            None => None,
        }
    }

    /// Says who compacts on behalf of requests, if the given reclaimer does not.
    pub(crate) fn set_compactor(&self, compactor: &'static Compactor) {
        // As above.
        let _ = self.compactor.set(compactor);
    }

    /// Whoever reclaims, if it compacts.
    fn compacting(&self) -> Option<&dyn Reclaimer> {
        self.who().filter(|reclaimer| reclaimer.can_compact())
    }

    /// Wakes background compaction, if there is any.
    pub(crate) fn wake_compactor(&self, node: NodeId, order: Order, ceiling: ZoneKind) {
        if let Some(compactor) = self.compactor.get() {
            compactor.wake(node, order, ceiling);
        }
    }

    fn add_memory(&self, node: NodeId) -> usize {
        self.rest.get().map_or(0, |rest| rest.add(node))
    }
}

impl Reclaimer for HostReclaimer {
    fn can_reclaim(&self) -> bool {
        self.who().is_some_and(|reclaimer| reclaimer.can_reclaim())
    }
    #[inline]
    fn wake_background(&self, node: NodeId, request: &ReclaimRequest) {
        if self.add_memory(node) > 0 {
            return;
        }
        match (self.who(), self.compactor.get()) {
            // Its background reclaim wakes the compaction daemon when its own work is done.
            (Some(reclaimer), _) if reclaimer.can_reclaim() => reclaimer.wake_background(node, request),
            (_, Some(compactor)) if request.order > Order::ZERO => compactor.wake(node, request.order, request.ceiling),
            _ => {}
        }
    }
    fn reclaim(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> usize {
        match self.add_memory(request.node) {
            0 => self.who().map_or(0, |reclaimer| reclaimer.reclaim(context, request)),
            added => added,
        }
    }
    fn compact(
        &self,
        context: &dyn AllocContext,
        request: &ReclaimRequest,
        priority: CompactPriority,
    ) -> CompactOutcome {
        match (self.compacting(), self.compactor.get()) {
            (Some(reclaimer), _) => reclaimer.compact(context, request, priority),
            (None, Some(compactor)) => compactor.compact(context, request, priority),
            (None, None) => CompactOutcome::Skipped,
        }
    }
    fn can_compact(&self) -> bool {
        self.compacting().is_some() || self.compactor.get().is_some()
    }
    fn reclaimable_pages(&self, node: NodeId, zone: ZoneKind) -> u64 {
        self.who().map_or(0, |reclaimer| reclaimer.reclaimable_pages(node, zone))
    }
    fn out_of_memory(&self, context: &dyn AllocContext, request: &ReclaimRequest) -> OomOutcome {
        let outcome = self.who().map_or(OomOutcome::NoVictim, |reclaimer| reclaimer.out_of_memory(context, request));
        // The victim may be the one who asked.
        crate::memory::deliver_signals();
        outcome
    }
}

impl<C: Cpu + Sync> Host<C> {
    /// Who moves a frame, as its words say.
    #[inline]
    pub(crate) fn owner_of(&self, pfn: Pfn) -> Option<&dyn MovableOwner> {
        let words = self.table.words(pfn)?;
        if self.movable.owns(words) {
            return Some(&self.movable);
        }
        let tag = OwnerTag::of(words.owner.load(Ordering::Relaxed));
        self.owners.0.get(tag as usize)?.get().copied()
    }
}

/// What distinguishes the platforms of this crate besides their CPUs.
pub(crate) struct HostOptions {
    pub(crate) nodes: u32,
    pub(crate) reports: Reports,
    pub(crate) reclaimer: Option<&'static (dyn Reclaimer + Sync)>,
    pub(crate) tunables: Tunables,
}

/// Owners of frames that move, by the tag in the frames' words.
struct Owners([OnceLock<&'static dyn MovableOwner>; 8]);

impl fmt::Debug for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|place| place.get().is_some())).finish()
    }
}

/// What the allocators of a machine in this process stand on. `C` are its CPUs: [`HostCpu`](crate::HostCpu), or
/// [`HeapCpu`](crate::HeapCpu) for the global heap.
#[derive(Debug)]
pub struct Host<C> {
    pub(crate) cpu: C,
    pub(crate) table: FlatFrameTable,
    pub(crate) context: HostContext<C>,
    pub(crate) grace: EpochGrace<C>,
    pub(crate) reclaimer: HostReclaimer,
    pub(crate) tunables: Tunables,
    pub(crate) ram: &'static Ram,
    pub(crate) space: HostSpace,
    /// Pages with contents, swap, tasks: set if the machine reclaims.
    pub(crate) memory: OnceLock<&'static HostMemory>,
    pub(crate) movable: Movable<C>,
    owners: Owners,
    /// Page requests up to and including the one that fails; zero: none does.
    fail_in: AtomicU64,
}

#[expect(private_bounds, reason = "only this crate's CPUs have slots, and only it makes hosts")]
impl<C: SlotCpu + Copy> Host<C> {
    pub(crate) fn new(cpu: C, ram: &'static Ram, options: HostOptions) -> Self {
        let HostOptions { nodes, reports, reclaimer, tunables } = options;
        Self {
            cpu,
            table: *ram.table(),
            context: HostContext { cpu, nodes, reports: ReportSink::new(reports) },
            grace: EpochGrace::new(cpu),
            reclaimer: HostReclaimer {
                given: reclaimer,
                rest: OnceLock::new(),
                mm: MmReclaimer::new(),
                compactor: OnceLock::new(),
            },
            tunables,
            ram,
            space: HostSpace::NONE,
            memory: OnceLock::new(),
            movable: Movable::new(cpu, *ram.table()),
            owners: Owners([const { OnceLock::new() }; 8]),
            fail_in: AtomicU64::new(0),
        }
    }

    /// With a window for vmalloc.
    pub(crate) fn with_space(self, space: HostSpace) -> Self {
        Self { space, movable: self.movable.with_space(space), ..self }
    }

    /// Says who moves the frames whose words have this tag; `false` if somebody has been named already.
    pub(crate) fn set_movable_owner(&self, tag: OwnerTag, owner: &'static dyn MovableOwner) -> bool {
        self.owners.0.get(tag as usize).is_some_and(|place| place.set(owner).is_ok())
    }

    /// Makes the `nth` page request from now on fail, once; zero: none.
    pub(crate) fn fail_page_request(&self, nth: u64) {
        self.fail_in.store(nth, Ordering::Relaxed);
    }

    /// Whether a page request is still to fail.
    pub(crate) fn failure_pending(&self) -> bool {
        self.fail_in.load(Ordering::Relaxed) != 0
    }

    /// Whether this page request is to fail.
    #[inline(always)]
    pub(crate) fn fails_now(&self) -> bool {
        self.fail_in.load(Ordering::Relaxed) != 0 && self.count_down()
    }

    #[cold]
    fn count_down(&self) -> bool {
        self.fail_in.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) == Ok(1)
    }
}
