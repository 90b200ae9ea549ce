//! The slow path: what to do, in which order, when the first pass over the zonelist found nothing.
//!
//! ```text
//! restart ─▶ retry ─▶ wake background reclaim ─▶ pass at the min mark ─▶ reserves? ─▶ pass
//!              ▲       may not sleep, or is itself reclaiming ─────────────────────────────▶ no page
//!              │       direct reclaim ─▶ pass ─▶ unreserve, drain, pass      (not before compaction, for high orders)
//!              │       direct compaction ─▶ pass
//!              │       NORETRY, costly ────────────────────────────────────────────────────▶ no page
//!              ├────── worth another reclaim?  another compaction?
//!              └────── last resort made progress?                         else ────────────▶ no page
//! no page: zones changed ─▶ restart;  NOFAIL ─▶ half of the reserve, yield, retry;  else report and fail
//! ```
//!
//! All counters live in the request. The environment's reclaimer does the work; this file only decides.

use kmem_gfp::alloc_flags::{AllocFlags, CpusetRule, Reserve};
use kmem_gfp::verdict::OomEligibility;
use kmem_gfp::{
    AllocContext, AllocError, CompactOutcome, CompactPriority, Gfp, NodeId, OomOutcome, Order, Pfn, ReclaimRequest,
    Reclaimer, TaskFlags, Watermark,
};
use kmem_sync::atomic::Ordering;

use crate::alloc::Request;
use crate::buddy::Buddy;
use crate::env::BuddyEnv;
use crate::state::State;
use crate::stats::Event;

/// Rounds of reclaim without progress before it is given up.
const MAX_RECLAIM_RETRIES: u32 = 16;
/// Compactions that looked successful before a more thorough one is tried.
const MAX_COMPACT_RETRIES: u32 = 16;
/// A request that takes longer is reported.
pub(crate) const STALL_MS: u64 = 10_000;

/// Warnings that are given once.
mod warning {
    pub(super) const NOFAIL_CANNOT_WAIT: u32 = 1 << 0;
    pub(super) const NOFAIL_IN_RECLAIM: u32 = 1 << 1;
}

/// How far one request has come.
struct Attempt {
    flags: AllocFlags,
    priority: CompactPriority,
    compact_first: bool,
    reserve_tried: bool,
    no_progress: u32,
    compactions: u32,
    generation: u64,
}

/// What the next step is.
enum Step {
    Found(Pfn),
    Retry,
    Restart,
    NoPage,
}

