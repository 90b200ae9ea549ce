//! Background reclaim: one state machine per node, which a thread polls.
//!
//! ```text
//!            woken                      balanced, or hopeless               100 ms later, still so
//!  asleep ─────────▶ start ─▶ pass ─┐      ┌────▶ nap ───────────────────────────▶ asleep
//!                      ▲      ▲  │  │      │       │ woken: low-wmark-hit-quickly
//!                      │      └──┘  └▶ try to sleep ◀┄┄┄┄┄
//!                      └─────────────────┘ not balanced: high-wmark-hit-quickly
//! ```
//!
//! Each [`poll`](Reclaim::kswapd_poll) does one pass over the node's pages or one step of the sleep protocol, so that a
//! kernel thread, a hosted thread or a test can drive it alike. Wakers and the thread meet in one word
//! (`wake_word`): a wake-up between the thread's last look and its sleep makes the sleep fail.

use kmem_gfp::{AllocContext, Gfp, NoReclaimScope, NodeId, Order, ReclaimRequest, ZoneKind};
use kmem_sync::atomic::Ordering;
use kmem_sync::const_fn;

use crate::balance::compact_gap;
use crate::engine::Reclaim;
use crate::env::{ReclaimEnv, StallKind, Zones};
use crate::events::ReclaimEvent;
use crate::node::Node;
use crate::throttle::Throttle;
use crate::wait::{Wait, WaitQueue};
use crate::wake_word::{Phase, Wanted};
use crate::{GroupId, Groups, PageLists, Scan, ScanLimits};

/// How long the thread looks whether a balance lasts before it sleeps for good.
const NAP_MS: u64 = 100;
/// Boost reclaim goes no deeper.
const LEAST_BOOST_PRIORITY: u8 = Scan::FIRST_PRIORITY - 2;

/// What the polling thread should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KswapdStep {
    /// Nothing until [`kswapd_queue`](Reclaim::kswapd_queue) is woken.
    Idle,
    /// Wait for so many milliseconds or until the queue is woken.
    Nap(u64),
    /// Poll again: there is more to do.
    Worked,
}

/// What the thread does at its next poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asleep,
    Napping { until: u64 },
    Start,
    Pass,
    TrySleep,
}

/// Where the thread of a node has come to. Belongs to whoever polls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kswapd {
    stage: Stage,
    /// What the present run was asked for.
    alloc: Wanted,
    /// The order it still works for.
    order: Order,
    priority: u8,
    reclaimed: u64,
    /// Boost still to be worked off; 0 in an ordinary run.
    boost_left: u64,
    /// The boosts at the start, by zone.
    boosts: [u64; ZoneKind::COUNT],
}

impl Kswapd {
    const_fn! {
        pub(crate) fn new() -> Self {
            Self {
                stage: Stage::Asleep,
                alloc: Wanted { order: Order::ZERO, ceiling: ZoneKind::Movable },
                order: Order::ZERO,
                priority: Scan::FIRST_PRIORITY,
                reclaimed: 0,
                boost_left: 0,
                boosts: [0; ZoneKind::COUNT],
            }
        }
    }

    fn started_boosted(&self) -> bool {
        self.boosts.iter().any(|&boost| boost > 0)
    }
}

impl<E: ReclaimEnv> Reclaim<E> {
    /// Wakes the background thread of a node for a request (R-01, R-02). Any context; a few loads and an exchange; never
    /// sleeps.
    pub(crate) fn wake_kswapd(&self, node: NodeId, request: &ReclaimRequest) {
        let Some(state) = self.node(node) else { return };
        let zones = self.env().zones();
        if !zones.node_allowed(node, request) {
            return;
        }
        let wanted = Wanted { order: request.order, ceiling: request.ceiling };
        if state.word.record(wanted) == Phase::Running {
            return;
        }
        let wanted = state.word.pending().unwrap_or(wanted);
        let content = !self.is_boosted(node, wanted.ceiling) && self.is_balanced(node, request.order, request.ceiling);
        if state.is_hopeless() || content {
            if !request.gfp.contains(Gfp::DIRECT_RECLAIM) {
                zones.wake_compaction(node, request.order, request.ceiling);
            }
            return;
        }
        if state.word.rouse() {
            state.kswapd_wait.wake(self.env().park());
        }
    }

