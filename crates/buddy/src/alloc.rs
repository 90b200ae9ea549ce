//! Allocation beyond the inline path: the request, the freelist pass over the zonelist, and one zone's turn.
//!
//! ```text
//! alloc_checked ─▶ pass (low mark) ─▶ zone: skip? mark? ─▶ per-CPU set ─▶ refill ─▶ take.rs
//!              └─▶ slowpath.rs     └─▶ next zone
//! ```

use kmem_gfp::alloc_flags::{AllocFlags, CpusetEntry, DefragMode, MobilityGrouping, NodeMask};
use kmem_gfp::select::Zonelist;
use kmem_gfp::{
    AllocContext, AllocError, Gfp, MigrateType, NodeId, Order, Pfn, PfnRange, ReclaimRequest, Reclaimer, TaskFlags,
    Watermark, ZoneKind, current_gfp_context,
};
use kmem_sync::atomic::Ordering;

use crate::buddy::Buddy;
use crate::cpu::CpuBlock;
use crate::env::BuddyEnv;
use crate::pcp::{ZoneSet, bump, is_middle};
use crate::state::State;
use crate::stats::Event;
use crate::take::Want;
use crate::zone::{Zone, flag};

/// One request on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) gfp: Gfp,
    pub(crate) order: Order,
    pub(crate) ceiling: ZoneKind,
    pub(crate) migratetype: MigrateType,
    pub(crate) node: NodeId,
    pub(crate) this_node: bool,
    pub(crate) task: TaskFlags,
    /// Only nodes that the running task's cpuset allows.
    pub(crate) task_nodes: bool,
    /// Nodes over their dirty limit are passed over.
    pub(crate) spread_dirty: bool,
}

impl Request {
    /// The request that a reclaimer was told of.
    pub(crate) fn of_reclaim(request: &ReclaimRequest, task: TaskFlags) -> Self {
        Self {
            gfp: request.gfp,
            order: request.order,
            ceiling: request.ceiling,
            migratetype: request.migratetype,
            node: request.node,
            this_node: request.this_node_only,
            task,
            task_nodes: false,
            spread_dirty: false,
        }
    }

    /// What a reclaimer is told.
    pub(crate) fn for_reclaim(&self) -> ReclaimRequest {
        ReclaimRequest {
            gfp: self.gfp,
            order: self.order,
            ceiling: self.ceiling,
            node: self.node,
            this_node_only: self.this_node,
            migratetype: self.migratetype,
        }
    }
}

/// Node reclaim looks no further than this.
const RECLAIM_DISTANCE: u32 = 30;

