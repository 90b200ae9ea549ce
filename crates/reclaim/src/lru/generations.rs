//! The multi-generational lists: pages by the time of their last use, in two to four generations of each kind (R-26..R-33).
//!
//! ```text
//!             max_seq                                   min_seq (one per kind)
//!  used ─▶ [ youngest ] [ second youngest ] [ older ] [ oldest ] ─▶ reclaimed
//!               ▲ active ▲                      inactive   │
//!               └──────── found in use ────────────────────┘
//! ```
//!
//! Aging opens a new youngest generation, after everything that page tables show as used has been moved to the one before.
//! Within the oldest generation, pages that were used more often through descriptors (tiers) are spared as long as feedback
//! says that such pages come back more often than others. `feedback` counts, `age` opens generations, `shrink` takes pages.

mod age;
mod feedback;
mod shrink;
mod view;

use kmem_gfp::NodeId;
use kmem_sync::atomic::{AtomicU64, Ordering};

use self::feedback::Feedback;
use super::policy::{Access, Arrival, End, Place, Policy, Verdict};
use super::vector::{Kind, Vector};
use super::word::State;
use super::{Lists, Look, LruEnv, PageKind, Shadow};
use crate::{GroupId, Protection, Scan};

pub use view::{GenerationInfo, VectorInfo};

/// Generations that a kind always has.
pub(crate) const MIN_GENS: u64 = 2;
/// Generations that a kind can have.
pub(crate) const MAX_GENS: u64 = 4;
/// Tiers of a generation.
pub(crate) const TIERS: usize = 4;

/// The policy of the generations. Use it by way of [`Generations`](super::Generations).
#[derive(Debug)]
pub struct GenerationsPolicy {
    max_seq: u64,
    min_seq: [u64; 2],
    /// When each generation was opened, in milliseconds.
    born: [u64; MAX_GENS as usize],
    feedback: Feedback,
}

/// What is counted of a vector without its lock.
#[derive(Debug)]
pub struct Shared {
    /// Copies of the policy's numbers.
    max_seq: AtomicU64,
    min_seq: [AtomicU64; 2],
    /// Evictions since the oldest generation became the oldest, by kind and tier.
    evicted: [[AtomicU64; TIERS]; 2],
    /// Pages that came back in that time.
    refaulted: [[AtomicU64; TIERS]; 2],
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            max_seq: AtomicU64::new(MAX_GENS - 1),
            min_seq: Default::default(),
            evicted: Default::default(),
            refaulted: Default::default(),
        }
    }
}

/// The list of a generation.
const fn list(seq: u64, kind: PageKind) -> usize {
    (seq % MAX_GENS) as usize * 2 + kind as usize
}

const fn kind_of(list: usize) -> PageKind {
    if list & 1 == 0 { PageKind::Anon } else { PageKind::File }
}

/// R-28: how often a page was used through descriptors, on a logarithmic scale.
const fn tier(state: State) -> usize {
    if state.has(State::WORKINGSET) { TIERS - 1 } else { tier_of(state.refs()) }
}

const fn tier_of(refs: u64) -> usize {
    match refs {
        0 | 1 => 0,
        2 => 1,
        _ => 2,
    }
}

impl GenerationsPolicy {
    fn min_seq(&self, kind: PageKind) -> u64 {
        let [anon, file] = self.min_seq;
        match kind {
            PageKind::Anon => anon,
            PageKind::File => file,
        }
    }

    /// Generations of a kind.
    fn nr_gens(&self, kind: PageKind) -> u64 {
        self.max_seq - self.min_seq(kind) + 1
    }

    /// The number of the generation that a list of this kind holds.
    fn seq_of(&self, list: usize) -> u64 {
        let min = self.min_seq(kind_of(list));
        min + (list as u64 / 2).wrapping_sub(min) % MAX_GENS
    }
}

impl Policy for GenerationsPolicy {
    type Shared = Shared;

