//! Opening a new generation.

use kmem_gfp::{NodeId, Pfn};
use kmem_sync::atomic::Ordering;

use super::{GenerationsPolicy, MAX_GENS, MIN_GENS, list};
use crate::GroupId;
use crate::lru::evict::Isolated;
use crate::lru::policy::{End, Place};
use crate::lru::section::Section;
use crate::lru::word::State;
use crate::lru::{Lists, LruEnv, PageKind};

/// Pages that change generations for one taking of the lock.
const PORTION: usize = 64;

const KINDS: [PageKind; 2] = [PageKind::Anon, PageKind::File];

type Gens<'s, E> = Section<'s, E, GenerationsPolicy>;

impl<E: LruEnv> Gens<'_, E> {
    /// Ends empty oldest generations of a kind.
    pub(super) fn close_empty(&mut self, kind: PageKind) {
        let at = kind.index();
        while self.inner.policy.nr_gens(kind) > MIN_GENS && self.len(list(self.inner.policy.min_seq(kind), kind)) == 0 {
            let shared = &self.vector.shared;
            self.inner.policy.feedback.close(shared, kind);
            if let (Some(seq), Some(copy)) = (self.inner.policy.min_seq.get_mut(at), shared.min_seq.get(at)) {
                *seq += 1;
                copy.store(*seq, Ordering::Relaxed);
            }
        }
    }

    /// Makes room for a generation: the oldest generation of each kind that has all four joins the next. `false` if there is
    /// more to do than fits one taking of the lock.
    fn make_room(&mut self) -> bool {
        for kind in KINDS {
            if self.inner.policy.nr_gens(kind) < MAX_GENS {
                continue;
            }
            let oldest = self.inner.policy.min_seq(kind);
            let (from, to) = (list(oldest, kind), list(oldest + 1, kind));
            for _ in 0..PORTION {
                let Some((pfn, (words, word))) =
                    self.head(from).and_then(|pfn| self.listed(pfn).map(|found| (pfn, found)))
                else {
                    break;
                };
                self.relist(pfn, words, word, Place { list: to, end: End::Tail, clear: 0 });
            }
            if self.len(from) > 0 {
                return false;
            }
            self.close_empty(kind);
        }
        true
    }

    /// Opens a generation; there is room for it.
    fn open(&mut self, now_ms: u64) {
        let old = self.inner.policy.max_seq;
        // The second youngest counts as inactive from now on.
        for kind in KINDS {
            let list = list(old - 1, kind);
            let before = self.kind(list);
            self.inner.policy.max_seq = old + 1;
            let after = self.kind(list);
            self.inner.policy.max_seq = old;
            if before != after {
                for (zone, &n) in self.inner.zones.get(list).into_iter().flatten().enumerate() {
                    let n = i32::try_from(n).unwrap_or(i32::MAX);
                    self.tally.add(zone, before, -n);
                    self.tally.add(zone, after, n);
                }
            }
        }
        self.inner.policy.max_seq = old + 1;
        if let Some(born) = self.inner.policy.born.get_mut(((old + 1) % MAX_GENS) as usize) {
            *born = now_ms;
        }
        self.vector.shared.max_seq.store(old + 1, Ordering::Relaxed);
    }

    /// A page was used through a mapping: to the youngest generation with it.
    fn rejuvenate(&mut self, pfn: Pfn) {
        let youngest = self.inner.policy.max_seq;
        if let Some((words, word)) = self.listed(pfn) {
            let state = State(words.state.load(Ordering::Relaxed));
            let to = list(youngest, state.kind());
            if !state.has(State::UNEVICTABLE) && word.list() != to {
                self.relist(pfn, words, word, Place { list: to, end: End::Head, clear: State::ACTIVE });
            }
        }
    }
}

/// Ages a vector: what page tables show as used becomes young, and a new generation is opened, unless somebody else has
/// opened one in the meantime.
pub(super) fn age<E: LruEnv>(lists: &Lists<E, GenerationsPolicy>, node: NodeId, group: GroupId, seen_max_seq: u64) {
    let mut young = Isolated::new();
    lists.env.walk_accessed(node, group, &mut |pfn| {
        young.push(pfn);
        if young.is_full() {
            rejuvenate(lists, node, group, &young);
            young = Isolated::new();
        }
    });
    rejuvenate(lists, node, group, &young);
    let now = lists.env.now_ms();
    while lists.section(node, group, |section| {
        if section.inner.policy.max_seq != seen_max_seq {
            return true;
        }
        let room = section.make_room();
        if room {
            section.open(now);
        }
        room
    }) == Some(false)
    {}
}

fn rejuvenate<E: LruEnv>(lists: &Lists<E, GenerationsPolicy>, node: NodeId, group: GroupId, young: &Isolated) {
    if young.len() > 0 {
        lists.section(node, group, |section| {
            for pfn in young.iter() {
                section.rejuvenate(pfn);
            }
        });
    }
}