impl<E: BuddyEnv> Buddy<E> {
    /// A request for which the inline path found nothing. `None`: see `error`.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_missed(&self, gfp: Gfp, order: Order, error: &mut AllocError) -> Option<Pfn> {
        let injected = !E::INJECTS_ANYWHERE && gfp.may_be_injected() && self.env().inject_failure(gfp, order);
        let found = if injected { Err(AllocError::Injected) } else { self.alloc_checked(gfp, order, None) };
        found.map_err(|why| *error = why).ok()
    }

    /// Every request that the inline path does not take.
    #[inline(never)]
    pub(crate) fn alloc_general(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        self.debug_sleep_check(gfp);
        if gfp.may_be_injected() && self.env().inject_failure(gfp, order) {
            return Err(AllocError::Injected);
        }
        let plain = node.is_none()
            && !gfp.intersects(Gfp::ACCOUNT | Gfp::THISNODE)
            && !(gfp.contains(Gfp::MOVABLE) && self.task_flags().contains(TaskFlags::PIN));
        if plain && let Some(pfn) = self.pop_cached(gfp, order) {
            if gfp.contains(Gfp::ZERO) {
                self.zero_for_alloc(pfn, order);
            }
            return Ok(pfn);
        }
        self.alloc_checked(gfp, order, node)
    }

    /// Allocates, the fault injector having been asked.
    pub(crate) fn alloc_checked(&self, gfp: Gfp, order: Order, node: Option<NodeId>) -> Result<Pfn, AllocError> {
        let state = self.state().filter(|_| self.is_ready()).ok_or(AllocError::NotReady)?;
        let request = self.request(state, gfp, order, node)?;
        let cpuset = if self.options().cpusets {
            CpusetEntry::with_cpusets(NodeMask::Unspecified, request.task)
        } else {
            CpusetEntry::Off
        };
        let fast = Request {
            gfp: cpuset.fast_gfp(request.gfp),
            task_nodes: cpuset == CpusetEntry::TaskNodes,
            spread_dirty: request.gfp.contains(Gfp::WRITE),
            ..request
        };
        let flags = AllocFlags::fast_path(request.gfp, request.migratetype, cpuset, self.nofragment(state, &request));
        let pfn = match self.pass(state, &fast, flags) {
            Some(pfn) => pfn,
            None => self.alloc_slow(state, &request)?,
        };
        self.prepare(state, &request, pfn)
    }

    /// Derives a request from what the caller gave.
    pub(crate) fn request(
        &self,
        state: &State,
        gfp: Gfp,
        order: Order,
        node: Option<NodeId>,
    ) -> Result<Request, AllocError> {
        let task = self.task_flags();
        let allowed = Gfp::from_bits_retain(state.allowed_mask.load(Ordering::Relaxed));
        let gfp = current_gfp_context(gfp.intersection(allowed), task);
        let grouping =
            if state.grouping.load(Ordering::Relaxed) { MobilityGrouping::Enabled } else { MobilityGrouping::Disabled };
        let selection = state.zone_table.select(gfp, grouping).map_err(|_| AllocError::BadFlags(gfp))?;
        let node = match node {
            Some(node) if node.0 >= state.nr_nodes => return Err(AllocError::NoSuchNode(node)),
            Some(node) => node,
            None => self.local_node(state),
        };
        Ok(Request {
            gfp,
            order,
            ceiling: selection.ceiling,
            migratetype: selection.migrate_type,
            node,
            this_node: selection.zonelist == Zonelist::ThisNode,
            task,
            task_nodes: false,
            spread_dirty: false,
        })
    }

    fn local_node(&self, state: &State) -> NodeId {
        let node = self.env().context().local_node();
        if node.0 < state.nr_nodes { node } else { NodeId(0) }
    }

    /// The zones that may serve a request, in order.
    pub(crate) fn allowed_zones<'s>(
        &self,
        state: &'s State,
        request: &Request,
    ) -> impl Iterator<Item = &'s Zone> + use<'s, E> {
        let (ceiling, node, this_node) = (request.ceiling, request.node, request.this_node);
        state
            .zonelist(node)
            .filter(move |zone| zone.kind <= ceiling && zone.managed_pages() > 0 && (!this_node || zone.node == node))
    }

    fn nofragment(&self, state: &State, request: &Request) -> AllocFlags {
        let Some(preferred) = self.allowed_zones(state, request).next() else { return AllocFlags::empty() };
        let dma32 = state.zone(preferred.node, ZoneKind::Dma32).is_some_and(Zone::is_populated);
        AllocFlags::nofragment(preferred.kind, dma32, self.defrag_mode())
    }

    pub(crate) fn defrag_mode(&self) -> DefragMode {
        if self.options().defrag_mode { DefragMode::On } else { DefragMode::Off }
    }

    /// Looks through the zonelist once for a block (`get_page_from_freelist`).
    pub(crate) fn pass(&self, state: &State, request: &Request, mut flags: AllocFlags) -> Option<Pfn> {
        let preferred = self.allowed_zones(state, request).next()?;
        let mut skip_busy = state.nr_nodes > 1;
        'again: loop {
            let mut skipped = false;
            let defrag = self.options().defrag_mode;
            for zone in self.allowed_zones(state, request) {
                let ask_cpuset = self.options().cpusets && (flags.contains(AllocFlags::CPUSET) || request.task_nodes);
                if ask_cpuset && !self.env().node_allowed(zone.node, request.gfp) {
                    continue;
                }
                if request.spread_dirty && self.env().over_dirty_limit(zone.node) {
                    continue;
                }
                if flags.contains(AllocFlags::NOFRAGMENT) && !defrag && zone.node != preferred.node {
                    // Mixing types here is better than going to another node.
                    flags = flags.difference(AllocFlags::NOFRAGMENT);
                    continue 'again;
                }
                if skip_busy && self.env().background_running(zone.node) {
                    skipped = true;
                    continue;
                }
                if !self.may_take(zone, request, flags) {
                    continue;
                }
                if let Some(pfn) = self.take_from(state, zone, preferred, request, flags) {
                    return Some(pfn);
                }
            }
            if skipped {
                skip_busy = false;
            } else if flags.contains(AllocFlags::NOFRAGMENT) && !defrag {
                flags = flags.difference(AllocFlags::NOFRAGMENT);
            } else {
                return None;
            }
        }
    }

    /// Whether the watermark lets the request take from a zone.
    fn may_take(&self, zone: &Zone, request: &Request, flags: AllocFlags) -> bool {
        let (order, ceiling) = (request.order, request.ceiling);
        // With plenty of memory the search for a block is the test.
        if order <= Order::PAGEBLOCK && !zone.pressed.load(Ordering::Relaxed) {
            return true;
        }
        if !zone.has_flag(flag::BELOW_HIGH) {
            if zone.watermark_ok(order, Watermark::High, ceiling, flags) {
                return true;
            }
            zone.set_flag(flag::BELOW_HIGH, true);
        }
        if zone.watermark_ok(order, flags.watermark(), ceiling, flags) {
            return true;
        }
        self.options().node_reclaim
            && request.gfp.allows_blocking()
            && !request.task.contains(TaskFlags::MEMALLOC)
            && self.env().distance(request.node, zone.node) <= RECLAIM_DISTANCE
            && (zone.node == request.node || !self.env().node_has_cpus(zone.node))
            && self.reclaim_node(zone, request)
            && zone.watermark_ok(order, flags.watermark(), ceiling, flags)
    }

    fn reclaim_node(&self, zone: &Zone, request: &Request) -> bool {
        let freed = self.env().reclaim_node(zone.node, &request.for_reclaim());
        if let Some(state) = self.state() {
            state.count(if freed { Event::ZoneReclaimSuccess } else { Event::ZoneReclaimFailed });
        }
        freed
    }

    /// Takes a block from one zone whose watermark allows it (`rmqueue`).
    pub(crate) fn take_from(
        &self,
        state: &State,
        zone: &Zone,
        preferred: &Zone,
        request: &Request,
        flags: AllocFlags,
    ) -> Option<Pfn> {
        let stack = self.stack_for(zone, request.order, request.migratetype);
        let cached = match stack {
            // The highatomic reserve must see its requests.
            Some(stack) if !flags.contains(AllocFlags::HIGHATOMIC) && !zone.has_flag(flag::SETS_OFF) => self
                .section(|sets| {
                    let set = sets.zone_set(zone)?;
                    let pfn = self.take_cached(state, zone, set, stack, request, flags, sets)?;
                    self.count_numa(Some(set), sets.node, zone, preferred);
                    Some(pfn)
                })
                .flatten(),
            _ => None,
        };
        let pfn = match cached {
            Some(pfn) => pfn,
            None => self.take_direct(state, zone, preferred, request, flags)?,
        };
        if zone.has_flag(flag::BOOSTED) && flags.contains(AllocFlags::KSWAPD) {
            zone.set_flag(flag::BOOSTED, false);
            self.env().reclaimer().wake_background(zone.node, &request.for_reclaim());
        }
        Some(pfn)
    }

    /// Takes a block from this CPU's set, refilling it when it is empty.
    #[allow(clippy::too_many_arguments, reason = "one zone's turn has this many facts")]
    pub(crate) fn take_cached(
        &self,
        state: &State,
        zone: &Zone,
        set: &ZoneSet,
        stack: usize,
        request: &Request,
        flags: AllocFlags,
        sets: &CpuBlock,
    ) -> Option<Pfn> {
        // SAFETY: inside the section of the set's CPU.
        if let Some(pfn) = unsafe { set.pop_any(stack) } {
            return Some(pfn);
        }
        // Under pressure nothing of the middle orders is laid by.
        if set.room(stack) == 0 || (is_middle(stack) && zone.pressed.load(Ordering::Relaxed)) {
            return None;
        }
        let (nr, before) = self.refill_amount(zone, set, stack);
        let want = Want {
            migratetype: request.migratetype,
            order: request.order.get(),
            nr: nr.min(set.room(stack) as u32),
            flags,
            part: (sets.cpu.index(), state.nr_cpus()),
        };
        if want.nr == 0 {
            return None;
        }
        // SAFETY: inside the section of the set's CPU, which `take` does not use. There is room for `nr` blocks: the stack was
        // empty and `nr` is at most its room.
        unsafe {
            set.refill(stack, |filler| {
                self.take(state, zone, &want, |pfn| filler.push(pfn));
            })
        };
        self.after_refill(zone, set, stack, before);
        // SAFETY: inside the section of the set's CPU.
        unsafe { set.pop_any(stack) }
    }

    /// Takes a block from the bitmaps.
    fn take_direct(
        &self,
        state: &State,
        zone: &Zone,
        preferred: &Zone,
        request: &Request,
        flags: AllocFlags,
    ) -> Option<Pfn> {
        let mut want =
            Want { migratetype: request.migratetype, order: request.order.get(), nr: 1, flags, part: (0, 1) };
        let mut found = None;
        let counted = self
            .section(|sets| {
                want.part = (sets.cpu.index(), state.nr_cpus());
                self.take(state, zone, &want, |pfn| found = Some(pfn));
                if found.is_some() {
                    let set = sets.zone_set(zone);
                    self.count_direct(set, zone, request.order);
                    self.count_numa(set, sets.node, zone, preferred);
                }
            })
            .is_some();
        if !counted {
            self.take(state, zone, &want, |pfn| found = Some(pfn));
            if found.is_some() {
                self.count_direct(None, zone, request.order);
                self.count_numa(None, zone.node, zone, preferred);
            }
        }
        let pfn = found?;
        if flags.contains(AllocFlags::HIGHATOMIC) {
            self.reserve_highatomic(state, zone, pfn, request.order);
        }
        Some(pfn)
    }

    fn count_direct(&self, set: Option<&ZoneSet>, zone: &Zone, order: Order) {
        bump(set.map(|set| &set.allocated_pages), &zone.allocated_pages, order.nr_pages() as u64);
        bump(set.map(|set| &set.allocated_calls), &zone.allocated_calls, 1);
    }

    fn count_numa(&self, set: Option<&ZoneSet>, cpu_node: NodeId, zone: &Zone, preferred: &Zone) {
        if zone.node != preferred.node {
            bump(set.map(|set| &set.numa_miss), &zone.numa_miss, 1);
            // The preferred zone's set is another one; its shared counter is exact as well.
            preferred.numa_foreign.fetch_add(1, Ordering::Relaxed);
        }
        if zone.node != cpu_node {
            bump(set.map(|set| &set.numa_other), &zone.numa_other, 1);
        }
    }

    /// What is due between finding a block and handing it out.
    pub(crate) fn prepare(&self, state: &State, request: &Request, pfn: Pfn) -> Result<Pfn, AllocError> {
        let (gfp, order) = (request.gfp, request.order);
        self.mark_owned(state, pfn, true);
        if gfp.contains(Gfp::ACCOUNT) && !self.env().charge(gfp, pfn, order) {
            // Ours, and nobody has seen it.
            let freed = self.free_general(pfn, order);
            debug_assert!(freed.is_ok(), "{freed:?}");
            return Err(AllocError::OverLimit { order, gfp });
        }
        if gfp.contains(Gfp::ZERO) || self.options().init_on_alloc {
            self.zero_for_alloc(pfn, order);
        }
        Ok(pfn)
    }

    /// Zeroes a block that is about to be handed out, unless that happened when it was freed.
    fn zero_for_alloc(&self, pfn: Pfn, order: Order) {
        if self.options().init_on_free {
            return;
        }
        if let Some(range) = PfnRange::block(pfn, order) {
            // SAFETY: the block has been taken and not been handed out: it is ours.
            unsafe { self.env().zero_frames(range) };
        }
    }

    /// Notes that a block is a caller's, or no more. Only with `check_free`.
    #[inline]
    pub(crate) fn mark_owned(&self, state: &State, pfn: Pfn, owned: bool) {
        if self.options().check_free
            && let Some(block) = state.block_of(pfn)
            && let Some(line) = block.arena.owned.get(block.index)
        {
            line.assign((pfn.0 % 512) as u32, 1, owned);
        }
    }
}