    /// Lets the thread run whatever the balance says.
    pub(crate) fn rouse(&self, state: &Node, order: Order, ceiling: ZoneKind) {
        if state.word.phase() != Phase::Running {
            state.word.record(Wanted { order, ceiling });
            if state.word.rouse() {
                state.kswapd_wait.wake(self.env().park());
            }
        }
    }

    /// Whether the node's background thread is at work. Allocators pass over such nodes at first. Any context; a load or two.
    pub fn kswapd_is_running(&self, node: NodeId) -> bool {
        self.node(node)
            .is_some_and(|state| state.word.phase() == Phase::Running && state.has_kswapd.load(Ordering::Relaxed))
    }

    /// Where the thread of a node sleeps between two polls. Read its sequence before the poll.
    pub fn kswapd_queue(&self, node: NodeId) -> Option<&WaitQueue> {
        self.node(node).map(|state| &state.kswapd_wait)
    }

    /// The thread of a node: polls and sleeps in turns until `should_stop` says so, which is asked after each wake-up
    /// ([`kswapd_kick`](Self::kswapd_kick)). Runs in a task of its own that may sleep and counts as a kernel thread. Nothing
    /// happens for a node that does not exist.
    pub fn kswapd_run(&self, node: NodeId, should_stop: impl Fn() -> bool) {
        let Some(queue) = self.kswapd_queue(node) else { return };
        while !should_stop() {
            let context = self.env().context();
            let seen = queue.sequence();
            let timeout_ms = match self.kswapd_poll(node, context.now_ms()) {
                KswapdStep::Worked => continue,
                KswapdStep::Nap(ms) => Some(ms),
                KswapdStep::Idle => None,
            };
            if should_stop() {
                break;
            }
            queue.wait(self.env().park(), context, seen, Wait { timeout_ms, killable: false });
        }
        self.kswapd_stopped(node);
    }

    /// Ends a sleep of the node's thread without giving it work, so that it looks whether it should stop. Any context.
    pub fn kswapd_kick(&self, node: NodeId) {
        if let Some(queue) = self.kswapd_queue(node) {
            queue.wake(self.env().park());
        }
    }

    /// Nobody polls this node any more: requests no longer wait for its thread.
    #[doc(alias = "kswapd_stop")]
    pub fn kswapd_stopped(&self, node: NodeId) {
        if let Some(state) = self.node(node) {
            state.has_kswapd.store(false, Ordering::Release);
            state.throttled.wake(self.env().park());
        }
    }

