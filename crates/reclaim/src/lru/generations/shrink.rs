//! One pass over the generations of a vector.

use kmem_gfp::NodeId;
use kmem_sync::atomic::Ordering;

use super::{GenerationsPolicy, MIN_GENS, age, list, tier};
use crate::lru::classic::{LEFTOVER, swappiness, unprotected};
use crate::lru::evict::{Isolated, helps};
use crate::lru::policy::{End, Place};
use crate::lru::section::Section;
use crate::lru::word::State;
use crate::lru::{Lists, LruEnv, PageKind};
use crate::{GroupId, Groups, Protection, Scan, Swappiness};

type Gens<E> = Lists<E, GenerationsPolicy>;

/// Pages that are looked at for one taking of the lock.
const BATCH: usize = 64;
/// Kinds that a run may take, the preferred one apart.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    anon: bool,
    file: bool,
    /// 1..=199 if both may be taken.
    swappiness: u64,
}

impl Allowed {
    fn of<E: LruEnv>(lists: &Gens<E>, group: GroupId, scan: &Scan<'_>) -> Self {
        let can_swap = scan.limits.may_swap && lists.env.swap_free() > 0;
        match swappiness(&scan.limits, lists.env.groups().swappiness(group)) {
            _ if !can_swap => Self { anon: false, file: true, swappiness: 0 },
            Swappiness::AnonOnly => Self { anon: true, file: false, swappiness: 200 },
            Swappiness::Share(share) => Self { anon: share > 0, file: true, swappiness: share.into() },
        }
    }

    fn kinds(self) -> impl Iterator<Item = PageKind> {
        [(self.anon, PageKind::Anon), (self.file, PageKind::File)]
            .into_iter()
            .filter(|(allowed, _)| *allowed)
            .map(|(_, kind)| kind)
    }
}

/// See [`PageLists::shrink`](crate::PageLists::shrink).
pub(super) fn shrink<E: LruEnv>(
    lists: &Gens<E>,
    node: NodeId,
    group: GroupId,
    protection: Protection,
    scan: &mut Scan<'_>,
) {
    let allowed = Allowed::of(lists, group, scan);
    let size = lists.section(node, group, |section| allowed.kinds().map(|kind| section.pages(kind)).sum::<u64>());
    let size = size.unwrap_or(0);
    let mut left = unprotected(size, group, protection, scan).min(size).checked_shr(scan.priority.into()).unwrap_or(0);
    if left == 0 && !lists.env.groups().is_online(group) {
        left = size.min(LEFTOVER);
    }
    while left > 0 {
        let due =
            lists.section(node, group, |section| section.is_aging_due(allowed).then_some(section.inner.policy.max_seq));
        if let Some(Some(max_seq)) = due {
            // At first, rather leave it to another group: aging is the dearer part.
            if scan.priority == Scan::FIRST_PRIORITY && group != scan.limits.root {
                return;
            }
            age::age(lists, node, group, max_seq);
        }
        let looked = take(lists, node, group, allowed, left.min(BATCH as u64) as usize, scan);
        left = left.saturating_sub(looked as u64);
        if looked == 0 || scan.is_done() && !scan.full_walk {
            return;
        }
    }
}

/// See [`PageLists::age`](crate::PageLists::age).
pub(super) fn age_if_due<E: LruEnv>(lists: &Gens<E>, node: NodeId, group: GroupId, scan: &mut Scan<'_>) {
    let allowed = Allowed::of(lists, group, scan);
    let found = lists.section(node, group, |section| {
        let pages: u64 = allowed.kinds().map(|kind| section.pages(kind)).sum();
        (pages > 0 && section.is_aging_due(allowed)).then_some(section.inner.policy.max_seq)
    });
    if let Some(Some(max_seq)) = found {
        age::age(lists, node, group, max_seq);
    }
}

/// Takes pages from the preferred kind, or from the other if that has nothing to take. Returns how many were looked at.
fn take<E: LruEnv>(
    lists: &Gens<E>,
    node: NodeId,
    group: GroupId,
    allowed: Allowed,
    most: usize,
    scan: &mut Scan<'_>,
) -> usize {
    let mut isolated = Isolated::new();
    let ceiling = scan.limits.ceiling;
    let looked = lists.section(node, group, |section| {
        let first = section.preferred(allowed);
        for kind in [first, first.other()] {
            if allowed.kinds().any(|allowed| allowed == kind) {
                let looked = section.isolate_oldest(kind, most, ceiling, &mut isolated);
                if looked > 0 {
                    return looked;
                }
            }
        }
        0
    });
    let looked = looked.unwrap_or(0);
    scan.scanned += looked as u64;
    if isolated.len() > 0 {
        lists.reclaim(node, group, &isolated, scan);
    }
    if looked > 0 {
        lists.section(node, group, |section| {
            section.close_empty(PageKind::Anon);
            section.close_empty(PageKind::File);
        });
    }
    looked
}

impl<E: LruEnv> Section<'_, E, GenerationsPolicy> {
    /// Evictable pages of a kind.
    fn pages(&self, kind: PageKind) -> u64 {
        (0..4).map(|gen_at| self.len(gen_at * 2 + kind.index())).sum()
    }

    /// whether there is too little behind the two youngest generations.
    fn is_aging_due(&self, allowed: Allowed) -> bool {
        let policy = &self.inner.policy;
        let oldest = allowed.kinds().map(|kind| policy.min_seq(kind)).min().unwrap_or(policy.max_seq);
        oldest + MIN_GENS > policy.max_seq
    }

    fn preferred(&self, allowed: Allowed) -> PageKind {
        match allowed {
            Allowed { anon: true, file: true, swappiness: 2..=199 } => {
                self.inner.policy.feedback.kind(&self.vector.shared, allowed.swappiness)
            }
            Allowed { anon: true, swappiness: 200.., .. } | Allowed { file: false, .. } => PageKind::Anon,
            _ => PageKind::File,
        }
    }

    /// Looks at up to `most` pages of the oldest generation of a kind and isolates those that may go. Returns how many it
    /// looked at; 0 if only the two youngest generations are left.
    fn isolate_oldest(
        &mut self,
        kind: PageKind,
        most: usize,
        ceiling: kmem_gfp::ZoneKind,
        isolated: &mut Isolated,
    ) -> usize {
        self.close_empty(kind);
        if self.inner.policy.nr_gens(kind) <= MIN_GENS {
            return 0;
        }
        let last_tier = self.inner.policy.feedback.last_tier(&self.vector.shared, kind);
        let oldest = self.inner.policy.min_seq(kind);
        let (from, next) = (list(oldest, kind), list(oldest + 1, kind));
        let mut looked = 0;
        while looked < most
            && !isolated.is_full()
            && let Some(pfn) = self.tail(from)
            && let Some((words, word)) = self.listed(pfn)
        {
            looked += 1;
            let state = State(words.state.load(Ordering::Relaxed));
            if state.has(State::UNEVICTABLE) || state.has(State::ACTIVE) {
                self.settle(pfn);
                continue;
            }
            let spared = tier(state) > last_tier;
            if spared {
                self.inner.policy.feedback.protect(kind, tier(state));
            } else if state.has(State::WRITEBACK) {
                words.state.fetch_or(State::RECLAIM, Ordering::Relaxed);
            } else if helps(word.zone(), ceiling) && self.isolate(pfn) {
                isolated.push(pfn);
                continue;
            }
            self.relist(pfn, words, word, Place { list: next, end: End::Head, clear: 0 });
        }
        looked
    }
}
