//! The engine's state of a node: what its background thread does, who waits for it, and where walks of the groups stopped.

use kmem_sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use kmem_sync::{SpinLock, const_fn};

use crate::GroupId;
use crate::events::Events;
use crate::kswapd::Kswapd;
use crate::throttle::Throttle;
use crate::wait::WaitQueue;
use crate::wake_word::WakeWord;

/// Fruitless runs of background reclaim after which a node is hopeless (`MAX_RECLAIM_RETRIES`).
pub(crate) const HOPELESS: u32 = 16;

/// The engine's state of one node. Make one for each node and hand them to the engine through
/// [`ReclaimEnv::nodes`](crate::ReclaimEnv::nodes).
///
/// **Locking:** every field is an atomic of its own; `kswapd` belongs to whoever holds `polling`.
#[derive(Debug)]
#[repr(align(64))]
pub struct Node {
    /// What background reclaim has been asked for and what it does.
    pub(crate) word: WakeWord,
    /// Runs in a row that freed nothing.
    pub(crate) failures: AtomicU32,
    /// Whether a thread polls this node at all.
    pub(crate) has_kswapd: AtomicBool,
    /// Whether a thread is inside a poll.
    pub(crate) polling: AtomicBool,
    /// Whether a node reclaim runs: one at a time.
    pub(crate) node_reclaim: AtomicBool,
    /// Where the thread sleeps.
    pub(crate) kswapd_wait: WaitQueue,
    /// Where requests wait for the thread to fill the reserve (`pfmemalloc_wait`).
    pub(crate) throttled: WaitQueue,
    /// Where runs wait for better times, by reason.
    pub(crate) naps: [WaitQueue; Throttle::COUNT],
    /// Where the thread has come to.
    pub(crate) kswapd: SpinLock<Kswapd>,
    /// Where walks of the groups that stopped early go on: the walk's root above, the last group below.
    cursors: [AtomicU64; CURSORS],
    pub(crate) events: Events,
}

const CURSORS: usize = 4;
/// A cursor at no group.
const NOWHERE: u64 = u64::MAX;

impl Node {
    const_fn! {
        /// A node on which nothing has happened yet.
        pub fn new() -> Self {
            Self {
                word: WakeWord::new(),
                failures: AtomicU32::new(0),
                has_kswapd: AtomicBool::new(false),
                polling: AtomicBool::new(false),
                node_reclaim: AtomicBool::new(false),
                kswapd_wait: WaitQueue::new(),
                throttled: WaitQueue::new(),
                naps: [WaitQueue::new(), WaitQueue::new(), WaitQueue::new(), WaitQueue::new()],
                kswapd: SpinLock::new(Kswapd::new()),
                cursors: [
                    AtomicU64::new(NOWHERE),
                    AtomicU64::new(NOWHERE),
                    AtomicU64::new(NOWHERE),
                    AtomicU64::new(NOWHERE),
                ],
                events: Events::new(),
            }
        }
    }

    /// Whether background reclaim has given the node up.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.failures.load(Ordering::Relaxed) >= HOPELESS
    }

    /// The group after which the next walk of `root`'s subtree goes on. Walks of roots that share a cursor forget each other's
    /// place and begin at the root.
    pub(crate) fn cursor(&self, root: GroupId) -> Option<GroupId> {
        let word = self.cursors.get(root.0 as usize % CURSORS)?.load(Ordering::Relaxed);
        (word != NOWHERE && word >> 32 == u64::from(root.0)).then_some(GroupId(word as u32))
    }

    /// Notes where a walk stopped.
    pub(crate) fn set_cursor(&self, root: GroupId, after: Option<GroupId>) {
        if let Some(cursor) = self.cursors.get(root.0 as usize % CURSORS) {
            let word = after.map_or(NOWHERE, |group| u64::from(root.0) << 32 | u64::from(group.0));
            cursor.store(word, Ordering::Relaxed);
        }
    }
}

impl Default for Node {
    fn default() -> Self {
        Self::new()
    }
}