    /// One step of the node's background thread at `now_ms` of a clock that does not run backwards. From one thread per
    /// node, where sleeping is allowed; a second caller is told to come back a tick later.
    pub fn kswapd_poll(&self, node: NodeId, now_ms: u64) -> KswapdStep {
        let Some(state) = self.node(node) else { return KswapdStep::Idle };
        if state.polling.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return KswapdStep::Nap(self.env().tick_ms().max(1));
        }
        if !state.has_kswapd.load(Ordering::Relaxed) {
            state.has_kswapd.store(true, Ordering::Release);
        }
        let mut kswapd = state.kswapd.with(self.env().cpu(), |kswapd| *kswapd);
        let step = self.step(node, state, &mut kswapd, now_ms);
        state.kswapd.with(self.env().cpu(), |kept| *kept = kswapd);
        state.polling.store(false, Ordering::Release);
        step
    }

    fn step(&self, node: NodeId, state: &Node, kswapd: &mut Kswapd, now_ms: u64) -> KswapdStep {
        let roused = state.word.phase() == Phase::Running;
        match kswapd.stage {
            Stage::Asleep if !roused => return KswapdStep::Idle,
            Stage::Asleep => kswapd.stage = Stage::Start,
            Stage::Napping { .. } if roused => {
                state.events.add(ReclaimEvent::LowWmarkHitQuickly, 1);
                // What the interrupted sleep had been for counts on.
                state.word.record(Wanted { order: kswapd.order, ceiling: kswapd.alloc.ceiling });
                kswapd.stage = Stage::Start;
            }
            Stage::Napping { until } if now_ms < until => return KswapdStep::Nap(until - now_ms),
            Stage::Napping { .. } => return self.end_nap(node, state, kswapd),
            Stage::TrySleep => return self.try_sleep(node, state, kswapd, now_ms),
            Stage::Start | Stage::Pass => {}
        }
        let context: &dyn AllocContext = self.env().context();
        let _reserves = NoReclaimScope::enter(context);
        let stall = self.env().stall_enter(context, StallKind::Background);
        if kswapd.stage == Stage::Start {
            self.start_run(node, state, kswapd);
        }
        let step = self.pass(context, node, state, kswapd);
        self.env().stall_leave(context, StallKind::Background, stall);
        step
    }

    /// Whether there is nothing to do; lets throttled requests go if so (R-04).
    fn may_sleep(&self, node: NodeId, state: &Node, kswapd: &Kswapd) -> bool {
        let may = state.is_hopeless() || self.is_balanced(node, kswapd.order, kswapd.alloc.ceiling);
        if may {
            state.throttled.wake(self.env().park());
        }
        may
    }

    fn try_sleep(&self, node: NodeId, state: &Node, kswapd: &mut Kswapd, now_ms: u64) -> KswapdStep {
        if !self.may_sleep(node, state, kswapd) {
            state.events.add(ReclaimEvent::HighWmarkHitQuickly, 1);
            kswapd.stage = Stage::Start;
            return KswapdStep::Worked;
        }
        // Requests on a hopeless node wake nobody, so they do not keep anybody awake either.
        if !state.word.try_nap(state.is_hopeless()) {
            state.events.add(ReclaimEvent::LowWmarkHitQuickly, 1);
            kswapd.stage = Stage::Start;
            return KswapdStep::Worked;
        }
        let zones = self.env().zones();
        zones.reset_compaction_hints(node);
        zones.wake_compaction(node, kswapd.alloc.order, kswapd.alloc.ceiling);
        kswapd.stage = Stage::Napping { until: now_ms.saturating_add(NAP_MS) };
        KswapdStep::Nap(NAP_MS)
    }

    fn end_nap(&self, node: NodeId, state: &Node, kswapd: &mut Kswapd) -> KswapdStep {
        if self.may_sleep(node, state, kswapd) {
            if state.word.try_sleep() {
                kswapd.stage = Stage::Asleep;
                return KswapdStep::Idle;
            }
            state.events.add(ReclaimEvent::LowWmarkHitQuickly, 1);
        } else {
            state.events.add(ReclaimEvent::HighWmarkHitQuickly, 1);
            state.word.rouse();
        }
        kswapd.stage = Stage::Start;
        KswapdStep::Worked
    }

    fn start_run(&self, node: NodeId, state: &Node, kswapd: &mut Kswapd) {
        // Without a request the run is for single pages below the zone of the one before.
        let ceiling = kswapd.alloc.ceiling;
        kswapd.alloc = state.word.take().unwrap_or(Wanted { order: Order::ZERO, ceiling });
        kswapd.order = kswapd.alloc.order;
        kswapd.priority = Scan::FIRST_PRIORITY;
        kswapd.reclaimed = 0;
        for (boost, zone) in kswapd.boosts.iter_mut().zip(ZoneKind::ALL) {
            let counts = zone <= kswapd.alloc.ceiling && self.env().zones().managed(node, zone) > 0;
            *boost = if counts { self.env().zones().boost(node, zone) } else { 0 };
        }
        kswapd.boost_left = kswapd.boosts.iter().copied().fold(0, u64::saturating_add);
        kswapd.stage = Stage::Pass;
        state.events.add(ReclaimEvent::PageOutRun, 1);
    }

    /// One pass at one priority (R-05, R-08).
    fn pass(&self, context: &dyn AllocContext, node: NodeId, state: &Node, kswapd: &mut Kswapd) -> KswapdStep {
        let ceiling = kswapd.alloc.ceiling;
        let balanced = self.is_balanced(node, kswapd.order, ceiling);
        if !balanced && kswapd.boost_left > 0 {
            // The pages themselves come before the boost.
            kswapd.boost_left = 0;
            kswapd.priority = Scan::FIRST_PRIORITY;
        }
        if balanced && kswapd.boost_left == 0 {
            return self.end_run(node, state, kswapd, true);
        }
        let boosting = kswapd.boost_left > 0;
        let target = self.background_target(node, ceiling);
        let limits = ScanLimits {
            gfp: Gfp::KERNEL,
            order: kswapd.order,
            ceiling,
            target,
            root: GroupId::ROOT,
            background: true,
            may_write: !boosting,
            may_unmap: true,
            may_swap: !boosting,
            swappiness: self.swappiness(),
        };
        let mut scan = Scan::new(limits, context);
        scan.priority = kswapd.priority;
        self.age_node(node, &mut scan);
        self.shrink_node(node, &mut scan);
        state.events.add(ReclaimEvent::ScanKswapd, scan.scanned);
        state.events.add(ReclaimEvent::StealKswapd, scan.reclaimed);

        kswapd.reclaimed = kswapd.reclaimed.saturating_add(scan.reclaimed);
        if kswapd.order > Order::ZERO && kswapd.reclaimed >= compact_gap(kswapd.order) {
            kswapd.order = Order::ZERO;
        }
        if self.allows_direct(node) {
            state.throttled.wake(self.env().park());
        }
        self.consider_throttle(node, &scan, true);
        kswapd.boost_left = kswapd.boost_left.saturating_sub(scan.reclaimed);
        if kswapd.boost_left > 0 && scan.reclaimed == 0 {
            return self.end_run(node, state, kswapd, false);
        }
        let goes_on = scan.scanned >= target || (kswapd.boost_left > 0 && kswapd.priority <= LEAST_BOOST_PRIORITY);
        if !goes_on || scan.reclaimed == 0 {
            kswapd.priority = kswapd.priority.saturating_sub(1);
            if kswapd.priority == 0 {
                return self.end_run(node, state, kswapd, false);
            }
        }
        if scan.scanned > 0 && scan.writeback >= scan.scanned {
            // Everything is on its way out already.
            return KswapdStep::Nap(Throttle::Writeback.ms(self.env().tick_ms().max(1)));
        }
        KswapdStep::Worked
    }

    fn end_run(&self, node: NodeId, state: &Node, kswapd: &mut Kswapd, balanced: bool) -> KswapdStep {
        if !balanced && kswapd.reclaimed == 0 && !kswapd.started_boosted() {
            // What is missing may lie in the sets of idle CPUs.
            self.env().zones().drain();
            if !self.is_balanced(node, kswapd.order, kswapd.alloc.ceiling) {
                state.failures.fetch_add(1, Ordering::Relaxed);
            }
        }
        if kswapd.started_boosted() {
            let zones = self.env().zones();
            for (&boost, zone) in kswapd.boosts.iter().zip(ZoneKind::ALL).filter(|(boost, _)| **boost > 0) {
                zones.lower_boost(node, zone, boost);
            }
            zones.wake_compaction(node, Order::PAGEBLOCK, kswapd.alloc.ceiling);
        }
        kswapd.stage = Stage::TrySleep;
        KswapdStep::Worked
    }

    /// Ages the pages of every group on a node.
    fn age_node(&self, node: NodeId, scan: &mut Scan<'_>) {
        let groups = self.env().groups();
        let mut at = groups.next_in_subtree(GroupId::ROOT, None);
        while let Some(group) = at {
            self.env().lists().age(node, group, scan);
            at = groups.next_in_subtree(GroupId::ROOT, Some(group));
        }
    }
}