impl<E: BuddyEnv> Buddy<E> {
    /// Everything after a failed fast path.
    #[cold]
    #[inline(never)]
    pub(crate) fn alloc_slow(&self, state: &State, request: &Request) -> Result<Pfn, AllocError> {
        self.warn_nofail(state, request);
        let started = self.env().context().now_ms();
        'restart: loop {
            let can_compact = self.env().reclaimer().can_compact();
            let mut attempt = Attempt {
                flags: AllocFlags::slow_path(
                    request.gfp,
                    request.order,
                    request.migratetype,
                    request.task,
                    self.defrag_mode(),
                ),
                priority: request.gfp.initial_priority(request.order, request.migratetype, can_compact),
                compact_first: request.gfp.compacts_first(request.order, request.migratetype, can_compact),
                reserve_tried: false,
                no_progress: 0,
                compactions: 0,
                generation: state.generation.load(Ordering::Acquire),
            };
            let usable = self.allowed_zones(state, request).next().is_some();
            loop {
                // The task may have been killed meanwhile.
                let request = &Request { task: self.task_flags(), ..*request };
                let step = if usable { self.retry(state, request, &mut attempt, started) } else { Step::NoPage };
                match step {
                    Step::Found(pfn) => return Ok(pfn),
                    Step::Retry => {}
                    Step::Restart => continue 'restart,
                    Step::NoPage => {
                        if self.changed_since(state, &attempt) {
                            continue 'restart;
                        }
                        if !request.gfp.contains(Gfp::NOFAIL) || !request.gfp.allows_blocking() {
                            self.report_failure(state, request);
                            return Err(AllocError::NoMemory { order: request.order, gfp: request.gfp });
                        }
                        for rule in [CpusetRule::Honour, CpusetRule::Ignore] {
                            let flags = attempt.flags.nofail_lap(rule);
                            if let Some(pfn) = self.pass(state, request, flags) {
                                return Ok(pfn);
                            }
                        }
                        self.env().context().yield_now();
                    }
                }
            }
        }
    }

    /// One lap. The numbers are those of the reference's step list.
    fn retry(&self, state: &State, request: &Request, attempt: &mut Attempt, started: u64) -> Step {
        let gfp = request.gfp;
        let reclaimer = self.env().reclaimer();
        let can_compact = reclaimer.can_compact() && gfp.allows_compaction();
        // 1
        if attempt.flags.contains(AllocFlags::KSWAPD) {
            self.wake_background(state, request);
        }
        // 2
        if let Some(pfn) = self.pass(state, request, attempt.flags) {
            return Step::Found(pfn);
        }
        // 3
        let reserve = Reserve::decide(gfp, request.task);
        attempt.flags = attempt.flags.with_reserve(reserve);
        if (reserve.is_granted() || !attempt.flags.contains(AllocFlags::CPUSET)) && !attempt.reserve_tried {
            attempt.reserve_tried = true;
            return Step::Retry;
        }
        // 4
        if !gfp.allows_blocking() {
            let may_mix =
                self.options().defrag_mode && attempt.flags.contains(AllocFlags::NOFRAGMENT) && gfp.wakes_kswapd();
            if may_mix {
                attempt.flags = attempt.flags.difference(AllocFlags::NOFRAGMENT);
                return Step::Retry;
            }
            return Step::NoPage;
        }
        // 5
        if request.task.contains(TaskFlags::MEMALLOC) {
            return Step::NoPage;
        }
        // 6
        self.report_stall(state, request, started);
        // 7
        let mut progress = 0;
        if !attempt.compact_first {
            let (found, freed) = self.reclaim_directly(state, request, attempt.flags);
            if let Some(pfn) = found {
                return Step::Found(pfn);
            }
            progress = freed;
        }
        // 8
        let (found, outcome) = self.compact_directly(state, request, attempt);
        if let Some(pfn) = found {
            return Step::Found(pfn);
        }
        // 9
        if attempt.compact_first {
            if gfp.contains(Gfp::NORETRY | Gfp::THISNODE) {
                return Step::NoPage;
            }
            if !gfp.contains(Gfp::NORETRY) {
                attempt.priority = CompactPriority::SyncLight;
            }
            attempt.compact_first = false;
            return Step::Retry;
        }
        // 10
        if gfp.contains(Gfp::NORETRY) {
            return Step::NoPage;
        }
        // 11
        if request.order.is_costly() && (!can_compact || !gfp.contains(Gfp::RETRY_MAYFAIL)) {
            return Step::NoPage;
        }
        // 12
        if self.changed_since(state, attempt) {
            return Step::Restart;
        }
        // 13
        if self.should_retry_reclaim(state, request, attempt, progress) {
            return Step::Retry;
        }
        // 14
        if progress > 0 && can_compact && self.should_retry_compaction(state, request, attempt, outcome) {
            return Step::Retry;
        }
        // 15
        if self.options().defrag_mode && attempt.flags.contains(AllocFlags::NOFRAGMENT) {
            attempt.flags = attempt.flags.difference(AllocFlags::NOFRAGMENT);
            return Step::Retry;
        }
        // 16
        if self.changed_since(state, attempt) {
            return Step::Restart;
        }
        // 17
        let (found, progressed) = self.last_resort(state, request, can_compact);
        if let Some(pfn) = found {
            return Step::Found(pfn);
        }
        // 18
        let victim = request.task.contains(TaskFlags::OOM_VICTIM);
        if victim && (attempt.flags.contains(AllocFlags::OOM) || gfp.contains(Gfp::NOMEMALLOC)) {
            return Step::NoPage;
        }
        // 19
        if progressed {
            attempt.no_progress = 0;
            return Step::Retry;
        }
        Step::NoPage
    }

    fn changed_since(&self, state: &State, attempt: &Attempt) -> bool {
        state.generation.load(Ordering::Acquire) != attempt.generation
    }

    /// Wakes background reclaim on each node of the zonelist once.
    fn wake_background(&self, state: &State, request: &Request) {
        let mut told = request.for_reclaim();
        if self.options().defrag_mode && told.order < Order::PAGEBLOCK {
            told.order = Order::PAGEBLOCK;
        }
        let mut last: Option<NodeId> = None;
        for zone in self.allowed_zones(state, request) {
            if last != Some(zone.node) {
                last = Some(zone.node);
                self.env().reclaimer().wake_background(zone.node, &told);
            }
        }
    }

    /// Runs `f` with the task marked as reclaiming, so that its own allocations use reserves and do not recurse.
    fn marked_as_reclaiming<R>(&self, f: impl FnOnce(&dyn AllocContext, &E::Reclaimer) -> R) -> R {
        let context = self.env().context();
        let before = context.update_task_flags(TaskFlags::MEMALLOC, TaskFlags::empty());
        let result = f(&context, self.env().reclaimer());
        if !before.contains(TaskFlags::MEMALLOC) {
            context.update_task_flags(TaskFlags::empty(), TaskFlags::MEMALLOC);
        }
        result
    }

    fn reclaim_directly(&self, state: &State, request: &Request, flags: AllocFlags) -> (Option<Pfn>, usize) {
        state.count(Event::alloc_stall(request.ceiling));
        let told = request.for_reclaim();
        let freed = self.marked_as_reclaiming(|context, reclaimer| reclaimer.reclaim(context, &told));
        if freed == 0 {
            return (None, 0);
        }
        if let Some(pfn) = self.pass(state, request, flags) {
            return (Some(pfn), freed);
        }
        // What was freed may lie in the reserve or in some CPU's sets.
        self.unreserve_highatomic(state, request, false);
        self.drain_all_pages();
        (self.pass(state, request, flags), freed)
    }

    fn compact_directly(&self, state: &State, request: &Request, attempt: &Attempt) -> (Option<Pfn>, CompactOutcome) {
        let mut told: ReclaimRequest = request.for_reclaim();
        let keeps_types =
            attempt.flags.contains(AllocFlags::NOFRAGMENT) && request.migratetype != kmem_gfp::MigrateType::Movable;
        if keeps_types && told.order < Order::PAGEBLOCK {
            told.order = Order::PAGEBLOCK;
        }
        let possible = self.env().reclaimer().can_compact() && request.gfp.allows_compaction();
        if told.order == Order::ZERO || !possible {
            return (None, CompactOutcome::Skipped);
        }
        // A block of another order than asked for is not ours to take.
        let waiting = if told.order == request.order { state.captures.publish(&told) } else { None };
        let outcome =
            self.marked_as_reclaiming(|context, reclaimer| reclaimer.compact(context, &told, attempt.priority));
        let captured = waiting.and_then(|waiting| state.captures.collect(waiting));
        if captured.is_none() && matches!(outcome, CompactOutcome::Skipped | CompactOutcome::Deferred) {
            return (None, outcome);
        }
        state.count(Event::CompactStall);
        let found = captured.or_else(|| self.pass(state, request, attempt.flags));
        if let Some(zone) = found.and_then(|pfn| state.block_of(pfn)).and_then(|block| block.zone()) {
            zone.progress.succeeded(request.order, true);
        }
        state.count(if found.is_some() { Event::CompactSuccess } else { Event::CompactFail });
        (found, outcome)
    }

    /// Whether another round of reclaim could help.
    fn should_retry_reclaim(&self, state: &State, request: &Request, attempt: &mut Attempt, progress: usize) -> bool {
        if progress > 0 && !request.order.is_costly() {
            attempt.no_progress = 0;
        } else {
            attempt.no_progress += 1;
        }
        let hopeful = attempt.no_progress <= MAX_RECLAIM_RETRIES
            && self.allowed_zones(state, request).any(|zone| {
                let reclaimable = self.env().reclaimer().reclaimable_pages(zone.node, zone.kind);
                zone.watermark_ok_with(request.order, Watermark::Min, request.ceiling, attempt.flags, reclaimable)
            });
        if hopeful {
            self.env().context().yield_now();
            return true;
        }
        self.unreserve_highatomic(state, request, true)
    }

    /// Whether another compaction could help; makes it more thorough when the present way has been tried often enough.
    fn should_retry_compaction(
        &self,
        state: &State,
        request: &Request,
        attempt: &mut Attempt,
        outcome: CompactOutcome,
    ) -> bool {
        if request.order == Order::ZERO || self.task_flags().contains(TaskFlags::FATAL_SIGNAL) {
            return false;
        }
        match outcome {
            CompactOutcome::Skipped => return self.reclaim_would_let_compact(state, request),
            CompactOutcome::Success => {
                let most = if request.order.is_costly() { MAX_COMPACT_RETRIES / 4 } else { MAX_COMPACT_RETRIES };
                attempt.compactions += 1;
                if attempt.compactions <= most {
                    return true;
                }
            }
            CompactOutcome::Deferred | CompactOutcome::Complete | CompactOutcome::Contended => {}
        }
        let last = if request.order.is_costly() { CompactPriority::SyncLight } else { CompactPriority::SyncFull };
        if attempt.priority >= last {
            return false;
        }
        attempt.priority = match attempt.priority {
            CompactPriority::Async => CompactPriority::SyncLight,
            _ => CompactPriority::SyncFull,
        };
        attempt.compactions = 0;
        true
    }

    /// Whether compaction would have the free pages it needs if what is reclaimable (divided by the order) were free.
    fn reclaim_would_let_compact(&self, state: &State, request: &Request) -> bool {
        let order = u64::from(request.order.get().max(1));
        self.allowed_zones(state, request).any(|zone| {
            let reclaimable = self.env().reclaimer().reclaimable_pages(zone.node, zone.kind) / order;
            zone.has_room_to_compact(request.order, Watermark::Min, request.ceiling, reclaimable)
        })
    }

    /// The last resort: one more look above the high mark, then the reclaimer's verdict.
    fn last_resort(&self, state: &State, request: &Request, can_compact: bool) -> (Option<Pfn>, bool) {
        let look = Request { gfp: request.gfp.union(Gfp::HARDWALL).difference(Gfp::DIRECT_RECLAIM), ..*request };
        let high = AllocFlags::CPUSET.with_watermark(Watermark::High);
        if let Some(pfn) = self.pass(state, &look, high) {
            return (Some(pfn), true);
        }
        let nofail = request.gfp.contains(Gfp::NOFAIL);
        let progressed = match OomEligibility::of(request.gfp, request.order, request.ceiling, can_compact) {
            OomEligibility::Kill => {
                state.count(Event::OutOfMemory);
                let told = request.for_reclaim();
                let outcome = self.env().reclaimer().out_of_memory(self.env().context(), &told);
                outcome == OomOutcome::Progress || nofail
            }
            // Without anybody who reclaims there is nothing to wait for.
            OomEligibility::PretendProgress => self.env().reclaimer().can_reclaim(),
            _ => return (None, false),
        };
        if progressed && nofail {
            for flags in [AllocFlags::NO_WATERMARKS | AllocFlags::CPUSET, AllocFlags::NO_WATERMARKS] {
                if let Some(pfn) = self.pass(state, request, flags) {
                    return (Some(pfn), true);
                }
            }
        }
        (None, progressed)
    }

    fn warn_nofail(&self, state: &State, request: &Request) {
        if !request.gfp.contains(Gfp::NOFAIL) {
            return;
        }
        let wrong = if !request.gfp.allows_blocking() {
            (warning::NOFAIL_CANNOT_WAIT, "cannot wait and may fail")
        } else if request.task.contains(TaskFlags::MEMALLOC) {
            (warning::NOFAIL_IN_RECLAIM, "comes from within reclaim and may wait for itself")
        } else {
            return;
        };
        if state.warned.fetch_or(wrong.0, Ordering::Relaxed) & wrong.0 == 0 {
            self.env().context().report(format_args!("a request with {} {}", request.gfp, wrong.1));
        }
    }
}
