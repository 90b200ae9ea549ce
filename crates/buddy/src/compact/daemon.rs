//! `kcompactd`: one per node, polled by whatever thread the platform gives it.
//!
//! ```text
//! wake(order, ceiling) ─▶ word ─▶ poll(now) ─▶ zones up to the ceiling, for blocks of the order
//!                                          └─▶ every 500 ms: score above high? ─▶ zones down to low; 32 s if that was in vain
//! ```

use kmem_gfp::alloc_flags::AllocFlags;
use kmem_gfp::{AllocContext, MigrateMode, MigrateType, NodeId, Order, TaskFlags, ZoneKind};
use kmem_sync::atomic::{AtomicU32, AtomicU64, Ordering};
use kmem_sync::const_fn;

use crate::buddy::Buddy;
use crate::compact::index::Wish;
use crate::compact::scan::{Outcome, Run};
use crate::env::BuddyEnv;
use crate::state::State;
use crate::stats::Event;

/// How often the score is looked at.
const INTERVAL_MS: u64 = 500;
/// How long after an attempt that was in vain.
const DEFERRED_MS: u64 = INTERVAL_MS << 6;

/// The compaction daemon of one node: what it has been asked for, and when it looks again by itself.
///
/// The platform polls it from a thread that may sleep, one at a time: when it has been woken, and when the time that the
/// last poll returned has come.
#[derive(Debug)]
pub struct Kcompactd {
    node: NodeId,
    /// 0: nothing. Else the largest order and the highest ceiling asked for since the last poll.
    wanted: AtomicU32,
    next_look_ms: AtomicU64,
}

const ASKED: u32 = 1 << 16;

impl Kcompactd {
    const_fn! {
        /// The daemon of a node.
        pub fn new(node: NodeId) -> Self {
            Self { node, wanted: AtomicU32::new(0), next_look_ms: AtomicU64::new(0) }
        }
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Asks for blocks of `order` in zones up to `ceiling`; background reclaim does so when it goes to sleep, or refuses to
    /// wake up. Any context. The caller then sees to it that the daemon is polled.
    #[doc(alias = "wakeup_kcompactd")]
    pub fn wake(&self, order: Order, ceiling: ZoneKind) {
        let mut old = self.wanted.load(Ordering::Relaxed);
        loop {
            let new = ASKED | (old & 0xff).max(order.get()) | (old & 0xff00).max((ceiling as u32) << 8);
            match self.wanted.compare_exchange(old, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// Whether it has been asked for something.
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire) != 0
    }

    /// Does what has been asked, or looks after the node by itself. Returns when to poll again if nobody wakes it before, in
    /// milliseconds of the same clock; `None`: only then. Only where sleeping is allowed.
    ///
    /// While background reclaim works on the node ([`BuddyEnv::background_running`]) it only waits.
    pub fn poll<E: BuddyEnv>(&self, buddy: &Buddy<E>, now_ms: u64) -> Option<u64> {
        let state = buddy.state()?;
        let busy = buddy.env().background_running(self.node);
        if self.is_wanted() {
            if busy {
                return Some(now_ms.saturating_add(INTERVAL_MS));
            }
            let wanted = self.wanted.swap(0, Ordering::AcqRel);
            let ceiling = ZoneKind::ALL.get((wanted >> 8 & 0xff) as usize).copied().unwrap_or(ZoneKind::Movable);
            buddy.compact_in_background(state, self.node, Order::new(wanted & 0xff).unwrap_or_default(), ceiling);
        }
        self.look_after(buddy, state, now_ms, busy)
    }

    /// Proactive compaction.
    fn look_after<E: BuddyEnv>(&self, buddy: &Buddy<E>, state: &State, now_ms: u64, busy: bool) -> Option<u64> {
        if state.tunables.compaction_proactiveness.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let next = self.next_look_ms.load(Ordering::Relaxed);
        if now_ms < next {
            return Some(next);
        }
        let (low, high) = state.score_marks();
        let mut wait = INTERVAL_MS;
        let before = state.node_score(self.node);
        if !busy && u64::from(before) > high {
            let run = Run { daemon: true, until_score: Some(low), ..Run::everything(MigrateMode::SyncLight) };
            buddy.compact_node_with(state, self.node, &run);
            if state.node_score(self.node) >= before {
                wait = DEFERRED_MS;
            }
        }
        let next = now_ms.saturating_add(wait);
        self.next_look_ms.store(next, Ordering::Relaxed);
        Some(next)
    }
}

impl<E: BuddyEnv> Buddy<E> {
    /// Makes blocks of `order` in the zones of a node.
    fn compact_in_background(&self, state: &State, node: NodeId, order: Order, ceiling: ZoneKind) {
        let order = if self.options().defrag_mode { order.max(Order::PAGEBLOCK) } else { order };
        state.count(Event::CompactDaemonWake);
        let run = Run {
            order: Some(order),
            migratetype: MigrateType::Movable,
            wish: Some(Wish { order, ceiling, flags: AllocFlags::empty(), hasty: false }),
            daemon: true,
            ignore_skips: false,
            whole: false,
            ..Run::everything(MigrateMode::SyncLight)
        };
        let context = self.env().context();
        let before = context.update_task_flags(TaskFlags::MEMALLOC, TaskFlags::empty());
        for zone in state.zones_of(node).iter().filter(|zone| zone.is_populated() && zone.kind <= ceiling) {
            zone.forget_stale_skips();
            if order == Order::ZERO || zone.progress.is_deferred(order) {
                continue;
            }
            match self.compact_zone(state, zone, &run) {
                Outcome::Success => zone.progress.succeeded(order, false),
                Outcome::Complete | Outcome::PartialSkipped => {
                    self.drain_all_pages();
                    zone.progress.failed(order);
                }
                Outcome::Skipped | Outcome::Deferred | Outcome::Contended => {}
            }
        }
        if !before.contains(TaskFlags::MEMALLOC) {
            context.update_task_flags(TaskFlags::empty(), TaskFlags::MEMALLOC);
        }
    }
}