    fn new() -> Self {
        // All generations exist, so that new pages have room to age in.
        Self { max_seq: MAX_GENS - 1, min_seq: [0; 2], born: [0; MAX_GENS as usize], feedback: Feedback::default() }
    }

    fn place(&self, state: State, arrival: Arrival) -> Place {
        let kind = state.kind();
        let (oldest, youngest) = (self.min_seq(kind), self.max_seq);
        // R-27
        let (seq, end) = match arrival {
            Arrival::Written => (oldest, End::Tail),
            Arrival::Back(from) if kind_of(from) == kind && !state.has(State::ACTIVE) => {
                (self.seq_of(from).min(youngest), End::Head)
            }
            // A page that a fault brings in is in use: it starts youngest. On four of the five bundled traces that misses less
            // than starting it second youngest, as R-27 has it.
            _ if state.has(State::ACTIVE) => {
                let young = arrival == Arrival::New || state.has(State::WORKINGSET);
                (if young { youngest } else { youngest - 1 }, End::Head)
            }
            // What reclaim did not get is not looked at again at once.
            Arrival::Rejected => (youngest - 1, End::Head),
            _ if state.has(State::RECLAIM) || state.has(State::ANON) && !state.has(State::SWAPPED) => {
                (youngest - 1, End::Head)
            }
            _ => {
                let back = if state.refs() > 0 || state.has(State::WORKINGSET) { 2 } else { 3 };
                (youngest.saturating_sub(back), End::Head)
            }
        };
        Place { list: list(seq.max(oldest), kind), end, clear: State::ACTIVE }
    }

    fn kind(&self, list: usize) -> Kind {
        Kind::evictable(kind_of(list), self.seq_of(list) + MIN_GENS > self.max_seq)
    }

    fn is_misplaced(&self, state: State, _list: usize) -> bool {
        state.has(State::ACTIVE)
    }

    fn access(state: State) -> Access {
        if state.has(State::UNEVICTABLE) {
            return Access::Known;
        }
        match state.refs() {
            State::REFS_MAX if state.has(State::WORKINGSET) => Access::Known,
            State::REFS_MAX => Access::Set(state.with(State::WORKINGSET)),
            refs => Access::Set(state.with_refs(refs + 1)),
        }
    }

    fn arrival(faulted: bool) -> u64 {
        if faulted { State::ACTIVE } else { 0 }
    }

    fn refault<E: LruEnv>(_lists: &Lists<E, Self>, vector: &Vector<Self>, shadow: Shadow, flags: u64) -> u64 {
        let shared = &vector.shared;
        // R-31
        if shadow.distance(shared.max_seq.load(Ordering::Relaxed)) >= MAX_GENS {
            return flags;
        }
        let state = State(flags);
        let tier = if shadow.workingset() { TIERS - 1 } else { tier_of(shadow.refs()) };
        count(&shared.refaulted, state.kind(), tier);
        if shadow.workingset() {
            state.with(State::WORKINGSET).0
        } else {
            state.with_refs(shadow.refs().min(State::REFS_MAX)).0
        }
    }

    fn eviction_age(vector: &Vector<Self>, state: State) -> u64 {
        let kind = state.kind();
        count(&vector.shared.evicted, kind, tier(state));
        vector.shared.min_seq.get(kind.index()).map_or(0, |seq| seq.load(Ordering::Relaxed))
    }

    fn judge(state: State, look: Look) -> (Verdict, State) {
        if look.accessed == 0 {
            return (Verdict::Reclaim, state);
        }
        if state.refs() == 0 && !state.has(State::WORKINGSET) {
            return (Verdict::Keep, state.with_refs(1));
        }
        (Verdict::Activate, state.with(State::WORKINGSET))
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
        shrink::age_if_due(lists, node, group, scan);
    }
}

fn count(counts: &[[AtomicU64; TIERS]; 2], kind: PageKind, tier: usize) {
    if let Some(count) = counts.get(kind.index()).and_then(|tiers| tiers.get(tier)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}
