//! The classic lists: two for each kind of page, and a balance between the kinds (R-19..R-24).
//!
//! ```text
//! new ─▶ inactive head ............ tail ─▶ reclaimed
//!             ▲    second access, refault in time │
//!             │                                   ▼
//!        deactivated ◀─ tail ........ active head
//! ```
//!
//! `balance` decides how much of each list a pass looks at, `shrink` does it.

mod balance;
mod shrink;

pub(crate) use balance::{LEFTOVER, swappiness, unprotected};

use kmem_gfp::NodeId;
use kmem_sync::atomic::{AtomicU64, Ordering};

use super::policy::{Access, Arrival, End, Place, Policy, Verdict};
use super::vector::{Kind, Vector};
use super::word::State;
use super::{Lists, Look, LruEnv, PageKind, Shadow};
use crate::{GroupId, Protection, Scan};

/// The policy of the classic lists. Use it by way of [`Classic`](super::Classic).
#[derive(Debug)]
pub struct ClassicPolicy(());

/// What a vector's pages have cost lately, and how long evicted pages have been away.
#[derive(Debug, Default)]
pub struct Balance {
    /// Evictions and activations: the clock that shadows are stamped with.
    age: AtomicU64,
    /// Cost by kind.
    costs: [AtomicU64; 2],
    /// Pages activated because they came back in time, by kind.
    refaults: [AtomicU64; 2],
    /// `refaults` when the run before this one began.
    seen: [AtomicU64; 2],
}

/// The list of a kind.
const fn list(kind: PageKind, active: bool) -> usize {
    kind as usize * 2 + active as usize
}

impl Policy for ClassicPolicy {
    type Shared = Balance;

    fn new() -> Self {
        Self(())
    }

    fn place(&self, state: State, arrival: Arrival) -> Place {
        if arrival == Arrival::Written {
            return Place { list: list(state.kind(), false), end: End::Tail, clear: State::ACTIVE };
        }
        Place { list: list(state.kind(), state.has(State::ACTIVE)), end: End::Head, clear: 0 }
    }

    fn kind(&self, list: usize) -> Kind {
        let kind = if list / 2 == 0 { PageKind::Anon } else { PageKind::File };
        Kind::evictable(kind, list % 2 == 1)
    }

    fn is_misplaced(&self, state: State, list: usize) -> bool {
        state.has(State::ACTIVE) != (list % 2 == 1)
    }

    fn access(state: State) -> Access {
        if state.has(State::UNEVICTABLE) {
            Access::Known
        } else if state.refs() == 0 {
            Access::Set(state.with_refs(1))
        } else if state.has(State::ACTIVE) {
            Access::Known
        } else {
            Access::Move(state.with_refs(0).with(State::ACTIVE))
        }
    }

    fn moved(vector: &Vector<Self>) {
        vector.shared.age.fetch_add(1, Ordering::Relaxed);
    }

    fn arrival(_faulted: bool) -> u64 {
        0
    }

    fn refault<E: LruEnv>(lists: &Lists<E, Self>, vector: &Vector<Self>, shadow: Shadow, flags: u64) -> u64 {
        let (counts, shared) = (&vector.counts, &vector.shared);
        let kind = State(flags).kind();
        let distance = shadow.distance(shared.age.load(Ordering::Relaxed));
        let mut competitors = counts.get(Kind::ActiveFile);
        if kind == PageKind::Anon {
            competitors += counts.get(Kind::InactiveFile);
        }
        if lists.env.swap_free() > 0 {
            competitors += counts.get(Kind::ActiveAnon);
            if kind == PageKind::File {
                competitors += counts.get(Kind::InactiveAnon);
            }
        }
        if distance > competitors {
            return flags;
        }
        Self::moved(vector);
        if let Some(refaults) = shared.refaults.get(kind.index()) {
            refaults.fetch_add(1, Ordering::Relaxed);
        }
        if shadow.workingset() {
            shared.note_cost(counts, kind, 1, 0);
            return flags | State::ACTIVE | State::WORKINGSET;
        }
        flags | State::ACTIVE
    }

    fn eviction_age(vector: &Vector<Self>, _state: State) -> u64 {
        vector.shared.age.fetch_add(1, Ordering::Relaxed)
    }

    fn judge(state: State, look: Look) -> (Verdict, State) {
        let referenced = state.refs() > 0;
        if look.accessed == 0 {
            let clean_only = referenced && state.kind() == PageKind::File;
            return (if clean_only { Verdict::ReclaimClean } else { Verdict::Reclaim }, state.with_refs(0));
        }
        let executable = look.executable && state.kind() == PageKind::File;
        let again = referenced || look.accessed > 1;
        (if again || executable { Verdict::Activate } else { Verdict::Keep }, state.with_refs(1))
    }

    fn shrink<E: LruEnv>(
        lists: &Lists<E, Self>,
        node: NodeId,
        group: GroupId,
        protection: Protection,
        scan: &mut Scan<'_>,
    ) {
        shrink::shrink(lists, node, group, protection, scan);
    }

    fn age<E: LruEnv>(lists: &Lists<E, Self>, node: NodeId, group: GroupId, scan: &mut Scan<'_>) {
        if let Some(vector) = lists.vector(node, group)
            && balance::is_inactive_low(&vector.counts, PageKind::Anon)
            && lists.env.swap_free() > 0
        {
            shrink::deactivate(lists, node, group, PageKind::Anon, scan);
        }
    }
}
