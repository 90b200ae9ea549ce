//! `memory.events`: what happened to a group at its limits.
//!
//! ```text
//! an event in c       c.local[e] + 1;   c.total[e] + 1, then the same in every ancestor up to the root
//! memory.events       total: the group with its descendants
//! memory.events.local local: the group alone
//! ```

use kmem_sync::atomic::Ordering;

use crate::GroupId;
use crate::memcg::slot::Slot;
use crate::memcg::{Memcg, MemcgEnv};

/// An event of a group, in the order of `memory.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    /// Reclaimed although below its low protection.
    Low,
    /// Throttled or reclaimed because it was above its high limit.
    High,
    /// A charge met the max limit.
    Max,
    /// The OOM killer was considered.
    Oom,
    /// A process of the group was killed.
    OomKill,
    /// The whole group was killed.
    OomGroupKill,
    /// A socket was held back.
    SockThrottled,
}

impl Event {
    /// How many there are.
    pub const COUNT: usize = 7;

    /// All of them, in the order of `memory.events`.
    pub const ALL: [Self; Self::COUNT] =
        [Self::Low, Self::High, Self::Max, Self::Oom, Self::OomKill, Self::OomGroupKill, Self::SockThrottled];

    /// The name in `memory.events`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::High => "high",
            Self::Max => "max",
            Self::Oom => "oom",
            Self::OomKill => "oom_kill",
            Self::OomGroupKill => "oom_group_kill",
            Self::SockThrottled => "sock_throttled",
        }
    }
}

/// Who an event count is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// The group with its descendants, gone ones included: `memory.events`.
    Total,
    /// The group alone: `memory.events.local`.
    Local,
}

fn bump(slot: &Slot, event: Event, which: Events) {
    let counts = match which {
        Events::Total => &slot.events_total,
        Events::Local => &slot.events_local,
    };
    if let Some(count) = counts.get(event as usize) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl<E: MemcgEnv> Memcg<E> {
    /// Counts an event of `group` here and in its ancestors, and tells the platform. Any context that may take locks;
    /// O(depth). Nothing happens for a group that does not exist.
    pub fn record_event(&self, group: GroupId, event: Event) {
        if self.count_event(group, event) {
            self.env.notify(group, event);
        }
    }

    /// Counts without telling anybody: any context (A-09).
    pub(crate) fn count_event(&self, group: GroupId, event: Event) -> bool {
        let Some(state) = self.state() else { return false };
        let Some(slot) = state.slot(group) else { return false };
        bump(slot, event, Events::Local);
        for (_, slot) in state.up_from(group) {
            bump(slot, event, Events::Total);
        }
        true
    }

    /// How often an event has happened; zero for a group that does not exist. Any context; one load.
    pub fn events(&self, group: GroupId, event: Event, which: Events) -> u64 {
        let Some(slot) = self.state().and_then(|state| state.slot(group)) else { return 0 };
        let counts = match which {
            Events::Total => &slot.events_total,
            Events::Local => &slot.events_local,
        };
        counts.get(event as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}
